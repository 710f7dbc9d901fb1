package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/agent/uplink"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// Times of the control stream.
//
// A ping and its pong cost about 0.5 kB with all headers and acknowledgements:
// an idle home spends 17,280 of them a day, some 9 MB; one with visitors at
// most 29 MB.
const (
	helloTimeout    = 10 * time.Second // Hello → Welcome → Registered
	controlWrite    = 10 * time.Second
	pingActive      = 1500 * time.Millisecond // streams are open, or were within activeFor, or the session is that young
	pingIdle        = 5 * time.Second
	activeFor       = 10 * time.Minute
	pingLost        = 5 * time.Second
	pingLostAwoken  = 2 * time.Second        // after sleep or a network change: most likely gone
	pingLate        = 2 * time.Second        // a timer so late means that this process stood still
	drainLinger     = 2 * time.Second        // a stream that the relay opened just before it knew of the newer session
	stopLinger      = 300 * time.Millisecond // last bytes on their way
	renewInterval   = time.Hour
	maxPendingPings = 64
)

// A session is the agent's half of one tunnel session: the control stream and
// the data streams that the relay opens.
type session struct {
	a    *Agent
	s    tunnel.Session
	link *uplink.Link
	log  *slog.Logger
	ctl  tunnel.Stream

	out      chan protocol.Message // to the writer
	in       chan protocol.Message // from the reader
	readErr  chan error
	arrived  chan struct{} // a data stream was opened
	open     atomic.Int64  // data streams
	began    int64         // Unix nanoseconds
	lastOpen atomic.Int64  // when one ended last, Unix nanoseconds; 0: none did

	seq     uint64 // of the last Register
	version uint64 // of the list that it carried
	asked   bool   // it was not answered yet
	pings   pinger
	due     time.Time // when the ping timer was to fire

	features []string // that the relay has too; set before the session is the latest
}

// serve runs one session; it is the uplink's ServeFunc.
func (a *Agent) serve(ctx context.Context, s tunnel.Session, link *uplink.Link) error {
	c := &session{
		a: a, s: s, link: link, began: time.Now().UnixNano(), log: a.log.With("transport", link.Transport()),
		out: make(chan protocol.Message, 16), in: make(chan protocol.Message, 16), readErr: make(chan error, 1),
		arrived: make(chan struct{}, 1), pings: newPinger(),
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	err := c.run(ctx, &wg)
	if a.latest.CompareAndSwap(c, nil) {
		a.roads.changed()
	}
	cancel()
	code := protocol.CodeOK
	switch {
	case link.Stopping():
		code = protocol.CodeGoingAway
	case errors.Is(err, protocol.ErrMalformed):
		code = protocol.CodeProtocol
	case errors.Is(err, errVersion):
		code = protocol.CodeVersion
	}
	s.Close(code, reasonOf(err))
	if c.ctl != nil {
		c.ctl.Reset(code) // its owner ends it, after the session's reason is on its way
	}
	wg.Wait()
	return err
}

func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	s := err.Error()
	return s[:min(len(s), 200)]
}

var errVersion = errors.New("the relay speaks another protocol version")

func (c *session) run(ctx context.Context, wg *sync.WaitGroup) error {
	if err := c.hello(ctx); err != nil {
		return err
	}
	wg.Go(c.read)
	wg.Go(func() { c.write(ctx) })
	wg.Go(func() { c.accept(ctx, wg) })
	return c.loop(ctx)
}

// hello opens the control stream and agrees on a version.
func (c *session) hello(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	ctl, err := c.s.OpenStream(ctx)
	if err != nil {
		return fmt.Errorf("open the control stream: %w", err)
	}
	c.ctl = ctl
	stop := context.AfterFunc(ctx, func() { ctl.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	hello := protocol.Hello{Versions: []int{protocol.Version}, Features: features, Instance: c.a.instance, Software: c.a.cfg.Software, Alone: c.link.Alone()}
	if err := protocol.WriteMessage(ctl, hello); err != nil {
		return fmt.Errorf("send hello: %w", err)
	}
	m, err := readMessage(ctl)
	if err != nil {
		return fmt.Errorf("wait for the relay's welcome: %w", err)
	}
	w, ok := m.(protocol.Welcome)
	if !ok {
		return fmt.Errorf("the relay answered hello with a message of type %d: %w", m.Type(), protocol.ErrMalformed)
	}
	if w.Version != protocol.Version {
		return fmt.Errorf("%w: %d, this agent speaks %d", errVersion, w.Version, protocol.Version)
	}
	c.features = w.Features
	c.a.latest.Store(c)
	c.a.roads.changed()
	c.a.welcome(w, c.s.Peer())
	return nil
}

// readMessage skips messages of types that this version does not know.
func readMessage(r io.Reader) (protocol.Message, error) {
	for {
		m, err := protocol.ReadMessage(r)
		if _, unknown := errors.AsType[*protocol.UnknownTypeError](err); !unknown {
			return m, err
		}
	}
}

func (c *session) read() {
	for {
		m, err := readMessage(c.ctl)
		if err != nil {
			c.readErr <- err // buffered; nobody else writes it
			return
		}
		select {
		case c.in <- m:
		case <-c.s.Done():
			return
		}
	}
}

// write is the only writer of the control stream once hello is over. A failed
// write ends the session.
func (c *session) write(ctx context.Context) {
	for {
		select {
		case m := <-c.out:
			c.ctl.SetWriteDeadline(time.Now().Add(controlWrite))
			if err := protocol.WriteMessage(c.ctl, m); err != nil {
				c.s.Close(protocol.CodeTimeout, "the control stream is stuck")
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// send queues a message. When the queue is full the peer does not read, and
// the writer's deadline will end the session.
func (c *session) send(m protocol.Message) {
	select {
	case c.out <- m:
	default:
		c.log.Debug("the control stream is stuck, a message is dropped", "type", m.Type())
	}
}

// accept serves the streams that the relay opens, each in its own goroutine.
// Those beyond Config.MaxStreams it resets at once: each would become a socket
// at home, and the relay is not trusted with how many there are.
func (c *session) accept(ctx context.Context, wg *sync.WaitGroup) {
	var said time.Time
	for {
		s, err := c.s.AcceptStream(ctx)
		if err != nil {
			return // the session is over: loop sees it
		}
		if c.a.streams.Add(1) > int64(c.a.cfg.MaxStreams) {
			c.a.streams.Add(-1)
			s.Reset(protocol.CodeOverload)
			if now := time.Now(); said.IsZero() || now.Sub(said) >= time.Minute {
				said = now
				c.log.Warn("too many streams are open, more are refused", "most", c.a.cfg.MaxStreams)
			}
			continue
		}
		c.open.Add(1)
		select {
		case c.arrived <- struct{}{}:
		default:
		}
		wg.Go(func() { c.serveStream(ctx, s) })
	}
}

func (c *session) serveStream(ctx context.Context, s tunnel.Stream) {
	defer func() {
		c.lastOpen.Store(time.Now().UnixNano())
		c.open.Add(-1)
		c.a.streams.Add(-1)
	}()
	c.a.table.ServeStream(ctx, s)
}

// active reports whether visitors are here or were lately. A young session
// counts, too: what ended the one before may happen again.
func (c *session) active(now time.Time) bool {
	last := max(c.lastOpen.Load(), c.began)
	return c.open.Load() > 0 || now.UnixNano()-last < int64(activeFor)
}

// loop is the session's life after hello.
func (c *session) loop(ctx context.Context) error {
	changed, names := c.register(), c.sayNames()
	answerBy := time.NewTimer(helloTimeout)
	defer answerBy.Stop()
	c.sendPing(time.Now())
	ping := time.NewTimer(c.untilPing(time.Now()))
	defer ping.Stop()
	renew := time.NewTicker(renewInterval)
	defer renew.Stop()
	c.renew()
	draining := c.link.Draining()
	var quiet quiet
	quietTick := time.NewTicker(100 * time.Millisecond)
	quietTick.Stop()
	defer quietTick.Stop()
	for {
		select {
		case m := <-c.in:
			if err := c.handle(m); err != nil {
				return err
			}
			if !c.asked {
				answerBy.Stop()
			}
		case err := <-c.readErr:
			return c.ended(err)
		case <-c.s.Done():
			return c.s.Err()
		case <-changed:
			changed = c.register()
			answerBy.Reset(helloTimeout)
		case <-names:
			names = c.sayNames()
		case <-answerBy.C:
			return errors.New("the relay does not answer the list of services")
		case <-ping.C:
			ping.Reset(c.ping(time.Now()))
		case <-c.arrived:
			ping.Reset(c.untilPing(time.Now()))
		case <-c.link.Wake():
			ping.Reset(c.recheck(time.Now()))
		case <-renew.C:
			c.a.compareClocks()
			c.a.saveClock()
			c.renew()
		case <-draining:
			draining = nil
			if c.link.Stopping() {
				c.send(protocol.GoAway{Code: protocol.CodeGoingAway, Reason: "the agent stops"})
			}
			quietTick.Reset(100 * time.Millisecond)
		case <-quietTick.C:
			if quiet.over(c, time.Now()) {
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// ended explains the end of the control stream. When the session is over too,
// its reason says more.
func (c *session) ended(err error) error {
	select {
	case <-c.s.Done():
		return c.s.Err()
	case <-time.After(100 * time.Millisecond): // the session's end may follow on its heels
	}
	if errors.Is(err, io.EOF) {
		return errors.New("the relay ended the control stream")
	}
	return fmt.Errorf("control stream: %w", err)
}

func (c *session) handle(m protocol.Message) error {
	switch m := m.(type) {
	case protocol.Ping:
		c.send(protocol.Pong(m))
	case protocol.Pong:
		c.pong(m, time.Now())
	case protocol.Registered:
		c.registered(m)
	case protocol.GoAway:
		c.link.GoAway(m)
	case protocol.Renewed:
		c.a.renewed(m)
	case protocol.Named:
		c.a.zone.named(m)
	case protocol.TXTSet:
		c.a.zone.txtSet(m)
	default:
		return fmt.Errorf("the relay sent a message of type %d: %w", m.Type(), protocol.ErrMalformed)
	}
	return nil
}

// register sends the whole list and returns what tells of the next change.
func (c *session) register() <-chan struct{} {
	version, services, changed := c.a.offer.list()
	c.seq++
	c.version, c.asked = version, true
	own := make([]protocol.Service, len(services))
	for i, s := range services {
		own[i] = withHost(s, c.a.identity.Load().Domain)
	}
	c.send(protocol.Register{Seq: c.seq, Services: own})
	return changed
}

func (c *session) registered(m protocol.Registered) {
	if !c.asked || m.Seq != c.seq {
		return // overtaken by a newer list, answered twice, or never asked
	}
	c.asked = false
	// The relay takes the list of the newest session only; on an older one it
	// just says how things stand.
	if latest := c.a.latest.Load(); latest == nil || latest == c {
		c.a.offer.answer(c.version, m.Services)
	}
	c.link.Ready()
	if in := c.a.inside.opened(); in != nil {
		in.certs.Connected()
	}
}

// quiet decides when a draining session may go.
type quiet struct {
	since time.Time
	bytes uint64
}

// over reports whether no stream has been open for a moment. An agent that
// stops does not wait for streams that carry nothing, either.
func (q *quiet) over(c *session, now time.Time) bool {
	linger := drainLinger
	busy := c.open.Load() > 0
	if c.link.Stopping() {
		linger = stopLinger
		st := c.s.Stats()
		if bytes := st.BytesIn + st.BytesOut; bytes != q.bytes {
			q.bytes, busy = bytes, true
		} else {
			busy = false
		}
		if c.open.Load() == 0 && c.lastOpen.Load() == 0 {
			return true // never had one
		}
	}
	if busy || q.since.IsZero() {
		q.since = now
		return false
	}
	return now.Sub(q.since) >= linger
}
