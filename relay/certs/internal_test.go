package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

var (
	_ Source = (*Internal)(nil)
	_ Source = (*Files)(nil)
)

// An issuer is a small CA that counts.
type issuer struct {
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	issued atomic.Int64
	err    error
	gate   chan struct{} // nil: open
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().AddDate(10, 0, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{key: key, cert: cert}
}

func (i *issuer) issue(pub crypto.PublicKey, name string, notBefore, notAfter time.Time) (*x509.Certificate, error) {
	i.issued.Add(1)
	if i.gate != nil {
		<-i.gate
	}
	if i.err != nil {
		return nil, i.err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(i.issued.Load()), DNSNames: []string{name}, NotBefore: notBefore, NotAfter: notAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, pub, i.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func anyName(string) bool { return true }

func TestInternalServes(t *testing.T) {
	ca := newIssuer(t)
	s, err := NewInternal(InternalConfig{Issue: ca.issue, Allow: func(name string) bool { return name == "ha.example.org" }})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := s.GetCertificate("ha.example.org")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "ha.example.org"}); err != nil {
		t.Error(err)
	}
	if again, err := s.GetCertificate("ha.example.org"); err != nil || again != cert {
		t.Errorf("asked twice: a different certificate, %v", err)
	}
	if cert, err := s.GetCertificate("made-up.example.org"); err == nil || cert != nil {
		t.Error("a name that nobody vouches for gets a certificate")
	}
	if n := ca.issued.Load(); n != 1 {
		t.Errorf("issued %d times", n)
	}
	for _, c := range []InternalConfig{{Issue: ca.issue}, {Allow: anyName}} {
		if _, err := NewInternal(c); err == nil {
			t.Error("a config without Issue or Allow is accepted")
		}
	}
}

func TestInternalRenews(t *testing.T) {
	ca := newIssuer(t)
	now := time.Now()
	s, err := NewInternal(InternalConfig{Issue: ca.issue, Allow: anyName, Lifetime: 90 * time.Hour, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	get := func() *tls.Certificate {
		t.Helper()
		c, err := s.GetCertificate("ha.example.org")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := get()
	now = now.Add(59 * time.Hour)
	if get() != first {
		t.Error("renewed too early")
	}
	now = now.Add(2 * time.Hour)
	ca.err = errors.New("disk full")
	if get() != first {
		t.Error("a failed renewal takes the old certificate away")
	}
	tried := ca.issued.Load()
	if get(); ca.issued.Load() != tried {
		t.Error("a failed renewal is tried again at once")
	}
	ca.err = nil
	now = now.Add(holdAfter)
	second := get()
	if second == first {
		t.Error("not renewed when a third was left")
	}
	now = now.Add(-30 * 24 * time.Hour) // the clock was wrong
	if get() == second {
		t.Error("a certificate of the future is served")
	}
	now = now.Add(365 * 24 * time.Hour)
	ca.err = errors.New("disk full")
	if c, err := s.GetCertificate("ha.example.org"); err == nil || c != nil {
		t.Error("an expired certificate is served")
	}
}

func TestInternalSharesIssuing(t *testing.T) {
	ca := newIssuer(t)
	synctest.Test(t, func(t *testing.T) {
		ca.gate = make(chan struct{})
		s, err := NewInternal(InternalConfig{Issue: ca.issue, Allow: anyName})
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if _, err := s.GetCertificate("ha.example.org"); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := ca.issued.Load(); n != 1 {
			t.Errorf("issued %d times at once", n)
		}
		close(ca.gate)
		all.Wait()
	})
}

// A panic in Issue must not leave the others waiting.
func TestInternalSurvivesPanic(t *testing.T) {
	ca := newIssuer(t)
	issue := func(crypto.PublicKey, string, time.Time, time.Time) (*x509.Certificate, error) { panic("boom") }
	now := time.Now()
	s, err := NewInternal(InternalConfig{Allow: anyName, Now: func() time.Time { return now }, Issue: func(p crypto.PublicKey, n string, a, b time.Time) (*x509.Certificate, error) {
		return issue(p, n, a, b)
	}})
	if err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() { _ = recover() }()
		_, _ = s.GetCertificate("ha.example.org")
	}()
	if _, err := s.GetCertificate("ha.example.org"); err == nil {
		t.Error("no error after a panic")
	}
	issue, now = ca.issue, now.Add(holdAfter)
	if _, err := s.GetCertificate("ha.example.org"); err != nil {
		t.Error(err)
	}
}

func TestInternalIsBounded(t *testing.T) {
	ca := newIssuer(t)
	s, err := NewInternal(InternalConfig{Issue: ca.issue, Allow: anyName, MaxNames: 3})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		for _, name := range []string{"ha.example.org", fmt.Sprintf("x%d.example.org", i)} {
			if _, err := s.GetCertificate(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(s.byName) != 3 || s.recent.Len() != 3 {
		t.Errorf("%d names kept", len(s.byName))
	}
	if n := ca.issued.Load(); n != 11 {
		t.Errorf("issued %d times: the name in use was dropped", n)
	}
}
