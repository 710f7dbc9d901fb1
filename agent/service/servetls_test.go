package service

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol"
)

// homeCert makes a certificate as home devices have them; a nil parent means
// self-signed.
func homeCert(t *testing.T, parent *tls.Certificate, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "device"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if change != nil {
		change(template)
	}
	issuer, signer := template, any(key)
	if parent != nil {
		issuer, signer = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func isCA(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.IPAddresses = true, true, x509.KeyUsageCertSign, nil
}

func named(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = []string{name}, nil }
}
func nameless(c *x509.Certificate) { c.IPAddresses = nil }
func expired(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
}

// httpsHome starts a backend with this certificate; the entry's target is set.
func httpsHome(t *testing.T, cert tls.Certificate, h2 bool, e Entry) *home {
	t.Helper()
	server := httptest.NewUnstartedServer(helloHandler)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	server.EnableHTTP2 = h2
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	t.Cleanup(server.Close)
	e.Name, e.Target = "x", "https://"+server.Listener.Addr().String()
	return newHome(t, e)
}

func TestServeHTTPS(t *testing.T) {
	ca, foreign := homeCert(t, nil, isCA), homeCert(t, nil, isCA)
	good, other, late := homeCert(t, &ca, nil), homeCert(t, &ca, named("nas.home")), homeCert(t, &ca, expired)
	self, poor := homeCert(t, nil, nil), homeCert(t, nil, func(c *x509.Certificate) { nameless(c); expired(c) })
	file := func(c tls.Certificate) string { return writePEM(t, "CERTIFICATE", c.Certificate[0]) }

	for _, tc := range []struct {
		name  string
		cert  tls.Certificate
		entry Entry
		fix   string // what the log advises; empty: it works
	}{
		{"CA pinned", good, Entry{CAFile: file(ca)}, ""},
		{"server name", other, Entry{CAFile: file(ca), ServerName: "nas.home"}, ""},
		{"self-signed pinned", self, Entry{CAFile: file(self)}, ""},
		{"nameless and expired, pinned", poor, Entry{CAFile: file(poor)}, ""},
		{"insecure", poor, Entry{InsecureSkipVerify: true}, ""},
		{"not verified", self, Entry{}, "ca (--ca)"},
		{"another CA", good, Entry{CAFile: file(foreign)}, "is not from a CA in"},
		{"another name", other, Entry{CAFile: file(ca)}, "the certificate is for nas.home"},
		{"expired", late, Entry{CAFile: file(ca)}, "clock"},
		{"another self-signed", poor, Entry{CAFile: file(self)}, "ca (--ca)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := httpsHome(t, tc.cert, false, tc.entry)
			if tc.fix == "" {
				for range 2 { // the second handshake resumes
					if got := h.mustGet(t, false); got != "hello over HTTP/1.1" {
						t.Errorf("got %q", got)
					}
				}
				return
			}
			s, r, done := h.open(t, t.Context(), visitorOpen)
			if r.Code != protocol.CodeBackendTLS || r.Reason == "" || strings.ContainsAny(r.Reason, "./:") {
				t.Fatalf("result %+v", r)
			}
			<-done
			if b, _ := io.ReadAll(s); len(b) > 0 {
				t.Errorf("bytes from a backend that was not verified: %q", b)
			}
			if !strings.Contains(h.logged(), tc.fix) || !strings.Contains(h.logged(), h.current.Load().backends["x"].target.String()) {
				t.Errorf("the log does not help:\n%s", h.logged())
			}
		})
	}
}

func TestServeHTTPSWithClientCertificate(t *testing.T) {
	self, client := homeCert(t, nil, nil), homeCert(t, nil, nil)
	key, err := x509.MarshalPKCS8PrivateKey(client.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	h := httpsHome(t, self, false, Entry{
		CAFile:     writePEM(t, "CERTIFICATE", self.Certificate[0]),
		ClientCert: writePEM(t, "CERTIFICATE", client.Certificate[0]), ClientKey: writePEM(t, "PRIVATE KEY", key),
	})
	if got := h.mustGet(t, false); got != "hello over HTTP/1.1 client certificate" {
		t.Errorf("got %q", got)
	}
}

func TestServeHTTPSWithHTTP2(t *testing.T) {
	self := homeCert(t, nil, nil)
	pinned := Entry{CAFile: writePEM(t, "CERTIFICATE", self.Certificate[0]), HTTP2: true}
	if got := httpsHome(t, self, true, pinned).mustGet(t, true); got != "hello over HTTP/2.0" {
		t.Errorf("got %q", got)
	}
	// One that has no HTTP/2 is told apart from one that is down.
	h := httpsHome(t, self, false, pinned)
	if _, r, _ := h.open(t, t.Context(), visitorOpen); r.Code != protocol.CodeBackendTLS {
		t.Errorf("result %+v", r)
	}
}

func TestServeHTTPSToPlainBackend(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	addr := server.Listener.Addr().String()
	h := newHome(t, Entry{Name: "x", Target: "https://" + addr})
	_, r, done := h.open(t, t.Context(), visitorOpen)
	if r.Code != protocol.CodeBackendTLS {
		t.Fatalf("result %+v", r)
	}
	<-done
	if !strings.Contains(h.logged(), "write the target as http://"+addr) {
		t.Errorf("log:\n%s", h.logged())
	}
}

// With tls backend an https target gets the visitor's TLS, not ours around it.
func TestServePassthrough(t *testing.T) {
	self := homeCert(t, nil, named("x.example.org"))
	server := httptest.NewUnstartedServer(helloHandler)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{self}}
	server.StartTLS()
	defer server.Close()
	h := newHome(t, Entry{Name: "x", Target: "https://" + server.Listener.Addr().String(), TLS: protocol.TLSBackend})
	s, r, _ := h.open(t, t.Context(), visitorOpen)
	if r.Code != protocol.CodeOK {
		t.Fatal(r)
	}
	roots := x509.NewCertPool()
	roots.AddCert(self.Leaf)
	visitor := tls.Client(s, &tls.Config{ServerName: "x.example.org", RootCAs: roots})
	if err := visitor.HandshakeContext(t.Context()); err != nil {
		t.Error(err)
	}
	visitor.Close()
}

func writePEM(t *testing.T, kind string, blocks ...[]byte) string {
	t.Helper()
	var b bytes.Buffer
	for _, der := range blocks {
		pem.Encode(&b, &pem.Block{Type: kind, Bytes: der})
	}
	file := filepath.Join(t.TempDir(), "file.pem")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
