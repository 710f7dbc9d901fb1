package e2e_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/test/world"
)

// What a device has open when its certificate ends is closed in that moment,
// not when it asks next.
func TestDeviceCertificateExpires(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, _, _ := standard(w)
		until := w.Now().Add(time.Hour).Truncate(time.Second) // as records say it
		p := r.PhoneUntil("guest", until)
		end := time.Now().Add(until.Sub(w.Now()))
		open := openAll(w, p)
		w.Sleep(time.Until(end) - time.Second)
		allLive(t, open)
		visit(w, p, homeURL+"/")
		allCut(t, open, end, time.Second)
		refused(t, p)
	})
}

// Revoking a device cuts all it has within a second; neither its certificate
// nor an old session opens the door again. Others notice nothing.
func TestRevocation(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, _, p := standard(w)
		other := r.Phone("ben")
		others := openAll(w, other)
		open := openAll(w, p)
		w.Sleep(time.Minute)
		if c, err := p.Dial("web.example.org"); err != nil || !c.ConnectionState().DidResume {
			t.Fatalf("the phone does not resume: %v", err)
		} else {
			c.Close()
		}
		revoked := time.Now()
		r.Revoke("anna")
		allCut(t, open, revoked, time.Second)
		refused(t, p)
		visit(w, other, homeURL+"/")
		w.Sleep(time.Minute)
		allLive(t, others)

		// After a restart of the relay as well.
		r.Kill()
		r.Start()
		w.Until(10*time.Second, "ben comes in", func() bool { return other.Visits(homeURL + "/") })
		refused(t, p)
	})
}

// refused checks that a device does not come in, by resumption or anew, to a
// web page or to raw bytes.
func refused(t *testing.T, p *world.Phone) {
	t.Helper()
	for range 2 {
		if reply, err := p.Get(homeURL + "/"); err == nil {
			t.Errorf("a device that may not come in got %+v", reply)
		}
		c, err := p.Dial("echo.example.org")
		if err != nil {
			continue
		}
		io.WriteString(c, "let me in")
		got := make([]byte, 1)
		if _, err := c.Read(got); err == nil {
			t.Errorf("a device that may not come in got an answer, resumed: %v", c.ConnectionState().DidResume)
		}
		c.Close()
	}
}

// A home that is offline: its devices are told since when, a stranger cannot
// tell it from one that is online.
func TestOfflineHome(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r := w.Relay(domain)
		h := r.Home("kitchen", world.Web("web"), world.Web("open").Auth("none"), world.Web("ask").Auth("ask"), world.Echo("echo"))
		p, s := r.Phone("anna"), r.Stranger()
		hosts := []string{"web.example.org", "open.example.org", "ask.example.org", "echo.example.org"}
		online := map[string]string{}
		for _, host := range hosts {
			online[host] = handshake(s, host)
		}
		askPage, err := s.Get("https://ask.example.org/")
		if err != nil {
			t.Fatal(err)
		}
		h.Stop()
		since := w.Now()
		check := func() {
			t.Helper()
			for _, host := range hosts {
				if got := handshake(s, host); got != online[host] {
					t.Errorf("%s: a stranger sees %q while the home is offline, %q while it is online", host, got, online[host])
				}
			}
			if page, err := s.Get("https://ask.example.org/"); err != nil || page.Status != askPage.Status || page.Body != askPage.Body {
				t.Errorf("the page for strangers changed: %+v, %v", page, err)
			}
			reply, err := s.Get("https://open.example.org/")
			if err != nil || reply.Status != 502 || strings.Contains(strings.ToLower(reply.Body), "since") {
				t.Errorf("a stranger at an open host: %+v, %v", reply, err)
			}
			reply, err = p.Get(homeURL + "/")
			if want := "offline since " + since.UTC().Format("2006-01-02 15:04"); err != nil || reply.Status != 502 || !strings.Contains(reply.Body, want) {
				t.Errorf("a device is told %+v, %v; want %q in it", reply, err, want)
			}
		}
		w.Sleep(time.Hour)
		check()
		r.Stop()
		r.Start()
		w.Sleep(time.Minute)
		check()
	})
}

// handshake describes what a visitor who says nothing sees within a second.
func handshake(p *world.Phone, host string) string {
	c, err := p.Dial(host)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(time.Second))
	_, err = c.Read(make([]byte, 1))
	cause := err
	if op, ok := errors.AsType[*net.OpError](err); ok {
		cause = op.Err // without the port, which differs
	}
	state := c.ConnectionState()
	return fmt.Sprint(tls.VersionName(state.Version), " ", state.PeerCertificates[0].Subject.CommonName, ": ", cause)
}
