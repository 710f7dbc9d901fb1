package scep

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

var today = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

func authority(t *testing.T, now *time.Time) *pki.Authority {
	t.Helper()
	ca, err := pki.NewAuthority("device", func() time.Time { return *now })
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestLoadRA(t *testing.T) {
	now := today
	clock := func() time.Time { return now }
	ca := authority(t, &now)
	dir := filepath.Join(t.TempDir(), "scep")
	cert, key, err := LoadRA(dir, ca, clock)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.CheckSignatureFrom(ca.Cert()); err != nil || !key.PublicKey.Equal(cert.PublicKey) {
		t.Errorf("the certificate is not of the CA or not of the key: %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, "scep.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode: %v, %v", info.Mode(), err)
	}
	// It can pose as no device and as no server.
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}); err == nil {
			t.Errorf("it is good for usage %v", usage)
		}
	}
	again, sameKey, err := LoadRA(dir, ca, clock)
	if err != nil || !again.Equal(cert) || !sameKey.Equal(key) {
		t.Errorf("the second start made another: %v", err)
	}
}

// TestRARenewal: renewed when half its life is over, with the same key, so that
// devices that fetched the old certificate are still understood.
func TestRARenewal(t *testing.T) {
	now := today
	clock := func() time.Time { return now }
	ca := authority(t, &now)
	dir := t.TempDir()
	first, key, err := LoadRA(dir, ca, clock)
	if err != nil {
		t.Fatal(err)
	}
	half := first.NotAfter.Sub(first.NotBefore) / 2
	now = first.NotBefore.Add(half - time.Minute)
	if same, _, err := LoadRA(dir, ca, clock); err != nil || !same.Equal(first) {
		t.Errorf("renewed too early: %v", err)
	}
	now = first.NotBefore.Add(half + time.Minute)
	second, sameKey, err := LoadRA(dir, ca, clock)
	if err != nil || second.Equal(first) || !sameKey.Equal(key) {
		t.Fatalf("not renewed: %v", err)
	}
	if again, _, err := LoadRA(dir, ca, clock); err != nil || !again.Equal(second) {
		t.Errorf("the new one was not kept: %v", err)
	}
}

// TestRADamage: whatever is wrong, a start mends it, and a key that may be
// known to others is not used again.
func TestRADamage(t *testing.T) {
	now := today
	clock := func() time.Time { return now }
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecPEM, err := pki.EncodeKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		damage  func(t *testing.T, crt, key string)
		newCA   bool
		keepKey bool
	}{
		"no certificate":     {damage: func(_ *testing.T, crt, _ string) { os.Remove(crt) }, keepKey: true},
		"broken certificate": {damage: func(_ *testing.T, crt, _ string) { os.WriteFile(crt, []byte("x"), 0o644) }, keepKey: true},
		"another CA":         {newCA: true, keepKey: true},
		"no key":             {damage: func(_ *testing.T, _, key string) { os.Remove(key) }},
		"broken key":         {damage: func(_ *testing.T, _, key string) { os.WriteFile(key, []byte("x"), 0o600) }},
		"EC key":             {damage: func(_ *testing.T, _, key string) { os.WriteFile(key, ecPEM, 0o600) }},
		"readable key":       {damage: func(_ *testing.T, _, key string) { os.Chmod(key, 0o644) }},
	} {
		t.Run(name, func(t *testing.T) {
			ca := authority(t, &now)
			dir := t.TempDir()
			_, before, err := LoadRA(dir, ca, clock)
			if err != nil {
				t.Fatal(err)
			}
			if test.damage != nil {
				test.damage(t, filepath.Join(dir, "scep.crt"), filepath.Join(dir, "scep.key"))
			}
			if test.newCA {
				ca = authority(t, &now)
			}
			cert, key, err := LoadRA(dir, ca, clock)
			if err != nil {
				t.Fatal(err)
			}
			if key.Equal(before) != test.keepKey {
				t.Errorf("the key is the same: %v, want %v", key.Equal(before), test.keepKey)
			}
			if cert.CheckSignatureFrom(ca.Cert()) != nil || !key.PublicKey.Equal(cert.PublicKey) {
				t.Error("key, certificate and CA do not fit")
			}
			if info, err := os.Stat(filepath.Join(dir, "scep.key")); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("the key's mode: %v, %v", info.Mode(), err)
			}
		})
	}
}

func TestRANeedsAPlace(t *testing.T) {
	now := today
	ca := authority(t, &now)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadRA(file, ca, nil); err == nil {
		t.Error("a file was taken for a directory")
	}
}
