package ports

import (
	"cmp"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Status is how one public port is doing.
type Status struct {
	Route
	Addr  string // where it listens; empty: nowhere
	Error string // why it is not open; empty: it is

	Open     int    // flows or connections now
	Total    uint64 // since the port was opened
	BytesIn  uint64 // payload, from visitors
	BytesOut uint64 // to visitors
	Refused  uint64 // visitors turned away because there were too many
	Dropped  uint64 // UDP packets that went nowhere
}

// Status returns all ports that are wanted, by number, TCP first.
func (p *Ports) Status() []Status {
	p.mu.Lock()
	var all []Status
	for r, err := range p.failed {
		all = append(all, Status{Route: r, Error: err.Error()})
	}
	bound := make([]binding, 0, len(p.bound))
	for _, b := range p.bound {
		bound = append(bound, b)
	}
	p.mu.Unlock()
	for _, b := range bound {
		all = append(all, b.status())
	}
	slices.SortFunc(all, func(a, b Status) int {
		return cmp.Or(compareRoutes(a.Route, b.Route), cmp.Compare(a.Error, b.Error), cmp.Compare(a.Agent, b.Agent))
	})
	return all
}

// counts are the counters of one port.
type counts struct {
	total, in, out, refused, dropped atomic.Uint64
}

// moved is Splice's OnBytes.
func (c *counts) moved(in, out int64) {
	c.in.Add(uint64(in))
	c.out.Add(uint64(out))
}

func (b *base) status(addr net.Addr) Status {
	return Status{
		Route: b.route, Addr: addr.String(), Open: b.crowd.len(), Total: b.counts.total.Load(),
		BytesIn: b.counts.in.Load(), BytesOut: b.counts.out.Load(),
		Refused: b.counts.refused.Load(), Dropped: b.counts.dropped.Load(),
	}
}

// seldomPause is how long a seldom is silent after a line.
const seldomPause = 10 * time.Second

// seldom logs what strangers can cause as often as they like: a line, then none
// of its kind for a while, then one with how many there were.
type seldom struct {
	log *slog.Logger

	mu    sync.Mutex // guards kinds and what is in it
	kinds map[string]*kind
}

type kind struct {
	last    time.Time
	skipped int
}

// warn logs msg, which is one of a few.
func (s *seldom) warn(msg string, attrs ...any) {
	now := time.Now()
	s.mu.Lock()
	k := s.kinds[msg]
	if k != nil && now.Sub(k.last) < seldomPause {
		k.skipped++
		s.mu.Unlock()
		return
	}
	if k == nil {
		k = &kind{}
		s.kinds[msg] = k
	}
	skipped := k.skipped
	k.last, k.skipped = now, 0
	s.mu.Unlock()
	if skipped > 0 {
		attrs = append(attrs, "lines_like_this_left_out", skipped)
	}
	s.log.Warn(msg, attrs...)
}
