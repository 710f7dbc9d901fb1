package authdns

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestZone(t *testing.T) {
	const soa = "SOA ns1.example.org. hostmaster.example.org. "
	for _, tc := range []struct {
		name   string
		qtype  uint16
		rcode  int
		answer string // values, with | between; a prefix is enough for each
		ns     string
	}{
		{"example.org", dns.TypeSOA, 0, soa, ""},
		{"example.org", dns.TypeNS, 0, "NS ns1.example.org.", ""},
		{"ns1.example.org", dns.TypeA, 0, "A 203.0.113.1", ""},
		{"ns1.example.org", dns.TypeAAAA, 0, "AAAA 2001:db8::53", ""},
		{"ns1.example.org", dns.TypeHTTPS, 0, "", soa},
		{"example.org", dns.TypeA, 0, "A 203.0.113.1", ""},
		{"example.org", dns.TypeMX, 0, "MX 10 mail.example.org.", ""},
		{"example.org", dns.TypeTXT, 0, `TXT "v=spf1 -all"`, ""},
		{"example.org", dns.TypeCAA, 0, `CAA 0 issue "ca.example; accounturi=https://acme.example/acct/relay"`, ""},
		{"example.org", dns.TypeDS, 0, "", soa},
		{"ha.example.org", dns.TypeA, 0, "A 203.0.113.1", ""},
		{"ha.example.org", dns.TypeAAAA, 0, "AAAA 2001:db8::53", ""},
		{"ha.example.org", dns.TypeMX, 0, "", soa},
		{"ha.example.org", dns.TypeHTTPS, 0, `HTTPS 1 . alpn="h2,http/1.1" ech=`, ""},
		{"cam.example.org", dns.TypeHTTPS, 0, "", soa},
		{"cam.example.org", dns.TypeA, 0, "A 203.0.113.1", ""},
		{"cam.example.org", dns.TypeTXT, 0, `TXT "a \"b\"" "c"`, ""},
		// another port: RFC 9460 §9.1
		{"odd.example.org", dns.TypeHTTPS, 0, "", soa},
		{"_8443._https.odd.example.org", dns.TypeHTTPS, 0, `HTTPS 1 odd.example.org. alpn="h2" port="8443"`, ""},
		{"_8443._https.odd.example.org", dns.TypeA, 0, "", soa},
		{"_https.odd.example.org", dns.TypeA, 0, "", soa},
		{"_443._https.odd.example.org", dns.TypeHTTPS, 3, "", soa},
		{"_08443._https.odd.example.org", dns.TypeHTTPS, 3, "", soa},
		{"_443._https.ha.example.org", dns.TypeHTTPS, 3, "", soa},
		{"_https.ha.example.org", dns.TypeA, 3, "", soa},
		// what is not there, and what is only because of others (RFC 8020)
		{"nothing.example.org", dns.TypeA, 3, "", soa},
		{"b.ha.example.org", dns.TypeA, 3, "", soa},
		{"_acme-challenge.ha.example.org", dns.TypeTXT, 3, "", soa},
		{"deep.example.org", dns.TypeA, 0, "", soa},
		{"deep.example.org", dns.TypeANY, 0, "", soa},
		{"_tcp.example.org", dns.TypeSRV, 0, "", soa},
		{"tv.example.org", dns.TypeA, 0, "", soa},
		{"wild.example.org", dns.TypeA, 0, "", soa},
		// records of the configuration
		{"mail.example.org", dns.TypeA, 0, "A 198.51.100.25", ""},
		{"mail.example.org", dns.TypeAAAA, 0, "AAAA 2001:db8::25", ""},
		{"cam2.example.org", dns.TypeAAAA, 0, "", soa},
		{"_sip._tcp.example.org", dns.TypeSRV, 0, "SRV 1 2 5060 mail.example.org.", ""},
		{"secure.example.org", dns.TypeCAA, 0, `CAA 0 issue ";"`, ""},
		{"www2.example.org", dns.TypeA, 0, "CNAME ha.example.org.|A 203.0.113.1", ""},
		{"www2.example.org", dns.TypeCNAME, 0, "CNAME ha.example.org.", ""},
		{"www2.example.org", dns.TypeMX, 0, "CNAME ha.example.org.", soa},
		{"away.example.org", dns.TypeA, 0, "CNAME host.example.net.", ""},
		{"broken.example.org", dns.TypeA, 3, "CNAME nothing.example.org.", soa},
		{"y.wild.example.org", dns.TypeA, 0, "A 198.51.100.30", ""},
		{"z.y.wild.example.org", dns.TypeA, 0, "A 198.51.100.30", ""},
		{"y.wild.example.org", dns.TypeAAAA, 0, "", soa},
		{"x.wild.example.org", dns.TypeA, 0, "", soa},
		{"z.x.wild.example.org", dns.TypeA, 3, "", soa},
		// a part of the zone with other servers
		{"lab.example.org", dns.TypeDS, 0, "", soa},
		{"ha.example.org", dns.TypeANY, 0, `HINFO "RFC8482" ""`, ""},
		{"ha.example.org", 65280, 0, "", soa},
		// names with strange bytes are nothing, and disturb nothing
		{`ha\.example.org.example.org`, dns.TypeA, 3, "", soa},
		{`a\000b.example.org`, dns.TypeA, 3, "", soa},
		{`x\.lab.example.org`, dns.TypeA, 3, "", soa},
		{"*.example.org", dns.TypeA, 3, "", soa},
	} {
		w := newWorld(t)
		m := w.ask(t, tc.name, tc.qtype)
		what := tc.name + " " + dns.Type(tc.qtype).String()
		if m.Rcode != tc.rcode || !m.Authoritative || m.Truncated {
			t.Errorf("%s: %s, AA=%v TC=%v; want %s", what, dns.RcodeToString[m.Rcode], m.Authoritative, m.Truncated, dns.RcodeToString[tc.rcode])
		}
		check(t, what+" answer", m.Answer, tc.answer)
		check(t, what+" authority", m.Ns, tc.ns)
		for _, rr := range m.Ns {
			if rr.Header().Ttl != 60 || rr.Header().Name != "example.org." {
				t.Errorf("%s: negative answer kept for %d s under %s", what, rr.Header().Ttl, rr.Header().Name)
			}
		}
	}
}

func check(t *testing.T, what string, got []dns.RR, want string) {
	t.Helper()
	values := rdata(got)
	var prefixes []string
	if want != "" {
		prefixes = strings.Split(want, "|")
	}
	ok := len(values) == len(prefixes)
	for i := range prefixes {
		ok = ok && strings.HasPrefix(values[i], prefixes[i])
	}
	if !ok {
		t.Errorf("%s: %q, want %q", what, values, prefixes)
	}
}

func TestReferral(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"lab.example.org", "x.y.LAB.example.org", "ns.lab.example.org"} {
		m := w.ask(t, name, dns.TypeA)
		if m.Authoritative || m.Rcode != 0 || len(m.Answer) > 0 {
			t.Errorf("%s: AA=%v %s %v", name, m.Authoritative, dns.RcodeToString[m.Rcode], m.Answer)
		}
		check(t, name+" authority", m.Ns, "NS ns.lab.example.org.")
		check(t, name+" glue", m.Extra, "A 198.51.100.9")
	}
}

func TestNameServerGlue(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.NS = []string{"ns1.example.org", "NS2.Dns.example.org.", "ns.example.net"} })
	m := w.ask(t, "example.org", dns.TypeNS)
	check(t, "NS", m.Answer, "NS ns1.example.org.|NS ns2.dns.example.org.|NS ns.example.net.")
	if got := rdata(m.Extra); len(got) != 4 || !slices.Contains(got, "A 203.0.113.1") {
		t.Errorf("glue: %q", got)
	}
	if m.Extra[len(m.Extra)-1].Header().Rrtype != dns.TypeOPT {
		t.Error("the EDNS record is lost")
	}
	check(t, "ns2", w.ask(t, "ns2.dns.example.org", dns.TypeA).Answer, "A 203.0.113.1")
	if m := w.ask(t, "dns.example.org", dns.TypeA); m.Rcode != 0 {
		t.Errorf("dns.example.org, with a name server below: %s", dns.RcodeToString[m.Rcode])
	}
	if m := w.ask(t, "ns.example.net", dns.TypeA); m.Rcode != dns.RcodeRefused {
		t.Errorf("a name server of another zone: %s", dns.RcodeToString[m.Rcode])
	}
}

// Resolvers write names in random case and may insist on getting them back.
func TestCaseIsKept(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"hA.eXaMpLe.oRg.", "NOthing.exAMPLE.org.", "WWW2.Example.Org.", "eXample.ORG.", "X.LaB.Example.org."} {
		m := w.ask(t, name, dns.TypeA)
		if m.Question[0].Name != name {
			t.Errorf("question %s came back as %s", name, m.Question[0].Name)
		}
		if len(m.Answer) > 0 && m.Answer[0].Header().Name != name {
			t.Errorf("answer to %s is about %s", name, m.Answer[0].Header().Name)
		}
		for _, rr := range m.Ns {
			if !strings.HasSuffix(name, rr.Header().Name) {
				t.Errorf("authority for %s is %s", name, rr.Header().Name)
			}
		}
	}
}

func TestLoopOfAliases(t *testing.T) {
	w := newWorld(t)
	m := w.ask(t, "loop1.example.org", dns.TypeA)
	if len(m.Answer) != maxChain || m.Rcode != 0 {
		t.Errorf("%d aliases, %s", len(m.Answer), dns.RcodeToString[m.Rcode])
	}
}

// The configuration wins, type by type; an address of it takes the whole name
// away from the relay.
func TestStaticOverHosts(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Static = []Record{
			{Name: "ha", Type: "A", Value: "198.51.100.1"},
			{Name: "plex", Type: "CAA", Value: `0 issue "other.example"`},
			{Name: "cam", Type: "CNAME", Value: "ha"},
			{Name: "_acme-challenge.plex", Type: "TXT", Value: "fixed"},
		}
	})
	check(t, "A", w.ask(t, "ha.example.org", dns.TypeA).Answer, "A 198.51.100.1")
	check(t, "AAAA", w.ask(t, "ha.example.org", dns.TypeAAAA).Answer, "")
	check(t, "HTTPS", w.ask(t, "ha.example.org", dns.TypeHTTPS).Answer, "")
	check(t, "CAA", w.ask(t, "plex.example.org", dns.TypeCAA).Answer, `CAA 0 issue "other.example"`)
	check(t, "A of plex", w.ask(t, "plex.example.org", dns.TypeA).Answer, "A 203.0.113.1")
	check(t, "alias", w.ask(t, "cam.example.org", dns.TypeA).Answer, "CNAME ha.example.org.|A 198.51.100.1")
	if err := w.txt.SetTXT("_acme-challenge.plex.example.org", []string{"moving"}, 0); err != nil {
		t.Fatal(err)
	}
	check(t, "TXT", w.ask(t, "_acme-challenge.plex.example.org", dns.TypeTXT).Answer, `TXT "fixed"|TXT "moving"`)
}

func TestSerialRises(t *testing.T) {
	w := newWorld(t)
	serial := func() uint32 { return w.ask(t, "example.org", dns.TypeSOA).Answer[0].(*dns.SOA).Serial }
	last := serial()
	if again := serial(); again != last {
		t.Errorf("serial went from %d to %d by itself", last, again)
	}
	if last < uint32(w.config.Now().Add(-time.Minute).Unix()) {
		t.Errorf("serial %d does not start with the clock", last)
	}
	for _, step := range []struct {
		what   string
		change func()
	}{
		{"text", func() { _ = w.txt.SetTXT("_acme-challenge.ha.example.org", []string{"x"}, 0) }},
		{"text gone", func() { _ = w.txt.SetTXT("_acme-challenge.ha.example.org", nil, 0) }},
		{"home", func() { w.set(t, other, Home{}) }},
		{"home gone", func() { w.homes.Remove(other) }},
		{"told", w.Changed},
		{"clock set back", func() {
			w.now = w.now.Add(-24 * time.Hour)
			w.Changed()
		}},
	} {
		step.change()
		n := serial()
		if n <= last {
			t.Errorf("%s: serial %d after %d", step.what, n, last)
		}
		last = n
	}
}
