package certs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Connected ends the wait.
func TestRelayAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, func(h *home) { h.ca.life = 6 * 24 * time.Hour })
		h.zone.fail(errors.New("no session"))
		h.SetHosts([]string{"ha.relay.test", "home.example.org"}) // one of another zone: its challenge comes through the relay, too
		h.run()
		pass(3 * time.Hour)
		if n := len(h.ca.times()); n != 0 || h.ca.accounts != 0 {
			t.Errorf("the CA was asked %d times", n)
		}
		st := h.of("ha.relay.test")
		if st.State != StateFailing || !strings.Contains(st.Problem, "no session") || st.Fix == "" || time.Until(st.Next) > heldWait {
			t.Errorf("status %+v", st)
		}
		if n := strings.Count(h.log.String(), "host=ha.relay.test"); n != 1 {
			t.Errorf("one problem was logged %d times", n)
		}
		if _, err := os.Stat(h.acme.keeper.triesFile()); err == nil {
			t.Error("looks count as tries")
		}
		h.zone.fail(nil)
		h.Connected()
		pass(10 * time.Second)
		if st := h.of("ha.relay.test"); st.State != StateOK {
			t.Errorf("after Connected: %+v", st)
		}

		h.zone.fail(errors.New("no session"))
		pass(5 * 24 * time.Hour)
		if st := h.of("ha.relay.test"); st.State != StateFailing || st.NotAfter.Before(time.Now()) {
			t.Errorf("due, and the relay is away: %+v", st)
		}
		if _, err := h.GetCertificate("ha.relay.test"); err != nil {
			t.Error(err)
		}
		h.stop()
	})
}

// A CA that refuses is asked ever more rarely, also after restarts.
func TestBackOffSurvivesRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, func(h *home) { h.config.Own = "" })
		h.ca.txt = func(string) []string { return nil } // no delegation
		h.SetHosts([]string{"*.relay.test"})
		h.run()
		pass(40 * time.Minute)
		asked := h.ca.times()
		var waits []time.Duration
		for i := range asked[1:] {
			waits = append(waits, asked[i+1].Sub(asked[i]).Round(time.Minute))
		}
		if want := []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute}; !slices.Equal(waits, want) {
			t.Errorf("waits %v, not %v", waits, want)
		}
		h.stop()
		for range 10 {
			h.start()
			h.SetHosts([]string{"*.relay.test"})
			h.run()
			synctest.Wait()
			if st := h.of("*.relay.test"); st.State != StateFailing || !strings.Contains(st.Problem, "does not find our DNS record") || !strings.Contains(st.Fix, "delegated") {
				t.Errorf("after a restart: %+v", st)
			}
			h.stop()
		}
		if n := len(h.ca.times()); n != len(asked) {
			t.Errorf("10 restarts asked %d times", n-len(asked))
		}
		h.start()
		h.SetHosts([]string{"*.relay.test"})
		h.run()
		if err := h.Retry("*.relay.test"); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		pass(3 * time.Second)
		if n := len(h.ca.times()); n != len(asked)+1 {
			t.Errorf("Retry asked %d times", n-len(asked))
		}
		h.ca.mu.Lock()
		h.ca.txt = h.zone.get
		h.ca.mu.Unlock()
		pass(time.Hour)
		h.stop()
		if st := h.of("*.relay.test"); st.State != StateOK {
			t.Errorf("after it was mended: %+v", st)
		}
		h.start()
		h.SetHosts([]string{"*.relay.test"})
		if e := h.acme.wanted["*.relay.test"]; e.failures != 0 {
			t.Errorf("after a success %d failures are remembered", e.failures)
		}
	})
}

// What the CA says about waiting is obeyed, by Retry and after a restart too.
func TestRateLimit(t *testing.T) {
	for name, c := range map[string]struct {
		detail, header string
		wait           time.Duration
	}{
		"seconds":      {"too many", "7200", 2 * time.Hour},
		"date":         {"too many", day.Add(3 * time.Hour).Format(http.TimeFormat), 3 * time.Hour},
		"words":        {"too many certificates, retry after 2027-03-01 16:00:00 UTC: see the docs", "", 4*time.Hour + time.Minute},
		"silence":      {"too many", "", time.Hour},
		"past reason":  {"too many", "99999999", longestLimit},
		"broken value": {"too many", "soon", time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHome(t, func(h *home) { h.config.Own = "" })
				h.ca.answer = func(path string) *http.Response {
					if path != "/order" {
						return nil
					}
					h.ca.asked = append(h.ca.asked, time.Now())
					resp := problem("rateLimited", c.detail, http.StatusTooManyRequests)
					resp.Header.Set("Retry-After", c.header)
					return resp
				}
				h.SetHosts([]string{"ha.relay.test"})
				h.run()
				pass(time.Minute)
				st := h.of("ha.relay.test")
				if !strings.Contains(st.Problem, "rate limit") || !strings.Contains(st.Fix, "wait") {
					t.Errorf("status %+v", st)
				}
				if got := st.Next.Sub(h.ca.times()[0]); got < c.wait || got > c.wait+time.Minute {
					t.Errorf("waits %v, not %v", got, c.wait)
				}
				if err := h.Retry("ha.relay.test"); err == nil || !strings.Contains(err.Error(), "wait until") {
					t.Errorf("Retry: %v", err)
				}
				h.stop()
				h.start()
				h.SetHosts([]string{"ha.relay.test"})
				h.run()
				pass(c.wait - 5*time.Minute)
				if len(h.ca.times()) != 1 {
					t.Errorf("asked %d times", len(h.ca.times()))
				}
				pass(10 * time.Minute)
				if len(h.ca.times()) < 2 {
					t.Error("not asked again")
				}
				h.stop()
			})
		})
	}
}

// is kept once there is room.
func TestCertificateThatCannotBeKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, func(h *home) { h.config.Own = "" })
		certs := filepath.Join(h.acme.keeper.dir, "certs")
		if err := os.RemoveAll(certs); err != nil {
			t.Fatal(err)
		}
		h.SetHosts([]string{"ha.relay.test"})
		h.run()
		pass(time.Hour)
		cert, err := h.GetCertificate("ha.relay.test")
		if err != nil {
			t.Fatal(err)
		}
		if st := h.of("ha.relay.test"); st.State != StateFailing || !strings.Contains(st.Problem, "cannot be kept") || st.NotAfter.IsZero() {
			t.Errorf("status %+v", st)
		}
		if n := len(h.ca.times()); n != 1 {
			t.Errorf("%d orders", n)
		}
		if err := os.Mkdir(certs, 0o700); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Minute)
		h.stop()
		if st := h.of("ha.relay.test"); st.State != StateOK {
			t.Errorf("status %+v", st)
		}
		h.start()
		h.SetHosts([]string{"ha.relay.test"})
		if again, err := h.GetCertificate("ha.relay.test"); err != nil || !again.Leaf.Equal(cert.Leaf) || len(h.ca.times()) != 1 {
			t.Errorf("after a restart: %v", err)
		}
	})
}

// A clock that was never set asks nobody.
func TestClockNotSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lag atomic.Int64
		lag.Store(int64(40 * 365 * 24 * time.Hour))
		h := newHome(t, func(h *home) {
			h.config.Own = ""
			h.config.Now = func() time.Time { return time.Now().Add(-time.Duration(lag.Load())) }
		})
		h.SetHosts([]string{"ha.relay.test"})
		h.run()
		pass(3 * time.Hour)
		if st := h.of("ha.relay.test"); st.State != StateFailing || !strings.Contains(st.Problem, "clock") || len(h.ca.times()) != 0 {
			t.Errorf("status %+v", st)
		}
		lag.Store(0)
		pass(longestWait)
		if st := h.of("ha.relay.test"); st.State != StateOK {
			t.Errorf("the clock is right: %+v", st)
		}
		h.stop()
	})
}

// missed.
func TestConnectedDuringALook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, func(h *home) { h.config.Own = "" })
		h.acme.book.setTXT = func(ctx context.Context, name string, values []string) error {
			if time.Since(day) < time.Second {
				time.Sleep(5 * time.Second) // virtual
				return errors.New("no session")
			}
			return h.zone.set(ctx, name, values)
		}
		h.SetHosts([]string{"ha.relay.test"})
		h.run()
		pass(2 * time.Second)
		h.Connected()
		pass(20 * time.Second)
		h.stop()
		if st := h.of("ha.relay.test"); st.State != StateOK {
			t.Errorf("status %+v", st)
		}
	})
}

// does not get around the waits that failures brought.
func TestHostsComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, func(h *home) { h.config.Own = "" })
		h.SetHosts([]string{"ha.relay.test"})
		h.run()
		pass(time.Minute)
		h.SetHosts(nil)
		if _, err := h.GetCertificate("ha.relay.test"); err == nil || len(h.Status()) != 0 {
			t.Errorf("a host that is gone is served; status %+v", h.Status())
		}
		h.SetHosts([]string{"ha.relay.test"})
		if _, err := h.GetCertificate("ha.relay.test"); err != nil {
			t.Error(err)
		}
		h.ca.mu.Lock()
		h.ca.txt = nil
		h.ca.mu.Unlock()
		for range 100 {
			h.SetHosts([]string{"*.relay.test"})
			pass(15 * time.Second)
			h.SetHosts([]string{"ha.relay.test"})
			pass(15 * time.Second)
		}
		h.stop()
		if n := len(h.ca.times()); n < 4 || n > 6 {
			t.Errorf("%d orders in 50 minutes of coming and going", n)
		}
		many := make([]string, 3*maxEntries)
		for i := range many {
			many[i] = fmt.Sprintf("h%d.relay.test", i)
		}
		for _, host := range many {
			h.SetHosts([]string{host})
		}
		if n := len(h.acme.entries); n > maxEntries+1 {
			t.Errorf("%d hosts are remembered", n)
		}
	})
}
