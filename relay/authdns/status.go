package authdns

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// A Status is what the server has done since it started.
type Status struct {
	Zone      string   `json:"zone"`
	NS        []string `json:"ns"`
	Serial    uint32   `json:"serial"`
	UDP       uint64   `json:"udp"`       // questions
	TCP       uint64   `json:"tcp"`       // questions
	Conns     int      `json:"conns"`     // TCP connections now
	Answered  uint64   `json:"answered"`  // with records, or that there are none of the type
	NXDomain  uint64   `json:"nxdomain"`  // no such name
	Refused   uint64   `json:"refused"`   // other zones, transfers
	Errors    uint64   `json:"errors"`    // not understood, not implemented, failed
	Malformed uint64   `json:"malformed"` // no question; not answered
	Truncated uint64   `json:"truncated"` // too large for UDP
	Slipped   uint64   `json:"slipped"`   // over the limit, sent to TCP
	Limited   uint64   `json:"limited"`   // over the limit, not answered
}

type counts struct {
	udp, tcp, answered, nxdomain, refused, errors, malformed, truncated, slipped, limited atomic.Uint64

	mu   sync.Mutex // guards told
	told time.Time  // when limiting was logged last
}

func (c *counts) rcode(rcode int) {
	switch rcode {
	case dns.RcodeSuccess:
		c.answered.Add(1)
	case dns.RcodeNameError:
		c.nxdomain.Add(1)
	case dns.RcodeRefused:
		c.refused.Add(1)
	default:
		c.errors.Add(1)
	}
}

// Status returns the counters.
func (s *Server) Status() Status {
	c := &s.counts
	return Status{
		Zone: s.config.Domain, NS: s.config.NS, Serial: s.serialNow(), Conns: s.conns.len(),
		UDP: c.udp.Load(), TCP: c.tcp.Load(), Answered: c.answered.Load(), NXDomain: c.nxdomain.Load(),
		Refused: c.refused.Load(), Errors: c.errors.Load(), Malformed: c.malformed.Load(),
		Truncated: c.truncated.Load(), Slipped: c.slipped.Load(), Limited: c.limited.Load(),
	}
}

// tellLimited logs at most once a minute: the log must not be what a flood fills.
func (s *Server) tellLimited(from netip.Addr, now time.Time) {
	s.counts.mu.Lock()
	tell := s.counts.told.IsZero() || now.Sub(s.counts.told) >= time.Minute || now.Before(s.counts.told)
	if tell {
		s.counts.told = now
	}
	s.counts.mu.Unlock()
	if tell {
		s.logger.Warn("dns questions over the limit are not answered", "from", networkOf(from), "rate", s.config.Limits.Rate, "total", s.counts.limited.Load())
	}
}

// A serial is the zone's number in its SOA record. It starts with the clock, so
// that it rises over restarts too.
type serial struct {
	mu       sync.Mutex // guards all below
	number   uint32
	versions uint64 // of the sources, when number was made
}

func (n *serial) bump(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.next(now)
}

// next makes a larger number: the clock's, if it is one. mu is held.
func (n *serial) next(now time.Time) { n.number = max(n.number+1, uint32(now.Unix())) }

// serialNow is the number of what the zone says now.
func (s *Server) serialNow() uint32 {
	var versions uint64
	for _, source := range s.config.Sources {
		if v, ok := source.(interface{ Version() uint64 }); ok {
			versions += v.Version()
		}
	}
	s.serial.mu.Lock()
	defer s.serial.mu.Unlock()
	if versions > s.serial.versions {
		s.serial.versions = versions
		s.serial.next(s.config.Now())
	}
	return s.serial.number
}
