package mqttbridge

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Version is the version of envelopes that this package makes and takes.
const Version = 1

// MaxBody is the largest Signed.Body, in bytes.
const MaxBody = 4 << 10

// MaxValue is the longest Envelope.Value, in bytes.
const MaxValue = 256

// signaturePurpose comes before the body in what is signed, so that no
// signature that a key makes for anything else fits a command.
const signaturePurpose = "sallyport command v1\x00"

// ErrSignature is wrapped when a signature, or its key, does not fit.
var ErrSignature = errors.New("the signature does not fit")

// ErrMalformed is wrapped by every decoder of this package when the bytes
// cannot be what is allowed, as opposed to a failing connection.
var ErrMalformed = errors.New("malformed")

// An Envelope is one press of a button: who wants what, at which home. Its JSON
// text is what the device's key signs; no one on the way can change it, and the
// home's challenge in it makes it good once and for seconds.
type Envelope struct {
	Version   int       `json:"v"`               // Version; 0 in Sign stands for it
	ID        string    `json:"id"`              // NewID: one for each press, the same for each try to send it
	Home      string    `json:"home"`            // Home.ID
	Action    string    `json:"action"`          // Action.Name
	Value     string    `json:"value,omitempty"` // one of Action.Values, at most MaxValue bytes, no control characters
	Device    string    `json:"device"`          // the name that the key is trusted for at home
	Issued    time.Time `json:"issued"`          // the sender's clock, like NotAfter: for the audit log and the relay. Nothing at home is judged by it
	NotAfter  time.Time `json:"not_after"`
	Challenge string    `json:"challenge"`     // Challenge.Value
	PIN       string    `json:"pin,omitempty"` // SealPIN
}

// Signed is an envelope as it travels.
type Signed struct {
	Body      []byte `json:"body"`      // the JSON text of the Envelope, byte by byte as it was signed
	Key       string `json:"key"`       // KeyID of the signer's key
	Signature []byte `json:"signature"` // r and s, 32 bytes each (IEEE P1363, as WebCrypto makes it): ECDSA with P-256 and SHA-256 over "sallyport command v1\x00" and Body
}

// Check says why an envelope cannot be one; it says nothing about whether it
// may run.
func (e Envelope) Check() error {
	what := ""
	switch {
	case e.Version != Version:
		return fmt.Errorf("envelope of version %d, this is version %d: %w", e.Version, Version, ErrMalformed)
	case CheckID(e.ID) != nil:
		what = "id"
	case !token(e.Home, 52, 52):
		what = "home"
	case !token(e.Action, 1, 64):
		what = "action"
	case len(e.Value) > MaxValue || strings.ContainsRune(e.Value, utf8.RuneError) || strings.ContainsFunc(e.Value, unicode.IsControl):
		what = "value"
	case !token(strings.ReplaceAll(e.Device, ".", "-"), 1, 64):
		what = "device"
	case !writable(e.Issued):
		what = "issued"
	case !writable(e.NotAfter):
		what = "not_after"
	case !token(e.Challenge, 1, 64):
		what = "challenge"
	case e.PIN != "" && !token(e.PIN, sealedLen, sealedLen):
		what = "pin"
	default:
		return nil
	}
	return fmt.Errorf("the envelope has no %s, or one that cannot be: %w", what, ErrMalformed)
}

// writable reports whether a time is set and has a year of four digits.
func writable(t time.Time) bool {
	year := t.UTC().Year()
	return !t.IsZero() && 1 <= year && year <= 9999
}

// Sign checks, encodes and signs an envelope. Times lose what is below a
// millisecond.
func Sign(e Envelope, key *ecdsa.PrivateKey) (Signed, error) {
	if e.Version == 0 {
		e.Version = Version
	}
	body, err := e.encode()
	if err != nil {
		return Signed{}, fmt.Errorf("sign command: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return Signed{}, fmt.Errorf("sign command: %w", err)
	}
	id, err := KeyID(spki)
	if err != nil {
		return Signed{}, fmt.Errorf("sign command: %w", err)
	}
	hash := signedHash(body)
	r, s, err := ecdsa.Sign(rand.Reader, key, hash[:])
	if err != nil {
		return Signed{}, fmt.Errorf("sign command: %w", err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return Signed{Body: body, Key: id, Signature: signature}, nil
}

func signedHash(body []byte) [32]byte {
	return sha256.Sum256(append([]byte(signaturePurpose), body...))
}

// encode writes what JSON.stringify writes for the same object, so that page
// and command line can be held against the same vectors.
func (e Envelope) encode() ([]byte, error) {
	if err := e.Check(); err != nil {
		return nil, err
	}
	const millis = "2006-01-02T15:04:05.000Z"
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(struct {
		Version   int    `json:"v"`
		ID        string `json:"id"`
		Home      string `json:"home"`
		Action    string `json:"action"`
		Value     string `json:"value,omitempty"`
		Device    string `json:"device"`
		Issued    string `json:"issued"`
		NotAfter  string `json:"not_after"`
		Challenge string `json:"challenge"`
		PIN       string `json:"pin,omitempty"`
	}{e.Version, e.ID, e.Home, e.Action, e.Value, e.Device, e.Issued.UTC().Format(millis), e.NotAfter.UTC().Format(millis), e.Challenge, e.PIN})
	if err != nil {
		return nil, err
	}
	body := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if len(body) > MaxBody {
		return nil, fmt.Errorf("an envelope of %d bytes; at most %d are allowed: %w", len(body), MaxBody, ErrMalformed)
	}
	return body, nil
}

// Envelope decodes the body, strictly, and does NOT look at the signature: for
// the relay, which cannot know which keys a home trusts. Errors wrap
// ErrMalformed.
func (s Signed) Envelope() (Envelope, error) {
	if len(s.Signature) != 64 || !token(s.Key, 52, 52) {
		return Envelope{}, fmt.Errorf("the command carries no signature of 64 bytes and key of 52 letters: %w", ErrMalformed)
	}
	return decodeEnvelope(s.Body)
}

// Verify checks the signature with a key (DER SubjectPublicKeyInfo) that the
// caller trusts for the device, and decodes the body strictly. The caller still
// has to compare Envelope.Device with that device. Errors wrap ErrSignature or
// ErrMalformed.
func (s Signed) Verify(spki []byte) (Envelope, error) {
	key, err := parseKey(spki)
	if err != nil {
		return Envelope{}, fmt.Errorf("verify command: %w", err)
	}
	if id, _ := KeyID(spki); s.Key != id {
		return Envelope{}, fmt.Errorf("the command names key %q, not %q: %w", clip(s.Key), id, ErrSignature)
	}
	if len(s.Body) > MaxBody {
		return Envelope{}, fmt.Errorf("a command of %d bytes; at most %d are allowed: %w", len(s.Body), MaxBody, ErrMalformed)
	}
	if len(s.Signature) != 64 {
		return Envelope{}, fmt.Errorf("a signature of %d bytes, not 64: %w", len(s.Signature), ErrSignature)
	}
	hash := signedHash(s.Body)
	if !ecdsa.Verify(key, hash[:], new(big.Int).SetBytes(s.Signature[:32]), new(big.Int).SetBytes(s.Signature[32:])) {
		return Envelope{}, ErrSignature
	}
	return decodeEnvelope(s.Body)
}

// decodeEnvelope is not encoding/json's own way, which takes keys in any case
// and keys twice (the last one wins), and makes U+FFFD of text that is not UTF-8,
// which Check refuses: what two readers can read differently must not run.
func decodeEnvelope(body []byte) (Envelope, error) {
	var e Envelope
	if len(body) > MaxBody {
		return e, fmt.Errorf("an envelope of %d bytes; at most %d are allowed: %w", len(body), MaxBody, ErrMalformed)
	}
	fields := map[string]any{
		"v": &e.Version, "id": &e.ID, "home": &e.Home, "action": &e.Action, "value": &e.Value, "device": &e.Device,
		"issued": &e.Issued, "not_after": &e.NotAfter, "challenge": &e.Challenge, "pin": &e.PIN,
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return e, fmt.Errorf("the envelope is no JSON object: %w", ErrMalformed)
	}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return e, fmt.Errorf("decode envelope: %w: %w", ErrMalformed, err)
		}
		name, _ := t.(string)
		field, ok := fields[name]
		if !ok {
			return e, fmt.Errorf("the envelope holds %q twice, or should not hold it: %w", clip(name), ErrMalformed)
		}
		delete(fields, name)
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return e, fmt.Errorf("decode envelope: %w: %w", ErrMalformed, err)
		}
		if string(raw) == "null" { // encoding/json takes it for anything
			return e, fmt.Errorf("the envelope holds nothing as %q: %w", name, ErrMalformed)
		}
		if err := json.Unmarshal(raw, field); err != nil {
			return e, fmt.Errorf("decode %q of the envelope: %w: %w", name, ErrMalformed, err)
		}
	}
	if _, err := dec.Token(); err != nil { // the closing brace
		return e, fmt.Errorf("the envelope is cut off: %w", ErrMalformed)
	}
	if _, err := dec.Token(); err != io.EOF {
		return e, fmt.Errorf("something follows the envelope: %w", ErrMalformed)
	}
	return e, e.Check()
}
