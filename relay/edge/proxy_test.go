package edge

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// proxyHeader is what a load balancer writes; the empty address is LOCAL.
func proxyHeader(t testing.TB, version byte, from string) []byte {
	t.Helper()
	h := &proxyproto.Header{Version: version, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	if from != "" {
		src := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))
		dst := &net.TCPAddr{IP: net.ParseIP("198.51.100.9"), Port: 443}
		if src.IP.To4() == nil {
			dst.IP = net.ParseIP("2001:db8::9")
		}
		h = proxyproto.HeaderProxyFromAddrs(version, src, dst)
	}
	b, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// addresses is a target that tells who came.
func addresses(c chan<- [2]string) Target {
	return TargetFunc(func(_ context.Context, conn *Conn) {
		c <- [2]string{conn.RemoteAddr().String(), conn.LocalAddr().String()}
		h, _, err := readAll(conn)
		if err == nil {
			io.WriteString(conn, h.ServerName)
		}
		conn.Close()
	})
}

func TestProxyHeader(t *testing.T) {
	seen := make(chan [2]string, 1)
	log, logger := newLog()
	addr := serve(t, &Server{Logger: logger, ProxyFrom: loopback, Router: routed(&Snapshot{
		Hosts: hosts(t, map[string]Target{"ha.example.org": addresses(seen)}),
	})})
	hello := helloFor(t, "ha.example.org")
	tlv := proxyHeader(t, 2, "192.0.2.7:4711")
	tlv = append(tlv, 4, 1, 0)                   // a TLV of the load balancer's own: 256 bytes
	tlv = append(tlv, make([]byte, 256)...)      //
	tlv[14], tlv[15] = byte((12+3+256)>>8), 0x0f // 271
	for what, tt := range map[string]struct {
		header        []byte
		remote, local string
	}{
		"v1":               {proxyHeader(t, 1, "192.0.2.7:4711"), "192.0.2.7:4711", "198.51.100.9:443"},
		"v1, IPv6":         {proxyHeader(t, 1, "[2001:db8::7]:4711"), "[2001:db8::7]:4711", "[2001:db8::9]:443"},
		"v2":               {proxyHeader(t, 2, "192.0.2.7:4711"), "192.0.2.7:4711", "198.51.100.9:443"},
		"v2, IPv6":         {proxyHeader(t, 2, "[2001:db8::7]:4711"), "[2001:db8::7]:4711", "[2001:db8::9]:443"},
		"v2 with TLV":      {tlv, "192.0.2.7:4711", "198.51.100.9:443"},
		"v1, unknown":      {proxyHeader(t, 1, ""), "127.0.0.1", addr},
		"v2, health check": {proxyHeader(t, 2, ""), "127.0.0.1", addr},
	} {
		for _, size := range []int{1 << 20, 11, 1} { // in one segment with the hello, in many
			conn := dial(t, addr)
			conn.SetNoDelay(true)
			for part := range slices.Chunk(slices.Concat(tt.header, hello)[:len(tt.header)+5], size) {
				conn.Write(part)
			}
			conn.Write(hello[5:])
			if b, err := io.ReadAll(conn); err != nil || string(b) != "ha.example.org" {
				t.Errorf("%s: %q, %v", what, b, err)
				continue
			}
			if got := <-seen; !strings.HasPrefix(got[0], tt.remote) || got[1] != tt.local {
				t.Errorf("%s: the target saw %v", what, got)
			}
			log.wait(t)
		}
	}
	if s := log.String(); !strings.Contains(s, "remote=192.0.2.7:4711 proxy=127.0.0.1:") {
		t.Errorf("the log says %s", s)
	}
}

// From a load balancer's address nothing else is taken than a good header, and
// from any other address no header at all.
func TestProxyHeaderRefused(t *testing.T) {
	never := &Snapshot{Default: TargetFunc(func(_ context.Context, c *Conn) {
		t.Errorf("reached by %v", c.RemoteAddr())
		c.Close()
	})}
	behind := serve(t, &Server{ProxyFrom: loopback, Router: routed(never)})
	hello := madeHello()
	good := proxyHeader(t, 2, "192.0.2.7:4711")
	change := func(at int, to byte) []byte {
		b := slices.Clone(good)
		b[at] = to
		return b
	}
	for what, header := range map[string][]byte{
		"none":              nil,
		"v1 of no protocol": []byte("PROXY TCP5 192.0.2.7 198.51.100.9 1 2\r\n"),
		"v1 without space":  []byte("PROXYX TCP4 192.0.2.7 198.51.100.9 1 2\r\n"),
		"v1, bad address":   []byte("PROXY TCP4 192.0.2.777 198.51.100.9 1 2\r\n"),
		"v1, no address":    []byte("PROXY TCP4 0.0.0.0 198.51.100.9 1 2\r\n"),
		"v1, bad port":      []byte("PROXY TCP4 192.0.2.7 198.51.100.9 1 70000\r\n"),
		"v1 without CR":     []byte("PROXY TCP4 192.0.2.7 198.51.100.9 1 2\n"),
		"v1, endless":       []byte("PROXY " + strings.Repeat("x", 200)),
		"v2, version 3":     change(12, 0x31),
		"v2 of UDP":         change(13, 0x12),
		"v2 of unix":        change(13, 0x31),
		"v2 of nothing":     change(13, 0),
		"v2, too short":     change(15, 4),
		"v2, too long":      change(14, 0xff),
		"half of v2":        good[:8],
	} {
		if b, err := answer(t, behind, append(slices.Clone(header), hello...)); len(b) > 0 {
			t.Errorf("%s: answered %x, %v", what, b, err)
		}
	}
	direct := serve(t, &Server{ProxyFrom: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Router: routed(never)})
	for _, version := range []byte{1, 2} {
		if b, err := answer(t, direct, append(proxyHeader(t, version, "192.0.2.7:4711"), hello...)); len(b) > 0 {
			t.Errorf("version %d from elsewhere: answered %x, %v", version, b, err)
		}
	}
}

// The header has its place in the time for the hello.
func TestProxyHeaderDeadline(t *testing.T) {
	for _, sent := range []string{"", "PROXY TCP4", "PROXY TCP4 192.0.2.7 198.51.100.9 1 2\r\n"} {
		synctest.Test(t, func(t *testing.T) {
			l := newFaulty()
			stop := serveOn(t, &Server{ProxyFrom: loopback, Router: NewRouter()}, l)
			here, there := net.Pipe()
			l.conns <- from{here, "127.0.0.1:5"}
			go io.WriteString(there, sent)
			start := time.Now()
			if _, err := there.Read(make([]byte, 1)); err == nil || time.Since(start) != 10*time.Second {
				t.Errorf("%q: %v after %v", sent, err, time.Since(start))
			}
			stop()
		})
	}
}

// A from is a connection from somewhere.
type from struct {
	net.Conn
	addr string
}

func (f from) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(f.addr)) }

// One address may have so many strangers, whoever passes them on; the load
// balancer itself has no such bound, but those who say nothing are strangers
// all the same.
func TestProxyCaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFaulty()
		stop := serveOn(t, &Server{
			ProxyFrom: loopback, Limits: Limits{MaxConnsPerIP: 2, MaxConns: 8, HelloTimeout: time.Hour}, Router: NewRouter(),
		}, l)
		visit := func(header string) net.Conn {
			here, there := net.Pipe()
			l.conns <- from{here, "127.0.0.1:5"}
			if header != "" {
				if _, err := io.WriteString(there, header); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			return there
		}
		open := func(conn net.Conn) bool {
			conn.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := conn.Read(make([]byte, 1))
			return err != nil && err != io.EOF
		}
		a, b := "PROXY TCP4 192.0.2.1 198.51.100.9 1 2\r\n", "PROXY TCP4 192.0.2.2 198.51.100.9 1 2\r\n"
		a1, a2, b1 := visit(a), visit(a), visit(b)
		silent := []net.Conn{visit(""), visit(""), visit("")}
		for i, conn := range append(silent, a1, a2, b1) {
			if !open(conn) {
				t.Errorf("connection %d is closed below every limit", i)
			}
		}
		a3 := visit(a)
		if open(a1) || !open(a2) || !open(a3) || !open(b1) {
			t.Error("not the oldest one of the address made room")
		}
		for range 4 { // two more than eight
			silent = append(silent, visit(""))
		}
		if open(a2) || open(b1) || !open(silent[2]) || !open(silent[5]) {
			t.Error("not the oldest of all made room")
		}
		stop()
		for _, conn := range append(silent, a1, a2, a3, b1) {
			conn.Close()
		}
	})
}

func TestIsProxy(t *testing.T) {
	s := &serving{proxies: maskedPrefixes([]netip.Prefix{
		netip.MustParsePrefix("10.1.2.3/8"), netip.MustParsePrefix("::ffff:192.0.2.0/120"), netip.MustParsePrefix("2001:db8::1/128"), {},
	})}
	for addr, want := range map[string]bool{
		"10.200.0.1:5": true, "[::ffff:10.200.0.1]:5": true, "11.0.0.1:5": false, "192.0.2.77:5": true, "192.0.3.1:5": false,
		"[2001:db8::1]:5": true, "[2001:db8::2]:5": false, "[fe80::1%eth0]:5": false,
	} {
		if got := s.isProxy(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	if s.isProxy(&net.UnixAddr{Name: "x", Net: "unix"}) {
		t.Error("a unix socket is taken for a load balancer")
	}
}

// FuzzProxyHeader reads anything; a header does not depend on how it is cut
// into segments, and nothing behind it is lost.
func FuzzProxyHeader(f *testing.F) {
	for _, version := range []byte{1, 2} {
		for _, addr := range []string{"192.0.2.7:4711", "[2001:db8::7]:4711", ""} {
			f.Add(append(proxyHeader(f, version, addr), "and more"...))
		}
	}
	f.Add([]byte("PROXY TCP4 192.0.2.7 198.51.100.9 1 2 3 4 5\r\n"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		header, rest, err := readProxyHeader(bytes.NewReader(sent))
		again, _, err2 := readProxyHeader(iotest.OneByteReader(bytes.NewReader(sent)))
		if (err == nil) != (err2 == nil) || !bytes.Equal(header, again) {
			t.Fatalf("%x, %v, and byte by byte %x, %v", header, err, again, err2)
		}
		if err != nil {
			return
		}
		if len(header) > maxProxyV2 || !bytes.HasPrefix(sent, slices.Concat(header, rest)) {
			t.Fatalf("%x and %x are not what was sent first", header, rest)
		}
		remote, local, err := proxyAddrs(header)
		if err != nil {
			return
		}
		if (remote == nil) != (local == nil) {
			t.Fatalf("%v, %v", remote, local)
		}
		if remote != nil && !origin(remote).IsValid() {
			t.Fatalf("%v is no address", remote)
		}
	})
}
