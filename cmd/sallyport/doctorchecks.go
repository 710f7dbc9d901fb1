package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/authdns"
)

// examine looks at what runs here; nil: it does not.
func (d *doctor) examine(ctx context.Context, relay *admin.Status, agent *control.Status) doctorReport {
	r := doctorReport{Schema: 1, Asked: []string{}}
	domain := ""
	if relay != nil {
		r.Relay = d.relay(ctx, *relay, &r)
		if r.Relay.DNS {
			domain = relay.Domain
		}
	}
	if agent != nil {
		r.Agent = d.agent(ctx, *agent, &r)
		if len(r.Agent.Names) > 0 && (d.offline || slices.ContainsFunc(r.Agent.Findings, func(f doctorFinding) bool { return !f.OK })) {
			domain = agent.Domain
		}
	}
	if domain != "" {
		for _, f := range authdns.RebindFilters(domain) {
			r.Filters = append(r.Filters, doctorFilter{f.Where, f.Line})
		}
	}
	return r
}

// tell says whom the next questions go to, before they do.
func (d *doctor) tell(r *doctorReport, about string, whom ...string) {
	r.Asked = append(r.Asked, whom...)
	fmt.Fprintf(d.say, "asking %s about %s; --offline asks nobody\n", strings.Join(whom, ", "), about)
}

func (d *doctor) relay(ctx context.Context, st admin.Status, r *doctorReport) *doctorRelay {
	v := &doctorRelay{Domain: st.Domain, Findings: []doctorFinding{}}
	if st.DNS == nil {
		return v
	}
	v.DNS = true
	var addrs []netip.Addr
	for _, text := range st.DNS.Addresses {
		if a, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, a)
		}
	}
	v.Set = authdns.Delegation(st.Domain, st.DNS.NS, addrs)
	switch {
	case d.offline:
		return v
	case !names.IsPublic(st.Domain):
		v.Findings = append(v.Findings, doctorFinding{OK: true, What: st.Domain + " is no domain of the public DNS: nobody was asked. Resolvers that shall know it must send its names to this relay"})
		return v
	}
	whom := []string{d.resolver, "the servers of the zone above"}
	for _, a := range addrs {
		whom = append(whom, a.String())
	}
	d.tell(r, st.Domain, whom...)
	for _, f := range d.delegation(ctx, authdns.Check{Domain: st.Domain, NS: st.DNS.NS, Addrs: addrs, Resolver: d.resolver, Ask: d.ask}) {
		v.Findings = append(v.Findings, doctorFinding(f))
	}
	return v
}

// agent asks this machine's resolver for the home's own addresses. The public
// one is the cross-check: what it does not know either, no filter has dropped.
func (d *doctor) agent(ctx context.Context, st control.Status, r *doctorReport) *doctorAgent {
	v := &doctorAgent{Names: []string{}, Findings: []doctorFinding{}}
	if st.EndToEnd == nil {
		return v
	}
	v.Own = st.EndToEnd.Own
	wanted := map[string]netip.Addr{}
	for _, text := range st.EndToEnd.LAN {
		u, err := url.Parse(text)
		if err != nil {
			continue
		}
		label, _, _ := strings.Cut(u.Hostname(), ".")
		if addr, ok := authdns.ParseIPName(label); ok {
			v.Names = append(v.Names, u.Hostname())
			wanted[u.Hostname()] = addr
		}
	}
	if d.offline || len(v.Names) == 0 {
		return v
	}
	d.tell(r, strings.Join(v.Names, ", "), "this machine's resolver")
	for _, name := range v.Names {
		v.Findings = append(v.Findings, d.filtered(ctx, name, wanted[name], names.IsPublic(st.Domain), r))
	}
	return v
}

// filtered looks for one name of the home network. A name that is in no public
// zone is nobody else's business.
func (d *doctor) filtered(ctx context.Context, name string, want netip.Addr, inPublic bool, r *doctorReport) doctorFinding {
	found, err := d.lookup(ctx, name)
	for i := range found {
		found[i] = found[i].Unmap()
	}
	switch gone, missing := errors.AsType[*net.DNSError](err); {
	case slices.Contains(found, want):
		return doctorFinding{OK: true, What: fmt.Sprintf("this machine's resolver finds %s at %s", name, want)}
	case len(found) > 0:
		return doctorFinding{
			What: fmt.Sprintf("this machine's resolver says that %s is at %s", name, joinAddrs(found)),
			Fix:  "it is " + want.String() + ": something between changes answers, or this home has just got another address; ask again in a minute",
		}
	case err != nil && !(missing && gone.IsNotFound):
		return doctorFinding{What: fmt.Sprintf("this machine's resolver gives no answer for %s: %v", name, err), Fix: "see that this machine has a network and a resolver"}
	}
	if !inPublic {
		return doctorFinding{
			What: fmt.Sprintf("this machine's resolver does not know %s", name),
			Fix:  "its domain is none of the public DNS: the resolver at home must send the names of it to the relay, and drop no private addresses in its answers",
		}
	}
	d.tell(r, name, d.resolver)
	public, err := d.public(ctx, name, want)
	switch {
	case err != nil:
		return doctorFinding{
			What: fmt.Sprintf("this machine's resolver does not know %s, and %s could not be asked: %v", name, d.resolver, err),
			Fix:  "most likely a filter at home drops private addresses: the lines for it are below. If they do not help, run sallyport doctor on the relay's machine",
		}
	case slices.Contains(public, want):
		return doctorFinding{
			What: fmt.Sprintf("this machine's resolver drops %s (%s), which %s knows: a filter against DNS rebinding", name, want, d.resolver),
			Fix:  "make an exception in the router or resolver at home: the lines are below",
		}
	}
	return doctorFinding{
		What: fmt.Sprintf("nobody knows %s: neither this machine's resolver nor %s", name, d.resolver),
		Fix:  "then it is hardly a filter at home. Does the relay answer its DNS (relay up --dns :53)? On its machine, sallyport doctor says what to set",
	}
}

// public asks the public resolver for a name.
func (d *doctor) public(ctx context.Context, name string, want netip.Addr) (found []netip.Addr, err error) {
	qtype := dns.TypeAAAA
	if want.Is4() {
		qtype = dns.TypeA
	}
	reply, err := d.ask(ctx, "udp", d.resolver, new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype))
	if err != nil {
		return nil, err
	}
	if reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("it says %s", dns.RcodeToString[reply.Rcode])
	}
	for _, rr := range reply.Answer {
		var ip net.IP
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A
		case *dns.AAAA:
			ip = rr.AAAA
		}
		if addr, ok := netip.AddrFromSlice(ip); ok {
			found = append(found, addr.Unmap())
		}
	}
	return found, nil
}

func joinAddrs(list []netip.Addr) string {
	var words []string
	for _, a := range list {
		words = append(words, a.String())
	}
	return strings.Join(words, ", ")
}
