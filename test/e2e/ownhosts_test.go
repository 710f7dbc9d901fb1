package e2e_test

import (
	"net/http"
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
		w.Sleep(time.Second)
		changed := time.Now()
		change(w, r, "anna", admin.DeviceChange{Admin: &no})
		allCut(t, []*world.Watch{live}, changed, time.Second)
		shut(p, "a device that is no admin any more opened the dashboard")
	})
}
