package mqttbridge

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
)

func TestSealPIN(t *testing.T) {
	home := testECDH(t, "home")
	for _, pin := range []string{"0000", "1234", "123456", "999999999999"} {
		e := testEnvelope(t)
		sealed, err := SealPIN(testSPKI(t, "home"), pin, e)
		if err != nil {
			t.Fatal(err)
		}
		e.PIN = sealed
		if got, err := OpenPIN(home, e); err != nil || got != pin {
			t.Errorf("%q, %v, want %q", got, err, pin)
		}
		if err := e.Check(); err != nil {
			t.Error(err)
		}
		if len(sealed) != sealedLen {
			t.Errorf("%d letters for a PIN of %d digits: the length must not show", len(sealed), len(pin))
		}
		again, err := SealPIN(testSPKI(t, "home"), pin, e)
		if err != nil || again == sealed || again[:80] == sealed[:80] {
			t.Errorf("sealed twice it is the same: %v", err)
		}
	}
	for _, pin := range []string{"", "123", "1234567890123", "12a4", "１２３４", "12 4", "1234\x00"} {
		if _, err := SealPIN(testSPKI(t, "home"), pin, testEnvelope(t)); err == nil {
			t.Errorf("PIN %q is taken", pin)
		}
	}
	if _, err := SealPIN([]byte("no key"), "1234", testEnvelope(t)); err == nil {
		t.Error("sealed to what is no key")
	}
}

// TestOpenPINIsBound: a sealed PIN is good at one home, in one press.
func TestOpenPINIsBound(t *testing.T) {
	e := testEnvelope(t)
	var err error
	if e.PIN, err = SealPIN(testSPKI(t, "home"), "1234", e); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*Envelope){
		"id":        func(e *Envelope) { e.ID = strings.Repeat("b", 26) },
		"challenge": func(e *Envelope) { e.Challenge = "another" },
		"device":    func(e *Envelope) { e.Device = "eve" },
		"action":    func(e *Envelope) { e.Action = "cellar" },
		"moved":     func(e *Envelope) { e.Device, e.Action = e.Device[:4], e.Device[4:]+e.Action },
	} {
		other := e
		edit(&other)
		if pin, err := OpenPIN(testECDH(t, "home"), other); !errors.Is(err, ErrMalformed) || pin != "" {
			t.Errorf("another %s: %q, %v", name, pin, err)
		}
	}
	if pin, err := OpenPIN(testECDH(t, "other"), e); !errors.Is(err, ErrMalformed) || pin != "" {
		t.Errorf("at another home: %q, %v", pin, err)
	}
}

func TestOpenPINRefuses(t *testing.T) {
	home := testECDH(t, "home")
	e := testEnvelope(t)
	sealed, err := SealPIN(testSPKI(t, "home"), "1234", e)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := base64.RawURLEncoding.DecodeString(sealed)
	for i := range raw {
		bent := append([]byte(nil), raw...)
		bent[i] ^= 0x10
		e.PIN = base64.RawURLEncoding.EncodeToString(bent)
		if pin, err := OpenPIN(home, e); !errors.Is(err, ErrMalformed) {
			t.Fatalf("byte %d is bent: %q, %v", i, pin, err)
		}
	}
	for _, pin := range []string{"", "AAAA", sealed[1:], sealed + "A", sealed[:len(sealed)-1] + "=", strings.Repeat("+", sealedLen), strings.Repeat("A", sealedLen)} {
		e.PIN = pin
		if _, err := OpenPIN(home, e); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", pin, err)
		}
	}
	// The last letter holds four bits that say nothing: another spelling.
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	end := len(sealed) - 1
	e.PIN = sealed[:end] + string(letters[strings.IndexByte(letters, sealed[end])+1])
	if _, err := OpenPIN(home, e); !errors.Is(err, ErrMalformed) {
		t.Errorf("a second spelling: %v", err)
	}
	// Sealed by one who knows how, with something else inside.
	for _, inside := range []string{"12", "12a4", "1234567890123", "12\x0034", "\x001234"} {
		e.PIN = sealAnything(t, inside, e)
		if pin, err := OpenPIN(home, e); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q inside: %q, %v", inside, pin, err)
		}
	}
	e.PIN = sealAnything(t, "1234", e)
	if pin, err := OpenPIN(home, e); err != nil || pin != "1234" {
		t.Errorf("the test seals otherwise: %q, %v", pin, err)
	}
}

func sealAnything(t testing.TB, inside string, e Envelope) string {
	t.Helper()
	ephemeral, home := testECDH(t, "ephemeral"), testECDH(t, "home").PublicKey()
	aead, err := pinCipher(ephemeral, home, ephemeral.PublicKey(), home)
	if err != nil {
		t.Fatal(err)
	}
	var padded [paddedLen]byte
	copy(padded[:], inside)
	nonce := make([]byte, nonceLen)
	sealed := append(ephemeral.PublicKey().Bytes(), nonce...)
	return sealedEncoding.EncodeToString(aead.Seal(sealed, nonce, padded[:], pinContext(e)))
}

func FuzzOpenPIN(f *testing.F) {
	home := testECDH(f, "home")
	e := testEnvelope(f)
	f.Add(sealAnything(f, "1234", e))
	f.Add(sealAnything(f, "12\x0034", e))
	f.Add(strings.Repeat("A", sealedLen))
	f.Add("")
	f.Fuzz(func(t *testing.T, sealed string) {
		e := e
		e.PIN = sealed
		pin, err := OpenPIN(home, e)
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatal(err)
		}
		if err == nil && (CheckPIN(pin) != nil || e.Check() != nil) {
			t.Fatalf("%q is no PIN", pin)
		}
	})
}
