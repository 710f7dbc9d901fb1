package lan

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// Names of multicast DNS (RFC 6762) and of service discovery (RFC 6763).
const (
	serviceType = "_sallyport._tcp.local."
	allTypes    = "_services._dns-sd._udp.local."

	topBit       = 1 << 15 // of a class: cache-flush in answers, unicast wanted in questions
	mdnsPort     = 5353
	hostTTL      = 120  // of what depends on the address; all TTLs in seconds
	otherTTL     = 4500 // of the rest
	legacyTTL    = 10   // for resolvers that do not know multicast DNS (RFC 6762 §6.7)
	maxQuestions = 16   // of one query that are looked at
)

// A zone is what we tell on one link.
type zone struct {
	instance, host string // fully qualified, lower case
	port           uint16
	addrs          []netip.Addr
}

func newZone(name string, port uint16, addrs []netip.Addr) *zone {
	name = strings.ToLower(name)
	return &zone{instance: name + "." + serviceType, host: name + ".local.", port: port, addrs: addrs}
}

// header is of a record that is ours alone: who hears it forgets older ones.
func header(name string, kind uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET | topBit, Ttl: ttl}
}

// pointer is a record that others on the network have, too.
func pointer(from, to string) dns.RR {
	return &dns.PTR{Hdr: dns.RR_Header{Name: from, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: otherTTL}, Ptr: to}
}

func (z *zone) srv() dns.RR {
	return &dns.SRV{Hdr: header(z.instance, dns.TypeSRV, hostTTL), Port: z.port, Target: z.host}
}

func (z *zone) txt() dns.RR {
	return &dns.TXT{Hdr: header(z.instance, dns.TypeTXT, otherTTL), Txt: []string{"txtvers=1"}}
}

// addresses returns the records of one type, or of both with dns.TypeANY.
func (z *zone) addresses(kind uint16) []dns.RR {
	var rrs []dns.RR
	for _, a := range z.addrs {
		switch {
		case a.Is4() && kind != dns.TypeAAAA:
			rrs = append(rrs, &dns.A{Hdr: header(z.host, dns.TypeA, hostTTL), A: a.AsSlice()})
		case a.Is6() && kind != dns.TypeA:
			rrs = append(rrs, &dns.AAAA{Hdr: header(z.host, dns.TypeAAAA, hostTTL), AAAA: a.AsSlice()})
		}
	}
	return rrs
}

// all is what is announced; with farewell everybody forgets it.
func (z *zone) all(farewell bool) *dns.Msg {
	m := reply()
	m.Answer = append([]dns.RR{pointer(serviceType, z.instance), z.srv(), z.txt()}, z.addresses(dns.TypeANY)...)
	if farewell {
		for _, rr := range m.Answer {
			rr.Header().Ttl = 0
		}
	}
	return m
}

func reply() *dns.Msg {
	return &dns.Msg{MsgHdr: dns.MsgHdr{Response: true, Authoritative: true}, Compress: true}
}

// answer returns what answers one question, and what will be asked next. Names
// that are ours but do not have the type are said not to have it (NSEC), or
// askers would wait for others to speak.
func (z *zone) answer(name string, kind uint16) (answers, more []dns.RR) {
	wants := func(k uint16) bool { return kind == k || kind == dns.TypeANY }
	switch strings.ToLower(name) {
	case allTypes:
		if wants(dns.TypePTR) {
			answers = append(answers, pointer(allTypes, serviceType))
		}
	case serviceType:
		if wants(dns.TypePTR) {
			answers = append(answers, pointer(serviceType, z.instance))
			more = append([]dns.RR{z.srv(), z.txt()}, z.addresses(dns.TypeANY)...)
		}
	case z.instance:
		if wants(dns.TypeSRV) {
			answers = append(answers, z.srv())
			more = z.addresses(dns.TypeANY)
		}
		if wants(dns.TypeTXT) {
			answers = append(answers, z.txt())
		}
		if len(answers) == 0 {
			answers = append(answers, lacks(z.instance, otherTTL, dns.TypeTXT, dns.TypeSRV))
		}
	case z.host:
		if wants(dns.TypeA) || wants(dns.TypeAAAA) {
			answers = z.addresses(kind)
		}
		if len(answers) == 0 {
			var has []uint16
			for _, rr := range z.addresses(dns.TypeANY) {
				has = append(has, rr.Header().Rrtype)
			}
			slices.Sort(has)
			answers = append(answers, lacks(z.host, hostTTL, slices.Compact(has)...))
		}
	}
	return answers, more
}

// lacks says which types alone a name has (RFC 6762 §6.1).
func lacks(name string, ttl uint32, has ...uint16) dns.RR {
	return &dns.NSEC{Hdr: header(name, dns.TypeNSEC, ttl), NextDomain: name, TypeBitMap: has}
}

// A response is what a query gets.
type response struct {
	msg     *dns.Msg
	unicast bool // to the asker alone
	shared  bool // others may answer in the same moment
}

var errNoQuery = errors.New("not a query of multicast DNS")

// respond reads a packet. A nil response without error means that it asks for
// nothing of ours. port is the asker's.
func (z *zone) respond(packet []byte, port uint16) (*response, error) {
	var q dns.Msg
	if err := q.Unpack(packet); err != nil {
		return nil, err
	}
	if q.Response || q.Opcode != dns.OpcodeQuery || q.Rcode != dns.RcodeSuccess {
		return nil, errNoQuery
	}
	legacy := port != mdnsPort
	m, unicast, shared := reply(), true, false
	for _, one := range q.Question[:min(len(q.Question), maxQuestions)] {
		if class := one.Qclass &^ topBit; class != dns.ClassINET && class != dns.ClassANY {
			continue
		}
		answers, more := z.answer(one.Name, one.Qtype)
		answers = slices.DeleteFunc(answers, func(rr dns.RR) bool { return knows(q.Answer, rr) })
		if len(answers) == 0 {
			continue
		}
		m.Answer = merge(m.Answer, answers)
		m.Extra = merge(m.Extra, more)
		unicast = unicast && one.Qclass&topBit != 0
		shared = shared || answers[0].Header().Rrtype == dns.TypePTR
		if legacy {
			m.Question = append(m.Question, one)
		}
	}
	if len(m.Answer) == 0 {
		return nil, nil
	}
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return holds(m.Answer, rr) })
	if legacy {
		m.Id = q.Id
		unicast = true
		for _, rr := range slices.Concat(m.Answer, m.Extra) {
			h := rr.Header()
			h.Class &^= topBit
			h.Ttl = min(h.Ttl, legacyTTL)
		}
	}
	return &response{m, unicast, shared}, nil
}

// knows reports whether the asker has a record already, for at least half of
// its life (RFC 6762 §7.1).
func knows(known []dns.RR, ours dns.RR) bool {
	return slices.ContainsFunc(known, func(theirs dns.RR) bool {
		return same(theirs, ours) && theirs.Header().Ttl >= ours.Header().Ttl/2
	})
}

func holds(rrs []dns.RR, rr dns.RR) bool {
	return slices.ContainsFunc(rrs, func(r dns.RR) bool { return same(r, rr) })
}

func merge(rrs, more []dns.RR) []dns.RR {
	for _, rr := range more {
		if !holds(rrs, rr) {
			rrs = append(rrs, rr)
		}
	}
	return rrs
}

// same compares records without their TTL and the top bit of their class.
func same(a, b dns.RR) bool {
	if a.Header().Rrtype != b.Header().Rrtype {
		return false
	}
	a, b = dns.Copy(a), dns.Copy(b)
	a.Header().Class &^= topBit
	b.Header().Class &^= topBit
	return dns.IsDuplicate(a, b)
}
