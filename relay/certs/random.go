package certs

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// randomFile holds key and certificate in one file, so that both change at once.
const randomFile = "decoy.pem"

// RandomCert returns the self-signed certificate that strangers see, made on
// the first call and kept in dir (0600). Its names are those of any machine
// that was set up without thinking; key and serial are random. Nobody relies
// on it, so an expired or broken one is replaced.
func RandomCert(dir string) (tls.Certificate, error) {
	path := filepath.Join(dir, randomFile)
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		cert, err := tls.X509KeyPair(data, data)
		if err == nil && time.Now().Before(cert.Leaf.NotAfter) {
			return cert, nil
		}
	case !errors.Is(err, fs.ErrNotExist):
		return tls.Certificate{}, fmt.Errorf("read decoy certificate: %w", err)
	}
	if data, err = makeRandom(time.Now()); err != nil {
		return tls.Certificate{}, fmt.Errorf("make decoy certificate: %w", err)
	}
	if err := pki.WriteFile(path, data, 0o600); err != nil {
		return tls.Certificate{}, fmt.Errorf("keep decoy certificate: %w", err)
	}
	return tls.X509KeyPair(data, data)
}

// makeRandom returns certificate and key as PEM.
func makeRandom(now time.Time) ([]byte, error) {
	key, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	day := now.UTC().Truncate(24 * time.Hour) // not the minute of the set-up
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "localhost"},
		DNSNames:     []string{"localhost"},
		NotBefore:    day,
		NotAfter:     day.AddDate(10, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	pem, err := pki.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	return append(pki.EncodeCert(cert), pem...), nil
}
