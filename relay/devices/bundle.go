package devices

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"

	"software.sslmate.com/src/go-pkcs12"
)

// PKCS12 packs a key with its certificate and the CA's into a .p12 file. The
// encryption is the old 3DES form, because phones refuse the newer one with
// "wrong password". It is weak, so the password must be a generated one and
// the file must not lie around.
func PKCS12(key crypto.PrivateKey, cert, ca *x509.Certificate, password string) ([]byte, error) {
	return pack(pkcs12.LegacyDES, key, cert, ca, password)
}

// PKCS12Modern is PKCS12 in the form that OpenSSL 3 writes: AES-256, and keys
// from the password by PBKDF2. Recent systems take it, phones of a few years
// ago do not.
func PKCS12Modern(key crypto.PrivateKey, cert, ca *x509.Certificate, password string) ([]byte, error) {
	return pack(pkcs12.Modern2023, key, cert, ca, password)
}

func pack(form *pkcs12.Encoder, key crypto.PrivateKey, cert, ca *x509.Certificate, password string) ([]byte, error) {
	signer, ok := key.(crypto.Signer)
	if !ok || cert == nil {
		return nil, errors.New("make a .p12 file: a private key and its certificate are needed")
	}
	if pub, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(cert.PublicKey) {
		return nil, errors.New("make a .p12 file: the key and the certificate do not belong together")
	}
	if password == "" {
		return nil, errors.New("make a .p12 file: a password is needed, phones refuse files without one")
	}
	var chain []*x509.Certificate
	if ca != nil {
		chain = append(chain, ca)
	}
	data, err := form.Encode(key, cert, chain, password)
	if err != nil {
		return nil, fmt.Errorf("make a .p12 file: %w", err)
	}
	return data, nil
}

// passwordLetters are 32 letters and digits that nobody takes for each other.
const passwordLetters = "abcdefghijkmnpqrstuvwxyz23456789"

// GeneratePassword returns a password of 100 random bits to type once on a
// phone: five groups of four ("h7wq-2mzk-…").
func GeneratePassword() string {
	raw := make([]byte, 20)
	rand.Read(raw) // never fails
	password := make([]byte, 0, 24)
	for i, b := range raw {
		if i > 0 && i%4 == 0 {
			password = append(password, '-')
		}
		password = append(password, passwordLetters[int(b)%len(passwordLetters)])
	}
	return string(password)
}
