package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
)

// successorContext begins what a CA signs about its successor; the SHA-256 of
// the old CA's certificate and the new one's DER follow. See listContext.
const successorContext = "sallyport device CA successor 1\n"

// SignSuccessor says that next takes this CA's place. Homes that have pinned
// this one take the other without asking a person.
func (a *Authority) SignSuccessor(next *x509.Certificate) ([]byte, error) {
	err := checkSuccessor(a.cert, next)
	if err != nil {
		return nil, fmt.Errorf("sign a successor of the CA: %w", err)
	}
	sig, err := a.sign(successorContext, successor(a.cert, next)...)
	if err != nil {
		return nil, fmt.Errorf("sign a successor of the CA: %w", err)
	}
	return sig, nil
}

// VerifySuccessor returns nil when old has signed that next takes its place.
// Dates do not matter: a CA may name its successor until the end, and a home
// may hear of it later.
func VerifySuccessor(old, next *x509.Certificate, sig []byte) error {
	err := checkSuccessor(old, next)
	if err == nil {
		err = verify(old, sig, successorContext, successor(old, next)...)
	}
	if err != nil {
		return fmt.Errorf("successor of the CA: %w", err)
	}
	return nil
}

func successor(old, next *x509.Certificate) [][]byte {
	sum := sha256.Sum256(old.Raw)
	return [][]byte{sum[:], next.Raw}
}

func checkSuccessor(old, next *x509.Certificate) error {
	switch {
	case old == nil || next == nil:
		return errors.New("there is no certificate")
	case old.Equal(next):
		return errors.New("a CA does not follow itself")
	}
	return checkCA(next)
}

// ParseCA reads the certificate (DER) of a CA that may be pinned: one level, a
// good key, signed by itself. Its dates are not judged.
func ParseCA(der []byte) (*x509.Certificate, error) {
	if len(der) > maxEncoded {
		return nil, fmt.Errorf("certificate of a CA: %d bytes are too many, at most %d are read", len(der), maxEncoded)
	}
	cert, err := x509.ParseCertificate(der)
	if err == nil {
		err = checkCA(cert)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate of a CA: %w", err)
	}
	return cert, nil
}

func checkCA(cert *x509.Certificate) error {
	if !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return errors.New("the certificate is not one of a CA")
	}
	// Before the signature: checking one by an absurdly large key takes long.
	if err := CheckKey(cert.PublicKey); err != nil {
		return err
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return fmt.Errorf("the certificate is not signed by its own key: %w", err)
	}
	return nil
}

// sign signs what belongs to one context, and to no other.
func (a *Authority) sign(context string, parts ...[]byte) ([]byte, error) {
	sum := sha256.Sum256(message(context, parts))
	return a.key.Sign(rand.Reader, sum[:], crypto.SHA256)
}

var errSignature = errors.New("it is not signed by this CA")

func verify(ca *x509.Certificate, sig []byte, context string, parts ...[]byte) error {
	if ca == nil {
		return errSignature
	}
	algo := x509.UnknownSignatureAlgorithm
	switch ca.PublicKey.(type) {
	case *ecdsa.PublicKey:
		algo = x509.ECDSAWithSHA256
	case *rsa.PublicKey:
		algo = x509.SHA256WithRSA
	}
	if err := ca.CheckSignature(algo, message(context, parts), sig); err != nil {
		return errSignature
	}
	return nil
}

func message(context string, parts [][]byte) []byte {
	return append([]byte(context), bytes.Join(parts, nil)...)
}
