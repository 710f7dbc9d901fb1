package real

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"net"
	"strings"
	"testing"
	"time"
)

// TestECH: Go's client finds the config in the relay's own DNS, and nobody on
// the way learns which host it visits.
func TestECH(t *testing.T) {
	t.Parallel()
	w := newEchWorld(t)
	config := echOf(w.https(echAtRelay))
	if config == nil {
		t.Fatalf("no ECH config in the DNS: %v", w.https(echAtRelay))
	}
	t.Run("records", func(t *testing.T) {
		for name, want := range map[string]bool{echAtRelay: true, echAtHome: true, "mtls": true, "unknown": true, echBackend: false} {
			rr := w.https(name)
			switch got := echOf(rr); {
			case want && !bytes.Equal(got, config):
				t.Errorf("%s: %v, want the config that all hosts have", name, rr)
			case !want && rr != nil:
				t.Errorf("%s has %v: what it speaks is not ours to say", name, rr)
			}
		}
	})
	t.Run("dig reads it", func(t *testing.T) {
		needTools(t, "dig")
		server, port, _ := net.SplitHostPort(w.dns)
		out := mustRun(t, "dig", "@"+server, "-p", port, "+norecurse", "+short", "_"+w.port()+"._https."+host(echAtHome), "HTTPS")
		if !strings.Contains(out, "1 "+host(echAtHome)+".") || !strings.Contains(out, "ech="+base64.StdEncoding.EncodeToString(config)) {
			t.Errorf("dig says %q", out)
		}
	})
	t.Run("capture", func(t *testing.T) {
		slow(t)
		c := w.tap(t, "go")
		d := w.device("laptop")
		cert, err := tls.LoadX509KeyPair(d.cert, d.key)
		if err != nil {
			t.Fatal(err)
		}
		w.visit(echAtRelay, config)
		w.visit(echAtHome, config)
		w.visit("mtls", config, cert)
		c.hides(echAtRelay, echAtHome, "mtls."+domain)
	})
	t.Run("capture without", func(t *testing.T) {
		slow(t)
		c := w.tap(t, "plain") // the test sees names where they can be seen
		for _, name := range []string{echAtRelay, echAtHome} {
			if _, err := w.dial(name, nil); err != nil {
				t.Errorf("without ECH: %v", err)
			}
		}
		raw, seen := c.end()
		if !strings.Contains(seen, host(echAtRelay)) || !strings.Contains(seen, host(echAtHome)) || !bytes.Contains(raw, []byte(host(echAtHome))) {
			t.Errorf("names in clear are not seen: %q", seen)
		}
	})
	t.Run("public name", func(t *testing.T) {
		c, err := w.dial(echPublic, nil)
		if err != nil {
			t.Fatalf("no valid certificate: %v", err)
		}
		if leaf := c.ConnectionState().PeerCertificates[0]; leaf.VerifyHostname(host(echAtHome)) == nil || leaf.VerifyHostname(host(echAtRelay)) == nil {
			t.Errorf("its certificate names hosts: %v", leaf.DNSNames)
		}
	})
	t.Run("old config", func(t *testing.T) {
		// Nobody can open it: the visitor learns the right one.
		if retry := w.rejected(echAtHome, withAnotherKey(t, config)); !bytes.Equal(retry, config) {
			t.Errorf("retry configs %x, published %x", retry, config)
		}
	})
	t.Run("capture with an old config", func(t *testing.T) {
		slow(t)
		c := w.tap(t, "stale")
		w.visit(echAtHome, w.rejected(echAtHome, withAnotherKey(t, config)))
		c.hides(echAtHome)
	})
	t.Run("backend", func(t *testing.T) {
		if _, err := w.dial(echBackend, nil); err != nil {
			t.Fatalf("the backend is not reached: %v", err)
		}
		// Its server could not confirm: the encrypted hello counts as rejected.
		if retry := w.rejected(echBackend, config); !bytes.Equal(retry, config) {
			t.Errorf("retry configs %x, published %x", retry, config)
		}
	})
	t.Run("unknown inside", func(t *testing.T) {
		if retry := w.rejected("unknown", config); !bytes.Equal(retry, config) {
			t.Errorf("retry configs %x, published %x", retry, config)
		}
	})
	t.Run("after a restart", func(t *testing.T) {
		w.relay.stop()
		w.startRelay()
		w.waitAgent("first", 60*time.Second, "connected", agentStatus.ready)
		if again := echOf(w.https(echAtHome)); !bytes.Equal(again, config) {
			t.Errorf("another config than before: %x", again)
		}
		w.visit(echAtHome, config)
		w.visit(echAtRelay, config)
	})
}

// TestECHOff: without ECH there is none in the DNS, and no public name.
func TestECHOff(t *testing.T) {
	t.Parallel()
	at := freePort(t)
	w := &echWorld{world: newWorld(t, "--dns", at, "--dns-address", "127.0.0.1", "--ech-off"), dns: at}
	w.home("first", "--expose", echAtRelay+"="+startHomeApp(t))
	rr := w.https(echAtRelay)
	if rr == nil || echOf(rr) != nil {
		t.Errorf("want an HTTPS record without ECH, got %v", rr)
	}
	if out := scan(t, w.listen, host(echPublic)); strings.Contains(out, "BEGIN CERTIFICATE") {
		t.Errorf("%s has a certificate:\n%s", echPublic, out)
	}
}
