package authdns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// caa returns the CAA records of a name but those of the configuration. A host
// may belong to one party and the wildcard below it to another; a CA that is
// asked for *.NAME looks at NAME.
func (s *Server) caa(n node) []CAA {
	var list []CAA
	switch {
	case n.claimed:
		list = n.known.CAA
	case (n.apex || n.relay) && s.config.CAA != nil:
		list = s.config.CAA(n.name)
	}
	wild := s.wildCAA(n.name)
	if len(wild) == 0 {
		return list
	}
	if list = without(list, "issuewild"); len(list) == 0 {
		// Records with no "issue" among them would let every CA certify the bare
		// name: it keeps what it would have without the wildcard.
		list = without(s.inherited(n.name), "issuewild")
	}
	if len(list) == 0 && !n.claimed && !n.relay {
		list = []CAA{{Tag: "issue", Value: ";"}} // the bare name is nobody's
	}
	return append(list, wild...)
}

// wildCAA are records about *.NAME that are not those of NAME's owner.
func (s *Server) wildCAA(name string) []CAA {
	for _, source := range s.config.Sources {
		if w, ok := source.(interface{ WildCAA(name string) []CAA }); ok {
			if list := w.WildCAA(name); len(list) > 0 {
				return list
			}
		}
	}
	return nil
}

// inherited is what a CA finds that climbs the tree from a name (RFC 8659 §3).
func (s *Server) inherited(name string) []CAA {
	for name != s.config.Domain {
		name = parentOf(name)
		n := s.find(name, netip.Addr{})
		var list []CAA
		for _, rr := range n.static {
			if c, ok := rr.(*dns.CAA); ok {
				list = append(list, CAA{Critical: c.Flag&0x80 != 0, Tag: c.Tag, Value: strings.ReplaceAll(c.Value, `\\`, `\`)})
			}
		}
		if len(list) == 0 {
			list = s.caa(n)
		}
		if len(list) > 0 {
			return list
		}
	}
	return nil
}

// without returns a copy of list without a tag.
func without(list []CAA, tag string) []CAA {
	return slices.DeleteFunc(slices.Clone(list), func(c CAA) bool { return strings.EqualFold(c.Tag, tag) })
}
