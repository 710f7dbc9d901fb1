package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"
)

// maxEncoded bounds what the decoders look at: signing requests, certificates
// and keys all stay far below.
const maxEncoded = 64 << 10

// NewCSR makes a PKCS#10 request (DER) that proves possession of key and says
// nothing else: the names in the certificate are the issuer's business.
func NewCSR(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a signing request: %w", err)
	}
	return der, nil
}

// ParseCSR checks a PKCS#10 request (DER, at most 64 KiB) and returns its
// public key. Subject, names and extensions of the request are dropped here,
// so that no caller can trust them.
func ParseCSR(der []byte) (crypto.PublicKey, error) {
	if len(der) > maxEncoded {
		return nil, fmt.Errorf("signing request: %d bytes are too many, at most %d are read", len(der), maxEncoded)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("signing request: %w", err)
	}
	// Before the signature: checking one by an absurdly large key takes long.
	if err := CheckKey(csr.PublicKey); err != nil {
		return nil, fmt.Errorf("signing request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("signing request: whoever made it does not hold the key: %w", err)
	}
	return csr.PublicKey, nil
}
