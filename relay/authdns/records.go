package authdns

import (
	"fmt"
	"net/mail"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

const (
	hostTTL = 300  // of addresses: how long a visitor may look for a relay that has moved
	zoneTTL = 3600 // of NS and SOA
	// negativeTTL is how long "there is no such thing" may be kept: as long as a
	// person waits who has just added a host.
	negativeTTL = 60
	caaTTL      = 300
)

// A CAA is one CAA record (RFC 8659).
type CAA struct {
	Critical bool
	Tag      string // issue, issuewild, iodef
	Value    string
}

// SVCB is the HTTPS record of a host (RFC 9460).
type SVCB struct {
	ALPN []string // none: HTTP/1.1 only
	Port uint16   // where the host is served; 0: 443. Other ports are published at _PORT._https.HOST.
	ECH  []byte   // an ECHConfigList; empty: none
}

// standard reports whether the record stands at the host itself.
func (r SVCB) standard() bool { return r.Port == 0 || r.Port == 443 }

// records are all records of one type that a name has.
func (s *Server) records(n node, owner string, qtype uint16) []dns.RR {
	var rrs []dns.RR
	for _, rr := range n.static {
		if rr.Header().Rrtype == qtype {
			rrs = append(rrs, withOwner(rr, owner))
		}
	}
	switch qtype {
	case dns.TypeA, dns.TypeAAAA:
		if !n.hasStatic(dns.TypeA, dns.TypeAAAA) && n.cname() == nil {
			rrs = append(rrs, s.addresses(n, owner, qtype)...)
		}
	case dns.TypeTXT:
		for _, text := range n.known.TXT {
			rrs = append(rrs, &dns.TXT{Hdr: header(owner, dns.TypeTXT, n.ttl()), Txt: txtStrings(text)})
		}
	case dns.TypeCAA:
		if len(rrs) == 0 {
			for _, c := range s.caa(n) {
				rrs = append(rrs, c.record(owner))
			}
		}
	case dns.TypeHTTPS:
		if len(rrs) == 0 && n.https != nil {
			rrs = append(rrs, n.https.record(owner, n.target))
		}
	case dns.TypeSOA:
		if n.apex {
			rrs = append(rrs, s.soa(owner, zoneTTL))
		}
	case dns.TypeNS:
		if n.apex {
			for _, ns := range s.config.NS {
				rrs = append(rrs, &dns.NS{Hdr: header(owner, dns.TypeNS, zoneTTL), Ns: ns + "."})
			}
		}
	case dns.TypeANY:
		if !n.empty() {
			rrs = []dns.RR{&dns.HINFO{Hdr: header(owner, dns.TypeHINFO, zoneTTL), Cpu: "RFC8482"}}
		}
	}
	return rrs
}

// empty reports whether a name only exists because of others, or by its name.
func (n *node) empty() bool {
	return !n.apex && !n.relay && len(n.static) == 0 && n.https == nil &&
		len(n.known.Addrs)+len(n.known.TXT)+len(n.known.CAA) == 0
}

func (s *Server) addresses(n node, owner string, qtype uint16) []dns.RR {
	addrs, ttl := n.known.Addrs, n.ttl()
	if n.relay {
		addrs = append(slices.Clone(addrs), s.config.Addrs()...)
	}
	var rrs []dns.RR
	var seen []netip.Addr
	for _, addr := range addrs {
		addr = addr.Unmap().WithZone("")
		if !addr.IsValid() || addr.Is4() != (qtype == dns.TypeA) || slices.Contains(seen, addr) {
			continue
		}
		seen = append(seen, addr)
		rrs = append(rrs, addressRecord(owner, ttl, addr))
	}
	return rrs
}

func addressRecord(owner string, ttl uint32, addr netip.Addr) dns.RR {
	if addr.Is4() {
		return &dns.A{Hdr: header(owner, dns.TypeA, ttl), A: addr.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(owner, dns.TypeAAAA, ttl), AAAA: addr.AsSlice()}
}

func (c CAA) record(owner string) dns.RR {
	rr := &dns.CAA{Hdr: header(owner, dns.TypeCAA, caaTTL), Tag: c.Tag, Value: escape(c.Value)}
	if c.Critical {
		rr.Flag = 0x80
	}
	return rr
}

// record is the HTTPS record. At _PORT._https.HOST it names the host: by itself
// it would mean its own name, which has no address.
func (r SVCB) record(owner, target string) dns.RR {
	rr := &dns.HTTPS{SVCB: dns.SVCB{Hdr: header(owner, dns.TypeHTTPS, hostTTL), Priority: 1, Target: "."}}
	if target != "" {
		rr.Target = target + "."
	}
	if len(r.ALPN) > 0 {
		rr.Value = append(rr.Value, &dns.SVCBAlpn{Alpn: r.ALPN})
	}
	if !r.standard() {
		rr.Value = append(rr.Value, &dns.SVCBPort{Port: r.Port})
	}
	if len(r.ECH) > 0 {
		rr.Value = append(rr.Value, &dns.SVCBECHConfig{ECH: r.ECH})
	}
	return rr
}

func (s *Server) soa(owner string, ttl uint32) *dns.SOA {
	mailbox, _ := mailboxName(s.config.Mailbox)
	return &dns.SOA{
		Hdr: header(owner, dns.TypeSOA, ttl), Ns: s.config.NS[0] + ".", Mbox: mailbox,
		Serial: s.serialNow(), Refresh: 7200, Retry: 900, Expire: 1209600, Minttl: negativeTTL,
	}
}

// mailboxName writes an address as the SOA record does: the @ as a dot, dots
// before it escaped.
func mailboxName(address string) (string, error) {
	parsed, err := mail.ParseAddress(address)
	if err != nil || parsed.Address != address {
		return "", fmt.Errorf("the zone's mail address %q is none: write name@example.org", address)
	}
	at := strings.LastIndexByte(address, '@')
	name := strings.ReplaceAll(address[:at], ".", `\.`) + "." + address[at+1:] + "."
	if _, ok := dns.IsDomainName(name); !ok || !isHost(strings.ToLower(address[at+1:])) {
		return "", fmt.Errorf("the zone's mail address %q does not fit a SOA record", address)
	}
	return name, nil
}

func header(owner string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

func withOwner(rr dns.RR, owner string) dns.RR {
	c := dns.Copy(rr)
	c.Header().Name = owner
	return c
}

// txtStrings cuts a text into the strings of at most 255 bytes that a TXT record
// is made of.
func txtStrings(text string) []string {
	var parts []string
	for len(text) > 255 {
		parts = append(parts, escape(text[:255]))
		text = text[255:]
	}
	return append(parts, escape(text))
}

// escape protects the one character that the library reads as more than itself.
func escape(s string) string { return strings.ReplaceAll(s, `\`, `\\`) }
