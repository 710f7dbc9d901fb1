package scep

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

const (
	raBits = 2048 // what every client of SCEP can encrypt to

	// raYears is the life of the go-between's certificate. It is renewed when
	// half of it is over, at a start of the relay: one that runs for longer
	// than the other half without a restart misses more than this.
	raYears = 5
)

// LoadRA opens the go-between that lives in dir (made when missing, 0700) as
// scep.key (0600) and scep.crt, makes what is missing, and renews the
// certificate in time. Nothing is bound to its key but messages under way, so a
// key that is broken, or that others can read, is replaced by a new one. A nil
// now is time.Now.
func LoadRA(dir string, ca *pki.Authority, now func() time.Time) (*x509.Certificate, *rsa.PrivateKey, error) {
	if now == nil {
		now = time.Now
	}
	if err := pki.SecureDir(dir); err != nil {
		return nil, nil, err
	}
	key, err := loadRAKey(filepath.Join(dir, "scep.key"))
	if err != nil {
		return nil, nil, fmt.Errorf("open the key of SCEP: %w", err)
	}
	path := filepath.Join(dir, "scep.crt")
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("open the certificate of SCEP: %w", err)
	}
	if cert, err := pki.DecodeCert(data); err == nil && fresh(cert, key, ca.Cert(), now()) {
		return cert, key, nil
	}
	cert, err := ca.Issue(key.Public(), pki.Grant{Profile: pki.Registrar, NotAfter: now().AddDate(raYears, 0, 0)})
	if err != nil {
		return nil, nil, fmt.Errorf("make the certificate of SCEP: %w", err)
	}
	if err := pki.WriteFile(path, pki.EncodeCert(cert), 0o644); err != nil {
		return nil, nil, fmt.Errorf("keep the certificate of SCEP: %w", err)
	}
	return cert, key, nil
}

// fresh reports whether a certificate serves for the next while.
func fresh(cert *x509.Certificate, key *rsa.PrivateKey, ca *x509.Certificate, now time.Time) bool {
	half := cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2)
	return cert.CheckSignatureFrom(ca) == nil && key.PublicKey.Equal(cert.PublicKey) &&
		cert.KeyUsage&x509.KeyUsageKeyEncipherment != 0 &&
		!now.Before(cert.NotBefore) && now.Before(half)
}

func loadRAKey(path string) (*rsa.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil && private(path) {
		if signer, err := pki.DecodeKey(data); err == nil {
			if key, ok := signer.(*rsa.PrivateKey); ok && pki.CheckKey(key.Public()) == nil {
				return key, nil
			}
		}
	}
	key, err := rsa.GenerateKey(rand.Reader, raBits)
	if err != nil {
		return nil, err
	}
	if data, err = pki.EncodeKey(key); err != nil {
		return nil, err
	}
	return key, pki.WriteFile(path, data, 0o600)
}

// private reports whether only the owner can read a file.
func private(path string) bool {
	info, err := os.Stat(path)
	return err == nil && (runtime.GOOS == "windows" || info.Mode().Perm()&0o077 == 0)
}
