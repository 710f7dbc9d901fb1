package lan

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestRealSockets asks a responder on the loopback interface, on a port of its
// own, in both address families.
func TestRealSockets(t *testing.T) {
	lack := func(format string, args ...any) {
		if os.Getenv("CI") == "true" {
			t.Fatalf(format, args...)
		}
		t.Skipf(format, args...)
	}
	lo := loopback()
	if lo == nil {
		lack("there is no loopback interface")
	}
	free, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(free.LocalAddr().(*net.UDPAddr).Port)
	free.Close()
	sockets, err := openSockets([]net.Interface{*lo}, port)
	if err != nil {
		lack("no multicast on the loopback interface: %v", err)
	}
	l := link{iface: *lo, prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("::1/128")}}
	r := &responder{stations: []*station{newStation(l, testZone())}, sockets: sockets}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})

	answered := 0
	for _, s := range sockets {
		network, to := "udp4", netip.MustParseAddr("127.0.0.1")
		if _, six := s.(*socket6); six {
			network, to = "udp6", netip.MustParseAddr("::1")
		}
		c, err := net.DialUDP(network, nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, port)))
		if err != nil {
			t.Logf("%s: %v", network, err)
			continue
		}
		defer c.Close()
		conn := &dns.Conn{Conn: c}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if err := conn.WriteMsg(question("attic.local.", dns.TypeA)); err != nil {
			t.Errorf("%s: %v", network, err)
			continue
		}
		m, err := conn.ReadMsg()
		if err != nil || len(m.Answer) != 1 {
			t.Errorf("%s: %v %v", network, m, err)
			continue
		}
		answered++
	}
	if answered == 0 {
		t.Error("no family answered")
	}

	// Somebody else on this machine hears what is said to everybody.
	other, err := openSocket4([]net.Interface{*lo}, port)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	other.(*socket4).SetReadDeadline(time.Now().Add(5 * time.Second))
	r.announce(false)
	buf := make([]byte, maxMDNSPacket)
	n, iface, _, err := other.read(buf)
	m := new(dns.Msg)
	if err != nil || iface != lo.Index || m.Unpack(buf[:n]) != nil || len(m.Answer) != 5 {
		t.Errorf("multicast: %v on %d: %v", err, iface, m)
	}
}

func loopback() *net.Interface {
	ifaces, _ := net.Interfaces()
	for _, i := range ifaces {
		if i.Flags&net.FlagLoopback != 0 && i.Flags&net.FlagUp != 0 {
			return &i
		}
	}
	return nil
}
