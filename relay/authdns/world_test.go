package authdns

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const (
	hash  = "aaaabbbbccccddddeeeeffffgggghhhhiiiijjjjkkkkllllmmmm"
	other = "zzzzbbbbccccddddeeeeffffgggghhhhiiiijjjjkkkkllllmmmm"
	own   = hash + ".example.org"
)

var (
	stranger = netip.MustParseAddr("198.51.100.77")
	public   = netip.MustParseAddr("203.0.113.50") // of the home
	account  = "https://acme.example/acct/1"
)

// A world is a zone with one of everything, and a clock.
type world struct {
	*Server
	homes *Homes
	txt   *TXT
	now   time.Time
	hosts map[string]bool
	https map[string]SVCB
	addrs []netip.Addr
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func newWorld(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	w := &world{
		homes: NewHomes("example.org"), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		addrs: addrs("203.0.113.1", "2001:db8::53"),
		hosts: map[string]bool{"example.org": true, "ha.example.org": true, "cam.example.org": true, "a.deep.example.org": true, "odd.example.org": true},
		https: map[string]SVCB{
			"ha.example.org":  {ALPN: []string{"h2", "http/1.1"}, ECH: []byte("an ECH config list")},
			"odd.example.org": {ALPN: []string{"h2"}, Port: 8443},
		},
	}
	clock := func() time.Time { return w.now }
	w.txt = NewTXT(clock)
	config := Config{
		Domain: "example.org", Addrs: func() []netip.Addr { return w.addrs },
		Sources: []Source{w.txt, w.homes},
		Hosts:   func(name string) bool { return w.hosts[name] },
		Below: func(name string) bool {
			for h := range w.hosts {
				if strings.HasSuffix(h, "."+name) {
					return true
				}
			}
			return false
		},
		HTTPS: func(name string) (SVCB, bool) { s, ok := w.https[name]; return s, ok },
		CAA: func(name string) []CAA {
			return []CAA{{Tag: "issue", Value: "ca.example; accounturi=https://acme.example/acct/relay"}}
		},
		Static: []Record{
			{Name: "@", Type: "MX", Value: "10 mail"},
			{Name: "@", Type: "TXT", Value: "v=spf1 -all"},
			{Name: "mail", Type: "A", Value: "198.51.100.25"},
			{Name: "mail", Type: "AAAA", Value: "2001:db8::25", TTL: 10 * time.Minute},
			{Name: "www2", Type: "CNAME", Value: "ha"},
			{Name: "away", Type: "CNAME", Value: "host.example.net"},
			{Name: "broken", Type: "CNAME", Value: "nothing.example.org"},
			{Name: "loop1", Type: "CNAME", Value: "loop2"},
			{Name: "loop2", Type: "CNAME", Value: "loop1"},
			{Name: "_sip._tcp.example.org.", Type: "SRV", Value: "1 2 5060 mail"},
			{Name: "cam.example.org", Type: "TXT", Value: `"a \"b\"" "c"`},
			{Name: "secure", Type: "CAA", Value: `0 issue ";"`},
			{Name: "lab", Type: "NS", Value: "ns.lab.example.org"},
			{Name: "ns.lab", Type: "A", Value: "198.51.100.9"},
			{Name: "*.wild", Type: "A", Value: "198.51.100.30"},
			{Name: "x.wild", Type: "TXT", Value: "no address here"},
			{Name: "cam2", Type: "A", Value: "198.51.100.31"},
		},
		Now: clock,
	}
	for _, c := range change {
		c(&config)
	}
	s, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	w.Server = s
	w.set(t, hash, Home{
		LAN: addrs("192.168.1.7", "10.0.0.1", "fd00::7"), Public: public,
		Account: account, Issuers: []string{"ca.example"}, Hosts: []string{"plex.example.org", "*.tv.example.org"},
	})
	return w
}

func (w *world) set(t testing.TB, agent string, home Home) {
	t.Helper()
	if err := w.homes.Set(agent, home); err != nil {
		t.Fatal(err)
	}
}

// packet makes a question as a resolver does.
func packet(t testing.TB, name string, qtype uint16, change ...func(*dns.Msg)) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	m.SetEdns0(1232, false)
	for _, c := range change {
		c(m)
	}
	p, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// send gives one packet to the server; nil: no answer.
func (w *world) send(t testing.TB, p []byte, from netip.Addr, by way) *dns.Msg {
	t.Helper()
	out := w.reply(p, from, by)
	if out == nil {
		return nil
	}
	m := new(dns.Msg)
	if err := m.Unpack(out); err != nil {
		t.Fatalf("the answer is malformed: %v", err)
	}
	if m.RecursionAvailable || !m.Response {
		t.Errorf("RA=%v QR=%v in the answer", m.RecursionAvailable, m.Response)
	}
	return m
}

func (w *world) ask(t testing.TB, name string, qtype uint16, change ...func(*dns.Msg)) *dns.Msg {
	t.Helper()
	return w.askFrom(t, stranger, name, qtype, change...)
}

func (w *world) askFrom(t testing.TB, from netip.Addr, name string, qtype uint16, change ...func(*dns.Msg)) *dns.Msg {
	t.Helper()
	m := w.send(t, packet(t, name, qtype, change...), from, byTCP)
	if m == nil {
		t.Fatalf("no answer to %s %s", name, dns.Type(qtype))
	}
	w.now = w.now.Add(time.Second) // far from the limit
	return m
}

// rdata are the values of a section, without what every record has.
func rdata(rrs []dns.RR) []string {
	var out []string
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			out = append(out, dns.Type(rr.Header().Rrtype).String()+" "+strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
	}
	return out
}
