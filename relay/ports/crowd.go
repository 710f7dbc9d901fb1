package ports

import (
	"container/list"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// A crowd is everybody at one port. Strangers are those who have proved nothing
// yet: a TCP connection that home has not taken, a UDP flow whose visitor has not
// sent again after an answer. Where room is needed the oldest of them goes, so
// that forged sources push each other out and not those who talk to home.
//
// But two packets with a forged source make a settled flow, and nobody could ever
// come in again if such flows stayed. So of UDP whoever has been silent longest
// goes for strangers, too, until these have a share of the places: with less than
// that, one would push out the other before an answer had time to come back.
type crowd struct {
	limits Limits

	mu      sync.Mutex // guards all below, and the fields of members
	all     group
	sources map[netip.Prefix]*group
}

// strangersShare of the places is for strangers of UDP, whoever has them now.
const strangersShare = 4

// A group is all of the port or those of one source, which is one IPv4 address,
// or the /64 that one IPv6 household has to itself.
type group struct {
	count     int
	strangers list.List // of *member, oldest first
	settled   list.List // of *member; flows only, as connections stay
	pace      bucket
}

// A member is one flow or connection.
type member struct {
	from     netip.Prefix
	evict    func(why error) // asks it to end; must not block
	heard    *atomic.Int64   // when its visitor last sent, growing; nil: a connection
	settled  bool
	inAll    *list.Element // in the crowd's strangers or settled; nil: in neither
	inSource *list.Element // likewise
	left     bool
}

var (
	errMadeRoom = errors.New("ended to make room for others")
	errCrowded  = errors.New("too many from this address")
	errFull     = errors.New("too many at this port")
	errPaced    = errors.New("too many new ones in so short a time")
)

func newCrowd(limits Limits) *crowd {
	return &crowd{limits: limits, sources: map[netip.Prefix]*group{}}
}

// admit takes a newcomer in as a stranger: a flow when heard, which says when its
// visitor last sent, is not nil. It may evict another one, or return why there is
// no place: for connections errCrowded or errFull, for flows errPaced.
func (c *crowd) admit(from netip.Addr, evict func(why error), heard *atomic.Int64) (*member, error) {
	m := &member{from: sourceOf(from), evict: evict, heard: heard}
	c.mu.Lock()
	out, err := c.enter(m)
	c.mu.Unlock()
	if out != nil {
		out.evict(errMadeRoom)
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

// enter finds a place for m, and returns who has to go for it; mu is held.
func (c *crowd) enter(m *member) (out *member, err error) {
	s := c.sources[m.from]
	if s == nil {
		s = &group{}
	}
	// The pace is first: it bounds how often one searches for who goes.
	if m.heard != nil && !(s.pace.take(c.limits.NewPerSource) && c.all.pace.take(c.limits.NewPerPort)) {
		return nil, errPaced
	}
	switch {
	case s.count >= c.limits.PerSource:
		out, err = s.spare(c.limits.PerSource), errCrowded
	case c.all.count >= c.limits.PerPort:
		out, err = c.all.spare(c.limits.PerPort), errFull
	}
	switch {
	case out != nil:
		c.remove(out)
	case err != nil:
		return nil, err
	}
	c.sources[m.from] = s // remove may have dropped it
	c.all.count++
	s.count++
	m.inAll, m.inSource = c.all.strangers.PushBack(m), s.strangers.PushBack(m)
	return out, nil
}

// spare returns who goes for a newcomer where there are limit already; nil: nobody
// may.
func (g *group) spare(limit int) *member {
	oldest := g.strangers.Front()
	if oldest == nil || g.strangers.Len() < limit/strangersShare {
		if m := g.silentLongest(); m != nil {
			return m
		}
	}
	if oldest == nil {
		return nil
	}
	return oldest.Value.(*member)
}

// silentLongest returns the settled flow that was heard least recently; nil: there
// is none. It looks at them all, so that no packet has to keep an order.
func (g *group) silentLongest() (silent *member) {
	var since int64
	for e := g.settled.Front(); e != nil; e = e.Next() {
		m := e.Value.(*member)
		if heard := m.heard.Load(); silent == nil || heard < since {
			silent, since = m, heard
		}
	}
	return silent
}

// remove takes m out of everything; mu is held.
func (c *crowd) remove(m *member) {
	m.left = true
	c.unlist(m)
	c.all.count--
	s := c.sources[m.from]
	if s.count--; s.count == 0 {
		delete(c.sources, m.from)
	}
}

func (c *crowd) unlist(m *member) {
	if m.inAll == nil {
		return
	}
	c.all.list(m).Remove(m.inAll)
	c.sources[m.from].list(m).Remove(m.inSource)
	m.inAll, m.inSource = nil, nil
}

// list is the one that m is in.
func (g *group) list(m *member) *list.List {
	if m.settled {
		return &g.settled
	}
	return &g.strangers
}

// settle makes m no stranger any more.
func (c *crowd) settle(m *member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.left || m.settled {
		return
	}
	c.unlist(m)
	m.settled = true
	if m.heard != nil {
		m.inAll, m.inSource = c.all.settled.PushBack(m), c.sources[m.from].settled.PushBack(m)
	}
}

// leave takes m out at its end.
func (c *crowd) leave(m *member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !m.left {
		c.remove(m)
	}
}

// len returns how many there are.
func (c *crowd) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all.count
}

// sourceOf is what counts as one source.
func sourceOf(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	prefix, _ := ip.Prefix(bits)
	return prefix
}

// bucketDepth is for how many seconds a bucket saves up.
const bucketDepth = 4

// A bucket lets so many through a second, and a few more after a pause. The zero
// value is full.
type bucket struct {
	used float64
	at   time.Time // when used was true
}

func (b *bucket) take(perSecond int) bool {
	now := time.Now()
	b.used = max(0, b.used-now.Sub(b.at).Seconds()*float64(perSecond))
	b.at = now
	if b.used+1 > float64(bucketDepth*perSecond) {
		return false
	}
	b.used++
	return true
}
