package certs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// A failure is why there is no certificate, for people: one line each.
type failure struct {
	problem, fix string
	until        time.Time // the CA said not before, or the budget
	held         bool      // the preflight or the budget is sure of it: looks cost nothing, asking the CA does
}

// Error is problem and fix.
func (f *failure) Error() string { return f.problem + "\n" + f.fix }

// A report is what the preflight found. It looks at the host from this
// machine, which may see another DNS than the CA or be unable to reach itself:
// so nothing in it keeps the CA from being asked once in an hour.
type report struct {
	hold    *failure // the CA would surely refuse, and counts refusals
	hint    *failure // not certain; the better explanation if the CA refuses
	methods methods  // the challenges that reach this relay; none: unknown
}

// preflightTime bounds all looks at one host.
const preflightTime = time.Minute

// preflight looks for what makes a CA refuse: the cheapest looks first.
func (a *ACME) preflight(ctx context.Context, host string) report {
	ctx, cancel := context.WithTimeout(ctx, preflightTime)
	defer cancel()
	dir, err := a.directory(ctx)
	if err != nil {
		return report{hold: a.explain(err, report{}, nil)} // asking it for more would fail alike
	}
	var identities []string
	if dir.Meta != nil {
		if dir.Meta.ExternalAccountRequired {
			return report{hold: &failure{
				held: true, problem: a.config.CA + " wants an account that was made with it before (external account binding)",
				fix: "choose a CA that gives accounts to everybody: --acme-ca",
			}}
		}
		identities = dir.Meta.CAAIdentities
		a.identities.Store(&identities)
	}
	addrs, err := a.config.Resolver.LookupNetIP(ctx, "ip", host)
	notFound := new(net.DNSError)
	switch {
	case err == nil && len(addrs) == 0, errors.As(err, &notFound) && notFound.IsNotFound:
		return report{hold: &failure{
			held: true, problem: host + " has no address in the DNS (no A or AAAA record)",
			fix: fmt.Sprintf("add an A record for %s (or for *.%s) that points to this machine%s", host, parentOf(host), ownAddresses()),
		}}
	case err != nil:
		return report{hint: &failure{
			problem: oneLine(fmt.Sprintf("the address of %s cannot be looked up: %v", host, err)),
			fix:     "mend the DNS that this machine asks (/etc/resolv.conf), or the zone's name servers",
		}}
	}
	caa := checkCAA(ctx, a.config.Resolver, host, identities, a.account.location())
	if caa != nil && caa.held {
		return report{hold: caa}
	}
	found := a.probe.look(ctx, host, addrs)
	if found.hint == nil {
		found.hint = caa
	}
	return found
}

func parentOf(host string) string {
	_, parent, _ := strings.Cut(host, ".")
	return parent
}

// ownAddresses is " (ADDR, ADDR)": the public ones that this machine has of
// its own; behind a cloud's NAT there are none.
func ownAddresses() string {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	var own []string
	for _, a := range list {
		p, err := netip.ParsePrefix(a.String())
		if ip := p.Addr().Unmap(); err == nil && ip.IsGlobalUnicast() && !ip.IsPrivate() && len(own) < 4 {
			own = append(own, ip.String())
		}
	}
	if len(own) == 0 {
		return ""
	}
	return " (" + strings.Join(own, ", ") + ")"
}

// oneLine makes text of a server or a resolver fit for one line of a terminal.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069:
			return -1
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 300 {
		s = string(r[:300]) + "…"
	}
	return s
}
