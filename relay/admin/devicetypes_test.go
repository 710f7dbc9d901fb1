package admin

import (
	"context"
	"encoding/json"
	"testing"
	"time"
)

// Every new command travels whole, both ways.
func TestClientEnrolment(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	dev := Device{
		ID: "1", Name: "tv", Kind: "token", Admin: true, Until: when, Path: "/api/", TokenHost: "t-x.example.org", Target: "photos.example.org",
		URL: "https://t-x.example.org/", Renewed: true, DueForRenewal: true,
	}
	ask := EnrolRequest{
		ID: "7k", Name: "anna", State: "pending", Via: "scep", Agent: "iOS", Source: "192.0.2.1", Words: "a b", KeyID: "ff",
		Hosts: []string{"ha"}, Admin: true, Created: when, Expires: when,
	}
	cert := PublicCert{Host: "ha.example.org", State: "valid", Issuer: "i", Problem: "p", Fix: "f", NotAfter: when, Next: when}
	hosts, yes := []string{}, true
	change := DeviceChange{Hosts: &hosts, Until: &when, Admin: &yes}
	invite := InviteRequest{Name: "anna", Hosts: []string{"ha"}, Until: when, TTL: 60, Admin: true, Approve: true}
	token := TokenDeviceRequest{Name: "tv", Host: "photos", Path: "/api/", Until: when}
	link := WaitingInvite{ID: "q7", Name: "carl", By: "local", Hosts: []string{"ha"}, Admin: true, Approve: true, Created: when, Expires: when}
	var retried, withdrawn string
	reset := false

	s, err := New(Config{Dir: dir, API: API{
		Invite: func(_ context.Context, q InviteRequest) (Invite, error) {
			same(t, q, nil, invite)
			return Invite{Name: q.Name, Link: "https://enroll.example.org/#X", Expires: when, Approve: q.Approve, SVG: "<svg/>"}, nil
		},
		AddTokenDevice: func(_ context.Context, q TokenDeviceRequest) (TokenDevice, error) {
			same(t, q, nil, token)
			return TokenDevice{Device: dev, Secret: "s", URL: dev.URL}, nil
		},
		ChangeDevice: func(_ context.Context, name string, c DeviceChange) (Device, error) {
			if name == "nothing" {
				same(t, c, nil, DeviceChange{})
			} else {
				same(t, c, nil, change)
			}
			return dev, nil
		},
		Requests: func(context.Context) ([]EnrolRequest, error) { return []EnrolRequest{ask}, nil },
		Approve: func(_ context.Context, id string) (EnrolRequest, error) {
			return EnrolRequest{ID: id, State: "issued"}, nil
		},
		Deny: func(_ context.Context, id string) (EnrolRequest, error) {
			return EnrolRequest{ID: id, State: "denied"}, nil
		},
		Invites:        func(context.Context) ([]WaitingInvite, error) { return []WaitingInvite{link}, nil },
		WithdrawInvite: func(_ context.Context, id string) error { withdrawn = id; return nil },
		ResetClock:     func(context.Context) error { reset = true; return nil },
		Certificates: func(context.Context) ([]PublicCert, error) {
			return []PublicCert{cert}, nil
		},
		RetryCertificate: func(_ context.Context, host string) error { retried = host; return nil },
		Dashboard: func(context.Context) (DashboardInfo, error) {
			return DashboardInfo{Socket: "/s", Listen: "127.0.0.1:1", Login: "http://127.0.0.1:1/login#X"}, nil
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Listen()
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(run, l) }()
	defer func() {
		stop()
		<-ended
	}()

	c := NewClient(dir)
	inv, err := c.Invite(ctx, invite)
	same(t, inv, err, Invite{Name: "anna", Link: "https://enroll.example.org/#X", Expires: when, Approve: true, SVG: "<svg/>"})
	td, err := c.AddTokenDevice(ctx, token)
	same(t, td, err, TokenDevice{Device: dev, Secret: "s", URL: dev.URL})
	got, err := c.ChangeDevice(ctx, "anna", change)
	same(t, got, err, dev)
	_, err = c.ChangeDevice(ctx, "nothing", DeviceChange{})
	same(t, struct{}{}, err, struct{}{})
	asks, err := c.Requests(ctx)
	same(t, asks, err, []EnrolRequest{ask})
	yea, err := c.Approve(ctx, "7k/../x")
	same(t, yea, err, EnrolRequest{ID: "7k/../x", State: "issued"})
	nay, err := c.Deny(ctx, "7k")
	same(t, nay, err, EnrolRequest{ID: "7k", State: "denied"})
	links, err := c.Invites(ctx)
	same(t, links, err, []WaitingInvite{link})
	if err := c.WithdrawInvite(ctx, "q7/../x"); err != nil || withdrawn != "q7/../x" {
		t.Errorf("withdrew %q, %v", withdrawn, err)
	}
	if err := c.ResetClock(ctx); err != nil || !reset {
		t.Errorf("reset %v, %v", reset, err)
	}
	certs, err := c.Certificates(ctx)
	same(t, certs, err, []PublicCert{cert})
	if err := c.RetryCertificate(ctx, "*.example.org"); err != nil || retried != "*.example.org" {
		t.Errorf("retried %q, %v", retried, err)
	}
	info, err := c.Dashboard(ctx)
	same(t, info, err, DashboardInfo{Socket: "/s", Listen: "127.0.0.1:1", Login: "http://127.0.0.1:1/login#X"})
}

// An old relay, or one without the parts, says so instead of dying.
func TestNilCommands(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Listen()
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(run, l) }()
	defer func() {
		stop()
		<-ended
	}()
	c := NewClient(dir)
	for name, do := range map[string]func() error{
		"invite":    func() error { _, err := c.Invite(ctx, InviteRequest{}); return err },
		"token":     func() error { _, err := c.AddTokenDevice(ctx, TokenDeviceRequest{}); return err },
		"change":    func() error { _, err := c.ChangeDevice(ctx, "x", DeviceChange{}); return err },
		"requests":  func() error { _, err := c.Requests(ctx); return err },
		"approve":   func() error { _, err := c.Approve(ctx, "x"); return err },
		"deny":      func() error { _, err := c.Deny(ctx, "x"); return err },
		"invites":   func() error { _, err := c.Invites(ctx); return err },
		"withdraw":  func() error { return c.WithdrawInvite(ctx, "x") },
		"clock":     func() error { return c.ResetClock(ctx) },
		"certs":     func() error { _, err := c.Certificates(ctx); return err },
		"retry":     func() error { return c.RetryCertificate(ctx, "x") },
		"dashboard": func() error { _, err := c.Dashboard(ctx); return err },
		"release":   func() error { return c.ReleaseHost(ctx, "x") },
		"revoke":    func() error { _, err := c.RevokeAgent(ctx, "x"); return err },
	} {
		t.Run(name, func(t *testing.T) { wantError(t, do(), Error{Code: CodeUnavailable}) })
	}
}

func TestDeviceEnds(t *testing.T) {
	later := when.Add(time.Hour)
	for _, c := range []struct{ notAfter, until, want time.Time }{
		{when, time.Time{}, when},
		{when, later, when},
		{later, when, when},
		{time.Time{}, when, when}, // a token
		{time.Time{}, time.Time{}, time.Time{}},
	} {
		if got := (Device{NotAfter: c.notAfter, Until: c.until}).Ends(); !got.Equal(c.want) {
			t.Errorf("%v and %v: %v", c.notAfter, c.until, got)
		}
	}
}

// "No hosts" and "leave the hosts" are different things on the wire.
func TestDeviceChangeOnTheWire(t *testing.T) {
	none := []string{}
	for _, c := range []struct {
		in   DeviceChange
		want string
	}{{DeviceChange{}, `{}`}, {DeviceChange{Hosts: &none}, `{"hosts":[]}`}, {DeviceChange{Until: &time.Time{}}, `{"until":"0001-01-01T00:00:00Z"}`}} {
		text, err := json.Marshal(c.in)
		var back DeviceChange
		if err != nil || string(text) != c.want || json.Unmarshal(text, &back) != nil || (back.Hosts == nil) != (c.in.Hosts == nil) || (back.Until == nil) != (c.in.Until == nil) {
			t.Errorf("%s, %v", text, err)
		}
	}
}
