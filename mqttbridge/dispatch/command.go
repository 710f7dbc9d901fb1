package dispatch

import (
	"crypto/sha256"
	"log/slog"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A command is what is known of one press. Its fields are guarded by
// Dispatcher.mu; ID, Home, Action, Device and Created of the status never
// change.
type command struct {
	status mqttbridge.Status
	agent  string            // ID of the one that it went to: no other speaks about it
	digest [sha256.Size]byte // of what was signed
	life   time.Duration     // of its challenge

	// recorded is closed once the ledger answered; until then nothing else is
	// told about the command. denied is what it answered, when that was no.
	recorded chan struct{}
	denied   *Refusal
	revoked  bool // the device was, while the ledger was at work

	signed    *mqttbridge.Signed // nil once it was sent, or never will be
	seq       uint64             // of the frame that carried it
	stream    *stream            // that has it, or spoke of it last; nil: that ended
	asked     *stream            // that was asked what became of it
	delivered bool               // the home said so once
	settled   bool               // the home itself knows no end: it is not asked again
	until     time.Time          // when the relay gives it up
}

// settle brings a command to a state, tells the device, and has an end written
// to the ledger. It wants d.mu.
func (d *Dispatcher) settle(c *command, next mqttbridge.Status) {
	s := &c.status
	s.State, s.Final, s.Code, s.Reason = next.State, next.Final, next.Code, next.Reason
	s.AttemptsLeft, s.Until, s.At = next.AttemptsLeft, next.Until, next.At
	if s.State == mqttbridge.Delivered {
		c.delivered = true
	}
	if s.State != mqttbridge.Accepted {
		c.signed = nil
	}
	d.commands.put(c)
	if s.Final {
		d.writer.command(s.ID)
		d.note("command.finished", slog.String("device", s.Device), slog.String("home", s.Home), slog.String("action", s.Action),
			slog.String("command", s.ID), slog.String("state", string(s.State)), slog.String("code", string(s.Code)))
	}
	d.tellStatus(c.status)
}

// turnDown ends a command that surely did not leave the relay. It wants d.mu.
func (d *Dispatcher) turnDown(c *command, r *Refusal) {
	d.settle(c, mqttbridge.Status{State: mqttbridge.Refused, Final: true, Code: r.Code, Reason: r.Reason, At: d.now()})
}

// giveUp ends a command of which the relay does not know more. It wants d.mu.
func (d *Dispatcher) giveUp(c *command, reason string) {
	d.settle(c, mqttbridge.Status{State: mqttbridge.Unknown, Final: true, Reason: reason, At: d.now()})
}

// late reports whether a command that was not sent can only come too late: its
// challenge was made before it was signed.
func (d *Dispatcher) late(c *command, now time.Time) bool {
	return now.Sub(c.status.Created) >= c.life
}

// expire ends a command that waited too long for its home to read. It wants
// d.mu.
func (d *Dispatcher) expire(c *command) {
	d.settle(c, mqttbridge.Status{
		State: mqttbridge.Expired, Final: true, At: d.now(),
		Reason: c.status.Home + " did not take the command in time, so it was not sent; press again",
	})
}

// handOver marks a command as sent and returns what the stream has to write;
// nil: it ended while it waited. Marked first and written then: a command of
// which some bytes left must never look as if it had not been sent.
func (d *Dispatcher) handOver(c *command, seq uint64) *mqttbridge.Signed {
	allowed := d.cfg.Allowed(c.status.Device)
	d.mu.Lock()
	defer d.unlock()
	if c.signed == nil {
		return nil
	}
	if !allowed {
		d.turnDown(c, refusalRevoked())
		return nil
	}
	if d.late(c, d.now()) {
		d.expire(c)
		return nil
	}
	signed := c.signed
	c.seq, c.until = seq, d.now().Add(c.life+d.cfg.Limits.Silence)
	d.settle(c, mqttbridge.Status{State: mqttbridge.Sent, At: d.now()})
	return signed
}

// heard applies what an agent says about a command. It reports whether the
// agent may speak so: about a command that was sent to it, and not against
// what it said before. A number is that of the command frame which the agent
// answers; it is not needed, but must not be another's.
func (d *Dispatcher) heard(st *stream, seq uint64, said mqttbridge.Status) bool {
	d.mu.Lock()
	defer d.unlock()
	c := d.commands.byID[said.ID]
	if c == nil || c.agent != st.agent.ID || c.signed != nil || seq != 0 && seq != c.seq {
		return false
	}
	next, ok := cleanStatus(said, c.status.Created, d.now())
	if !ok {
		return false
	}
	switch have := c.status; {
	case have.State == mqttbridge.Unknown:
		if next.State == mqttbridge.Unknown {
			c.settled = true
			d.commands.put(c)
			return true
		}
		if !next.Final { // a page that shows an end is not sent back to waiting
			return true
		}
	case have.Final:
		return true // said before; the first end stands
	}
	if c.delivered && (next.State == mqttbridge.Refused || next.State == mqttbridge.Expired) {
		return false // "it did not run" would be a lie: the broker took it
	}
	if next.State == mqttbridge.Unknown {
		c.settled = true
	}
	if !next.Final {
		c.stream = st
		if c.status.State == next.State {
			return true
		}
		c.until = d.now().Add(d.cfg.Limits.Ack + d.cfg.Limits.Silence)
	}
	d.settle(c, next)
	return true
}

// Command returns one command of a device. Those of others, and those that
// nobody knows any more, are not found.
func (d *Dispatcher) Command(device, id string) (mqttbridge.Status, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.commands.byID[id]; c != nil && c.status.Device == device && c.recorded == nil {
		return c.status, true
	}
	if g := d.guests[device]; g != nil {
		for _, m := range g.memos {
			if m.status.ID == id {
				return m.status, true
			}
		}
	}
	return mqttbridge.Status{}, false
}

// now is the time as it is written down: the local clock, UTC.
func (d *Dispatcher) now() time.Time { return d.cfg.Now().UTC() }

func refusalRevoked() *Refusal {
	return refuse(mqttbridge.CodeRevoked, "this device is no longer allowed in; ask the owner for a new certificate")
}

func refusalOffline(home string) *Refusal {
	return refuse(mqttbridge.CodeOffline, "%s is not connected, so nothing was sent. Try again when it is back.", home)
}
