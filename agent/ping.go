package agent

import (
	"time"

	"github.com/sallyport/sallyport/protocol"
)

// A pinger remembers the pings that were not answered.
type pinger struct {
	seq     uint64
	last    time.Time // the latest ping
	sent    []sentPing
	lost    bool      // reported
	limited time.Time // an earlier limit for the oldest one; zero: none
}

type sentPing struct {
	seq uint64
	at  time.Time
}

func newPinger() pinger { return pinger{last: time.Now()} }

// next makes a ping.
func (p *pinger) next(now time.Time) protocol.Ping {
	p.seq++
	p.last = now
	if len(p.sent) < maxPendingPings { // the oldest one decides; more are not needed
		p.sent = append(p.sent, sentPing{p.seq, now})
	}
	return protocol.NewPing(p.seq)
}

// answered takes a pong: it answers all pings up to its own. It returns the
// round trip, and whether the peer had been reported lost.
func (p *pinger) answered(seq uint64, now time.Time) (rtt time.Duration, back bool) {
	if len(p.sent) == 0 || seq < p.sent[0].seq {
		return 0, false // an echo from before restart
	}
	for len(p.sent) > 0 && p.sent[0].seq <= seq {
		if p.sent[0].seq == seq {
			rtt = now.Sub(p.sent[0].at)
		}
		p.sent = p.sent[1:]
	}
	back, p.lost, p.limited = p.lost, false, time.Time{}
	return rtt, back
}

// restart forgets what is pending: only answers to pings from now on count,
// the first of them within d.
func (p *pinger) restart(now time.Time, d time.Duration) {
	p.sent = nil
	p.limited = now.Add(d)
}

// deadline is when the oldest ping counts as lost; zero: nothing is pending.
func (p *pinger) deadline() time.Time {
	if len(p.sent) == 0 || p.lost {
		return time.Time{}
	}
	d := p.sent[0].at.Add(pingLost)
	if !p.limited.IsZero() && p.limited.Before(d) {
		d = p.limited
	}
	return d
}

// ping does what is due and returns when to look again.
func (c *session) ping(now time.Time) time.Duration {
	if now.Sub(c.due) > pingLate {
		return c.recheck(now) // it was us who did not run: the answer may wait in a buffer
	}
	if d := c.pings.deadline(); !d.IsZero() && !now.Before(d) {
		c.pings.lost = true
		c.link.PingLost()
	}
	if !now.Before(c.nextPing(now)) {
		c.sendPing(now)
	}
	return c.untilPing(now)
}

// recheck asks the peer at once, with less patience than usual.
func (c *session) recheck(now time.Time) time.Duration {
	c.pings.restart(now, pingLostAwoken)
	c.sendPing(now)
	return c.untilPing(now)
}

func (c *session) sendPing(now time.Time) { c.send(c.pings.next(now)) }

func (c *session) nextPing(now time.Time) time.Time {
	if c.active(now) {
		return c.pings.last.Add(pingActive)
	}
	return c.pings.last.Add(pingIdle)
}

// untilPing is the time until the next ping or the next deadline.
func (c *session) untilPing(now time.Time) time.Duration {
	next := c.nextPing(now)
	if d := c.pings.deadline(); !d.IsZero() && d.Before(next) {
		next = d
	}
	wait := max(next.Sub(now), time.Millisecond)
	c.due = now.Add(wait)
	return wait
}

func (c *session) pong(m protocol.Pong, now time.Time) {
	rtt, back := c.pings.answered(m.Seq, now)
	if rtt > 0 {
		c.link.RTT(rtt)
	}
	if back {
		c.link.Alive()
	}
}
