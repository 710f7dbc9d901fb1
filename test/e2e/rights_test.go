package e2e_test

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/test/world"
)

// change gives a device other rights, as device set does.
func change(w *world.World, r *world.Relay, name string, c admin.DeviceChange) {
	w.T.Helper()
	if err := r.Admin("devices/"+name+"/change", c, nil); err != nil {
		w.T.Fatal(err)
	}
}

// Rights that are taken away end what is open there within a second, and what
// is still allowed goes on or comes back.
func TestRightsChangeLive(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, _, p := standard(w)
		open := openAll(w, p)
		w.Sleep(time.Minute)
		allLive(t, open)
		changed := time.Now()
		change(w, r, "anna", admin.DeviceChange{Hosts: &[]string{"photos"}})
		allCut(t, open, changed, time.Second)
		refused(t, p)
		change(w, r, "anna", admin.DeviceChange{Hosts: &[]string{"web", "photos"}})
		visit(w, p, homeURL+"/")
		if c, err := p.Dial("echo.example.org"); err == nil {
			c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
				t.Errorf("a host that was not given back lets the device in: %v", err)
			}
			c.Close()
		}
		change(w, r, "anna", admin.DeviceChange{Hosts: &[]string{}})
		allLive(t, openAll(w, p))
	})
}

// A guest's end that the owner moves forward cuts live connections in that
// moment, also after a restart of the relay in between.
func TestGuestEndsEarlier(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, _, p := standard(w)
		until := w.Now().Add(2 * time.Hour)
		change(w, r, "anna", admin.DeviceChange{Until: &until})
		r.Stop()
		r.Start()
		w.Until(time.Minute, "the guest comes in", func() bool { return p.Visits(homeURL + "/") })
		// The agent may have come back over TCP; it moves up to QUIC, and what was
		// opened before that would be cut when the drain of ten minutes ends.
		w.Sleep(15 * time.Minute)
		open := openAll(w, p)
		end := time.Now().Add(until.Sub(w.Now()))
		w.Sleep(time.Until(end) - time.Second)
		allLive(t, open)
		allCut(t, open, end, time.Second)
		refused(t, p)
	})
}

// A token reaches its service as long as it lives, over restarts too; revoking
// it ends what it has open within a second.
func TestTokenLives(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, _, p := standard(w)
		var tok admin.TokenDevice
		if err := r.Admin("token-devices", admin.TokenDeviceRequest{Name: "tv", Host: "web"}, &tok); err != nil {
			t.Fatal(err)
		}
		tv := r.Stranger()
		url := tok.URL + tok.Secret + "/"
		visit(w, tv, url)
		if reply, err := tv.Get(tok.URL); err != nil || reply.Status != http.StatusNotFound {
			t.Errorf("without the token: %+v, %v", reply, err)
		}
		r.Kill()
		r.Start()
		w.Until(10*time.Second, "the token works after a restart", func() bool { return tv.Visits(url) })
		// The host itself still wants a certificate.
		if reply, err := tv.Get(homeURL + "/"); err == nil {
			t.Errorf("a require host let a token's holder in: %+v", reply)
		}
		visit(w, p, homeURL+"/")
		r.Revoke("tv")
		// Its host is gone with it: nothing tells it from one that never was.
		if reply, err := tv.Get(url); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("with a revoked token: %+v, %v", reply, err)
		}
	})
}

// A device renews while its certificate works; both work until the old one
// ends, and one revocation takes both.
func TestDeviceRenews(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, h, p := standard(w)
		w.Jump(340 * day)
		h.AwaitOnline(5 * time.Minute)
		w.Until(5*time.Minute, "the phone comes in", func() bool { return p.Visits(homeURL + "/") })
		list := func() (due, renewed int) {
			var l struct{ Devices []admin.Device }
			if err := r.Admin("devices", nil, &l); err != nil {
				t.Fatal(err)
			}
			for _, d := range l.Devices {
				if d.DueForRenewal {
					due++
				}
				if d.Renewed {
					renewed++
				}
			}
			return due, renewed
		}
		if due, _ := list(); due != 1 {
			t.Errorf("%d devices are due for renewal, want 1", due)
		}
		fresh := renew(w, r, p)
		visit(w, fresh, homeURL+"/")
		visit(w, p, homeURL+"/")
		if due, renewed := list(); due != 0 || renewed != 1 {
			t.Errorf("after the renewal %d are due and %d are renewed", due, renewed)
		}
		w.Jump(30 * day) // the old one has ended
		h.AwaitOnline(5 * time.Minute)
		w.Until(5*time.Minute, "the renewed phone comes in", func() bool { return fresh.Visits(homeURL + "/") })
		refused(t, p)
		open := openAll(w, fresh)
		revoked := time.Now()
		r.Revoke("anna")
		allCut(t, open, revoked, time.Second)
		refused(t, fresh)
	})
}

// renew is what the renewal page does; it returns the phone with the new key.
func renew(w *world.World, r *world.Relay, p *world.Phone) *world.Phone {
	w.T.Helper()
	key, err := pki.NewKey()
	if err != nil {
		w.T.Fatal(err)
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		w.T.Fatal(err)
	}
	der, err := p.Renew(csr)
	if err != nil {
		w.T.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		w.T.Fatal(err)
	}
	fresh := r.Stranger()
	fresh.Cert = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	return fresh
}
