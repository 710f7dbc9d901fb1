package tunneltcp_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltcp"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

func TestSession(t *testing.T) {
	tunneltest.TestSession(t, func(t *testing.T) (a, b tunnel.Session) {
		return tunneltest.Pair(t)
	})
}

func TestSessionReversed(t *testing.T) {
	tunneltest.TestSession(t, func(t *testing.T) (a, b tunnel.Session) {
		b, a = tunneltest.Pair(t)
		return a, b
	})
}

func TestBudget(t *testing.T) {
	const budget = 4 << 20
	tunneltest.TestBudget(t, budget, func(t *testing.T) (a, b tunnel.Session) {
		return tunneltest.PairConfig(t, tunneltcp.Config{Budget: budget})
	})
}

// TestDeadPath: in whatever phase of the keep-alive a path freezes, and while
// it carries data or not, both ends notice.
func TestDeadPath(t *testing.T) {
	for phase := time.Duration(0); phase <= 5*time.Second; phase += 500 * time.Millisecond {
		for _, busy := range []bool{false, true} {
			tunneltest.Bubble(t, func(t *testing.T) {
				a, b, dead := stallPair(t)
				time.Sleep(time.Minute + phase) // idle, and kept alive
				if a.Err() != nil || b.Err() != nil {
					t.Fatalf("an idle session ended: %v, %v", a.Err(), b.Err())
				}
				if busy {
					st, err := a.OpenStream(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					go st.Write(make([]byte, 1<<20))
					synctest.Wait()
				}
				start := time.Now()
				dead.Store(true)
				timeouts := 0
				for _, s := range []tunnel.Session{a, b} {
					<-s.Done()
					if d := time.Since(start); d > 15*time.Second {
						t.Errorf("phase %v, busy %v: noticed after %v", phase, busy, d)
					}
					e, ok := errors.AsType[*tunnel.CloseError](s.Err())
					if !ok || e.Remote {
						t.Errorf("got %v", s.Err())
					} else if e.Code == protocol.CodeTimeout {
						timeouts++
					}
				}
				if timeouts == 0 { // the second one may see the first one's FIN, which this road still carries
					t.Errorf("got %v and %v", a.Err(), b.Err())
				}
			})
		}
	}
}

// TestStuck: on a path that takes nothing, calls still end when they should.
func TestStuck(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b, dead := stallPair(t)
		st, err := a.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		dead.Store(true)
		start := time.Now()
		st.SetWriteDeadline(start.Add(2 * time.Second))
		if n, err := st.Write(make([]byte, 200<<10)); n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write: %d, %v", n, err)
		}
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("write gave up after %v", d)
		}
		st.SetWriteDeadline(time.Time{})
		failed := make(chan error, 1)
		go func() {
			_, err := st.Write([]byte("waits"))
			failed <- err
		}()
		synctest.Wait()
		st.Reset(protocol.CodeIdle)
		if err := <-failed; !isReset(err) {
			t.Errorf("write of a reset stream: %v", err)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.OpenStream(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("open: %v", err)
		}

		start = time.Now()
		a.Close(protocol.CodeOK, "")
		if d := time.Since(start); d > time.Second {
			t.Errorf("close took %v", d)
		}
		<-b.Done()
	})
}

func TestBlockedAt(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, _, dead := stallPair(t)
		st, err := a.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		dead.Store(true)
		start := time.Now()
		go st.Write(make([]byte, 200<<10))
		time.Sleep(5 * time.Second)
		if at := a.Stats().BlockedAt; !at.Equal(start) {
			t.Errorf("a write waits since %v, BlockedAt is %v", start, at)
		}
	})
}

func TestStreamLimit(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := tunneltest.PairConfig(t, tunneltcp.Config{MaxStreams: 2})
		var streams []tunnel.Stream
		for range 2 {
			st, err := a.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, st)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.OpenStream(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("over the limit: %v", err)
		}
		streams[0].Reset(protocol.CodeAborted)
		streams[1].Close()
		for range 2 {
			st, err := b.AcceptStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			st.Close()
		}
		for range 2 {
			if _, err := a.OpenStream(t.Context()); err != nil {
				t.Errorf("after two ended: %v", err)
			}
		}
	})
}

// TestMaxAccept: a peer that opens more than it may is thrown out. The limit
// is the listener's own, and none of the dialer's.
func TestMaxAccept(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		serverTLS, clientTLS := tunneltest.TLS(t)
		near, far := tunneltest.MemConn()
		served := make(chan tunnel.Session, 1)
		go func() {
			s, err := tunneltcp.Server(context.Background(), far, serverTLS, tunneltcp.Config{MaxAccept: 1})
			if err != nil {
				t.Error(err)
			}
			served <- s
		}()
		d := &tunneltcp.Dialer{TLS: clientTLS, DialContext: func(context.Context, string, string) (net.Conn, error) { return near, nil }}
		a, err := d.Dial(t.Context(), netip.MustParseAddrPort("192.0.2.2:443"))
		if err != nil {
			t.Fatal(err)
		}
		b := <-served
		for range 5 { // the other way it may open as many as it likes
			st, err := b.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
		}
		for range 2 {
			time.Sleep(time.Second) // virtual
			if b.Err() != nil {
				t.Fatalf("one stream was too many: %v", b.Err())
			}
			st, err := a.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			st.Write([]byte("x"))
		}
		time.Sleep(time.Second) // virtual
		if e, ok := errors.AsType[*tunnel.CloseError](a.Err()); !ok || e.Code != protocol.CodeProtocol || !e.Remote {
			t.Errorf("got %v", a.Err())
		}
		a.Close(protocol.CodeOK, "")
		b.Close(protocol.CodeOK, "")
	})
}

func isReset(err error) bool {
	_, ok := errors.AsType[*tunnel.ResetError](err)
	return ok
}

func listen(t testing.TB) (*tunneltcp.Listener, *tunneltcp.Dialer, netip.AddrPort) {
	t.Helper()
	tunneltest.FreshTimers()
	serverTLS, clientTLS := tunneltest.TLS(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := tunneltcp.NewListener(ln, serverTLS, tunneltcp.Config{})
	t.Cleanup(func() { l.Close() })
	return l, &tunneltcp.Dialer{TLS: clientTLS}, ln.Addr().(*net.TCPAddr).AddrPort()
}

// TestLoopback is once over real sockets, beside a peer that says nothing.
func TestLoopback(t *testing.T) {
	l, d, addr := listen(t)
	silent, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	a, err := d.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		st, err := b.AcceptStream(t.Context())
		if err != nil {
			return
		}
		io.Copy(st, st)
		st.Close()
	}()
	st, err := a.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sent := bytes.Repeat([]byte("over real sockets "), 100_000)
	go func() {
		st.Write(sent)
		st.CloseWrite()
	}()
	got, err := io.ReadAll(st)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	st.Close()
	l.Close()
	<-a.Done()
	if e, ok := errors.AsType[*tunnel.CloseError](a.Err()); !ok || e.Code != protocol.CodeGoingAway || !e.Remote {
		t.Errorf("got %v", a.Err())
	}
	if _, err := l.Accept(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
}

// TestRefused: Dial returns only what both ends have authenticated.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(client *tls.Config)
	}{
		{"no client certificate", func(c *tls.Config) { c.Certificates = nil }},
		{"a stranger's certificate", func(c *tls.Config) { _, other := tunneltest.TLS(t); c.Certificates = other.Certificates }},
		{"another server name", func(c *tls.Config) { c.ServerName = "other.test" }},
		{"another protocol", func(c *tls.Config) { c.NextProtos = []string{"h3"} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, d, addr := listen(t)
			c.spoil(d.TLS)
			_, err := d.Dial(t.Context(), addr)
			if err == nil {
				t.Fatal("the dial worked")
			}
			t.Log(err)
		})
	}
}

func BenchmarkLoopback(b *testing.B) {
	l, d, addr := listen(b)
	x, err := d.Dial(b.Context(), addr)
	if err != nil {
		b.Fatal(err)
	}
	y, err := l.Accept(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	tunneltest.Benchmark(b, x, y)
}
