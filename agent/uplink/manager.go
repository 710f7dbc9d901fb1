package uplink

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A manager is one Run. Its goroutine owns all fields but events, done and wg;
// everybody else sends it functions to run.
type manager struct {
	u      *Uplink
	log    *slog.Logger
	serve  ServeFunc
	base   context.Context // of sessions: outlives Run's ctx by Grace
	events chan func()
	done   chan struct{} // closed when events is no longer read
	wg     sync.WaitGroup

	links   map[*Link]struct{}
	primary *Link // takes the streams
	pending *Link // served, not ready yet

	dial      context.CancelFunc // of the running race; nil: none runs
	dialProbe bool
	nextDial  time.Time // when a session is needed
	nextProbe time.Time // when the primary is not on the best transport
	probes    int       // failed or done since the primary is what it is

	preferred string // the transport that worked last
	stopping  bool

	tries    int       // grows the back-off
	fails    int       // since the last ready session
	tryUntil time.Time // GoAway.TryFor: until then the back-off does not grow
	slow     bool      // the relay refuses us: no use to hurry
	stalls   map[string][]time.Time
	demoted  string // transport …
	until    time.Time

	said   string // the last problem logged, so that a long outage is not a line a second
	saidAt time.Time
}

func newManager(ctx context.Context, u *Uplink, serve ServeFunc) *manager {
	return &manager{
		u: u, log: u.log, serve: serve, base: context.WithoutCancel(ctx),
		events: make(chan func()), done: make(chan struct{}),
		links: map[*Link]struct{}{}, stalls: map[string][]time.Time{}, preferred: u.cfg.Preferred(),
	}
}

// post hands f to the manager's goroutine; after the end it is dropped.
func (m *manager) post(f func()) {
	select {
	case m.events <- f:
	case <-m.done:
	}
}

func (m *manager) run(ctx context.Context) error {
	watchCtx, stopWatch := context.WithCancel(ctx)
	m.wg.Go(func() { m.watch(watchCtx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	m.nextDial = time.Now()
	for ctx.Err() == nil {
		if wait, ok := m.plan(ctx, time.Now()); ok {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
		select {
		case f := <-m.events:
			f()
		case <-timer.C:
		case <-m.u.kick:
			m.networkChanged()
		case <-ctx.Done():
		}
	}
	stopWatch()
	m.shutdown()
	return nil
}

// shutdown drains what is open, for at most Grace, and waits for everything.
func (m *manager) shutdown() {
	m.stopping = true
	for l := range m.links {
		l.stop.Store(true)
		l.retire()
	}
	grace := time.NewTimer(m.u.cfg.Grace)
	defer grace.Stop()
	for len(m.links) > 0 || m.dial != nil {
		select {
		case f := <-m.events:
			f()
		case <-grace.C:
			for l := range m.links {
				l.cancel(errStopping)
			}
		}
	}
	close(m.done)
	m.wg.Wait()
	m.setState(StateStopped)
}

var (
	errStopping = errors.New("the agent stops")
	errDrained  = errors.New("the time to drain is over")
	errNotReady = errors.New("the session did not become ready in time")
	errEnded    = errors.New("the session ended")
	errReplaced = errors.New("a newer session took over from one that stalled")
)

// needed reports whether a session is missing or about to be.
func (m *manager) needed() bool {
	return m.primary == nil || m.primary.suspect || m.primary.leaving
}

// plan starts the race that is due, or says how long to wait for the next.
func (m *manager) plan(ctx context.Context, now time.Time) (wait time.Duration, ok bool) {
	needed := m.needed()
	switch {
	case m.dial != nil:
		if needed && m.dialProbe {
			m.dial() // it ends at once, and the full race follows
		}
		return 0, false
	case m.pending != nil:
		return 0, false
	case needed:
		if now.Before(m.nextDial) {
			if m.primary == nil {
				m.waiting()
			}
			return m.nextDial.Sub(now), true
		}
		m.start(ctx, m.candidates(now), false)
		return 0, false
	}
	better := m.better(now)
	if len(better) == 0 {
		if now.Before(m.until) { // a demotion may be what hides a better one
			return m.until.Sub(now), true
		}
		return 0, false
	}
	if now.Before(m.nextProbe) {
		return m.nextProbe.Sub(now), true
	}
	m.start(ctx, better, true)
	return 0, false
}

// candidates are the transports of a full race: the remembered one first, then
// by preference, without a demoted one. Every second attempt after a failure
// takes the demoted one too: where the rest does not work at all, a bad
// transport is better than none.
func (m *manager) candidates(now time.Time) []tunnel.Transport {
	ts := slices.Clone(m.u.cfg.Transports)
	slices.SortStableFunc(ts, func(a, b tunnel.Transport) int { return m.rank(a, now) - m.rank(b, now) })
	if m.fails%2 == 0 && len(ts) > 1 && m.isDemoted(ts[len(ts)-1], now) {
		ts = ts[:len(ts)-1]
	}
	return ts
}

func (m *manager) rank(t tunnel.Transport, now time.Time) int {
	switch {
	case m.isDemoted(t, now):
		return 2
	case t.Name() == m.preferred:
		return 0
	}
	return 1
}

func (m *manager) isDemoted(t tunnel.Transport, now time.Time) bool {
	return t.Name() == m.demoted && now.Before(m.until)
}

// better are the transports that are preferred to the primary's.
func (m *manager) better(now time.Time) []tunnel.Transport {
	var ts []tunnel.Transport
	for _, t := range m.u.cfg.Transports {
		if t == m.primary.transport {
			break
		}
		if !m.isDemoted(t, now) {
			ts = append(ts, t)
		}
	}
	return ts
}

// start dials in the background.
func (m *manager) start(ctx context.Context, ts []tunnel.Transport, probe bool) {
	ctx, cancel := context.WithCancel(ctx)
	m.dial, m.dialProbe = cancel, probe
	if m.primary == nil {
		m.setState(StateConnecting)
	}
	m.wg.Go(func() {
		d, err := m.u.race(ctx, &m.wg, ts)
		canceled := ctx.Err() != nil
		cancel()
		m.post(func() { m.dialEnded(d, err, probe, canceled) })
	})
}

func (m *manager) dialEnded(d dialed, err error, probe, canceled bool) {
	m.dial = nil
	switch {
	case err == nil && (canceled || m.stopping): // it won while it was being called off
		m.wg.Go(func() { d.session.Close(protocol.CodeOK, "no longer needed") })
	case err == nil:
		m.begin(d, probe)
	case canceled:
	case probe:
		m.log.Debug("a better transport does not work yet", "err", err)
		m.probeLater()
	default:
		m.failed(err)
	}
}

// begin serves a new session.
func (m *manager) begin(d dialed, probe bool) {
	ctx, cancel := context.WithCancelCause(m.base)
	l := &Link{
		m: m, session: d.session, transport: d.transport, addr: d.addr.String(), probe: probe,
		cancel: cancel, drain: make(chan struct{}), wake: make(chan struct{}, 1), started: time.Now(), alone: true,
	}
	for old := range m.links {
		if !old.suspect && !old.stuck(l.started) {
			l.alone = false
		}
	}
	m.links[l] = struct{}{}
	m.pending = l
	l.deadline = time.AfterFunc(readyTimeout, func() { cancel(errNotReady) })
	m.wg.Go(func() {
		err := m.serve(ctx, d.session, l)
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		code, reason := protocol.CodeOK, ""
		if l.Stopping() {
			code, reason = protocol.CodeGoingAway, "the agent stops"
		}
		d.session.Close(code, reason)
		<-d.session.Done()
		if ce, ok := errors.AsType[*tunnel.CloseError](d.session.Err()); ok && (ce.Remote || err == nil) {
			err = ce
		}
		err = cmp.Or(err, errEnded)
		m.post(func() { m.ended(l, err) })
	})
}

// promote makes a ready session the primary one.
func (m *manager) promote(l *Link) {
	if _, live := m.links[l]; !live || l.ready || l.retired {
		return
	}
	l.ready = true
	l.deadline.Stop()
	if m.pending == l {
		m.pending = nil
	}
	old := m.primary
	m.primary, m.fails, m.slow, m.said = l, 0, false, ""
	m.probes, m.nextProbe = 0, time.Now().Add(probeWaits[0])
	l.stable = time.AfterFunc(stableAfter, func() { m.post(func() { m.stable(l) }) })
	name := l.transport.Name()
	if m.preferred != name {
		m.preferred = name
		m.wg.Go(func() { m.u.cfg.Remember(name) }) // it may wait for a disk
	}
	m.log.Info("connected", "transport", name, "addr", l.addr, "took", time.Since(l.started).Round(time.Millisecond))
	m.u.mu.Lock()
	m.u.primary = l
	m.u.mu.Unlock()
	m.u.setStatus(func(s *Status) {
		s.State, s.Since, s.Transport, s.Addr, s.NextTry = StateConnected, m.u.cfg.Wall(), name, l.addr, time.Time{}
		s.Revoked = false
	})
	if old != nil {
		m.replace(old, l)
	}
}

// replace ends an old primary session: at once when its peer is silent, after
// its streams otherwise.
func (m *manager) replace(old, by *Link) {
	if old.stable != nil {
		old.stable.Stop()
	}
	if old.suspect || old.stuck(time.Now()) {
		m.log.Warn("the stalled session is closed, its open streams are aborted", "transport", old.Transport(), "addr", old.addr)
		old.cancel(errReplaced)
		return
	}
	m.log.Debug("the older session drains", "transport", old.Transport(), "addr", old.addr, "newer", by.Transport())
	old.deadline = time.AfterFunc(drainTime, func() { old.cancel(errDrained) })
	old.retire()
	m.countDraining()
}

func (m *manager) stable(l *Link) {
	if m.primary != l {
		return
	}
	m.tries = 0
	at := m.u.cfg.Wall()
	m.wg.Go(func() { m.u.cfg.OnStable(at) })
}

// ended follows every session that began.
func (m *manager) ended(l *Link, err error) {
	delete(m.links, l)
	l.deadline.Stop()
	if l.stable != nil {
		l.stable.Stop()
	}
	switch l {
	case m.pending:
		m.pending = nil
		m.notReady(l, err)
	case m.primary:
		m.primary = nil
		m.u.mu.Lock()
		m.u.primary = nil
		m.u.mu.Unlock()
		m.lost(l, err)
	default:
		m.log.Debug("an older session ended", "transport", l.Transport(), "err", err)
	}
	m.countDraining()
}

// notReady follows a session that ended before it could take over.
func (m *manager) notReady(l *Link, err error) {
	if l.Stopping() {
		return
	}
	if !isRemote(err) { // it connects, but carries nothing
		m.strike(l)
	}
	if l.probe && !m.needed() {
		m.log.Debug("a better transport connects, but does not work yet", "transport", l.Transport(), "err", err)
		m.probeLater()
		return
	}
	m.failed(err)
}

// lost follows the end of the primary session.
func (m *manager) lost(l *Link, err error) {
	if l.Stopping() {
		return
	}
	m.log.Warn("the session to the relay ended", "transport", l.Transport(), "addr", l.addr, "err", err)
	m.noteError(err)
	m.slow = m.slow || refused(err)
	if !l.suspect && !l.leaving { // then a redial is planned or runs already
		m.nextDial = time.Now().Add(m.backoff(time.Now()))
	}
	m.setState(StateConnecting)
}

// failed plans the next attempt.
func (m *manager) failed(err error) {
	m.fails++
	m.slow = m.slow || refused(err)
	wait := m.backoff(time.Now())
	m.nextDial = time.Now().Add(wait)
	m.noteError(err)
	level := slog.LevelDebug
	if said := err.Error(); said != m.said || time.Since(m.saidAt) > 10*time.Minute {
		level, m.said, m.saidAt = slog.LevelWarn, said, time.Now()
	}
	msg := "cannot reach the relay, trying again"
	if m.slow {
		msg = "the relay refuses this agent, trying again now and then"
	}
	m.log.Log(m.base, level, msg, "in", wait.Round(time.Millisecond), "err", err)
}
