package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/authdns"
)

const (
	ownName = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.homes.dev"
	lanName = "192-168-1-7." + ownName
)

// A fakeWorld answers a doctor's questions.
type fakeWorld struct {
	said     strings.Builder
	asked    []string // names, by the machine's resolver
	public   []string // names, by the public one
	here     map[string][]netip.Addr
	hereErr  error
	there    map[string]string // name → record
	thereErr error
	checks   []authdns.Check
	findings []authdns.Finding
}

func (w *fakeWorld) doctor(offline bool) *doctor {
	return &doctor{
		resolver: "9.9.9.9:53", offline: offline, say: &w.said,
		delegation: func(_ context.Context, c authdns.Check) []authdns.Finding {
			w.checks = append(w.checks, c)
			return w.findings
		},
		lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
			w.asked = append(w.asked, host)
			if len(w.here[host]) == 0 && w.hereErr == nil {
				return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
			}
			return slices.Clone(w.here[host]), w.hereErr
		},
		ask: func(_ context.Context, network, server string, q *dns.Msg) (*dns.Msg, error) {
			if network != "udp" || server != "9.9.9.9:53" {
				return nil, errors.New("asked " + network + " " + server)
			}
			name := strings.TrimSuffix(q.Question[0].Name, ".")
			w.public = append(w.public, name)
			reply := new(dns.Msg).SetReply(q)
			if rr := w.there[name]; rr != "" {
				rr, err := dns.NewRR(rr)
				if err != nil {
					return nil, err
				}
				reply.Answer = append(reply.Answer, rr)
			} else {
				reply.Rcode = dns.RcodeNameError
			}
			return reply, w.thereErr
		},
	}
}

func publicRelay() *admin.Status {
	return &admin.Status{Domain: "homes.dev", DNS: &admin.DNS{
		Zone: "homes.dev", NS: []string{"ns1.homes.dev"}, Addresses: []string{"203.0.113.7", "2001:db8::7"},
	}}
}

func homeWithLAN(urls ...string) *control.Status {
	return &control.Status{Domain: "homes.dev", EndToEnd: &control.EndToEnd{Own: ownName, LAN: urls}}
}

func printed(r doctorReport, offline bool) string {
	var b strings.Builder
	r.print(&b, offline)
	return b.String()
}

func TestDoctorOnTheRelaysMachine(t *testing.T) {
	w := &fakeWorld{findings: []authdns.Finding{{OK: true, What: "answers"}, {What: "net does not name ns1", Fix: "set:\nthis"}}}
	r := w.doctor(false).examine(t.Context(), publicRelay(), nil)
	if len(w.checks) != 1 || w.checks[0].Resolver != "9.9.9.9:53" || w.checks[0].Domain != "homes.dev" || len(w.checks[0].Addrs) != 2 || w.checks[0].NS[0] != "ns1.homes.dev" {
		t.Errorf("checked %+v", w.checks)
	}
	for _, who := range []string{"9.9.9.9:53", "zone above", "203.0.113.7", "2001:db8::7"} {
		if !strings.Contains(w.said.String(), who) {
			t.Errorf("asks %s without saying so: %q", who, w.said.String())
		}
	}
	out := printed(r, false)
	for _, want := range []string{
		"  homes.dev. NS ns1.homes.dev.\n", "  ns1.homes.dev. A 203.0.113.7\n", "  ns1.homes.dev. AAAA 2001:db8::7\n",
		"ok      answers\n", "MEND    net does not name ns1\n        set:\n        this\n", "rebind-domain-ok=/homes.dev/",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if r.problems() != 1 {
		t.Errorf("%d problems", r.problems())
	}
}

// Offline, and where it makes no sense, nobody is asked.
func TestDoctorAsksNobodyUnsaid(t *testing.T) {
	private := publicRelay()
	private.Domain, private.DNS.Zone = "home.internal", "home.internal"
	for what, c := range map[string]struct {
		offline bool
		relay   *admin.Status
		agent   *control.Status
		want    string
	}{
		"offline":        {true, publicRelay(), homeWithLAN("https://" + lanName + ":8443"), "must know " + lanName},
		"private domain": {false, private, nil, "nobody was asked"},
		"without DNS":    {false, &admin.Status{Domain: "homes.dev"}, nil, "With --dns :53 it gives homes names"},
		"no LAN":         {false, nil, homeWithLAN(), "no name that a filter could drop"},
		"no end to end":  {false, nil, &control.Status{Domain: "homes.dev"}, "no service here has --tls agent"},
		"strange URL":    {false, nil, homeWithLAN("https://nas.local:8443", "::"), "no name that a filter could drop"},
	} {
		w := &fakeWorld{}
		r := w.doctor(c.offline).examine(t.Context(), c.relay, c.agent)
		if out := printed(r, c.offline); !strings.Contains(out, c.want) {
			t.Errorf("%s: no %q in\n%s", what, c.want, out)
		}
		if w.said.Len()+len(w.asked)+len(w.public)+len(w.checks)+len(r.Asked)+r.problems() != 0 {
			t.Errorf("%s: asked %q %q %+v, said %q, %d problems", what, w.asked, w.public, w.checks, w.said.String(), r.problems())
		}
	}
}

func TestDoctorAtHome(t *testing.T) {
	const record = lanName + ". 60 IN A 192.168.1.7"
	right := netip.MustParseAddr("192.168.1.7")
	for what, c := range map[string]struct {
		world   *fakeWorld
		want    string
		ok      bool
		crossed bool // the public resolver was asked too
	}{
		"found":         {world: &fakeWorld{here: map[string][]netip.Addr{lanName: {right}}}, want: "finds " + lanName + " at 192.168.1.7", ok: true},
		"found, mapped": {world: &fakeWorld{here: map[string][]netip.Addr{lanName: {netip.MustParseAddr("::ffff:192.168.1.7")}}}, want: "finds", ok: true},
		"filtered":      {world: &fakeWorld{there: map[string]string{lanName: record}}, want: "a filter against DNS rebinding", crossed: true},
		"nobody":        {world: &fakeWorld{}, want: "nobody knows " + lanName, crossed: true},
		"cut off":       {world: &fakeWorld{thereErr: errors.New("no route")}, want: "could not be asked: no route", crossed: true},
		"changed":       {world: &fakeWorld{here: map[string][]netip.Addr{lanName: {netip.MustParseAddr("10.9.9.9")}}}, want: "is at 10.9.9.9"},
		"no resolver":   {world: &fakeWorld{hereErr: errors.New("broken")}, want: "gives no answer for " + lanName + ": broken"},
	} {
		d := c.world.doctor(false)
		r := d.examine(t.Context(), nil, homeWithLAN("https://"+lanName+":8443"))
		f := r.Agent.Findings
		if len(f) != 1 || f[0].OK != c.ok || !strings.Contains(f[0].What, c.want) || (f[0].Fix == "") != c.ok {
			t.Errorf("%s: %+v", what, f)
		}
		if (len(c.world.public) > 0) != c.crossed || strings.Contains(c.world.said.String(), "9.9.9.9") != c.crossed || !strings.Contains(c.world.said.String(), "this machine's resolver") {
			t.Errorf("%s: asked %q, said %q", what, c.world.public, c.world.said.String())
		}
		if out := printed(r, false); strings.Contains(out, "rebind-domain-ok") == c.ok {
			t.Errorf("%s: the lines for filters\n%s", what, out)
		}
	}
	// A domain of one's own is not told to the world.
	private := homeWithLAN("https://192-168-1-7.hash.home.internal")
	private.Domain = "home.internal"
	own := &fakeWorld{}
	if r := own.doctor(false).examine(t.Context(), nil, private); r.problems() != 1 || len(own.public) != 0 || len(own.asked) != 1 {
		t.Errorf("%+v, asked %q", r.Agent.Findings, own.public)
	}
	// An IPv6 address is asked for as such.
	const v6 = "fd00--7." + ownName
	w := &fakeWorld{there: map[string]string{v6: v6 + ". 60 IN AAAA fd00::7"}}
	if r := w.doctor(false).examine(t.Context(), nil, homeWithLAN("https://"+v6)); !strings.Contains(r.Agent.Findings[0].What, "a filter against") {
		t.Errorf("%+v", r.Agent.Findings)
	}
}

func TestResolverAddr(t *testing.T) {
	for text, want := range map[string]string{
		"9.9.9.9": "9.9.9.9:53", "9.9.9.9:5353": "9.9.9.9:5353", "2620:fe::fe": "[2620:fe::fe]:53", "[2620:fe::fe]": "[2620:fe::fe]:53", "[::1]:5": "[::1]:5",
		"dns.quad9.net": "", "": "", "9.9.9.9:x": "",
	} {
		if got, err := resolverAddr(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}
