package real

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/sallyport/sallyport/agent/control"
)

// indoors is an agent's status, with what serves TLS at home.
func (w *world) indoors(agent string) control.Status {
	w.t.Helper()
	var st struct{ Agent *control.Status }
	r := run(w.t, "", binary, "status", "--json", "--data", w.agentDir(agent))
	if r.code != 0 || json.Unmarshal([]byte(r.stdout), &st) != nil || st.Agent == nil {
		return control.Status{}
	}
	return *st.Agent
}

// ownName waits for the agent's own name, HASH.DOMAIN.
func (w *world) ownName(agent string) string {
	w.t.Helper()
	var own string
	eventually(w.t, 20*time.Second, "agent "+agent+" serves TLS", func() bool {
		if st := w.indoors(agent); st.EndToEnd != nil {
			own = st.EndToEnd.Own
		}
		return own != ""
	})
	return own
}

// homeRoots saves the root that visitors of a home with certificates of its own
// trust; returns the file.
func (w *world) homeRoots(agent string) string {
	w.t.Helper()
	w.ownName(agent)
	file := w.file(agent + "-root.pem")
	writeFile(w.t, file, w.indoors(agent).EndToEnd.Root)
	return file
}

// homeDevice makes a certificate of the home's own CA.
func (w *world) homeDevice(agent, name string, flags ...string) device {
	w.t.Helper()
	dir := w.file(agent + "-devices")
	mustRun(w.t, append([]string{binary, "device", "add", name, "--home", "--data", w.agentDir(agent), "--pem", dir}, flags...)...)
	return device{name, filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")}
}

// keep joins an agent with a configuration.
func (w *world) keep(name, yaml string, flags ...string) *process {
	w.t.Helper()
	file := w.file(name + ".yaml")
	writeFile(w.t, file, yaml)
	return w.home(name, append([]string{"--config", file}, flags...)...)
}

// homeCurl is a curl that finds the host of a URL at an address.
func homeCurl(d *device, roots, addr, rawURL string, more ...string) []string {
	u, err := url.Parse(rawURL)
	if err != nil {
		panic(err)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	args := []string{"curl", "-sS", "--max-time", "20", "--noproxy", "*", "--cacert", roots, "--resolve", u.Hostname() + ":" + port + ":" + addr}
	if d != nil {
		args = append(args, "--cert", d.cert, "--key", d.key)
	}
	return append(append(args, more...), rawURL)
}

// reader is what status says about who can read a service.
func (w *world) reader(agent, service string) string {
	w.t.Helper()
	for _, s := range w.indoors(agent).Services {
		if s.Name == service {
			return s.Reader
		}
	}
	return ""
}

// shown is the fingerprint of the certificate that a server shows to openssl.
func shown(t *testing.T, wrap []string, addr, sni string) string {
	t.Helper()
	r := run(t, "", append(append([]string{}, wrap...), "openssl", "s_client", "-connect", addr, "-servername", sni, "-showcerts")...)
	block, _ := pem.Decode([]byte(r.stdout[max(0, strings.Index(r.stdout, "-----BEGIN")):]))
	if block == nil {
		t.Fatalf("%s at %s shows no certificate: %s", sni, addr, r)
	}
	return fingerprint(block.Bytes)
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// TestEndToEndTwoWays: openssl, curl and Chromium reach a service whose TLS ends
// at home through the relay and straight on the home network: one certificate,
// one content, the same devices. The second way works without the relay.
func TestEndToEndTwoWays(t *testing.T) {
	slow(t)
	needTools(t, "curl", "openssl")
	w := newWorld(t)
	lan := freePort(t)
	w.keep("first", "end_to_end:\n  certs: internal\n  lan: {listen: \""+lan+"\"}\n")
	app := startHomeApp(t)
	out := w.expose("first", "vault", app, "--tls", "agent")
	if !strings.Contains(out, w.url("vault", "/")) || !strings.Contains(out, "end to end") {
		t.Errorf("agent expose says %q", out)
	}
	w.expose("first", "open", app)
	own, roots := w.ownName("first"), w.homeRoots("first")
	if vault, open := w.reader("first", "vault"), w.reader("first", "open"); vault != "end to end" || open != "relay" {
		t.Errorf("who can read: vault %q, open %q", vault, open)
	}
	tablet := w.homeDevice("first", "tablet")
	phone := w.device("phone") // of the relay: a stranger here
	port := lan[strings.LastIndex(lan, ":")+1:]
	named := "192-168-1-7." + own // what the relay's DNS would say of it is not asked here
	ways := map[string]string{
		"through the relay": w.url("vault", "/"),
		"on the LAN":        "https://" + host("vault") + ":" + port + "/",
		"by address":        "https://" + named + ":" + port + "/",
	}
	visit := func(d *device, url string) result {
		return run(t, "", homeCurl(d, roots, "127.0.0.1", url)...)
	}
	for name, way := range ways {
		if r := visit(&tablet, way); r.stdout != "hello from home\n" {
			t.Errorf("%s: %s", name, r)
		}
		for who, d := range map[string]*device{"nobody": nil, "a device of the relay": &phone} {
			if r := visit(d, way); r.code == 0 || r.stdout != "" {
				t.Errorf("%s, %s: %s", name, who, r)
			}
		}
		// The relay's root does not vouch for the home.
		if r := run(t, "", homeCurl(&tablet, w.roots, "127.0.0.1", way)...); r.code != 60 {
			t.Errorf("%s: with the relay's root: %s", name, r)
		}
	}
	there, here := shown(t, nil, w.listen, host("vault")), shown(t, nil, lan, host("vault"))
	if there != here {
		t.Error("the relay's way and the LAN show different certificates")
	}
	if shown(t, nil, lan, named) == here || shown(t, nil, lan, named) != shown(t, nil, w.listen, own) {
		t.Error("the names of addresses do not have the certificate of the home's own name")
	}
	if out := scan(t, w.listen, named); strings.Contains(out, "BEGIN CERTIFICATE") {
		t.Errorf("the relay serves the name of an address:\n%s", out)
	}
	// What the relay serves is not on the LAN, and who says no name meets nothing.
	for _, sni := range [][]string{{host("open")}, {host("unknown")}, nil} {
		if out := scan(t, lan, sni...); strings.Contains(out, "BEGIN CERTIFICATE") {
			t.Errorf("%v on the LAN:\n%s", sni, out)
		}
	}
	w.twoWaysOfChromium(tablet, roots, port, named, here)

	w.relay.stop()
	for _, name := range []string{"on the LAN", "by address"} {
		if r := visit(&tablet, ways[name]); r.stdout != "hello from home\n" {
			t.Errorf("%s, without the relay: %s", name, r)
		}
	}
	// A restart at home with the relay away: the hosts are known.
	w.agents["first"].stop()
	w.startAgent("first", nil, "--config", w.file("first.yaml"))
	eventually(t, 20*time.Second, "the home serves without the relay", func() bool {
		return visit(&tablet, ways["on the LAN"]).stdout == "hello from home\n"
	})
}

// twoWaysOfChromium is the browser's part; want is the certificate of the vault.
func (w *world) twoWaysOfChromium(d device, roots, port, named, want string) {
	t := w.t
	t.Helper()
	anna := w.newPerson("anna")
	db := "sql:" + filepath.Join(anna.home, ".pki", "nssdb")
	mustRun(t, "certutil", "-d", db, "-A", "-t", "C,,", "-n", "home", "-i", roots)
	p12, password := w.file("anna.p12"), w.file("anna.pw")
	mustRun(t, binary, "device", "add", "anna-phone", "--home", "--data", w.agentDir("first"), "--p12", p12, "--password-file", password)
	pw, err := os.ReadFile(password)
	if err != nil {
		t.Fatal(err)
	}
	anna.install(p12, strings.TrimSpace(string(pw)))
	anna.start()
	for _, origin := range []string{"https://" + host("vault") + ":" + w.port(), "https://" + host("vault") + ":" + port, "https://" + named + ":" + port} {
		anna.mustOpen(origin+"/", "hello from home")
		got, err := chromedp.Call(anna.ctx, network.GetCertificate, network.GetCertificateParams{Origin: origin})
		if err != nil || len(got.TableNames) == 0 {
			t.Errorf("%s: the certificate: %v", origin, err)
			continue
		}
		der, err := base64.StdEncoding.DecodeString(got.TableNames[0])
		if err != nil {
			t.Errorf("%s: the certificate: %v", origin, err)
			continue
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(origin, named) != (fingerprint(der) != want) {
			t.Errorf("%s: Chromium sees a certificate for %v", origin, leaf.DNSNames)
		}
	}
	anna.shots("on-the-lan")
	stranger := w.newPerson("stranger")
	mustRun(t, "certutil", "-d", "sql:"+filepath.Join(stranger.home, ".pki", "nssdb"), "-A", "-t", "C,,", "-n", "home", "-i", roots)
	stranger.start()
	if text, err := stranger.open("https://" + host("vault") + ":" + port + "/"); err == nil && strings.Contains(text, "hello") {
		t.Errorf("Chromium without a certificate reads %q", text)
	}
}
