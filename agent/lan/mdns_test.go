package lan

import (
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func testZone() *zone { return newZone("Attic", 8443, addrs("192.168.1.7", "fd00::7")) }

// question makes a query; known are answers that the asker has.
func question(name string, kind uint16, known ...dns.RR) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, kind)
	m.RecursionDesired = false
	m.Answer = known
	return m
}

func packed(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// kinds lists records as TYPE name.
func kinds(rrs []dns.RR) []string {
	var ks []string
	for _, rr := range rrs {
		ks = append(ks, dns.TypeToString[rr.Header().Rrtype]+" "+rr.Header().Name)
	}
	return ks
}

func TestAnswers(t *testing.T) {
	const instance, host = "attic._sallyport._tcp.local.", "attic.local."
	for _, c := range []struct {
		name         string
		kind         uint16
		answer, more []string
	}{
		{serviceType, dns.TypePTR, []string{"PTR " + serviceType}, []string{"SRV " + instance, "TXT " + instance, "A " + host, "AAAA " + host}},
		{strings.ToUpper(serviceType), dns.TypeANY, []string{"PTR " + serviceType}, []string{"SRV " + instance, "TXT " + instance, "A " + host, "AAAA " + host}},
		{allTypes, dns.TypePTR, []string{"PTR " + allTypes}, nil},
		{instance, dns.TypeSRV, []string{"SRV " + instance}, []string{"A " + host, "AAAA " + host}},
		{instance, dns.TypeTXT, []string{"TXT " + instance}, nil},
		{"ATTIC._sallyport._tcp.local.", dns.TypeANY, []string{"SRV " + instance, "TXT " + instance}, []string{"A " + host, "AAAA " + host}},
		{host, dns.TypeA, []string{"A " + host}, nil},
		{host, dns.TypeAAAA, []string{"AAAA " + host}, nil},
		{host, dns.TypeANY, []string{"A " + host, "AAAA " + host}, nil},
		{host, dns.TypeHTTPS, []string{"NSEC " + host}, nil},
		{instance, dns.TypeA, []string{"NSEC " + instance}, nil},
		{serviceType, dns.TypeSRV, nil, nil},
		{"_http._tcp.local.", dns.TypePTR, nil, nil},
		{"other.local.", dns.TypeA, nil, nil},
		{own + ".", dns.TypeA, nil, nil},
		{".", dns.TypeANY, nil, nil},
	} {
		r, err := testZone().respond(packed(t, question(c.name, c.kind)), mdnsPort)
		if err != nil {
			t.Fatal(err)
		}
		if len(c.answer) == 0 {
			if r != nil {
				t.Errorf("%s %s: answered: %v", c.name, dns.TypeToString[c.kind], r.msg)
			}
			continue
		}
		if r == nil || !slices.Equal(kinds(r.msg.Answer), c.answer) || !slices.Equal(kinds(r.msg.Extra), c.more) {
			t.Errorf("%s %s: %v, want %v and %v", c.name, dns.TypeToString[c.kind], r, c.answer, c.more)
			continue
		}
		if r.unicast || len(r.msg.Question) > 0 || r.msg.Id != 0 || !r.msg.Response || !r.msg.Authoritative {
			t.Errorf("%s: not as everybody should hear it: %v", c.name, r.msg)
		}
		if r.shared != strings.HasPrefix(c.answer[0], "PTR") {
			t.Errorf("%s: shared %v", c.name, r.shared)
		}
		for _, rr := range slices.Concat(r.msg.Answer, r.msg.Extra) {
			if flush := rr.Header().Class&topBit != 0; flush == (rr.Header().Rrtype == dns.TypePTR) {
				t.Errorf("%s: %v replaces those of others: %v", c.name, rr, flush)
			}
		}
		packed(t, r.msg)
	}
	only4 := newZone("attic", 8443, addrs("192.168.1.7"))
	r, _ := only4.respond(packed(t, question(host, dns.TypeAAAA)), mdnsPort)
	if r == nil || !strings.Contains(r.msg.String(), "NSEC\tattic.local. A") {
		t.Errorf("no word on the missing IPv6 address: %v", r)
	}
}

func TestWhatIsSaid(t *testing.T) {
	m := testZone().all(false)
	text := m.String()
	for _, want := range []string{"SRV\t0 0 8443 attic.local.", "\"txtvers=1\"", "A\t192.168.1.7", "AAAA\tfd00::7", "PTR\tattic._sallyport._tcp.local."} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	for _, secret := range []string{own, "example.org"} {
		if strings.Contains(text, secret) {
			t.Errorf("the announcement names %s", secret)
		}
	}
	for _, rr := range testZone().all(true).Answer {
		if rr.Header().Ttl != 0 {
			t.Errorf("farewell: %v", rr)
		}
	}
}

func TestKnownAnswers(t *testing.T) {
	z := testZone()
	have := func(ttl uint32) dns.RR {
		rr := pointer(serviceType, z.instance)
		rr.Header().Ttl = ttl
		return rr
	}
	if r, _ := z.respond(packed(t, question(serviceType, dns.TypePTR, have(otherTTL/2))), mdnsPort); r != nil {
		t.Errorf("said what the asker knows: %v", r.msg)
	}
	if r, _ := z.respond(packed(t, question(serviceType, dns.TypePTR, have(otherTTL/2-1))), mdnsPort); r == nil {
		t.Error("not said what the asker forgets soon")
	}
	if r, _ := z.respond(packed(t, question(serviceType, dns.TypePTR, pointer(serviceType, "other."+serviceType))), mdnsPort); r == nil {
		t.Error("not said because the asker knows somebody else")
	}
}

func TestUnicastWanted(t *testing.T) {
	q := question(serviceType, dns.TypePTR)
	q.Question[0].Qclass |= topBit
	if r, _ := testZone().respond(packed(t, q), mdnsPort); r == nil || !r.unicast {
		t.Errorf("not to the asker alone: %v", r)
	}
	q.Question = append(q.Question, dns.Question{Name: "attic.local.", Qtype: dns.TypeA, Qclass: dns.ClassINET})
	if r, _ := testZone().respond(packed(t, q), mdnsPort); r == nil || r.unicast || len(r.msg.Answer) != 2 || slices.Contains(kinds(r.msg.Extra), "A attic.local.") {
		t.Errorf("two questions, one for everybody: %v", r)
	}
	q.Question[0].Qclass = dns.ClassCHAOS
	q.Question = q.Question[:1]
	if r, _ := testZone().respond(packed(t, q), mdnsPort); r != nil {
		t.Errorf("class CHAOS: %v", r.msg)
	}
}

// A resolver that knows nothing of multicast DNS gets what it understands.
func TestLegacy(t *testing.T) {
	q := question("attic.local.", dns.TypeA)
	r, err := testZone().respond(packed(t, q), 40000)
	if err != nil || r == nil || !r.unicast || r.msg.Id != q.Id || len(r.msg.Question) != 1 {
		t.Fatalf("%v %v", r, err)
	}
	for _, rr := range r.msg.Answer {
		if h := rr.Header(); h.Ttl > legacyTTL || h.Class != dns.ClassINET {
			t.Errorf("%v", rr)
		}
	}
}

func TestNoQueries(t *testing.T) {
	for what, change := range map[string]func(*dns.Msg){
		"an answer": func(m *dns.Msg) { m.Response = true },
		"an update": func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate },
		"an error":  func(m *dns.Msg) { m.Rcode = dns.RcodeNameError },
	} {
		q := question(serviceType, dns.TypePTR)
		change(q)
		if r, err := testZone().respond(packed(t, q), mdnsPort); err == nil || r != nil {
			t.Errorf("%s is answered", what)
		}
	}
	many := question("attic.local.", dns.TypeTXT)
	for range 2 * maxQuestions {
		many.Question = append(many.Question, many.Question[0])
	}
	many.Question = append(many.Question, dns.Question{Name: serviceType, Qtype: dns.TypePTR, Qclass: dns.ClassINET})
	if r, _ := testZone().respond(packed(t, many), mdnsPort); r == nil || len(r.msg.Answer) != 1 || r.msg.Answer[0].Header().Rrtype != dns.TypeNSEC {
		t.Errorf("many questions: %v", r)
	}
}

func FuzzRespond(f *testing.F) {
	f.Add(packed(f, question(serviceType, dns.TypePTR)), uint16(mdnsPort))
	f.Add(packed(f, question("attic.local.", dns.TypeANY, testZone().srv())), uint16(40000))
	f.Add(packed(f, testZone().all(false)), uint16(mdnsPort))
	f.Fuzz(func(t *testing.T, packet []byte, port uint16) {
		r, err := testZone().respond(packet, port)
		if err != nil || r == nil {
			return
		}
		out, err := r.msg.Pack()
		if err != nil {
			t.Fatalf("cannot send the answer: %v", err)
		}
		if len(out) > 1200 && len(r.msg.Question) == 0 || len(out) > maxMDNSPacket {
			t.Fatalf("answer of %d bytes", len(out))
		}
		if len(r.msg.Answer) == 0 || port != mdnsPort && !r.unicast {
			t.Fatalf("answer %v", r.msg)
		}
	})
}
