package cms

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

func TestNormalize(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{ // want "": refused
		{"DER", "3003020101", "3003020101"},
		{"indefinite", "30800201010000", "3003020101"},
		{"indefinite in indefinite", "3080308002010100000000", "30053003020101"},
		{"empty indefinite", "30800000", "3000"},
		{"long length of a short thing", "308103020101", "3003020101"},
		{"octets in pieces", "240804020102040203" + "04", "040401020304"},
		{"octets in pieces of pieces", "2408240404020102" + "0400", "04020102"},
		{"octets in pieces, indefinite", "2480040201020402030400" + "00", "040401020304"},
		{"no pieces", "2400", "0400"},
		{"implicit octets stay", "a080040101040102" + "0000", "a006040101040102"},
		{"a foreign piece", "2403020101", ""},
		{"empty", "", ""},
		{"one byte", "30", ""},
		{"cut", "300302", ""},
		{"cut mark", "3080020101", ""},
		{"half a mark", "308002010100", ""},
		{"indefinite primitive", "0480010000", ""},
		{"more behind", "300000", ""},
		{"mark alone", "0000", ""},
		{"tag of more bytes", "3f810100", ""},
		{"length of five bytes", "30850000000000", ""},
		{"length cut", "3082ff", ""},
		{"length too large", "3084ffffffff", ""},
		{"length far too large", "3084ffffffff00", ""},
		{"child longer than its parent", "30030205010101", ""},
	} {
		in, err := hex.DecodeString(test.in)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		got, err := normalize(in)
		if test.want == "" {
			if err == nil {
				t.Errorf("%s: accepted as %x", test.name, got)
			}
			continue
		}
		if err != nil || hex.EncodeToString(got) != test.want {
			t.Errorf("%s: %x, %v, want %s", test.name, got, err, test.want)
		}
	}
}

func TestLengths(t *testing.T) {
	for _, size := range []int{0, 1, 127, 128, 255, 256, 65535, 65536} {
		element := append(appendHeader(nil, tagOctets, size), make([]byte, size)...)
		got, err := normalize(element)
		if err != nil || !bytes.Equal(got, element) || len(contentOf(got)) != size {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// TestDepth: nesting costs memory and, with each level copied into the one
// above, time. Both are bounded.
func TestDepth(t *testing.T) {
	nested := func(n int) []byte {
		return append(bytes.Repeat([]byte{0x30, 0x80}, n), make([]byte, 2*n)...)
	}
	if _, err := normalize(nested(maxDepth)); err != nil {
		t.Errorf("%d levels: %v", maxDepth, err)
	}
	_, err := normalize(nested(MaxBytes / 4))
	if err == nil || !strings.Contains(err.Error(), "levels") {
		t.Errorf("%d levels: %v", MaxBytes/4, err)
	}
	if _, err := Verify(nested(MaxBytes / 4)); err == nil {
		t.Error("verified")
	}
	if _, err := Verify(make([]byte, MaxBytes+1)); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("a message that is too long: %v", err)
	}
}

func FuzzNormalize(f *testing.F) {
	f.Add([]byte{0x30, 0x80, 2, 1, 1, 0, 0})
	f.Add([]byte{0x24, 8, 4, 2, 1, 2, 4, 2, 3, 4})
	f.Add(signedBy(f, ecKey()))
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := normalize(in)
		if err != nil {
			return
		}
		if len(out) > len(in) { // a mark of two bytes becomes at most two of length
			t.Errorf("%x became longer: %x", in, out)
		}
		again, err := normalize(out)
		if err != nil || !bytes.Equal(again, out) {
			t.Errorf("%x is not normal: %x, %v", out, again, err)
		}
	})
}

func FuzzVerify(f *testing.F) {
	f.Add(signedBy(f, rsaKey()))
	f.Add(signedBy(f, ecKey()))
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := Verify(in)
		if err == nil && (s.Signer.Key == nil || len(s.attributes) < 2) {
			t.Errorf("verified without a key or attributes: %+v", s)
		}
	})
}

func FuzzEnvelope(f *testing.F) {
	to, err := FromX509(certOf(f, rsaKey()))
	if err != nil {
		f.Fatal(err)
	}
	sealed, err := Seal(content, to, AES128)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Fuzz(func(t *testing.T, in []byte) {
		env, err := ParseEnvelope(in)
		if err != nil {
			return
		}
		if _, err := env.Open(rsaKey()); err != nil && err != ErrOpen {
			t.Errorf("a second kind of error: %v", err)
		}
	})
}
