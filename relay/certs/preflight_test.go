package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// fakeDirectory is a CA that only says what it is.
func fakeDirectory(t *testing.T, meta string) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"newNonce":"https://%[1]s/n","newAccount":"https://%[1]s/a","newOrder":"https://%[1]s/o","meta":%[2]s}`, r.Host, meta)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that do not trust it
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// inFlight makes an ACME behind a front, for preflights.
func inFlight(t *testing.T, meta string) (*front, *testDNS, *ACME) {
	t.Helper()
	f, names, ca := startFront(t), &testDNS{addrs: make(map[string][]netip.Addr), caa: make(map[string][]CAA)}, fakeDirectory(t, meta)
	a, err := NewACME(ACMEConfig{
		Dir: filepath.Join(t.TempDir(), "acme"), CA: ca.URL, Roots: []*x509.Certificate{ca.Certificate()},
		Port80: f.port80, Port443: f.port443, Resolver: names,
	})
	if err != nil {
		t.Fatal(err)
	}
	a.probe.pause = time.Millisecond
	f.acme.Store(a)
	t.Cleanup(a.http.CloseIdleConnections)
	return f, names, a
}

const host = "ha.relay.test"

func TestPreflight(t *testing.T) {
	f, names, a := inFlight(t, `{"caaIdentities":["ca.test"]}`)
	// Another machine of this network: other servers on the same ports.
	elsewhere := []net.Listener{}
	for _, port := range []int{f.port80, f.port443} {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", port))
		if err != nil {
			t.Skipf("no second address on loopback: %v", err)
		}
		elsewhere = append(elsewhere, l)
	}
	theirs, err := RandomCert(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	elsewhere[1] = tls.NewListener(elsewhere[1], &tls.Config{Certificates: []tls.Certificate{theirs}, NextProtos: []string{"acme-tls/1"}})
	other := &http.Server{Handler: http.NotFoundHandler()}
	for _, l := range elsewhere {
		go other.Serve(l)
	}
	t.Cleanup(func() { other.Close() })

	all := methods{http: true, tls: true}
	for _, tt := range []struct {
		name    string
		addrs   []string
		prepare func()
		hold    string // in the problem
		hint    string
		fix     string
		methods methods
	}{
		{"here", []string{"127.0.0.1"}, nil, "", "", "", all},
		{"no address", []string{}, nil, "no address", "", "A record for ha.relay.test (or for *.relay.test)", methods{}},
		{"elsewhere", []string{"127.0.0.2"}, nil, "points to 127.0.0.2, where something else", "", "point the A record", methods{}},
		{"half elsewhere", []string{"127.0.0.1", "127.0.0.2"}, nil, "points to 127.0.0.2", "", "A record", methods{}},
		{"nobody", []string{"127.0.0.3"}, nil, "", "points to 127.0.0.3, and nobody answers", "open ports 80 and 443", methods{}},
		{"half nobody", []string{"127.0.0.1", "::1"}, nil, "", "points to ::1, and nobody answers", "correct the AAAA record", methods{}},
		{"as IPv6", []string{"::ffff:127.0.0.1"}, nil, "", "", "", all},
		{"not 443", []string{"127.0.0.1"}, func() { f.deafTLS.Store(true) }, "", "", "", methods{http: true}},
		{"not 80", []string{"127.0.0.1"}, func() { f.deafHTTP.Store(true) }, "", "", "", methods{tls: true}},
		{"neither", []string{"127.0.0.1"}, func() { f.deafTLS.Store(true); f.deafHTTP.Store(true) }, "something else", "", "stop what holds ports", methods{}},
	} {
		f.deafTLS.Store(false)
		f.deafHTTP.Store(false)
		names.set(host, tt.addrs...)
		if tt.prepare != nil {
			tt.prepare()
		}
		found := a.preflight(t.Context(), host)
		says(t, tt.name, found.hold, tt.hold, tt.fix)
		if tt.hold == "" {
			says(t, tt.name, found.hint, tt.hint, tt.fix)
		}
		if found.methods != tt.methods {
			t.Errorf("%s: methods %+v, want %+v", tt.name, found.methods, tt.methods)
		}
	}
	a.answers.mu.Lock()
	defer a.answers.mu.Unlock()
	if len(a.answers.tokens)+len(a.answers.probes) > 0 {
		t.Error("probes are still open")
	}
}

// says fails unless f says problem and fix, in one line each; "" is no failure.
func says(t *testing.T, name string, f *failure, problem, fix string) {
	t.Helper()
	switch {
	case problem == "" && f == nil:
	case problem == "":
		t.Errorf("%s: %v", name, f)
	case f == nil:
		t.Errorf("%s: nothing was found, want %q", name, problem)
	case !strings.Contains(f.problem, problem) || !strings.Contains(f.fix, fix) || f.fix == "" || strings.ContainsAny(f.problem+f.fix, "\r\n"):
		t.Errorf("%s: %q, fix %q; want %q, fix %q", name, f.problem, f.fix, problem, fix)
	}
}

// Routes that come a moment after the host cost no waiting.
func TestPreflightLooksAgain(t *testing.T) {
	f, names, a := inFlight(t, `{}`)
	names.set(host, "127.0.0.1")
	f.deafTLS.Store(true)
	f.deafHTTP.Store(true)
	a.probe.pause = time.Second
	done := make(chan report)
	go func() { done <- a.preflight(t.Context(), host) }()
	wait(t, "the first probe", func() bool { return f.missed.Load() > 0 })
	f.deafTLS.Store(false)
	f.deafHTTP.Store(false)
	if found := <-done; found.hold != nil || !found.methods.tls {
		t.Errorf("%+v", found)
	}
}

func TestPreflightOfTheCA(t *testing.T) {
	_, _, a := inFlight(t, `{"externalAccountRequired":true}`)
	says(t, "account", a.preflight(t.Context(), host).hold, "external account binding", "--acme-ca")

	unknown := fakeDirectory(t, `{}`)
	for name, tt := range map[string]struct {
		ca, problem, fix string
		roots            []*x509.Certificate
	}{
		"down":         {"https://" + freeAddr(t) + "/dir", "cannot be reached", "connections to it", nil},
		"unknown root": {unknown.URL, "a CA that this machine does not know", "--acme-root", nil},
	} {
		a, err := NewACME(ACMEConfig{Dir: filepath.Join(t.TempDir(), "acme"), CA: tt.ca, Roots: tt.roots, Resolver: new(testDNS)})
		if err != nil {
			t.Fatal(err)
		}
		says(t, name, a.preflight(t.Context(), host).hold, tt.problem, tt.fix)
	}
}

// A brokenResolver knows nothing.
type brokenResolver struct{ addrs, caa error }

func (r brokenResolver) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, r.addrs
}
func (r brokenResolver) LookupCAA(context.Context, string) ([]CAA, error) { return nil, r.caa }

// A resolver that fails here may work for the CA: it is asked.
func TestPreflightWithoutDNS(t *testing.T) {
	_, _, a := inFlight(t, `{"caaIdentities":["ca.test"]}`)
	a.config.Resolver = brokenResolver{addrs: errors.New("SERVFAIL\nx")}
	found := a.preflight(t.Context(), host)
	says(t, "addresses", found.hold, "", "")
	says(t, "addresses", found.hint, "cannot be looked up: SERVFAIL x", "resolv.conf")
	a.config.Resolver = brokenResolver{caa: errors.New("SERVFAIL")}
	found = a.preflight(t.Context(), host)
	says(t, "CAA", found.hold, "", "")
	says(t, "CAA", found.hint, "CAA records of ha.relay.test cannot be looked up", "type CAA")
}

func TestCAA(t *testing.T) {
	for name, tt := range map[string]struct {
		records map[string][]CAA
		problem string
	}{
		"none":                 {nil, ""},
		"ours":                 {map[string][]CAA{host: {{false, "issue", "ca.test"}}}, ""},
		"ours, written":        {map[string][]CAA{host: {{false, "ISSUE", " CA.test. ; x=y"}}}, ""},
		"another":              {map[string][]CAA{host: {{false, "issue", "other.test"}}}, "of ha.relay.test let only other.test"},
		"nobody":               {map[string][]CAA{host: {{false, "issue", ";"}}}, "let nobody issue"},
		"one of two":           {map[string][]CAA{host: {{false, "issue", "other.test"}, {false, "issue", "ca.test"}}}, ""},
		"parent":               {map[string][]CAA{"relay.test": {{false, "issue", "other.test"}}}, "of relay.test let only"},
		"nearest wins":         {map[string][]CAA{"relay.test": {{false, "issue", "other.test"}}, host: {{false, "issue", "ca.test"}}}, ""},
		"top":                  {map[string][]CAA{"test": {{false, "issue", "other.test"}}}, "of test let only"},
		"only wildcards":       {map[string][]CAA{host: {{false, "issuewild", "other.test"}, {false, "iodef", "mailto:x"}}}, ""},
		"unknown":              {map[string][]CAA{host: {{false, "tbs", "x"}}}, ""},
		"unknown and critical": {map[string][]CAA{host: {{true, "tbs", "x"}}}, "nobody"},
		"methods":              {map[string][]CAA{host: {{false, "issue", "ca.test; validationmethods=dns-01, http-01"}}}, ""},
		"other methods":        {map[string][]CAA{host: {{false, "issue", "ca.test; validationmethods=dns-01"}}}, "dns-01 only"},
		"account":              {map[string][]CAA{host: {{false, "issue", "ca.test; accounturi=https://ca.test/1"}}}, ""},
		"other account":        {map[string][]CAA{host: {{false, "issue", "ca.test; accounturi=https://ca.test/2"}}}, "account https://ca.test/2 only"},
	} {
		f := checkCAA(t.Context(), &testDNS{caa: tt.records}, host, []string{"ca.test", "ca2.test"}, "https://ca.test/1")
		says(t, name, f, tt.problem, `CAA 0 issue "ca.test"`)
		if f != nil && !f.held {
			t.Errorf("%s: the CA is asked all the same", name)
		}
	}
	if f := checkCAA(t.Context(), &testDNS{caa: map[string][]CAA{host: {{false, "issue", "x"}}}}, host, nil, ""); f != nil {
		t.Errorf("a CA without a name: %v", f)
	}
}

// Over the wire too, and by TCP when the answer is long.
func TestAskCAA(t *testing.T) {
	d := startDNS(t)
	d.mu.Lock()
	d.caa[host] = []CAA{{false, "issue", "ca.test"}}
	for range 40 {
		d.caa["long.test"] = append(d.caa["long.test"], CAA{false, "issue", strings.Repeat("x", 100)})
	}
	d.mu.Unlock()
	for name, want := range map[string]int{host: 1, "long.test": 40, "none.test": 0} {
		got, err := askCAA(t.Context(), []string{freeAddr(t), d.addr}, name)
		if err != nil || len(got) != want {
			t.Errorf("%s: %d records, %v", name, len(got), err)
		}
	}
	if _, err := askCAA(t.Context(), nil, host); err == nil {
		t.Error("nobody answered, and that is no error")
	}
}

func FuzzCAA(f *testing.F) {
	f.Add("ca.test; validationmethods=dns-01; accounturi=x", "issue", false)
	f.Add(";;==;", "ISSUE", true)
	f.Fuzz(func(t *testing.T, value, tag string, critical bool) {
		got := judgeCAA("a.test", []CAA{{critical, tag, value}}, []string{"ca.test"}, "acct")
		if got != nil && strings.ContainsAny(got.problem+got.fix, "\r\n\x1b") {
			t.Errorf("%q", got.problem)
		}
		if got == nil && strings.EqualFold(tag, "issue") && !strings.Contains(strings.ToLower(value), "ca.test") {
			t.Errorf("%q allows ca.test", value)
		}
	})
}

// Every refusal of a CA becomes one line and a fix; what this machine saw
// itself says more than what the CA says of it.
func TestExplain(t *testing.T) {
	a := &ACME{config: ACMEConfig{CA: "https://ca.test/dir", Now: time.Now}}
	hint := report{hint: &failure{problem: "port 443 is shut", fix: "open it"}}
	for kind, want := range map[string]struct{ problem, fix, hinted string }{
		"caa":                     {"CAA record forbids", "CAA record", "shut"},
		"dns":                     {"refused", "A record", "shut"},
		"connection":              {"cannot reach this relay", "open ports", "shut"},
		"unauthorized":            {"not this relay", "AAAA", "shut"},
		"tls":                     {"not this relay", "AAAA", "shut"},
		"incorrectResponse":       {"not this relay", "AAAA", "shut"},
		"rejectedIdentifier":      {"refused", "domain of your own", "refused"},
		"invalidContact":          {"refused", "--acme-email", "refused"},
		"unsupportedContact":      {"refused", "--acme-email", "refused"},
		"userActionRequired":      {"refused", "do what it asks", "refused"},
		"externalAccountRequired": {"refused", "another CA", "refused"},
		"serverInternal":          {"refused", "tried again", "refused"},
		"somethingNew":            {"refused", "log", "refused"},
		"rateLimited":             {"rate limit", "tried again at", "rate limit"},
	} {
		err := fmt.Errorf("order: %w", acme.Problem{
			Type: acme.ProblemTypeNamespace + kind, Detail: "so\x1b[31m be\nit", Subproblems: []acme.Subproblem{{Problem: acme.Problem{Detail: "because"}}},
		})
		f := a.explain(err, report{}, nil)
		says(t, kind, f, want.problem, want.fix)
		if !strings.Contains(f.problem, "so[31m be it; because") {
			t.Errorf("%s: what the CA said is lost or raw: %q", kind, f.problem)
		}
		says(t, kind+", with a hint", a.explain(err, hint, nil), want.hinted, "")
	}
	expired := fmt.Errorf("x: %w", x509.CertificateInvalidError{Reason: x509.Expired, Detail: "current time is before"})
	says(t, "clock", a.explain(expired, report{}, nil), "not valid at this machine's time", "clock")
	says(t, "slow", a.explain(context.DeadlineExceeded, report{}, nil), "too long", "again")
	says(t, "unknown", a.explain(errors.New("strange\nthing"), report{}, nil), "strange thing", "log")
	if f := a.explain(acme.Problem{Type: acme.ProblemTypeNamespace + "dns"}, report{}, nil); !strings.Contains(f.problem, "dns") {
		t.Errorf("a CA without words: %q", f.problem)
	}
}

// Challenges are answered for the host that they were opened for, to the
// question that was asked, and only while they are open.
func TestAnswers(t *testing.T) {
	a := newAnswers()
	c := acme.Challenge{Type: "http-01", Token: "tok", KeyAuthorization: "tok.print", Identifier: acme.Identifier{Type: "dns", Value: host}}
	get := func(method, host, path string) (int, string, bool) {
		r := httptest.NewRequest(method, "http://"+host+path, nil)
		w := httptest.NewRecorder()
		done := a.serveHTTP(w, r)
		return w.Code, w.Body.String(), done
	}
	if _, _, done := get("GET", host, challengePath+"tok"); done {
		t.Error("answered before it was asked")
	}
	if err := (httpSolver{a}).Present(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for _, h := range []string{host, "HA.relay.test", host + ".", host + ":80"} {
		if code, body, done := get("GET", h, challengePath+"tok"); !done || code != 200 || body != "tok.print" {
			t.Errorf("%s: %d %q %v", h, code, body, done)
		}
	}
	for _, tt := range [][3]string{
		{"GET", "nas.relay.test", challengePath + "tok"},
		{"GET", host, challengePath + "to"},
		{"GET", host, challengePath},
		{"GET", host, "/tok"},
		{"POST", host, challengePath + "tok"},
		{"GET", "127.0.0.1", challengePath + "tok"},
	} {
		if _, body, done := get(tt[0], tt[1], tt[2]); done || body != "" {
			t.Errorf("%v is answered %q", tt, body)
		}
	}
	if err := (httpSolver{a}).CleanUp(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, _, done := get("GET", host, challengePath+"tok"); done {
		t.Error("answered after the end")
	}

	hello := func(name string, alpn ...string) *tls.ClientHelloInfo {
		return &tls.ClientHelloInfo{ServerName: name, SupportedProtos: alpn}
	}
	if err := (tlsSolver{a}).Present(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	cert, err := a.cert(hello("HA.Relay.Test", "acme-tls/1"))
	if err != nil || cert == nil {
		t.Fatal(err)
	}
	a.setProbe(host, new(tls.Certificate))
	if got, err := a.cert(hello(host, "acme-tls/1")); err != nil || got != cert {
		t.Error("a probe goes before the CA's challenge")
	}
	for _, h := range []*tls.ClientHelloInfo{
		hello("nas.relay.test", "acme-tls/1"), hello("", "acme-tls/1"), hello(host), hello(host, "h2"), hello(host, "acme-tls/1", "h2"), hello(host, "h2", "acme-tls/1"),
	} {
		if got, err := a.cert(h); err == nil || got != nil {
			t.Errorf("%q %q is answered", h.ServerName, h.SupportedProtos)
		}
	}
	if err := (tlsSolver{a}).CleanUp(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	a.dropProbe(host)
	if got, err := a.cert(hello(host, "acme-tls/1")); err == nil || got != nil {
		t.Error("answered after the end")
	}
}
