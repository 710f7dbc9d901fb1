package uplink

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// pingLost: the peer is silent. The first such event already starts a
// replacement; the old session goes when the new one is ready, or when it is
// dead.
func (m *manager) pingLost(l *Link) {
	if _, live := m.links[l]; !live {
		return
	}
	switch {
	case l == m.pending, l.retired: // nothing depends on it
		l.cancel(errReplaced)
	case l == m.primary && !l.suspect:
		l.suspect = true
		m.log.Warn("the relay does not answer, opening a new session", "transport", l.Transport(), "addr", l.addr)
		m.strike(l)
		m.nextDial = time.Now()
	}
}

// alive takes pingLost back, unless a new session is already there.
func (m *manager) alive(l *Link) {
	if !l.suspect {
		return
	}
	l.suspect = false
	if l == m.primary && !l.leaving && m.dial != nil && !m.dialProbe {
		m.dial()
	}
}

// checkBlocked looks whether data waits to be sent and nothing of it moves,
// which also happens where small packets (pings) still pass. When it moves
// again before the new session is ready, the old one drains; see replace.
func (m *manager) checkBlocked(now time.Time) {
	l := m.primary
	if l == nil || l.suspect || l.leaving {
		return
	}
	if !l.stuck(now) {
		return
	}
	l.leaving = true
	m.log.Warn("nothing moves on the session any more, opening a new one", "transport", l.Transport(), "addr", l.addr)
	m.strike(l)
	m.nextDial = now
}

// strike counts a stall of a transport that another one can stand in for.
func (m *manager) strike(l *Link) {
	all := m.u.cfg.Transports
	name := l.transport.Name()
	if l.transport == all[len(all)-1] {
		return
	}
	now := time.Now()
	recent := slices.DeleteFunc(m.stalls[name], func(t time.Time) bool { return now.Sub(t) > strikeWindow })
	m.stalls[name] = append(recent, now)
	if len(m.stalls[name]) < 2 {
		return
	}
	delete(m.stalls, name)
	m.demoted, m.until = name, now.Add(demotionTime)
	m.log.Warn("this transport stalls too often here and is not used for a while", "transport", name, "for", demotionTime)
	at := m.u.cfg.Wall().Add(demotionTime)
	m.u.setStatus(func(s *Status) { s.Demoted, s.Until = name, at })
}

// goAway plans the new session that the relay asks for.
func (m *manager) goAway(l *Link, g protocol.GoAway) {
	if l != m.primary || l.leaving {
		return // a newer session is there or on its way
	}
	now := time.Now()
	l.leaving = true
	if g.Code == protocol.CodeReplaced {
		m.slow = true
		m.log.Warn("another running copy of this agent took over; is its data directory in use on two machines?", "reason", g.Reason)
		m.nextDial = now.Add(min(max(g.ReconnectIn, 0), maxReconnectIn) + m.backoff(now))
		return
	}
	wait := time.Duration(m.u.cfg.Rand() * float64(min(max(g.ReconnectIn, 0), maxReconnectIn)))
	m.tries = 0
	m.tryUntil = now.Add(wait).Add(min(max(g.TryFor, 0), maxTryFor))
	m.nextDial = now.Add(wait)
	m.log.Info("the relay asks for a new session", "reason", g.Reason, "in", wait.Round(time.Millisecond))
}

// What a relay may ask for at most: a mistake there must not keep us away.
const (
	maxReconnectIn = 5 * time.Minute
	maxTryFor      = 30 * time.Minute
)

// backoff returns the next pause: full jitter over a span that doubles.
func (m *manager) backoff(now time.Time) time.Duration {
	if m.slow {
		return backoffCap/2 + time.Duration(m.u.cfg.Rand()*float64(backoffCap/2))
	}
	span := backoffCap
	if m.tries < 5 { // 1, 2, 4, 8, 16 s
		span = backoffFirst << m.tries
	}
	if now.After(m.tryUntil) {
		m.tries++
	}
	return time.Duration(m.u.cfg.Rand() * float64(span))
}

func (m *manager) probeLater() {
	m.probes++
	m.nextProbe = time.Now().Add(probeWaits[min(m.probes, len(probeWaits)-1)])
}

// refused reports whether the relay said something that trying again soon
// does not change.
func refused(err error) bool {
	ce, ok := errors.AsType[*tunnel.CloseError](err)
	if !ok || !ce.Remote {
		return false
	}
	switch ce.Code {
	case protocol.CodeRevoked, protocol.CodeRefused, protocol.CodeReplaced, protocol.CodeVersion:
		return true
	}
	return false
}

func isRemote(err error) bool {
	ce, ok := errors.AsType[*tunnel.CloseError](err)
	return ok && ce.Remote
}

// networkChanged ends all waiting.
func (m *manager) networkChanged() {
	m.log.Debug("the network changed")
	m.tries, m.slow = 0, false
	m.demoted, m.until = "", time.Time{} // another network, another verdict
	clear(m.stalls)
	if m.dial != nil {
		m.dial() // it may wait on a path that is gone
	}
	m.u.setStatus(func(s *Status) { s.Demoted, s.Until = "", time.Time{} })
	now := time.Now()
	if m.primary == nil || !m.primary.leaving {
		m.nextDial = now
	}
	m.probes = 0
	if soon := now.Add(2 * time.Second); soon.Before(m.nextProbe) {
		m.nextProbe = soon
	}
	m.wakeUp()
}

func (m *manager) wakeUp() {
	for l := range m.links {
		l.poke()
	}
}

// watch looks for what no event tells: a machine that slept, addresses that
// changed, writes that do not move.
func (m *manager) watch(ctx context.Context) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	last, lastWall := time.Now(), m.u.cfg.Wall().Round(0)
	network := m.fingerprint()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, wall := time.Now(), m.u.cfg.Wall().Round(0)
		passed := now.Sub(last) // monotonic: stands still while a laptop sleeps
		if wall.Sub(lastWall)-passed > sleepGap || passed > sleepGap {
			m.post(m.awoke)
		}
		last, lastWall = now, wall
		m.post(func() { m.checkBlocked(now) })
		if n%3 == 2 {
			if f := m.fingerprint(); f != network {
				network = f
				m.u.Kick()
			}
		}
	}
}

func (m *manager) awoke() {
	m.log.Debug("the machine slept, or its clock was set")
	m.tries = 0
	if m.primary == nil {
		m.nextDial = time.Now()
	}
	m.wakeUp()
}

func (m *manager) fingerprint() string {
	if m.u.cfg.Network == nil {
		return ""
	}
	return m.u.cfg.Network()
}
