package edge

import (
	"container/list"
	"errors"
	"net"
	"net/netip"
	"sync"
)

// A crowd is all open connections of one listener. Those whose target has not
// called Settled are strangers; where room is needed, the stranger that waits
// longest goes. A good visitor is a stranger for a few round trips, so a
// thousand silent connections cost it nothing, even when they come from the
// same address. Naming a claimed host is no way around: anybody can.
type crowd struct {
	limits Limits

	mu        sync.Mutex // guards all below
	all       map[*member]struct{}
	strangers list.List                   // of *member, oldest first
	perIP     map[netip.Prefix]*list.List // the same, by address
	settled   map[netip.Prefix]int        // how many are no strangers, by address
}

var (
	errMadeRoom = errors.New("closed to make room for others")
	errCrowded  = errors.New("closed: too many connections from this address")
)

// A member is one connection of a crowd.
type member struct {
	conn     net.Conn
	from     netip.Prefix
	inOrder  *list.Element // in strangers; nil once settled
	inPerIP  *list.Element // nil once settled, and before it is known who it is
	departed bool          // out of the crowd: ended or thrown out
	why      error         // it was thrown out
}

func newCrowd(limits Limits) *crowd {
	return &crowd{
		limits: limits, all: map[*member]struct{}{},
		perIP: map[netip.Prefix]*list.List{}, settled: map[netip.Prefix]int{},
	}
}

// admit takes a connection in as a stranger. It may throw another one out;
// when there is none left to throw out it returns nil and conn is to be closed.
func (c *crowd) admit(conn net.Conn) *member {
	return c.take(&member{conn: conn, from: origin(conn.RemoteAddr())}, true)
}

// admitUnnamed takes in a connection of a load balancer, whose visitor is not
// known yet: it counts among all, and among those of an address after name.
func (c *crowd) admitUnnamed(conn net.Conn) *member { return c.take(&member{conn: conn}, false) }

func (c *crowd) take(m *member, named bool) *member {
	c.mu.Lock()
	var out []net.Conn
	if named {
		out = c.makeRoomAt(m.from)
	}
	if len(c.all) >= c.limits.MaxConns && c.strangers.Len() > 0 {
		out = append(out, c.throwOut(&c.strangers))
	}
	full := len(c.all) >= c.limits.MaxConns
	if !full {
		c.all[m] = struct{}{}
		m.inOrder = c.strangers.PushBack(m)
		if named {
			c.join(m)
		}
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

// name says whose connection an unnamed member is. It may throw another one of
// that address out.
func (c *crowd) name(m *member, from netip.Prefix) {
	c.mu.Lock()
	var out []net.Conn
	if !m.departed {
		m.from = from
		out = c.makeRoomAt(from)
		c.join(m)
	}
	c.mu.Unlock()
	for _, conn := range out {
		abort(conn)
	}
}

// makeRoomAt throws the oldest stranger of an address out when it has enough of
// them; mu is held.
func (c *crowd) makeRoomAt(from netip.Prefix) []net.Conn {
	own := c.perIP[from]
	if own == nil || own.Len() < c.limits.MaxConnsPerIP {
		return nil
	}
	return []net.Conn{c.throwOut(own)}
}

// join puts m into the list of its address; mu is held.
func (c *crowd) join(m *member) {
	own := c.perIP[m.from]
	if own == nil { // throwOut drops empty lists
		own = list.New()
		c.perIP[m.from] = own
	}
	m.inPerIP = own.PushBack(m)
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
	m.why = errMadeRoom
	return m.conn
}

// remove takes m out of everything; mu is held.
func (c *crowd) remove(m *member) {
	m.departed = true
	delete(c.all, m)
	if m.inOrder != nil {
		c.noStranger(m)
		return
	}
	if c.settled[m.from]--; c.settled[m.from] == 0 {
		delete(c.settled, m.from)
	}
}

// noStranger takes m, who is one, out of the strangers; mu is held.
func (c *crowd) noStranger(m *member) {
	c.strangers.Remove(m.inOrder)
	if m.inPerIP != nil {
		own := c.perIP[m.from]
		own.Remove(m.inPerIP)
		if own.Len() == 0 {
			delete(c.perIP, m.from)
		}
	}
	m.inOrder, m.inPerIP = nil, nil
}

// settle makes m no stranger any more, or throws it out when its address has
// enough of those: they are in use, so the newcomer goes and not the oldest.
func (c *crowd) settle(m *member) {
	c.mu.Lock()
	if m.departed || m.inOrder == nil {
		c.mu.Unlock()
		return
	}
	crowded := c.settled[m.from] >= c.limits.MaxSettledPerIP
	if crowded {
		c.remove(m)
		m.why = errCrowded
	} else {
		c.noStranger(m)
		c.settled[m.from]++
	}
	c.mu.Unlock()
	if crowded {
		abort(m.conn)
	}
}

// leave takes m out at its end. The error is why it was thrown out before.
func (c *crowd) leave(m *member) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !m.departed {
		c.remove(m)
	}
	return m.why
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
