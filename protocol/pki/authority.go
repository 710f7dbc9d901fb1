package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// An Authority is a CA: one P-256 key, one level, ten years. One level,
// because iOS offers only certificates whose direct issuer the server names.
// It is immutable and safe for concurrent use.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	now  func() time.Time
}

const (
	authorityYears = 10
	authoritySlack = 24 * time.Hour // dated back, for clocks that lag
)

// NewAuthority makes a CA that is kept nowhere: for tests, and as the first
// half of LoadOrCreate. Its name goes into the common name together with
// random letters and nothing of the owner ("Sallyport device CA 7f3a91c2"). A
// nil now is time.Now.
func NewAuthority(name string, now func() time.Time) (*Authority, error) {
	if now == nil {
		now = time.Now
	}
	if err := checkAuthorityName(name); err != nil {
		return nil, err
	}
	at := now()
	if err := plausible(at); err != nil {
		return nil, fmt.Errorf("make the %s CA: %w", name, err)
	}
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tag := make([]byte, 4)
	rand.Read(tag)
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Sallyport " + strings.TrimSuffix(name, "-ca") + " CA " + hex.EncodeToString(tag)},
		NotBefore:             at.Add(-authoritySlack).UTC(),
		NotAfter:              at.AddDate(authorityYears, 0, 0).UTC(),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the %s CA: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make the %s CA: %w", name, err)
	}
	return &Authority{cert: cert, key: key, now: now}, nil
}

// checkAuthorityName keeps the name fit for a file and free of owner data by
// accident: it is a word of the code, not of the configuration.
func checkAuthorityName(name string) error {
	if name == "" || len(name) > 32 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz-") != "" {
		return fmt.Errorf("%q is no name for a CA: use lower-case letters", name)
	}
	return nil
}

// Cert returns the CA's certificate. It is shared: do not change it.
func (a *Authority) Cert() *x509.Certificate { return a.cert }

// Pool returns a new pool that holds this CA and nothing else.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Fingerprint returns the SHA-256 of the certificate (DER), which join tokens
// carry.
func (a *Authority) Fingerprint() [32]byte { return sha256.Sum256(a.cert.Raw) }

// checkAuthority says why cert and key are not a CA that can be used at now.
func checkAuthority(cert *x509.Certificate, key crypto.Signer, now time.Time) error {
	if !sameKey(cert.PublicKey, key.Public()) {
		return errors.New("the certificate and the key do not belong together")
	}
	if !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return errors.New("the certificate is not one of a CA")
	}
	if err := CheckKey(cert.PublicKey); err != nil {
		return err
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return fmt.Errorf("the certificate is not signed by its own key: %w", err)
	}
	if now.After(cert.NotAfter) {
		return fmt.Errorf("it expired on %s", cert.NotAfter.Format(time.DateOnly))
	}
	if now.Before(cert.NotBefore) {
		return fmt.Errorf("it is valid from %s on, and this machine's clock says %s: set the clock",
			cert.NotBefore.Format(time.DateOnly), now.UTC().Format(time.DateOnly))
	}
	return nil
}
