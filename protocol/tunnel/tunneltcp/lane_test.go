package tunneltcp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A fakeYamux is a yamux stream on which in arrives.
type fakeYamux struct {
	in io.Reader

	mu      sync.Mutex // guards the fields below
	out     bytes.Buffer
	shrunk  int
	closing chan struct{}
	woken   time.Time // the read deadline
}

func (y *fakeYamux) SetReadDeadline(t time.Time) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.woken = t
	return nil
}

func (y *fakeYamux) Read(p []byte) (int, error) { return y.in.Read(p) }
func (y *fakeYamux) StreamID() uint32           { return 1 }

func (y *fakeYamux) Write(p []byte) (int, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.out.Write(p)
}

func (y *fakeYamux) Shrink() {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.shrunk++
}

func (y *fakeYamux) Close() error {
	close(y.closing)
	return nil
}

// yamuxConfig is that of the tests of this file, which send no pings.
func yamuxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive, c.LogOutput, c.StreamOpenTimeout = false, io.Discard, 0
	return c
}

// newTestLink returns a link over a pipe, and the pipe's other end.
func newTestLink(t testing.TB) (*link, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	s, err := yamux.Client(near, yamuxConfig())
	if err != nil {
		t.Fatal(err)
	}
	return &link{
		dialer: true, session: s, conn: &conn{},
		slots: make(chan struct{}, inFlight), opens: make(chan struct{}, 10), done: make(chan struct{}),
	}, far
}

// TestOpenGivenUp: an Open that was given up leaves nothing behind, neither
// when it works later nor when it fails. The control lane takes no place.
func TestOpenGivenUp(t *testing.T) {
	for _, first := range []bool{true, false} {
		for _, works := range []bool{true, false} {
			freshTimers()
			synctest.Test(t, func(t *testing.T) {
				l, far := newTestLink(t)
				l.first.Store(!first)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := l.Open(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("open: %v", err)
				}
				if works {
					peer, err := yamux.Server(far, yamuxConfig())
					if err != nil {
						t.Fatal(err)
					}
					s, err := peer.AcceptStream()
					if err != nil {
						t.Fatal(err)
					}
					if got, err := io.ReadAll(io.LimitReader(s, 8)); err != nil || got[0] != recordReset {
						t.Errorf("the peer reads %x, %v", got, err)
					}
					s.Write([]byte{recordEnd, 0, 0, 0})
					if _, err := io.ReadAll(s); err != nil {
						t.Error(err)
					}
					s.Close()
					defer peer.Close()
				} else {
					far.Close()
				}
				synctest.Wait()
				if n := len(l.opens); n != 0 {
					t.Errorf("first %v, works %v: %d places are taken", first, works, n)
				}
				l.session.Close()
			}) // fails if a goroutine waits for ever
		}
	}
	freshTimers()
}

// freshTimers is tunneltest.FreshTimers, which imports this package.
func freshTimers() {
	runtime.GC()
	runtime.GC()
}

// TestIdleLane: a lane gives yamux's buffer up when it is quiet, and not
// before.
func TestIdleLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		y := &fakeYamux{in: r, closing: make(chan struct{})}
		l := newLane(&link{}, y, false, false)
		send := func(n int) {
			for range n {
				time.Sleep(idleTime / 2)
				w.Write([]byte{recordData, 0, 0, 1, 'x'})
			}
		}
		receive := func(n int) {
			for range n {
				if err := l.Wait(); err != nil {
					t.Fatal(err)
				}
				l.Recv(make([]byte, 10))
			}
		}
		shrunk := func() int {
			synctest.Wait()
			y.mu.Lock()
			defer y.mu.Unlock()
			return y.shrunk
		}
		for i, burst := range []int{1, 10} {
			go send(burst)
			receive(burst)
			if n := shrunk(); n != i {
				t.Errorf("shrunk %d times while bytes came, want %d", n, i)
			}
			time.Sleep(idleTime)
			if n := shrunk(); n != i+1 {
				t.Errorf("shrunk %d times, want %d", n, i+1)
			}
		}
	})
}

// FuzzRecords has anything arrive on a stream, and compares what comes out
// with what the specification says.
func FuzzRecords(f *testing.F) {
	data := func(s string) []byte { return append([]byte{recordData, 0, 0, byte(len(s))}, s...) }
	join := func(all ...[]byte) []byte { return bytes.Join(all, nil) }
	end, reset, stop := []byte{recordEnd, 0, 0, 0}, []byte{recordReset, 0, 0, 4, 0, 0, 0, 5}, []byte{recordStop, 0, 0, 4, 0, 0, 0, 6}
	for _, seed := range [][]byte{
		{},
		end, reset, stop, data("hi"), data(""), data("cut")[:5], reset[:6],
		join(data("a"), data("bc"), end),
		join(data("a"), stop, data("b"), end),
		join(end, stop), join(reset, stop), join(end, stop[:5]), join(end, end), join(end, data("more")),
		join(end, []byte{recordStop, 0, 1, 4}, stop[4:]), // a length of 260
		{recordEnd, 0, 0, 1, 0},
		{recordReset, 0, 0, 3, 0, 0, 5},
		{recordStop, 0, 0, 5, 0, 0, 0, 0, 6},
		{9, 0, 0, 0},
	} {
		f.Add(seed)
	}
	l, far := newTestLink(f) // open, and nothing happens on it
	f.Cleanup(func() { l.session.Close(); far.Close() })
	f.Fuzz(func(t *testing.T, sent []byte) {
		y := &fakeYamux{in: bytes.NewReader(sent), closing: make(chan struct{})}
		lane := newLane(l, y, false, false)
		var stopped []protocol.Code
		lane.Bind(func(code protocol.Code) {
			stopped = append(stopped, code)
			lane.CancelSend(code)
		})
		var got []byte
		var err error
		buf := make([]byte, 100)
		for err == nil {
			if err = lane.Wait(); err == nil {
				var n int
				n, err = lane.Recv(buf)
				got = append(got, buf[:n]...)
			}
		}
		lane.Drain()
		<-y.closing // both directions are over, whatever came

		w := expect(sent)
		if !bytes.Equal(got, w.data) {
			t.Errorf("data %q, want %q", got, w.data)
		}
		reset, isReset := errors.AsType[*tunnel.ResetError](err)
		if w.clean != (err == io.EOF) || !w.clean && (!isReset || reset.Code != w.code) {
			t.Errorf("ended with %v, want clean %v or %v", err, w.clean, w.code)
		}
		if out := y.out.Bytes(); len(out) != 8 || out[0] != recordReset || protocol.Code(binary.BigEndian.Uint32(out[4:])) != w.answer {
			t.Errorf("answered %x, want a reset with %v", out, w.answer)
		}
	})
}

// An outcome is what the package comment makes of a stream of records.
type outcome struct {
	data   []byte
	clean  bool
	code   protocol.Code // of the abort
	answer protocol.Code // in our own RESET
}

func expect(b []byte) (o outcome) {
	answered := false
	answer := func(code protocol.Code) {
		if !answered {
			o.answer, answered = code, true
		}
	}
	o.code = protocol.CodeAborted
	for over := false; len(b) >= recordHeader; {
		typ, n := b[0], int(b[1])<<16|int(b[2])<<8|int(b[3])
		b = b[recordHeader:]
		code := func() protocol.Code { return protocol.Code(binary.BigEndian.Uint32(b)) }
		switch {
		case typ == recordData && !over:
			o.data = append(o.data, b[:min(n, len(b))]...)
			b = b[min(n, len(b)):]
			continue
		case typ == recordEnd && n == 0 && !over:
			o.clean, over = true, true
			continue
		case typ == recordStop && n == 4:
			if len(b) < 4 {
				break
			}
			answer(code())
			b = b[4:]
			continue
		case typ == recordReset && n == 4 && !over:
			if len(b) < 4 {
				break
			}
			o.code, over = code(), true
			b = b[4:]
			continue
		default:
			if !over {
				o.code = protocol.CodeProtocol
			}
			answer(protocol.CodeProtocol)
		}
		break
	}
	answer(protocol.CodeAborted)
	return o
}
