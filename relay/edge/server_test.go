package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A thousand connections that say nothing, or half of something, from the same
// address as the visitor: it must not wait for any of them.
func TestSilentConnectionsDelayNobody(t *testing.T) {
	addr := serve(t, &Server{Router: routed(&Snapshot{Hosts: hosts(t, map[string]Target{"ha.example.org": tlsEcho(t, "ha.example.org")})})})
	half := helloFor(t, "ha.example.org")[:500]
	for i := range 1000 {
		conn := dial(t, addr)
		if i%2 == 1 {
			if _, err := conn.Write(half); err != nil && i < 100 {
				t.Fatal(err)
			}
		}
	}
	start := time.Now()
	mustEcho(t, addr, "ha.example.org")
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("the good visitor waited %v", took)
	}
}

// One address has at most so many strangers; the oldest goes first, settled
// connections stay.
func TestCapPerAddress(t *testing.T) {
	addr := serve(t, &Server{
		Router: routed(&Snapshot{Hosts: hosts(t, map[string]Target{"ha.example.org": tlsEcho(t, "ha.example.org")})}),
		Limits: Limits{MaxConnsPerIP: 3},
	})
	visitor := tls.Client(dial(t, addr), &tls.Config{ServerName: "ha.example.org", InsecureSkipVerify: true})
	echoes(t, visitor) // settled on the far side too
	var silent []net.Conn
	for range 10 {
		silent = append(silent, dial(t, addr))
	}
	for i, conn := range silent[:7] {
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("silent connection %d of 10 is still open", i)
		}
	}
	for i, conn := range silent[7:] {
		conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("silent connection %d of 10 is gone: %v", i+7, err)
		}
	}
	if _, err := visitor.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(visitor, make([]byte, 1)); err != nil {
		t.Errorf("the settled connection is gone: %v", err)
	}
}

func TestOrigin(t *testing.T) {
	same := [][2]string{
		{"192.0.2.1:1", "[::ffff:192.0.2.1]:2"}, {"[2001:db8:1:2::1]:1", "[2001:db8:1:2:ffff::9]:1"}, {"[fe80::1%eth0]:1", "[fe80::2%eth0]:1"},
	}
	other := [][2]string{
		{"192.0.2.1:1", "192.0.2.2:1"}, {"[2001:db8:1:2::1]:1", "[2001:db8:1:3::1]:1"}, {"[::ffff:192.0.2.1]:1", "[::ffff:192.0.2.2]:1"},
	}
	of := func(s string) any {
		a, err := net.ResolveTCPAddr("tcp", s)
		if err != nil {
			t.Fatal(err)
		}
		return origin(a)
	}
	for _, p := range same {
		if of(p[0]) != of(p[1]) {
			t.Errorf("%s and %s count as two", p[0], p[1])
		}
	}
	for _, p := range other {
		if of(p[0]) == of(p[1]) {
			t.Errorf("%s and %s count as one", p[0], p[1])
		}
	}
}

// At the global limit a stranger makes room; without strangers the newcomer is
// refused and nobody else suffers.
func TestCapOfAll(t *testing.T) {
	addr := serve(t, &Server{
		Router: routed(&Snapshot{Hosts: hosts(t, map[string]Target{"ha.example.org": tlsEcho(t, "ha.example.org")})}),
		Limits: Limits{MaxConns: 2},
	})
	visit := func() *tls.Conn {
		c := tls.Client(dial(t, addr), &tls.Config{ServerName: "ha.example.org", InsecureSkipVerify: true})
		echoes(t, c) // settled on the far side too
		return c
	}
	first := visit()
	silent := dial(t, addr)
	second := visit() // takes the place of the silent one
	if _, err := silent.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the silent connection keeps its place: %v", err)
	}
	if third, err := net.Dial("tcp", addr); err == nil { // the reset may be quicker than Dial
		third.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := third.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a third connection is open: %v", err)
		}
		third.Close()
	}
	for i, c := range []*tls.Conn{first, second} {
		c.Write([]byte("x"))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("settled connection %d is gone: %v", i, err)
		}
	}
}

// A faultyListener fails as told before each connection.
type faultyListener struct {
	faults chan error
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newFaulty() *faultyListener {
	return &faultyListener{faults: make(chan error, 100), conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *faultyListener) Accept() (net.Conn, error) {
	select {
	case err := <-l.faults:
		return nil, err
	default:
	}
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *faultyListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *faultyListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestAcceptSurvivesErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFaulty()
		for _, err := range []error{
			&net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)},
			os.NewSyscallError("accept4", syscall.ECONNABORTED), errors.New("something else"), io.EOF,
		} {
			for range 5 {
				l.faults <- err
			}
		}
		var seen sync.WaitGroup
		seen.Add(1)
		start := time.Now()
		stop := serveOn(t, &Server{Router: routed(&Snapshot{Default: TargetFunc(func(_ context.Context, c *Conn) {
			seen.Done()
			c.Close()
		})})}, l)
		here, there := net.Pipe()
		go there.Write(madeHello())
		l.conns <- here
		seen.Wait()
		if took := time.Since(start); took < 10*time.Second || took > 30*time.Second {
			t.Errorf("20 errors took %v: no back-off, or too much", took)
		}
		stop()
		there.Close()
	})
}

// When there are no descriptors left, the oldest silent connection gives up its own.
func TestAcceptErrorMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFaulty()
		stop := serveOn(t, &Server{Router: NewRouter()}, l)
		here, there := net.Pipe()
		l.conns <- here
		synctest.Wait()
		l.faults <- syscall.EMFILE
		here2, there2 := net.Pipe() // wakes Accept up
		l.conns <- here2
		start := time.Now()
		if _, err := there.Read(make([]byte, 1)); err == nil || time.Since(start) > time.Second {
			t.Errorf("the silent connection stayed open for %v (%v)", time.Since(start), err)
		}
		stop()
		there2.Close()
	})
}

func TestServeEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFaulty()
		obeyed := make(chan struct{})
		router := routed(&Snapshot{Hosts: hosts(t, map[string]Target{
			"good.example.org": TargetFunc(func(ctx context.Context, c *Conn) {
				c.Settled()
				<-ctx.Done()
				c.Close()
				close(obeyed)
			}),
			"deaf.example.org": TargetFunc(func(_ context.Context, c *Conn) {
				c.Settled()
				io.Copy(io.Discard, c)
			}),
		})})
		stop := serveOn(t, &Server{Router: router}, l)
		var far []net.Conn
		for _, hello := range [][]byte{nil, madeHello(sniExt("good.example.org")), madeHello(sniExt("deaf.example.org"))} {
			here, there := net.Pipe()
			l.conns <- here
			if hello != nil {
				there.Write(hello)
			}
			far = append(far, there)
		}
		synctest.Wait()
		start := time.Now()
		stop()
		if took := time.Since(start); took != time.Second {
			t.Errorf("the end took %v, want the grace of 1s", took)
		}
		<-obeyed
		for i, c := range far {
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("connection %d: %v", i, err)
			}
		}
	})
}

// Who is still silent at the end has nothing to finish.
func TestServeEndsSilentAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFaulty()
		stop := serveOn(t, &Server{Router: NewRouter()}, l)
		here, there := net.Pipe()
		l.conns <- here
		synctest.Wait()
		start := time.Now()
		stop()
		if took := time.Since(start); took != 0 {
			t.Errorf("the end took %v", took)
		}
		there.Close()
	})
}

// Closing the listener alone lets the open connections finish.
func TestServeDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFaulty()
		finish := make(chan struct{})
		stop := serveOn(t, &Server{Router: routed(&Snapshot{Default: TargetFunc(func(ctx context.Context, c *Conn) {
			select {
			case <-finish:
			case <-ctx.Done():
				t.Error("the connection was cut")
			}
			c.Close()
		})})}, l)
		here, there := net.Pipe()
		l.conns <- here
		there.Write(madeHello())
		l.Close()
		time.Sleep(time.Hour)
		close(finish)
		synctest.Wait()
		stop()
		there.Close()
	})
}

func TestPanicEndsOneConnection(t *testing.T) {
	log, logger := newLog()
	addr := serve(t, &Server{Logger: logger, Router: routed(&Snapshot{
		Hosts:   hosts(t, map[string]Target{"ha.example.org": tlsEcho(t, "ha.example.org")}),
		Default: TargetFunc(func(context.Context, *Conn) { panic("boom") }),
	})})
	if _, err := answer(t, addr, madeHello()); err == nil {
		t.Error("a panic looks like a clean end")
	}
	mustEcho(t, addr, "ha.example.org")
	if !strings.Contains(log.String(), "boom") {
		t.Error("the log says nothing")
	}
}

// One line a connection, and no visitor writes lines of his own.
func TestLogLine(t *testing.T) {
	log, logger := newLog()
	addr := serve(t, &Server{Logger: logger, Router: routed(&Snapshot{
		Hosts: hosts(t, map[string]Target{"ha.example.org": TargetFunc(func(_ context.Context, c *Conn) {
			c.Fail(fmt.Errorf("client said %s", "a\nb\x1b[31m"+strings.Repeat("x", 10000)))
			c.Close()
		})}),
	})})
	for _, sent := range [][]byte{
		madeHello(sniExt("ha.example.org")), madeHello(sniExt("evil\nlevel=ERROR msg=owned" + strings.Repeat("y", 5000))), []byte("garbage"), nil,
	} {
		conn := dial(t, addr)
		conn.Write(sent)
		conn.CloseWrite()
		io.Copy(io.Discard, conn)
		<-log.line
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 4 {
		t.Fatalf("%d lines for 4 connections:\n%s", len(lines), log)
	}
	for i, want := range []string{"sni=ha.example.org in=", `sni="evil\\nlevel`, "not TLS", "EOF"} {
		if !strings.Contains(lines[i], want) || len(lines[i]) > 800 || strings.Contains(lines[i], "\x1b") {
			t.Errorf("line %d: want %q in %q", i, want, lines[i])
		}
	}
}
