package door

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// authority is a CA made for a test.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, template, parent *x509.Certificate, pub any, key any) *x509.Certificate {
	t.Helper()
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newAuthority(t testing.TB, name string) *authority {
	key := newKey(t)
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		// also a client, so that "CA shown as leaf" fails for the right reason
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	return &authority{t: t, cert: sign(t, template, template, &key.PublicKey, key), key: key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) self() *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key, Leaf: a.cert}
}

// device issues a client certificate; edit may spoil it.
func (a *authority) device(name string, edit func(*x509.Certificate)) *tls.Certificate {
	key := newKey(a.t)
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if edit != nil {
		edit(template)
	}
	cert := sign(a.t, template, a.cert, &key.PublicKey, a.key)
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func (a *authority) server(hosts ...string) *tls.Certificate {
	key := newKey(a.t)
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: hosts[0]}, DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert := sign(a.t, template, a.cert, &key.PublicKey, a.key)
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// world is a door on loopback TCP with a device CA and a home.
type world struct {
	t        testing.TB
	door     *Door
	addr     string
	devices  *authority
	public   *authority // signs server certificates
	phone    *tls.Certificate
	listener net.Listener

	mu     sync.Mutex
	sites  map[string]*Site // by pattern
	denied map[string]string
	tokens map[string]Device // by host and secret; denied holds by ID
	until  time.Time         // of every certificate's device
	admin  bool              // likewise
	home   int               // requests that reached any home
}

// tv is a device of tv.test that holds a secret.
const tv = "TVTVTVTVTVTVTVTVTVTVTVTVTV"

// token gives a device a secret for a host.
func (w *world) token(host, secret string, dev Device) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tokens[host+" "+secret] = dev
}

func (w *world) checkToken(host, secret string, _ time.Time) (Device, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	dev, ok := w.tokens[host+" "+secret]
	if !ok {
		return Device{}, DeniedUnknown
	}
	return dev, w.denied[dev.ID]
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *world) reached() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.home
}

func (w *world) setSite(pattern string, s *Site) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s == nil {
		delete(w.sites, pattern)
		return
	}
	w.sites[pattern] = s
}

// deny makes Check refuse a device from now on.
func (w *world) deny(cert *tls.Certificate, denial string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.denied[deviceID(cert.Leaf)] = denial
}

func deviceID(c *x509.Certificate) string { return hex.EncodeToString(c.SerialNumber.Bytes()) }

func (w *world) lookup(name string) (*Site, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for pattern, s := range w.sites {
		if names.Match(pattern, name) {
			return s, true
		}
	}
	return nil, false
}

func (w *world) check(leaf *x509.Certificate, host string, now time.Time) (Device, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := deviceID(leaf)
	return Device{ID: id, Name: leaf.Subject.CommonName, Until: w.until, Admin: w.admin}, w.denied[id]
}

// newWorld starts a door; edit may change its configuration.
func newWorld(t testing.TB, edit func(*Config)) *world {
	w := &world{
		t: t, devices: newAuthority(t, "devices"), public: newAuthority(t, "public"),
		sites: map[string]*Site{}, denied: map[string]string{}, tokens: map[string]Device{},
	}
	w.phone = w.devices.device("phone", nil)
	cfg := Config{
		Lookup: w.lookup, ClientCAs: w.devices.pool(), Check: w.check, CheckToken: w.checkToken,
		HandshakeTimeout: 5 * time.Second, Linger: 10 * time.Millisecond,
	}
	if edit != nil {
		edit(&cfg)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.door = d
	if w.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	w.addr = w.listener.Addr().String()
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := w.listener.Accept()
			if err != nil {
				return
			}
			accepting.Go(func() { d.ServeConn(context.Background(), c) })
		}
	})
	t.Cleanup(func() {
		w.listener.Close()
		d.Close()
		accepting.Wait()
	})
	return w
}

// site adds a site with a certificate for its name and returns it.
func (w *world) site(pattern string, mode Mode, h http.Handler) *Site {
	certs := w.public.server(pattern)
	s := &Site{
		Host: pattern, Policy: pattern, Mode: mode, Handler: h,
		Certificate: func(string) (*tls.Certificate, error) { return certs, nil },
	}
	w.setSite(pattern, s)
	return s
}

func (w *world) rawSite(pattern string, mode Mode, raw func(context.Context, tunnel.Conn, Visitor)) *Site {
	s := w.site(pattern, mode, nil)
	s.Raw = raw
	return s
}

// proxyTo starts a home and returns a proxy to it.
func (w *world) proxyTo(h http.Handler, edit func(*Backend)) *Proxy {
	home := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.home++
		w.mu.Unlock()
		h.ServeHTTP(rw, r)
	}))
	home.Config.Protocols = new(http.Protocols)
	home.Config.Protocols.SetHTTP1(true)
	home.Config.Protocols.SetUnencryptedHTTP2(true)
	home.Start()
	w.t.Cleanup(func() {
		w.door.Close()
		home.Close()
	})
	return w.proxyAddr(home.Listener.Addr().String(), edit)
}

func (w *world) proxyAddr(addr string, edit func(*Backend)) *Proxy {
	b := Backend{Dial: func(ctx context.Context, _ Visitor) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}}
	if edit != nil {
		edit(&b)
	}
	p := NewProxy(b, nil)
	w.t.Cleanup(func() { p.Close() })
	return p
}

// clientTLS is a visitor's TLS configuration; cert may be nil.
func (w *world) clientTLS(sni string, cert *tls.Certificate, protos ...string) *tls.Config {
	c := &tls.Config{RootCAs: w.public.pool(), ServerName: sni, NextProtos: protos}
	if cert != nil {
		// also when the server's hints do not fit
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return c
}

// dial makes a TLS connection and proves that the server accepted it: in TLS
// 1.3 the client is done before its certificate was judged.
func (w *world) dial(c *tls.Config) (*tls.Conn, error) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", w.addr, c)
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn, nil
}

// client is an http.Client with connections of its own.
func (w *world) client(sni string, cert *tls.Certificate, h2 bool) *http.Client {
	protos := new(http.Protocols)
	protos.SetHTTP1(!h2)
	protos.SetHTTP2(h2)
	alpn := "http/1.1"
	if h2 {
		alpn = "h2"
	}
	tr := &http.Transport{
		Protocols: protos, DisableCompression: true,
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			raw, err := d.DialContext(ctx, "tcp", w.addr)
			if err != nil {
				return nil, err
			}
			conn := tls.Client(raw, w.clientTLS(sni, cert, alpn))
			if err := conn.HandshakeContext(ctx); err != nil {
				raw.Close()
				return nil, err
			}
			return conn, nil
		},
	}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{
		Transport: tr, Timeout: 10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// get asks for a URL on a fresh connection.
func (w *world) get(sni, url string, cert *tls.Certificate, h2 bool) (int, string, error) {
	res, err := w.client(sni, cert, h2).Get(url)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

// raw sends bytes over HTTP/1.1 TLS and returns everything that comes back
// until the connection ends.
func (w *world) raw(sni string, cert *tls.Certificate, request string) string {
	w.t.Helper()
	conn, err := w.dial(w.clientTLS(sni, cert, "http/1.1"))
	if err != nil {
		return "error: " + err.Error()
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(3 * time.Second))
	io.WriteString(conn, request)
	b, _ := io.ReadAll(conn)
	return string(b)
}

// statusOf reads the status code of a raw answer; 0 when there is none.
func statusOf(answer string) (code int) {
	line, _, _ := strings.Cut(answer, "\r\n")
	fmt.Sscanf(strings.Replace(line, "HTTP/1.0", "HTTP/1.1", 1), "HTTP/1.1 %d", &code)
	return code
}

// ended waits until a read of a connection fails and says how long that took.
func ended(t testing.TB, r io.Reader, since time.Time) time.Duration {
	t.Helper()
	type deadliner interface{ SetReadDeadline(time.Time) error }
	if d, ok := r.(deadliner); ok {
		d.SetReadDeadline(time.Now().Add(5 * time.Second))
	}
	read := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, bufio.NewReader(r))
		read <- err
	}()
	var err error
	select {
	case err = <-read:
	case <-time.After(6 * time.Second): // a body has no deadline
		t.Fatal("still open after 6 s")
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatal("still open after 5 s")
	}
	return time.Since(since)
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Path", r.RequestURI)
	io.WriteString(w, "home")
})

var loopback = netip.MustParseAddr("127.0.0.1")
