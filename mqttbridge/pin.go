package mqttbridge

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
)

// A sealed PIN is, in base64url without padding:
//
//	point       65 bytes  an ephemeral P-256 key, uncompressed
//	nonce       12 bytes
//	ciphertext  32 bytes  AES-256-GCM of the PIN, NULs behind it up to 16 bytes so
//	                      that its length does not show, and the tag of 16 bytes
//
// The AES key is HKDF-SHA256 of the shared secret (X coordinate, 32 bytes) with
// the ephemeral and then the home's point as salt and "sallyport pin v1" as
// info. The additional data is ID NUL Challenge NUL Device NUL Action of the
// envelope: a sealed PIN is good in this press alone.
const (
	pinInfo    = "sallyport pin v1"
	pointLen   = 65
	nonceLen   = 12
	paddedLen  = 16
	rawSealed  = pointLen + nonceLen + paddedLen + 16
	sealedLen  = (rawSealed*8 + 5) / 6
	minPINLen  = 4
	maxPINLen  = 12
	paddingNUL = "\x00"
)

var sealedEncoding = base64.RawURLEncoding.Strict()

// CheckPIN says why a text is no PIN: it has 4 to 12 digits.
func CheckPIN(pin string) error {
	if len(pin) < minPINLen || len(pin) > maxPINLen {
		return errors.New("a PIN has 4 to 12 digits")
	}
	for i := range len(pin) {
		if pin[i] < '0' || pin[i] > '9' {
			return errors.New("a PIN has 4 to 12 digits")
		}
	}
	return nil
}

// SealPIN encrypts a PIN to a home's command key (DER SubjectPublicKeyInfo), for
// Envelope.PIN. ID, Challenge, Device and Action of e are bound to it and must
// be set.
func SealPIN(homeKey []byte, pin string, e Envelope) (string, error) {
	ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return "", fmt.Errorf("seal PIN: %w", err)
	}
	nonce := make([]byte, nonceLen)
	rand.Read(nonce) // never fails
	return sealPIN(homeKey, pin, e, ephemeral, nonce)
}

func sealPIN(homeKey []byte, pin string, e Envelope, ephemeral *ecdh.PrivateKey, nonce []byte) (string, error) {
	if err := CheckPIN(pin); err != nil {
		return "", err
	}
	parsed, err := parseKey(homeKey)
	if err != nil {
		return "", fmt.Errorf("seal PIN: %w", err)
	}
	home, err := parsed.ECDH()
	if err != nil {
		return "", fmt.Errorf("seal PIN: %w", err)
	}
	aead, err := pinCipher(ephemeral, home, ephemeral.PublicKey(), home)
	if err != nil {
		return "", fmt.Errorf("seal PIN: %w", err)
	}
	var padded [paddedLen]byte
	copy(padded[:], pin)
	sealed := append(ephemeral.PublicKey().Bytes(), nonce...)
	sealed = aead.Seal(sealed, nonce, padded[:], pinContext(e))
	return sealedEncoding.EncodeToString(sealed), nil
}

// OpenPIN decrypts e.PIN with the home's command key. Every error means that it
// was not sealed for this envelope and this home, which is no wrong PIN: nobody
// can try PINs so. Errors wrap ErrMalformed.
func OpenPIN(key *ecdh.PrivateKey, e Envelope) (string, error) {
	if len(e.PIN) != sealedLen {
		return "", fmt.Errorf("a sealed PIN of %d letters, not %d: %w", len(e.PIN), sealedLen, ErrMalformed)
	}
	raw, err := sealedEncoding.DecodeString(e.PIN)
	if err != nil || len(raw) != rawSealed {
		return "", fmt.Errorf("the sealed PIN is no base64url: %w", ErrMalformed)
	}
	ephemeral, err := ecdh.P256().NewPublicKey(raw[:pointLen])
	if err != nil {
		return "", fmt.Errorf("open PIN: %w: %w", ErrMalformed, err)
	}
	aead, err := pinCipher(key, ephemeral, ephemeral, key.PublicKey())
	if err != nil {
		return "", fmt.Errorf("open PIN: %w: %w", ErrMalformed, err)
	}
	padded, err := aead.Open(nil, raw[pointLen:pointLen+nonceLen], raw[pointLen+nonceLen:], pinContext(e))
	if err != nil {
		return "", fmt.Errorf("the PIN was not sealed for this command and this home: %w", ErrMalformed)
	}
	pin := string(bytes.TrimRight(padded, paddingNUL))
	if err := CheckPIN(pin); err != nil {
		return "", fmt.Errorf("open PIN: %w: %w", ErrMalformed, err)
	}
	return pin, nil
}

// pinCipher agrees on the key. The two points come in the order of the sender's
// and the home's on both sides.
func pinCipher(own *ecdh.PrivateKey, other, ephemeral, home *ecdh.PublicKey) (cipher.AEAD, error) {
	secret, err := own.ECDH(other)
	if err != nil {
		return nil, err
	}
	key, err := pinKey(secret, ephemeral, home)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func pinKey(secret []byte, ephemeral, home *ecdh.PublicKey) ([]byte, error) {
	return hkdf.Key(sha256.New, secret, append(ephemeral.Bytes(), home.Bytes()...), pinInfo, 32)
}

func pinContext(e Envelope) []byte {
	return []byte(e.ID + "\x00" + e.Challenge + "\x00" + e.Device + "\x00" + e.Action)
}
