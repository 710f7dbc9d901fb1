package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel"
)

// gone fails unless the far end is closed or aborted.
func gone(t testing.TB, what string, conn net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%s is still open", what)
	}
}

// Anybody can name a claimed host in a hello. Who stops there is a stranger:
// the cap of its address and the eviction hold for it.
func TestHelloAloneIsAStranger(t *testing.T) {
	hello := helloFor(t, "ha.example.org")
	for name, limits := range map[string]Limits{"per address": {MaxConnsPerIP: 3}, "of all": {MaxConns: 3}} {
		addr := serve(t, &Server{
			Router: routed(&Snapshot{Hosts: hosts(t, map[string]Target{"ha.example.org": tlsEcho(t, "ha.example.org")})}),
			Limits: limits,
		})
		var stuck []net.Conn
		for range 10 {
			conn := dial(t, addr)
			conn.Write(hello)
			stuck = append(stuck, conn)
		}
		for i, conn := range stuck[:7] {
			conn.SetReadDeadline(time.Now().Add(3 * time.Second))
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%s: connection %d of 10 with nothing but a hello is still open", name, i)
			}
		}
		mustEcho(t, addr, "ha.example.org")
	}
}

// An address may have so many settled connections. Those in use stay, the
// newcomer goes, and the log says why.
func TestCapOfSettledPerAddress(t *testing.T) {
	log, logger := newLog()
	addr := serve(t, &Server{
		Router: routed(&Snapshot{Hosts: hosts(t, map[string]Target{"ha.example.org": tlsEcho(t, "ha.example.org")})}),
		Limits: Limits{MaxSettledPerIP: 2}, Logger: logger,
	})
	visit := func() (*tls.Conn, error) {
		c := tls.Client(dial(t, addr), &tls.Config{ServerName: "ha.example.org", InsecureSkipVerify: true})
		c.Write([]byte("x"))
		_, err := io.ReadFull(c, make([]byte, 1))
		return c, err
	}
	first, err1 := visit()
	second, err2 := visit()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if _, err := visit(); err == nil {
		t.Error("a third settled connection is served")
	}
	log.wait(t)
	if !strings.Contains(log.String(), errCrowded.Error()) {
		t.Errorf("the log does not say why: %s", log)
	}
	for i, c := range []*tls.Conn{first, second} {
		c.Write([]byte("x"))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("settled connection %d is gone: %v", i, err)
		}
	}
	first.Close()
	log.wait(t) // it has left
	if _, err := visit(); err != nil {
		t.Errorf("the place of the one that left is not free: %v", err)
	}
}

// Settling twice, or after the end, counts once and never below zero.
func TestSettleCountsOnce(t *testing.T) {
	c := newCrowd(Limits{}.withDefaults())
	here, there := net.Pipe()
	defer there.Close()
	m := c.admit(here)
	c.settle(m)
	c.settle(m)
	if c.settled[m.from] != 1 || c.strangers.Len() != 0 || len(c.perIP) != 0 {
		t.Errorf("settled %v, strangers %d", c.settled, c.strangers.Len())
	}
	for range 2 {
		if err := c.leave(m); err != nil {
			t.Error(err)
		}
	}
	c.settle(m)
	if len(c.settled) != 0 || len(c.all) != 0 {
		t.Errorf("after the end: settled %v, all %d", c.settled, len(c.all))
	}
	new(Conn).Settled() // nobody counts: no server
}

// A connection that is passed through is a stranger's until the home answered.
func TestPassthroughSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFaulty()
		answered, opened := make(chan struct{}), make(chan struct{}, 2)
		target := Passthrough{Open: func(ctx context.Context, _ *Conn) (tunnel.Stream, error) {
			opened <- struct{}{}
			select {
			case <-answered:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			home, far := net.Pipe()
			go io.Copy(io.Discard, far)
			return memStream{home}, nil
		}}
		stop := serveOn(t, &Server{
			Router: routed(&Snapshot{Hosts: hosts(t, map[string]Target{"nas.example.org": target})}),
			Limits: Limits{MaxConnsPerIP: 1},
		}, l)
		visit := func() net.Conn {
			here, there := net.Pipe()
			l.conns <- here
			there.Write(madeHello(sniExt("nas.example.org")))
			<-opened
			return there
		}
		waiting := visit()
		second := visit()
		gone(t, "a visitor whom the home has not answered", waiting)
		close(answered)
		synctest.Wait() // both are through, the first one in vain
		here, third := net.Pipe()
		l.conns <- here
		synctest.Wait()
		if _, err := second.Write([]byte("x")); err != nil {
			t.Errorf("a visitor whom the home has answered makes room: %v", err)
		}
		stop()
		second.Close()
		third.Close()
	})
}
