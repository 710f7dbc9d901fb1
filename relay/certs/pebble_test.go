package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/sallyport/sallyport/protocol/pki"
)

// A pebble is an ACME server of its own for one test: Let's Encrypt's small one.
type pebble struct {
	t          *testing.T
	ca         string            // its directory
	root       *x509.Certificate // of the server itself, not of what it issues
	management string
	client     *http.Client
	args       []string
	process    *exec.Cmd
	log        *logBuffer
}

// pebbleConfig is what a test wants of its CA.
type pebbleConfig struct {
	port80, port443 int           // where it looks for challenges
	life            time.Duration // of certificates
	block           []string      // domains that it refuses
	identities      []string      // for CAA
	dns             string
}

func startPebble(t *testing.T, c pebbleConfig) *pebble {
	t.Helper()
	program, err := exec.LookPath("pebble")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("pebble is missing")
		}
		t.Skip("pebble is missing: go install github.com/letsencrypt/pebble/v2/cmd/pebble@latest")
	}
	dir := t.TempDir()
	authority, err := pki.NewAuthority("root", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := authority.Issue(key.Public(), pki.Grant{Profile: pki.Server, Name: "localhost", NotAfter: time.Now().Add(24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "cert.pem"), append(pki.EncodeCert(cert), pki.EncodeCert(authority.Cert())...))
	write(t, filepath.Join(dir, "key.pem"), keyPEM)
	listen, management := freeAddr(t), freeAddr(t)
	life := int64(c.life / time.Second)
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": listen, "managementListenAddress": management,
		"certificate": filepath.Join(dir, "cert.pem"), "privateKey": filepath.Join(dir, "key.pem"),
		"httpPort": c.port80, "tlsPort": c.port443, "domainBlocklist": c.block, "caaIdentities": c.identities,
		"keyAlgorithm": "ecdsa", "certificateValidityPeriod": life, // of versions before profiles
		"profiles": map[string]any{"default": map[string]any{"description": "test", "validityPeriod": life}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "config.json"), config)
	_, port, _ := net.SplitHostPort(listen)
	_, mport, _ := net.SplitHostPort(management)
	p := &pebble{
		t: t, ca: "https://localhost:" + port + "/dir", root: authority.Cert(), management: "https://localhost:" + mport,
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority.Pool()}}},
		args:   []string{program, "-config", filepath.Join(dir, "config.json"), "-strict", "-dnsserver", c.dns},
	}
	t.Cleanup(p.stop)
	p.start()
	return p
}

// start returns when the directory answers. What a pebble knew before it was
// stopped is forgotten: accounts, orders, and its root.
func (p *pebble) start() {
	p.t.Helper()
	p.log = new(logBuffer)
	p.process = exec.Command(p.args[0], p.args[1:]...)
	p.process.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=5")
	p.process.Stdout, p.process.Stderr = p.log, p.log
	if err := p.process.Start(); err != nil {
		p.t.Fatal(err)
	}
	wait(p.t, "pebble", func() bool {
		resp, err := p.client.Get(p.ca)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

func (p *pebble) stop() {
	if p.process == nil {
		return
	}
	_ = p.process.Process.Kill()
	_ = p.process.Wait()
	p.process = nil
	p.client.CloseIdleConnections()
}

// issued is the pool of roots that its certificates verify with.
func (p *pebble) issued() *x509.CertPool {
	p.t.Helper()
	resp, err := p.client.Get(p.management + "/roots/0")
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(data) {
		p.t.Fatalf("pebble's root: %v, %q", err, data)
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

// testDNS sends every name to 127.0.0.1, as this machine and the CA see it.
type testDNS struct {
	addr string

	mu    sync.Mutex // guards below
	addrs map[string][]netip.Addr
	caa   map[string][]CAA
}

func startDNS(t *testing.T) *testDNS {
	t.Helper()
	d := &testDNS{addrs: make(map[string][]netip.Addr), caa: make(map[string][]CAA)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.addr = l.Addr().String()
	pc, err := net.ListenPacket("udp", d.addr)
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

func (d *testDNS) answer(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	name := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))
	head := dns.RR_Header{Name: q.Question[0].Name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET}
	switch q.Question[0].Qtype {
	case dns.TypeA:
		addrs, _ := d.LookupNetIP(context.Background(), "ip", name)
		for _, a := range addrs {
			m.Answer = append(m.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
		}
	case dns.TypeCAA:
		records, _ := d.LookupCAA(context.Background(), name)
		for _, c := range records {
			m.Answer = append(m.Answer, &dns.CAA{Hdr: head, Tag: c.Tag, Value: c.Value})
		}
	}
	if w.LocalAddr().Network() == "udp" {
		m.Truncate(1232)
	}
	_ = w.WriteMsg(m)
}

func (d *testDNS) set(host string, addrs ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addrs[host] = []netip.Addr{}
	for _, a := range addrs {
		d.addrs[host] = append(d.addrs[host], netip.MustParseAddr(a))
	}
}

func (d *testDNS) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if addrs, ok := d.addrs[host]; ok {
		if len(addrs) == 0 {
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
		return addrs, nil
	}
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

func (d *testDNS) LookupCAA(_ context.Context, name string) ([]CAA, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.caa[name], nil
}

// A front stands for the relay's listeners: hosts and challenges on one TLS
// port, challenges before anything else on the plain one.
type front struct {
	port80, port443 int
	acme            atomic.Pointer[ACME]
	deafTLS         atomic.Bool  // does not route acme-tls/1
	deafHTTP        atomic.Bool  // does not ask HTTPChallenge
	byTLS, byHTTP   atomic.Int64 // answers given, to probes too
	missed          atomic.Int64 // handshakes that met a deaf front
	onChallenge     func()       // nil: nothing
	plain           *http.Server // of port80
	secure          net.Listener // of port443
}

func startFront(t *testing.T) *front {
	t.Helper()
	f := new(front)
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.port80, f.port443 = plain.Addr().(*net.TCPAddr).Port, secure.Addr().(*net.TCPAddr).Port
	f.plain = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := f.acme.Load(); a != nil && !f.deafHTTP.Load() && a.HTTPChallenge(w, r) {
			f.byHTTP.Add(1)
			if f.onChallenge != nil {
				f.onChallenge()
			}
			return
		}
		http.Error(w, "elsewhere", http.StatusNotFound)
	})}
	f.secure = tls.NewListener(secure, &tls.Config{GetConfigForClient: f.config, GetCertificate: f.none})
	var serving sync.WaitGroup
	serving.Go(func() { _ = f.plain.Serve(plain) })
	serving.Go(func() {
		for {
			conn, err := f.secure.Accept()
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
	t.Cleanup(func() {
		_ = f.plain.Close()
		_ = f.secure.Close()
		serving.Wait()
	})
	return f
}

func (f *front) none(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return nil, errors.New("no such host")
}

func (f *front) config(h *tls.ClientHelloInfo) (*tls.Config, error) {
	a := f.acme.Load()
	if a == nil {
		return nil, errors.New("nobody is here")
	}
	if slices.Equal(h.SupportedProtos, []string{"acme-tls/1"}) {
		if f.deafTLS.Load() {
			f.missed.Add(1)
			return nil, errors.New("no challenges here")
		}
		return &tls.Config{NextProtos: []string{"acme-tls/1"}, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := a.ChallengeCert(h)
			if err == nil {
				f.byTLS.Add(1)
				if f.onChallenge != nil {
					f.onChallenge()
				}
			}
			return cert, err
		}}, nil
	}
	return &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return a.GetCertificate(h.ServerName) }}, nil
}

// visit is a visitor's handshake and first bytes.
func (f *front) visit(host string, roots *x509.CertPool) (*x509.Certificate, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: &tls.Config{ServerName: host, RootCAs: roots}}
	conn, err := d.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", f.port443))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		return nil, fmt.Errorf("read %q: %w", got, err)
	}
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// A bench is a CA, a relay's front and an ACME client between them.
type bench struct {
	*front
	dns    *testDNS
	ca     *pebble
	config ACMEConfig
	acme   *ACME
	log    *logBuffer
	events chan string // "certificate.issued ha.relay.test"
	stop   func()      // ends Run and waits; the front stays
}

// setUp makes a bench whose ACME does not run yet.
func setUp(t *testing.T, c pebbleConfig, change func(*ACMEConfig)) *bench {
	t.Helper()
	b := &bench{front: startFront(t), dns: startDNS(t), log: new(logBuffer), events: make(chan string, 1000)}
	c.port80, c.port443, c.dns = b.port80, b.port443, b.dns.addr
	if c.life == 0 {
		c.life = 90 * 24 * time.Hour
	}
	b.ca = startPebble(t, c)
	b.config = ACMEConfig{
		Dir: filepath.Join(t.TempDir(), "acme"), CA: b.ca.ca, Roots: []*x509.Certificate{b.ca.root},
		Port80: b.port80, Port443: b.port443, Resolver: b.dns,
		Logger: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Events: func(event string, attrs ...slog.Attr) { b.events <- event + " " + attrs[0].Value.String() },
	}
	if change != nil {
		change(&b.config)
	}
	b.make(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", b.log)
			t.Logf("pebble:\n%s", b.ca.log)
		}
	})
	return b
}

// make makes the ACME of the bench, as after a restart.
func (b *bench) make(t *testing.T) {
	t.Helper()
	var err error
	if b.acme, err = NewACME(b.config); err != nil {
		t.Fatal(err)
	}
	b.acme.retries = []time.Duration{time.Second}
	b.front.acme.Store(b.acme)
}

// run runs it until stop or the end of the test.
func (b *bench) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.acme.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(b.stop)
}

// status of one host.
func (b *bench) status(host string) CertStatus {
	for _, st := range b.acme.Status() {
		if st.Host == host {
			return st
		}
	}
	return CertStatus{}
}

// waitFor waits until a host is in state.
func (b *bench) waitFor(t *testing.T, host, state string) CertStatus {
	t.Helper()
	var st CertStatus
	wait(t, host+" "+state, func() bool { st = b.status(host); return st.State == state })
	return st
}

var three = []string{"ha.relay.test", "nas.relay.test", "xn--bcher-kva.relay.test"}

// orders is how often the CA was asked for a certificate.
func (p *pebble) orders() int { return strings.Count(p.log.String(), "Added order") }

// advise makes pebble want a certificate renewed in a window; false when it is
// too old to know of renewal information.
func (p *pebble) advise(cert *x509.Certificate, from, to time.Time) bool {
	p.t.Helper()
	answer := fmt.Sprintf(`{"suggestedWindow":{"start":%q,"end":%q}}`, from.Format(time.RFC3339), to.Format(time.RFC3339))
	body, err := json.Marshal(map[string]string{"Certificate": string(pki.EncodeCert(cert)), "ARIResponse": answer})
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := p.client.Post(p.management+"/set-renewal-info/", "application/json", bytes.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// next returns the first event of a kind.
func (b *bench) next(t *testing.T, event, host string) {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		select {
		case e := <-b.events:
			if e == event+" "+host {
				return
			}
		case <-limit:
			t.Fatalf("no %s of %s within a minute", event, host)
		}
	}
}
