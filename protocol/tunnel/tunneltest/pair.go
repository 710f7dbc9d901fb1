// Package tunneltest is the conformance suite that every transport passes,
// and what other packages need to test on top of a tunnel: Pair, a session in
// memory, and MemConn, a connection in memory. All of it works in synctest
// bubbles.
package tunneltest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltcp"
)

// Pair returns both ends of a session over tunneltcp in memory, mutually
// authenticated. Both are closed when the test ends.
func Pair(t testing.TB) (dialer, listener tunnel.Session) {
	t.Helper()
	return PairConfig(t, tunneltcp.Config{})
}

// PairConfig is Pair with a configuration for both ends.
func PairConfig(t testing.TB, cfg tunneltcp.Config) (dialer, listener tunnel.Session) {
	t.Helper()
	FreshTimers()
	serverTLS, clientTLS := TLS(t)
	near, far := MemConn()
	type result struct {
		s   tunnel.Session
		err error
	}
	served := make(chan result, 1)
	go func() {
		s, err := tunneltcp.Server(context.Background(), far, serverTLS, cfg)
		served <- result{s, err}
	}()
	d := &tunneltcp.Dialer{TLS: clientTLS, Config: cfg, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return near, nil
	}}
	dialer, err := d.Dial(context.Background(), netip.MustParseAddrPort("192.0.2.2:443"))
	if err != nil {
		t.Fatal(err)
	}
	r := <-served
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() {
		dialer.Close(protocol.CodeOK, "")
		r.s.Close(protocol.CodeOK, "")
	})
	return dialer, r.s
}

// Bubble is synctest.Test for tests that use tunneltcp. See FreshTimers.
func Bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	FreshTimers()
	synctest.Test(t, f)
	FreshTimers()
}

// FreshTimers empties sync.Pools. yamux keeps timers in a pool of the whole
// process, and one that was made inside a synctest bubble must not be used
// outside of it. Call it at both ends of a bubble in which tunneltcp runs
// (Bubble and Pair do).
func FreshTimers() {
	runtime.GC() // moves what is pooled aside
	runtime.GC() // drops it
}

// ServerName is the name in the certificate of TLS.
const ServerName = "tunnel.test"

// TLS returns the configurations of two ends that trust each other and show
// certificates of one new CA. They hold in every clock, also in that of a
// synctest bubble.
func TLS(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	caKey := newKey(t)
	ca := newCert(t, &x509.Certificate{
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, caKey, nil, caKey)
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	leaf := func(use x509.ExtKeyUsage) tls.Certificate {
		return newCert(t, &x509.Certificate{
			DNSNames: []string{ServerName}, ExtKeyUsage: []x509.ExtKeyUsage{use},
		}, newKey(t), ca.Leaf, caKey)
	}
	server = &tls.Config{
		Certificates: []tls.Certificate{leaf(x509.ExtKeyUsageServerAuth)},
		ClientCAs:    pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}
	client = &tls.Config{
		Certificates: []tls.Certificate{leaf(x509.ExtKeyUsageClientAuth)},
		RootCAs:      pool, ServerName: ServerName,
	}
	return server, client
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCert(t testing.TB, template *x509.Certificate, key *ecdsa.PrivateKey, parent *x509.Certificate, signer *ecdsa.PrivateKey) tls.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: "tunnel test"}
	template.NotBefore = time.Unix(0, 0)
	template.NotAfter = time.Date(2999, 1, 1, 0, 0, 0, 0, time.UTC)
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}
}
