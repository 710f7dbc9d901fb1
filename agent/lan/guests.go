package lan

import (
	"container/list"
	"net"
	"net/netip"
	"sync"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A pair names a TCP connection while it is open.
type pair struct{ remote, local netip.AddrPort }

func pairOf(c net.Conn) pair { return pair{addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())} }

// addrPort reads an address as the door does; zero when it has none.
func addrPort(a net.Addr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// A guest is one connection. It is a stranger until its handshake is done.
type guest struct {
	net.Conn
	of       *guests
	pair     pair
	stranger *list.Element // nil: settled, or gone
}

// NetConn lets tunnel.Abort reach the TCP connection.
func (g *guest) NetConn() net.Conn { return g.Conn }

// Settled is called by the door after the handshake.
func (g *guest) Settled() { g.of.settle(g) }

// guests are all open connections. Where room is needed the stranger that waits
// longest goes: one machine with a thousand silent connections keeps nobody out.
type guests struct {
	max int

	mu        sync.Mutex // guards what follows
	all       map[*guest]struct{}
	perAddr   map[netip.Addr]int
	strangers list.List // of *guest, oldest first
	refused   uint64
}

func newGuests(limit int) *guests {
	return &guests{max: limit, all: map[*guest]struct{}{}, perAddr: map[netip.Addr]int{}}
}

// admit takes a connection in, and may throw a stranger out for it. Nil: there
// is no room.
func (s *guests) admit(c net.Conn, p pair) *guest {
	s.mu.Lock()
	var out *guest
	full := false
	switch {
	case s.perAddr[p.remote.Addr()] >= s.max/2:
		out = s.oldest(func(g *guest) bool { return g.pair.remote.Addr() == p.remote.Addr() })
		full = out == nil
	case len(s.all) >= s.max:
		out = s.oldest(func(*guest) bool { return true })
		full = out == nil
	}
	if out != nil {
		s.remove(out)
	}
	var g *guest
	if !full {
		g = &guest{Conn: c, of: s, pair: p}
		s.all[g] = struct{}{}
		s.perAddr[p.remote.Addr()]++
		g.stranger = s.strangers.PushBack(g)
	}
	s.mu.Unlock()
	if out != nil {
		tunnel.Abort(out.Conn, protocol.CodeOverload)
	}
	return g
}

// makeRoom throws the oldest stranger out, if there is one.
func (s *guests) makeRoom() {
	s.mu.Lock()
	out := s.oldest(func(*guest) bool { return true })
	if out != nil {
		s.remove(out)
	}
	s.mu.Unlock()
	if out != nil {
		tunnel.Abort(out.Conn, protocol.CodeOverload)
	}
}

// oldest finds the stranger that waits longest; mu is held.
func (s *guests) oldest(which func(*guest) bool) *guest {
	for e := s.strangers.Front(); e != nil; e = e.Next() {
		if g := e.Value.(*guest); which(g) {
			return g
		}
	}
	return nil
}

// remove takes g out, if it is in; mu is held.
func (s *guests) remove(g *guest) {
	if _, in := s.all[g]; !in {
		return
	}
	delete(s.all, g)
	addr := g.pair.remote.Addr()
	if s.perAddr[addr]--; s.perAddr[addr] == 0 {
		delete(s.perAddr, addr)
	}
	s.noStranger(g)
}

func (s *guests) noStranger(g *guest) {
	if g.stranger != nil {
		s.strangers.Remove(g.stranger)
		g.stranger = nil
	}
}

func (s *guests) settle(g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noStranger(g)
}

func (s *guests) leave(g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(g)
}

// has reports whether a connection with these addresses is open here.
func (s *guests) has(p pair) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for g := range s.all {
		if g.pair == p {
			return true
		}
	}
	return false
}

// turnAway counts a stranger from outside, and returns how many there were.
func (s *guests) turnAway() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused++
	return s.refused
}

func (s *guests) count() (open int, refused uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all), s.refused
}
