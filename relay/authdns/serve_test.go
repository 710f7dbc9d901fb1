package authdns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// serve runs the server on loopback sockets until the test ends.
func serve(t *testing.T, w *world) string {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Serve(ctx, udp, tcp) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return tcp.Addr().String()
}

func TestServe(t *testing.T) {
	w := newWorld(t)
	server := serve(t, w)
	for _, network := range []string{"udp", "tcp"} {
		m, err := Ask(t.Context(), network, server, question("HA.example.org", dns.TypeA, true))
		if err != nil {
			t.Fatalf("%s: %v", network, err)
		}
		check(t, network, m.Answer, "A 203.0.113.1")
	}
	values := []string{string(make([]byte, 250)), string(make([]byte, 249)), string(make([]byte, 248)), string(make([]byte, 247)), string(make([]byte, 246))}
	if err := w.txt.SetTXT(challenge, values, 0); err != nil {
		t.Fatal(err)
	}
	m, err := Ask(t.Context(), "udp", server, question(challenge, dns.TypeTXT, true))
	if err != nil || len(m.Answer) != 5 {
		t.Fatalf("an answer too large for UDP: %v, %v", m, err)
	}
	if st := w.Status(); st.UDP != 2 || st.TCP != 2 || st.Truncated != 1 || st.Answered != 4 || st.Zone != "example.org" {
		t.Errorf("status %+v", st)
	}
}

// Several questions on one connection, the second cut into single bytes.
func TestTCPConversation(t *testing.T) {
	w := newWorld(t)
	conn, err := net.Dial("tcp", serve(t, w))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	p := packet(t, "ha.example.org", dns.TypeA)
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...)
	if _, err := conn.Write(append(framed, framed...)); err != nil {
		t.Fatal(err)
	}
	for _, b := range framed {
		if _, err := conn.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, buf); err != nil {
			t.Fatal(err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(buf); err != nil || len(m.Answer) != 1 {
			t.Fatalf("%v %v", m, err)
		}
	}
}

// What is no question ends the connection at once.
func TestTCPNoQuestion(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, w *world, l *memListener) {
		huge, small, noise := l.dial("192.0.2.1"), l.dial("192.0.2.1"), l.dial("192.0.2.1")
		for c, p := range map[net.Conn][]byte{huge: {0xff, 0xff}, small: {0, 11}, noise: append([]byte{0, 20}, make([]byte, 20)...)} {
			if _, err := c.Write(p); err != nil {
				t.Fatal(err)
			}
		}
		if !closed(huge) || !closed(small) || closed(noise) {
			t.Error("a size that no question has was waited for, or one that it may have was not")
		}
	})
}

// The end of ctx ends everything, connections in the middle of a question too.
func TestServeEnds(t *testing.T) {
	w := newWorld(t)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Serve(ctx, nil, tcp) }()
	conn, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection lives on")
	}
	if n := w.conns.len(); n != 0 {
		t.Errorf("%d connections left", n)
	}
}

// A socket that somebody else closes is an error; the other is closed with it.
func TestSocketLost(t *testing.T) {
	for _, lost := range []string{"udp", "tcp"} {
		w := newWorld(t)
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if lost == "udp" {
			_ = udp.Close()
		} else {
			_ = tcp.Close()
		}
		if err := w.Serve(t.Context(), udp, tcp); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s lost: %v", lost, err)
		}
	}
	if err := newWorld(t).Serve(t.Context(), nil, nil); err == nil {
		t.Error("no socket at all was fine")
	}
}

// A machine with several addresses answers from the one that was asked.
func TestAnswersFromTheAddressAsked(t *testing.T) {
	w := newWorld(t)
	udp, err := net.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Serve(ctx, udp, nil) }()
	defer func() { cancel(); <-done }()
	_, port, _ := net.SplitHostPort(udp.LocalAddr().String())
	client, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, ip := range []string{"127.0.0.1", "127.0.0.2"} { // Linux answers on all of 127/8
		to, err := net.ResolveUDPAddr("udp", net.JoinHostPort(ip, port))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.WriteTo(packet(t, "ha.example.org", dns.TypeA), to); err != nil {
			t.Skipf("this machine has no %s: %v", ip, err)
		}
		_ = client.SetDeadline(time.Now().Add(10 * time.Second))
		_, from, err := client.ReadFrom(make([]byte, 2000))
		if err != nil {
			t.Fatal(err)
		}
		if from.String() != to.String() {
			t.Errorf("asked %s, answered by %s", to, from)
		}
	}
}

// A network in memory: connections from addresses of choice.
type memListener struct {
	conns chan net.Conn
	once  sync.Once
	end   chan struct{}
}

func newMemListener() *memListener {
	return &memListener{conns: make(chan net.Conn), end: make(chan struct{})}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		if c == nil {
			return nil, errors.New("too many open files")
		}
		return c, nil
	case <-l.end:
		return nil, net.ErrClosed
	}
}
func (l *memListener) Close() error   { l.once.Do(func() { close(l.end) }); return nil }
func (l *memListener) Addr() net.Addr { return &net.TCPAddr{} }

type memConn struct {
	net.Conn
	from netip.Addr
}

func (c memConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.from, 4242))
}

func (l *memListener) dial(from string) net.Conn {
	here, there := net.Pipe()
	l.conns <- memConn{there, netip.MustParseAddr(from)}
	return here
}

// closed reports whether the other side has closed; in a bubble.
func closed(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

func inBubble(t *testing.T, limits Limits, story func(t *testing.T, w *world, l *memListener)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Limits = limits })
		l := newMemListener()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Serve(ctx, nil, l) }()
		story(t, w, l)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// Ten seconds for a whole question, however slowly its bytes come.
func TestSlowTCP(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, w *world, l *memListener) {
		silent, slow := l.dial("192.0.2.1"), l.dial("192.0.2.1")
		p := packet(t, "ha.example.org", dns.TypeA)
		for i := range 9 {
			if _, err := slow.Write(append([]byte{0, byte(len(p))}, p...)[i : i+1]); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // virtual
		}
		if closed(silent) || closed(slow) {
			t.Error("ended before ten seconds")
		}
		time.Sleep(2 * time.Second) // virtual
		if !closed(silent) || !closed(slow) {
			t.Error("not ended after ten seconds")
		}
		synctest.Wait()
		if n := w.conns.len(); n != 0 {
			t.Errorf("%d connections counted", n)
		}
	})
}

func TestCrowdOfConnections(t *testing.T) {
	inBubble(t, Limits{TCPConns: 3, TCPPerSource: 2, Idle: time.Hour}, func(t *testing.T, w *world, l *memListener) {
		a, b := l.dial("192.0.2.1"), l.dial("192.0.2.99")
		if third := l.dial("192.0.2.3"); !closed(third) {
			t.Error("a third connection of one network")
		}
		p := packet(t, "ha.example.org", dns.TypeA)
		if _, err := a.Write(append([]byte{0, byte(len(p))}, p...)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(a, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(io.Discard, a) }()
		c := l.dial("198.51.100.1")
		synctest.Wait()
		d := l.dial("203.0.113.1")
		if !closed(b) {
			t.Error("the one that asked nothing did not make room")
		}
		if closed(c) || closed(d) || w.conns.len() != 3 {
			t.Errorf("%d connections", w.conns.len())
		}
		if e := l.dial("192.0.2.7"); closed(e) {
			t.Error("room of the one that went was not given back to its network")
		}
		for range 5 {
			l.conns <- nil // Accept fails
		}
		if again := l.dial("100.64.0.1"); closed(again) {
			t.Error("no connection after Accept has failed")
		}
	})
}
