package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/sallyport/sallyport/protocol/pki"
)

// A pebble is Let's Encrypt's small ACME server, for one test.
type pebble struct {
	ca, management string
	rootFile       string // of the server itself, not of what it issues
	client         *http.Client
	log            *logBuffer
}

func startPebble(t *testing.T, dnsAddr string, port443 int, identities ...string) *pebble {
	t.Helper()
	program, err := exec.LookPath("pebble")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("pebble is missing")
		}
		t.Skip("pebble is missing: go install github.com/letsencrypt/pebble/v2/cmd/pebble@latest")
	}
	dir, root := t.TempDir(), authority(t)
	crt, key := issue(t, root, time.Time{}, time.Now().Add(24*time.Hour), "localhost")
	p := &pebble{rootFile: filepath.Join(dir, "root.pem"), log: new(logBuffer)}
	p.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: root.Pool()}}}
	write(t, filepath.Join(dir, "cert.pem"), crt)
	write(t, filepath.Join(dir, "key.pem"), key)
	write(t, p.rootFile, pki.EncodeCert(root.Cert()))
	listen, management := freeAddr(t), freeAddr(t)
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": listen, "managementListenAddress": management,
		"certificate": filepath.Join(dir, "cert.pem"), "privateKey": filepath.Join(dir, "key.pem"),
		"httpPort": 1, "tlsPort": port443, "caaIdentities": identities, "keyAlgorithm": "ecdsa", "certificateValidityPeriod": 90 * 86400,
		"profiles": map[string]any{"default": map[string]any{"description": "test", "validityPeriod": 90 * 86400}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "config.json"), config)
	local := func(addr string) string { _, port, _ := net.SplitHostPort(addr); return "https://localhost:" + port }
	p.ca, p.management = local(listen)+"/dir", local(management)
	process := exec.Command(program, "-config", filepath.Join(dir, "config.json"), "-strict", "-dnsserver", dnsAddr)
	process.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=5")
	process.Stdout, process.Stderr = p.log, p.log
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = process.Process.Kill()
		_ = process.Wait()
		p.client.CloseIdleConnections()
		if t.Failed() {
			t.Logf("pebble:\n%s", p.log)
		}
	})
	wait(t, "pebble", func() bool {
		resp, err := p.client.Get(p.ca)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return p
}

// issued is the pool of roots that its certificates verify with.
func (p *pebble) issued(t *testing.T) *x509.CertPool {
	t.Helper()
	resp, err := p.client.Get(p.management + "/roots/0")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(data) {
		t.Fatalf("pebble's root: %v, %q", err, data)
	}
	return pool
}

// freeAddr is an address on loopback that was free a moment ago.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// wait looks every few milliseconds until ok, for a minute.
func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick, limit := time.NewTicker(10*time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// A dnsServer stands for the relay's DNS: every name is at 127.0.0.1, TXT is
// what was set, and CAA names what was told of the account.
type dnsServer struct {
	*fakeZone
	addr string
	caa  []string // guarded by fakeZone.mu
}

func startDNS(t *testing.T) *dnsServer {
	t.Helper()
	d := &dnsServer{fakeZone: newZone(), addr: freeAddr(t)}
	pc, err := net.ListenPacket("udp", d.addr)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", d.addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{Listener: l, Handler: dns.HandlerFunc(d.answer)}, {PacketConn: pc, Handler: dns.HandlerFunc(d.answer)}} {
		ready, done := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(ready) }
		go func() {
			defer close(done)
			_ = s.ActivateAndServe()
		}()
		<-ready
		t.Cleanup(func() { _ = s.Shutdown(); <-done })
	}
	return d
}

func (d *dnsServer) answer(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	name := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))
	head := dns.RR_Header{Name: q.Question[0].Name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET}
	switch q.Question[0].Qtype {
	case dns.TypeA:
		m.Answer = append(m.Answer, &dns.A{Hdr: head, A: net.IPv4(127, 0, 0, 1)})
	case dns.TypeTXT:
		for _, v := range d.get(name) {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: head, Txt: []string{v}})
		}
	case dns.TypeCAA:
		d.mu.Lock()
		for _, v := range d.caa {
			m.Answer = append(m.Answer, &dns.CAA{Hdr: head, Tag: "issue", Value: v}, &dns.CAA{Hdr: head, Tag: "issuewild", Value: v})
		}
		d.mu.Unlock()
	}
	_ = w.WriteMsg(m)
}

// account publishes CAA records as a relay does.
func (d *dnsServer) account(uri string, issuers []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.caa = nil
	for _, issuer := range issuers {
		d.caa = append(d.caa, issuer+`; accounturi=`+uri+`; validationmethods=dns-01,tls-alpn-01`)
	}
}

// startDoor serves TLS as the agent's door does, challenges first.
func startDoor(t *testing.T) (port int, use func(*Certs)) {
	t.Helper()
	var mu sync.Mutex
	var certs *Certs
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		mu.Lock()
		c := certs
		mu.Unlock()
		if c == nil {
			return nil, errors.New("nobody is home")
		}
		if cert, ok := c.Challenge(hello); ok {
			return &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{ALPN}}, nil
		}
		return &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return c.GetCertificate(hello.ServerName) }}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				if conn.(*tls.Conn).Handshake() == nil {
					_, _ = io.WriteString(conn, "hello")
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
	return l.Addr().(*net.TCPAddr).Port, func(c *Certs) { mu.Lock(); defer mu.Unlock(); certs = c }
}

// A real CA that looks for itself: DNS-01 for the agent's own names and for a
// wildcard, under CAA records that name the account; tls-alpn-01 once the relay
// answers no DNS, through the same port that visitors use.
func TestPebble(t *testing.T) {
	zone := startDNS(t)
	port, use := startDoor(t)
	ca := startPebble(t, zone.addr, port, "pebble.test")
	log := new(logBuffer)
	config := Config{
		Dir: filepath.Join(t.TempDir(), "certs"), Domain: domain, Own: own, SetTXT: zone.set, Account: zone.account,
		ACME: ACME{CA: ca.ca, RootFile: ca.rootFile}, Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		},
	}
	c, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	use(c)
	h := &home{t: t, Certs: c, zone: zone.fakeZone, log: log, config: config}
	h.run()
	defer func() { h.stop() }()
	h.SetHosts([]string{"*.lab.relay.test"})
	all := func(hosts ...string) bool {
		return !slices.ContainsFunc(hosts, func(host string) bool { return h.of(host).State != StateOK })
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("status %+v\nlog:\n%s", c.Status(), log)
		}
	})
	wait(t, "certificates by dns-01", func() bool { return all(own, "*.lab.relay.test") })
	zone.fail(ErrNoDNS)
	h.SetHosts([]string{"*.lab.relay.test", "ha.relay.test"})
	wait(t, "a certificate by tls-alpn-01", func() bool { return all("ha.relay.test") })

	roots := ca.issued(t)
	for _, name := range []string{own, "192-168-1-7." + own, "x.lab.relay.test", "ha.relay.test"} {
		d := tls.Dialer{Config: &tls.Config{ServerName: name, RootCAs: roots}}
		conn, err := d.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		conn.Close()
	}
	h.stop()
	if len(zone.txt) != 0 {
		t.Errorf("left in the zone: %v", zone.txt)
	}
	zone.mu.Lock()
	// An older Pebble does not say how it is called in CAA records.
	if len(zone.caa) > 1 || len(zone.caa) == 1 && !strings.Contains(zone.caa[0], "accounturi=https://localhost") {
		t.Errorf("CAA %q", zone.caa)
	}
	zone.mu.Unlock()
	private(t, config.Dir)
	notTold(t, h)
}
