package flow

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

const (
	maxReason    = 255
	helloTimeout = 10 * time.Second
)

// A Session implements tunnel.Session over a Link.
type Session struct {
	link   Link
	cfg    Config
	log    *slog.Logger
	ledger ledger
	ctl    control
	post   post

	bytesIn, bytesOut atomic.Uint64
	sending           progress

	done chan struct{}

	mu       sync.Mutex // guards the fields below
	err      *tunnel.CloseError
	streams  map[uint64]*Stream
	newest   uint64    // the highest number of a stream that the peer opened
	theirs   int       // places that the peer's streams take
	queue    []*Stream // opened by the peer, not accepted yet
	accepted chan struct{}
	room     chan struct{} // a place became free
}

var _ tunnel.Session = (*Session)(nil)

// New starts a session on a link and takes it over. At the dialer it returns
// after the listener has said hello; at the listener it returns at once, and
// a dialer that does not say hello within 10 s is dropped.
func New(ctx context.Context, link Link, cfg Config) (*Session, error) {
	s := &Session{
		link: link, cfg: cfg, log: cfg.Logger,
		ctl:      control{writing: newGate()},
		post:     post{sending: newGate()},
		done:     make(chan struct{}),
		streams:  map[uint64]*Stream{},
		accepted: make(chan struct{}, 1),
		room:     make(chan struct{}, 1),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.ledger.budget = cfg.Budget
	if s.ledger.budget <= 0 {
		s.ledger.budget = DefaultBudget
	}
	if !cfg.Dialer {
		go s.runListener()
		return s, nil
	}
	if err := s.hello(ctx); err != nil {
		return nil, err
	}
	s.receiveDatagrams()
	go s.acceptLoop()
	go s.controlLoop()
	return s, nil
}

// OpenStream implements tunnel.Session.
func (s *Session) OpenStream(ctx context.Context) (tunnel.Stream, error) {
	if err := s.Err(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	lane, err := s.link.Open(ctx)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, s.ended(err)
	}
	st := s.add(lane, false)
	if st == nil {
		lane.CancelSend(protocol.CodeAborted)
		lane.CancelRecv(protocol.CodeAborted)
		return nil, s.Err()
	}
	return st, nil
}

// AcceptStream implements tunnel.Session.
func (s *Session) AcceptStream(ctx context.Context) (tunnel.Stream, error) {
	for {
		s.mu.Lock()
		if s.err == nil && len(s.queue) > 0 {
			st := s.queue[0]
			s.queue[0] = nil
			s.queue = s.queue[1:]
			st.place.accepted = true
			s.free(st)
			more := len(s.queue) > 0
			s.mu.Unlock()
			if more {
				wake(s.accepted) // for another caller
			}
			return st, nil
		}
		s.mu.Unlock()
		select {
		case <-s.accepted:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-s.done:
			return nil, s.Err()
		}
	}
}

// Close implements tunnel.Session.
func (s *Session) Close(code protocol.Code, reason string) error {
	if len(reason) > maxReason {
		reason = reason[:maxReason]
	}
	if s.end(&tunnel.CloseError{Code: code, Reason: reason}) {
		s.link.Close(code, reason, func() { s.sendClose(code, reason) })
	}
	return nil
}

// Done implements tunnel.Session.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err implements tunnel.Session.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		return nil
	}
	return s.err
}

// Peer implements tunnel.Session.
func (s *Session) Peer() tunnel.Peer { return s.cfg.Peer }

// Stats implements tunnel.Session.
func (s *Session) Stats() tunnel.Stats {
	s.mu.Lock()
	n := len(s.streams)
	s.mu.Unlock()
	return tunnel.Stats{
		RTT:       s.link.RTT(),
		Streams:   n,
		BytesIn:   s.bytesIn.Load(),
		BytesOut:  s.bytesOut.Load(),
		Unread:    s.ledger.unread.Load(),
		BlockedAt: s.sending.blockedAt(),
	}
}

// acceptLoop takes streams as they come, so that what they carry is counted
// from the first byte, whether or not somebody calls AcceptStream.
func (s *Session) acceptLoop() {
	for {
		lane, err := s.link.Accept()
		if err != nil {
			return // controlLoop says why
		}
		if !s.waitRoom() {
			s.fail(&tunnel.CloseError{Code: protocol.CodeProtocol, Reason: "too many open streams"}, true)
			return
		}
		if s.add(lane, true) == nil {
			return
		}
	}
}

// add registers a stream; nil when the session has ended.
func (s *Session) add(lane Lane, theirs bool) *Stream {
	st := newStream(s, lane, theirs)
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return nil
	}
	s.streams[st.id] = st
	if theirs {
		s.newest = max(s.newest, st.id)
		s.theirs++
		s.queue = append(s.queue, st)
	}
	s.mu.Unlock()
	lane.Bind(st.stopped)
	go st.pump()
	if theirs {
		wake(s.accepted)
	}
	return st
}

// remove forgets a stream that is over.
func (s *Session) remove(st *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[st.id] == st {
		delete(s.streams, st.id)
		s.ctl.forget(st.id)
	}
}

func (s *Session) list() []*Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Stream, 0, len(s.streams))
	for _, st := range s.streams {
		all = append(all, st)
	}
	return all
}

func (s *Session) stream(id uint64) *Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams[id]
}

// fail ends the session for a reason that is not Close. tell: the peer does
// not know yet.
func (s *Session) fail(err *tunnel.CloseError, tell bool) {
	first := s.end(err)
	var farewell func()
	if first && tell {
		farewell = func() { s.sendClose(err.Code, err.Reason) }
	}
	s.link.Close(err.Code, err.Reason, farewell)
}

// end marks the session as ended; false when it already was.
func (s *Session) end(err *tunnel.CloseError) bool {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return false
	}
	s.err = err
	streams := s.streams
	s.streams = map[uint64]*Stream{}
	s.queue = nil
	s.mu.Unlock()
	code := err.Code
	if code == protocol.CodeOK {
		code = protocol.CodeAborted
	}
	for _, st := range streams {
		st.sessionEnded(&tunnel.ResetError{Code: code, Remote: err.Remote})
	}
	close(s.done)
	return true
}

// ended is the session's error, or err when it has not ended yet.
func (s *Session) ended(err error) error {
	if e := s.Err(); e != nil {
		return e
	}
	return err
}

// progress tells since when the link has taken nothing.
type progress struct {
	mu      sync.Mutex // guards the fields below
	waiting int
	since   time.Time
}

func (p *progress) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting == 0 {
		p.since = time.Now()
	}
	p.waiting++
}

func (p *progress) end(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting--
	if n > 0 {
		p.since = time.Now()
	}
}

func (p *progress) blockedAt() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting == 0 {
		return time.Time{}
	}
	return p.since
}
