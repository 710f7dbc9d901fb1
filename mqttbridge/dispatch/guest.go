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

	// Refusals of one device in the audit log: one in a while, with how many
	// were left out.
	saidBurst = 1
	saidEvery = 10 * time.Second
)

// A guest is one device that asked for something. Its fields are guarded by
// Dispatcher.mu.
type guest struct {
	commands, asks limiter
	sustained      limiter           // of its commands over hours
	said           limiter           // of its refusals in the audit log
	unsaid         int               // refusals that were left out of it
	last           mqttbridge.Status // the newest of these
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
		g = &guest{commands: per, asks: per, sustained: newLimiter(l.PerHour, time.Hour/time.Duration(l.PerHour)), said: newLimiter(saidBurst, saidEvery), ended: make(chan struct{})}
		d.guests[device] = g
	}
	return g
}

// idle reports whether nothing is lost when the guest is forgotten.
func (g *guest) idle(now time.Time) bool {
	return len(g.watches) == 0 && g.asking == 0 && g.commands.full(now) && g.asks.full(now) && g.sustained.full(now) &&
		g.unsaid == 0 && g.said.full(now) &&
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
// out is counted into the next line. It wants d.mu.
func (d *Dispatcher) noteRefused(g *guest, s mqttbridge.Status) {
	if !g.said.take(d.now()) {
		g.unsaid, g.last = g.unsaid+1, s
		return
	}
	d.lineRefused(g, s)
}

// noteLeftOut audits the newest refusal that was left out, when its turn has
// come: a flood that ended shows how large it was. It wants d.mu.
func (d *Dispatcher) noteLeftOut(g *guest) {
	if g.unsaid > 0 && g.said.take(d.now()) {
		g.unsaid-- // this one
		d.lineRefused(g, g.last)
	}
}

func (d *Dispatcher) lineRefused(g *guest, s mqttbridge.Status) {
	d.note("command.refused", slog.String("device", s.Device), slog.String("home", s.Home), slog.String("action", s.Action),
		slog.String("command", s.ID), slog.String("code", string(s.Code)), slog.Int("left_out_before", g.unsaid))
	g.unsaid, g.last = 0, mqttbridge.Status{}
}

// permit counts one command of a device, or says why it is one too many. It
// wants d.mu.
func (d *Dispatcher) permit(g *guest) *Refusal {
	now := d.now()
	if !g.commands.take(now) {
		return refuse(mqttbridge.CodeBusy, "too many commands at once; wait a moment and press again")
	}
	if !g.sustained.take(now) {
		wait := g.sustained.wait().Truncate(time.Second) + time.Second
		r := refuse(mqttbridge.CodeRate, "this device has used up its %d commands an hour; wait %v and press again", d.cfg.Limits.PerHour, wait)
		r.Until = now.Add(wait)
		return r
	}
	return nil
}

// EndDevice ends what a device that lost rights has here: its watches and
// questions end at once, and commands of it that were not sent are refused.
// Config.Allowed must say no before, or the device is back a moment later. When
// Config.Revoked says that it is revoked, all homes are told, which then trust
// its keys no longer; those that are away, when they return. EndDevice does not
// wait for the ledger.
func (d *Dispatcher) EndDevice(name string) {
	revoked := name != "" && d.cfg.Revoked(name)
	d.mu.Lock()
	defer d.unlock()
	if revoked {
		d.spread(name)
	}
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
