package real

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// issueIP makes a certificate for an address and returns its files.
func (ca *testCA) issueIP(t *testing.T, ip string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca.serial++
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(ca.serial), IPAddresses: []net.IP{net.ParseIP(ip)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(ca.dir, "ip.crt"), filepath.Join(ca.dir, "ip.key")
	writePEM(t, certFile, "CERTIFICATE", der)
	writePEM(t, keyFile, "PRIVATE KEY", keyDER)
	return certFile, keyFile
}

const (
	acmeIdentity = "ca.test" // how the ACME server calls itself in CAA records
	acmeAddr     = relayIP + ":14000"
	dnsAddr      = relayIP + ":53"
)

// acmeServer starts an ACME server on the relay's machine that asks one DNS
// server and nobody else; returns the file with the root of its own certificate.
func (s *street) acmeServer(dns string, life time.Duration) (rootFile string) {
	t := s.t
	t.Helper()
	needTools(t, "pebble")
	ca := newTestCA(t, shortDir(t))
	cert, key := ca.issueIP(t, relayIP)
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": acmeAddr, "managementListenAddress": "127.0.0.1:15000", "certificate": cert, "privateKey": key,
		"httpPort": 1, "tlsPort": 443, "keyAlgorithm": "ecdsa", "caaIdentities": []string{acmeIdentity},
		"certificateValidityPeriod": int(life.Seconds()),
		"profiles":                  map[string]any{"default": map[string]any{"description": "test", "validityPeriod": int(life.Seconds())}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(ca.dir, "pebble.json")
	writeFile(t, file, string(config))
	start(t, "pebble", append(wrapIn(s.relay), "env", "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=5",
		"pebble", "-config", file, "-strict", "-dnsserver", dns)...)
	eventually(t, 20*time.Second, "pebble answers", func() bool {
		return run(t, "", append(wrapIn(s.relay), "curl", "-sS", "--cacert", ca.file, "https://"+acmeAddr+"/dir")...).code == 0
	})
	return ca.file
}

// acmeRoots saves the root of what the ACME server issues.
func (s *street) acmeRoots(w *world) string {
	s.t.Helper()
	file := w.file("pebble-root.pem")
	writeFile(s.t, file, mustRun(s.t, append(wrapIn(s.relay), "curl", "-sSk", "https://127.0.0.1:15000/roots/0")...))
	return file
}

// certified reports whether a home holds certificates for these hosts.
func (w *world) certified(agent string, hosts ...string) bool {
	w.t.Helper()
	e := w.indoors(agent).EndToEnd
	if e == nil {
		return false
	}
	for _, c := range e.Certificates {
		if c.State == "ok" {
			hosts = slices.DeleteFunc(hosts, func(h string) bool { return h == c.Host })
		}
	}
	return len(hosts) == 0
}

// dig asks the relay's DNS and returns all of the answer.
func (s *street) dig(args ...string) string {
	s.t.Helper()
	return mustRun(s.t, append(append(wrapIn(s.relay), "dig", "+tries=2", "+time=3", "@"+relayIP), args...)...)
}

// section returns the lines of one section of dig's output, spaces made one.
func section(out, name string) []string {
	_, rest, ok := strings.Cut(out, ";; "+name+" SECTION:\n")
	if !ok {
		return nil
	}
	rest, _, _ = strings.Cut(rest, "\n\n")
	var lines []string
	for line := range strings.Lines(rest) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return lines
}

// A question to the relay's DNS and what must come.
type question struct {
	args   string   // of dig
	status string   // NOERROR, REFUSED, …
	answer []string // patterns, one for each line of the answer section; nil: none
	soa    bool     // the authority section says that there is nothing
}

// ask asks by UDP and TCP.
func (s *street) ask(q question) {
	s.t.Helper()
	for _, way := range []string{"+notcp", "+tcp"} {
		out := s.dig(append([]string{way, "+noall", "+comments", "+answer", "+authority"}, strings.Fields(q.args)...)...)
		if !strings.Contains(out, "status: "+q.status+",") {
			s.t.Errorf("%s %s: want %s:\n%s", q.args, way, q.status, out)
			continue
		}
		lines := section(out, "ANSWER")
		if len(lines) != len(q.answer) {
			s.t.Errorf("%s %s: want %q:\n%s", q.args, way, q.answer, out)
			continue
		}
		for _, want := range q.answer {
			if !slices.ContainsFunc(lines, regexp.MustCompile(want).MatchString) {
				s.t.Errorf("%s %s: want %q:\n%s", q.args, way, want, out)
			}
		}
		if got := strings.Contains(strings.Join(section(out, "AUTHORITY"), ""), " SOA "); got != q.soa {
			s.t.Errorf("%s %s: SOA in the authority section: %v, want %v:\n%s", q.args, way, got, q.soa, out)
		}
		_, flags, _ := strings.Cut(out, "flags: ")
		flags, _, _ = strings.Cut(flags, ";")
		if words := strings.Fields(flags); slices.Contains(words, "ra") || q.status == "NOERROR" && !slices.Contains(words, "aa") {
			s.t.Errorf("%s %s: flags %q", q.args, way, flags)
		}
	}
}

// TestEndToEndNames: with the relay's DNS a home gets certificates of an ACME
// CA for *.HASH.DOMAIN and for a host, whose keys the relay never has; the names
// of addresses answer with what the home has and nothing else.
func TestEndToEndNames(t *testing.T) {
	needTools(t, "pebble", "dig", "openssl", "curl")
	s := newStreet(t)
	t.Parallel()
	acmeDir := "https://" + acmeAddr + "/dir"
	// The CA's root is known before the CA runs: the relay's DNS has to be there first.
	root := filepath.Join(shortDir(t), "acme-root.pem")
	w := s.keptHome([]string{"--dns", dnsAddr, "--dns-address", relayIP},
		"end_to_end:\n  certs: acme\n  acme: {ca: \""+acmeDir+"\", root: \""+root+"\"}\n  lan: {listen: \":8443\", split: true}\n")
	data, err := os.ReadFile(s.acmeServer(dnsAddr, 30*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, root, string(data))
	own := w.indoors("first").ID + "." + domain
	// Who looks all the time sees the challenge while it is open.
	watch := start(t, "dig for the challenge", append(wrapIn(s.relay), "sh", "-c",
		`while :; do dig +short +tries=1 +time=1 @`+relayIP+` TXT _acme-challenge.`+own+`; done`)...)
	w.expose("first", "vault", "127.0.0.1:8123", "--tls", "agent")
	w.expose("first", "open", "127.0.0.1:8123")
	eventually(t, time.Minute, "the home has its certificates", func() bool { return w.certified("first", own, host("vault")) })
	watch.stop()
	if !regexp.MustCompile(`"[A-Za-z0-9_-]{43}"`).MatchString(watch.out.String()) {
		t.Errorf("no challenge was seen: %q", tail(watch.out.String(), 500))
	}
	roots := s.acmeRoots(w)

	tablet := w.homeDevice("first", "tablet")
	visit := func(ns, addr string, d *device, url string) result {
		return run(t, "", append(wrapIn(ns), homeCurl(d, roots, addr, url)...)...)
	}
	lanURL := "https://10-91-2-2." + own + ":8443/"
	for what, r := range map[string]result{
		"through the relay":   visit(s.relay, relayIP, &tablet, "https://"+host("vault")+"/"),
		"on the LAN":          visit(s.nat, homeIP, &tablet, "https://"+host("vault")+":8443/"),
		"on the LAN, by name": visit(s.nat, homeIP, &tablet, lanURL),
	} {
		if r.stdout != "hello from home\n" {
			t.Errorf("%s: %s", what, r)
		}
	}
	for what, r := range map[string]result{
		"through the relay": visit(s.relay, relayIP, nil, "https://"+host("vault")+"/"),
		"on the LAN":        visit(s.nat, homeIP, nil, lanURL),
	} {
		if r.code == 0 || r.stdout != "" {
			t.Errorf("%s, without a certificate: %s", what, r)
		}
	}
	// The relay knows the names of addresses in its DNS only.
	if r := visit(s.relay, relayIP, &tablet, "https://10-91-2-2."+own+"/"); r.code == 0 || r.stdout != "" {
		t.Errorf("the name of an address, at the relay: %s", r)
	}
	if a, b := shown(t, wrapIn(s.relay), w.listen, host("vault")), shown(t, wrapIn(s.nat), homeIP+":8443", host("vault")); a != b {
		t.Error("the relay's way and the LAN show different certificates")
	}
	if r := visit(s.relay, relayIP, &tablet, "https://"+host("vault")+"/.well-known/sallyport/lan.json"); !strings.Contains(r.stdout, strings.TrimSuffix(lanURL, "/")) {
		t.Errorf("lan.json: %s", r)
	}
	if r := visit(s.relay, relayIP, nil, "https://"+own+"/"); r.code != 0 || !strings.Contains(r.stdout, "<html") {
		t.Errorf("the home's enrolment page: %s", r)
	}

	// Who asks from home is told the way inside; the router hides where in the home.
	for name, want := range map[string]string{host("vault"): homeIP, host("open"): relayIP, own: relayIP} {
		r := run(t, "", append(wrapIn(s.home), "dig", "+short", "@"+relayIP, name)...)
		if r.stdout != want+"\n" {
			t.Errorf("%s, asked for from home: want %s: %s", name, want, r)
		}
	}
	t.Run("dns", func(t *testing.T) { s.questions(t, own) })
	t.Run("key", func(t *testing.T) { w.keysStayAtHome(t) })
}

// questions asks for everything that the zone holds and does not hold.
func (s *street) questions(t *testing.T, own string) {
	was := s.t
	s.t = t
	defer func() { s.t = was }()
	at := func(addr string) []string { return []string{` A ` + regexp.QuoteMeta(addr) + `$`} }
	account := `"` + acmeIdentity + `; accounturi=https://` + regexp.QuoteMeta(acmeAddr) + `/my-account/\w+; validationmethods=dns-01,tls-alpn-01"$`
	nothing := func(args string) question { return question{args: args, status: "NOERROR", soa: true} }
	for _, q := range []question{
		// Hosts, and what a scanner would guess: all alike.
		{args: "A " + host("vault"), status: "NOERROR", answer: at(relayIP)},
		{args: "A " + host("open"), status: "NOERROR", answer: at(relayIP)},
		{args: "A " + host("nobody"), status: "NOERROR", answer: at(relayIP)},
		{args: "A vAuLt.SALLY.test", status: "NOERROR", answer: []string{`^vAuLt\.SALLY\.test\. .* A `}},
		nothing("AAAA " + host("vault")),
		// The home's own name and those of its addresses.
		{args: "A " + own, status: "NOERROR", answer: at(relayIP)},
		{args: "A 10-91-2-2." + own, status: "NOERROR", answer: at(homeIP)},
		{args: "A 10-91-1-2." + own, status: "NOERROR", answer: at("10.91.1.2")}, // where the relay sees it come from
		nothing("AAAA 10-91-2-2." + own),
		nothing("A 192-168-1-7." + own),
		nothing("A 8-8-8-8." + own),
		nothing("A 127-0-0-1." + own),
		nothing("A 10-91-2-1." + own),
		nothing("AAAA 2001-db8--1." + own),
		nothing("AAAA 0--1." + own),
		{args: "A 010-91-2-2." + own, status: "NOERROR", answer: at(relayIP)}, // another spelling is a name as any
		{args: "A 10-91-2-2." + strings.Repeat("a", 52) + "." + domain, status: "NXDOMAIN", soa: true},
		{args: "A a.10-91-2-2." + own, status: "NXDOMAIN", soa: true},
		// Who may issue. The wildcard below a host is not the home's.
		{args: "CAA " + own, status: "NOERROR", answer: []string{` CAA \d+ issue ` + account, ` CAA \d+ issuewild ` + account}},
		{args: "CAA " + host("vault"), status: "NOERROR", answer: []string{` CAA \d+ issue ` + account, ` CAA \d+ issuewild ";"$`}},
		nothing("CAA " + host("open")),
		// The challenge is over.
		{args: "TXT _acme-challenge." + host("nobody"), status: "NXDOMAIN", soa: true},
		// The zone itself.
		{args: "NS " + domain, status: "NOERROR", answer: []string{` NS ns1\.` + domain + `\.$`}},
		{args: "SOA " + domain, status: "NOERROR", answer: []string{` SOA ns1\.` + domain + `\. hostmaster\.`}},
		{args: "A ns1." + domain, status: "NOERROR", answer: at(relayIP)},
		{args: "HTTPS " + host("vault"), status: "NOERROR", answer: []string{` HTTPS 1 \. .*alpn="h2,http/1\.1".* ech=`}},
		// Minimal, and nothing for others.
		{args: "ANY " + host("vault"), status: "NOERROR", answer: []string{` HINFO "RFC8482" ""$`}},
		{args: "A example.org", status: "REFUSED"},
		{args: "A org", status: "REFUSED"},
		{args: "NS .", status: "REFUSED"},
	} {
		s.ask(q)
	}
	if out := s.dig("+noall", "+comments", "CH", "TXT", "version.bind"); !strings.Contains(out, "status: NOTIMP") && !strings.Contains(out, "status: REFUSED") {
		t.Errorf("version.bind:\n%s", out)
	}
	if out := s.dig("AXFR", domain); strings.Contains(out, "vault") || strings.Count(out, domain+".") > 1 {
		t.Errorf("the zone is handed out:\n%s", out)
	}
	if out := s.dig("+notcp", "TXT", "_acme-challenge."+own); section(out, "ANSWER") != nil {
		t.Errorf("the challenge is still there:\n%s", out)
	}
}

// keysStayAtHome looks for every private key of the home in the memory and on
// the disk of the relay, and shows that it would find them.
func (w *world) keysStayAtHome(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(w.agentDir("first"), "certs", "acme", "*", "certs", "*.pem"))
	if err != nil || len(files) < 2 {
		t.Fatalf("the home's certificates: %q, %v", files, err)
	}
	account, err := filepath.Glob(filepath.Join(w.agentDir("first"), "certs", "acme", "*", "account.key"))
	if err != nil || len(account) != 1 {
		t.Fatalf("the home's account: %q, %v", account, err)
	}
	all := needles{}
	for _, file := range append(files, account...) {
		n := keyNeedles(t, file)
		found := inMemory(t, w.agents["first"], n)
		t.Logf("in the home's memory: %q", found)
		if len(found) == 0 && file != account[0] {
			t.Errorf("the key of %s is not found where it must be: nothing would be proved", filepath.Base(file))
		}
		if found := onDisk(t, w.agentDir("first"), n); len(found) < 2 {
			t.Errorf("%s: on the home's disk only %q", filepath.Base(file), found)
		}
		for what, needle := range n {
			all[what] = needle
		}
	}
	if found := inMemory(t, w.relay, all); len(found) > 0 {
		t.Errorf("the relay's memory holds %q", found)
	}
	if found := onDisk(t, w.relayDir(), all); len(found) > 0 {
		t.Errorf("the relay's disk holds %q", found)
	}
	// The relay's own key is found in the relay: it is this process that was read.
	if found := inMemory(t, w.relay, keyNeedles(t, filepath.Join(w.relayDir(), "agent-ca.key"))); len(found) == 0 {
		t.Error("the relay's own key is not found in its memory")
	}
}
