package authdns

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Whatever is no question about this zone gets a refusal that is no larger than
// it, or nothing.
func TestNotAnswered(t *testing.T) {
	w := newWorld(t)
	good := packet(t, "ha.example.org", dns.TypeA)
	edit := func(f func(p []byte)) []byte {
		p := bytes.Clone(good)
		f(p)
		return p
	}
	for what, p := range map[string][]byte{
		"nothing":               {},
		"a byte":                {0},
		"half a header":         good[:11],
		"a header alone":        good[:12],
		"half a question":       good[:20],
		"an answer":             edit(func(p []byte) { p[2] |= 0x80 }),
		"a name without end":    append(bytes.Clone(good[:12]), bytes.Repeat([]byte{1, 'a'}, 100)...),
		"a pointer to itself":   append(bytes.Clone(good[:12]), 0xc0, 12, 0, 1, 0, 1),
		"an OPT cut off":        good[:len(good)-3],
		"more records than are": edit(func(p []byte) { p[11] = 3 }),
		"noise":                 append(bytes.Clone(good[:12]), strings.Repeat("\xff\x00\x7f", 100)...),
	} {
		if out := w.reply(p, stranger, byUDP); out != nil {
			t.Errorf("%s: answered with %x", what, out)
		}
	}
	if got := w.Status().Malformed; got != 11 {
		t.Errorf("%d packets counted as malformed", got)
	}

	set := func(at int, v uint16) func([]byte) {
		return func(p []byte) { binary.BigEndian.PutUint16(p[at:], v) }
	}
	question := func(qtype, class uint16) func(*dns.Msg) {
		return func(m *dns.Msg) { m.Question[0].Qtype, m.Question[0].Qclass = qtype, class }
	}
	for what, tc := range map[string]struct {
		packet []byte
		rcode  int
	}{
		"another zone":        {packet(t, "example.net", dns.TypeA), dns.RcodeRefused},
		"the zone above":      {packet(t, "org", dns.TypeNS), dns.RcodeRefused},
		"the root":            {packet(t, ".", dns.TypeNS), dns.RcodeRefused},
		"a zone that ends so": {packet(t, "xexample.org", dns.TypeA), dns.RcodeRefused},
		"a dot in a label":    {packet(t, `x\.example.org`, dns.TypeA), dns.RcodeRefused},
		"AXFR":                {packet(t, "example.org", dns.TypeAXFR), dns.RcodeRefused},
		"IXFR": {packet(t, "example.org", dns.TypeIXFR, func(m *dns.Msg) {
			m.Ns = []dns.RR{w.soa("example.org.", 0)}
		}), dns.RcodeRefused},
		"CHAOS":               {packet(t, "version.bind", dns.TypeTXT, question(dns.TypeTXT, dns.ClassCHAOS)), dns.RcodeNotImplemented},
		"any class":           {packet(t, "ha.example.org", dns.TypeA, question(dns.TypeA, dns.ClassANY)), dns.RcodeNotImplemented},
		"notify":              {edit(func(p []byte) { p[2] = dns.OpcodeNotify << 3 }), dns.RcodeNotImplemented},
		"update":              {edit(func(p []byte) { p[2] = dns.OpcodeUpdate << 3 }), dns.RcodeNotImplemented},
		"opcode 15":           {edit(func(p []byte) { p[2] = 15 << 3 }), dns.RcodeNotImplemented},
		"no question":         {edit(set(4, 0))[:12], dns.RcodeFormatError},
		"two questions":       {edit(set(4, 2)), dns.RcodeFormatError},
		"65535 questions":     {edit(set(4, 65535)), dns.RcodeFormatError},
		"answers":             {edit(set(6, 1)), dns.RcodeFormatError},
		"authority":           {edit(set(8, 2)), dns.RcodeFormatError},
		"many more records":   {edit(set(10, 9)), dns.RcodeFormatError},
		"type 0":              {packet(t, "ha.example.org", 0), dns.RcodeFormatError},
		"type OPT":            {packet(t, "ha.example.org", dns.TypeOPT), dns.RcodeFormatError},
		"type TSIG":           {packet(t, "ha.example.org", dns.TypeTSIG), dns.RcodeNotImplemented},
		"EDNS 1":              {packet(t, "ha.example.org", dns.TypeA, func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
		"two EDNS records":    {packet(t, "ha.example.org", dns.TypeA, func(m *dns.Msg) { m.Extra = append(m.Extra, m.Extra[0]) }), dns.RcodeFormatError},
		"name server of NS":   {packet(t, "b.lab.example.net", dns.TypeA), dns.RcodeRefused},
		"recursion elsewhere": {packet(t, "example.com", dns.TypeA, func(m *dns.Msg) { m.RecursionDesired = true }), dns.RcodeRefused},
	} {
		out := w.reply(tc.packet, stranger, byUDP)
		m := new(dns.Msg)
		if err := m.Unpack(out); err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if m.Rcode != tc.rcode || m.Authoritative || m.RecursionAvailable || len(m.Answer)+len(m.Ns) > 0 {
			t.Errorf("%s: %v, want %s", what, m, dns.RcodeToString[tc.rcode])
		}
		if len(out) > len(tc.packet) || m.Id != binary.BigEndian.Uint16(tc.packet) {
			t.Errorf("%s: %d bytes with id %d for %d bytes", what, len(out), m.Id, len(tc.packet))
		}
	}
}

func TestHeaderAndEDNS(t *testing.T) {
	w := newWorld(t)
	m := w.ask(t, "ha.example.org", dns.TypeA, func(m *dns.Msg) { m.RecursionDesired = true; m.IsEdns0().SetDo() })
	if !m.RecursionDesired || m.RecursionAvailable || m.AuthenticatedData {
		t.Errorf("RD=%v RA=%v AD=%v", m.RecursionDesired, m.RecursionAvailable, m.AuthenticatedData)
	}
	if opt := m.IsEdns0(); opt == nil || opt.UDPSize() != 1232 || !opt.Do() || opt.Version() != 0 {
		t.Errorf("EDNS: %v", opt)
	}
	m = w.ask(t, "ha.example.org", dns.TypeA, func(m *dns.Msg) { m.RecursionDesired = false; m.Extra = nil })
	if m.RecursionDesired || m.IsEdns0() != nil {
		t.Errorf("RD=%v EDNS=%v to a question without", m.RecursionDesired, m.IsEdns0())
	}
	if m := w.ask(t, "nothing.example.org", dns.TypeA); m.IsEdns0() == nil {
		t.Error("no EDNS with a negative answer")
	}
}

func TestTruncation(t *testing.T) {
	w := newWorld(t)
	values := []string{strings.Repeat("a", 200), strings.Repeat("b", 200), strings.Repeat("c", 200)}
	if err := w.txt.SetTXT(challenge, values, 0); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		size  uint16 // 0: without EDNS
		by    way
		whole bool
	}{{1232, byUDP, true}, {4096, byUDP, true}, {512, byUDP, false}, {100, byUDP, false}, {0, byUDP, false}, {0, byTCP, true}, {512, byTCP, true}} {
		p := packet(t, challenge, dns.TypeTXT, func(m *dns.Msg) {
			m.Extra = nil
			if tc.size > 0 {
				m.SetEdns0(tc.size, false)
			}
		})
		m := w.send(t, p, stranger, tc.by)
		if m.Truncated == tc.whole || (len(m.Answer) == 3) != tc.whole || m.Rcode != 0 || (m.IsEdns0() == nil) != (tc.size == 0) {
			t.Errorf("size %d by %v: TC=%v with %d records", tc.size, tc.by, m.Truncated, len(m.Answer))
		}
	}
	_ = w.txt.SetTXT(challenge, append(values, values...), 0)
	p := packet(t, challenge, dns.TypeTXT, func(m *dns.Msg) {
		m.IsEdns0().SetUDPSize(65535)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_PADDING{Padding: make([]byte, 400)}} // so that the gain is no limit
	})
	if m := w.send(t, p, stranger, byUDP); !m.Truncated || len(m.Answer) > 0 {
		t.Errorf("more than 1,232 bytes by UDP: TC=%v with %d records", m.Truncated, len(m.Answer))
	}
	if m := w.send(t, packet(t, challenge, dns.TypeTXT), stranger, byTCP); m.Truncated || len(m.Answer) != 6 {
		t.Errorf("by TCP: TC=%v with %d records", m.Truncated, len(m.Answer))
	}
}

// No question, however it is made, brings more than eight times its size by UDP.
func TestNoAmplification(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Domain = "ex.org"
		c.Static = []Record{{Name: "@", Type: "TXT", Value: strings.Repeat("x", 400)}, {Name: "a", Type: "TXT", Value: strings.Repeat("x", 3000)}, {Name: "l", Type: "NS", Value: "ns1.l"}}
		for i := range 30 {
			c.Static = append(c.Static, Record{Name: "l", Type: "NS", Value: "n" + strings.Repeat("x", i) + ".l"}, Record{Name: "@", Type: "MX", Value: "1 m" + strings.Repeat("x", i)})
		}
	})
	largest := 0.0
	for _, name := range []string{"ex.org", "a.ex.org", "l.ex.org", "n.l.ex.org", "b.ex.org", "ns1.ex.org"} {
		for qtype := range uint16(300) {
			for _, edns := range []uint16{0, 512, 4096} {
				p := packet(t, name, qtype, func(m *dns.Msg) {
					m.Extra = nil
					if edns > 0 {
						m.SetEdns0(edns, true)
					}
				})
				out := w.reply(p, stranger, byUDP)
				w.now = w.now.Add(time.Second)
				gain := float64(len(out)) / float64(len(p))
				if gain > maxGain {
					t.Errorf("%s %s: %d bytes for %d", name, dns.Type(qtype), len(out), len(p))
				}
				largest = max(largest, gain)
			}
		}
	}
	t.Logf("largest answer: %.1f times its question", largest)
}

func TestRateLimit(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Limits = Limits{Rate: 10, Burst: 20} })
	p := packet(t, "ha.example.org", dns.TypeA)
	burst := func(from netip.Addr, n int) (answered, truncated, silent int) {
		t.Helper()
		for range n {
			switch m := w.send(t, p, from, byUDP); {
			case m == nil:
				silent++
			case m.Truncated && len(m.Answer)+len(m.Ns) == 0:
				truncated++
			case len(m.Answer) == 1:
				answered++
			default:
				t.Errorf("answer %v", m)
			}
		}
		return
	}
	if a, tc, none := burst(stranger, 40); a != 20 || tc != 10 || none != 10 {
		t.Errorf("first 40: %d answered, %d truncated, %d silent", a, tc, none)
	}
	if a, tc, none := burst(netip.MustParseAddr("198.51.100.1"), 10); a != 0 || tc != 5 || none != 5 {
		t.Errorf("the neighbour in the /24: %d answered, %d truncated, %d silent", a, tc, none)
	}
	if a, _, _ := burst(netip.MustParseAddr("198.51.101.1"), 10); a != 10 {
		t.Errorf("another network: %d of 10 answered", a)
	}
	six := netip.MustParseAddr("2001:db8:0:100::1")
	_, _, _ = burst(six, 40)
	if a, _, _ := burst(netip.MustParseAddr("2001:db8:0:1ff::9"), 2); a != 0 {
		t.Error("another address of the same /56 is another asker")
	}
	if a, _, _ := burst(netip.MustParseAddr("2001:db8:0:200::9"), 2); a != 2 {
		t.Error("another /56 is not another asker")
	}
	if m := w.send(t, p, stranger, byTCP); m == nil || len(m.Answer) != 1 {
		t.Errorf("by TCP, where addresses are true: %v", m)
	}
	w.now = w.now.Add(time.Second)
	if a, _, _ := burst(stranger, 20); a != 10 {
		t.Errorf("a second later: %d answered", a)
	}
	w.now = w.now.Add(-time.Hour)
	if a, _, _ := burst(stranger, 20); a != 0 {
		t.Errorf("after the clock was set back: %d answered", a)
	}
	w.now = w.now.Add(time.Hour)
	if a, _, _ := burst(stranger, 40); a != 20 {
		t.Errorf("an hour later: %d answered", a)
	}
	tcp := 0
	for range 40 {
		if w.send(t, p, netip.MustParseAddr("192.0.2.1"), byTCP) != nil {
			tcp++
		}
	}
	if tcp != 20 {
		t.Errorf("by TCP: %d answered", tcp)
	}
	if st := w.Status(); st.Slipped == 0 || st.Limited == 0 || st.UDP == 0 || st.TCP != 41 {
		t.Errorf("status %+v", st)
	}
}

// A flood with millions of false addresses takes no memory.
func TestLimiterHasOneSize(t *testing.T) {
	l := newLimiter(Limits{}.withDefaults(), time.Unix(0, 0), 1<<12)
	ip := netip.MustParseAddr("1.0.0.1").As4()
	if n := testing.AllocsPerRun(1000, func() {
		ip[1]++
		if ip[1] == 0 {
			ip[0]++
		}
		l.take(netip.AddrFrom4(ip), time.Unix(1, 0))
	}); n > 0 {
		t.Errorf("%v allocations a question", n)
	}
}

func FuzzReply(f *testing.F) {
	w := newWorld(f, func(c *Config) { c.Limits.Burst = 1 << 30 })
	for _, name := range []string{"ha.example.org", "192-168-1-7." + own, "x.lab.example.org", "loop1.example.org", "_8443._https.odd.example.org", `a\.b.wild.example.org`, "."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeANY, dns.TypeHTTPS, dns.TypeAXFR, dns.TypeCAA, dns.TypeNS} {
			f.Add(packet(f, name, qtype))
		}
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, by := range []way{byUDP, byTCP} {
			out := w.reply(p, stranger, by)
			if out == nil {
				continue
			}
			m := new(dns.Msg)
			if err := m.Unpack(out); err != nil {
				t.Fatalf("answer %x: %v", out, err)
			}
			if !m.Response || m.RecursionAvailable || m.Id != binary.BigEndian.Uint16(p) || p[2]&0x80 != 0 {
				t.Fatalf("answer %v to %x", m, p)
			}
			if by == byUDP && (len(out) > maxGain*len(p) || len(out) > maxUDP) {
				t.Fatalf("%d bytes for %d", len(out), len(p))
			}
		}
	})
}

func BenchmarkReply(b *testing.B) {
	w := newWorld(b, func(c *Config) { c.Limits.Burst = 1 << 40 })
	p := packet(b, "192-168-1-7."+own, dns.TypeA)
	b.ReportAllocs()
	for b.Loop() {
		if w.reply(p, stranger, byUDP) == nil {
			b.Fatal("no answer")
		}
	}
}
