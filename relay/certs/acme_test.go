package certs

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Both challenges, together and each alone, through the relay's own listeners.
func TestACMEIssues(t *testing.T) {
	for name, prepare := range map[string]func(*bench){
		"both":        func(*bench) {},
		"tls-alpn-01": func(b *bench) { b.deafHTTP.Store(true) },
		"http-01":     func(b *bench) { b.deafTLS.Store(true) },
		"no port 80": func(b *bench) {
			b.deafHTTP.Store(true)
			b.config.Port80 = -1
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := setUp(t, pebbleConfig{}, nil)
			prepare(b)
			b.make(t)
			before := listening(t)
			b.onChallenge = func() {
				for socket := range listening(t) {
					if !before[socket] {
						t.Errorf("a listener of somebody else's is open during a challenge: %s", socket)
					}
				}
			}
			b.acme.SetHosts(three)
			for _, host := range three {
				if st := b.status(host); st.State != StateIssuing || !st.NotAfter.IsZero() || st.Problem != "" {
					t.Errorf("before the first attempt: %+v", st)
				}
			}
			b.run(t)
			roots := b.ca.issued()
			for _, host := range three {
				st := b.waitFor(t, host, StateOK)
				if left := time.Until(st.NotAfter); left < 80*24*time.Hour || !strings.Contains(st.Issuer, "Pebble") {
					t.Errorf("%+v", st)
				}
				if in := time.Until(st.Next); in < 30*24*time.Hour || in > 75*24*time.Hour {
					t.Errorf("%s is renewed in %v", host, in)
				}
				leaf, err := b.visit(host, roots)
				if err != nil {
					t.Fatal(err)
				}
				if len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != host {
					t.Errorf("the certificate of %s names %q", host, leaf.DNSNames)
				}
			}
			if b.deafHTTP.Load() && b.byHTTP.Load() > 0 || b.deafTLS.Load() && b.byTLS.Load() > 0 || b.byHTTP.Load()+b.byTLS.Load() == 0 {
				t.Errorf("answers by TLS: %d, by HTTP: %d", b.byTLS.Load(), b.byHTTP.Load())
			}
			b.acme.answers.mu.Lock()
			if n := len(b.acme.answers.tokens) + len(b.acme.answers.certs) + len(b.acme.answers.probes); n > 0 {
				t.Errorf("%d challenges are still open", n)
			}
			b.acme.answers.mu.Unlock()
			private(t, b.config.Dir)
			secretless(t, b)
		})
	}
}

// listening are this process's listening TCP sockets.
func listening(t *testing.T) map[string]bool {
	t.Helper()
	found := make(map[string]bool)
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Error(err)
	}
	own := make(map[string]bool)
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil {
			own[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
		}
	}
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		data, err := os.ReadFile(table)
		if err != nil {
			return nil // no such system
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" && own[f[9]] {
				found[f[1]] = true
			}
		}
	}
	return found
}

// private fails unless everything below dir is the owner's alone.
func private(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// secretless fails when the log, debug lines and all, tells a key.
func secretless(t *testing.T, b *bench) {
	t.Helper()
	log := b.log.String()
	if !strings.Contains(log, "level=DEBUG") {
		t.Error("the steps of an attempt are not in the log at debug level")
	}
	err := filepath.WalkDir(b.config.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".key") {
			return err
		}
		data, err := os.ReadFile(path)
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimSpace(line); len(line) > 30 && !strings.HasPrefix(line, "---") && strings.Contains(log, line) {
				t.Errorf("the log contains %s", path)
			}
		}
		return err
	})
	if err != nil || strings.Contains(log, "PRIVATE KEY") {
		t.Errorf("keys in the log, or %v", err)
	}
}

// Certificates are renewed while visitors come and go, and none of them
// notices.
func TestACMERenewsUnderTraffic(t *testing.T) {
	t.Parallel()
	b := setUp(t, pebbleConfig{life: 12 * time.Second}, nil)
	b.acme.SetHosts(three)
	b.run(t)
	roots := b.ca.issued()
	for _, host := range three {
		b.waitFor(t, host, StateOK)
	}
	type seen struct {
		serials map[string]bool
		visits  int
		err     error
	}
	results := make(chan seen)
	stop := make(chan struct{})
	for _, host := range three {
		go func() {
			s := seen{serials: make(map[string]bool)}
			defer func() { results <- s }()
			for {
				leaf, err := b.visit(host, roots)
				if err != nil {
					s.err = err
					return
				}
				s.visits++
				s.serials[leaf.SerialNumber.String()] = true
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
		}()
	}
	renewed := make(map[string]int)
	for renewed[three[0]] < 2 || renewed[three[1]] < 2 || renewed[three[2]] < 2 {
		select {
		case e := <-b.events:
			event, host, _ := strings.Cut(e, " ")
			if event == "certificate.renewed" {
				renewed[host]++
			} else if event == "certificate.failed" {
				t.Errorf("%s: %+v", e, b.status(host))
			}
		case <-time.After(time.Minute):
			t.Fatalf("renewals: %v", renewed)
		}
	}
	close(stop)
	for range three {
		s := <-results
		if s.err != nil {
			t.Errorf("a visitor failed: %v", s.err)
		}
		if len(s.serials) < 2 {
			t.Errorf("visitors saw %d certificates", len(s.serials))
		}
		t.Logf("%d visits, %d certificates", s.visits, len(s.serials))
	}
}

// A CA that is down costs nobody anything while certificates last; a CA that
// came back without its memory gets a new account.
func TestACMEOutage(t *testing.T) {
	t.Parallel()
	b := setUp(t, pebbleConfig{life: 18 * time.Second}, nil)
	const host = "ha.relay.test"
	b.acme.SetHosts([]string{host})
	b.run(t)
	roots := b.ca.issued()
	b.waitFor(t, host, StateOK)
	first, err := b.visit(host, roots)
	if err != nil {
		t.Fatal(err)
	}
	b.ca.stop()
	st := b.waitFor(t, host, StateFailing)
	if !strings.Contains(st.Problem, "cannot be reached") || st.Fix == "" || strings.ContainsAny(st.Problem+st.Fix, "\n\r") || !st.NotAfter.Equal(first.NotAfter) {
		t.Errorf("%+v", st)
	}
	if leaf, err := b.visit(host, roots); err != nil || !leaf.Equal(first) {
		t.Errorf("during the outage: %v", err)
	}

	b.ca.start() // it knows neither our account nor the certificate that is replaced
	b.waitFor(t, host, StateOK)
	roots = b.ca.issued()
	second, err := b.visit(host, roots)
	if err != nil || second.Equal(first) {
		t.Fatalf("after the outage: %v", err)
	}

	// A restart in an outage serves before it runs, and needs no network.
	b.ca.stop()
	b.stop()
	b.make(t)
	b.acme.SetHosts([]string{host})
	if leaf, err := b.visit(host, roots); err != nil || !leaf.Equal(second) {
		t.Errorf("after a restart in the outage: %v", err)
	}
	b.run(t)
	if st := b.waitFor(t, host, StateFailing); !st.NotAfter.Equal(second.NotAfter) {
		t.Errorf("after a restart in the outage: %+v", st)
	}
}

// A restart orders nothing that it has.
func TestACMERestart(t *testing.T) {
	t.Parallel()
	b := setUp(t, pebbleConfig{}, nil)
	b.acme.SetHosts(three)
	b.run(t)
	for _, host := range three {
		b.waitFor(t, host, StateOK)
	}
	roots := b.ca.issued()
	var had []*x509.Certificate
	for _, host := range three {
		leaf, err := b.visit(host, roots)
		if err != nil {
			t.Fatal(err)
		}
		had = append(had, leaf)
	}
	b.stop()
	orders := b.ca.orders()
	if orders < 3 {
		t.Fatalf("%d orders", orders)
	}
	b.make(t)
	b.acme.SetHosts(three)
	b.run(t)
	wait(t, "a look at each host", func() bool {
		for _, host := range three {
			if st := b.status(host); st.State != StateOK || time.Until(st.Next) < time.Hour {
				return false
			}
		}
		return true
	})
	b.stop()
	for i, host := range three {
		if leaf, err := b.visit(host, roots); err != nil || !leaf.Equal(had[i]) {
			t.Errorf("%s: %v", host, err)
		}
	}
	if got := b.ca.orders(); got != orders {
		t.Errorf("%d orders more after a restart", got-orders)
	}
}

// Only registered names are ordered, and only their certificates are served.
func TestACMERefusals(t *testing.T) {
	t.Parallel()
	b := setUp(t, pebbleConfig{block: []string{"blocked.relay.test"}}, nil)
	b.acme.SetHosts([]string{"ha.relay.test", "*.relay.test", "blocked.relay.test", "192.0.2.1"})
	b.run(t)
	b.waitFor(t, "ha.relay.test", StateOK)
	st := b.waitFor(t, "blocked.relay.test", StateFailing)
	if !strings.Contains(st.Problem, "refused") || !strings.Contains(st.Fix, "domain of your own") || strings.ContainsAny(st.Problem+st.Fix, "\n") || st.Next.IsZero() {
		t.Errorf("%+v", st)
	}
	for _, never := range []string{"*.relay.test", "192.0.2.1"} {
		if st := b.status(never); st.State != StateRefused || st.Problem == "" || st.Fix == "" || !st.Next.IsZero() {
			t.Errorf("%+v", st)
		}
		if err := b.acme.Retry(never); err == nil || !strings.Contains(err.Error(), "\n") {
			t.Errorf("retry of %s: %v", never, err)
		}
	}
	roots := b.ca.issued()
	for _, name := range []string{"nas.relay.test", "any.relay.test", "*.relay.test", "relay.test", ""} {
		if c, err := b.acme.GetCertificate(name); err == nil || c != nil {
			t.Errorf("%q has a certificate", name)
		}
		if name != "" {
			if _, err := b.visit(name, roots); err == nil {
				t.Errorf("a visitor of %q is served", name)
			}
		}
	}
	if log := b.ca.log.String(); strings.Contains(log, "nas.relay.test") || strings.Contains(log, "any.relay.test") || strings.Contains(log, "*.relay.test") {
		t.Error("the CA was asked for a name that nobody registered")
	}

	// What leaves the list is not served any more, and comes back at no cost.
	had, err := b.visit("ha.relay.test", roots)
	if err != nil {
		t.Fatal(err)
	}
	b.acme.SetHosts([]string{"nas.relay.test"})
	if c, err := b.acme.GetCertificate("ha.relay.test"); err == nil || c != nil {
		t.Error("a host that is gone is served")
	}
	if err := b.acme.Retry("ha.relay.test"); err == nil {
		t.Error("a host that is gone is retried")
	}
	b.waitFor(t, "nas.relay.test", StateOK)
	b.acme.SetHosts([]string{"ha.relay.test", "nas.relay.test"})
	if leaf, err := b.visit("ha.relay.test", roots); err != nil || !leaf.Equal(had) {
		t.Errorf("a host that came back: %v", err)
	}
}

// The CA's advice (ARI) brings a renewal forward, and the order says which
// certificate it replaces.
func TestACMEAdvice(t *testing.T) {
	t.Parallel()
	b := setUp(t, pebbleConfig{}, nil)
	const host = "ha.relay.test"
	b.acme.SetHosts([]string{host})
	b.run(t)
	b.waitFor(t, host, StateOK)
	roots := b.ca.issued()
	first, err := b.visit(host, roots)
	if err != nil {
		t.Fatal(err)
	}
	b.stop()
	if !b.ca.advise(first, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)) {
		if os.Getenv("CI") == "true" {
			t.Fatal("this pebble has no renewal information")
		}
		t.Skip("this pebble has no renewal information: 2.10 has")
	}
	b.make(t)
	b.acme.SetHosts([]string{host})
	b.run(t)
	b.next(t, "certificate.renewed", host)
	second, err := b.visit(host, roots)
	if err != nil || second.Equal(first) {
		t.Fatalf("not renewed: %v", err)
	}
	if st := b.status(host); time.Until(st.Next) < 24*time.Hour {
		t.Errorf("renewed again at once: %+v", st)
	}
	if !strings.Contains(b.ca.log.String(), "is a replacement of") {
		t.Error("the order did not say which certificate it replaces")
	}
}
