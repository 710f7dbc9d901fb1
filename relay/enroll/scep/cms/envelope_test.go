package cms

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"strings"
	"testing"

	"github.com/smallstep/pkcs7"
)

func TestSealIsOpenedElsewhere(t *testing.T) {
	cert := certOf(t, rsaKey())
	keyFile, certFile := files(t, rsaKey(), cert)
	to, err := FromX509(cert)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []Cipher{AES128, AES192, AES256, TripleDES} {
		for _, size := range []int{0, 1, 15, 16, 17, 5000} {
			plain := make([]byte, size)
			rand.Read(plain)
			sealed, err := Seal(plain, to, c)
			if err != nil {
				t.Fatal(err)
			}
			env, err := ParseEnvelope(sealed)
			if err != nil || env.Cipher != c {
				t.Fatalf("%v: %v", env, err)
			}
			if got, err := env.Open(rsaKey()); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%v, %d bytes: our own: %v", c, size, err)
			}
			if size != 17 {
				continue
			}
			out := openssl(t, sealed, "cms", "-decrypt", "-inform", "DER", "-recip", certFile, "-inkey", keyFile)
			if !bytes.Equal(out, plain) {
				t.Errorf("%v: openssl read something else", c)
			}
		}
	}
	if _, err := Seal(content, Certificate{Key: ecKey().Public()}, AES128); !errors.Is(err, ErrAlgorithm) {
		t.Errorf("sealed to an EC key: %v", err)
	}
	if _, err := Seal(content, to, 0); !errors.Is(err, ErrAlgorithm) {
		t.Errorf("sealed by no cipher: %v", err)
	}
}

func TestOpenReadsOthers(t *testing.T) {
	cert := certOf(t, rsaKey())
	_, certFile := files(t, rsaKey(), cert)
	for name, want := range map[string]Cipher{"-aes128": AES128, "-aes192": AES192, "-aes256": AES256, "-des3": TripleDES} {
		for _, form := range []string{"-binary", "-stream"} {
			sealed := openssl(t, content, "cms", "-encrypt", "-binary", form, name, "-outform", "DER", certFile)
			env, err := ParseEnvelope(sealed)
			if err != nil || env.Cipher != want {
				t.Errorf("%s %s: %v %v", name, form, env, err)
				continue
			}
			if got, err := env.Open(rsaKey()); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s %s: %q, %v", name, form, got, err)
			}
		}
	}
	for name, extra := range map[string][]string{
		"AES-GCM": {"-aes-128-gcm", certFile},
		"OAEP":    {"-aes128", "-recip", certFile, "-keyopt", "rsa_padding_mode:oaep"},
	} {
		sealed := openssl(t, content, append([]string{"cms", "-encrypt", "-binary", "-outform", "DER"}, extra...)...)
		if _, err := ParseEnvelope(sealed); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	two := openssl(t, content, "cms", "-encrypt", "-binary", "-aes128", "-outform", "DER", certFile, certFile)
	if _, err := ParseEnvelope(two); err == nil || !strings.Contains(err.Error(), "one RSA key") {
		t.Errorf("two recipients: %v", err)
	}
	single, err := pkcs7.Encrypt(content, []*x509.Certificate{cert}) // by default single DES
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseEnvelope(single); !errors.Is(err, ErrAlgorithm) {
		t.Errorf("single DES: %v", err)
	}
}

// TestOpenHasOneError: content that is wrong in any way is ErrOpen and nothing
// else, or the random key happens to leave good padding, which tells nothing.
func TestOpenHasOneError(t *testing.T) {
	to, err := FromX509(certOf(t, rsaKey()))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := Seal(content, to, AES128)
	if err != nil {
		t.Fatal(err)
	}
	good, err := ParseEnvelope(sealed)
	if err != nil {
		t.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	failures := 0
	for name, edit := range map[string]func(e *Envelope) *rsa.PrivateKey{
		"short key":       func(e *Envelope) *rsa.PrivateKey { e.key = e.key[1:]; return rsaKey() },
		"huge key":        func(e *Envelope) *rsa.PrivateKey { e.key = bytes.Repeat([]byte{255}, 256); return rsaKey() },
		"changed key":     func(e *Envelope) *rsa.PrivateKey { e.key[100] ^= 1; return rsaKey() },
		"another key":     func(*Envelope) *rsa.PrivateKey { return other },
		"another cipher":  func(e *Envelope) *rsa.PrivateKey { e.Cipher = AES256; return rsaKey() },
		"short IV":        func(e *Envelope) *rsa.PrivateKey { e.iv = e.iv[:8]; return rsaKey() },
		"no content":      func(e *Envelope) *rsa.PrivateKey { e.content = nil; return rsaKey() },
		"half a block":    func(e *Envelope) *rsa.PrivateKey { e.content = e.content[:24]; return rsaKey() },
		"changed padding": func(e *Envelope) *rsa.PrivateKey { e.content[len(e.content)-17] ^= 1; return rsaKey() },
	} {
		e := &Envelope{Cipher: good.Cipher, key: bytes.Clone(good.key), iv: bytes.Clone(good.iv), content: bytes.Clone(good.content)}
		key := edit(e)
		got, err := e.Open(key)
		if err != nil && err != ErrOpen {
			t.Errorf("%s: %v", name, err)
		}
		if bytes.Equal(got, content) {
			t.Errorf("%s: opened", name)
		}
		if err != nil {
			failures++
		}
	}
	if failures < 5 { // each lets one in 256 through by chance at most
		t.Errorf("only %d failed", failures)
	}
}

// TestPadding compares with the plain way of saying it.
func TestPadding(t *testing.T) {
	for _, size := range []int{8, 16} {
		for n := range 256 {
			for spoil := -1; spoil < size; spoil++ {
				block := bytes.Repeat([]byte{byte(n)}, size)
				for i := range max(0, size-n) {
					block[i] = 0xee
				}
				if spoil >= 0 {
					block[spoil] ^= 0x40
				}
				last := int(block[size-1])
				want := last >= 1 && last <= size && bytes.Equal(block[max(0, size-last):], bytes.Repeat([]byte{byte(last)}, min(last, size)))
				got, ok := padding(block, size)
				if (ok == 1) != want || want && got != last {
					t.Fatalf("block %x: %d, %d", block, got, ok)
				}
			}
		}
	}
}
