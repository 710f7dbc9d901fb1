package e2e_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/agent"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/test/world"
)

// indoors is a world whose home ends TLS itself, with a key of its own.
func indoors(w *world.World, services ...world.Service) (*world.Relay, *world.Home, *world.Phone) {
	w.T.Helper()
	r := w.Relay(domain)
	h := r.NewHome("kitchen", services...)
	h.LAN = ":8443"
	h.EndToEnd = &agent.EndToEnd{DeviceCA: agent.DeviceCARelay}
	h.Start()
	h.AwaitOnline(time.Minute)
	p := r.Phone("anna")
	w.Until(time.Minute, "the home has the relay's list of devices", func() bool {
		e := h.Status().EndToEnd
		return e != nil && e.List != nil && e.List.Devices > 0
	})
	p.Trust(h.Status().EndToEnd.Root)
	return r, h, p
}

// Whose TLS ends at home is served there: by the home's own certificate, for
// devices that the relay lists, with the device's name for the app.
func TestEndToEnd(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, h, p := indoors(w, world.Web("web").TLS(protocol.TLSAgent), world.Echo("echo").TLS(protocol.TLSAgent), world.Web("plain"))
		reply := visit(w, p, homeURL+"/")
		if reply.Proto != "HTTP/2.0" || reply.Body != "this is web" || reply.Header.Get("X-Device") != "anna" {
			t.Errorf("got %+v", reply)
		}
		c, err := p.Dial("web.example.org", "h2")
		if err != nil {
			t.Fatal(err)
		}
		home, err := p.Dial("plain.example.org", "h2")
		if err != nil {
			t.Fatal(err)
		}
		if inner, outer := c.ConnectionState().PeerCertificates[0], home.ConnectionState().PeerCertificates[0]; inner.Issuer.String() == outer.Issuer.String() {
			t.Errorf("both certificates are of %s", inner.Issuer)
		}
		c.Close()
		home.Close()

		echo, err := p.Dial("echo.example.org")
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(echo, "hello")
		echo.CloseWrite()
		if got, err := io.ReadAll(echo); string(got) != "hello" || err != nil {
			t.Errorf("after the half-close: %q, %v", got, err)
		}

		stranger := r.Stranger()
		stranger.Trust(h.Status().EndToEnd.Root)
		if reply, err := stranger.Get(homeURL + "/"); err == nil {
			t.Errorf("a stranger got %d %q", reply.Status, reply.Body)
		}
		for _, s := range h.Status().Services {
			want := "end to end, but the relay can issue devices"
			if s.Name == "plain" {
				want = "relay"
			}
			if s.Reader != want {
				t.Errorf("%s is read by %q, want %q", s.Name, s.Reader, want)
			}
		}
	})
}

// A request whose Host is another site's is not served, at home as at the relay.
func TestEndToEndMisdirected(t *testing.T) {
	world.Run(t, func(w *world.World) {
		_, _, p := indoors(w, world.Web("web").TLS(protocol.TLSAgent), world.Web("other").TLS(protocol.TLSAgent))
		c, err := p.Dial("web.example.org", "http/1.1")
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: other.example.org\r\n\r\n")
		if got, _ := io.ReadAll(c); !strings.HasPrefix(string(got), "HTTP/1.1 421 ") {
			t.Errorf("got %.80q", got)
		}
	})
}

// What the relay revokes ends at home within a second, live connections too.
// While the relay is away the home goes on with the list that it has.
func TestEndToEndRevocation(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, h, p := indoors(w, world.Web("web").TLS(protocol.TLSAgent))
		other := r.Phone("ben")
		other.Trust(h.Status().EndToEnd.Root)
		w.Until(time.Minute, "the new device is listed", func() bool { return h.Status().EndToEnd.List.Devices == 2 })
		res, err := p.Open(homeURL+"/drip?every=100ms", true)
		if err != nil {
			t.Fatal(err)
		}
		drip := w.Watch("drip", res.Body)
		w.Sleep(2 * time.Second)
		if drip.Ended() != nil || drip.Bytes() == 0 {
			t.Fatalf("the page: %d bytes, %v", drip.Bytes(), drip.Ended())
		}
		revoked := time.Now()
		r.Revoke("anna")
		if err := drip.Cut(revoked, time.Second); err != nil {
			t.Error(err)
		}
		if reply, err := p.Get(homeURL + "/"); err == nil {
			t.Errorf("a revoked device got %d %q", reply.Status, reply.Body)
		}
		visit(w, other, homeURL+"/")

		// The relay is gone: the home network still knows who may come in.
		r.Stop()
		w.Sleep(time.Minute)
		for name, want := range map[*world.Phone]bool{p: false, other: true} {
			if got := atHome(t, h, name, "web.example.org"); got != want {
				t.Errorf("on the home network %s comes in: %t, want %t", name.Name, got, want)
			}
		}
		h.Kill()
		h.Start()
		w.Sleep(time.Minute)
		for name, want := range map[*world.Phone]bool{p: false, other: true} {
			if got := atHome(t, h, name, "web.example.org"); got != want {
				t.Errorf("after a restart without the relay %s comes in: %t, want %t", name.Name, got, want)
			}
		}
	})
}

// atHome reports whether a phone gets a page from the door on the home network.
func atHome(t *testing.T, h *world.Home, p *world.Phone, host string) bool {
	t.Helper()
	c, err := p.DialAt(h.Addr.String()+":8443", host, "http/1.1")
	if err != nil {
		t.Logf("%s at %s: %v", p.Name, host, err)
		return false
	}
	defer c.Close()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
	got, err := io.ReadAll(c)
	if err != nil && len(got) == 0 {
		t.Logf("%s at %s: %v", p.Name, host, err)
	}
	return strings.HasPrefix(string(got), "HTTP/1.1 200 ") && strings.HasSuffix(string(got), "this is web")
}

// The home network has the same hosts with the same certificates, and a name
// with the address in it.
func TestHomeNetwork(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, h, p := indoors(w, world.Web("web").TLS(protocol.TLSAgent), world.Web("plain"))
		own := h.Status().EndToEnd.Own
		for host, want := range map[string]bool{
			"web.example.org": true, "192-168-1-7." + own: true, "plain.example.org": false, "x.example.org": false, "a.b." + own: false,
		} {
			if got := atHome(t, h, p, host); got != want {
				t.Errorf("%s is served on the home network: %t, want %t", host, got, want)
			}
		}
		stranger := r.Stranger()
		stranger.Trust(h.Status().EndToEnd.Root)
		if atHome(t, h, stranger, "192-168-1-7."+own) {
			t.Error("a stranger came in on the home network")
		}
		inside, err := p.DialAt(h.Addr.String()+":8443", "web.example.org")
		if err != nil {
			t.Fatal(err)
		}
		outside, err := p.Dial("web.example.org")
		if err != nil {
			t.Fatal(err)
		}
		if !inside.ConnectionState().PeerCertificates[0].Equal(outside.ConnectionState().PeerCertificates[0]) {
			t.Error("the home network has another certificate than the internet")
		}
		inside.Close()
		outside.Close()
	})
}

// Visitors that show no device take a part of the home's streams and no more,
// however many they are and however long they stay.
func TestStrangersFillNoHome(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, h, p := indoors(w, world.Web("web").TLS(protocol.TLSAgent), world.Web("open").TLS(protocol.TLSAgent).Auth(protocol.AuthNone), world.Web("plain"))
		stranger := r.Stranger()
		stranger.Trust(h.Status().EndToEnd.Root)
		for range 150 {
			c, err := stranger.Dial("open.example.org")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		w.Sleep(2 * time.Second)
		if n := r.Agent("kitchen").Streams; n < 30 || n > 80 {
			t.Errorf("%d streams are open to the home; 64 are for strangers of one address", n)
		}
		visit(w, p, homeURL+"/")
		visit(w, p, "https://plain.example.org/")
		other := r.Stranger()
		other.Trust(h.Status().EndToEnd.Root)
		visit(w, other, "https://open.example.org/")
	})
}

// A service that moves from the relay to the home and back does so while the
// agent runs; nobody is served by the old rules.
func TestTLSMoves(t *testing.T) {
	world.Run(t, func(w *world.World) {
		_, h, p := indoors(w, world.Web("first").TLS(protocol.TLSAgent))
		h.Offer(world.Web("web"))
		w.Until(time.Minute, "served by the relay", func() bool { _, err := p.Get(homeURL + "/"); return err == nil })
		h.Withdraw("web")
		h.Offer(world.Web("web").TLS(protocol.TLSAgent))
		w.Until(time.Minute, "served at home", func() bool {
			c, err := p.Dial("web.example.org")
			if err != nil {
				return false
			}
			defer c.Close()
			root, err := pki.DecodeCert([]byte(h.Status().EndToEnd.Root))
			return err == nil && c.ConnectionState().PeerCertificates[0].CheckSignatureFrom(root) == nil
		})
		if reply := visit(w, p, homeURL+"/"); reply.Status != http.StatusOK {
			t.Errorf("%+v", reply)
		}
	})
}
