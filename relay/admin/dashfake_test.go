package admin

import (
	"context"
	"crypto/rand"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"
)

// fakeRelay is a relay's API with something of everything, in memory.
type fakeRelay struct {
	bell Bell

	mu       sync.Mutex // guards the fields below
	requests []EnrolRequest
	links    []WaitingInvite
	devices  []Device
	hosts    []Host
	agents   []Agent
	certs    []PublicCert
	ports    []Port
	log      []AuditLine // oldest first
	calls    []string    // "approve 7kq2mf9x by tester"
	invites  []InviteRequest
	changes  []DeviceChange
}

func newFakeRelay() *fakeRelay {
	at := func(d time.Duration) time.Time { return when.Add(d) }
	const day = 24 * time.Hour
	f := &fakeRelay{
		requests: []EnrolRequest{anna()},
		devices: []Device{
			{ID: "a1f0c2", Name: "pauls-phone", Kind: "certificate", Admin: true, Created: at(-90 * day), NotAfter: at(275 * day), LastSeen: at(-time.Minute)},
			{ID: "b2", Name: "anna-tablet", Kind: "certificate", Hosts: []string{"ha.home.example.org", "photos.home.example.org"}, Created: at(-340 * day), NotAfter: at(25 * day), LastSeen: at(-3 * time.Hour), DueForRenewal: true},
			{ID: "c3", Name: "babysitter", Kind: "certificate", Hosts: []string{"ha.home.example.org"}, Created: at(-time.Hour), NotAfter: at(365 * day), Until: at(time.Hour)},
			{ID: "d4", Name: "living-room-tv", Kind: "token", Created: at(-9 * day), Target: "photos.home.example.org", Path: "/api/", TokenHost: "t-k3v9.home.example.org", URL: "https://t-k3v9.home.example.org/", LastSeen: at(-2 * day)},
			{ID: "e5", Name: "old-phone", Kind: "certificate", Created: at(-400 * day), NotAfter: at(100 * day), Revoked: true, RevokedAt: at(-30 * day)},
		},
		links: []WaitingInvite{
			{ID: "q7m2", Name: "carl-phone", By: "pauls-phone", Hosts: []string{"ha.home.example.org"}, Created: at(-3 * time.Minute), Expires: at(12 * time.Minute)},
			{ID: "x9b4", By: "local", Admin: true, Approve: true, Created: at(-time.Hour), Expires: at(23 * time.Hour)},
		},
		agents: []Agent{
			{ID: "1", Name: "pi", Online: true, Since: at(-50 * time.Hour), Ports: []string{"2222", "51820/udp"}, Hosts: []string{"ha.home.example.org"}, Joined: at(-200 * day), Streams: 3, Opened: 48211, BytesIn: 9_412_000_000, BytesOut: 310_400_000, Sessions: []Session{{Transport: "quic", RTTMillis: 18, Since: at(-50 * time.Hour)}}},
			{ID: "2", Name: "cabin", Since: at(-26 * time.Hour), Allowed: []string{"*.cabin.example.org"}, Joined: at(-20 * day), Conflict: at(-time.Hour)},
		},
		hosts: []Host{
			{Host: "ha.home.example.org", Agent: "pi", Online: true, Services: []HostService{{Name: "home-assistant", URL: "https://ha.home.example.org/", Auth: "require", TLS: "relay"}}},
			{Host: "photos.home.example.org", Agent: "pi", Online: true, Services: []HostService{{Name: "photos", URL: "https://photos.home.example.org/", Auth: "ask", TLS: "agent", Reader: ReaderEndToEnd}, {Name: "photos-share", Path: "/share/", URL: "https://photos.home.example.org/share/", Auth: "none", TLS: "agent"}}},
			{Host: "cam.cabin.example.org", Agent: "cabin", Services: []HostService{{Name: "camera", URL: "https://cam.cabin.example.org/", Auth: "require", TLS: "relay"}}},
			{Host: "old.cabin.example.org", Agent: "cabin"},
		},
		ports: []Port{
			{Port: "2222", Agent: "pi", Service: "git", Error: "another program on the relay has this port"},
			{Port: "51820/udp", Agent: "pi", Service: "wireguard", Open: 2, Bytes: 8_200_000},
		},
		certs: []PublicCert{
			{Host: "ha.home.example.org", State: "valid", Issuer: "Let's Encrypt", NotAfter: at(61 * day), Next: at(31 * day)},
			{Host: "photos.home.example.org", State: "valid", Issuer: "Let's Encrypt", NotAfter: at(5 * day), Next: at(2 * time.Hour)},
			{Host: "cam.cabin.example.org", State: "none", Problem: "cam.cabin.example.org leads to 203.0.113.7, which is not this relay", Fix: "Set its A record to 198.51.100.20.", Next: at(50 * time.Minute)},
		},
	}
	f.line("relay.started", nil)
	f.line("agent.joined", map[string]any{"agent": "pi", "hosts": []any{"*.home.example.org"}})
	f.line("device.added", map[string]any{"device": "babysitter", "id": "c3", "not_after": "2027-05-01T12:00:00Z"})
	f.line("enrol.asked", map[string]any{"name": "anna-phone", "source": "203.0.113.99", "via": "browser"})
	return f
}

// anna asks to come in.
func anna() EnrolRequest {
	return EnrolRequest{
		ID: "7kq2mf9x", Name: "anna-phone", State: "pending", Via: "browser", Source: "203.0.113.99",
		Agent: "Mozilla/5.0 (iPhone; CPU iPhone OS 26_1 like Mac OS X) AppleWebKit/605.1.15 Version/26.1 Mobile/15E148 Safari/604.1",
		Words: "otter maple violin harbour pepper lamp", KeyID: "9f86d081884c7d65", Created: when.Add(-2 * time.Minute), Expires: when.Add(23 * time.Hour),
	}
}

// printer asks, too, and has no screen for words.
func printer() EnrolRequest {
	return EnrolRequest{
		ID: "pr1nt3r0", Name: "printer", State: "pending", Via: "scep", Source: "192.0.2.44", Agent: "sscep/0.10",
		Words: "tulip anchor", KeyID: "2c26b46b68ffc68ff99b453c1d304134", Created: when.Add(-time.Minute), Expires: when.Add(23 * time.Hour),
	}
}

// line appends to the log. The caller holds the lock, or is alone.
func (f *fakeRelay) line(event string, attrs map[string]any) {
	n := len(f.log)
	f.log = append(f.log, AuditLine{Seq: uint64(n + 1), Time: when.Add(time.Duration(n-9) * time.Minute), Event: event, Attrs: attrs})
}

// did notes a command and rings. The caller does not hold the lock.
func (f *fakeRelay) did(ctx context.Context, what string, change func()) {
	f.mu.Lock()
	f.calls = append(f.calls, what+" by "+Actor(ctx))
	if change != nil {
		change()
	}
	f.mu.Unlock()
	f.bell.Ring()
}

func (f *fakeRelay) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func listed[T any](f *fakeRelay, from *[]T) func(context.Context) ([]T, error) {
	return func(context.Context) ([]T, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.Clone(*from), nil
	}
}

func (f *fakeRelay) decide(state string) func(context.Context, string) (EnrolRequest, error) {
	return func(ctx context.Context, id string) (q EnrolRequest, err error) {
		f.did(ctx, state+" "+id, func() {
			at := slices.IndexFunc(f.requests, func(q EnrolRequest) bool { return q.ID == id })
			if at < 0 {
				err = &Error{Code: CodeNotFound, Message: "no such request"}
				return
			}
			q = f.requests[at]
			q.State = state
			f.requests = slices.Delete(f.requests, at, at+1)
			if state == "issued" {
				f.devices = append(f.devices, Device{ID: q.KeyID, Name: q.Name, Kind: "certificate", Created: when, NotAfter: when.AddDate(1, 0, 0)})
			}
		})
		return q, err
	}
}

func (f *fakeRelay) api() API {
	return API{
		Status: func(context.Context) (Status, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return Status{
				Version: "v0.3.0", Domain: "home.example.org", Started: when.Add(-50 * time.Hour), Visitors: 7,
				Agents: slices.Clone(f.agents), Hosts: slices.Clone(f.hosts), Ports: slices.Clone(f.ports),
				DNS:      &DNS{Zone: "home.example.org", NS: []string{"ns1.home.example.org"}, Addresses: []string{"198.51.100.20"}, Questions: 4711},
				ECH:      &ECH{PublicName: "www.home.example.org", Made: when.Add(-time.Hour), Next: when.Add(23 * time.Hour), Kept: 8},
				Warnings: []string{"agent cabin: two live instances use its key; if that is not meant, revoke it and join again"},
			}, nil
		},
		Devices: listed(f, &f.devices), Agents: listed(f, &f.agents), Hosts: listed(f, &f.hosts),
		Invites: listed(f, &f.links), ResetClock: func(ctx context.Context) error { f.did(ctx, "reset clock", nil); return nil },
		WithdrawInvite: func(ctx context.Context, id string) error {
			f.did(ctx, "withdraw "+id, func() {
				f.links = slices.DeleteFunc(f.links, func(i WaitingInvite) bool { return i.ID == id })
			})
			return nil
		},
		Requests: listed(f, &f.requests), Certificates: listed(f, &f.certs),
		Approve: f.decide("issued"), Deny: f.decide("denied"),
		NewToken: func(ctx context.Context, _ TokenRequest) (Token, error) {
			f.did(ctx, "token", nil)
			return Token{Token: "sp1-secret"}, nil
		},
		AddDevice: func(ctx context.Context, _ DeviceRequest) (IssuedDevice, error) {
			f.did(ctx, "add device", nil)
			return IssuedDevice{}, nil
		},
		AddTokenDevice: func(ctx context.Context, _ TokenDeviceRequest) (TokenDevice, error) {
			f.did(ctx, "add token device", nil)
			return TokenDevice{}, nil
		},
		Invite: func(ctx context.Context, q InviteRequest) (Invite, error) {
			if q.Name == "taken" {
				return Invite{}, &Error{Code: CodeConflict, Message: "there is a device \"taken\"", Hint: "choose another name"}
			}
			f.did(ctx, "invite "+q.Name, func() { f.invites = append(f.invites, q) })
			return Invite{
				Name: q.Name, Link: "https://enroll.home.example.org/#" + rand.Text(), Approve: q.Approve,
				Expires: when.Add(time.Duration(q.TTL) * time.Second),
			}, nil
		},
		ChangeDevice: func(ctx context.Context, name string, c DeviceChange) (Device, error) {
			f.did(ctx, "change "+name, func() { f.changes = append(f.changes, c) })
			return Device{Name: name}, nil
		},
		RevokeDevice: func(ctx context.Context, name string) (Device, error) {
			f.did(ctx, "revoke device "+name, func() {
				for i := range f.devices {
					if f.devices[i].Name == name {
						f.devices[i].Revoked, f.devices[i].RevokedAt = true, when
					}
				}
			})
			return Device{Name: name}, nil
		},
		Grant: func(ctx context.Context, q GrantRequest) (Agent, error) {
			f.did(ctx, "grant", nil)
			return Agent{}, nil
		},
		RevokeAgent: func(ctx context.Context, name string) (Agent, error) {
			f.did(ctx, "revoke agent "+name, nil)
			return Agent{Name: name}, nil
		},
		ReleaseHost:      func(ctx context.Context, host string) error { f.did(ctx, "release "+host, nil); return nil },
		RetryCertificate: func(ctx context.Context, host string) error { f.did(ctx, "retry "+host, nil); return nil },
	}
}

func (f *fakeRelay) audit(n int) ([]AuditLine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lines := slices.Clone(f.log)
	slices.Reverse(lines)
	return lines[:min(n, len(lines))], nil
}

func (f *fakeRelay) record(event string, attrs ...slog.Attr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.line(event, plain(attrs))
}

// config is a dashboard's on this relay, as behind the socket.
func (f *fakeRelay) config() DashboardConfig {
	return DashboardConfig{
		API: f.api(), Audit: f.audit, Changes: f.bell.Listen, Record: f.record, Hosts: LocalHosts,
		Now: func() time.Time { return when },
	}
}

// absent ends a test whose program is not here.
func absent(t *testing.T, why string) {
	t.Helper()
	if inCI() {
		t.Fatal(why)
	}
	t.Skip(why)
}
