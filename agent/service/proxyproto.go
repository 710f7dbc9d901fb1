package service

import (
	"encoding/binary"
	"net/netip"

	"github.com/sallyport/sallyport/protocol"
)

// PROXY protocol version 2, section 2.2 of
// https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt. Numbers are
// big-endian.
//
//	12  signature
//	1   0x21 version 2, PROXY | 0x20 version 2, LOCAL (the client is not known)
//	1   0x11 TCP over IPv4 | 0x21 TCP over IPv6 | 0x00 with LOCAL
//	2   length of what follows: 12, 36, 0
//	    client's address (4 or 16), server's address, client's port (2), server's port
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// appendProxyHeader appends the header that tells a backend who the visitor is.
func appendProxyHeader(b []byte, o protocol.Open) []byte {
	b = append(b, proxySignature...)
	client, local := o.Client.Addr().Unmap(), o.Local.Addr().Unmap()
	if !client.IsValid() {
		return append(b, 0x20, 0x00, 0, 0)
	}
	if !local.IsValid() { // the header has no way to say so
		local = netip.IPv4Unspecified()
		if client.Is6() {
			local = netip.IPv6Unspecified()
		}
	}
	if client.Is4() && local.Is4() {
		b = append(b, 0x21, 0x11, 0, 12)
		b = append(b, client.AsSlice()...)
		b = append(b, local.AsSlice()...)
	} else { // both as IPv6 when they differ
		c, l := client.As16(), local.As16()
		b = append(b, 0x21, 0x21, 0, 36)
		b = append(b, c[:]...)
		b = append(b, l[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, o.Client.Port())
	return binary.BigEndian.AppendUint16(b, o.Local.Port())
}
