package authdns

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// A dnsWorld is a resolver, the servers of org, and the relay, without a network.
type dnsWorld struct {
	*world
	referral []string // what org says of example.org
	ds       bool
	down     map[string]bool // "udp 203.0.113.1:53"
	stranger bool            // another server has the relay's port
	resolves bool
}

func (d *dnsWorld) ask(_ context.Context, network, server string, ask *dns.Msg) (*dns.Msg, error) {
	if d.down[network+" "+server] {
		return nil, &net.DNSError{Err: "i/o timeout", IsTimeout: true}
	}
	q := ask.Question[0]
	m := new(dns.Msg).SetReply(ask)
	add := func(section *[]dns.RR, lines ...string) {
		for _, l := range lines {
			rr, err := dns.NewRR(l)
			if err != nil {
				panic(err)
			}
			*section = append(*section, rr)
		}
	}
	switch {
	case server == "9.9.9.9:53" && !ask.RecursionDesired, server != "9.9.9.9:53" && ask.RecursionDesired:
		m.Rcode = dns.RcodeRefused
	case server == "9.9.9.9:53" && q.Qtype == dns.TypeNS && q.Name == "org.":
		add(&m.Answer, "org. NS a.nic.org.", "org. NS b.nic.org.")
	case server == "9.9.9.9:53" && q.Name == "a.nic.org." && q.Qtype == dns.TypeA:
		add(&m.Answer, "a.nic.org. A 192.0.2.53")
	case server == "9.9.9.9:53" && q.Name == "b.nic.org." && q.Qtype == dns.TypeAAAA:
		add(&m.Answer, "b.nic.org. AAAA 2001:db8::1:53")
	case server == "9.9.9.9:53" && q.Qtype == dns.TypeDS && d.ds:
		add(&m.Answer, "example.org. DS 1 13 2 "+strings.Repeat("ab", 32))
	case server == "9.9.9.9:53" && q.Qtype == dns.TypeSOA && d.resolves:
		add(&m.Answer, "example.org. SOA NS1.example.org. h.example.org. 1 2 3 4 5")
	case server == "9.9.9.9:53" && q.Qtype == dns.TypeSOA:
		m.Rcode = dns.RcodeServerFailure
	case server == "192.0.2.53:53", server == "[2001:db8::1:53]:53":
		for _, l := range d.referral {
			if strings.Contains(l, " NS ") {
				add(&m.Ns, l)
			} else {
				add(&m.Extra, l)
			}
		}
	case d.stranger:
		m.Rcode = dns.RcodeRefused
	case server == "203.0.113.1:53", server == "[2001:db8::53]:53":
		p, err := ask.Pack()
		if err != nil {
			return nil, err
		}
		return m, m.Unpack(d.reply(p, stranger, byTCP))
	}
	return m, nil
}

var goodReferral = []string{"example.org. NS NS1.example.org.", "ns1.example.org. A 203.0.113.1", "ns1.example.org. AAAA 2001:db8::53"}

func TestCheckDelegation(t *testing.T) {
	for what, tc := range map[string]struct {
		change func(*dnsWorld, *Check)
		found  []string // parts of what is wrong, in order; none: all well
		fix    string   // part of the first fix
	}{
		"all well":                {},
		"second server of parent": {change: func(d *dnsWorld, _ *Check) { d.down["udp 192.0.2.53:53"] = true }},
		"no delegation": {
			change: func(d *dnsWorld, _ *Check) { d.referral, d.resolves = nil, false },
			found:  []string{"org has no NS record for example.org", "9.9.9.9:53 does not find"},
			fix:    "example.org. NS ns1.example.org.\nns1.example.org. A 203.0.113.1\nns1.example.org. AAAA 2001:db8::53",
		},
		"another server": {
			change: func(d *dnsWorld, _ *Check) {
				d.referral = append(d.referral, "example.org. NS ns.registrar.example.")
			},
			found: []string{"org also names ns.registrar.example"}, fix: "remove",
		},
		"another name": {
			change: func(d *dnsWorld, _ *Check) { d.referral = []string{"example.org. NS ns9.example.org."} },
			found:  []string{"does not name ns1.example.org", "also names ns9.example.org"}, fix: "example.org. NS ns1.example.org.",
		},
		"no glue": {
			change: func(d *dnsWorld, _ *Check) { d.referral = d.referral[:1] },
			found:  []string{"org gives no address of ns1.example.org"}, fix: "ns1.example.org. A 203.0.113.1",
		},
		"wrong glue": {
			change: func(d *dnsWorld, _ *Check) {
				d.referral = []string{d.referral[0], "ns1.example.org. A 198.51.100.4"}
			},
			found: []string{"has the address 198.51.100.4"}, fix: "ns1.example.org. A 203.0.113.1",
		},
		"server outside": {change: func(d *dnsWorld, c *Check) {
			c.NS = []string{"ns.example.net"}
			d.referral, d.resolves = []string{"example.org. NS ns.example.net."}, false
		}, found: []string{"does not find"}},
		"signatures wanted": {change: func(d *dnsWorld, _ *Check) { d.ds = true }, found: []string{"DS record"}, fix: "DNSSEC off"},
		"firewall": {
			change: func(d *dnsWorld, _ *Check) { d.down["tcp 203.0.113.1:53"] = true },
			found:  []string{"203.0.113.1:53 does not answer DNS questions by tcp: no answer within the time"}, fix: "port 53/tcp",
		},
		"another program": {
			change: func(d *dnsWorld, c *Check) { d.stranger, c.Addrs, d.referral = true, c.Addrs[:1], d.referral[:2] },
			found:  []string{"not for example.org (REFUSED)", "not for example.org (REFUSED)"}, fix: "systemd-resolved",
		},
		"no address": {change: func(d *dnsWorld, c *Check) { c.Addrs, d.referral = nil, d.referral[:1] }, found: []string{"not known", "no address of ns1"}},
		"no resolver": {
			change: func(d *dnsWorld, _ *Check) { d.down["udp 9.9.9.9:53"] = true },
			found:  []string{"cannot be asked", "does not answer"}, fix: "9.9.9.9:53",
		},
		"no parent answers": {
			change: func(d *dnsWorld, _ *Check) {
				d.down["udp 192.0.2.53:53"], d.down["udp [2001:db8::1:53]:53"] = true, true
			},
			found: []string{"no server of the zone org answers"}, fix: "port 53",
		},
	} {
		d := &dnsWorld{world: newWorld(t), referral: slices.Clone(goodReferral), down: map[string]bool{}, resolves: true}
		c := Check{Domain: "example.org", Addrs: addrs("203.0.113.1", "2001:db8::53"), Resolver: "9.9.9.9:53", Ask: d.ask}
		if tc.change != nil {
			tc.change(d, &c)
		}
		var wrong []Finding
		for _, f := range CheckDelegation(t.Context(), c) {
			if f.OK != (f.Fix == "") || strings.Contains(f.What, "\n") {
				t.Errorf("%s: %+v", what, f)
			}
			if !f.OK {
				wrong = append(wrong, f)
			}
		}
		ok := len(wrong) == len(tc.found)
		for i := range tc.found {
			ok = ok && strings.Contains(wrong[i].What, tc.found[i])
		}
		if !ok || len(wrong) > 0 && !strings.Contains(wrong[0].Fix, tc.fix) {
			t.Errorf("%s: %+v\nwant %q, fix %q", what, wrong, tc.found, tc.fix)
		}
	}
}

func TestCheckEnds(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Ask(ctx, "tcp", serve(t, w), question("example.org", dns.TypeSOA, false))
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("asked after the end: %v", err)
	}
}

func TestDelegation(t *testing.T) {
	got := Delegation("home.example.org", nil, addrs("203.0.113.1", "::ffff:203.0.113.2", "2001:db8::53"))
	want := []string{
		"home.example.org. NS ns1.home.example.org.",
		"ns1.home.example.org. A 203.0.113.1",
		"ns1.home.example.org. A 203.0.113.2",
		"ns1.home.example.org. AAAA 2001:db8::53",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	for _, line := range Delegation("example.org", []string{"ns1.example.org", "ns.example.net"}, addrs("203.0.113.1")) {
		if _, err := dns.NewRR(line); err != nil {
			t.Errorf("%q is no line of a zone file: %v", line, err)
		}
	}
	for _, f := range RebindFilters("example.org") {
		if f.Where == "" || !strings.Contains(f.Line, "example.org") {
			t.Errorf("%+v", f)
		}
	}
}
