package authdns

import (
	"fmt"
	"net/netip"

	"github.com/miekg/dns"
)

// Delegation returns the records that make the world ask this server for the
// zone, as lines of a zone file: to be set at the registrar, or at the DNS
// provider of the zone above. ns and addrs are as in Config; no ns: ns1.DOMAIN.
// Names of servers that are in another zone need their addresses there, and they
// are listed too.
func Delegation(domain string, ns []string, addrs []netip.Addr) []string {
	if len(ns) == 0 {
		ns = []string{"ns1." + domain}
	}
	var lines []string
	for _, name := range ns {
		lines = append(lines, fmt.Sprintf("%s. NS %s.", domain, name))
	}
	for _, name := range ns {
		for _, addr := range addrs {
			lines = append(lines, fmt.Sprintf("%s. %s %s", name, addressType(addr), addr.Unmap()))
		}
	}
	return lines
}

func addressType(addr netip.Addr) string {
	if addr.Unmap().Is4() {
		return "A"
	}
	return "AAAA"
}

// A RebindFilter is one kind of home router or resolver that throws away answers
// from the internet with private addresses in them, and the exception to make.
type RebindFilter struct {
	Where string // what has the filter
	Line  string // what to write there
}

// RebindFilters returns how to make exceptions for the zone: without, names such
// as 192-168-1-7.HASH.DOMAIN do not work behind such a filter.
func RebindFilters(domain string) []RebindFilter {
	return []RebindFilter{
		{"dnsmasq", "rebind-domain-ok=/" + domain + "/"},
		{"Pi-hole (Settings, All settings, misc.dnsmasq_lines)", "rebind-domain-ok=/" + domain + "/"},
		{"OpenWrt", "uci add_list dhcp.@dnsmasq[0].rebind_domain='" + domain + "' && uci commit dhcp && service dnsmasq restart"},
		{"Unbound, pfSense (custom options)", "server: private-domain: \"" + domain + "\""},
		{"OPNsense (Services, Unbound DNS, Advanced, Private Domains)", domain},
		{"AdGuard Home (Filters, Custom filtering rules)", "@@||" + domain + "^"},
		{"FRITZ!Box (Home Network, Network, Network Settings, DNS Rebind Protection)", domain},
	}
}

// inZone reports whether a name is the zone or in it.
func inZone(name, domain string) bool { return dns.IsSubDomain(domain+".", name+".") }
