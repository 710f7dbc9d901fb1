package protocol

import "net/netip"

// Open is the fixed binary header that comes first on every data stream: what
// the stream is for. On streams that the agent opens only Service is set.
type Open struct {
	Service string         // the service's name, never an address; from the agent: a feature
	Client  netip.AddrPort // the visitor, as the relay sees it; zero when unknown
	Local   netip.AddrPort // the relay's address that the visitor reached; zero when unknown
	SNI     string         // canonical server name, empty when none
	Hop     uint8          // relays passed before this one; at most MaxHops
	Packets bool           // the stream carries datagrams (package packets), not bytes
}

// MaxHops is the highest Hop an agent accepts: one relay may hand a visitor
// to one other (DESIGN §10).
const MaxHops = 1

// Result answers Open. After CodeOK both sides carry the visitor's bytes, or
// those of the feature, and nothing else.
type Result struct {
	Code   Code
	Reason string // for the relay's log, at most 255 bytes; never shown to visitors
}
