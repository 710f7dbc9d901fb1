package certs

import (
	"net/netip"
	"net/url"
)

// reserved4 are the blocks of IPv4 that no machine on the internet has
// (IANA's special-purpose registry), and one that a cloud uses inside.
var reserved4 = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
	"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "224.0.0.0/3",
	"168.63.129.16/32", // Azure's host answers its guests here, on port 80 too
)

// global6 is what there is of IPv6 to the outside; reserved6 is inside of it
// and leads elsewhere: tunnels reach any IPv4 address, private ones too.
var (
	global6   = netip.MustParsePrefix("2000::/3")
	reserved6 = prefixes("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)

func prefixes(list ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(list))
	for i, s := range list {
		all[i] = netip.MustParsePrefix(s)
	}
	return all
}

// mayDial says whether a probe of a goes to the internet. Whoever may register
// a host decides where its name leads: without this rule the probes would tell
// which ports are open on this machine and in its network.
func (p *prober) mayDial(a netip.Addr) bool {
	a = a.Unmap()
	if p.loopback && a.IsLoopback() {
		return true
	}
	reserved := reserved4
	if !a.Is4() {
		if !global6.Contains(a) { // nor when a has a zone
			return false
		}
		reserved = reserved6
	}
	for _, block := range reserved {
		if block.Contains(a) {
			return false
		}
	}
	return true
}

// onLoopback says whether a CA runs on this machine. Then the hosts that it
// certifies are on loopback too: a test, or a trial.
func onLoopback(ca string) bool {
	u, err := url.Parse(ca)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return err == nil && addr.IsLoopback() || u.Hostname() == "localhost"
}
