package ports

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

var silentLog = slog.New(slog.DiscardHandler)

// roundTrip sends a packet from a visitor at client to addr and answers it; the
// visitor's socket is connected and takes answers from addr only.
func roundTrip(t *testing.T, s socket, network, client, addr string) (key flowKey) {
	t.Helper()
	from, err := net.ResolveUDPAddr(network, client)
	if err != nil {
		t.Fatal(err)
	}
	to, err := net.ResolveUDPAddr(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	visitor, err := net.DialUDP(network, from, to)
	if err != nil {
		t.Fatal(err)
	}
	defer visitor.Close()
	visitor.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, bigPacket)
	if _, err := visitor.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if u, ok := s.(*kernelSocket); ok {
		u.conn.SetDeadline(time.Now().Add(10 * time.Second))
	}
	n, key, err := s.read(buf)
	if err != nil || string(buf[:n]) != "ping" || key.client.Port() != addrPort(visitor.LocalAddr()).Port() {
		t.Fatalf("%s to %s: %q from %v, %v", client, addr, buf[:n], key.client, err)
	}
	if err := s.write([]byte("pong"), key.client, s.replyFrom(key)); err != nil {
		t.Fatal(err)
	}
	if n, err := visitor.Read(buf); err != nil || string(buf[:n]) != "pong" {
		t.Fatalf("the visitor at %s got %q, %v", client, buf[:n], err)
	}
	return key
}

func TestSocketOfOneAddress(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newSocket(c, silentLog)
	defer s.close()
	if _, ok := s.(*kernelSocket); !ok {
		t.Errorf("a %T", s)
	}
	key := roundTrip(t, s, "udp", "127.0.0.1:0", c.LocalAddr().String())
	if key.local.String() != "127.0.0.1" || s.replyFrom(key) != nil {
		t.Errorf("%+v", key)
	}
}

// A control message that the kernel does not take is left out.
func TestSocketForeignSource(t *testing.T) {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newSocket(c, silentLog).(*kernelSocket)
	defer s.close()
	to := addrPort(c.LocalAddr())
	s.local = netip.Addr{}
	reply := s.replyFrom(flowKey{local: netip.MustParseAddr("203.0.113.77")})
	if len(reply) == 0 {
		t.Fatal("no control message")
	}
	if err := s.write([]byte("x"), to, reply); err != nil {
		t.Error(err)
	}
}

func TestDestination(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, from := range []netip.Addr{four, six} {
		if got := destination(nil, from); got.IsValid() {
			t.Errorf("from %v without a message: %v", from, got)
		}
	}
	// What is sent has the layout of what is received, as far as we look.
	if got := destination((&ipv6.ControlMessage{Src: six.AsSlice()}).Marshal(), six); got != six {
		t.Errorf("IPv6: %v", got)
	}
	// A socket of both families tells of IPv4 in IPv6's words.
	as16 := four.As16()
	mapped := bytes.Replace((&ipv6.ControlMessage{Src: six.AsSlice()}).Marshal(), six.AsSlice(), as16[:], 1)
	if got := destination(mapped, four); got != four {
		t.Errorf("IPv4 in IPv6: %v", got)
	}
	if got := destination(mapped, six); got.IsValid() {
		t.Errorf("a visitor of IPv6 reached %v", got)
	}
}

func FuzzDestination(f *testing.F) {
	f.Add([]byte{}, true)
	f.Add((&ipv4.ControlMessage{Src: net.IPv4(192, 0, 2, 1)}).Marshal(), true)
	f.Add((&ipv6.ControlMessage{Src: net.ParseIP("2001:db8::1")}).Marshal(), false)
	f.Fuzz(func(t *testing.T, oob []byte, is4 bool) {
		from := netip.MustParseAddr("2001:db8::9")
		if is4 {
			from = netip.MustParseAddr("192.0.2.9")
		}
		if got := destination(oob, from); got.IsValid() && got.Is4() != is4 {
			t.Errorf("a visitor at %v reached %v", from, got)
		}
	})
}

func TestPlainSocket(t *testing.T) {
	c := newFakeSocket()
	s := newSocket(c, silentLog)
	c.send(alice, "x")
	buf := make([]byte, 10)
	n, key, err := s.read(buf)
	if err != nil || n != 1 || key.client.String() != alice || key.local.String() != "198.51.100.1" {
		t.Errorf("%d, %+v, %v", n, key, err)
	}
	s.close()
	if _, _, err := s.read(buf); err == nil {
		t.Error("read from a closed socket")
	}
}
