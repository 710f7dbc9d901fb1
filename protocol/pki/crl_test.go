package pki

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"testing"
	"time"
)

func TestRevocationList(t *testing.T) {
	now := day(2027)
	a, other := newAuthority(t, now), newAuthority(t, now)
	entries := []x509.RevocationListEntry{
		{SerialNumber: big.NewInt(7), RevocationTime: now.Add(-time.Hour)},
		{SerialNumber: new(big.Int).Lsh(big.NewInt(1), 127), RevocationTime: now},
	}
	der, err := a.RevocationList(entries, big.NewInt(41), now, now.AddDate(0, 0, 7))
	if err != nil {
		t.Fatal(err)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.CheckSignatureFrom(a.Cert()); err != nil {
		t.Error(err)
	}
	if l.CheckSignatureFrom(other.Cert()) == nil {
		t.Error("another CA's signature fits")
	}
	if l.Number.Int64() != 41 || !l.ThisUpdate.Equal(now) || !l.NextUpdate.Equal(now.AddDate(0, 0, 7)) || len(l.RevokedCertificateEntries) != 2 {
		t.Errorf("list %v from %v to %v with %d entries", l.Number, l.ThisUpdate, l.NextUpdate, len(l.RevokedCertificateEntries))
	}
	for i, e := range l.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(entries[i].SerialNumber) != 0 || !e.RevocationTime.Equal(entries[i].RevocationTime) {
			t.Errorf("entry %d is %v at %v", i, e.SerialNumber, e.RevocationTime)
		}
	}
	if _, err := a.RevocationList(nil, big.NewInt(1), now, now.Add(time.Hour)); err != nil {
		t.Errorf("an empty list: %v", err)
	}
}

func TestRevocationListRefuses(t *testing.T) {
	now := day(2027)
	a := newAuthority(t, now)
	one := big.NewInt(1)
	for name, c := range map[string]struct {
		number   *big.Int
		from, to time.Time
		entries  int
	}{
		"no number":         {nil, now, now.Add(time.Hour), 0},
		"number zero":       {big.NewInt(0), now, now.Add(time.Hour), 0},
		"negative number":   {big.NewInt(-1), now, now.Add(time.Hour), 0},
		"number too long":   {new(big.Int).Lsh(one, 159), now, now.Add(time.Hour), 0},
		"over at once":      {one, now, now, 0},
		"backwards":         {one, now, now.Add(-time.Hour), 0},
		"before the CA":     {one, now.AddDate(-1, 0, 0), now, 0},
		"after the CA":      {one, now.AddDate(11, 0, 0), now.AddDate(12, 0, 0), 0},
		"a clock never set": {one, time.Unix(0, 0), now, 0},
		"too many":          {one, now, now.Add(time.Hour), maxRevoked + 1},
	} {
		if _, err := a.RevocationList(make([]x509.RevocationListEntry, c.entries), c.number, c.from, c.to); err == nil {
			t.Errorf("%s: a list was signed", name)
		}
	}
}

// TestRegistrar: it verifies for no server and no client, and says nothing of
// the owner.
func TestRegistrar(t *testing.T) {
	now := day(2027)
	a := newAuthority(t, now)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Issue(key.Public(), Grant{Profile: Registrar})
	if err != nil {
		t.Fatal(err)
	}
	verify := func(usage x509.ExtKeyUsage) error {
		_, err := cert.Verify(x509.VerifyOptions{Roots: a.Pool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
		return err
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageCodeSigning, x509.ExtKeyUsageOCSPSigning} {
		if verify(usage) == nil {
			t.Errorf("it verifies for usage %d", usage)
		}
	}
	if err := verify(x509.ExtKeyUsageAny); err != nil {
		t.Errorf("it does not verify at all: %v", err)
	}
	if cert.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment || cert.IsCA || !cert.BasicConstraintsValid {
		t.Errorf("usage %b, CA %v", cert.KeyUsage, cert.IsCA)
	}
	if cert.Subject.String() != "CN="+registrarName || len(cert.DNSNames) != 0 {
		t.Errorf("it is called %v %v", cert.Subject, cert.DNSNames)
	}
}

func TestCRLURL(t *testing.T) {
	a := newAuthority(t, day(2027))
	for _, url := range []string{"", "http://enroll.example.org/crl", "https://enroll.example.org:8443/ca/device.crl"} {
		cert, err := a.Issue(newPublic(t), Grant{Profile: Device, Name: "x", CRLURL: url})
		if err != nil {
			t.Fatal(err)
		}
		points := cert.CRLDistributionPoints
		if url == "" && len(points) != 0 || url != "" && (len(points) != 1 || points[0] != url) {
			t.Errorf("for %q the certificate names %q", url, points)
		}
	}
}
