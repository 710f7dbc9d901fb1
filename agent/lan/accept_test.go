package lan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// opened runs a LAN on a fake listener, in a bubble.
func opened(t *testing.T, c Config) (*LAN, *fakeListener, func()) {
	t.Helper()
	listener := newFakeListener()
	c.ListenTCP = func(string) (net.Listener, error) { return listener, nil }
	l := newLAN(t, c)
	stop := start(t, l)
	synctest.Wait()
	return l, listener, stop
}

// greeted reports whether the door has a connection; false: it was closed.
func greeted(c net.Conn) bool {
	buf := make([]byte, 1)
	c.SetReadDeadline(time.Now().Add(time.Minute))
	_, err := c.Read(buf)
	return err == nil && buf[0] == '!'
}

func TestOnlyTheHomeNetwork(t *testing.T) {
	for _, open := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			l, listener, stop := opened(t, Config{Open: open, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			for from, want := range map[string]bool{
				"192.168.1.20:5000": true, "[fd00::20]:5000": true, "[fe80::20%eth0]:5000": true, "127.0.0.1:5000": true,
				"203.0.113.9:5000": open, "[2001:db8::9]:5000": open, "100.64.0.9:5000": open,
			} {
				c := listener.dial(from)
				if got := greeted(c); got != want {
					t.Errorf("open %v: from %s: let in: %v, want %v", open, from, got, want)
				}
			}
			want := uint64(3)
			if open {
				want = 0
			}
			if s := l.Status(); s.Strangers != want {
				t.Errorf("open %v: %d strangers, want %d", open, s.Strangers, want)
			}
			if n := strings.Count(log.String(), "not of a home network"); n != 1 && !open || n != 0 && open {
				t.Errorf("open %v: said %d times", open, n)
			}
			stop()
		})
	}
}

// Whoever is silent cannot keep others out, from one address or from many.
func TestSilentConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		door := new(doorman)
		l, listener, stop := opened(t, Config{MaxConns: 8, Serve: door.serve})
		var silent []net.Conn
		for i := range 4 {
			silent = append(silent, listener.dial(fmt.Sprintf("192.168.1.66:%d", 1000+i)))
			greeted(silent[i])
		}
		fifth := listener.dial("192.168.1.66:2000") // half of all: its own oldest goes
		if !greeted(fifth) || !gone(silent[0]) {
			t.Error("the oldest stranger of the same address did not make room")
		}
		for i := range 4 {
			if c := listener.dial(fmt.Sprintf("192.168.1.%d:1000", 10+i)); !greeted(c) {
				t.Fatal("refused while there is room")
			}
		}
		ninth := listener.dial("192.168.1.30:1000")
		if !greeted(ninth) || !gone(silent[1]) {
			t.Error("the oldest stranger of all did not make room")
		}
		synctest.Wait()
		if s := l.Status(); s.Conns != 8 {
			t.Errorf("%d connections, want 8", s.Conns)
		}
		stop()
	})
}

// Those who are in stay in: a newcomer waits outside when nobody is a stranger.
func TestSettledStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		door := new(doorman)
		l, listener, stop := opened(t, Config{MaxConns: 4, Serve: door.serve})
		settled := func(from string) net.Conn {
			c := listener.dial(from)
			if !greeted(c) {
				t.Fatalf("%s: refused", from)
			}
			door.last().(interface{ Settled() }).Settled()
			return c
		}
		a := settled("192.168.1.10:1000")
		settled("192.168.1.10:1001")
		if c := listener.dial("192.168.1.10:1002"); !gone(c) {
			t.Error("one address has more than half")
		}
		settled("192.168.1.11:1000")
		settled("192.168.1.12:1000")
		if c := listener.dial("192.168.1.13:1000"); !gone(c) {
			t.Error("more than all")
		}
		if s := l.Status(); s.Conns != 4 {
			t.Errorf("%d connections, want 4", s.Conns)
		}
		a.Close()
		synctest.Wait()
		settled("192.168.1.13:1001") // there is room again
		stop()
	})
}

func TestEndClosesConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, listener, stop := opened(t, Config{})
		c := listener.dial("192.168.1.10:1000")
		greeted(c)
		stop()
		if !gone(c) || l.Status().Conns != 0 {
			t.Error("a connection outlives Run")
		}
	})
}

func TestPanicEndsOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		door := new(doorman)
		l, listener, stop := opened(t, Config{Serve: func(ctx context.Context, c net.Conn) {
			if strings.HasPrefix(c.RemoteAddr().String(), "192.168.1.66") {
				panic("one")
			}
			door.serve(ctx, c)
		}})
		if !gone(listener.dial("192.168.1.66:1000")) || !greeted(listener.dial("192.168.1.10:1000")) {
			t.Error("a panic did not end its connection, or ended more")
		}
		synctest.Wait()
		if s := l.Status(); s.Conns != 1 {
			t.Errorf("%d connections, want 1", s.Conns)
		}
		stop()
	})
}

// An Accept that fails is tried again, ever more slowly, and makes room: there
// may be no file descriptors left.
func TestAcceptFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, listener, stop := opened(t, Config{})
		stranger := listener.dial("192.168.1.10:1000")
		greeted(stranger)
		begin := time.Now()
		for range 12 {
			listener.errs <- errors.New("too many open files")
		}
		if !gone(stranger) {
			t.Error("no stranger made room")
		}
		if !greeted(listener.dial("192.168.1.10:1001")) {
			t.Error("not accepted after errors")
		}
		if took := time.Since(begin); took < 3*time.Second || took > 12*time.Second {
			t.Errorf("12 errors took %v", took)
		}
		stop()
	})
}
