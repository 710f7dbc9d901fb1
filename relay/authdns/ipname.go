package authdns

import (
	"net/netip"
	"strings"
)

// IPName is the one spelling of an address as a label: 1-2-3-4 for 1.2.3.4,
// 2001-db8--1 for 2001:db8::1 (RFC 5952 with hyphens). A label neither starts
// nor ends with a hyphen, so an outer "::" gets the zero that it leaves out:
// 0--1, fd00--0. Empty for addresses that have no such name: with a zone, and
// IPv4 inside IPv6.
func IPName(addr netip.Addr) string {
	switch {
	case !addr.IsValid() || addr.Zone() != "" || addr.Is4In6():
		return ""
	case addr.Is4():
		return strings.ReplaceAll(addr.String(), ".", "-")
	}
	label := strings.ReplaceAll(addr.String(), ":", "-")
	if strings.HasPrefix(label, "-") {
		label = "0" + label
	}
	if strings.HasSuffix(label, "-") {
		label += "0"
	}
	return label
}

// maxIPName is the length of an IPv6 address with all its digits.
const maxIPName = 39

// ParseIPName is the reverse of IPName. It is strict: whatever IPName would
// spell otherwise is no address, so that each address has one name, and one
// entry in the caches of the world.
func ParseIPName(label string) (netip.Addr, bool) {
	if len(label) > maxIPName || strings.Trim(label, "0123456789abcdef-") != "" {
		return netip.Addr{}, false
	}
	for _, sep := range []string{".", ":"} {
		addr, err := netip.ParseAddr(strings.ReplaceAll(label, "-", sep))
		if err == nil && IPName(addr) == label {
			return addr, true
		}
	}
	return netip.Addr{}, false
}
