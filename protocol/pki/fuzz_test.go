package pki

import (
	"testing"
	"time"
)

func FuzzParseCSR(f *testing.F) {
	key, _ := NewKey()
	der, err := NewCSR(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add(EncodeCSR(der))
	f.Add(der[:len(der)/2])
	f.Add([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		der, err := DecodeCSR(data)
		if err != nil {
			return
		}
		pub, err := ParseCSR(der)
		if err != nil {
			return
		}
		if err := CheckKey(pub); err != nil {
			t.Errorf("ParseCSR let a key through: %v", err)
		}
	})
}

func FuzzPEM(f *testing.F) {
	a, err := NewAuthority("device", func() time.Time { return day(2027) })
	if err != nil {
		f.Fatal(err)
	}
	key, err := EncodeKey(a.key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(key)
	f.Add(EncodeCert(a.cert))
	f.Add(append(EncodeCert(a.cert), key...))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if key, err := DecodeKey(data); err == nil {
			again, err := EncodeKey(key)
			if err != nil {
				t.Fatalf("a key that was read cannot be written: %v", err)
			}
			if key2, err := DecodeKey(again); err != nil || !sameKey(key.Public(), key2.Public()) {
				t.Errorf("a key changed by writing and reading: %v", err)
			}
		}
		if cert, err := DecodeCert(data); err == nil {
			if cert2, err := DecodeCert(EncodeCert(cert)); err != nil || !cert.Equal(cert2) {
				t.Errorf("a certificate changed by writing and reading: %v", err)
			}
		}
	})
}
