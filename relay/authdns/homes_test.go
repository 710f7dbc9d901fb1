package authdns

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

const issued = `"ca.example; accounturi=https://acme.example/acct/1; validationmethods=dns-01,tls-alpn-01"`

func TestHome(t *testing.T) {
	const soa = "SOA "
	for _, tc := range []struct {
		name   string
		qtype  uint16
		rcode  int
		answer string
	}{
		{own, dns.TypeA, 0, "A 203.0.113.1"},
		{own, dns.TypeAAAA, 0, "AAAA 2001:db8::53"},
		{own, dns.TypeCAA, 0, "CAA 0 issue " + issued + "|CAA 0 issuewild " + issued},
		{"anything." + own, dns.TypeA, 0, "A 203.0.113.1"},
		{"anything." + own, dns.TypeCAA, 0, ""},
		// addresses that the agent registered
		{"192-168-1-7." + own, dns.TypeA, 0, "A 192.168.1.7"},
		{"192-168-1-7." + own, dns.TypeAAAA, 0, ""},
		{"192-168-1-7." + own, dns.TypeCAA, 0, ""},
		{"fd00--7." + own, dns.TypeAAAA, 0, "AAAA fd00::7"},
		{"FD00--7." + own, dns.TypeAAAA, 0, "AAAA fd00::7"},
		{"fd00--7." + own, dns.TypeA, 0, ""},
		{"203-0-113-50." + own, dns.TypeA, 0, "A 203.0.113.50"},
		// those of other people, and of nobody
		{"192-168-1-8." + own, dns.TypeA, 0, ""},
		{"198-51-100-77." + own, dns.TypeA, 0, ""},
		{"203-0-113-1." + own, dns.TypeA, 0, ""},
		{"127-0-0-1." + own, dns.TypeA, 0, ""},
		{"0--1." + own, dns.TypeAAAA, 0, ""},
		{"2001-db8--53." + own, dns.TypeAAAA, 0, ""},
		// another spelling is a name like any other: through the relay
		{"192-168-1-007." + own, dns.TypeA, 0, "A 203.0.113.1"},
		{"fd00-0-0-0-0-0-0-7." + own, dns.TypeAAAA, 0, "AAAA 2001:db8::53"},
		// not names of an agent
		{"192-168-1-7." + other + ".example.org", dns.TypeA, 3, ""},
		{other + ".example.org", dns.TypeA, 3, ""},
		{"a.b." + own, dns.TypeA, 3, ""},
		{"_acme-challenge." + own, dns.TypeTXT, 3, ""},
		{"192-168-1-7.example.org", dns.TypeA, 3, ""},
		{"192-168-1-7.plex.example.org", dns.TypeA, 3, ""},
		// its hosts
		{"plex.example.org", dns.TypeA, 0, "A 203.0.113.1"},
		// below it is nobody: no wildcard, which the same proof would do for
		{"plex.example.org", dns.TypeCAA, 0, "CAA 0 issue " + issued + `|CAA 0 issuewild ";"`},
		{"a.tv.example.org", dns.TypeA, 0, "A 203.0.113.1"},
		// below it is nobody: no wildcard, which the same proof would do for
		{"a.tv.example.org", dns.TypeCAA, 0, "CAA 0 issue " + issued + `|CAA 0 issuewild ";"`},
		{"a.b.tv.example.org", dns.TypeA, 3, ""},
		// a CA that is asked for *.tv looks here; tv itself keeps the zone's
		{"tv.example.org", dns.TypeCAA, 0, `CAA 0 issue "ca.example; accounturi=https://acme.example/acct/relay"|CAA 0 issuewild ` + issued},
		{"ha.example.org", dns.TypeCAA, 0, `CAA 0 issue "ca.example; accounturi=https://acme.example/acct/relay"`},
	} {
		w := newWorld(t)
		m := w.ask(t, tc.name, tc.qtype)
		what := tc.name + " " + dns.Type(tc.qtype).String()
		if m.Rcode != tc.rcode || len(m.Answer) == 0 != (len(m.Ns) == 1 && strings.HasPrefix(rdata(m.Ns)[0], soa)) {
			t.Errorf("%s: %s, authority %v; want %s", what, dns.RcodeToString[m.Rcode], m.Ns, dns.RcodeToString[tc.rcode])
		}
		check(t, what, m.Answer, tc.answer)
	}
}

func TestSplit(t *testing.T) {
	w := newWorld(t)
	home := Home{LAN: addrs("192.168.1.7"), Public: public, Hosts: []string{"plex.example.org"}}
	w.https["plex.example.org"] = SVCB{ECH: []byte("ech")}
	w.set(t, hash, home)
	relay := "A 203.0.113.1"
	check(t, "without split", w.askFrom(t, public, "plex.example.org", dns.TypeA).Answer, relay)
	home.Split = true
	w.set(t, hash, home)
	check(t, "stranger", w.ask(t, "plex.example.org", dns.TypeA).Answer, relay)
	check(t, "neighbour", w.askFrom(t, public.Next(), "plex.example.org", dns.TypeA).Answer, relay)
	m := w.askFrom(t, public, "plex.example.org", dns.TypeA)
	check(t, "home", m.Answer, "A 192.168.1.7")
	if m.Answer[0].Header().Ttl > 60 {
		t.Errorf("a phone keeps the LAN address for %d s after it left the house", m.Answer[0].Header().Ttl)
	}
	mapped := netip.AddrFrom16(public.As16())
	check(t, "home by a dual-stack socket", w.askFrom(t, mapped, "plex.example.org", dns.TypeA).Answer, "A 192.168.1.7")
	check(t, "home, other family", w.askFrom(t, public, "plex.example.org", dns.TypeAAAA).Answer, "")
	check(t, "home, HTTPS", w.askFrom(t, public, "plex.example.org", dns.TypeHTTPS).Answer, "")
	check(t, "home, agent's own name", w.askFrom(t, public, own, dns.TypeA).Answer, relay)
	check(t, "home, other host", w.askFrom(t, public, "ha.example.org", dns.TypeA).Answer, relay)

	home.Public = netip.MustParseAddr("2001:db8:1:2::3")
	w.set(t, hash, home)
	check(t, "same /64", w.askFrom(t, netip.MustParseAddr("2001:db8:1:2:ffff::1"), "plex.example.org", dns.TypeA).Answer, "A 192.168.1.7")
	check(t, "next /64", w.askFrom(t, netip.MustParseAddr("2001:db8:1:3::3"), "plex.example.org", dns.TypeA).Answer, relay)
	check(t, "old public", w.askFrom(t, public, "plex.example.org", dns.TypeA).Answer, relay)
	home.LAN = nil
	w.set(t, hash, home)
	check(t, "no LAN", w.askFrom(t, home.Public, "plex.example.org", dns.TypeA).Answer, relay)
	home.LAN, home.Public = addrs("192.168.1.7"), netip.Addr{}
	w.set(t, hash, home)
	check(t, "no public", w.askFrom(t, netip.Addr{}, "plex.example.org", dns.TypeA).Answer, relay)
}

// What an agent must not put into the zone is left out; the rest holds.
func TestHomeIsCleaned(t *testing.T) {
	w := newWorld(t)
	bad := []string{
		"8.8.8.8", "127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "100.64.0.1", "::1", "::", "fe80::1", "fe80::1%eth0",
		"2001:db8::7", "fd00::7%eth0", "ff02::1", "::ffff:8.8.8.8",
	}
	err := w.homes.Set(hash, Home{
		LAN: append(addrs("192.168.1.7", "::ffff:192.168.1.7", "169.254.3.4"), addrs(bad...)...), Public: netip.MustParseAddr("127.0.0.1"),
	})
	if err == nil {
		t.Fatal("bad addresses were taken")
	}
	for _, a := range bad {
		if !strings.Contains(err.Error(), netip.MustParseAddr(a).Unmap().String()) {
			t.Errorf("the error does not name %s: %v", a, err)
		}
	}
	if got := w.homes.homes[hash]; !slices.Equal(got.LAN, addrs("192.168.1.7", "169.254.3.4")) || got.Public.IsValid() {
		t.Errorf("kept %v, public %v", got.LAN, got.Public)
	}
	check(t, "loopback", w.ask(t, "127-0-0-1."+own, dns.TypeA).Answer, "")
	check(t, "link-local", w.ask(t, "169-254-3-4."+own, dns.TypeA).Answer, "A 169.254.3.4")

	var many []netip.Addr
	for a := netip.MustParseAddr("10.0.0.1"); len(many) < 40; a = a.Next() {
		many = append(many, a)
	}
	if err := w.homes.Set(hash, Home{LAN: many}); err == nil || len(w.homes.homes[hash].LAN) != maxLAN {
		t.Errorf("%d addresses, %v", len(w.homes.homes[hash].LAN), err)
	}
	for _, id := range []string{"", "ha", strings.ToUpper(hash), hash + "a", "a." + hash, hash[:51] + "1"} {
		if err := w.homes.Set(id, Home{}); err == nil {
			t.Errorf("agent %q was taken", id)
		}
	}
	foreign := []string{"plex.example.net", "example.org", "xexample.org", "*.abc.plex.direct", "x.example.org", "x.example.org"}
	w.set(t, hash, Home{Hosts: foreign})
	if got := w.homes.homes[hash].Hosts; !slices.Equal(got, []string{"x.example.org"}) {
		t.Errorf("hosts %q", got)
	}
}

func TestCAAInjection(t *testing.T) {
	w := newWorld(t)
	for _, home := range []Home{
		{Account: "https://a.example/1; validationmethods=http-01", Issuers: []string{"ca.example"}},
		{Account: "https://a.example/1 x", Issuers: []string{"ca.example"}},
		{Account: `https://a.example/1"`, Issuers: []string{"ca.example"}},
		{Account: `https://a.example/\059`, Issuers: []string{"ca.example"}},
		{Account: "https://a.example/\n", Issuers: []string{"ca.example"}},
		{Account: "https://a.example/ü", Issuers: []string{"ca.example"}},
		{Account: "https://a.example/" + strings.Repeat("x", 255), Issuers: []string{"ca.example"}},
		{Account: "1", Issuers: []string{"ca.example"}},
		{Account: account, Issuers: []string{"ca.example; accounturi=https://b.example"}},
		{Account: account, Issuers: []string{""}},
		{Account: account, Issuers: []string{"a.example", "b.example", "c.example", "d.example", "e.example"}},
		{Account: account},
	} {
		home.Hosts = []string{"plex.example.org"}
		home.LAN = addrs("192.168.1.7")
		if err := w.homes.Set(hash, home); err == nil {
			t.Errorf("account %q, issuers %q were taken", home.Account, home.Issuers)
		}
		check(t, "CAA", w.ask(t, "plex.example.org", dns.TypeCAA).Answer, "")
		check(t, "the rest", w.ask(t, "192-168-1-7."+own, dns.TypeA).Answer, "A 192.168.1.7")
	}
	w.set(t, hash, Home{Hosts: []string{"plex.example.org"}})
	check(t, "no account", w.ask(t, own, dns.TypeCAA).Answer, "")
	w.set(t, hash, Home{Account: account, Issuers: []string{"CA.example.", "ca2.example"}})
	if got := rdata(w.ask(t, own, dns.TypeCAA).Answer); len(got) != 4 || !strings.HasPrefix(got[1], `CAA 0 issue "ca2.example;`) || !strings.HasPrefix(got[0], `CAA 0 issue "ca.example;`) {
		t.Errorf("two issuers: %q", got)
	}
}

// A host of one party, the wildcard below it of another.
func TestCAAOfWildcardAndHost(t *testing.T) {
	w := newWorld(t)
	second := Home{Account: "https://acme.example/acct/2", Issuers: []string{"ca.example"}, Hosts: []string{"*.plex.example.org", "*.ha.example.org", "*.free.example.org"}}
	w.set(t, other, second)
	wild := `CAA 0 issuewild "ca.example; accounturi=https://acme.example/acct/2;`
	check(t, "agent's", w.ask(t, "plex.example.org", dns.TypeCAA).Answer, "CAA 0 issue "+issued+"|"+wild)
	relays := `CAA 0 issue "ca.example; accounturi=https://acme.example/acct/relay"`
	check(t, "relay's", w.ask(t, "ha.example.org", dns.TypeCAA).Answer, relays+"|"+wild)
	check(t, "nobody's", w.ask(t, "free.example.org", dns.TypeCAA).Answer, relays+"|"+wild)

	// An agent without an account keeps what it has without the neighbour.
	w.set(t, hash, Home{Hosts: []string{"plex.example.org"}})
	check(t, "agent without account", w.ask(t, "plex.example.org", dns.TypeCAA).Answer, relays+"|"+wild)

	// Without records of the zone the bare name of nobody stays nobody's.
	w.config.CAA = nil
	check(t, "nobody's, no CAA above", w.ask(t, "free.example.org", dns.TypeCAA).Answer, `CAA 0 issue ";"|`+wild)
	check(t, "relay's, no CAA above", w.ask(t, "ha.example.org", dns.TypeCAA).Answer, wild)

	second.Hosts = []string{"both.example.org", "*.both.example.org"}
	w.set(t, other, second)
	if got := rdata(w.ask(t, "both.example.org", dns.TypeCAA).Answer); len(got) != 2 {
		t.Errorf("both of one agent: %q", got)
	}
	check(t, "withdrawn", w.ask(t, "free.example.org", dns.TypeCAA).Answer, "")
}

func TestHostsMove(t *testing.T) {
	w := newWorld(t)
	w.set(t, other, Home{Hosts: []string{"plex.example.org", "a.b.c.example.org"}})
	w.homes.Remove(hash) // its plex.example.org is the other's by now
	check(t, "taken over", w.ask(t, "plex.example.org", dns.TypeA).Answer, "A 203.0.113.1")
	if m := w.ask(t, own, dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Errorf("a removed agent's name: %s", dns.RcodeToString[m.Rcode])
	}
	if m := w.ask(t, "a.tv.example.org", dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Errorf("a removed agent's wildcard: %s", dns.RcodeToString[m.Rcode])
	}
	if m := w.ask(t, "c.example.org", dns.TypeA); m.Rcode != 0 {
		t.Errorf("c.example.org with a host below: %s", dns.RcodeToString[m.Rcode])
	}
	w.homes.Remove(other)
	w.homes.Remove(other)
	if len(w.homes.tree) > 0 || len(w.homes.hosts) > 0 {
		t.Errorf("left behind: %v %v", w.homes.tree, w.homes.hosts)
	}
}
