package dispatch

import (
	"crypto/sha256"
	"log/slog"
	"slices"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	memoTime  = 2 * time.Minute // longer than any challenge lives
	memoCount = 64
	askingMax = 16 // questions of one device that wait for an answer

	// Refusals in the audit log: a burst, and then one in a while.
	saidBurst = 20
	saidEvery = 30 * time.Second
)

// A guest is one device that asked for something. Its fields are guarded by
// Dispatcher.mu.
type guest struct {
	commands, asks limiter
	said           limiter // of its refusals in the audit log
	unsaid         int     // refusals that were left out of it
	watches        []*watch
	asking         int           // questions that wait for a home
	ended          chan struct{} // closed when the device was revoked
	memos          []memo        // oldest first
}

// A memo remembers a command that was refused without a record, so that the
// same bytes that come again a moment later, by a retry on the way, do not run
// after the person was told that they did not.
type memo struct {
	status mqttbridge.Status
	digest [sha256.Size]byte
}

// guest returns what is known of a device. It wants d.mu.
func (d *Dispatcher) guest(device string) *guest {
	g := d.guests[device]
	if g == nil {
		l := d.cfg.Limits
		per := newLimiter(l.Burst, time.Second/time.Duration(l.PerSecond))
		g = &guest{commands: per, asks: per, said: newLimiter(saidBurst, saidEvery), ended: make(chan struct{})}
		d.guests[device] = g
	}
	return g
}

// idle reports whether nothing is lost when the guest is forgotten.
func (g *guest) idle(now time.Time) bool {
	return len(g.watches) == 0 && g.asking == 0 && g.commands.full(now) && g.asks.full(now) && g.said.full(now) &&
		(len(g.memos) == 0 || now.Sub(g.memos[len(g.memos)-1].status.At) >= memoTime)
}

// memo returns what was remembered of a refused command.
func (g *guest) memo(id string, now time.Time) *memo {
	i := slices.IndexFunc(g.memos, func(m memo) bool { return m.status.ID == id })
	if i < 0 || now.Sub(g.memos[i].status.At) >= memoTime {
		return nil
	}
	return &g.memos[i]
}

// remember keeps a command that was refused without a record, and audits it.
// It wants d.mu.
func (d *Dispatcher) remember(c *command, r *Refusal) {
	g, now := d.guest(c.status.Device), d.now()
	s := refusedStatus(c.status, r)
	s.At = now
	g.memos = slices.DeleteFunc(g.memos, func(m memo) bool { return now.Sub(m.status.At) >= memoTime })
	if len(g.memos) >= memoCount {
		g.memos = slices.Delete(g.memos, 0, len(g.memos)-memoCount+1)
	}
	g.memos = append(g.memos, memo{s, c.digest})
	d.noteRefused(g, s)
}

// noteRefused audits a refusal. Nobody drowns the log with them: what is left
// out is counted into the next line.
func (d *Dispatcher) noteRefused(g *guest, s mqttbridge.Status) {
	if !g.said.take(d.now()) {
		g.unsaid++
		return
	}
	d.note("command.refused", slog.String("device", s.Device), slog.String("home", s.Home), slog.String("action", s.Action),
		slog.String("command", s.ID), slog.String("code", string(s.Code)), slog.Int("left_out_before", g.unsaid))
	g.unsaid = 0
}

// EndDevice ends what a revoked device has here: its watches and questions end
// at once, and commands of it that were not sent are refused. Config.Allowed
// must say no before, or the device is back a moment later.
func (d *Dispatcher) EndDevice(name string) {
	d.mu.Lock()
	defer d.unlock()
	for _, c := range d.commands.byDevice[name] {
		switch {
		case c.status.Final:
		case c.recorded != nil:
			c.revoked = true
		case c.signed != nil:
			d.turnDown(c, refusalRevoked())
		}
	}
	g := d.guests[name]
	if g == nil {
		return
	}
	delete(d.guests, name)
	close(g.ended)
	for _, w := range g.watches {
		w.end()
	}
}
