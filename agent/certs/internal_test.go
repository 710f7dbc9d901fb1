package certs

import (
	"crypto/x509"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// The home's own CA: what it vouches for is what devices verify, the CA
// survives restarts, and certificates are replaced before they end.
func TestInternal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(day)) // virtual
		var later atomic.Int64      // what the clock is ahead of the bubble: two months are many looks
		now := func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
		config := Config{Dir: t.TempDir(), Domain: domain, Own: own, Mode: ModeInternal, Now: now}
		c, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(c.Root())
		c.SetHosts([]string{"ha.relay.test", "*.lab.relay.test", "nas." + own, "Bad_Name"})
		hosts := []string{own, "nas." + own, "192-168-1-7." + own, "ha.relay.test", "x.lab.relay.test"}
		check := func(c *Certs) {
			t.Helper()
			for _, name := range hosts {
				cert, err := c.GetCertificate(name)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: now()}); err != nil {
					t.Error(err)
				}
			}
		}
		check(c)
		for _, name := range []string{"other.relay.test", "lab.relay.test", "a.b." + own, "", "bad_name"} {
			if _, err := c.GetCertificate(name); err == nil {
				t.Errorf("%q is served", name)
			}
		}
		h := &home{t: t, Certs: c}
		h.run()
		old, _ := c.GetCertificate("ha.relay.test")
		if st := h.of("ha.relay.test"); st.State != StateOK || !st.Next.Equal(renewInternal(old)) || st.Issuer == "" {
			t.Errorf("status %+v", st)
		}
		if st := h.of("Bad_Name"); st.State != StateFailing || st.Problem == "" {
			t.Errorf("status %+v", st)
		}
		later.Add(int64(59 * 24 * time.Hour))
		pass(time.Hour)
		if now, _ := c.GetCertificate("ha.relay.test"); now != old {
			t.Error("replaced early")
		}
		later.Add(int64(2 * 24 * time.Hour))
		pass(time.Hour)
		if now, _ := c.GetCertificate("ha.relay.test"); now == old {
			t.Error("not replaced")
		}
		check(c)
		c.SetHosts(nil)
		if _, err := c.GetCertificate("ha.relay.test"); err == nil {
			t.Error("a host that is gone is served")
		}
		h.stop()

		again, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		if !again.Root().Equal(c.Root()) {
			t.Error("a restart made another CA")
		}
		again.SetHosts([]string{"ha.relay.test", "*.lab.relay.test"})
		check(again)
	})
}

// A clock that jumps over the end of a certificate is noticed by the first
// visitor, not a minute later.
func TestInternalAfterAJump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(day)) // virtual
		var jump atomic.Int64
		now := func() time.Time { return time.Now().Add(time.Duration(jump.Load())) }
		ca, err := pki.NewAuthority("server", now)
		if err != nil {
			t.Fatal(err)
		}
		c, err := New(Config{Dir: t.TempDir(), Domain: domain, Mode: ModeInternal, CA: ca, Now: now})
		if err != nil {
			t.Fatal(err)
		}
		if !c.Root().Equal(ca.Cert()) {
			t.Error("another CA than the one given")
		}
		c.SetHosts([]string{"ha.relay.test"})
		h := &home{t: t, Certs: c}
		h.run()
		defer func() { h.stop() }()
		synctest.Wait()
		jump.Store(int64(200 * 24 * time.Hour))
		if _, err := c.GetCertificate("ha.relay.test"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if cert, _ := c.GetCertificate("ha.relay.test"); now().After(cert.Leaf.NotAfter) {
			t.Error("still the old one")
		}
	})
}

// With a clock that was never set there is no certificate, and soon after it
// is right there is one.
func TestInternalClockNotSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it begins in 2000
		dir := t.TempDir()
		var late atomic.Pointer[time.Time]
		set := func(to time.Time) { late.Store(&to) }
		clock := func() time.Time { return *late.Load() }
		set(day)
		ca, err := pki.NewAuthority("server", clock)
		if err != nil {
			t.Fatal(err)
		}
		set(time.Now())
		c, err := New(Config{Dir: dir, Domain: domain, Mode: ModeInternal, CA: ca, Now: clock})
		if err != nil {
			t.Fatal(err)
		}
		c.SetHosts([]string{"ha.relay.test"})
		h := &home{t: t, Certs: c}
		h.run()
		defer func() { h.stop() }()
		if st := h.of("ha.relay.test"); st.State != StateFailing || st.Problem == "" {
			t.Errorf("status %+v", st)
		}
		if _, err := c.GetCertificate("ha.relay.test"); err == nil {
			t.Error("a certificate by a clock that is wrong")
		}
		set(day.Add(time.Hour))
		pass(2 * internalCheck)
		if st := h.of("ha.relay.test"); st.State != StateOK {
			t.Errorf("status %+v", st)
		}
	})
}
