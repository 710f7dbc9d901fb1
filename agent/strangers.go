package agent

import (
	"container/list"
	"net/netip"
	"sync"

	"github.com/sallyport/sallyport/protocol"
)

// strangersPerAddr is how many visitors without a device one address may have at
// a time. The address is the relay's word: a courtesy among visitors, no wall.
const strangersPerAddr = 64

// unprovenShare is the part of all streams that each kind of visitor may take whom
// nobody has asked for a certificate yet: UDP flows, connections of public ports,
// those passed through to backends, strangers at the home's own door. The rest is
// for those whom the relay let in.
const unprovenShare = 5

// strangers are the visitors that have a stream and have not shown a device: with
// TLS that ends at home each costs a stream before anything is known of it. One
// more than there is room for, and the oldest goes, so that who holds silent
// connections open keeps nobody out.
type strangers struct {
	mu     sync.Mutex // guards what follows
	all    list.List  // of *visitorConn, oldest first
	at     map[*visitorConn]*list.Element
	byAddr map[netip.Addr]int
}

// add takes a visitor in; gone is called when it has ended.
func (s *strangers) add(c *visitorConn, most int) (gone func()) {
	addr := source(c)
	s.mu.Lock()
	var out []*visitorConn
	if s.at == nil {
		s.at, s.byAddr = map[*visitorConn]*list.Element{}, map[netip.Addr]int{}
	}
	if s.byAddr[addr] >= strangersPerAddr {
		out = append(out, s.oldest(func(c *visitorConn) bool { return source(c) == addr }))
	} else if s.all.Len() >= max(most, 1) {
		out = append(out, s.oldest(func(*visitorConn) bool { return true }))
	}
	s.at[c] = s.all.PushBack(c)
	s.byAddr[addr]++
	s.mu.Unlock()
	for _, c := range out {
		c.Reset(protocol.CodeOverload)
	}
	return func() { s.remove(c) }
}

// oldest takes out the one that has been here longest of those that fit; mu is
// held.
func (s *strangers) oldest(fits func(*visitorConn) bool) *visitorConn {
	for e := s.all.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*visitorConn); fits(c) {
			s.drop(c)
			return c
		}
	}
	return nil // the counters say that there is one
}

func (s *strangers) remove(c *visitorConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(c)
}

// drop forgets a visitor; mu is held.
func (s *strangers) drop(c *visitorConn) {
	e, ok := s.at[c]
	if !ok {
		return
	}
	s.all.Remove(e)
	delete(s.at, c)
	if addr := source(c); s.byAddr[addr] > 1 {
		s.byAddr[addr]--
	} else {
		delete(s.byAddr, addr)
	}
}

// source is what a visitor is counted by: its IPv4 address, or the /64 that it may
// choose addresses from.
func source(c *visitorConn) netip.Addr {
	addr := c.client.Addr().Unmap()
	if addr.Is6() {
		if p, err := addr.WithZone("").Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return addr
}
