package enroll

import (
	"container/list"
	"net/netip"
	"time"
)

// A guard counts wrong tries by source, an IPv4 address or an IPv6 /64.
//
//	tries 1–4   answered at once
//	tries 5–9   after each the source waits: 10 s, 20 s, 40 s, 80 s, 160 s
//	try 10      the source waits an hour
//
// An hour after its last wrong try a source starts anew. While it waits, it is
// not answered at all, good code or not, so that waiting teaches nothing.
//
// All sources together have a budget too. When it is spent (somebody tries
// from many addresses), each wrong try counts as five: two an hour are left to
// a source. Good codes of others still open: a budget that shut them out would
// let any botnet lock out the owner's family. What keeps such a botnet out in
// the end is the length of a code, 130 bits.
//
// Callers hold a lock.
type guard struct {
	sources map[netip.Prefix]*list.Element
	order   list.List // of *suspect, the longest quiet first
	budget  float64   // wrong tries that are left
	at      time.Time // when budget was counted
	flooded time.Time // when it was last said that the budget is spent
}

type suspect struct {
	source netip.Prefix
	wrong  int
	last   time.Time // of the last wrong try
	until  time.Time // it waits until then
}

const (
	freeTries    = 5
	maxTries     = 10
	firstDelay   = 10 * time.Second
	blockTime    = time.Hour
	maxSuspects  = 8192 // 2.7 MB, measured
	globalBudget = 100
	globalEvery  = 6 * time.Second // one wrong try more
	floodWeight  = 5
)

// sourceOf returns what counts as one source. Whoever has one IPv6 address
// has its whole /64.
func sourceOf(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // the invalid address has the invalid prefix: one source for all who hide
	return p
}

// admit says how long a source must still wait; zero: come in.
func (g *guard) admit(source netip.Prefix, now time.Time) time.Duration {
	e, ok := g.sources[source]
	if !ok {
		return 0
	}
	s := e.Value.(*suspect)
	// A clock that was set back must not prolong the wait.
	if wait := s.until.Sub(now); wait > 0 && !now.Before(s.last) {
		return wait
	}
	return 0
}

// A verdict is what wrong made of a try.
type verdict struct {
	wrong int           // tries of the source that count
	wait  time.Duration // of the source from now on
	quiet bool          // the budget is spent: write nothing down
	flood bool          // but this once
}

// wrong counts a wrong try.
func (g *guard) wrong(source netip.Prefix, now time.Time) verdict {
	if g.sources == nil {
		g.sources = map[netip.Prefix]*list.Element{}
	}
	e, ok := g.sources[source]
	if !ok {
		if len(g.sources) >= maxSuspects {
			delete(g.sources, g.order.Remove(g.order.Front()).(*suspect).source)
		}
		e = g.order.PushBack(&suspect{source: source})
		g.sources[source] = e
	}
	g.order.MoveToBack(e)
	s := e.Value.(*suspect)
	if now.Sub(s.last) >= blockTime || now.Before(s.last) {
		s.wrong = 0
	}
	s.last = now
	var v verdict
	if g.spend(now) {
		s.wrong++
	} else {
		s.wrong += floodWeight
		v.quiet = true
		if now.Sub(g.flooded) >= blockTime {
			g.flooded, v.flood = now, true
		}
	}
	switch {
	case s.wrong >= maxTries:
		v.wait = blockTime
	case s.wrong >= freeTries:
		v.wait = firstDelay << (s.wrong - freeTries)
	}
	s.until = now.Add(v.wait)
	v.wrong = s.wrong
	return v
}

// spend takes one wrong try from the budget of all.
func (g *guard) spend(now time.Time) bool {
	if g.at.IsZero() {
		g.budget = globalBudget
	} else if past := now.Sub(g.at); past > 0 {
		g.budget = min(globalBudget, g.budget+float64(past)/float64(globalEvery))
	}
	g.at = now
	if g.budget < 1 {
		return false
	}
	g.budget--
	return true
}
