package e2e_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/relay"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/test/world"
)

const (
	checkURL = "https://check.example.org/"
	adminURL = "https://admin.example.org/"
)

// Every device may see its self-test, wherever else it may go; who holds no
// certificate, or a revoked one, is told so there and gets nothing else.
func TestCheckHost(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, _, p := standard(w)
		change(w, r, "anna", admin.DeviceChange{Hosts: &[]string{"photos"}})
		if reply := visit(w, p, checkURL); !strings.Contains(reply.Body, "Certificate seen: anna") {
			t.Errorf("the self-test says %q", reply.Body)
		}
		if reply := visit(w, p, checkURL); strings.Contains(reply.Body, "https://web.example.org/") {
			t.Error("the self-test links to a host that the device may not open")
		}
		change(w, r, "anna", admin.DeviceChange{Hosts: &[]string{"web"}})
		if reply := visit(w, p, checkURL); !strings.Contains(reply.Body, "https://web.example.org/") {
			t.Errorf("the self-test does not say where the device may go: %s", reply.Body)
		}
		for _, path := range []string{"", "renew", "api/renew", ".well-known/est/simplereenroll"} {
			reply, err := r.Stranger().Get(checkURL + path)
			if err != nil || reply.Status < 400 || strings.Contains(reply.Body, "anna") {
				t.Errorf("a stranger at /%s: %+v, %v", path, reply, err)
			}
		}
		r.Revoke("anna")
		reply, err := p.Get(checkURL)
		if err != nil || reply.Status != http.StatusUnauthorized || !strings.Contains(reply.Body, "removed") {
			t.Errorf("a revoked device at the self-test: %+v, %v", reply, err)
		}
		csr := []byte("not asked for")
		if _, err := p.Renew(csr); err == nil || !strings.Contains(err.Error(), "401") {
			t.Errorf("a revoked device renews: %v", err)
		}
	})
}

// The dashboard is there when the owner wants it, for devices that the owner
// marked on the relay's own machine, and as long as they are.
func TestAdminHost(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, _, p := standard(w)
		if _, err := p.Get(adminURL); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("the dashboard is on though nobody asked for it: %v", err)
		}
		r.Stop()
		r.Config = func(c *relay.Config) { c.AdminHost = true }
		r.Start()
		shut := func(who *world.Phone, why string) {
			t.Helper()
			if reply, err := who.Get(adminURL); err == nil {
				t.Errorf("%s: %+v", why, reply)
			}
		}
		shut(r.Stranger(), "a stranger opened the dashboard")
		shut(p, "a device that is no admin opened the dashboard")
		yes, no := true, false
		// Marked, and not allowed at any home: the mark is what counts here.
		change(w, r, "anna", admin.DeviceChange{Admin: &yes, Hosts: &[]string{"nowhere"}})
		if reply := visit(w, p, adminURL); !strings.Contains(reply.Body, "anna") {
			t.Errorf("the dashboard: %s", reply.Body)
		}
		res, err := p.Open(adminURL+"events", true)
		if err != nil {
			t.Fatal(err)
		}
		live := w.Watch("the dashboard's events", res.Body)
		w.Sleep(2 * time.Minute)
		if err := live.Ended(); err != nil {
			t.Errorf("the dashboard's events: %v", err)
		}
		changed := time.Now()
		change(w, r, "anna", admin.DeviceChange{Admin: &no})
		allCut(t, []*world.Watch{live}, changed, time.Second)
		shut(p, "a device that is no admin any more opened the dashboard")
	})
}

// From afar an administrator changes no administrator, not even itself; and the
// links that it made end with it.
func TestAdminFromAfar(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, _, p := standard(w)
		r.Stop()
		r.Config = func(c *relay.Config) { c.AdminHost = true }
		r.Start()
		yes, until := true, w.Now().Add(2*time.Hour)
		change(w, r, "anna", admin.DeviceChange{Admin: &yes, Until: &until})
		send := func(path string, form url.Values) int {
			t.Helper()
			client := p.Client(true)
			defer client.CloseIdleConnections()
			res, err := client.PostForm(adminURL+path, form)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			return res.StatusCode
		}
		send("devices/anna/change", url.Values{"until": {"none"}})
		var l struct{ Devices []admin.Device }
		if err := r.Admin("devices", nil, &l); err != nil {
			t.Fatal(err)
		}
		if len(l.Devices) != 1 || l.Devices[0].Until.IsZero() {
			t.Errorf("an administrator gave itself more time: %+v", l.Devices)
		}
		invites := func() (list []admin.WaitingInvite) {
			t.Helper()
			var l struct{ Invites []admin.WaitingInvite }
			if err := r.Admin("invites", nil, &l); err != nil {
				t.Fatal(err)
			}
			return l.Invites
		}
		if code := send("invite", url.Values{"name": {"friend"}, "ttl": {"1h"}}); code >= 400 || len(invites()) != 1 || invites()[0].By != "anna" {
			t.Fatalf("an administrator invites: %d, %+v", code, invites())
		}
		r.Revoke("anna")
		if left := invites(); len(left) != 0 {
			t.Errorf("links of a revoked administrator still open the door: %+v", left)
		}
		for _, host := range []string{"check", "enroll", "admin"} {
			if err := r.Admin("token-devices", admin.TokenDeviceRequest{Name: "tv", Host: host}, nil); err == nil {
				t.Errorf("a token was made for %s, the relay's own host", host)
			}
		}
	})
}
