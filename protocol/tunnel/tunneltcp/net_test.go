package tunneltcp_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltcp"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// A stallConn is a connection whose writes can be made to hang, as when the
// path is dead and the kernel's buffer full.
type stallConn struct {
	net.Conn
	dead   *atomic.Bool
	closed chan struct{}
}

func (c *stallConn) Write(p []byte) (int, error) {
	if c.dead.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

func (c *stallConn) Close() error {
	defer func() { recover() }() // the second time
	close(c.closed)
	return c.Conn.Close()
}

// stallPair is tunneltest.Pair over a road that dies when dead is set.
func stallPair(t *testing.T) (a, b tunnel.Session, dead *atomic.Bool) {
	t.Helper()
	dead = new(atomic.Bool)
	a, b = wrappedPair(t, tunneltcp.Config{}, func(c net.Conn) net.Conn {
		return &stallConn{Conn: c, dead: dead, closed: make(chan struct{})}
	})
	return a, b, dead
}

// wrappedPair is tunneltest.Pair with both connections wrapped.
func wrappedPair(t *testing.T, cfg tunneltcp.Config, wrap func(net.Conn) net.Conn) (a, b tunnel.Session) {
	t.Helper()
	serverTLS, clientTLS := tunneltest.TLS(t)
	near, far := tunneltest.MemConn()
	served := make(chan tunnel.Session, 1)
	go func() {
		s, err := tunneltcp.Server(context.Background(), wrap(far), serverTLS, cfg)
		if err != nil {
			t.Error(err)
		}
		served <- s
	}()
	d := &tunneltcp.Dialer{TLS: clientTLS, Config: cfg, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return wrap(near), nil
	}}
	a, err := d.Dial(t.Context(), netip.MustParseAddrPort("192.0.2.2:443"))
	if err != nil {
		t.Fatal(err)
	}
	b = <-served
	t.Cleanup(func() {
		a.Close(protocol.CodeOK, "")
		b.Close(protocol.CodeOK, "")
	})
	return a, b
}

// A slowConn delivers what is written after a delay, at any rate.
type slowConn struct {
	net.Conn
	delay time.Duration

	mu    sync.Mutex // guards queue
	queue []parcel
	more  chan struct{}
	done  chan struct{}
	once  sync.Once
}

type parcel struct {
	due  time.Time
	data []byte
}

func newSlowConn(c net.Conn, delay time.Duration) *slowConn {
	s := &slowConn{Conn: c, delay: delay, more: make(chan struct{}, 1), done: make(chan struct{})}
	go s.deliver()
	return s
}

func (s *slowConn) Write(p []byte) (int, error) {
	s.mu.Lock()
	s.queue = append(s.queue, parcel{time.Now().Add(s.delay), append([]byte(nil), p...)})
	s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (s *slowConn) deliver() {
	for {
		s.mu.Lock()
		queue := s.queue
		s.queue = nil
		s.mu.Unlock()
		for _, p := range queue {
			time.Sleep(time.Until(p.due)) // virtual
			if _, err := s.Conn.Write(p.data); err != nil {
				return
			}
		}
		if len(queue) > 0 {
			continue
		}
		select {
		case <-s.more:
		case <-s.done:
			s.Conn.Close()
			return
		}
	}
}

func (s *slowConn) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

// TestFatPath: the credit lets one stream fill 1 Gbit/s at a round trip of
// 80 ms, even within an agent's budget.
func TestFatPath(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := wrappedPair(t, tunneltcp.Config{Budget: 16 << 20}, func(c net.Conn) net.Conn {
			return newSlowConn(c, 40*time.Millisecond)
		})
		x, err := a.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// The line has no rate of its own, so a window arrives at once: measure
		// over many of them.
		const warmUp, size = 24 << 20, 96 << 20
		go func() {
			x.Write(make([]byte, warmUp+size))
			x.Close()
		}()
		y, err := b.AcceptStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		io.CopyN(io.Discard, y, warmUp)
		start := time.Now()
		if n, err := io.Copy(io.Discard, y); n != size || err != nil {
			t.Errorf("read %d, %v", n, err)
		}
		if rate := float64(8*size) / time.Since(start).Seconds() / 1e6; rate < 1000 {
			t.Errorf("%.0f Mbit/s", rate)
		} else {
			t.Logf("%.0f Mbit/s", rate)
		}
		y.Close()
		a.Close(protocol.CodeOK, "")
		<-b.Done()
		time.Sleep(time.Second) // virtual
	})
}
