package real

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// resolver is where the relay of these tests asks for names: an address of
// loopback that nothing else of a machine uses.
const resolver = "127.0.0.77"

// serveDNS answers every question for an address with 127.0.0.1.
func serveDNS(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", resolver+":53")
	if err != nil {
		lack(t, "port 53 of %s: %v", resolver, err)
	}
	pc, err := net.ListenPacket("udp", resolver+":53")
	if err != nil {
		lack(t, "port 53 of %s: %v", resolver, err)
	}
	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(127, 0, 0, 1),
			})
		}
		_ = w.WriteMsg(m)
	})
	for _, s := range []*dns.Server{{Listener: l, Handler: answer}, {PacketConn: pc, Handler: answer}} {
		done := make(chan struct{})
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(done)
			_ = s.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() { _ = s.Shutdown(); <-done })
	}
}

// A pebble is Let's Encrypt's small test server.
type pebble struct {
	t          *testing.T
	ca         *testCA // of the server's own certificate
	config     string
	directory  string
	management string
	process    *process
}

// startPebble starts an ACME server that looks for challenges at these ports
// and issues certificates of this life.
func startPebble(t *testing.T, httpAddr, tlsAddr string, life time.Duration) *pebble {
	t.Helper()
	needTools(t, "pebble")
	dir := shortDir(t)
	p := &pebble{t: t, ca: newTestCA(t, dir), config: filepath.Join(dir, "pebble.json")}
	cert, key := p.ca.issue(t, "localhost")
	listen, management := freePort(t), freePort(t)
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": listen, "managementListenAddress": management, "certificate": cert, "privateKey": key,
		"httpPort": portNumber(httpAddr), "tlsPort": portNumber(tlsAddr), "keyAlgorithm": "ecdsa",
		"certificateValidityPeriod": int(life.Seconds()),
		"profiles":                  map[string]any{"default": map[string]any{"description": "test", "validityPeriod": int(life.Seconds())}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, p.config, string(config))
	p.directory = fmt.Sprintf("https://localhost:%d/dir", portNumber(listen))
	p.management = fmt.Sprintf("https://localhost:%d", portNumber(management))
	p.start()
	return p
}

func (p *pebble) start() {
	p.t.Helper()
	p.process = start(p.t, "pebble", "env", "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=5",
		"pebble", "-config", p.config, "-strict", "-dnsserver", resolver+":53")
	eventually(p.t, 20*time.Second, "pebble answers", func() bool {
		res, err := p.client().Get(p.directory)
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

func (p *pebble) client() *http.Client {
	pool := x509.NewCertPool()
	pool.AddCert(p.ca.cert)
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
}

// roots saves the root of what it issues.
func (p *pebble) roots(file string) {
	p.t.Helper()
	res, err := p.client().Get(p.management + "/roots/0")
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	pem, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	writeFile(p.t, file, string(pem))
}

func portNumber(addr string) int {
	_, port, _ := net.SplitHostPort(addr)
	var n int
	_, _ = fmt.Sscan(port, &n)
	return n
}

// withResolver is what a command is started with so that only it asks our
// resolver: the file is put over /etc/resolv.conf in a mount namespace of its own.
func withResolver(t *testing.T) []string {
	t.Helper()
	needTools(t, "unshare", "mount")
	file := filepath.Join(shortDir(t), "resolv.conf")
	writeFile(t, file, "nameserver "+resolver+"\n")
	return []string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, file}
}

// TestACME: three hosts get certificates from a public CA and new ones every
// few seconds, while visitors come and go without one failed request; the CA
// is away for a while, the relay restarts while it is, and nobody notices.
func TestACME(t *testing.T) {
	slow(t)
	needRoot(t)
	serveDNS(t)
	const life = 40 * time.Second
	w := &world{t: t, dir: shortDir(t), listen: freePort(t), http: freePort(t), agents: map[string]*process{}, wrap: withResolver(t)}
	ca := startPebble(t, w.http, w.listen, life)
	w.flags = []string{"--certs", "acme", "--acme-ca", ca.directory, "--acme-root", ca.ca.file, "--acme-email", "owner@" + domain}
	w.startRelay()
	w.roots = w.file("pebble-root.pem")
	ca.roots(w.roots)
	app := startHomeApp(t)
	hosts := []string{"ha", "photos", "files"}
	w.home("first", "--expose", "ha="+app)
	for _, name := range hosts[1:] {
		w.expose("first", name, app, "--auth", "none")
	}
	phone := w.device("phone")
	for _, name := range append(hosts, "enroll", "check") {
		eventually(t, time.Minute, "a certificate for "+name, func() bool {
			return w.curl(&phone, w.url(name, "/")).code == 0
		})
	}
	if out := mustRun(t, binary, "relay", "certs", "--data", w.relayDir()); !strings.Contains(out, host("photos")) {
		t.Errorf("relay certs does not tell of a host:\n%s", out)
	}
	// A name that nobody registered gets none, however often it is asked for.
	for range 3 {
		if got := w.refusal("nobody." + domain); got == "" {
			t.Error("a name that is not registered was served")
		}
	}

	// Visitors, each request over a new connection.
	type tally struct {
		mu      sync.Mutex // guards what follows
		visits  int
		serials map[string]bool
		failed  []error
	}
	tallies := map[string]*tally{}
	stop := make(chan struct{})
	var visitors sync.WaitGroup
	for _, name := range hosts {
		c := &tally{serials: map[string]bool{}}
		tallies[name] = c
		conf := w.tlsOf(&phone)
		conf.ServerName = host(name)
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
			TLSClientConfig: conf, DisableKeepAlives: true,
			DialContext: (&net.Dialer{}).DialContext,
		}}
		url := "https://" + w.listen + "/"
		visitors.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				req, _ := http.NewRequest(http.MethodGet, url, nil)
				req.Host = host(name)
				res, err := client.Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
				c.mu.Lock()
				if res != nil {
					c.serials[res.TLS.PeerCertificates[0].SerialNumber.String()] = true
					if err == nil && res.StatusCode != http.StatusOK {
						err = fmt.Errorf("status %d", res.StatusCode)
					}
				}
				c.visits++
				if err != nil {
					c.failed = append(c.failed, err)
				}
				c.mu.Unlock()
				select {
				case <-stop:
					return
				case <-tick.C:
				}
			}
		})
	}
	// The relay's own hosts renew too: only what visitors see counts.
	eventually(t, 3*life, "visitors of every host have seen a new certificate", func() bool {
		for _, c := range tallies {
			c.mu.Lock()
			n := len(c.serials)
			c.mu.Unlock()
			if n < 2 {
				return false
			}
		}
		return true
	})
	close(stop)
	visitors.Wait()
	for name, c := range tallies {
		t.Logf("%s: %d visits, %d certificates, %d failed", name, c.visits, len(c.serials), len(c.failed))
		if len(c.failed) > 0 {
			t.Errorf("%s: %d of %d visits failed, the first: %v", name, len(c.failed), c.visits, c.failed[0])
		}
		if len(c.serials) < 2 {
			t.Errorf("%s: visitors never saw a new certificate", name)
		}
	}

	// The CA goes away, and the relay restarts without it.
	ca.process.kill()
	w.relay.stop()
	w.startRelay()
	w.waitAgent("first", 20*time.Second, "back", agentStatus.ready)
	w.get(phone, "ha", "/")
	if out, err := os.ReadFile(filepath.Join(w.relayDir(), "audit.log")); err != nil || !strings.Contains(string(out), "certificate.issued") {
		t.Errorf("the audit log does not tell of certificates: %v", err)
	}
}
