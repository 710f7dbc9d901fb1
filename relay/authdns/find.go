package authdns

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/sallyport/sallyport/protocol/names"
)

// A node is what one name of the zone has.
type node struct {
	name    string
	exists  bool
	apex    bool
	static  []dns.RR // of the configuration; their type is taken from nowhere else
	relay   bool     // the relay's addresses
	claimed bool     // a Source knows the name
	known   Answer   // what it said
	https   *SVCB
	target  string // of https; empty: the name itself
}

// find puts together what there is at a canonical name of the zone.
func (s *Server) find(name string, from netip.Addr) node {
	if host, ok := strings.CutPrefix(name, "_https."); ok && s.hasPort(host) {
		return node{name: name, exists: true} // nothing, but something below
	}
	if n, ok := s.findPort(name, from); ok {
		return n
	}
	n := node{name: name, apex: name == s.config.Domain}
	n.static = s.static.at(name)
	n.relay = slices.Contains(s.config.NS, name)
	for _, source := range s.config.Sources {
		if known, ok := source.Lookup(name, from); ok {
			n.known, n.claimed = known, true
			break
		}
	}
	served := n.known.Relay
	if !n.claimed && s.config.Hosts != nil && isHost(name) {
		served = s.config.Hosts(name)
	}
	if served && s.config.HTTPS != nil && !n.hasStatic(dns.TypeA, dns.TypeAAAA) {
		if svcb, ok := s.config.HTTPS(name); ok && svcb.standard() {
			n.https = &svcb
		}
	}
	n.relay = n.relay || served
	n.exists = n.apex || n.relay || n.claimed || len(n.static) > 0 || s.below(name)
	if !n.exists {
		n.static = s.wildcard(name)
		n.exists = len(n.static) > 0
	}
	return n
}

// findPort finds _PORT._https.HOST: where the HTTPS record is of a host that is
// served at another port than 443 (RFC 9460 §9.1).
func (s *Server) findPort(name string, from netip.Addr) (node, bool) {
	label, rest, _ := strings.Cut(name, ".")
	host, ok := strings.CutPrefix(rest, "_https.")
	digits, underscore := strings.CutPrefix(label, "_")
	if !ok || !underscore || s.config.HTTPS == nil || !isHost(host) {
		return node{}, false
	}
	svcb, ok := s.config.HTTPS(host)
	if !ok || svcb.standard() || digits != strconv.Itoa(int(svcb.Port)) {
		return node{}, false
	}
	if n := s.find(host, from); !n.relay || n.hasStatic(dns.TypeA, dns.TypeAAAA) {
		return node{}, false
	}
	return node{name: name, exists: true, https: &svcb, target: host}, true
}

// hasPort reports whether there is a name _PORT._https below a host.
func (s *Server) hasPort(host string) bool {
	if s.config.HTTPS == nil || !isHost(host) {
		return false
	}
	svcb, ok := s.config.HTTPS(host)
	return ok && !svcb.standard()
}

// isHost reports whether a name can be one of a host: what is asked of the
// router is what TLS would ask of it.
func isHost(name string) bool {
	c, err := names.Canonical(name)
	return err == nil && c == name
}

// below reports whether there is anything below a name.
func (s *Server) below(name string) bool {
	if s.static.below(name) || s.config.Below != nil && s.config.Below(name) {
		return true
	}
	for _, source := range s.config.Sources {
		if b, ok := source.(interface{ Below(name string) bool }); ok && b.Below(name) {
			return true
		}
	}
	return false
}

// wildcard returns the records of the configuration that stand for a name which
// does not exist: those of "*" at the nearest parent that does (RFC 4592).
func (s *Server) wildcard(name string) []dns.RR {
	if !s.static.wild {
		return nil
	}
	for parent := parentOf(name); len(parent) >= len(s.config.Domain); parent = parentOf(parent) {
		if rrs := s.static.at("*." + parent); len(rrs) > 0 {
			return rrs
		}
		if parent == s.config.Domain || s.exists(parent) {
			return nil
		}
	}
	return nil
}

// exists is find for parents, where only that counts. Wildcards do not.
func (s *Server) exists(name string) bool {
	if len(s.static.at(name)) > 0 || slices.Contains(s.config.NS, name) || s.below(name) {
		return true
	}
	for _, source := range s.config.Sources {
		if _, ok := source.Lookup(name, netip.Addr{}); ok {
			return true
		}
	}
	return s.config.Hosts != nil && isHost(name) && s.config.Hosts(name)
}

// hasStatic reports whether the configuration has records of one of the types.
func (n *node) hasStatic(types ...uint16) bool {
	return slices.ContainsFunc(n.static, func(rr dns.RR) bool { return slices.Contains(types, rr.Header().Rrtype) })
}

// cname is the alias that the name is, if it is one.
func (n *node) cname() *dns.CNAME {
	for _, rr := range n.static {
		if alias, ok := rr.(*dns.CNAME); ok {
			return alias
		}
	}
	return nil
}

// ttl is how long what a Source said may be kept.
func (n *node) ttl() uint32 {
	if n.known.TTL > 0 {
		return seconds(n.known.TTL)
	}
	return hostTTL
}

// seconds is a duration as a TTL; RFC 2181 §8 knows 31 bits.
func seconds(d time.Duration) uint32 { return uint32(min(max(d/time.Second, 0), 1<<31-1)) }

func parentOf(name string) string {
	_, parent, _ := strings.Cut(name, ".")
	return parent
}
