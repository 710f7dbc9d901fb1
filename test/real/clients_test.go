package real

import (
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// elsewhere is a command prefix that puts files over others of the machine, in
// a mount namespace of its own: strongSwan reads hosts and roots from /etc.
func elsewhere(t *testing.T, over map[string]string) []string {
	t.Helper()
	needTools(t, "unshare", "mount")
	needRoot(t)
	script, args := "", []string{"unshare", "--mount", "sh", "-c", "", "sh"}
	for target, file := range over {
		script += "mount --bind '" + file + "' '" + target + "' && "
	}
	args[4] = script + `exec "$@"`
	return args
}

// asStrongSwan is how pki reaches the relay: its own hosts lead to loopback and
// its roots are trusted. It is told to speak TLS 1.3, which it can but does not
// by default: under 1.2 a client certificate travels in clear.
func (w *world) asStrongSwan() []string {
	w.t.Helper()
	needTools(w.t, "pki")
	hosts := w.file("hosts")
	writeFile(w.t, hosts, "127.0.0.1 localhost enroll."+domain+" check."+domain+"\n")
	conf := w.file("strongswan.conf")
	writeFile(w.t, conf, "libtls { version_max = 1.3 }\n")
	prefix := elsewhere(w.t, map[string]string{"/etc/hosts": hosts, "/etc/ssl/certs/ca-certificates.crt": w.roots})
	return append(prefix, "env", "STRONGSWAN_CONF="+conf)
}

// own is the URL of one of the relay's own hosts.
func (w *world) own(name, path string) string {
	return "https://" + net.JoinHostPort(host(name), w.port()) + path
}

func (w *world) code(name string, flags ...string) string {
	link := w.invite(name, flags...)
	return link[strings.LastIndex(link, "#")+1:]
}

func commonName(t *testing.T, certPEM string) string {
	t.Helper()
	block, _ := pem.Decode([]byte(certPEM))
	if block == nil {
		t.Fatalf("no certificate: %s", tail(certPEM, 400))
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert.Subject.CommonName
}

// TestStrongSwan: an independent client gets its certificate from the relay by
// EST and by SCEP, waits for the owner, renews, and comes in with the result.
func TestStrongSwan(t *testing.T) {
	slow(t)
	needTools(t, "pki", "openssl", "curl")
	w := newWorld(t)
	w.home("first", "--expose", "ha="+startHomeApp(t))
	pki := append(w.asStrongSwan(), "pki")
	deviceCA := w.file("device-ca.pem")

	request := func(name, kind string) (key, csr string) {
		key, csr = w.file(name+".key"), w.file(name+".csr")
		writeFile(t, key, mustRun(t, "pki", "--gen", "--type", kind, "--size", map[string]string{"ecdsa": "256", "rsa": "2048"}[kind], "--outform", "pem"))
		writeFile(t, csr, mustRun(t, "pki", "--req", "--in", key, "--type", kind, "--dn", "CN=somebody else", "--outform", "pem"))
		return key, csr
	}
	comesIn := func(cert, key string) {
		t.Helper()
		w.get(device{cert: cert, key: key}, "ha", "/")
	}

	// EST, all at one host, as such clients are configured.
	est := func(args ...string) result {
		return run(t, "", append(append([]string{}, pki...), append([]string{"--est", "--url", w.own("check", ""), "--outform", "pem", "--cacert", w.roots, "--cacert", deviceCA}, args...)...)...)
	}
	writeFile(t, deviceCA, mustRun(t, append(append([]string{}, pki...), "--estca", "--url", w.own("check", ""), "--cacert", w.roots, "--outform", "pem")...))
	key, csr := request("laptop", "ecdsa")
	code := w.code("laptop")
	r := est("--in", csr, "--userpass", "x:"+code)
	if r.code != 0 || commonName(t, r.stdout) != "laptop" {
		t.Fatalf("EST: %s", r)
	}
	cert := w.file("laptop.crt")
	writeFile(t, cert, r.stdout)
	comesIn(cert, key)
	_, other := request("thief", "ecdsa")
	if r := est("--in", other, "--userpass", "x:"+code); r.code == 0 {
		t.Fatal("EST gave a second certificate for one code")
	}
	newKey, again := w.file("laptop2.key"), w.file("laptop2.csr")
	writeFile(t, newKey, mustRun(t, "pki", "--gen", "--type", "ecdsa", "--size", "256", "--outform", "pem"))
	writeFile(t, again, mustRun(t, "pki", "--req", "--in", newKey, "--type", "ecdsa", "--dn", "CN=laptop", "--outform", "pem"))
	r = est("--in", again, "--cert", cert, "--key", key)
	if r.code != 0 || commonName(t, r.stdout) != "laptop" {
		t.Fatalf("EST renewal: %s", r)
	}
	writeFile(t, w.file("laptop2.crt"), r.stdout)
	comesIn(w.file("laptop2.crt"), newKey)
	comesIn(cert, key)

	// SCEP, with the owner's approval.
	ca, ra := w.file("scep-ca.pem"), w.file("scep-ra.pem")
	mustRun(t, append(append([]string{}, pki...), "--scepca", "--url", w.own("enroll", "/scep"), "--caout", ca, "--raout", ra, "--outform", "pem")...)
	key, _ = request("tablet", "rsa")
	waiting := start(t, "pki --scep", append(append([]string{}, pki...), "--scep", "--url", w.own("enroll", "/scep"), "--cipher", "des3", "--interval", "1",
		"--in", key, "--dn", "CN=somebody else", "--password", w.code("tablet", "--approve"),
		"--cacert-enc", ra, "--cacert-sig", ra, "--cacert", ca, "--outform", "pem")...)
	eventually(t, 20*time.Second, "the tablet waits", func() bool {
		return strings.Contains(mustRun(t, binary, "device", "list", "--data", w.relayDir()), "tablet")
	})
	mustRun(t, binary, "device", "approve", "tablet", "--data", w.relayDir())
	if code := waiting.wait(30 * time.Second); code != 0 {
		t.Fatalf("pki --scep ended with %d", code)
	}
	out := waiting.out.String()
	cert = w.file("tablet.crt")
	writeFile(t, cert, out[strings.Index(out, "-----BEGIN"):])
	if name := commonName(t, out[strings.Index(out, "-----BEGIN"):]); name != "tablet" {
		t.Errorf("SCEP: a certificate for %q", name)
	}
	comesIn(cert, key)
	newKey = w.file("tablet2.key")
	writeFile(t, newKey, mustRun(t, "pki", "--gen", "--type", "rsa", "--size", "2048", "--outform", "pem"))
	r = run(t, "", append(append([]string{}, pki...), "--scep", "--url", w.own("enroll", "/scep"), "--cipher", "des3", "--in", newKey, "--dn", "CN=tablet",
		"--cert", cert, "--key", key, "--cacert-enc", ra, "--cacert-sig", ra, "--cacert", ca, "--outform", "pem")...)
	if r.code != 0 || commonName(t, r.stdout) != "tablet" {
		t.Fatalf("SCEP renewal: %s", r)
	}
	writeFile(t, w.file("tablet2.crt"), r.stdout)
	comesIn(w.file("tablet2.crt"), newKey)
}

// TestRevocationList: openssl verifies against the list that the relay serves.
func TestRevocationList(t *testing.T) {
	needTools(t, "openssl", "curl")
	w := newWorld(t)
	w.home("first", "--expose", "ha="+startHomeApp(t))
	good, bad := w.device("good"), w.device("bad")
	w.revoke(bad)
	der := w.file("crl.der")
	if r := w.curl(nil, "--fail", "-o", der, w.own("enroll", "/device-ca.crl")); r.code != 0 {
		t.Fatalf("no list: %s", r)
	}
	crl, ca := w.file("crl.pem"), w.file("device-ca.pem")
	mustRun(t, "openssl", "crl", "-inform", "der", "-in", der, "-out", crl)
	if r := w.curl(nil, "--fail", "-o", ca, w.own("enroll", "/device-ca.crt")); r.code != 0 {
		t.Fatalf("no device CA: %s", r)
	}
	verify := func(d device) result {
		return run(t, "", "openssl", "verify", "-crl_check", "-CAfile", ca, "-CRLfile", crl, d.cert)
	}
	if r := verify(good); r.code != 0 {
		t.Errorf("a good certificate does not verify: %s", r)
	}
	if r := verify(bad); r.code == 0 || !strings.Contains(r.String(), "revoked") {
		t.Errorf("a revoked one: %s", r)
	}
}

// TestToken: a visitor without a certificate reaches one service below one
// path, and everything without the token is an unknown page.
func TestToken(t *testing.T) {
	needTools(t, "curl")
	w := newWorld(t)
	app := startHomeApp(t)
	w.home("first", "--expose", "photos="+app, "--expose", "ha="+app)
	secretFile := w.file("tv.secret")
	out := run(t, "", binary, "device", "add", "tv", "--token", "--hosts", "photos", "--path", "/seen/", "--out", secretFile, "--data", w.relayDir()).String()
	raw, err := os.ReadFile(secretFile)
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.TrimSpace(string(raw))
	at := strings.Index(out, "https://t-")
	if at < 0 || secret == "" {
		t.Fatalf("no base address, or no secret: %s", out)
	}
	base := strings.TrimRight(strings.Fields(out[at:])[0], "/.,")
	name := strings.TrimPrefix(base, "https://")
	name = name[:strings.Index(name, ".")]
	ask := func(path string, more ...string) result {
		return w.curl(nil, append(more, "-i", w.url(name, path))...)
	}
	if r := ask("/seen/x", "-H", "Authorization: Bearer "+secret); !strings.Contains(r.stdout, "200") || strings.Contains(r.stdout, secret) || !strings.Contains(r.stdout, `"tv"`) {
		t.Errorf("with the token in the header: %s", r)
	}
	if r := ask("/" + secret + "/seen/x"); !strings.Contains(r.stdout, `"uri":"/seen/x"`) || strings.Contains(r.stdout, secret) {
		t.Errorf("with the token in the path: %s", r)
	}
	unknown := ask("/").stdout
	for what, r := range map[string]result{
		"nothing":        ask("/seen/x"),
		"a wrong token":  ask("/seen/x", "-H", "Authorization: Bearer "+strings.Repeat("A", len(secret))),
		"another path":   ask("/bytes?n=5", "-H", "Authorization: Bearer "+secret),
		"out by dots":    ask("/"+secret+"/seen/../bytes?n=5", "--path-as-is"),
		"out by percent": ask("/"+secret+"/seen/%2e%2e/bytes?n=5", "--path-as-is"),
	} {
		if status, _, _ := strings.Cut(r.stdout, "\r\n"); !strings.Contains(status, "404") && !strings.Contains(status, "400") {
			t.Errorf("%s: %s", what, r)
		}
		if strings.Contains(r.stdout, "hello from home") {
			t.Errorf("%s reached the home: %s", what, r)
		}
	}
	if !strings.Contains(unknown, "404") {
		t.Errorf("the host itself: %s", unknown)
	}
	if !strings.Contains(mustRun(t, binary, "device", "list", "--data", w.relayDir()), "tv") {
		t.Error("device list does not show the token")
	}

	// A live stream ends with the token.
	clock := run(t, "", binary, "device", "add", "wall", "--token", "--hosts", "ha", "--out", w.file("wall.secret"), "--data", w.relayDir()).String()
	raw, _ = os.ReadFile(w.file("wall.secret"))
	wall := strings.TrimSpace(string(raw))
	name = clock[strings.Index(clock, "https://t-")+len("https://"):]
	name = name[:strings.Index(name, ".")]
	stream := start(t, "a token's stream", w.curlArgs(nil, "-N", "-H", "Authorization: Bearer "+wall, w.url(name, "/clock"))...)
	stream.waitFor("data: 3", 10*time.Second)
	mustRun(t, binary, "device", "revoke", "wall", "--data", w.relayDir())
	began := time.Now()
	limit := time.Second
	if raceEnabled {
		limit *= 10
	}
	if code := stream.wait(limit); code == 0 {
		t.Error("the stream of a revoked token ended as if it were complete")
	}
	t.Logf("the stream ended %v after the command", time.Since(began))

	for place, text := range map[string]string{"the relay's log": w.relay.out.String(), "the agent's log": w.agents["first"].out.String()} {
		if strings.Contains(text, secret) || strings.Contains(text, wall) {
			t.Errorf("%s holds a token", place)
		}
	}
	files := map[string][]byte{}
	w.files(files)
	for place, data := range files {
		if !strings.HasSuffix(place, ".secret") && (strings.Contains(string(data), secret) || strings.Contains(string(data), wall)) {
			t.Errorf("%s holds a token", place)
		}
	}
	if filepath.Ext(secretFile) != "" {
		if st, err := os.Stat(secretFile); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("the file with the secret: %v, %v", st, err)
		}
	}
}

// TestGuesses: a source that tries codes is made to wait.
func TestGuesses(t *testing.T) {
	needTools(t, "curl")
	w := newWorld(t)
	code := w.code("anna-phone")
	try := func(code string) result {
		return w.curl(nil, "-s", "-w", "%{http_code}", "-H", "Content-Type: application/json", "-d", `{"code":"`+code+`"}`, w.own("enroll", "/api/code"))
	}
	if r := try(code); !strings.HasSuffix(r.stdout, "200") || !strings.Contains(r.stdout, "anna-phone") {
		t.Fatalf("the good code: %s", r)
	}
	for range 5 {
		if r := try(strings.Repeat("A", 26)); strings.HasSuffix(r.stdout, "200") {
			t.Fatalf("a wrong code: %s", r)
		}
	}
	if r := try(strings.Repeat("A", 26)); !strings.HasSuffix(r.stdout, http.StatusText(0)+"429") {
		t.Errorf("the sixth wrong code: %s", r)
	}
	if strings.Contains(w.relay.out.String(), code) {
		t.Error("the log holds the code")
	}
}
