package tunnelquic

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/flow"
)

// A link is a flow.DatagramLink over a QUIC connection.
type link struct {
	conn      *quic.Conn
	datagrams bool   // the peer takes them
	hangUp    func() // frees the dialer's socket
	once      sync.Once
}

func (l *link) Open(ctx context.Context) (flow.Lane, error) {
	s, err := l.conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	return newLane(s), nil
}

func (l *link) Accept() (flow.Lane, error) {
	s, err := l.conn.AcceptStream(context.Background())
	if err != nil {
		return nil, err
	}
	return newLane(s), nil
}

func (l *link) Close(code protocol.Code, reason string, _ func()) {
	l.once.Do(func() {
		l.conn.CloseWithError(quic.ApplicationErrorCode(code), reason)
		l.hangUp()
	})
}

func (l *link) RTT() time.Duration { return l.conn.ConnectionStats().SmoothedRTT }

func (l *link) Cause() *tunnel.CloseError { return causeOf(l.conn.Context()) }

// causeTime is how long a connection may take to say why its streams failed.
const causeTime = time.Second

// causeOf waits a moment for the end of a connection: quic-go ends its streams
// first. nil: the connection goes on.
func causeOf(conn context.Context) *tunnel.CloseError {
	late := time.NewTimer(causeTime)
	defer late.Stop()
	select {
	case <-conn.Done():
	case <-late.C:
		return nil
	}
	err := context.Cause(conn)
	if e, ok := errors.AsType[*quic.ApplicationError](err); ok {
		return &tunnel.CloseError{Code: protocol.Code(e.ErrorCode), Reason: e.ErrorMessage, Remote: e.Remote}
	}
	e := &tunnel.CloseError{Code: protocol.CodeAborted, Err: err}
	if te, ok := errors.AsType[*quic.TransportError](err); ok {
		e.Remote = te.Remote
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() { // idle, or a handshake that took too long
		e.Code = protocol.CodeTimeout
	}
	return e
}

// A lane is a flow.Lane over a QUIC stream.
type lane struct {
	s    *quic.Stream
	peek [1]byte
}

func newLane(s *quic.Stream) *lane { return &lane{s: s} }

func (l *lane) ID() uint64 { return uint64(l.s.StreamID()) }

func (l *lane) Bind(stopped func(protocol.Code)) {
	// The stream's context ends with STOP_SENDING, and with our own FIN or reset.
	context.AfterFunc(l.s.Context(), func() {
		if e, ok := errors.AsType[*quic.StreamError](context.Cause(l.s.Context())); ok && e.Remote {
			stopped(protocol.Code(e.ErrorCode))
		}
	})
}

func (l *lane) Wait() error {
	if _, err := l.s.Peek(l.peek[:]); err == nil {
		return nil
	}
	// Only Read tells quic-go that we have seen the end.
	_, err := l.s.Read(l.peek[:])
	return mapError(err)
}

func (l *lane) Recv(p []byte) (int, error) {
	n, err := l.s.Read(p)
	return n, mapError(err)
}

func (l *lane) Drain() {}

func (l *lane) Send(p []byte, _ <-chan struct{}) (int, error) {
	n, err := l.s.Write(p)
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() && l.s.Context().Err() == nil {
		// quic-go has taken n bytes and will send them: nothing is torn.
		return n, os.ErrDeadlineExceeded
	}
	return n, mapError(err)
}

func (l *lane) SetSendDeadline(t time.Time) { l.s.SetWriteDeadline(t) }

// End must not run while Send does, and Stream.CloseWrite and Close see to it.
func (l *lane) End() { l.s.Close() }

func (l *lane) CancelSend(code protocol.Code) { l.s.CancelWrite(quic.StreamErrorCode(code)) }

// CancelRecv is needed on top of End: closing a QUIC stream leaves its read
// side open.
func (l *lane) CancelRecv(code protocol.Code) { l.s.CancelRead(quic.StreamErrorCode(code)) }

func mapError(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if e, ok := errors.AsType[*quic.StreamError](err); ok {
		return &tunnel.ResetError{Code: protocol.Code(e.ErrorCode), Remote: e.Remote}
	}
	return err
}
