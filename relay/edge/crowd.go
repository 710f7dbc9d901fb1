package edge

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
)

// A crowd is all open connections of one listener. Those that did not yet
// reach a claimed host or the tunnel are strangers; where room is needed, the
// stranger that waits longest goes. A good visitor is a stranger for one round
// trip, so a thousand silent connections cost it nothing, even when they come
// from the same address.
type crowd struct {
	max, maxPerIP int

	mu        sync.Mutex // guards all below
	all       map[*member]struct{}
	strangers list.List                   // of *member, oldest first
	perIP     map[netip.Prefix]*list.List // the same, by address
}

// A member is one connection of a crowd.
type member struct {
	conn     net.Conn
	from     netip.Prefix
	inOrder  *list.Element // in strangers; nil once routed
	inPerIP  *list.Element
	departed bool // out of the crowd: ended or thrown out
}

func newCrowd(max, maxPerIP int) *crowd {
	return &crowd{max: max, maxPerIP: maxPerIP, all: map[*member]struct{}{}, perIP: map[netip.Prefix]*list.List{}}
}

// admit takes a connection in as a stranger. It may throw another one out;
// when there is none left to throw out it returns nil and conn is to be closed.
func (c *crowd) admit(conn net.Conn) *member {
	m := &member{conn: conn, from: origin(conn.RemoteAddr())}
	c.mu.Lock()
	var out []net.Conn
	own := c.perIP[m.from]
	if own != nil && own.Len() >= c.maxPerIP {
		out = append(out, c.throwOut(own))
	}
	if len(c.all) >= c.max && c.strangers.Len() > 0 {
		out = append(out, c.throwOut(&c.strangers))
	}
	full := len(c.all) >= c.max
	if !full {
		if own = c.perIP[m.from]; own == nil { // throwOut drops empty lists
			own = list.New()
			c.perIP[m.from] = own
		}
		c.all[m] = struct{}{}
		m.inOrder, m.inPerIP = c.strangers.PushBack(m), own.PushBack(m)
	}
	c.mu.Unlock()
	for _, conn := range out {
		abort(conn)
	}
	if full {
		return nil
	}
	return m
}

// makeRoom throws the oldest stranger out, if there is one.
func (c *crowd) makeRoom() {
	c.mu.Lock()
	var out net.Conn
	if c.strangers.Len() > 0 {
		out = c.throwOut(&c.strangers)
	}
	c.mu.Unlock()
	if out != nil {
		abort(out)
	}
}

// throwOut removes the oldest member of a list that is not empty; mu is held.
func (c *crowd) throwOut(from *list.List) net.Conn {
	m := from.Front().Value.(*member)
	c.remove(m)
	return m.conn
}

// remove takes m out of everything; mu is held.
func (c *crowd) remove(m *member) {
	m.departed = true
	delete(c.all, m)
	c.settle(m)
}

// settle takes m out of the strangers; mu is held.
func (c *crowd) settle(m *member) {
	if m.inOrder == nil {
		return
	}
	c.strangers.Remove(m.inOrder)
	own := c.perIP[m.from]
	own.Remove(m.inPerIP)
	if own.Len() == 0 {
		delete(c.perIP, m.from)
	}
	m.inOrder, m.inPerIP = nil, nil
}

// routed says that m reached something that exists: it is no stranger any
// more. False: m was thrown out meanwhile.
func (c *crowd) routed(m *member) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settle(m)
	return !m.departed
}

// leave takes m out at its end; false when it was thrown out before.
func (c *crowd) leave(m *member) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.departed {
		return false
	}
	c.remove(m)
	return true
}

// cut aborts the connections: the strangers, or all.
func (c *crowd) cut(all bool) {
	c.mu.Lock()
	var out []net.Conn
	for m := range c.all {
		if all || m.inOrder != nil {
			out = append(out, m.conn)
		}
	}
	c.mu.Unlock()
	for _, conn := range out {
		abort(conn)
	}
}

// origin is what counts as one visitor: an IPv4 address, or the /64 that one
// IPv6 household has to itself.
func origin(addr net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Prefix{} // no TCP: all such count as one
	}
	ip := ap.Addr().Unmap()
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	prefix, _ := ip.WithZone("").Prefix(bits)
	return prefix
}
