package authdns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// A Check asks the world whether it finds the zone at this server.
type Check struct {
	Domain string       // the zone
	NS     []string     // as in Config
	Addrs  []netip.Addr // the relay's public addresses
	// Resolver is a public resolver (ADDR:PORT), which knows what the world knows:
	// not the one of this machine, which may be the relay itself.
	Resolver string
	// Ask puts a question to a server (ADDR:PORT) over "udp" or "tcp". nil: Ask of
	// this package.
	Ask func(ctx context.Context, network, server string, ask *dns.Msg) (*dns.Msg, error)
	// Port is where the relay answers, for tests; 0: 53.
	Port uint16
}

// A Finding is one thing that was looked at.
type Finding struct {
	OK   bool
	What string // what was found, one line
	Fix  string // what to do, lines; empty when OK
}

// Ask puts one question to one server, with five seconds for the answer.
func Ask(ctx context.Context, network, server string, ask *dns.Msg) (*dns.Msg, error) {
	client := dns.Client{Net: network, Timeout: 5 * time.Second, UDPSize: maxUDP}
	reply, _, err := client.ExchangeContext(ctx, ask, server)
	if err == nil && reply.Truncated && network == "udp" {
		return Ask(ctx, "tcp", server, ask)
	}
	return reply, err
}

// CheckDelegation looks at all that has to be right for the zone to be found, in
// the order in which it is best mended: the server answers at its addresses, the
// zone above names it, nobody expects signatures, a resolver gets through.
func CheckDelegation(ctx context.Context, c Check) []Finding {
	if len(c.NS) == 0 {
		c.NS = []string{"ns1." + c.Domain}
	}
	if c.Ask == nil {
		c.Ask = Ask
	}
	if c.Port == 0 {
		c.Port = 53
	}
	found := c.reachable(ctx)
	found = append(found, c.delegated(ctx)...)
	found = append(found, c.unsigned(ctx)...)
	return append(found, c.resolved(ctx))
}

// reachable asks the server itself.
func (c *Check) reachable(ctx context.Context) []Finding {
	if len(c.Addrs) == 0 {
		return []Finding{{What: "the relay's public address is not known", Fix: "name it in the configuration"}}
	}
	var found []Finding
	for _, addr := range c.Addrs {
		server := netip.AddrPortFrom(addr.Unmap(), c.Port).String()
		for _, network := range []string{"udp", "tcp"} {
			found = append(found, c.reach(ctx, network, server))
		}
	}
	return found
}

func (c *Check) reach(ctx context.Context, network, server string) Finding {
	reply, err := c.Ask(ctx, network, server, question(c.Domain, dns.TypeSOA, false))
	switch {
	case err != nil:
		return Finding{
			What: fmt.Sprintf("%s does not answer DNS questions by %s: %v", server, network, plain(err)),
			Fix:  fmt.Sprintf("let port %d/%s through the firewall of this machine and of its provider, and see that the relay runs with its DNS on", c.Port, network),
		}
	case !reply.Authoritative || len(reply.Answer) == 0:
		return Finding{
			What: fmt.Sprintf("something at %s/%s answers DNS questions, but not for %s (%s)", server, network, c.Domain, dns.RcodeToString[reply.Rcode]),
			Fix:  "stop the other DNS server on this machine (systemd-resolved, dnsmasq, BIND), or give the relay its port",
		}
	}
	return Finding{OK: true, What: fmt.Sprintf("%s answers for %s by %s", server, c.Domain, network)}
}

// delegated asks the servers of the zone above what was set there.
func (c *Check) delegated(ctx context.Context) []Finding {
	parent, servers, err := c.parent(ctx)
	if err != nil {
		return []Finding{{
			What: fmt.Sprintf("the zone above %s cannot be asked: %v", c.Domain, err),
			Fix:  "see that this machine reaches " + c.Resolver + " and the internet by port 53",
		}}
	}
	var reply *dns.Msg
	for _, server := range servers {
		if reply, err = c.Ask(ctx, "udp", server, question(c.Domain, dns.TypeNS, false)); err == nil {
			break
		}
	}
	if err != nil {
		return []Finding{{
			What: fmt.Sprintf("no server of the zone %s answers: %v", parent, plain(err)),
			Fix:  "see that this machine reaches the internet by port 53, or try again later",
		}}
	}
	return c.compare(parent, reply)
}

// compare judges a referral.
func (c *Check) compare(parent string, reply *dns.Msg) []Finding {
	var named []string
	for _, rr := range append(slices.Clone(reply.Answer), reply.Ns...) {
		if ns, ok := rr.(*dns.NS); ok && canonical(ns.Hdr.Name) == c.Domain {
			named = append(named, canonical(ns.Ns))
		}
	}
	set := "set at the registrar, or at the DNS provider of " + parent + ":\n" + strings.Join(Delegation(c.Domain, c.NS, c.Addrs), "\n")
	if len(named) == 0 {
		return []Finding{{What: fmt.Sprintf("%s has no NS record for %s: nobody asks this server", parent, c.Domain), Fix: set}}
	}
	var found []Finding
	for _, ns := range c.NS {
		if !slices.Contains(named, ns) {
			found = append(found, Finding{What: fmt.Sprintf("%s does not name %s as a server of %s", parent, ns, c.Domain), Fix: set})
		} else if inZone(ns, c.Domain) {
			found = append(found, c.glued(parent, ns, reply)...)
		}
	}
	for _, ns := range named {
		if !slices.Contains(c.NS, ns) {
			found = append(found, Finding{
				What: fmt.Sprintf("%s also names %s, which is not this relay: who asks there finds nothing of it", parent, ns),
				Fix:  "remove that NS record, or name the server in the relay's configuration if it is another name of this one",
			})
		}
	}
	if len(found) == 0 {
		found = append(found, Finding{OK: true, What: fmt.Sprintf("%s names %s as server of %s", parent, strings.Join(c.NS, ", "), c.Domain)})
	}
	return found
}

// glued checks the addresses that the zone above gives for a server inside the
// zone: nobody could look them up otherwise.
func (c *Check) glued(parent, ns string, reply *dns.Msg) []Finding {
	var glue, want []string
	for _, rr := range append(slices.Clone(reply.Extra), reply.Answer...) {
		if canonical(rr.Header().Name) != ns {
			continue
		}
		switch rr := rr.(type) {
		case *dns.A:
			glue = append(glue, rr.A.String())
		case *dns.AAAA:
			glue = append(glue, rr.AAAA.String())
		}
	}
	for _, addr := range c.Addrs {
		want = append(want, addr.Unmap().String())
	}
	wrong := slices.DeleteFunc(slices.Clone(glue), func(a string) bool { return slices.Contains(want, a) })
	fix := "set at the registrar, as glue or host records:\n" + strings.Join(Delegation(c.Domain, []string{ns}, c.Addrs)[1:], "\n")
	switch {
	case len(glue) == 0:
		return []Finding{{What: fmt.Sprintf("%s gives no address of %s", parent, ns), Fix: fix}}
	case len(wrong) > 0:
		return []Finding{{What: fmt.Sprintf("%s says that %s has the address %s, which is not the relay's", parent, ns, strings.Join(wrong, ", ")), Fix: fix}}
	}
	return nil
}

// parent finds the zone above and its servers.
func (c *Check) parent(ctx context.Context) (string, []string, error) {
	for zone := parentOf(c.Domain); zone != ""; zone = parentOf(zone) {
		reply, err := c.Ask(ctx, "udp", c.Resolver, question(zone, dns.TypeNS, true))
		if err != nil {
			return "", nil, plain(err)
		}
		var servers []string
		for _, rr := range reply.Answer {
			ns, ok := rr.(*dns.NS)
			if !ok || canonical(ns.Hdr.Name) != zone {
				continue
			}
			if len(servers) < 6 {
				servers = append(servers, c.addressesOf(ctx, ns.Ns)...)
			}
		}
		if len(servers) > 0 {
			return zone, servers, nil
		}
	}
	return "", nil, fmt.Errorf("%s knows no servers of any zone above it", c.Resolver)
}

func (c *Check) addressesOf(ctx context.Context, name string) []string {
	var servers []string
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		reply, err := c.Ask(ctx, "udp", c.Resolver, question(canonical(name), qtype, true))
		if err != nil {
			continue
		}
		for _, rr := range reply.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				servers = append(servers, net.JoinHostPort(rr.A.String(), "53"))
			case *dns.AAAA:
				servers = append(servers, net.JoinHostPort(rr.AAAA.String(), "53"))
			}
		}
	}
	return servers
}

// unsigned looks for a DS record: with it, resolvers that check signatures take
// no answer of a zone that has none.
func (c *Check) unsigned(ctx context.Context) []Finding {
	reply, err := c.Ask(ctx, "udp", c.Resolver, question(c.Domain, dns.TypeDS, true))
	if err != nil {
		return nil // said already
	}
	for _, rr := range reply.Answer {
		if rr.Header().Rrtype == dns.TypeDS {
			return []Finding{{
				What: fmt.Sprintf("there is a DS record for %s, and the relay does not sign its zone: resolvers that check DNSSEC find nothing", c.Domain),
				Fix:  "turn DNSSEC off for " + c.Domain + " at the registrar (remove the DS record)",
			}}
		}
	}
	return nil
}

// resolved asks as a visitor does.
func (c *Check) resolved(ctx context.Context) Finding {
	reply, err := c.Ask(ctx, "udp", c.Resolver, question(c.Domain, dns.TypeSOA, true))
	fix := "mend what is said above; what resolvers have heard before may take a day to go"
	if err != nil {
		return Finding{What: fmt.Sprintf("the resolver %s does not answer: %v", c.Resolver, plain(err)), Fix: "see that this machine reaches it by port 53"}
	}
	for _, rr := range reply.Answer {
		if soa, ok := rr.(*dns.SOA); ok && slices.Contains(c.NS, canonical(soa.Ns)) {
			return Finding{OK: true, What: fmt.Sprintf("the resolver %s finds %s at this relay", c.Resolver, c.Domain)}
		}
	}
	return Finding{What: fmt.Sprintf("the resolver %s does not find %s at this relay (%s)", c.Resolver, c.Domain, dns.RcodeToString[reply.Rcode]), Fix: fix}
}

func question(name string, qtype uint16, recurse bool) *dns.Msg {
	m := new(dns.Msg).SetQuestion(name+".", qtype)
	m.RecursionDesired = recurse
	m.SetEdns0(maxUDP, false)
	return m
}

// plain shortens a network error to what a person needs.
func plain(err error) error {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return errors.New("no answer within the time")
	}
	return err
}
