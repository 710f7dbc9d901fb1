package authdns

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

const (
	headerSize = 12
	// maxUDP is what passes every network in one piece (DNS flag day 2020).
	maxUDP = 1232
	// maxGain bounds an answer by UDP, in sizes of its question: who writes a false
	// address on a packet wins little.
	maxGain = 8
)

// A way is how a question came.
type way int

const (
	byUDP way = iota
	byTCP
)

// reply returns the answer to one message, or nil when none is due: to what is
// no question, and to what cannot be read.
func (s *Server) reply(packet []byte, from netip.Addr, by way) []byte {
	if len(packet) < headerSize || packet[2]&0x80 != 0 {
		s.counts.malformed.Add(1)
		return nil
	}
	verdict := s.judge(from, by)
	if verdict == drop {
		return nil
	}
	counts := [4]uint16{}
	for i := range counts {
		counts[i] = binary.BigEndian.Uint16(packet[4+2*i:])
	}
	switch opcode := int(packet[2]) >> 3 & 0xf; {
	case opcode != dns.OpcodeQuery:
		return s.bare(packet, dns.RcodeNotImplemented)
	case counts[0] != 1 || counts[1] != 0 || counts[2] > 1 || counts[3] > 4: // IXFR has one in the third
		return s.bare(packet, dns.RcodeFormatError)
	}
	ask := new(dns.Msg)
	err := ask.Unpack(packet)
	if err != nil || len(ask.Question) != 1 || len(ask.Ns) != int(counts[2]) || len(ask.Extra) != int(counts[3]) {
		s.counts.malformed.Add(1)
		return nil
	}
	m := new(dns.Msg).SetReply(ask)
	m.Compress = true
	size := sizeOf(ask, len(packet), by)
	if s.options(ask, m) {
		if verdict == slip {
			m.Truncated = true
		} else {
			s.resolve(m, from.Unmap())
		}
	}
	out, err := m.Pack()
	if err != nil {
		s.logger.Error("dns answer cannot be packed", "name", m.Question[0].Name, "type", dns.Type(m.Question[0].Qtype), "err", err)
		strip(m)
		m.Rcode, m.Authoritative = dns.RcodeServerFailure, false
	} else if len(out) > size {
		strip(m)
		m.Truncated = true
		s.counts.truncated.Add(1)
	}
	if err != nil || len(out) > size {
		if out, err = m.Pack(); err != nil {
			return nil
		}
	}
	s.counts.rcode(m.Rcode)
	return out
}

// judge counts a question and asks the limiter about it.
func (s *Server) judge(from netip.Addr, by way) verdict {
	now := s.config.Now()
	var v verdict
	if by == byTCP {
		s.counts.tcp.Add(1)
		if v = s.tcp.take(from, now); v != pass {
			v = drop // there is no other way to come back by
		}
	} else {
		s.counts.udp.Add(1)
		v = s.udp.take(from, now)
	}
	switch v {
	case slip:
		s.counts.slipped.Add(1)
	case drop:
		s.counts.limited.Add(1)
		s.tellLimited(from, now)
	}
	return v
}

// bare returns a header alone: for messages whose rest is not looked at.
func (s *Server) bare(packet []byte, rcode int) []byte {
	s.counts.rcode(rcode)
	out := make([]byte, headerSize)
	copy(out, packet[:2])
	out[2] = 0x80 | packet[2]&0x79 // QR, opcode, RD
	out[3] = byte(rcode)
	return out
}

// options handles EDNS, and all that can be refused without knowing the zone.
// True: the question is to be answered.
func (s *Server) options(ask, m *dns.Msg) bool {
	var opt *dns.OPT
	for _, rr := range ask.Extra {
		o, ok := rr.(*dns.OPT)
		if ok && opt != nil {
			m.Rcode = dns.RcodeFormatError
			return false
		}
		if ok {
			opt = o
		}
	}
	if opt != nil {
		m.SetEdns0(maxUDP, opt.Do())
		if opt.Version() != 0 {
			m.Rcode = dns.RcodeBadVers
			return false
		}
	}
	q := m.Question[0]
	switch {
	case q.Qclass != dns.ClassINET:
		m.Rcode = dns.RcodeNotImplemented
	case q.Qtype == dns.TypeAXFR, q.Qtype == dns.TypeIXFR, !dns.IsSubDomain(s.config.Domain+".", q.Name):
		m.Rcode = dns.RcodeRefused
	case q.Qtype == dns.TypeNone, q.Qtype == dns.TypeOPT:
		m.Rcode = dns.RcodeFormatError
	case q.Qtype >= dns.TypeTKEY && q.Qtype < dns.TypeANY:
		m.Rcode = dns.RcodeNotImplemented
	default:
		return true
	}
	return false
}

// sizeOf is the most that an answer may have.
func sizeOf(ask *dns.Msg, asked int, by way) int {
	if by == byTCP {
		return dns.MaxMsgSize
	}
	size := dns.MinMsgSize
	if opt := ask.IsEdns0(); opt != nil {
		size = min(max(size, int(opt.UDPSize())), maxUDP)
	}
	return min(size, maxGain*asked)
}

// strip leaves the question and the EDNS record.
func strip(m *dns.Msg) {
	opt := m.IsEdns0()
	m.Answer, m.Ns, m.Extra = nil, nil, nil
	if opt != nil {
		m.Extra = []dns.RR{opt}
	}
}

// canonical is the name of a question as the zone knows it. Names with strange
// bytes have a backslash in it and match nothing.
func canonical(qname string) string { return strings.TrimSuffix(strings.ToLower(qname), ".") }
