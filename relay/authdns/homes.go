package authdns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

// A Home is what the zone tells of one agent.
type Home struct {
	LAN     []netip.Addr // its addresses on its own network; see LANAddr
	Public  netip.Addr   // the address that the relay sees it come from
	Split   bool         // Hosts are answered with LAN to those who ask from Public
	Account string       // its ACME account URI; empty: no CAA records
	Issuers []string     // how its CA calls itself in CAA records
	Hosts   []string     // hosts in the zone whose TLS ends at the agent, exact or "*.x"
}

const (
	maxLAN     = 16
	maxIssuers = 4
	splitTTL   = time.Minute // a phone that leaves the house must not keep its address long
)

// Homes is a Source of the agents' names:
//
//   - HASH.DOMAIN and every label below it have the relay's addresses, because
//     agents are reached through the relay;
//   - except labels that spell an address (ParseIPName): they have that address
//     if it is in LAN, or is Public, and otherwise nothing;
//   - hosts have the relay's addresses, or LAN's with Split;
//   - HASH.DOMAIN and hosts have CAA records for the agent's own ACME account.
//
// Neighbours behind one carrier's address (CGNAT) have the same Public: with
// Split they are told LAN addresses that lead nowhere for them. Hence Split is a
// wish and not the rule.
type Homes struct {
	domain string

	mu      sync.RWMutex // guards all below
	homes   map[string]Home
	hosts   map[string]string // host or "*.x" → agent
	tree    tree              // of hosts
	version uint64
}

// NewHomes returns a Homes of a canonical domain.
func NewHomes(domain string) *Homes {
	return &Homes{domain: domain, homes: map[string]Home{}, hosts: map[string]string{}, tree: tree{}}
}

// LANAddr reports whether an address may stand for an agent's own network:
// private (RFC 1918, RFC 4193) and IPv4 link-local ones. Not loopback, which is
// the visitor's own machine, and not what another network routes to.
func LANAddr(addr netip.Addr) bool {
	return IPName(addr) != "" && (addr.IsPrivate() || addr.Is4() && addr.IsLinkLocalUnicast())
}

// Set replaces what is known of an agent. What is wrong is left out, and named
// in the error; the rest holds.
func (h *Homes) Set(agent string, home Home) error {
	if !names.IsAgentLabel(agent) {
		return fmt.Errorf("%q is not an agent's identity", agent)
	}
	home, err := h.clean(home)
	h.mu.Lock()
	defer h.mu.Unlock()
	old, had := h.homes[agent]
	if had && same(old, home) {
		return err
	}
	h.forget(agent, old)
	h.homes[agent] = home
	for _, host := range home.Hosts {
		if _, taken := h.hosts[host]; !taken {
			h.tree.add(host, 1)
		}
		h.hosts[host] = agent
	}
	h.version++
	return err
}

// Remove forgets an agent: its names are gone.
func (h *Homes) Remove(agent string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	home, ok := h.homes[agent]
	if !ok {
		return
	}
	h.forget(agent, home)
	delete(h.homes, agent)
	h.version++
}

// forget takes away the hosts of an agent that no other has taken over; mu is held.
func (h *Homes) forget(agent string, home Home) {
	for _, host := range home.Hosts {
		if h.hosts[host] == agent {
			delete(h.hosts, host)
			h.tree.add(host, -1)
		}
	}
}

func same(a, b Home) bool {
	return slices.Equal(a.LAN, b.LAN) && a.Public == b.Public && a.Split == b.Split && a.Account == b.Account &&
		slices.Equal(a.Issuers, b.Issuers) && slices.Equal(a.Hosts, b.Hosts)
}

// clean copies a Home without what must not be in the zone.
func (h *Homes) clean(home Home) (Home, error) {
	var faults []error
	clean := Home{Split: home.Split}
	for _, addr := range home.LAN {
		addr = addr.Unmap()
		switch {
		case !LANAddr(addr):
			faults = append(faults, fmt.Errorf("%s is not an address of a home network (RFC 1918, RFC 4193, 169.254.0.0/16), so it gets no name", addr))
		case slices.Contains(clean.LAN, addr):
		case len(clean.LAN) == maxLAN:
			faults = append(faults, fmt.Errorf("%s is one address of the home network too many: at most %d get a name", addr, maxLAN))
		default:
			clean.LAN = append(clean.LAN, addr)
		}
	}
	if p := home.Public.Unmap().WithZone(""); p.IsGlobalUnicast() { // private ones too: a relay inside a network sees those
		clean.Public = p
	}
	clean.Hosts = h.inZone(home.Hosts)
	if home.Account == "" {
		return clean, errors.Join(faults...)
	}
	issuers, err := caaIssuers(home.Account, home.Issuers)
	if err != nil {
		return clean, errors.Join(append(faults, err)...)
	}
	clean.Account, clean.Issuers = home.Account, issuers
	return clean, errors.Join(faults...)
}

// inZone leaves out hosts that other zones answer for.
func (h *Homes) inZone(hosts []string) []string {
	var in []string
	for _, host := range hosts {
		if names.Below(host, h.domain) && !slices.Contains(in, host) {
			in = append(in, host)
		}
	}
	return in
}

// Lookup is Source.
func (h *Homes) Lookup(name string, from netip.Addr) (Answer, bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if below, ok := strings.CutSuffix(name, "."+h.domain); ok {
		label, agent, dot := strings.Cut(below, ".")
		if !dot {
			label, agent = "", below
		}
		if home, ok := h.homes[agent]; ok {
			return home.own(label, dot)
		}
	}
	agent, ok := h.ownerOf(name)
	if !ok {
		return Answer{}, false
	}
	home := h.homes[agent]
	answer := Answer{Relay: true, CAA: home.caa(h.hosts["*."+name] == agent)}
	if home.Split && len(home.LAN) > 0 && sameHome(home.Public, from) {
		answer = Answer{Addrs: home.LAN, CAA: answer.CAA, TTL: splitTTL}
	}
	return answer, true
}

// own answers for the agent's own name, and for a label below it.
func (home *Home) own(label string, below bool) (Answer, bool) {
	if !below {
		return Answer{Relay: true, CAA: home.caa(true)}, true
	}
	if addr, ok := ParseIPName(label); ok {
		if addr == home.Public || slices.Contains(home.LAN, addr) {
			return Answer{Addrs: []netip.Addr{addr}}, true
		}
		return Answer{}, true
	}
	return Answer{Relay: true}, isHost(label + ".x")
}

// sameHome reports whether an asker is at home: at the same IPv4 address, or in
// the /64 that a household's devices share.
func sameHome(public, from netip.Addr) bool {
	if !public.IsValid() || public.Is4() != from.Is4() {
		return false
	}
	bits := 32
	if public.Is6() {
		bits = 64
	}
	network, err := public.Prefix(bits)
	return err == nil && network.Contains(from.WithZone(""))
}

// ownerOf returns the agent whose host a name is, by itself or by a wildcard; mu
// is held.
func (h *Homes) ownerOf(name string) (string, bool) {
	if agent, ok := h.hosts[name]; ok {
		return agent, true
	}
	if !isHost(name) {
		return "", false
	}
	agent, ok := h.hosts["*."+parentOf(name)]
	return agent, ok
}

// Below reports whether there is a host below a name.
func (h *Homes) Below(name string) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.tree[name] > 0
}

// Version rises with every change.
func (h *Homes) Version() uint64 {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.version
}
