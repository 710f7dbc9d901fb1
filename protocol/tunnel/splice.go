package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol"
)

// A Conn is a connection whose two directions end separately: *net.TCPConn,
// *net.UnixConn, *tls.Conn, Stream.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// SpliceOptions are the optional wishes of Splice; the zero value is fine.
type SpliceOptions struct {
	// Idle ends the splice with CodeIdle when no byte was delivered in either
	// direction for this long. 0: never.
	Idle time.Duration
	// OnBytes is told what was delivered just now, in bytes: one of the two is
	// 0. Both directions call it, at the same time. It must not block.
	OnBytes func(aToB, bToA int64)
}

// SpliceResult says how a splice went.
type SpliceResult struct {
	AtoB, BtoA int64         // bytes delivered
	Err        error         // nil: both directions ended cleanly
	Code       protocol.Code // what Err is on the wire; CodeOK without one
}

// Splice copies both ways between a and b until both directions have ended,
// and owns both: when it returns they are closed and no goroutine of its own
// is left. Deadlines set before are cleared.
//
//   - io.EOF on one end becomes CloseWrite on the other; the opposite direction
//     goes on for as long as it likes.
//   - Any other error on either end aborts both (see Abort), with the code that
//     the error carries, otherwise CodeAborted.
//   - The end of ctx aborts both. Its cause gives the code when it carries one
//     (a *CloseError, a *ResetError), otherwise it is CodeAborted.
func Splice(ctx context.Context, a, b Conn, o SpliceOptions) SpliceResult {
	s := &splicing{options: o, start: time.Now()}
	s.ab = half{name: "a to b", src: a, dst: b}
	s.ba = half{name: "b to a", src: b, dst: a}
	a.SetDeadline(time.Time{})
	b.SetDeadline(time.Time{})

	unwatch := s.watch(ctx)
	var back sync.WaitGroup
	back.Go(s.copyBtoA)
	s.copyAtoB()
	back.Wait()
	unwatch()

	r := SpliceResult{AtoB: s.ab.bytes.Load(), BtoA: s.ba.bytes.Load(), Err: s.err, Code: s.code}
	if r.Err == nil {
		a.Close()
		b.Close()
	}
	return r
}

// splicing is one run of Splice.
type splicing struct {
	ab, ba  half
	options SpliceOptions
	start   time.Time
	moved   atomic.Int64 // when bytes were last delivered, as time since start; kept only with an idle limit

	mu    sync.Mutex // guards what follows
	err   error      // the first failure; later ones are its echo
	code  protocol.Code
	over  bool           // both directions have ended: callbacks do nothing any more
	idle  *time.Timer    // set once, before enter lets checkIdle begin
	calls sync.WaitGroup // callbacks at work
}

// half is one direction.
type half struct {
	name     string
	src, dst Conn
	bytes    atomic.Int64
	ended    atomic.Bool // src is at its end and dst was told: nothing is written to dst any more
}

func (s *splicing) copyAtoB() { s.run(&s.ab, &s.ba) }
func (s *splicing) copyBtoA() { s.run(&s.ba, &s.ab) }

// run copies one direction to its end.
func (s *splicing) run(h, opposite *half) {
	err := s.copy(h)
	if err == nil {
		// The kernel reports a reset to one caller only. When that was a Write
		// of the opposite direction, our Read has got a plain 0, which must not
		// be passed on as an end.
		if tcp := tcpBelow(h.src); tcp != nil && wasReset(tcp) && !opposite.ended.Load() {
			err = errResetByPeer
		}
	}
	if err == nil {
		h.ended.Store(true)
		err = h.dst.CloseWrite()
	}
	if err != nil {
		s.fail(fmt.Errorf("copy %s: %w", h.name, err), codeOf(err))
	}
}

var errResetByPeer = errors.New("connection reset by peer")

// tcpBelow returns the TCP connection that c is or wraps, nil when none.
func tcpBelow(c net.Conn) *net.TCPConn {
	for {
		switch w := c.(type) {
		case *net.TCPConn:
			return w
		case interface{ NetConn() net.Conn }:
			c = w.NetConn()
		default:
			return nil
		}
	}
}

// delivered counts n bytes that h has written.
func (s *splicing) delivered(h *half, n int64) {
	if n <= 0 {
		return
	}
	h.bytes.Add(n)
	if s.options.Idle > 0 {
		s.moved.Store(int64(time.Since(s.start)))
	}
	if s.options.OnBytes == nil {
		return
	}
	if h == &s.ab {
		s.options.OnBytes(n, 0)
	} else {
		s.options.OnBytes(0, n)
	}
}

// fail ends the splice: the first call decides why, and aborts both ends.
func (s *splicing) fail(err error, code protocol.Code) {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err, s.code = err, code
	}
	s.mu.Unlock()
	if first {
		Abort(s.ab.src, code)
		Abort(s.ba.src, code)
	}
}

// codeOf returns what err means on the wire.
func codeOf(err error) protocol.Code {
	if e, ok := errors.AsType[*ResetError](err); ok && e.Code != protocol.CodeOK {
		return e.Code
	}
	if e, ok := errors.AsType[*CloseError](err); ok && e.Code != protocol.CodeOK {
		return e.Code
	}
	return protocol.CodeAborted
}

// watch looks after ctx and the idle limit. The function that it returns ends
// that, and returns when no callback is left.
func (s *splicing) watch(ctx context.Context) (unwatch func()) {
	stop := context.AfterFunc(ctx, func() {
		if !s.enter() {
			return
		}
		defer s.calls.Done()
		cause := context.Cause(ctx)
		s.fail(cause, codeOf(cause))
	})
	if s.options.Idle > 0 {
		s.mu.Lock()
		s.idle = time.AfterFunc(s.options.Idle, s.checkIdle)
		s.mu.Unlock()
	}
	return func() {
		stop()
		s.mu.Lock()
		s.over = true
		s.mu.Unlock()
		s.calls.Wait()
		if s.idle != nil {
			s.idle.Stop()
		}
	}
}

// enter lets a callback begin, unless the splice is over.
func (s *splicing) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	s.calls.Add(1)
	return true
}

func (s *splicing) checkIdle() {
	if !s.enter() {
		return
	}
	defer s.calls.Done()
	quiet := time.Since(s.start) - time.Duration(s.moved.Load())
	if left := s.options.Idle - quiet; left > 0 {
		s.idle.Reset(left)
		return
	}
	s.fail(fmt.Errorf("idle for %s", s.options.Idle), protocol.CodeIdle)
}
