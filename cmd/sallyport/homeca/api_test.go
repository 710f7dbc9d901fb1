package homeca

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/admin"
)

func newCSR(t *testing.T) (crypto.Signer, []byte) {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

func decode(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
}

// codeOf is the code of an error of the API; "" for none.
func codeOf(err error) string {
	if err == nil {
		return ""
	}
	e, ok := errors.AsType[*admin.Error](err)
	if !ok {
		return "no *admin.Error: " + err.Error()
	}
	return e.Code
}

// What is the relay's stays the relay's, whoever speaks to the socket.
func TestRelaysOwn(t *testing.T) {
	h, err := Open(Config{Dir: t.TempDir(), Own: own})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	c, ctx := clientOf(t, h.API()), t.Context()
	_, csr := newCSR(t)
	yes := true
	_, err1 := c.Invite(ctx, admin.InviteRequest{Name: "a", Admin: true})
	_, err2 := c.AddDevice(ctx, admin.DeviceRequest{Name: "a", CSR: csr, Admin: true})
	_, err3 := c.AddDevice(ctx, admin.DeviceRequest{Name: "a", CSR: csr})
	_, err4 := c.ChangeDevice(ctx, "a", admin.DeviceChange{Admin: &yes})
	_, err5 := call[admin.TokenDevice](ctx, c, http.MethodPost, "token-devices", admin.TokenDeviceRequest{Name: "t", Host: "ha"})
	_, err6 := call[admin.Status](ctx, c, http.MethodGet, "status", nil)
	_, err7 := call[admin.Token](ctx, c, http.MethodPost, "tokens", admin.TokenRequest{})
	for i, got := range []error{err1, err2, err3, err4, err5, err6, err7} {
		want := []string{"bad-request", "bad-request", "", "bad-request", "refused", "unavailable", "unavailable"}[i]
		if codeOf(got) != want {
			t.Errorf("%d: %v, want %q", i+1, got, want)
		}
	}
	found, err := c.Devices(ctx)
	if err != nil || len(found) != 1 || found[0].Admin {
		t.Errorf("%+v, %v", found, err)
	}
	if ca, err := c.CA(ctx); err != nil || !strings.HasPrefix(ca.Device, "-----BEGIN CERTIFICATE") || ca.Server != "" || ca.Agent != "" {
		t.Errorf("%+v, %v", ca, err)
	}
}

// Errors have their code, and name commands that speak to the home.
func TestOwnersErrors(t *testing.T) {
	h, err := Open(Config{Dir: t.TempDir(), Own: own})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	c, ctx := clientOf(t, h.API()), t.Context()
	_, csr := newCSR(t)
	if _, err := c.AddDevice(ctx, admin.DeviceRequest{Name: "anna", CSR: csr}); err != nil {
		t.Fatal(err)
	}
	_, other := newCSR(t)
	for _, try := range []struct {
		do         func() error
		code, says string
	}{
		{func() error { _, err := c.AddDevice(ctx, admin.DeviceRequest{Name: "anna", CSR: other}); return err }, "conflict", "sallyport device revoke --home anna"},
		{func() error { _, err := c.AddDevice(ctx, admin.DeviceRequest{Name: "ben", CSR: csr}); return err }, "conflict", "new key"},
		{func() error {
			_, err := c.AddDevice(ctx, admin.DeviceRequest{Name: "ben", CSR: []byte("x")})
			return err
		}, "bad-request", ""},
		{func() error { _, err := c.Invite(ctx, admin.InviteRequest{Name: "anna"}); return err }, "conflict", "device revoke --home anna"},
		{func() error { _, err := c.RevokeDevice(ctx, "nobody"); return err }, "not-found", "sallyport device list --home"},
		{func() error { _, err := c.Approve(ctx, "nobody"); return err }, "not-found", "sallyport device list --home"},
		{func() error { _, err := c.Deny(ctx, "a/b"); return err }, "not-found", ""},
		{func() error { return c.WithdrawInvite(ctx, "nothing") }, "not-found", ""},
		{func() error { return c.ResetClock(ctx) }, "", ""},
	} {
		err := try.do()
		if codeOf(err) != try.code || err != nil && !strings.Contains(err.Error(), try.says) {
			t.Errorf("%v: want %q with %q", err, try.code, try.says)
		}
	}
}

// What a name has on its way goes with it.
func TestRevokeOnTheWay(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	inv, err := w.owner.Invite(ctx, admin.InviteRequest{Name: "eve", Approve: true})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := w.owner.RevokeDevice(ctx, "eve"); err != nil || d.ID != "" || !d.Revoked {
		t.Errorf("%+v, %v", d, err)
	}
	_, csr := newCSR(t)
	apply := func(link string) (q request) {
		_, code, _ := strings.Cut(link, "#")
		w.post(w.visitor(nil), w.at(own, "/api/requests"), map[string]any{"code": code, "csr": csr, "ticket": strings.Repeat("t", 30)}, &q)
		return q
	}
	if q := apply(inv.Link); q.ID != "" {
		t.Errorf("a link that was voided opens the queue: %+v", q)
	}
	if inv, err = w.owner.Invite(ctx, admin.InviteRequest{Name: "eve", Approve: true}); err != nil {
		t.Fatal(err)
	}
	q := apply(inv.Link)
	if _, err := w.owner.RevokeDevice(ctx, "eve"); err != nil {
		t.Error(err)
	}
	if q = w.ask(q.ID, strings.Repeat("t", 30)); q.State != "denied" {
		t.Errorf("%+v", q)
	}
	if _, err := w.owner.Approve(ctx, q.ID); err == nil {
		t.Error("approved after all")
	}
}

// The handler is for the owner's command line: browsers and other hosts are
// refused, and nothing outside the prefix is answered.
func TestGuard(t *testing.T) {
	h, err := Open(Config{Dir: t.TempDir(), Own: own})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, c := range []struct {
		url, origin string
		want        int
	}{
		{"http://sallyport/v1/home/devices", "", 200},
		{"http://sallyport/v1/home/devices", "https://evil.test", 403},
		{"http://evil.test/v1/home/devices", "", 403},
		{"http://sallyport/v1/devices", "", 404},
		{"http://sallyport/v1/home/", "", 404},
		{"http://sallyport/v1/home/v1/devices", "", 404},
	} {
		r := httptest.NewRequest("GET", c.url, nil)
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		rec := httptest.NewRecorder()
		h.API().ServeHTTP(rec, r)
		if rec.Code != c.want {
			t.Errorf("%s: %d, want %d", c.url, rec.Code, c.want)
		}
	}
}

func TestClientAlone(t *testing.T) {
	ctx := t.Context()
	for _, c := range []struct {
		err        error
		code, hint string
	}{
		{&net.OpError{Op: "dial", Err: errors.New("refused")}, "unreachable", "agent up"},
		{&net.OpError{Op: "dial", Err: fs.ErrPermission}, "unreachable", "sudo"},
		{context.DeadlineExceeded, "unreachable", "log"},
	} {
		_, err := NewClient("DIR/agent.sock", func(context.Context) (net.Conn, error) { return nil, c.err }).Devices(ctx)
		e, ok := errors.AsType[*admin.Error](err)
		if !ok || e.Code != c.code || !strings.Contains(e.Hint, c.hint) || !strings.Contains(e.Message, "DIR/agent.sock") {
			t.Errorf("%v: %+v", c.err, err)
		}
	}
	// An agent that keeps no devices, and one that makes no sense.
	for answer, want := range map[string]string{"": "unavailable", "junk": "internal", `{"devices":[]}`: ""} {
		_, err := clientOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if answer == "" {
				http.NotFound(w, r)
				return
			}
			w.Write([]byte(answer))
		})).Devices(ctx)
		if codeOf(err) != want {
			t.Errorf("%q: %v", answer, err)
		}
	}
	_, err := clientOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "sorry", http.StatusBadGateway)
	})).Devices(ctx)
	if codeOf(err) != "internal" {
		t.Error(err)
	}
}
