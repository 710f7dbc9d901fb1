package devices

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/store"
)

func list(t testing.TB, d *Devices, now time.Time) *x509.RevocationList {
	t.Helper()
	der, err := d.CRL(now)
	if err != nil {
		t.Fatal(err)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.CheckSignatureFrom(d.cfg.CA.Cert()); err != nil {
		t.Fatal(err)
	}
	return l
}

// listed fails unless a list holds exactly the given certificates.
func listed(t testing.TB, l *x509.RevocationList, certs ...*x509.Certificate) {
	t.Helper()
	if len(l.RevokedCertificateEntries) != len(certs) {
		t.Errorf("%d certificates are listed, want %d", len(l.RevokedCertificateEntries), len(certs))
	}
	for i, cert := range certs {
		found := false
		for _, e := range l.RevokedCertificateEntries {
			found = found || e.SerialNumber.Cmp(cert.SerialNumber) == 0
		}
		if !found {
			t.Errorf("certificate %d is not listed", i)
		}
	}
}

func TestCRL(t *testing.T) {
	c := newClock()
	cfg := configAt(t, c)
	d := open(t, cfg)
	ctx := t.Context()
	_, first := add(t, d, "anna-phone")
	_, second := renew(t, d, first)
	add(t, d, "ben-phone")
	addToken(t, d, TokenGrant{Name: "tv", Host: "photos"})
	if _, err := d.Revoke(ctx, "tv"); err != nil {
		t.Fatal(err)
	}
	empty := list(t, d, c.time())
	listed(t, empty)
	if !empty.ThisUpdate.Equal(today) || !empty.NextUpdate.Equal(today.Add(listLife)) {
		t.Errorf("from %v to %v", empty.ThisUpdate, empty.NextUpdate)
	}
	last := empty.Number
	rises := func(l *x509.RevocationList) {
		t.Helper()
		if l.Number.Cmp(last) <= 0 {
			t.Errorf("number %v after %v", l.Number, last)
		}
		last = l.Number
	}
	same := func(l *x509.RevocationList) {
		t.Helper()
		if l.Number.Cmp(last) != 0 {
			t.Errorf("a new list, number %v after %v", l.Number, last)
		}
	}
	c.skip(listEvery - time.Second)
	same(list(t, d, c.time()))
	add(t, d, "carl-phone") // concerns no list
	same(list(t, d, c.time()))
	if _, err := d.Revoke(ctx, "anna-phone"); err != nil {
		t.Fatal(err)
	}
	l := list(t, d, c.time())
	rises(l)
	listed(t, l, first, second)
	if e := l.RevokedCertificateEntries[0]; !e.RevocationTime.Equal(c.time()) {
		t.Errorf("revoked at %v, want %v", e.RevocationTime, c.time())
	}
	c.skip(listEvery)
	l = list(t, d, c.time())
	rises(l)
	listed(t, l, first, second)

	restarted := open(t, cfg)
	l = list(t, restarted, c.time())
	rises(l)
	listed(t, l, first, second)
	rises(list(t, d, c.time().Add(2*listEvery))) // and two relays on one store

	// Long after its end a certificate needs no revocation any more.
	c.set(first.NotAfter.Add(listedAfter - time.Minute))
	listed(t, list(t, d, c.time()), first, second)
	c.skip(2 * time.Minute)
	listed(t, list(t, open(t, cfg), c.time()))
}

// TestCRLNumberSurvivesABackup: also when the store forgot the last number, or
// the clock went back.
func TestCRLNumberSurvivesABackup(t *testing.T) {
	c := newClock()
	cfg := configAt(t, c)
	l1 := list(t, open(t, cfg), c.time())
	c.skip(time.Minute)
	if err := cfg.Store.Delete(t.Context(), crlKey, 0); err != nil {
		t.Fatal(err)
	}
	l2 := list(t, open(t, cfg), c.time())
	c.skip(-time.Hour)
	l3 := list(t, open(t, cfg), c.time())
	l4 := list(t, open(t, cfg), c.time())
	for i, pair := range [][2]*big.Int{{l1.Number, l2.Number}, {l2.Number, l3.Number}, {l3.Number, l4.Number}} {
		if pair[0].Cmp(pair[1]) >= 0 {
			t.Errorf("step %d: number %v after %v", i, pair[1], pair[0])
		}
	}
}

// unwritable is a store that reads and does not write lists' numbers.
type unwritable struct{ store.KV }

func (s unwritable) Create(ctx context.Context, key string, v []byte) (uint64, error) {
	if key == crlKey {
		return 0, errDisk
	}
	return s.KV.Create(ctx, key, v)
}

func TestCRLRefuses(t *testing.T) {
	cfg := config(t)
	healthy := cfg.Store
	cfg.Store = unwritable{healthy}
	if _, err := open(t, cfg).CRL(today); !errors.Is(err, errDisk) {
		t.Errorf("a list whose number a restart would forget: %v", err)
	}
	cfg.Store = healthy
	if _, err := open(t, cfg).CRL(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)); err == nil {
		t.Error("a list of the year 2000")
	}
	if err := cfg.Store.Delete(t.Context(), crlKey, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.Store.Create(t.Context(), crlKey, []byte("seven")); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, cfg).CRL(today); err == nil {
		t.Error("a damaged number was passed over")
	}
}

// TestCRLUnderLoad: many that ask at once get one list, and it is one number.
func TestCRLUnderLoad(t *testing.T) {
	d := open(t, config(t))
	var wg sync.WaitGroup
	lists := make([][]byte, 50)
	for i := range lists {
		wg.Go(func() { lists[i], _ = d.CRL(today) })
	}
	wg.Wait()
	for _, l := range lists {
		if l == nil || !bytes.Equal(l, lists[0]) {
			t.Fatal("two lists for one state")
		}
	}
}

// TestCRLForOpenSSL: the reader for whom the list is made believes it.
func TestCRLForOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("openssl is not installed")
		}
		t.Skip("openssl is not installed")
	}
	ca := must(pki.NewAuthority("device", nil)) // by the real clock: openssl goes by it
	var ago time.Duration
	now := func() time.Time { return time.Now().Add(-ago) }
	cfg := Config{Store: config(t).Store, CA: ca, Domain: "example.org", CRLURL: "http://enroll.example.org/crl", Now: now}
	ago = time.Hour // for guests whose time is over
	d := open(t, cfg)
	_, over := addGuest(t, d, "over", now().Add(time.Minute))
	_, again := addGuest(t, d, "again", now().Add(time.Minute))
	ago = 0
	setEnd(t, d, "again", now().Add(time.Hour).Truncate(time.Second))
	_, bad := add(t, d, "bad")
	_, good := add(t, d, "good")
	if len(good.CRLDistributionPoints) != 1 || good.CRLDistributionPoints[0] != cfg.CRLURL {
		t.Errorf("the certificate names the lists %v", good.CRLDistributionPoints)
	}
	_, next := renew(t, d, good)
	if len(next.CRLDistributionPoints) != 1 {
		t.Error("the renewed certificate names no list")
	}
	if _, err := d.Revoke(t.Context(), "bad"); err != nil {
		t.Fatal(err)
	}
	der, err := d.CRL(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	caFile := write("ca.pem", pki.EncodeCert(ca.Cert()))
	crl, err := exec.Command(openssl, "crl", "-inform", "DER", "-in", write("list.crl", der), "-outform", "PEM", "-verify", "-CAfile", caFile).Output()
	if err != nil {
		t.Fatalf("openssl crl: %v", err)
	}
	crlFile := write("list.pem", crl)
	for cert, want := range map[*x509.Certificate]bool{bad: false, good: true, over: false, again: true} {
		out, err := exec.Command(openssl, "verify", "-purpose", "sslclient", "-crl_check", "-CAfile", caFile, "-CRLfile", crlFile, write("leaf.pem", pki.EncodeCert(cert))).CombinedOutput()
		if (err == nil) != want || !want && !bytes.Contains(out, []byte("revoked")) {
			t.Errorf("openssl verify: %v, want good %v\n%s", err, want, out)
		}
	}
	text, err := exec.Command(openssl, "crl", "-in", crlFile, "-noout", "-text").Output()
	if err != nil || bytes.Count(text, []byte("Certificate Hold")) != 1 {
		t.Errorf("openssl crl: %v\n%s", err, text)
	}
}
