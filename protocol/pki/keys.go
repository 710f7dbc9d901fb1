package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
)

// NewKey makes a P-256 key.
func NewKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a P-256 key: %w", err)
	}
	return key, nil
}

// Sizes of RSA keys that are accepted. The upper bound keeps one request from
// costing seconds of arithmetic.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// CheckKey says why a public key must not be certified: anything but P-256,
// P-384 and RSA of 2048 to 8192 bits with a usual exponent. It returns nil for
// a good one.
func CheckKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k == nil || k.Curve == nil {
			return errors.New("the ECDSA key is empty")
		}
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return fmt.Errorf("curve %s is not accepted: use P-256 or P-384", k.Curve.Params().Name)
		}
		if _, err := k.ECDH(); err != nil {
			return fmt.Errorf("the ECDSA key is not a point of its curve: %w", err)
		}
		return nil
	case *rsa.PublicKey:
		if k == nil || k.N == nil {
			return errors.New("the RSA key is empty")
		}
		bits := k.N.BitLen()
		if bits < minRSABits {
			return fmt.Errorf("an RSA key of %d bits is too weak: use P-256, or RSA of at least %d bits", bits, minRSABits)
		}
		if bits > maxRSABits {
			return fmt.Errorf("an RSA key of %d bits is too large: use P-256, or RSA of at most %d bits", bits, maxRSABits)
		}
		if k.E < 65537 || k.E&1 == 0 || k.N.Bit(0) == 0 {
			return errors.New("the RSA key has an unusual modulus or exponent: use exponent 65537")
		}
		return nil
	default:
		return fmt.Errorf("a key of type %T is not accepted: use P-256, P-384 or RSA", pub)
	}
}

// sameKey reports whether two public keys are equal. Unknown types never are.
func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
