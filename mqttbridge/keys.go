package mqttbridge

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"fmt"

	"github.com/sallyport/sallyport/protocol/words"
)

// trustPurpose comes before the keys in what TrustWords hashes.
const trustPurpose = "sallyport trust v1\x00"

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewID returns 128 random bits as 26 letters and digits.
func NewID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return idEncoding.EncodeToString(b[:])
}

// CheckID says why a text is no id of a command: it has 16 to 64 letters,
// digits, "-" and "_".
func CheckID(id string) error {
	if !token(id, 16, 64) {
		return fmt.Errorf("%q is no id of a command: it has 16 to 64 letters, digits, \"-\" and \"_\"", clip(id))
	}
	return nil
}

// token reports whether s has least to most of A-Z, a-z, 0-9, "-" and "_".
func token(s string, least, most int) bool {
	if len(s) < least || len(s) > most {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// clip keeps what a stranger sent short enough for an error.
func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

// KeyID returns the name of a P-256 public key: the SHA-256 of its DER
// SubjectPublicKeyInfo in lower-case base32, 52 letters. It fails for other
// kinds of keys and for a key that is not written in DER's one way, so that one
// key has one name.
func KeyID(spki []byte) (string, error) {
	if _, err := parseKey(spki); err != nil {
		return "", err
	}
	sum := sha256.Sum256(spki)
	return idEncoding.EncodeToString(sum[:]), nil
}

// maxKey is longer than the 91 bytes of a P-256 key and shorter than what costs
// anything to parse.
const maxKey = 256

func parseKey(spki []byte) (*ecdsa.PublicKey, error) {
	if len(spki) > maxKey {
		return nil, fmt.Errorf("a key of %d bytes is no P-256 key: %w", len(spki), ErrMalformed)
	}
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("parse key: %w: %w", ErrMalformed, err)
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("the key is no P-256 key: %w", ErrMalformed)
	}
	if again, err := x509.MarshalPKIXPublicKey(key); err != nil || !bytes.Equal(again, spki) {
		return nil, fmt.Errorf("the key is not written in DER's one way: %w", ErrMalformed)
	}
	return key, nil
}

// TrustWords returns the words that both screens show before a home trusts a
// device's key. They stand for both keys (DER SubjectPublicKeyInfo): a relay
// that passes on another key of the device, or of the home, is seen. There are
// twelve, 96 bits, since a relay in between may choose both of the keys that it
// shows: it looks for any two that agree, which takes the root of the work.
func TrustWords(homeKey, deviceKey []byte) (string, error) {
	text := []byte(trustPurpose)
	for _, spki := range [][]byte{homeKey, deviceKey} {
		if _, err := parseKey(spki); err != nil {
			return "", fmt.Errorf("spell keys: %w", err)
		}
		sum := sha256.Sum256(spki)
		text = append(text, sum[:]...)
	}
	sum := sha256.Sum256(text)
	return words.Of(sum[:words.Count]) + " " + words.Of(sum[words.Count:]), nil
}
