package agent

import (
	"fmt"
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

	mu   sync.Mutex // guards what follows
	seen time.Time
	at   time.Time // monotonic reading when seen was true

	relay   time.Time // what the relay said last, in this process; zero: nothing credible
	relayAt time.Time // monotonic reading at that moment
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

// own returns the system's clock when it can be right, otherwise Now: what is
// judged at home, while the relay may be away or lie, is judged by it.
func (c *clock) own() time.Time {
	if t := c.now(); !t.Before(c.built) {
		return t
	}
	return c.Now()
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

// hear notes what the relay's clock shows now, also when that is earlier than
// what was heard before; zero: it said nothing credible.
func (c *clock) hear(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.relay, c.relayAt = t, time.Now()
}

// relayNow returns the relay's time as it went on since the relay told it. It
// stands still while this machine sleeps, until the next session tells it.
func (c *clock) relayNow() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.relay.IsZero() {
		return time.Time{}, false
	}
	return c.relay.Add(time.Since(c.relayAt)), true
}

// issuer returns the time by which the relay, who issues our certificates,
// judges them: its own if it is known, whatever happened to ours.
func (c *clock) issuer() time.Time {
	if t, ok := c.relayNow(); ok {
		return t
	}
	return c.Now()
}

// maxSkew is how far the clocks of agent and relay may be apart before a person
// is told.
const maxSkew = 5 * time.Minute

// warning says that the clocks here and at the relay are too far apart; "" when
// they are not, or when the relay told nothing.
func (c *clock) warning() string {
	relay, ok := c.relayNow()
	if !ok {
		return ""
	}
	here := c.now()
	ahead := here.Sub(relay)
	if ahead.Abs() <= maxSkew {
		return ""
	}
	word := "ahead of"
	if ahead < 0 {
		word = "behind"
	}
	return fmt.Sprintf("the clock here says %s and is %s %s the relay's: set the one that is wrong (timedatectl shows this one)",
		here.UTC().Format(minutes), about(ahead.Abs()), word)
}

const minutes = "2006-01-02 15:04 UTC"

// about words a duration for people.
func about(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*365*day:
		return fmt.Sprintf("%d years", d/(365*day))
	case d >= 2*day:
		return fmt.Sprintf("%d days", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return fmt.Sprintf("%d minutes", d/time.Minute)
}

// tell moves the clock forward to t; an earlier time does nothing.
func (c *clock) tell(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.After(c.seen) && (c.seen.IsZero() || t.After(c.seen.Add(time.Since(c.at)))) {
		c.seen, c.at = t, time.Now()
	}
}
