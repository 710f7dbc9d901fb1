package agent

import (
	"runtime/debug"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// A clock is the time by which certificates are judged. A Raspberry Pi without
// a battery starts in 1970, or where it was switched off; the clock here is
// never before the program was built nor before the latest time that a relay,
// proven by its certificate, has told.
type clock struct {
	now   func() time.Time
	built time.Time

	mu   sync.Mutex // guards seen and at
	seen time.Time
	at   time.Time // monotonic reading when seen was true
}

func newClock(now func() time.Time) *clock {
	return &clock{now: now, built: buildTime()}
}

func buildTime() time.Time {
	t := pki.Floor()
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key != "vcs.time" {
				continue
			}
			if v, err := time.Parse(time.RFC3339, s.Value); err == nil && v.After(t) {
				t = v
			}
		}
	}
	return t
}

// Now returns the latest of the system's clock, the build date, and the
// relay's time as it went on since.
func (c *clock) Now() time.Time {
	t := c.now()
	if t.Before(c.built) {
		t = c.built
	}
	if s := c.told(); s.After(t) {
		t = s
	}
	return t
}

// told returns the relay's time as it went on since; zero when never told.
func (c *clock) told() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen.IsZero() {
		return time.Time{}
	}
	return c.seen.Add(time.Since(c.at))
}

// tell moves the clock forward to t; an earlier time does nothing.
func (c *clock) tell(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.After(c.seen) && (c.seen.IsZero() || t.After(c.seen.Add(time.Since(c.at)))) {
		c.seen, c.at = t, time.Now()
	}
}
