package tunneltcp

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/flow"
)

const (
	// backlog bounds streams that were opened and not yet taken by the peer's
	// package flow, which takes them at once. Until then, yamux keeps up to
	// 256 KiB of each: before HELLO, and from a peer that opens too many.
	backlog = 256

	// inFlight is how many data records of all streams together may wait to be
	// written. The other writers wait for a slot, in order, where they can be
	// cancelled and yamux's write timeout does not count: with a hundred uploads
	// on a slow line it would break streams that only wait for their turn.
	inFlight = 4

	lingerTime = time.Second
)

// A link is a flow.Link over yamux.
type link struct {
	conn    *conn
	dialer  bool
	session *yamux.Session
	cfg     Config
	readers readers

	slots chan struct{} // data records on their way
	opens chan struct{} // streams that we opened
	done  chan struct{} // closed first when the link ends
	once  sync.Once
	rtt   atomic.Int64
	first atomic.Bool // the control lane, the dialer's first, has been handed out
}

func newLink(tc *tls.Conn, cork *cork, cfg Config, dialer bool) (*link, error) {
	l := &link{
		conn: &conn{Conn: tc, cork: cork}, dialer: dialer, cfg: cfg,
		slots: make(chan struct{}, inFlight),
		opens: make(chan struct{}, cfg.MaxStreams),
		done:  make(chan struct{}),
	}
	l.conn.closing = l.readers.close
	y := &yamux.Config{
		AcceptBacklog:          backlog,
		EnableKeepAlive:        false, // keepAlive does it, and learns the round trip
		KeepAliveInterval:      cfg.KeepAlive,
		ConnectionWriteTimeout: cfg.WriteTimeout,
		// Package flow empties yamux's buffers at once, so this is only what may
		// be on its way; twice the credit, as yamux grants by halves.
		MaxStreamWindowSize: 2*flow.MaxWindow + 1<<20,
		StreamOpenTimeout:   0, // keepAlive finds dead paths
		StreamCloseTimeout:  time.Minute,
		LogOutput:           io.Discard, // its errors come back through conn and the calls
	}
	var err error
	if dialer {
		l.session, err = yamux.Client(l.conn, y)
	} else {
		l.session, err = yamux.Server(l.conn, y)
	}
	if err != nil {
		return nil, err
	}
	go l.keepAlive()
	return l, nil
}

// keepAlive pings, measures, and ends the link when no answer comes.
func (l *link) keepAlive() {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-l.session.CloseChan():
			return
		}
		rtt, err := l.session.Ping()
		if err != nil {
			if !l.session.IsClosed() {
				l.conn.fail(errNoAnswer)
				l.session.Close()
			}
			return
		}
		if old := time.Duration(l.rtt.Load()); old > 0 {
			rtt = (7*old + rtt) / 8
		}
		l.rtt.Store(int64(max(rtt, 1)))
		t.Reset(l.cfg.KeepAlive)
	}
}

var errNoAnswer = &timeoutError{}

type timeoutError struct{}

func (*timeoutError) Error() string { return "no answer to a ping" }
func (*timeoutError) Timeout() bool { return true }

func (l *link) Open(ctx context.Context) (flow.Lane, error) {
	first := l.dialer && !l.first.Swap(true)
	if !first {
		select {
		case l.opens <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-l.done:
			return nil, net.ErrClosed
		}
	}
	type result struct {
		s   *yamux.Stream
		err error
	}
	opened := make(chan result, 1)
	go func() { // yamux knows no context, and blocks while TCP does
		s, err := l.session.OpenStream()
		opened <- result{s, err}
	}()
	select {
	case r := <-opened:
		if r.err != nil {
			if !first {
				<-l.opens
			}
			return nil, r.err
		}
		return newLane(l, r.s, first, !first), nil
	case <-ctx.Done():
		go func() {
			if r := <-opened; r.err == nil {
				newLane(l, r.s, false, !first).refuse()
			} else if !first {
				<-l.opens
			}
		}()
		return nil, context.Cause(ctx)
	}
}

func (l *link) Accept() (flow.Lane, error) {
	s, err := l.session.AcceptStream()
	if err != nil {
		return nil, err
	}
	return newLane(l, s, !l.dialer && !l.first.Swap(true), false), nil
}

func (l *link) Close(_ protocol.Code, _ string, farewell func()) {
	l.once.Do(func() { close(l.done) })
	if farewell == nil {
		l.session.Close()
		return
	}
	said := make(chan struct{})
	go func() {
		defer close(said)
		farewell()
	}()
	late := time.NewTimer(lingerTime)
	defer late.Stop()
	select {
	case <-said:
		go l.linger()
	case <-late.C:
		l.session.Close()
	case <-l.session.CloseChan():
	}
}

// linger gives the peer a moment to read the farewell and to hang up first: a
// TCP connection closed with bytes unread is reset, and that would eat it.
func (l *link) linger() {
	late := time.NewTimer(lingerTime)
	defer late.Stop()
	select {
	case <-late.C:
	case <-l.session.CloseChan():
	}
	l.session.Close()
}

func (l *link) RTT() time.Duration { return time.Duration(l.rtt.Load()) }

func (l *link) Cause() *tunnel.CloseError {
	if !l.session.IsClosed() {
		return nil
	}
	e := &tunnel.CloseError{Code: protocol.CodeAborted, Err: l.conn.cause()}
	if t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](e.Err); ok && t.Timeout() {
		e.Code = protocol.CodeTimeout
	}
	return e
}
