package mqttbridge

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func ExampleSign() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader) // a device's
	if err != nil {
		fmt.Println(err)
		return
	}
	signed, err := Sign(Envelope{
		ID: NewID(), Home: strings.Repeat("a", 52), Action: "garage", Device: "anna-phone",
		Issued: time.Now(), NotAfter: time.Now().Add(10 * time.Second), Challenge: "from-the-home",
	}, key)
	if err != nil {
		fmt.Println(err)
		return
	}
	spki, _ := x509.MarshalPKIXPublicKey(key.Public()) // what the home trusts
	e, err := signed.Verify(spki)
	fmt.Println(e.Action, e.Device, err)

	signed.Body = bytes.Replace(signed.Body, []byte("garage"), []byte("cellar"), 1)
	_, err = signed.Verify(spki)
	fmt.Println(err)
	// Output:
	// garage anna-phone <nil>
	// the signature does not fit
}

func TestSignVerify(t *testing.T) {
	key, spki := testKey(t, "device"), testSPKI(t, "device")
	e := testEnvelope(t)
	e.Version, e.Value = 0, "50"
	e.Issued = time.Date(2026, 5, 1, 14, 0, 0, 1_999_999, time.FixedZone("", 7200))
	s, err := Sign(e, key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Verify(spki)
	if err != nil {
		t.Fatal(err)
	}
	e.Version, e.Issued = Version, time.Date(2026, 5, 1, 12, 0, 0, 1_000_000, time.UTC)
	if got != e {
		t.Errorf("got %+v, want %+v", got, e)
	}
	if peeked, err := s.Envelope(); err != nil || peeked != e {
		t.Errorf("the relay reads %+v, %v", peeked, err)
	}
	if _, err := Sign(e, mustKey(t, elliptic.P384())); err == nil {
		t.Error("Sign takes a P-384 key")
	}
	e.Action = ""
	if _, err := Sign(e, key); !errors.Is(err, ErrMalformed) {
		t.Errorf("Sign without action: %v", err)
	}
}

func mustKey(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestVerifyRefusesForgeries(t *testing.T) {
	spki, other := testSPKI(t, "device"), testSPKI(t, "other")
	body, err := testEnvelope(t).encode()
	if err != nil {
		t.Fatal(err)
	}
	good := signFixed(t, body, "device")
	otherID, _ := KeyID(other)
	for _, c := range []struct {
		name string
		edit func(s *Signed)
		spki []byte
	}{
		{"another key", func(*Signed) {}, other},
		{"another key under its name", func(s *Signed) { s.Key = otherID }, other},
		{"a name that is not the key's", func(s *Signed) { s.Key = otherID }, spki},
		{"no key", func(s *Signed) { s.Key = "" }, spki},
		{"one byte of the body", func(s *Signed) { s.Body[40] ^= 1 }, spki},
		{"a space behind the body", func(s *Signed) { s.Body = append(s.Body, ' ') }, spki},
		{"one bit of r", func(s *Signed) { s.Signature[3] ^= 1 }, spki},
		{"one bit of s", func(s *Signed) { s.Signature[60] ^= 1 }, spki},
		{"nothing but zeros", func(s *Signed) { s.Signature = make([]byte, 64) }, spki},
		{"r and s swapped", func(s *Signed) { s.Signature = slices.Concat(s.Signature[32:], s.Signature[:32]) }, spki},
		{"no signature", func(s *Signed) { s.Signature = nil }, spki},
		{"a byte too many", func(s *Signed) { s.Signature = append(s.Signature, 0) }, spki},
		{"a byte in front", func(s *Signed) { s.Signature = append([]byte{0}, s.Signature...) }, spki},
		{"an empty body", func(s *Signed) { s.Body = nil }, spki},
	} {
		s := Signed{Body: bytes.Clone(good.Body), Key: good.Key, Signature: bytes.Clone(good.Signature)}
		c.edit(&s)
		if e, err := s.Verify(c.spki); !errors.Is(err, ErrSignature) || e != (Envelope{}) {
			t.Errorf("%s: %+v, %v, want ErrSignature", c.name, e, err)
		}
	}
	// A signature by the right key for another purpose, over the bare body.
	bare := good
	hash := sha256.Sum256(body)
	r, s, err := ecdsa.Sign(rand.Reader, testKey(t, "device"), hash[:])
	if err != nil {
		t.Fatal(err)
	}
	bare.Signature = make([]byte, 64)
	r.FillBytes(bare.Signature[:32])
	s.FillBytes(bare.Signature[32:])
	if _, err := bare.Verify(spki); !errors.Is(err, ErrSignature) {
		t.Errorf("a signature made for something else: %v", err)
	}
	for _, key := range [][]byte{nil, {0x30}, make([]byte, 10_000)} {
		if _, err := good.Verify(key); !errors.Is(err, ErrMalformed) {
			t.Errorf("a key of %d bytes: %v", len(key), err)
		}
	}
}

// TestVerifyIsStrict signs with the right key what two readers could take for
// two things.
func TestVerifyIsStrict(t *testing.T) {
	encoded, err := testEnvelope(t).encode()
	if err != nil {
		t.Fatal(err)
	}
	body := string(encoded)
	put := func(from, to string) string {
		t.Helper()
		if !strings.Contains(body, from) {
			t.Fatalf("no %q in %s", from, body)
		}
		return strings.Replace(body, from, to, 1)
	}
	good := []string{
		body, " \n" + body + "\t", put(`{"v":1`, ` { "v" : 1 `), put(`"garage"`, `"\u0067arage"`),
		put(`"device"`, `"value":"","device"`), put(`"device"`, `"value":"ü","device"`), put("12:03:04.000Z", "14:03:04+02:00"),
	}
	for _, b := range good {
		if _, err := signFixed(t, []byte(b), "device").Verify(testSPKI(t, "device")); err != nil {
			t.Errorf("%s\nis refused: %v", b, err)
		}
	}
	bad := map[string]string{
		"empty":            "",
		"null":             "null",
		"list":             "[" + body + "]",
		"trailing data":    body + body,
		"trailing brace":   body + "}",
		"cut off":          strings.TrimSuffix(body, "}"),
		"unknown field":    put(`"device"`, `"x":1,"device"`),
		"duplicate key":    put(`"action":"garage"`, `"action":"garage","action":"cellar"`),
		"duplicate, equal": put(`"action":"garage"`, `"action":"garage","action":"garage"`),
		"escaped key":      put(`"action":"garage"`, `"action":"garage","\u0061ction":"cellar"`),
		"key in capitals":  put(`"action"`, `"Action"`),
		"both cases":       put(`"action":"garage"`, `"action":"garage","ACTION":"cellar"`),
		"version 2":        put(`"v":1`, `"v":2`),
		"no version":       put(`"v":1,`, ``),
		"version as text":  put(`"v":1`, `"v":"1"`),
		"version 1.5":      put(`"v":1`, `"v":1.5`),
		"null field":       put(`"garage"`, `null`),
		"null value":       put(`"device"`, `"value":null,"device"`),
		"number":           put(`"garage"`, `7`),
		"object":           put(`"garage"`, `{"a":"b"}`),
		"not UTF-8":        put(`garage`, "gar\xffge"),
		"value not UTF-8":  put(`"device"`, "\"value\":\"a\xff\",\"device\""),
		"lone surrogate":   put(`"device"`, `"value":"\ud800","device"`),
		"control in value": put(`"device"`, `"value":"a\u0000b","device"`),
		"long value":       put(`"device"`, `"value":"`+strings.Repeat("v", MaxValue+1)+`","device"`),
		"NUL in device":    put(`anna-phone`, `anna\u0000phone`),
		"no device":        put(`"device":"anna-phone",`, ``),
		"no action":        put(`"garage"`, `""`),
		"action, a path":   put(`garage`, `../garage`),
		"short id":         put(`abcdefghijklmnopqrstuvwxyz`, `abc`),
		"short home":       put(`"home":"`, `"home":"","x":"`),
		"no challenge":     put(`q83vEjRWeJCrze8SNFZ4kA`, ``),
		"long challenge":   put(`q83vEjRWeJCrze8SNFZ4kA`, strings.Repeat("c", 65)),
		"bad time":         put(`2026-05-01T12:03:04.000Z`, `yesterday`),
		"no time":          put(`"issued":"2026-05-01T12:03:04.000Z",`, ``),
		"zero time":        put(`2026-05-01T12:03:04.000Z`, `0001-01-01T00:00:00Z`),
		"short pin":        put(`}`, `,"pin":"AAAA"}`),
		"oversized":        put(`{`, `{`+strings.Repeat(" ", MaxBody)),
	}
	for name, b := range bad {
		s := signFixed(t, []byte(b), "device")
		if e, err := s.Verify(testSPKI(t, "device")); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v, want ErrMalformed", name, e, err)
		}
		if _, err := s.Envelope(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: the relay takes it: %v", name, err)
		}
	}
	s := signFixed(t, encoded, "device")
	s.Signature = s.Signature[1:]
	if _, err := s.Envelope(); !errors.Is(err, ErrMalformed) {
		t.Errorf("a short signature at the relay: %v", err)
	}
}

func TestKeyID(t *testing.T) {
	spki := testSPKI(t, "device")
	if id, err := KeyID(spki); err != nil || id != "lv6k6zczszou2l2m2bi4twna2c3seyi5s4gce3hnafbvxx6am6ua" {
		t.Errorf("%q, %v", id, err)
	}
	// The two kinds of P-256 keys are written alike.
	if same, err := x509.MarshalPKIXPublicKey(testECDH(t, "device").PublicKey()); err != nil || !bytes.Equal(same, spki) {
		t.Errorf("an ECDH key is written otherwise: %v", err)
	}
	ed, _, _ := ed25519.GenerateKey(nil)
	edKey, _ := x509.MarshalPKIXPublicKey(ed)
	p384, _ := x509.MarshalPKIXPublicKey(mustKey(t, elliptic.P384()).Public())
	x25519, _ := ecdh.X25519().GenerateKey(rand.Reader)
	xKey, _ := x509.MarshalPKIXPublicKey(x25519.PublicKey())
	off := bytes.Clone(spki)
	off[len(off)-1] ^= 1
	for name, key := range map[string][]byte{
		"nothing": nil, "Ed25519": edKey, "P-384": p384, "X25519": xKey, "a point off the curve": off,
		"trailing": append(bytes.Clone(spki), 0), "cut": spki[:90], "PEM": []byte("-----BEGIN PUBLIC KEY-----"),
		// encoding/asn1 skips what follows in a sequence: a second name for one key.
		"something more in the sequence": append(append([]byte{0x30, 0x5b}, spki[2:]...), 0x05, 0x00),
		"another length in BER":          append([]byte{0x30, 0x81, 0x59}, spki[2:]...),
	} {
		if id, err := KeyID(key); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %q, %v", name, id, err)
		}
	}
}

func TestIDs(t *testing.T) {
	seen := make(map[string]bool)
	for range 1000 {
		id := NewID()
		if CheckID(id) != nil || len(id) != 26 || seen[id] {
			t.Fatalf("%q", id)
		}
		seen[id] = true
	}
	for _, id := range []string{"", "short", strings.Repeat("a", 15), strings.Repeat("a", 65), "aaaaaaaaaaaaaaa/", "aaaaaaaaaaaaaaaü", "aaaaaaaaaaaaaaaa\x00"} {
		if CheckID(id) == nil {
			t.Errorf("CheckID(%q) takes it", id)
		}
	}
	for _, id := range []string{strings.Repeat("a", 16), strings.Repeat("Z", 64), "0e27f1ab-7a4b-4f5e-8d6c-1f2e3d4c5b6a", "a_b-c_d-e_f-g_h-"} {
		if err := CheckID(id); err != nil {
			t.Error(err)
		}
	}
}

// TestTrustWords: the words change with each of the keys, and with which of
// them is the home's, and there are enough of them.
func TestTrustWords(t *testing.T) {
	home, device, other := testSPKI(t, "home"), testSPKI(t, "device"), testSPKI(t, "other")
	words, err := TrustWords(home, device)
	if err != nil || len(strings.Fields(words)) != 12 {
		t.Fatalf("%q, %v: 12 words are 96 bits, so that two keys chosen to agree take 2^48 tries", words, err)
	}
	for _, pair := range [][2][]byte{{device, home}, {other, device}, {home, other}} {
		again, err := TrustWords(pair[0], pair[1])
		if err != nil || again == words {
			t.Errorf("other keys, the same words %q, %v", again, err)
		}
	}
	if _, err := TrustWords(home, device[1:]); err == nil {
		t.Error("words for what is no key")
	}
}

func FuzzVerify(f *testing.F) {
	spki := testSPKI(f, "device")
	key := testKey(f, "device")
	e := testEnvelope(f)
	body, err := e.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte(`{"v":1,"v":1}`))
	f.Add([]byte(`{"V":1}`))
	f.Add(bytes.Replace(body, []byte(`"device"`), []byte(`"value":"\ud800\u0000","device"`), 1))
	id, _ := KeyID(spki)
	f.Fuzz(func(t *testing.T, body []byte) {
		hash := signedHash(body)
		r, s, err := ecdsa.Sign(rand.Reader, key, hash[:])
		if err != nil {
			t.Fatal(err)
		}
		signed := Signed{Body: body, Key: id, Signature: make([]byte, 64)}
		r.FillBytes(signed.Signature[:32])
		s.FillBytes(signed.Signature[32:])
		e, err := signed.Verify(spki)
		peeked, peekErr := signed.Envelope()
		if (err == nil) != (peekErr == nil) || err == nil && e != peeked {
			t.Fatalf("the home reads %+v, %v and the relay %+v, %v", e, err, peeked, peekErr)
		}
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		// What is read is written to what is read again.
		again, err := e.encode()
		if err != nil {
			t.Fatalf("%+v cannot be written: %v", e, err)
		}
		e.Issued, e.NotAfter = e.Issued.UTC().Truncate(time.Millisecond), e.NotAfter.UTC().Truncate(time.Millisecond)
		if reread, err := decodeEnvelope(again); err != nil || reread != e {
			t.Fatalf("%s\n%+v, %v\nwant %+v", again, reread, err, e)
		}
		// One byte less or more is not signed.
		for _, b := range [][]byte{body[:len(body)-1], append(bytes.Clone(body), ' ')} {
			signed.Body = b
			if _, err := signed.Verify(spki); !errors.Is(err, ErrSignature) {
				t.Fatalf("another body under the signature: %v", err)
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	spki := testSPKI(b, "device")
	s, err := Sign(testEnvelope(b), testKey(b, "device"))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Verify(spki); err != nil {
			b.Fatal(err)
		}
	}
}
