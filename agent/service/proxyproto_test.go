package service

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"testing"

	"github.com/sallyport/sallyport/protocol"
)

// decodeProxyV2 reads a header as nginx and HAProxy do, from the text of the
// specification: independent of appendProxyHeader.
func decodeProxyV2(b []byte) (src, dst netip.AddrPort, rest []byte, err error) {
	if len(b) < 16 || hex.EncodeToString(b[:12]) != "0d0a0d0a000d0a515549540a" {
		return src, dst, nil, errors.New("no signature")
	}
	n := int(binary.BigEndian.Uint16(b[14:]))
	if len(b) < 16+n {
		return src, dst, nil, errors.New("short")
	}
	body, rest := b[16:16+n], b[16+n:]
	switch {
	case b[12] == 0x20:
		return src, dst, rest, nil // LOCAL
	case b[12] != 0x21:
		return src, dst, nil, fmt.Errorf("version and command %#x", b[12])
	}
	size := map[byte]int{0x11: 4, 0x21: 16}[b[13]]
	if size == 0 || n < 2*size+4 {
		return src, dst, nil, fmt.Errorf("family %#x with %d bytes", b[13], n)
	}
	at := func(i int, port int) netip.AddrPort {
		a, _ := netip.AddrFromSlice(body[i : i+size])
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(body[port:]))
	}
	return at(0, 2*size), at(size, 2*size+2), rest, nil
}

func TestProxyHeader(t *testing.T) {
	const sig = "0d0a0d0a000d0a515549540a"
	for _, tc := range []struct {
		name          string
		client, local string
		golden        string
		src, dst      string
	}{
		{"IPv4", "203.0.113.9:50000", "198.51.100.1:443", sig + "2111000c" + "cb007109" + "c6336401" + "c350" + "01bb", "203.0.113.9:50000", "198.51.100.1:443"},
		{"IPv4 in IPv6", "[::ffff:203.0.113.9]:50000", "198.51.100.1:443", "", "203.0.113.9:50000", "198.51.100.1:443"},
		{"IPv6", "[2001:db8::9]:50000", "[2001:db8::1]:443", sig + "21210024" + "20010db8000000000000000000000009" + "20010db8000000000000000000000001" + "c350" + "01bb", "[2001:db8::9]:50000", "[2001:db8::1]:443"},
		{"mixed", "203.0.113.9:50000", "[2001:db8::1]:443", "", "[::ffff:203.0.113.9]:50000", "[2001:db8::1]:443"},
		{"no local address", "203.0.113.9:50000", "", "", "203.0.113.9:50000", "0.0.0.0:0"},
		{"no client", "", "198.51.100.1:443", sig + "20000000", "invalid AddrPort", "invalid AddrPort"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var o protocol.Open
			if tc.client != "" {
				o.Client = netip.MustParseAddrPort(tc.client)
			}
			if tc.local != "" {
				o.Local = netip.MustParseAddrPort(tc.local)
			}
			got := appendProxyHeader(nil, o)
			if tc.golden != "" && hex.EncodeToString(got) != tc.golden {
				t.Errorf("got  %x\nwant %s", got, tc.golden)
			}
			src, dst, rest, err := decodeProxyV2(append(got, "GET"...))
			if err != nil || src.String() != tc.src || dst.String() != tc.dst || string(rest) != "GET" {
				t.Errorf("decoded %v → %v, rest %q, %v", src, dst, rest, err)
			}
		})
	}
}

func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte{192, 0, 2, 1}, uint16(1), []byte{192, 0, 2, 2}, uint16(2))
	f.Add([]byte("0123456789abcdef"), uint16(1), []byte{}, uint16(2))
	f.Fuzz(func(t *testing.T, client []byte, clientPort uint16, local []byte, localPort uint16) {
		var o protocol.Open
		if a, ok := netip.AddrFromSlice(client); ok {
			o.Client = netip.AddrPortFrom(a, clientPort)
		}
		if a, ok := netip.AddrFromSlice(local); ok {
			o.Local = netip.AddrPortFrom(a, localPort)
		}
		src, _, rest, err := decodeProxyV2(appendProxyHeader(nil, o))
		if err != nil || len(rest) != 0 {
			t.Fatalf("%+v: %v, %d bytes too many", o, err, len(rest))
		}
		if o.Client.IsValid() && (src.Addr().Unmap() != o.Client.Addr().Unmap() || src.Port() != clientPort) {
			t.Fatalf("%v became %v", o.Client, src)
		}
	})
}

func TestServeProxyProtocol(t *testing.T) {
	l := listen(t)
	h := newHome(t, Entry{Name: "x", Target: "tcp://" + l.Addr().String(), ProxyProtocol: true})
	s, r, _ := h.open(t, t.Context(), visitorOpen)
	if r.Code != protocol.CodeOK {
		t.Fatal(r)
	}
	io.WriteString(s, "GET")
	s.CloseWrite()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, _ := io.ReadAll(c)
	src, dst, rest, err := decodeProxyV2(b)
	if err != nil || src != visitorOpen.Client || dst != visitorOpen.Local || string(rest) != "GET" {
		t.Errorf("%v → %v, %q, %v", src, dst, rest, err)
	}
}
