package ech

import (
	"crypto/tls"
	"errors"
	"testing"
	"time"
)

// fixed is the one key of the fuzz tests: their corpus stays good.
func fixed(t testing.TB) *key {
	t.Helper()
	private, err := kem().NewPrivateKey([]byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	config, err := marshalConfig(7, public, private.PublicKey().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return &key{id: 7, public: public, config: config, private: private, made: time.Now()}
}

// FuzzOpen feeds whole outer hellos.
func FuzzOpen(f *testing.F) {
	k := fixed(f)
	opener := &Opener{[]*key{k}}
	real := clientHello(f, &tls.Config{ServerName: "secret.example.org", EncryptedClientHelloConfigList: configList(k.config)})
	f.Add(real, real)
	f.Add(clientHello(f, &tls.Config{ServerName: public}), real)
	s := newSealer(f, k, suites[1])
	body := helloBody(nil, []extension{sni("a.example.org"), only13, marker, refs(1000)})
	first := s.seal(body, extension{1000, []byte("x")})
	s.enc = nil
	f.Add(first, s.seal(body, extension{1000, []byte("y")}))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		in, err := opener.Open(public, first)
		if err != nil {
			if _, ok := errors.AsType[*Error](err); !ok || in != nil {
				t.Fatalf("%v, %v", in, err)
			}
			return
		}
		if in == nil {
			return
		}
		checkOpened(t, in.Message, in.ServerName)
		inner, err := in.Again(second)
		if (inner == nil) == (err == nil) {
			t.Fatalf("again: %x, %v", inner, err)
		}
		if err == nil {
			checkOpened(t, inner, in.ServerName)
		}
	})
}

// FuzzInner encrypts what it gets, so that everything behind the decryption is
// reached, and compares with crypto/tls as the one server of both halves: what
// is accepted here is accepted there, with the same name.
func FuzzInner(f *testing.F) {
	k := fixed(f)
	opener := &Opener{[]*key{k}}
	private, err := k.private.Bytes()
	if err != nil {
		f.Fatal(err)
	}
	theirs := []tls.EncryptedClientHelloKey{{Config: k.config, PrivateKey: private}}
	body := func(exts ...extension) []byte { return helloBody(nil, exts) }
	name := sni("a.example.org")
	f.Add(body(name, only13, marker), uint16(1000), []byte("x"), uint16(1001), []byte("y"))
	f.Add(body(name, refs(1000, 1001), only13, marker), uint16(1000), []byte("x"), uint16(1001), []byte("y"))
	f.Add(append(body(name, refs(extVersions), marker), 0, 0), uint16(extVersions), []byte{2, 3, 4}, uint16(10), []byte{0, 2, 0, 29})
	f.Add(body(name, refs(51), extension{extVersions, []byte{4, 0x1a, 0x1a, 3, 4}}, marker), uint16(51), []byte{0, 0}, uint16(16), []byte{0, 3, 2, 'h', '2'})
	f.Fuzz(func(t *testing.T, encoded []byte, id1 uint16, data1 []byte, id2 uint16, data2 []byte) {
		if len(encoded)+len(data1)+len(data2) > 60000 || id1 == extECH || id2 == extECH {
			return
		}
		msg := newSealer(t, k, suites[0]).seal(encoded, extension{id1, data1}, extension{id2, data2})
		in, err := opener.Open(public, msg)
		if err != nil || in == nil {
			return
		}
		checkOpened(t, in.Message, in.ServerName)
		// Where crypto/tls cannot read the outer hello, or one of its extensions,
		// it says nothing about the inner one.
		if info, _ := asServer(in.Message, nil); info != nil {
			whole, err := asServer(msg, theirs)
			if whole != nil && whole.ServerName != info.ServerName {
				t.Fatalf("crypto/tls opens the name %q, here %q (%v)", whole.ServerName, info.ServerName, err)
			}
			if info.ServerName != in.ServerName {
				t.Fatalf("crypto/tls reads the name %q, here %q", info.ServerName, in.ServerName)
			}
		}
	})
}

// checkOpened holds what was opened to what the target relies on.
func checkOpened(t *testing.T, msg []byte, name string) {
	t.Helper()
	o, err := readOuter(msg)
	if err != nil || len(msg) > maxMessage {
		t.Fatalf("%d bytes, %v", len(msg), err)
	}
	if o.ok {
		t.Fatal("an outer hello came out")
	}
	if got, err := checkInner(o.exts); err != nil || got != name || name == "" {
		t.Fatalf("name %q, want %q: %v", got, name, err)
	}
}

// FuzzStored feeds the file of the keys.
func FuzzStored(f *testing.F) {
	f.Add([]byte(`{"schema":1,"keys":[{"made":"2026-01-01T00:00:00Z","config":"/g0=","private":"AA=="}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := decodeKeys(data)
		if (err == nil) != (len(keys) > 0) {
			t.Fatalf("%d keys, %v", len(keys), err)
		}
	})
}
