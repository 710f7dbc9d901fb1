package authdns

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestConfigIsChecked(t *testing.T) {
	addr := func() []netip.Addr { return addrs("203.0.113.1") }
	for what, tc := range map[string]struct {
		config Config
		want   string
	}{
		"no domain":        {Config{Addrs: addr}, "canonical"},
		"domain not lower": {Config{Domain: "Example.org", Addrs: addr}, "canonical"},
		"no addresses":     {Config{Domain: "example.org"}, "Addrs"},
		"NS is the zone":   {Config{Domain: "example.org", Addrs: addr, NS: []string{"example.org"}}, "ns1.example.org"},
		"NS twice":         {Config{Domain: "example.org", Addrs: addr, NS: []string{"ns.example.org", "NS.example.org."}}, "twice"},
		"NS is an address": {Config{Domain: "example.org", Addrs: addr, NS: []string{"203.0.113.1"}}, "address"},
		"mailbox":          {Config{Domain: "example.org", Addrs: addr, Mailbox: "me"}, "mail address"},
		"mailbox's host":   {Config{Domain: "example.org", Addrs: addr, Mailbox: "me@a_b"}, "mail address"},
	} {
		if _, err := New(tc.config); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	s, err := New(Config{Domain: "example.org", Addrs: addr, Mailbox: "first.last@example.net"})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.soa("example.org.", 0).Mbox; got != `first\.last.example.net.` {
		t.Errorf("mailbox %s", got)
	}
}

func TestStaticRecords(t *testing.T) {
	for _, r := range []struct{ name, rrtype, value, want string }{
		{"a", "A", "1.2.3.4", "a.example.org.	3600	IN	A	1.2.3.4"},
		{"A.Example.ORG", "a", "1.2.3.4", "a.example.org.	3600	IN	A	1.2.3.4"},
		{"a.example.org.", "A", "1.2.3.4", "a.example.org.	3600	IN	A	1.2.3.4"},
		{"a.b", "A", "1.2.3.4", "a.b.example.org.	3600	IN	A	1.2.3.4"},
		{"@", "AAAA", "2001:DB8::0", "example.org.	3600	IN	AAAA	2001:db8::"},
		{"*", "CNAME", "@", "*.example.org.	3600	IN	CNAME	example.org."},
		{"a", "CNAME", "b", "a.example.org.	3600	IN	CNAME	b.example.org."},
		{"a", "CNAME", "b.example.net", "a.example.org.	3600	IN	CNAME	b.example.net."},
		{"a", "CNAME", "b.example.net.", "a.example.org.	3600	IN	CNAME	b.example.net."},
		{"_x._tcp", "SRV", " 0  5 5269 xmpp.example.net ", "_x._tcp.example.org.	3600	IN	SRV	0 5 5269 xmpp.example.net."},
		{"@", "MX", "10 mail", "example.org.	3600	IN	MX	10 mail.example.org."},
		{"@", "TXT", `back\slash "quoted"`, `example.org.	3600	IN	TXT	"back\\slash \"quoted\""`},
		{"@", "TXT", `"two" "strings"`, `example.org.	3600	IN	TXT	"two" "strings"`},
		{"@", "CAA", `128 issuewild "ca.example; a=b"`, `example.org.	3600	IN	CAA	128 issuewild "ca.example; a=b"`},
		{"sub", "NS", "ns.example.net", "sub.example.org.	3600	IN	NS	ns.example.net."},
	} {
		z, err := newStatic("example.org", nil, []Record{{Name: r.name, Type: r.rrtype, Value: r.value}})
		if err != nil {
			t.Errorf("%s %s %s: %v", r.name, r.rrtype, r.value, err)
			continue
		}
		for _, rrs := range z.names {
			buf := make([]byte, 4096) // as it is on the wire
			n, err := dns.PackRR(rrs[0], buf, 0, nil, false)
			if err != nil {
				t.Fatal(err)
			}
			if rr, _, err := dns.UnpackRR(buf[:n], 0); err != nil || rr.String() != r.want {
				t.Errorf("%s %s %s: %v, %v\nwant %s", r.name, r.rrtype, r.value, rr, err, r.want)
			}
		}
	}
	long := strings.Repeat("0123456789", 60)
	z, err := newStatic("example.org", nil, []Record{{Name: "@", Type: "TXT", Value: long, TTL: time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	if txt := z.at("example.org")[0].(*dns.TXT); len(txt.Txt) != 3 || strings.Join(txt.Txt, "") != long || txt.Hdr.Ttl != 60 {
		t.Errorf("long text: %v", txt)
	}
}

func TestStaticFaults(t *testing.T) {
	bad := []Record{
		{"", "A", "1.2.3.4", 0},
		{"a.example.net.", "A", "1.2.3.4", 0},
		{"a b", "A", "1.2.3.4", 0},
		{`a\.b`, "A", "1.2.3.4", 0},
		{"a..b", "A", "1.2.3.4", 0},
		{"bücher", "A", "1.2.3.4", 0},
		{strings.Repeat("a", 64), "A", "1.2.3.4", 0},
		{"a.*", "A", "1.2.3.4", 0},
		{"*a", "A", "1.2.3.4", 0},
		{"a", "PTR", "b", 0},
		{"a", "", "b", 0},
		{"a", "A", "::1", 0},
		{"a", "A", "1.2.3", 0},
		{"a", "A", "1.2.3.4 5.6.7.8", 0},
		{"a", "AAAA", "1.2.3.4", 0},
		{"a", "AAAA", "fe80::1%eth0", 0},
		{"a", "AAAA", "::ffff:1.2.3.4", 0},
		{"a", "CNAME", "b c", 0},
		{"a", "CNAME", "*.b", 0},
		{"a", "CNAME", "", 0},
		{"a", "MX", "mail", 0},
		{"a", "MX", "-1 mail", 0},
		{"a", "MX", "65536 mail", 0},
		{"a", "SRV", "1 2 mail", 0},
		{"a", "TXT", "", 0},
		{"a", "TXT", "a\nb", 0},
		{"a", "TXT", `"open`, 0},
		{"a", "TXT", strings.Repeat("x", 70000), 0},
		{"a", "CAA", "letsencrypt.org", 0},
		{"a", "CAA", `0 issue "x" ; $INCLUDE /etc/passwd` + "\n", 0},
		{"a", "A", "1.2.3.4", -time.Second},
		{"a", "A", "1.2.3.4", 8 * 24 * time.Hour},
		{"@", "NS", "ns2.example.net", 0},
		{"*.a", "NS", "ns2.example.net", 0},
		{"@", "CNAME", "b", 0},
		{"ns1", "CNAME", "b", 0},
	}
	for _, r := range bad {
		if _, err := newStatic("example.org", []string{"ns1.example.org"}, []Record{r}); err == nil {
			t.Errorf("%+.100v was taken", r)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%+.100v: more than a line: %v", r, err)
		}
	}
	for _, pair := range [][2]Record{
		{{"a", "A", "1.2.3.4", 0}, {"A.example.org", "A", "1.2.3.4", time.Hour}},
		{{"a", "CNAME", "b", 0}, {"a", "TXT", "x", 0}},
		{{"a", "CNAME", "b", 0}, {"a", "CNAME", "c", 0}},
	} {
		if _, err := newStatic("example.org", nil, pair[:]); err == nil {
			t.Errorf("%v were taken", pair)
		}
	}
	_, err := newStatic("example.org", nil, bad[:5])
	if err == nil || strings.Count(err.Error(), "\n") != 4 {
		t.Errorf("not all faults at once: %v", err)
	}
}

func FuzzStatic(f *testing.F) {
	f.Add("a", "TXT", `"x" \000`)
	f.Add("@", "CAA", `0 issue "x"`)
	f.Add("*.a", "SRV", "1 2 3 b")
	f.Add("a.example.org.", "CNAME", "@")
	f.Fuzz(func(t *testing.T, name, rrtype, value string) {
		z, err := newStatic("example.org", nil, []Record{{Name: name, Type: rrtype, Value: value}})
		if err != nil {
			return
		}
		for name, rrs := range z.names {
			if !inZone(name, "example.org") || canonical(rrs[0].Header().Name) != name {
				t.Fatalf("record %v under %s", rrs[0], name)
			}
			if _, err := dns.PackRR(rrs[0], make([]byte, dns.MaxMsgSize), 0, nil, true); err != nil {
				t.Fatalf("record %v cannot be sent: %v", rrs[0], err)
			}
		}
	})
}
