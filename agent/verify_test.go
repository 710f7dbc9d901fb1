package agent

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// A certificate of our CA with the tunnel's name is the relay's only if it was
// made for a server: the CA signs the agents' too.
func TestRelayMustBeAServer(t *testing.T) {
	caKey, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	sign := func(c, parent *x509.Certificate) *x509.Certificate {
		c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(1), now.Add(-time.Hour), now.Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, c, parent, caKey.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	template := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca := sign(template, template)
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	a := &Agent{clock: &clock{now: func() time.Time { return now }}, log: slog.New(slog.DiscardHandler)}
	for usage, want := range map[x509.ExtKeyUsage]bool{x509.ExtKeyUsageServerAuth: true, x509.ExtKeyUsageClientAuth: false} {
		leaf := sign(&x509.Certificate{DNSNames: []string{"k3j5.invalid"}, ExtKeyUsage: []x509.ExtKeyUsage{usage}}, ca)
		err := a.verifyRelay(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}, roots, "k3j5.invalid")
		if (err == nil) != want {
			t.Errorf("usage %v: %v", usage, err)
		}
	}
	if a.verifyRelay(tls.ConnectionState{}, roots, "k3j5.invalid") == nil {
		t.Error("no certificate is good enough")
	}
}
