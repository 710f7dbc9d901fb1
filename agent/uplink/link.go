package uplink

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A Link is one served session as its serve function sees it. Its methods are
// safe for concurrent use and do not wait for the network.
type Link struct {
	m         *manager
	session   tunnel.Session
	transport tunnel.Transport
	addr      string
	probe     bool // dialled to move up, not because a session was missing
	alone     bool // no older session worked when this one began

	cancel  context.CancelCauseFunc // ends serve now
	drain   chan struct{}           // closed: finish the streams
	wake    chan struct{}           // check the peer now
	stop    atomic.Bool             // the agent ends, as opposed to a newer session
	rtt     atomic.Int64
	started time.Time

	// Below: touched by the manager's goroutine only.
	ready    bool
	retired  bool // drain is closed
	suspect  bool // a ping was not answered in time
	leaving  bool // GoAway came
	stable   *time.Timer
	deadline *time.Timer
}

// Ready says that the session works: it becomes the primary one and an older
// one drains.
func (l *Link) Ready() { l.m.post(func() { l.m.promote(l) }) }

// Alone reports whether no older session of this agent worked any more when
// this one began. The relay is told: it may not have noticed.
func (l *Link) Alone() bool { return l.alone }

// PingLost says that a ping was not answered in time. A replacement is dialled
// at once; it takes over even while this session lives.
func (l *Link) PingLost() { l.m.post(func() { l.m.pingLost(l) }) }

// Alive says that the peer answered after PingLost.
func (l *Link) Alive() { l.m.post(func() { l.m.alive(l) }) }

// GoAway says that the relay asked for a new session.
func (l *Link) GoAway(g protocol.GoAway) { l.m.post(func() { l.m.goAway(l, g) }) }

// RTT notes a measured round trip for Status.
func (l *Link) RTT(d time.Duration) { l.rtt.Store(int64(d)) }

// Draining is closed when the session should finish its streams: a newer one
// took over, or (see Stopping) the agent ends.
func (l *Link) Draining() <-chan struct{} { return l.drain }

// Stopping reports whether the agent ends. It is meaningful once Draining is
// closed; a drained link may still become a stopping one.
func (l *Link) Stopping() bool { return l.stop.Load() }

// Wake receives when the machine slept or its network changed: the peer should
// be asked at once whether it is still there.
func (l *Link) Wake() <-chan struct{} { return l.wake }

// Transport returns the name of the session's transport.
func (l *Link) Transport() string { return l.transport.Name() }

// stuck reports whether data waits to be sent and nothing of it moved for a
// while.
func (l *Link) stuck(now time.Time) bool {
	since := l.session.Stats().BlockedAt
	return !since.IsZero() && now.Sub(since) >= stallTime
}

func (l *Link) retire() {
	if !l.retired {
		l.retired = true
		close(l.drain)
	}
}

func (l *Link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}
