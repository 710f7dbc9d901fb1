package real

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestEndToEndChallenge: behind a relay that answers no DNS a home gets a
// certificate for a host all the same: the CA's handshake is passed through to it.
func TestEndToEndChallenge(t *testing.T) {
	needTools(t, "pebble", "openssl", "curl", "unshare", "mount")
	s := newStreet(t)
	t.Parallel()
	// Somebody else answers the domain's DNS, on the router: every name is at the relay.
	const elsewhere = "10.91.1.2"
	dir := shortDir(t)
	start(t, "dns", append(wrapIn(s.nat), binary, "relay", "up", "--domain", domain, "--data", filepath.Join(dir, "dns"),
		"--listen", "127.0.0.1:443", "--http", "off", "--dns", ":53", "--dns-address", relayIP)...).waitFor("dns serves", 20*time.Second)
	resolv, root := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "acme-root.pem")
	writeFile(t, resolv, "nameserver 10.91.2.1\n")
	wrap := append(wrapIn(s.home), "unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, resolv)
	w := s.keptHomeIn(wrap, nil, "end_to_end:\n  certs: acme\n  acme: {ca: \"https://"+acmeAddr+"/dir\", root: \""+root+"\"}\n")
	data, err := os.ReadFile(s.acmeServer(elsewhere+":53", 30*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, root, string(data))
	w.expose("first", "vault", "127.0.0.1:8123", "--tls", "agent")
	w.expose("first", "wild", "127.0.0.1:8123", "--tls", "agent", "--host", "*.apps."+domain)
	eventually(t, time.Minute, "the home has its certificate", func() bool { return w.certified("first", host("vault")) })
	roots, tablet := s.acmeRoots(w), w.homeDevice("first", "tablet")
	visit := func(d *device, name string) result {
		return run(t, "", append(wrapIn(s.relay), homeCurl(d, roots, relayIP, "https://"+name+"/")...)...)
	}
	if r := visit(&tablet, host("vault")); r.stdout != "hello from home\n" {
		t.Errorf("through the relay: %s", r)
	}
	if r := visit(nil, host("vault")); r.code == 0 || r.stdout != "" {
		t.Errorf("without a certificate: %s", r)
	}
	// What needs the relay's DNS says so.
	own := w.indoors("first").EndToEnd.Own
	for _, c := range w.indoors("first").EndToEnd.Certificates {
		if c.Host != host("vault") && (c.State == "ok" || c.Problem == "" || !strings.Contains(c.Problem+c.Fix, "dns")) {
			t.Errorf("without the relay's DNS: %+v", c)
		}
	}
	// No challenge is open now, and the answer to one never serves a visitor.
	for _, name := range []string{host("vault"), own} {
		r := run(t, "", append(wrapIn(s.relay), "openssl", "s_client", "-connect", w.listen, "-servername", name, "-alpn", "acme-tls/1")...)
		if strings.Contains(r.stdout, "ALPN protocol: acme-tls/1") {
			t.Errorf("%s: a challenge is answered:\n%s", name, r)
		}
	}
}
