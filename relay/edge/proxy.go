package edge

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	proxyproto "github.com/pires/go-proxyproto"
)

// A load balancer says in front of everything whose connection it passes on:
// in a line of text (version 1) or a binary header (version 2) of the PROXY
// protocol. Whoever may send one may claim any address, so that it is read
// from configured addresses only, and never guessed.

const (
	maxProxyV1    = 107 // of the line with its CRLF, by the protocol
	proxyV2Header = 16
	maxProxyV2    = 4 << 10 // extensions (TLVs) included; real ones have a few hundred bytes
)

var (
	errNoProxy   = errors.New("no PROXY header: this address is configured as a load balancer that sends one")
	errProxyLong = errors.New("the PROXY header is too long")
	errProxyKind = errors.New("the PROXY header is not about a TCP connection")
)

// isProxy reports whether an address is one of a load balancer.
func (s *serving) isProxy(addr net.Addr) bool {
	if len(s.proxies) == 0 {
		return false
	}
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return false
	}
	ip := ap.Addr().Unmap().WithZone("")
	for _, p := range s.proxies {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// maskedPrefixes brings prefixes into the form that isProxy compares with:
// netip takes 10.0.0.0/8 and ::ffff:10.0.0.0/104 for different ones.
func maskedPrefixes(from []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range from {
		if ip := p.Addr(); ip.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(ip.Unmap(), p.Bits()-96)
		}
		if p.IsValid() {
			out = append(out, p.Masked())
		}
	}
	return out
}

// readProxy reads the header of a load balancer, notes whose connection it is,
// and returns what it has read beyond.
func (s *serving) readProxy(c *Conn, m *member) (tooMuch []byte, err error) {
	header, tooMuch, err := readProxyHeader(c.Conn)
	if err != nil {
		return nil, fmt.Errorf("read PROXY header: %w", err)
	}
	if c.remote, c.local, err = proxyAddrs(header); err != nil {
		return nil, fmt.Errorf("read PROXY header: %w", err)
	}
	s.crowd.name(m, origin(c.RemoteAddr()))
	return tooMuch, nil
}

// readProxyHeader reads until the header is complete, in as many segments as
// it takes, and returns it, and what came with it.
func readProxyHeader(r io.Reader) (header, rest []byte, err error) {
	raw := make([]byte, 0, 512)
	for {
		size, err := proxySize(raw)
		if err != nil {
			return nil, nil, err
		}
		if size > 0 && len(raw) >= size {
			return raw[:size:size], raw[size:], nil
		}
		if raw, err = fill(r, raw, len(raw)+1); err != nil {
			return nil, nil, err
		}
	}
}

// proxySize returns the length of the header that raw begins with, 0 when it
// cannot be known yet.
func proxySize(raw []byte) (int, error) {
	v1, v2 := []byte("PROXY "), proxyproto.SIGV2
	switch {
	case bytes.HasPrefix(raw, v1):
		head := raw[:min(len(raw), maxProxyV1)]
		if i := bytes.IndexByte(head, '\n'); i >= 0 {
			return i + 1, nil
		}
		if len(raw) >= maxProxyV1 {
			return 0, errProxyLong
		}
		return 0, nil
	case bytes.HasPrefix(raw, v2):
		if len(raw) < proxyV2Header {
			return 0, nil
		}
		size := proxyV2Header + int(binary.BigEndian.Uint16(raw[14:]))
		if size > maxProxyV2 {
			return 0, errProxyLong
		}
		return size, nil
	case bytes.HasPrefix(v1, raw), bytes.HasPrefix(v2, raw):
		return 0, nil
	}
	return 0, errNoProxy
}

// proxyAddrs reads a whole header. Both addresses are nil when the load
// balancer speaks for itself: its health checks.
func proxyAddrs(header []byte) (remote, local net.Addr, err error) {
	h, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(header), len(header)))
	if err != nil {
		return nil, nil, err
	}
	if h.Command.IsLocal() {
		return nil, nil, nil
	}
	src, dst, ok := h.TCPAddrs()
	if !ok || !usable(src) || !usable(dst) {
		return nil, nil, errProxyKind
	}
	return src, dst, nil
}

// usable wants an address that a TCP connection can have.
func usable(a *net.TCPAddr) bool {
	ip, ok := netip.AddrFromSlice(a.IP)
	return ok && !ip.Unmap().IsUnspecified() && !ip.Unmap().IsMulticast()
}
