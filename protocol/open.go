package protocol

import "net/netip"

// Open is the fixed binary header that the relay writes first on every data
// stream: what the stream is for.
type Open struct {
	Service string         // the service's name, never an address
	Client  netip.AddrPort // the visitor, as the relay sees it; zero when unknown
	Local   netip.AddrPort // the relay's address that the visitor reached; zero when unknown
	SNI     string         // canonical server name, empty when none
	Hop     uint8          // relays passed before this one; at most MaxHops
}

// MaxHops is the highest Hop an agent accepts: one relay may hand a visitor
// to one other (DESIGN §10).
const MaxHops = 1

// Result is the agent's answer to Open. After CodeOK both sides carry the
// visitor's bytes and nothing else.
type Result struct {
	Code   Code
	Reason string // for the relay's log, at most 255 bytes; never shown to visitors
}
