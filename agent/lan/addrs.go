package lan

import (
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// maxAddrs is how many addresses the relay's DNS takes.
const maxAddrs = 16

// A link is one interface on the home network.
type link struct {
	iface    net.Interface
	prefixes []netip.Prefix // its addresses, each with the network around it
}

// homeLinks are the interfaces that lead to the home network, in the system's
// order. An error of the system means that there are none.
func homeLinks() []link {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var links []link
	for _, i := range ifaces {
		if !leadsHome(i.Name, i.Flags) {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it has just gone
		}
		l := link{iface: i}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				l.prefixes = append(l.prefixes, p)
			}
		}
		links = append(links, l)
	}
	return links
}

// leadsHome reports whether an interface may be one of the home network. Tunnels
// are point-to-point.
func leadsHome(name string, flags net.Flags) bool {
	return flags&net.FlagUp != 0 && flags&(net.FlagLoopback|net.FlagPointToPoint) == 0 && !virtual.MatchString(strings.ToLower(name))
}

// virtual are interfaces whose networks live inside this machine, or at the
// other end of a VPN: their addresses are private, too, and nobody else at home
// reaches them. A bridge such as br0 or vmbr0 is none of them: where there is
// one it usually holds the address of the machine.
var virtual = regexp.MustCompile(`^(` + strings.Join([]string{
	`docker`, `br-[0-9a-f]{12}$`, `veth`, `hassio$`, `podman`, `cni`, `nerdctl`, // containers
	`cali`, `flannel`, `cilium`, `lxc`, `lxdbr`, `incusbr`, `kube-`, `nodelocaldns`, `weave`,
	`virbr`, `vnet\d`, `vmnet`, `vboxnet`, `vethernet`, `bridge1\d\d$`, `dummy`, `ifb`, // virtual machines and others
	`tun`, `tap`, `wg`, `tailscale`, `zt`, `ppp`, `utun`, `nebula`, `awdl`, `llw`, // VPNs; Apple's own radio
}, "|") + `)`)

// homeAddrs are the addresses that other machines at home reach us by: private
// ones (RFC 1918, RFC 4193), IPv4 before IPv6. Link-local IPv4 (RFC 3927)
// counts where there is nothing else, as between two machines on one cable.
func homeAddrs() []netip.Addr { return addrsOf(homeLinks()) }

func addrsOf(links []link) []netip.Addr {
	var v4, v6, auto []netip.Addr
	for _, l := range links {
		for _, p := range l.prefixes {
			switch a := p.Addr().Unmap(); {
			case a.Is4() && a.IsPrivate():
				v4 = append(v4, a)
			case a.Is6() && a.IsPrivate():
				v6 = append(v6, a.WithZone(""))
			case a.Is4() && a.IsLinkLocalUnicast():
				auto = append(auto, a)
			}
		}
	}
	addrs := append(v4, v6...)
	if len(addrs) == 0 {
		addrs = auto
	}
	return addrs
}

// ofHome reports whether an address may be one of the home network.
func ofHome(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast()
}

// reachable keeps those of addrs that a listener on addr answers.
func reachable(addrs []netip.Addr, on netip.Addr) []netip.Addr {
	var kept []netip.Addr
	for _, a := range addrs {
		a = a.Unmap()
		ok := a.WithZone("") == a && a.IsValid()
		switch {
		case !on.IsValid() || on == netip.IPv6Unspecified():
		case on == netip.IPv4Unspecified():
			ok = ok && a.Is4()
		default:
			ok = ok && a == on
		}
		if ok && len(kept) < maxAddrs && !slices.Contains(kept, a) {
			kept = append(kept, a)
		}
	}
	return kept
}

// label spells an address as one DNS label: 192-168-1-7 for 192.168.1.7,
// fd00--7 for fd00::7 (RFC 5952 with hyphens). A label neither starts nor ends
// with a hyphen, so an outer "::" gets the zero that it leaves out. The relay's
// DNS knows this one spelling of each address.
func label(a netip.Addr) string {
	if a.Is4() {
		return strings.ReplaceAll(a.String(), ".", "-")
	}
	l := strings.ReplaceAll(a.String(), ":", "-")
	if strings.HasPrefix(l, "-") {
		l = "0" + l
	}
	if strings.HasSuffix(l, "-") {
		l += "0"
	}
	return l
}
