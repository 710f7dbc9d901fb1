package agent

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/agent/uplink"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
)

// wrongClock is a machine's clock that somebody sets.
type wrongClock struct {
	mu  sync.Mutex
	off time.Duration
}

func (c *wrongClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return testNow().Add(c.off)
}

func (c *wrongClock) set(off time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = off
}

// logged collects the log of an agent.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (r *fakeRelay) renewals() (n int) {
	synctest.Wait()
	r.set(func() { n = r.renews })
	return n
}

const day = 24 * time.Hour

// The relay issues for 90 days: sixty virtual ones pass quietly, and the first
// hour after them brings a new certificate.
func TestCertificateOfNinetyDaysIsRenewedAtSixty(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		issued := testNow()
		a := start(t, cfg)
		r.next()
		if life := a.Status().CertEnds.Sub(issued); life < 90*day-time.Minute || life > 90*day+time.Minute {
			t.Fatalf("a certificate for %v", life)
		}
		a.stop()
		time.Sleep(59 * day) // while it is off, they cost nothing
		a = start(t, cfg)
		r.next()
		time.Sleep(issued.Add(60*day).Sub(testNow()) - 5*time.Minute)
		if n := r.renewals(); n != 0 {
			t.Fatalf("%d renewals before two thirds of its life", n)
		}
		time.Sleep(time.Hour)
		if n := r.renewals(); n != 1 {
			t.Fatalf("%d renewals in the hour after two thirds of its life", n)
		}
		time.Sleep(5 * time.Hour)
		if n, left := r.renewals(), a.Status().CertEnds.Sub(testNow()); n != 1 || left < 89*day {
			t.Errorf("%d renewals, %v left", n, left)
		}
		if w := a.Warnings(); len(w) > 0 {
			t.Errorf("warnings without a reason: %q", w)
		}
	})
}

// An agent that was off beyond its certificate's end, in virtual time, comes
// back and renews.
func TestExpiredAgentComesBack(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		r.certLife = 20 * day
		a := start(t, cfg)
		r.next()
		a.stop()
		time.Sleep(40 * day)
		r.acceptExpired = true
		a = start(t, cfg)
		r.next()
		if n, left := r.renewals(), a.Status().CertEnds.Sub(testNow()); n != 1 || left < 19*day {
			t.Errorf("%d renewals, %v left", n, left)
		}
	})
}

// A clock that jumps past every certificate's end under a running agent, in
// virtual time: the visitors stay, a lost session comes back, nothing is renewed in vain, and
// status and log say what is wrong.
func TestClockJumpsForward(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		var clock wrongClock
		var log logged
		cfg.Now, cfg.Logger = clock.now, log.logger()
		a := start(t, cfg)
		s := r.next()
		visitor := s.visit(t, "echo")
		clock.set(15 * 365 * day)
		time.Sleep(3 * time.Hour)
		exchange(t, visitor, "still here")
		if n := r.renewals(); n != 0 {
			t.Errorf("%d renewals because a clock was set", n)
		}
		if w := strings.Join(a.Status().Warnings, "\n"); !strings.Contains(w, "15 years ahead of the relay's") {
			t.Errorf("status warns of %q", w)
		}
		if n := log.count("15 years ahead"); n != 1 {
			t.Errorf("the log says it %d times", n)
		}
		visitor.Reset(protocol.CodeOK)
		s.Close(protocol.CodeInternal, "")
		r.next()
		if st := a.Status(); st.State != uplink.StateConnected || !strings.Contains(strings.Join(st.Warnings, ""), "15 years") {
			t.Errorf("after a lost session: %+v", st)
		}
		clock.set(0)
		time.Sleep(time.Hour)
		synctest.Wait()
		if w := a.Status().Warnings; len(w) > 0 || log.count("this is over") != 1 {
			t.Errorf("still warned of: %q", w)
		}
	})
}

// An agent that starts with such a clock cannot know better. It says so, once,
// and comes back when the clock is right.
func TestStartWithAClockThatIsAhead(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		r.next()
		a.stop()
		var clock wrongClock
		var log logged
		cfg.Now, cfg.Logger = clock.now, log.logger()
		clock.set(15 * 365 * day)
		a = start(t, cfg)
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		st := a.Status()
		if st.Link != nil {
			t.Fatal("connected with a certificate that has ended")
		}
		for _, text := range append(st.Warnings, st.Error) {
			if !strings.Contains(text, "set this clock") || strings.Contains(text, "\n") {
				t.Errorf("status says %q", text)
			}
		}
		if len(st.Warnings) != 1 {
			t.Errorf("warnings %q", st.Warnings)
		}
		if n := log.count("cannot reach the relay"); n != 1 {
			t.Errorf("the log says it %d times in three minutes", n)
		}
		clock.set(0)
		r.next()
		if w := a.Status().Warnings; len(w) > 0 {
			t.Errorf("still warned of: %q", w)
		}
	})
}

// A clock from before the certificate began, in a directory that has lost its
// memory: what the certificate itself proves of the time is enough.
func TestClockBeforeTheCertificate(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		r.next()
		a.stop()
		if err := os.Remove(cfg.DataDir + "/memory.json"); err != nil {
			t.Fatal(err)
		}
		var log logged
		cfg.Logger = log.logger()
		cfg.Now = func() time.Time { return time.Unix(1000, 0) }
		a = start(t, cfg)
		r.next()
		if n := log.count("years behind"); n != 1 { // without anybody asking for the status
			t.Errorf("the log says it %d times", n)
		}
		w := strings.Join(a.Status().Warnings, "\n")
		if !strings.Contains(w, "1970") || !strings.Contains(w, "years behind the relay's") || log.count("years behind") != 1 {
			t.Errorf("status warns of %q", w)
		}
		if n := r.renewals(); n != 0 {
			t.Errorf("%d renewals", n)
		}
	})
}

// A relay whose clock is wrong is not believed, and named.
func TestClockOfTheRelayIsWrong(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		r.welcomeTime = testNow().AddDate(50, 0, 0)
		a := start(t, cfg)
		r.next()
		if w := a.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], "clock of the relay") {
			t.Errorf("warnings %q", w)
		}
		if n := r.renewals(); n != 0 {
			t.Errorf("%d renewals", n)
		}
	})
}

// A relay that does not renew is named in status until it does.
func TestRefusedRenewalIsShown(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		r.certLife = 6 * time.Hour
		r.refuseRenewal = "the owner said no"
		a := start(t, cfg)
		r.next()
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		if w := a.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], "the owner said no") {
			t.Errorf("warnings %q", w)
		}
		r.set(func() { r.refuseRenewal = "" })
		time.Sleep(time.Hour)
		synctest.Wait()
		if w := a.Status().Warnings; len(w) > 0 {
			t.Errorf("still warned of: %q", w)
		}
	})
}

// Whatever is wrong besides the dates is an error of its own, and a clock that
// was set excuses only dates.
func TestSetClockExcusesNothingElse(t *testing.T) {
	for name, spoil := range map[string]func(r, other *fakeRelay){
		"another CA":   func(r, other *fakeRelay) { r.cert = other.cert },
		"another name": func(r, _ *fakeRelay) { r.cert = r.named("other.invalid") },
		"a client's certificate": func(r, _ *fakeRelay) {
			key := r.cert.PrivateKey.(*ecdsa.PrivateKey)
			r.cert.Certificate = [][]byte{r.issue(key.Public()).Raw}
		},
		"one that had ended before": func(r, _ *fakeRelay) {
			key, _ := pki.NewKey()
			cert, err := r.ca.Issue(key.Public(), pki.Grant{
				Profile: pki.Server, Name: r.serverName, NotBefore: testNow().Add(-time.Minute), NotAfter: testNow().Add(time.Minute),
			})
			if err != nil {
				t.Error(err)
			}
			r.cert = tls.Certificate{Certificate: [][]byte{cert.Raw, r.ca.Cert().Raw}, PrivateKey: key}
			time.Sleep(2 * time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
				var clock wrongClock
				cfg.Now = clock.now
				a := start(t, cfg)
				s := r.next()
				clock.set(15 * 365 * day)
				spoil(r, newFakeRelay(t))
				s.Close(protocol.CodeInternal, "")
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if st := a.Status(); st.Link != nil || st.Error == "" {
					t.Errorf("status %+v", st)
				}
			})
		})
	}
}
