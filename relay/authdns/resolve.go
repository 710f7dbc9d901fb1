package authdns

import (
	"net/netip"

	"github.com/miekg/dns"
)

// maxChain bounds the aliases that are followed for one question.
const maxChain = 8

// resolve answers m's question about a name of the zone.
func (s *Server) resolve(m *dns.Msg, from netip.Addr) {
	q := m.Question[0]
	// Owners are spelled as the asker spelled them: some compare (0x20), and the
	// packet gets smaller.
	apex := q.Name[len(q.Name)-len(s.config.Domain)-1:]
	m.Authoritative = true
	owner := q.Name
	for range maxChain {
		name := canonical(owner)
		if cut, ok := s.static.cut(name); ok && !(q.Qtype == dns.TypeDS && cut == name) {
			s.refer(m, owner[len(owner)-len(cut)-1:], cut)
			return
		}
		n := s.find(name, from)
		if !n.exists {
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{s.soa(apex, negativeTTL)}
			return
		}
		alias := n.cname()
		if alias == nil || q.Qtype == dns.TypeCNAME || q.Qtype == dns.TypeANY {
			s.answer(m, n, owner, apex)
			return
		}
		m.Answer = append(m.Answer, withOwner(alias, owner))
		owner = alias.Target
		if !dns.IsSubDomain(s.config.Domain+".", owner) {
			return // the asker goes on by himself
		}
	}
}

// answer adds what there is of the wanted type.
func (s *Server) answer(m *dns.Msg, n node, owner, apex string) {
	q := m.Question[0]
	rrs := s.records(n, owner, q.Qtype)
	m.Answer = append(m.Answer, rrs...)
	switch {
	case len(rrs) == 0:
		m.Ns = []dns.RR{s.soa(apex, negativeTTL)}
	case q.Qtype == dns.TypeNS:
		for _, ns := range s.config.NS {
			if inZone(ns, s.config.Domain) {
				m.Extra = append(s.glue(ns), m.Extra...)
			}
		}
	}
}

// refer hands the asker on to the servers of a part of the zone.
func (s *Server) refer(m *dns.Msg, owner, cut string) {
	if len(m.Answer) == 0 {
		m.Authoritative = false
	}
	for _, rr := range s.static.at(cut) {
		ns, ok := rr.(*dns.NS)
		if !ok {
			continue
		}
		m.Ns = append(m.Ns, withOwner(ns, owner))
		for _, glue := range s.static.at(canonical(ns.Ns)) {
			if t := glue.Header().Rrtype; t == dns.TypeA || t == dns.TypeAAAA {
				m.Extra = append([]dns.RR{glue}, m.Extra...)
			}
		}
	}
}

// glue is the addresses of a name of this server: without them an asker who has
// just learned the name would have to come again.
func (s *Server) glue(ns string) []dns.RR {
	n := s.find(ns, netip.Addr{})
	return append(s.records(n, ns+".", dns.TypeA), s.records(n, ns+".", dns.TypeAAAA)...)
}
