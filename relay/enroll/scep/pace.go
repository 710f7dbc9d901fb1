package scep

import (
	"net/netip"
	"sync"
	"time"
)

const (
	paceWindow  = time.Minute
	maxMessages = 30   // of one source in a window: fewer than may be inside, so that one alone cannot fill that
	maxSources  = 4096 // that are counted in a window
)

// A pace bounds how often one source, an IPv4 address or an IPv6 /64, is
// worked for. A message that was good once, sent over and over, fails at
// nothing that could be counted, and costs two operations with an RSA key each
// time. Clients poll once in several seconds at most.
//
// More sources than maxSources in a window are not counted: to refuse them
// would let a flood shut out everybody. Then what is worked on at once is the
// only bound.
type pace struct {
	mu    sync.Mutex // guards the fields below
	began time.Time
	count map[netip.Prefix]int
}

// take reports whether a source may send one message more now.
func (p *pace) take(source netip.Addr, now time.Time) bool {
	source = source.Unmap().WithZone("")
	bits := source.BitLen()
	if source.Is6() {
		bits = 64
	}
	from, _ := source.Prefix(bits) // of the invalid address: one source for all who hide
	p.mu.Lock()
	defer p.mu.Unlock()
	if past := now.Sub(p.began); p.count == nil || past >= paceWindow || past < 0 {
		p.began, p.count = now, map[netip.Prefix]int{}
	}
	n, known := p.count[from]
	if !known && len(p.count) >= maxSources {
		return true
	}
	if n >= maxMessages {
		return false
	}
	p.count[from] = n + 1
	return true
}
