package flow

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A fakeLink is a link whose peer is the test.
type fakeLink struct {
	incoming chan *fakeLane
	ended    chan struct{}
	once     sync.Once
	cause    *tunnel.CloseError
	next     uint64
}

func newFakeLink() *fakeLink {
	return &fakeLink{incoming: make(chan *fakeLane, 100), ended: make(chan struct{})}
}

// listener starts a listener's session; control is the peer's control lane.
func (l *fakeLink) listener(t testing.TB, cfg Config) (s *Session, control *fakeLane) {
	t.Helper()
	s, err := New(context.Background(), l, cfg)
	if err != nil {
		t.Fatal(err)
	}
	control = l.open()
	control.arrives(appendFrame(nil, frameHello, version, 0))
	return s, control
}

// open is the peer opening a lane.
func (l *fakeLink) open() *fakeLane {
	l.next++
	lane := &fakeLane{link: l, id: l.next, in: make(chan any, 1000), bound: make(chan func(protocol.Code), 1)}
	l.incoming <- lane
	return lane
}

func (l *fakeLink) Open(context.Context) (Lane, error) { return nil, errors.New("a listener") }

func (l *fakeLink) Accept() (Lane, error) {
	select {
	case lane := <-l.incoming:
		return lane, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

func (l *fakeLink) Close(_ protocol.Code, _ string, _ func()) { l.hangUp() }
func (l *fakeLink) Cause() *tunnel.CloseError                 { return l.cause }
func (l *fakeLink) RTT() time.Duration                        { return time.Millisecond }
func (l *fakeLink) hangUp()                                   { l.once.Do(func() { close(l.ended) }) }

// A fakeLane is a lane that the test opened.
type fakeLane struct {
	link  *fakeLink
	id    uint64
	in    chan any // []byte or error
	bound chan func(protocol.Code)
	left  []byte
	err   error // the end

	stuck bool // Send blocks until the link ends

	mu   sync.Mutex // guards sent
	sent []byte
}

func (l *fakeLane) arrives(what any) { l.in <- what }

// stops is the peer reading no further.
func (l *fakeLane) stops() { (<-l.bound)(protocol.CodeAborted) }

func (l *fakeLane) ID() uint64                       { return l.id }
func (l *fakeLane) Bind(stopped func(protocol.Code)) { l.bound <- stopped }
func (l *fakeLane) Drain()                           {}
func (l *fakeLane) SetSendDeadline(time.Time)        {}
func (l *fakeLane) End()                             {}
func (l *fakeLane) CancelSend(protocol.Code)         {}
func (l *fakeLane) CancelRecv(protocol.Code)         {}
func (l *fakeLane) fail(err error) error             { l.err = err; return err }
func (l *fakeLane) Recv(p []byte) (n int, err error) {
	n = copy(p, l.left)
	l.left = l.left[n:]
	return n, nil
}

func (l *fakeLane) Wait() error {
	for len(l.left) == 0 {
		if l.err != nil {
			return l.err
		}
		select {
		case what := <-l.in:
			if err, ok := what.(error); ok {
				return l.fail(err)
			}
			l.left = what.([]byte)
		case <-l.link.ended:
			return l.fail(net.ErrClosed)
		}
	}
	return nil
}

func (l *fakeLane) Send(p []byte, _ <-chan struct{}) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stuck {
		<-l.link.ended
		return 0, net.ErrClosed
	}
	l.sent = append(l.sent, p...)
	return len(p), nil
}

// stick makes Send block from now on.
func (l *fakeLane) stick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stuck = true
}
