package service

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/packets"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

var gameEntry = Entry{Name: "game", Target: "udp://192.0.2.7:5000", Port: 5000, Auth: protocol.AuthNone}

// fakeUDP is a connected UDP socket in memory. Errors in in are what ICMP told.
type fakeUDP struct {
	net.Conn // nil: only what follows is used
	in       chan any
	sent     chan string
	closed   chan struct{}
	once     sync.Once

	mu     sync.Mutex // guards refuse
	refuse error      // the next Write fails so
}

func (c *fakeUDP) Read(b []byte) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	case x := <-c.in:
		if err, ok := x.(error); ok {
			return 0, err
		}
		return copy(b, x.(string)), nil
	}
}

func (c *fakeUDP) Write(b []byte) (int, error) {
	c.mu.Lock()
	err := c.refuse
	c.refuse = nil
	c.mu.Unlock()
	if err != nil {
		return 0, err
	}
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	case c.sent <- string(b):
		return len(b), nil
	}
}

func (c *fakeUDP) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// udpHome is a table with a UDP service, over a session in memory.
type udpHome struct {
	*home
	agent, relay tunnel.Session
	sockets      chan *fakeUDP
}

func newUDPHome(t *testing.T, entries ...Entry) *udpHome {
	t.Helper()
	h := &udpHome{home: &home{}, sockets: make(chan *fakeUDP, 10)}
	h.agent, h.relay = tunneltest.Pair(t)
	h.Table = NewTable(slog.New(slog.NewTextHandler(h.home, nil)), fakeResolver{})
	h.Dial = func(_ context.Context, network, address string) (net.Conn, error) {
		if network != "udp" || address != "192.0.2.7:5000" {
			t.Errorf("dialled %s %s", network, address)
		}
		c := &fakeUDP{in: make(chan any, 100), sent: make(chan string, 100), closed: make(chan struct{})}
		h.sockets <- c
		return c, nil
	}
	if err := h.Set(entries); err != nil {
		t.Fatal(err)
	}
	return h
}

// flow opens a flow; its end is known when done is closed.
func (h *udpHome) flow(t *testing.T, ctx context.Context) (visitor *packets.Conn, home *fakeUDP, done chan struct{}) {
	t.Helper()
	st, err := h.relay.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	done = make(chan struct{})
	go func() {
		defer close(done)
		if s, err := h.agent.AcceptStream(ctx); err == nil {
			h.ServeStream(ctx, s)
		}
	}()
	o := visitorOpen
	o.Service, o.SNI, o.Packets = "game", "", true
	if err := protocol.WriteOpen(st, o); err != nil {
		t.Fatal(err)
	}
	if r, err := protocol.ReadResult(st); err != nil || r.Code != protocol.CodeOK {
		t.Fatalf("%+v, %v; log:\n%s", r, err, h.logged())
	}
	return packets.New(st), <-h.sockets, done
}

// mustGet waits for a packet at the backend.
func (c *fakeUDP) mustGet(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-c.sent:
		if got != want {
			t.Fatalf("home got %.40q (%d bytes), want %.40q (%d)", got, len(got), want, len(want))
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("home got nothing, want %.40q (%d bytes)", want, len(want))
	}
}

func mustReadPacket(t *testing.T, c *packets.Conn, want string) {
	t.Helper()
	buf := make([]byte, bigPacket)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	defer c.SetReadDeadline(time.Time{})
	n, err := c.ReadPacket(buf)
	if err != nil || string(buf[:n]) != want {
		t.Fatalf("got %.40q (%d bytes), %v; want %.40q", buf[:n], n, err, want)
	}
}

func TestDatagrams(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		h := newUDPHome(t, gameEntry)
		visitor, home, done := h.flow(t, t.Context())
		for _, p := range []string{"hello", "", strings.Repeat("x", 1452), strings.Repeat("y", smallPacket+1), strings.Repeat("z", packets.MaxPacket)} {
			visitor.WritePacket([]byte(p))
			home.mustGet(t, p)
			home.in <- p
			mustReadPacket(t, visitor, p)
		}
		// Another visitor has a socket of its own.
		second, other, otherDone := h.flow(t, t.Context())
		other.in <- "for the second"
		mustReadPacket(t, second, "for the second")
		visitor.Close()
		<-done
		select {
		case <-home.closed:
		default:
			t.Error("the socket is open after the flow")
		}
		second.WritePacket([]byte("still here"))
		other.mustGet(t, "still here")
		second.Reset(protocol.CodeIdle)
		<-otherDone
		if log := h.logged(); !strings.Contains(log, "packets_in=5 packets_out=5") || !strings.Contains(log, "client=203.0.113.9:50000") {
			t.Errorf("log:\n%s", log)
		}
	})
}

// A backend that restarts answers again afterwards: what ICMP says ends nothing,
// and costs no packet.
func TestDatagramsRefused(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		h := newUDPHome(t, gameEntry)
		visitor, home, done := h.flow(t, t.Context())
		home.in <- &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNREFUSED)}
		home.in <- &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.EHOSTUNREACH)}
		home.mu.Lock()
		home.refuse = &net.OpError{Op: "write", Err: os.NewSyscallError("write", syscall.ECONNREFUSED)}
		home.mu.Unlock()
		visitor.WritePacket([]byte("again"))
		home.mustGet(t, "again")
		home.mu.Lock()
		home.refuse = os.NewSyscallError("write", syscall.EMSGSIZE)
		home.mu.Unlock()
		visitor.WritePacket([]byte("too large for the path"))
		visitor.WritePacket([]byte("small"))
		home.mustGet(t, "small")
		home.in <- "back"
		mustReadPacket(t, visitor, "back")
		visitor.Close()
		<-done
		if log := h.logged(); !strings.Contains(log, "refused=3 dropped=1") {
			t.Errorf("log:\n%s", log)
		}
	})
}

// Any other error of the socket ends the flow, and not cleanly.
func TestDatagramsBroken(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		h := newUDPHome(t, gameEntry)
		visitor, home, done := h.flow(t, t.Context())
		home.in <- errors.New("the interface is on fire")
		<-done
		_, err := visitor.ReadPacket(make([]byte, bigPacket))
		if reset, ok := errors.AsType[*tunnel.ResetError](err); !ok || reset.Code != protocol.CodeAborted {
			t.Errorf("the relay saw %v", err)
		}
		if !strings.Contains(h.logged(), "on fire") {
			t.Errorf("log:\n%s", h.logged())
		}
	})
}

// Flows end with their service and with their session, and when a relay forgets
// them.
func TestDatagramsEnd(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		h := newUDPHome(t, gameEntry)
		ctx, cancel := context.WithCancel(t.Context())
		visitor, home, done := h.flow(t, ctx)
		second, _, secondDone := h.flow(t, t.Context())

		start := time.Now()
		time.Sleep(flowIdle - time.Minute) // virtual
		home.in <- "x"
		mustReadPacket(t, visitor, "x")
		<-secondDone
		if took := time.Since(start); took != flowIdle {
			t.Errorf("a forgotten flow ended after %v", took)
		}
		if _, err := second.ReadPacket(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("it ended with %v", err)
		}

		visitor.WritePacket([]byte("alive"))
		home.mustGet(t, "alive")
		third, _, thirdDone := h.flow(t, t.Context())
		cancel()
		<-done
		synctest.Wait()
		select {
		case <-thirdDone:
			t.Fatal("another session's flow ended")
		default:
		}
		h.Set(nil)
		<-thirdDone
		_, err := third.ReadPacket(make([]byte, 1))
		if reset, ok := errors.AsType[*tunnel.ResetError](err); !ok || reset.Code != protocol.CodeUnknownService {
			t.Errorf("the relay saw %v", err)
		}
	})
}

// The kernel's sockets, with no buffer for those that wait.
func TestDatagramsOverLoopback(t *testing.T) {
	backend, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	agent, relay := tunneltest.Pair(t)
	h := newHome(t, Entry{Name: "x", Target: "udp://" + backend.LocalAddr().String(), Port: 9, Auth: protocol.AuthNone})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	st, err := relay.OpenStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if s, err := agent.AcceptStream(ctx); err == nil {
			h.ServeStream(ctx, s)
		}
	}()
	o := visitorOpen
	o.Packets = true
	protocol.WriteOpen(st, o)
	if r, err := protocol.ReadResult(st); err != nil || r.Code != protocol.CodeOK {
		t.Fatal(r, err)
	}
	c := packets.New(st)
	buf := make([]byte, bigPacket)
	backend.SetDeadline(time.Now().Add(10 * time.Second))
	for _, size := range []int{0, 1, 1452, packets.MaxPacket} {
		p := bytes.Repeat([]byte{7}, size)
		c.WritePacket(p)
		n, from, err := backend.ReadFromUDPAddrPort(buf)
		if err != nil || !bytes.Equal(buf[:n], p) {
			t.Fatalf("%d bytes of %d, %v", n, size, err)
		}
		backend.WriteToUDPAddrPort(p, from)
		mustReadPacket(t, c, string(p))
	}
	// The backend goes; the flow stays.
	backend.Close()
	for range 3 {
		c.WritePacket([]byte("anybody?"))
	}
	c.Close()
	<-done
	if !strings.Contains(h.logged(), "datagrams ended") {
		t.Errorf("log:\n%s", h.logged())
	}
}

// What the relay asks for must be what the service is.
func TestDatagramsOfTheRightService(t *testing.T) {
	l := listen(t)
	h := newHome(t,
		Entry{Name: "tcp", Target: "tcp://" + l.Addr().String()},
		Entry{Name: "udp", Target: "udp://" + l.Addr().String(), Port: 1, Auth: protocol.AuthNone},
		Entry{Name: "e2e", Target: "tcp://" + l.Addr().String(), TLS: protocol.TLSAgent},
	)
	h.EndToEnd = func(_ context.Context, c tunnel.Conn, _ protocol.Open) { c.Close() }
	for _, tc := range []struct {
		service string
		packets bool
		code    protocol.Code
	}{
		{"tcp", false, protocol.CodeOK},
		{"tcp", true, protocol.CodeRefused},
		{"udp", false, protocol.CodeRefused},
		{"udp", true, protocol.CodeOK},
		{"e2e", false, protocol.CodeOK},
		{"e2e", true, protocol.CodeRefused},
	} {
		o := visitorOpen
		o.Service, o.Packets = tc.service, tc.packets
		s, r, done := h.open(t, t.Context(), o)
		if r.Code != tc.code {
			t.Errorf("%s with packets %v: %+v", tc.service, tc.packets, r)
		}
		s.Reset(protocol.CodeAborted)
		<-done
	}
	_, err := h.DialBackend(t.Context(), "udp", visitorOpen)
	if fault, ok := errors.AsType[*DialError](err); !ok || fault.Code != protocol.CodeRefused {
		t.Errorf("a connection to a UDP service: %v", err)
	}
}
