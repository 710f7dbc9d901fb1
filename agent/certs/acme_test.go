package certs

import (
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The whole way by DNS: one certificate for the agent's own names, one for
// another host, nothing left in the zone, everything private on disk, and
// after a restart all of it without a word to the CA.
func TestObtainByDNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		h.SetHosts([]string{"ha.relay.test", "nas." + own, "*.lab.relay.test"})
		if st := h.of("ha.relay.test"); st.State != StateIssuing {
			t.Errorf("before: %+v", st)
		}
		h.run()
		pass(time.Minute)
		for _, name := range []string{own, "nas." + own, "192-168-1-7." + own, "ha.relay.test", "x.lab.relay.test"} {
			cert, err := h.GetCertificate(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := cert.Leaf.VerifyHostname(name); err != nil {
				t.Error(err)
			}
			if len(cert.Certificate) != 2 {
				t.Errorf("%s: a chain of %d", name, len(cert.Certificate))
			}
		}
		for _, name := range []string{"a.b." + own, "other.relay.test", "lab.relay.test", "a.b.lab.relay.test", ""} {
			if cert, err := h.GetCertificate(name); err == nil {
				t.Errorf("%q is served with a certificate for %v", name, cert.Leaf.DNSNames)
			}
		}
		for _, host := range []string{own, "nas." + own, "ha.relay.test", "*.lab.relay.test"} {
			st := h.of(host)
			if st.State != StateOK || st.Issuer != "Fake CA" || st.Problem != "" || !st.NotAfter.After(time.Now()) || !st.Next.Before(st.NotAfter) {
				t.Errorf("status %+v", st)
			}
		}
		if n := len(h.ca.times()); n != 3 {
			t.Errorf("%d orders for 3 certificates", n)
		}
		if h.ca.accounts != 1 || len(h.told) != 1 || !strings.HasSuffix(h.told[0], "/account/1 ca.test") {
			t.Errorf("%d accounts, told of %q", h.ca.accounts, h.told)
		}
		if len(h.zone.txt) != 0 {
			t.Errorf("left in the zone: %v", h.zone.txt)
		}
		h.stop()
		private(t, h.config.Dir)
		notTold(t, h)

		before, sets := len(h.ca.times()), h.zone.sets
		h.start()
		h.SetHosts([]string{"ha.relay.test"})
		if _, err := h.GetCertificate("ha.relay.test"); err != nil {
			t.Error("not served from the start on:", err)
		}
		if _, err := h.GetCertificate("x.lab.relay.test"); err == nil {
			t.Error("a host that is not listed any more is served")
		}
		h.run()
		pass(24 * time.Hour)
		h.stop()
		if len(h.ca.times()) != before || h.zone.sets != sets {
			t.Error("a restart asked for certificates that were there")
		}
		if len(h.told) != 2 || h.told[1] != h.told[0] {
			t.Errorf("after a restart, told of %q", h.told)
		}
	})
}

// private fails for files and directories that others could read.
func private(t *testing.T, dir string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		n++
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %#o", path, info.Mode().Perm())
		}
		return nil
	})
	if err != nil || n < 6 {
		t.Errorf("%d files in %s: %v", n, dir, err)
	}
}

// notTold fails when anything of a key went to the relay or into the log.
func notTold(t *testing.T, h *home) {
	t.Helper()
	out := strings.Join(h.zone.said, "\n") + strings.Join(h.told, "\n") + h.log.String()
	keys := 0
	err := filepath.WalkDir(h.config.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		_, rest, ok := strings.Cut(string(data), "-----BEGIN PRIVATE KEY-----\n")
		if !ok {
			return nil
		}
		keys++
		for line := range strings.Lines(rest) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "-----") {
				break
			} else if strings.Contains(out, line) {
				t.Errorf("a line of the key in %s left the home", path)
			}
		}
		return nil
	})
	if err != nil || keys < 3 {
		t.Errorf("%d keys looked at: %v", keys, err)
	}
	if strings.Contains(out, "PRIVATE KEY") {
		t.Error("a key left the home")
	}
}

// Renewal at two thirds of the life, with a new key each time, without a
// moment in which nothing is served.
func TestRenewal(t *testing.T) {
	for _, c := range []struct {
		life, first, last time.Duration // renewed between
	}{
		{90 * 24 * time.Hour, 60 * 24 * time.Hour, 61 * 24 * time.Hour},
		{6 * 24 * time.Hour, 3 * 24 * time.Hour, 74 * time.Hour},
	} {
		t.Run(c.life.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHome(t, func(h *home) { h.ca.life = c.life })
				h.SetHosts([]string{"ha.relay.test"})
				h.run()
				defer h.stop()
				pass(time.Minute)
				for range 3 {
					old, err := h.GetCertificate("ha.relay.test")
					if err != nil {
						t.Fatal(err)
					}
					now := old
					for now == old && time.Since(old.Leaf.NotBefore) < c.life {
						pass(10 * time.Minute)
						if now, err = h.GetCertificate("ha.relay.test"); err != nil {
							t.Fatal(err)
						}
					}
					if age := time.Since(old.Leaf.NotBefore); age < c.first || age > c.last {
						t.Errorf("renewed after %v, not between %v and %v", age, c.first, c.last)
					}
				}
				pass(c.last - c.first)
				slices.Sort(h.ca.keys)
				if all := len(h.ca.keys); len(slices.Compact(h.ca.keys)) != all || all < 7 {
					t.Errorf("keys of %d certificates are not all different", all)
				}
				if strings.Count(h.log.String(), "certificate.renewed") < 5 {
					t.Errorf("log:\n%s", h.log)
				}
			})
		})
	}
}

// While the relay is away the CA is not asked, what is there serves on, and
// Without the relay's DNS the agent's own name is out of reach, and says so;
// exact hosts come by tls-alpn-01, wildcards say what they need.
func TestRelayWithoutDNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		h.zone.fail(ErrNoDNS)
		h.SetHosts([]string{"ha.relay.test", "*.relay.test"})
		h.run()
		pass(time.Minute)
		if st := h.of("ha.relay.test"); st.State != StateOK {
			t.Errorf("status %+v", st)
		}
		if m := h.ca.last().methods[0]; m != "tls-alpn-01" || len(h.ca.times()) != 1 {
			t.Errorf("%d orders, the last by %q", len(h.ca.times()), m)
		}
		if st := h.of("*.relay.test"); st.State != StateFailing || !strings.Contains(st.Problem, "dns-01") || !strings.Contains(st.Fix, "--dns") {
			t.Errorf("status %+v", st)
		}
		if st := h.of(own); st.State != StateOff {
			t.Errorf("status %+v", st)
		}
		if _, ok := h.Challenge(helloOf("ha.relay.test", ALPN)); ok {
			t.Error("a challenge stays open")
		}
		h.SetHosts([]string{"nas." + own})
		pass(time.Minute)
		if st := h.of("nas." + own); st.State != StateFailing {
			t.Errorf("status %+v", st)
		}
		h.zone.fail(nil)
		h.Connected()
		pass(time.Minute)
		if st := h.of(own); st.State != StateOK {
			t.Errorf("the relay has learned DNS: %+v", st)
		}
		h.stop()
	})
}

// Without SetTXT wildcards are refused once and for all.
func TestNoSetTXT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, func(h *home) { h.config.SetTXT = nil })
		h.SetHosts([]string{"ha.relay.test", "*.relay.test", "Ha.Relay.test", "*.*"})
		h.run()
		pass(time.Minute)
		h.stop()
		if st := h.of("ha.relay.test"); st.State != StateOK {
			t.Errorf("status %+v", st)
		}
		for _, host := range []string{"*.relay.test", "Ha.Relay.test", "*.*"} {
			if st := h.of(host); st.State != StateRefused || st.Problem == "" || st.Fix == "" || !st.Next.IsZero() {
				t.Errorf("status %+v", st)
			}
			if err := h.Retry(host); err == nil {
				t.Errorf("%s can be tried again", host)
			}
		}
		if len(h.Status()) != 4 {
			t.Errorf("status %+v", h.Status())
		}
	})
}

// Where the zone is not delegated to the relay, dns-01 fails and the other
// challenge has its turn.
func TestOtherChallengeHasItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, func(h *home) { h.config.Own = "" })
		h.ca.txt = func(string) []string { return nil }
		h.SetHosts([]string{"ha.relay.test"})
		h.run()
		pass(5 * time.Minute)
		h.stop()
		if st := h.of("ha.relay.test"); st.State != StateOK {
			t.Errorf("status %+v", st)
		}
		if n := len(h.ca.times()); n != 2 || h.ca.last().methods[0] != "tls-alpn-01" {
			t.Errorf("%d orders, the last by %q", n, h.ca.last().methods[0])
		}
	})
}

// A CA that has forgotten the account gets a new one, and the relay is told
// before the next order.
func TestAccountForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, func(h *home) { h.config.Own = "" })
		h.SetHosts([]string{"ha.relay.test"})
		h.run()
		pass(time.Minute)
		forgotten := true
		h.ca.mu.Lock()
		h.ca.answer = func(path string) *http.Response {
			switch {
			case path == "/account":
				forgotten = false
			case path == "/order" && forgotten:
				return problem("accountDoesNotExist", "who", http.StatusBadRequest)
			}
			return nil
		}
		h.ca.mu.Unlock()
		h.SetHosts([]string{"ha.relay.test", "nas.relay.test"})
		pass(time.Minute)
		h.stop()
		if st := h.of("nas.relay.test"); st.State != StateOK || h.ca.accounts != 2 {
			t.Errorf("%d accounts, status %+v", h.ca.accounts, st)
		}
		if len(h.told) != 2 {
			t.Errorf("told of %q", h.told)
		}
	})
}

// The relay knows the account before the CA sees an order: a CAA record of an
// older one would forbid it.
func TestAccountIsToldFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, func(h *home) { h.config.Own = "" })
		told := 0
		h.ca.answer = func(path string) *http.Response {
			if path == "/order" && told == 0 {
				told = len(h.told)
				if told == 0 {
					t.Error("an order comes before the relay knows the account")
				}
			}
			return nil
		}
		h.SetHosts([]string{"ha.relay.test"})
		h.run()
		pass(time.Minute)
		h.stop()
		if told != 1 {
			t.Errorf("told %d times", told)
		}
	})
}

// The end of Run breaks an order off, closes its challenge and leaves no
// failure behind.
func TestStopDuringAnOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, func(h *home) { h.config.Own = "" })
		h.ca.answer = func(path string) *http.Response {
			if strings.HasPrefix(path, "/authz/") && len(h.ca.orders[0].methods) > 0 {
				resp := reply(map[string]any{"status": "pending", "identifier": map[string]string{"type": "dns", "value": "ha.relay.test"}}, "")
				return resp // for ever
			}
			return nil
		}
		h.SetHosts([]string{"ha.relay.test"})
		h.run()
		pass(10 * time.Second)
		if len(h.zone.get("_acme-challenge.ha.relay.test")) != 1 {
			t.Error("no challenge is open")
		}
		h.stop()
		if len(h.zone.get("_acme-challenge.ha.relay.test")) != 0 {
			t.Error("the challenge stays open")
		}
		if e := h.acme.entries["ha.relay.test"]; e.failures != 0 || e.problem != "" || e.busy {
			t.Errorf("left behind: %+v", e)
		}
	})
}

// A disk that takes nothing costs no second order: the certificate serves, and
// A relay that comes back while an attempt is failing for want of one is not
// A host that goes is not served any more; one that comes back is at once, and
