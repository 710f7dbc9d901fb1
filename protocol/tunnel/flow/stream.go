package flow

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A Stream implements tunnel.Stream over a Lane.
type Stream struct {
	s      *Session
	lane   Lane
	id     uint64
	theirs bool
	place  place // of theirs; guarded by s.mu
	taker  taker // of datagrams; guarded by s.post.mu

	reading gate // one Read at a time
	writing gate // one Write or CloseWrite at a time

	mu     sync.Mutex // guards the fields below, except channels and deadlines
	in     inbound
	out    outbound
	closed bool // Close or Reset was called, or the stream was reset
}

type inbound struct {
	buf      buffer
	charged  int // what the ledger knows of buf.held
	window   window
	stalled  time.Time // since when the oldest unread byte waits, or the last read
	err      error     // what Read returns after buf
	ended    bool      // the lane has nothing more for us
	wake     chan struct{}
	deadline deadline
}

type outbound struct {
	sent, limit int64
	busy        bool  // a Write is under way
	err         error // what Write returns
	ended       bool  // End or CancelSend was called
	wake        chan struct{}
	deadline    deadline
}

var _ tunnel.Stream = (*Stream)(nil)

func newStream(s *Session, lane Lane, theirs bool) *Stream {
	st := &Stream{s: s, lane: lane, id: lane.ID(), theirs: theirs, reading: newGate(), writing: newGate()}
	st.in.wake = make(chan struct{}, 1)
	st.in.window = window{granted: InitialWindow, size: InitialWindow}
	st.out.wake = make(chan struct{}, 1)
	st.out.limit = InitialWindow
	return st
}

// Read implements net.Conn.
func (st *Stream) Read(p []byte) (int, error) {
	st.reading.lock()
	defer st.reading.unlock()
	for {
		expired := st.in.deadline.wait()
		if isClosed(expired) {
			return 0, os.ErrDeadlineExceeded
		}
		if n, err := st.take(p); n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		select {
		case <-st.in.wake:
		case <-expired:
		}
	}
}

// take reads what is there and grants the peer as much again.
func (st *Stream) take(p []byte) (int, error) {
	st.mu.Lock()
	if st.in.buf.len == 0 {
		err := st.in.err
		st.mu.Unlock()
		return 0, err
	}
	now := time.Now()
	n := st.in.buf.read(p)
	st.charge()
	st.in.stalled = now
	due, want := st.in.window.consume(n, now, st.s.link.RTT())
	over := st.in.ended
	st.settle()
	st.mu.Unlock()
	st.s.ledger.unread.Add(-int64(n))
	if due && !over {
		st.grant(want, now)
	}
	return n, nil
}

func (st *Stream) grant(want int64, now time.Time) {
	var grown int64
	if want > 0 {
		if grown = st.s.ledger.grow(want); grown < want {
			st.s.reclaim(now)
			grown += st.s.ledger.grow(want - grown)
		}
	}
	st.mu.Lock()
	if st.closed || st.in.ended {
		st.mu.Unlock()
		st.s.ledger.giveBack(grown)
		return
	}
	limit := st.in.window.grant(grown)
	st.mu.Unlock()
	st.s.sendCredit(st.id, limit)
}

// Write implements net.Conn.
func (st *Stream) Write(p []byte) (n int, err error) {
	st.writing.lock()
	defer st.writing.unlock()
	for {
		expired := st.out.deadline.wait()
		room, err := st.room(len(p) - n)
		switch {
		case err != nil:
			return n, err
		case isClosed(expired):
			st.idle()
			return n, os.ErrDeadlineExceeded
		case n == len(p):
			st.idle()
			return n, nil
		case room == 0:
			select {
			case <-st.out.wake:
			case <-expired:
			}
			continue
		}
		st.s.sending.begin()
		m, err := st.lane.Send(p[n:n+room], expired)
		st.s.sending.end(m)
		n += m
		if err := st.sent(m, err); err != nil {
			return n, err
		}
	}
}

// room begins or continues a Write: how much of want may go now.
func (st *Stream) room(want int) (int, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.out.err != nil {
		st.out.busy = false
		return 0, st.out.err
	}
	st.out.busy = true
	return int(min(int64(want), st.out.limit-st.out.sent, maxSend)), nil
}

// idle ends a Write.
func (st *Stream) idle() {
	st.mu.Lock()
	st.out.busy = false
	st.mu.Unlock()
}

// sent accounts what Send did and decides what its error means to the caller.
func (st *Stream) sent(n int, err error) error {
	st.s.bytesOut.Add(uint64(n))
	st.mu.Lock()
	st.out.sent += int64(n)
	if err == nil {
		st.mu.Unlock()
		return nil
	}
	st.out.busy = false
	if st.out.err != nil { // it failed because we ended the stream
		err = st.out.err
		st.mu.Unlock()
		return err
	}
	st.mu.Unlock()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if e, ok := errors.AsType[*tunnel.ResetError](err); ok {
		st.stopped(e.Code)
		return err
	}
	<-st.s.done // the link broke; controlLoop notices, too, and ends the session
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.out.err
}

// credit raises the limit of what we may send.
func (st *Stream) credit(limit int64) {
	st.mu.Lock()
	st.out.limit = max(st.out.limit, limit)
	st.mu.Unlock()
	wake(st.out.wake)
}

// CloseWrite implements tunnel.Stream.
func (st *Stream) CloseWrite() error {
	st.writing.lock()
	defer st.writing.unlock()
	st.mu.Lock()
	if err := st.out.err; err != nil {
		st.mu.Unlock()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	}
	st.endWrite()
	st.mu.Unlock()
	st.lane.End()
	return nil
}

// endWrite marks the clean end. The caller holds mu and calls lane.End after.
func (st *Stream) endWrite() {
	st.out.err = net.ErrClosed
	st.out.ended = true
	st.settle()
}

// Close implements net.Conn. With a Write under way it resets the stream: the
// peer must not take the part for the whole.
func (st *Stream) Close() error {
	st.mu.Lock()
	if st.out.busy {
		st.mu.Unlock()
		st.Reset(protocol.CodeAborted)
		return nil
	}
	if st.closed {
		st.mu.Unlock()
		return nil
	}
	st.closed = true
	end, stop := !st.out.ended, !st.in.ended
	if end {
		st.endWrite()
	}
	st.dropRead(net.ErrClosed)
	st.mu.Unlock()
	if end {
		st.lane.End()
	}
	if stop {
		st.lane.CancelRecv(protocol.CodeAborted)
	}
	st.finish()
	return nil
}

// Reset implements tunnel.Stream.
func (st *Stream) Reset(code protocol.Code) { st.reset(code, false) }

// reset aborts both directions, for us or because the peer did.
func (st *Stream) reset(code protocol.Code, remote bool) {
	st.mu.Lock()
	if st.closed {
		st.mu.Unlock()
		return
	}
	st.closed = true
	err := &tunnel.ResetError{Code: code, Remote: remote}
	if st.out.err == nil || st.out.ended {
		st.out.err = err
	}
	st.out.ended = true
	st.dropRead(err)
	st.mu.Unlock()
	st.lane.CancelSend(code)
	st.lane.CancelRecv(code)
	st.finish()
}

// stopped ends the sending direction because the peer does not read on.
func (st *Stream) stopped(code protocol.Code) {
	st.mu.Lock()
	if st.out.ended {
		st.mu.Unlock()
		return
	}
	st.out.err = &tunnel.ResetError{Code: code, Remote: true}
	st.out.ended = true
	st.settle()
	st.mu.Unlock()
	st.lane.CancelSend(code)
	wake(st.out.wake)
}

// sessionEnded fails all calls. What came with its clean end stays readable.
func (st *Stream) sessionEnded(err *tunnel.ResetError) {
	st.mu.Lock()
	st.closed = true
	if !st.out.ended {
		st.out.err = err
		st.out.ended = true
	}
	if st.in.err != io.EOF {
		st.dropRead(err)
	}
	st.mu.Unlock()
	st.finish()
}

// dropRead empties the buffer and makes Read return err. The caller holds mu.
func (st *Stream) dropRead(err error) {
	if st.in.err != net.ErrClosed {
		st.in.err = err
	}
	st.s.ledger.unread.Add(-int64(st.in.buf.drop()))
	st.charge()
	st.settle()
}

// finish wakes whoever waits on a stream that is over.
func (st *Stream) finish() {
	wake(st.in.wake)
	wake(st.out.wake)
	st.in.deadline.stop()
	st.out.deadline.stop()
}

// settle gives back what the stream does not need any more, and has the
// session forget it when both directions are over. The caller holds mu.
func (st *Stream) settle() {
	if st.in.ended && st.out.ended {
		st.s.leave(st)
	}
	if !st.closed && (!st.in.ended || st.in.buf.len > 0) {
		return
	}
	st.s.ledger.giveBack(st.in.window.shrink())
	if st.in.ended && st.out.ended {
		st.s.remove(st)
	}
}

// LocalAddr implements net.Conn.
func (st *Stream) LocalAddr() net.Addr { return st.s.cfg.Local }

// RemoteAddr implements net.Conn: the peer of the session.
func (st *Stream) RemoteAddr() net.Addr { return st.s.cfg.Peer.Addr }

// SetDeadline implements net.Conn.
func (st *Stream) SetDeadline(t time.Time) error {
	st.SetReadDeadline(t)
	return st.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (st *Stream) SetReadDeadline(t time.Time) error {
	st.in.deadline.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (st *Stream) SetWriteDeadline(t time.Time) error {
	st.out.deadline.set(t)
	st.lane.SetSendDeadline(t)
	return nil
}
