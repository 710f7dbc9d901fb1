package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

func window(from, to time.Time) string {
	return fmt.Sprintf(`{"suggestedWindow":{"start":%q,"end":%q}}`, from.Format(time.RFC3339), to.Format(time.RFC3339))
}

// When the CA wants a certificate renewed early (RFC 9773), it is, and the
// order says which one it replaces.
func TestRenewalOnAdvice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, func(h *home) { h.config.Own = "" })
		early := day.Add(5 * 24 * time.Hour)
		h.ca.advice = func(now time.Time) string {
			if now.Before(day.Add(24 * time.Hour)) {
				return window(day.AddDate(0, 0, 60), day.AddDate(0, 0, 62))
			}
			return window(early, early.Add(time.Hour))
		}
		h.SetHosts([]string{"ha.relay.test"})
		h.run()
		defer h.stop()
		pass(4 * 24 * time.Hour)
		if n := len(h.ca.times()); n != 1 {
			t.Fatalf("%d orders", n)
		}
		h.ca.mu.Lock()
		h.ca.advice = func(now time.Time) string { // of the second one
			if now.Before(early.Add(time.Hour)) {
				return window(early, early.Add(time.Hour))
			}
			return window(now.AddDate(0, 0, 60), now.AddDate(0, 0, 62))
		}
		h.ca.mu.Unlock()
		pass(24*time.Hour + 2*time.Hour)
		asked := h.ca.times()
		if len(asked) != 2 || asked[1].Before(early) || asked[1].After(early.Add(time.Hour+longestWait)) {
			t.Fatalf("orders at %v, not within an hour of %v", asked, early)
		}
		if h.ca.last().replaces == "" {
			t.Error("the order does not say what it replaces")
		}
	})
}

// Advice that lies in the past for every certificate does not make us order
// without end.
func TestAdviceInThePast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, func(h *home) { h.config.Own = "" })
		h.ca.advice = func(now time.Time) string { return window(now.Add(-48*time.Hour), now.Add(-24*time.Hour)) }
		h.SetHosts([]string{"ha.relay.test"})
		h.run()
		pass(24 * time.Hour)
		h.stop()
		if n := len(h.ca.times()); n > 25 {
			t.Errorf("%d orders in a day", n)
		}
	})
}

func TestRenewAt(t *testing.T) {
	at := func(life time.Duration, serial *big.Int, advice time.Time) time.Duration {
		e := &entry{at: day, cert: &tls.Certificate{Leaf: &x509.Certificate{NotBefore: day, NotAfter: day.Add(life), SerialNumber: serial}}}
		e.advice = acme.RenewalInfo{SelectedTime: advice}
		return e.renewAt().Sub(day)
	}
	const d = 24 * time.Hour
	zero := new(big.Int)
	for _, c := range []struct {
		life      time.Duration
		advice    time.Time
		low, high time.Duration
	}{
		{90 * d, time.Time{}, 60 * d, 60 * d},
		{11 * d, time.Time{}, 176 * time.Hour, 176 * time.Hour},
		{10 * d, time.Time{}, 5 * d, 5 * d},
		{3 * time.Hour, time.Time{}, 90 * time.Minute, 90 * time.Minute},
		{90 * d, day.Add(7 * d), 7 * d, 7 * d},
		{90 * d, day.Add(100 * d), 81 * d, 81 * d},                          // never later than a tenth before its end
		{90 * d, day.Add(-d), time.Hour, time.Hour},                         // nor at once
		{90 * time.Minute, day.Add(-d), 30 * time.Minute, 30 * time.Minute}, // nor at its end
	} {
		if got := at(c.life, zero, c.advice); got < c.low || got > c.high {
			t.Errorf("life %v, advice %v: renewed after %v", c.life, c.advice, got)
		}
	}
	// Spread, the same at every look.
	huge := new(big.Int).Lsh(big.NewInt(0x7fffffffffff1234), 60)
	if a, b := at(90*d, huge, time.Time{}), at(90*d, huge, time.Time{}); a != b || a < 60*d || a > 61*d {
		t.Errorf("spread to %v and %v", a, b)
	}
}
