package tunnelquic_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunnelquic"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// ends is what both ends of a session are configured with.
type ends struct {
	server, client *tls.Config
	cfg            tunnelquic.Config
}

func newEnds(t testing.TB) *ends {
	t.Helper()
	server, client := tunneltest.TLS(t)
	return &ends{server: server, client: client}
}

// TestDeadPath: in whatever phase of the keep-alive a path freezes, and while
// it carries data or not, both ends notice.
func TestDeadPath(t *testing.T) {
	for phase := time.Duration(0); phase <= 5*time.Second; phase += 500 * time.Millisecond {
		for _, busy := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				r := newRoad(t)
				a, b := r.pair(t, newEnds(t))
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
					time.Sleep(latency)
				}
				start := time.Now()
				r.dead.Store(true)
				for _, s := range []tunnel.Session{a, b} {
					<-s.Done()
					if d := time.Since(start); d > 15*time.Second {
						t.Errorf("phase %v, busy %v: noticed after %v", phase, busy, d)
					}
					e, ok := errors.AsType[*tunnel.CloseError](s.Err())
					if _, idle := errors.AsType[*quic.IdleTimeoutError](s.Err()); !ok || !idle || e.Code != protocol.CodeTimeout || e.Remote {
						t.Errorf("got %v", s.Err())
					}
				}
			})
		}
	}
}

func TestBlockedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoad(t)
		a, _ := r.pair(t, newEnds(t))
		st, err := a.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		r.dead.Store(true)
		go st.Write(make([]byte, 200<<10))
		time.Sleep(5 * time.Second)
		at := a.Stats().BlockedAt
		if at.IsZero() || at.Sub(start) > 100*time.Millisecond {
			t.Errorf("a write waits since %v, BlockedAt is %v", start, at)
		}
		<-a.Done()
		if at := a.Stats().BlockedAt; !at.IsZero() {
			t.Errorf("nothing waits any more, BlockedAt is %v", at)
		}
	})
}

// TestStatelessReset kills the relay without a word and starts it again on
// the same address with the same key.
func TestStatelessReset(t *testing.T) {
	for _, withKey := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			ends := newEnds(t)
			if withKey {
				ends.cfg.ResetKey = &[32]byte{1, 2, 3}
			}
			r := newRoad(t)
			first := r.listen(t, ends)
			a, err := r.dial(t.Context(), ends)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close(protocol.CodeOK, "")
			st, err := a.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			r.dead.Store(true)
			first.Close()
			r.listen(t, ends)
			time.Sleep(time.Second)
			r.dead.Store(false)

			start := time.Now()
			st.Write(bytes.Repeat([]byte{'p'}, 64)) // what a padded ping is
			<-a.Done()
			_, isReset := errors.AsType[*quic.StatelessResetError](a.Err())
			if d := time.Since(start); withKey && (!isReset || d > time.Second) {
				t.Errorf("noticed after %v: %v", d, a.Err())
			} else if !withKey && isReset {
				t.Error("a reset without a key")
			}
		})
	}
}

func TestStreamLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := simPair(t, tunnelquic.Config{MaxAccept: 2})
		var streams []tunnel.Stream
		for range 2 {
			st, err := a.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			st.Write([]byte("x"))
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
		if _, err := a.OpenStream(t.Context()); err != nil {
			t.Errorf("after two ended: %v", err)
		}
	})
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
			synctest.Test(t, func(t *testing.T) {
				ends := newEnds(t)
				c.spoil(ends.client)
				r := newRoad(t)
				l := r.listen(t, ends)
				if _, err := r.dial(t.Context(), ends); err == nil {
					t.Error("the dial worked")
				} else {
					t.Log(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if _, err := l.Accept(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("accept: %v", err)
				}
			})
		})
	}
}

func TestDialContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ends := newEnds(t)
		r := newRoad(t) // nobody listens
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		start := time.Now()
		if _, err := r.dial(ctx, ends); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial: %v", err)
		}
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("gave up after %v", d)
		}
	})
}

// TestLoopback is once over real sockets, with both address families.
func TestLoopback(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			var log bytes.Buffer
			a, b := loopback(t, host, slog.New(slog.NewTextHandler(&log, nil)))
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
			b.Close(protocol.CodeGoingAway, "bye")
			<-a.Done()
			if e, ok := errors.AsType[*tunnel.CloseError](a.Err()); !ok || e.Code != protocol.CodeGoingAway || e.Reason != "bye" || !e.Remote {
				t.Errorf("got %v", a.Err())
			}
			if s := log.String(); strings.Count(s, "\n") > 2 || s != "" && !strings.Contains(s, "rmem_max") {
				t.Errorf("log: %s", s) // one line a socket, or none
			}
		})
	}
}

func loopback(t testing.TB, host string, log *slog.Logger) (a, b tunnel.Session) {
	t.Helper()
	ends := newEnds(t)
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(host)})
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { pc.Close() })
	l, err := tunnelquic.Listen(pc, ends.server, tunnelquic.Config{Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	d := &tunnelquic.Dialer{TLS: ends.client, Config: tunnelquic.Config{Logger: log}}
	a, err = d.Dial(t.Context(), l.Addr().(*net.UDPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(protocol.CodeOK, "") })
	if b, err = l.Accept(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func BenchmarkLoopback(b *testing.B) {
	x, y := loopback(b, "127.0.0.1", nil)
	tunneltest.Benchmark(b, x, y)
}
