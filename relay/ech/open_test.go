package ech

import (
	"bytes"
	"crypto/tls"
	"errors"
	"slices"
	"testing"
)

// What crypto/tls encrypts is opened as it was meant, and only there the name
// can be read.
func TestOpenRealClient(t *testing.T) {
	keys := newKeys(t)
	msg := clientHello(t, &tls.Config{
		ServerName: "secret.example.org", NextProtos: []string{"h2"}, EncryptedClientHelloConfigList: keys.ConfigList(),
	})
	if bytes.Contains(msg, []byte("secret")) || !bytes.Contains(msg, []byte(public)) {
		t.Fatal("the outer hello does not hide the name")
	}
	inner, again, err := keys.Open(public, msg)
	if err != nil || inner == nil || again == nil {
		t.Fatalf("Open: %x, %v", inner, err)
	}
	info, _ := asServer(inner, nil)
	if info == nil || info.ServerName != "secret.example.org" || !slices.Equal(info.SupportedProtos, []string{"h2"}) {
		t.Fatalf("inside stands %+v", info)
	}
	if !bytes.Contains(inner, msg[39:39+32]) { // the session id, behind header, version, random and its length
		t.Error("the session id of the outer hello is not in the inner one")
	}
}

func TestBothSuites(t *testing.T) {
	keys := newKeys(t)
	for _, s := range suites {
		msg := newSealer(t, keys.Opener().keys[0], s).seal(helloBody(nil, []extension{sni("a.example.org"), only13, marker}))
		if in, err := keys.Opener().Open(public, msg); err != nil || in == nil || in.ServerName != "a.example.org" {
			t.Errorf("suite %v: %+v, %v", s, in, err)
		}
	}
}

// What is not for us is not touched: the outer hello counts then.
func TestNotOurs(t *testing.T) {
	keys, others := newKeys(t), newKeys(t)
	k := keys.Opener().keys[0]
	good := helloBody(nil, []extension{sni("a.example.org"), only13, marker})
	aes := suites[0]
	sealed := func() []byte { return newSealer(t, k, aes).seal(good, sni(public)) }
	flipped := func(at int) []byte {
		msg := sealed()
		msg[at] ^= 1
		return msg
	}
	otherID, otherSuite, fake := newSealer(t, k, aes), newSealer(t, k, suite{1, 2}), newSealer(t, k, aes)
	otherID.id++
	fake.enc = fake.enc[1:]
	n := len(sealed())
	for name, tt := range map[string]struct {
		name string
		msg  []byte
	}{
		"another name":        {"ha.example.org", sealed()},
		"no name":             {"", sealed()},
		"no extension":        {public, clientHello(t, &tls.Config{ServerName: public})},
		"marked as inner":     {public, hello(nil, []extension{sni(public), only13, marker})},
		"another relay's key": {public, clientHello(t, &tls.Config{ServerName: "a.example.org", EncryptedClientHelloConfigList: others.ConfigList()})},
		"unknown id":          {public, otherID.seal(good)},
		"suite not offered":   {public, otherSuite.seal(good)},
		"no public key":       {public, fake.seal(good)},
		"changed payload":     {public, flipped(n - 20)},
		"changed tag":         {public, flipped(n - 1)},
		"changed random":      {public, flipped(10)},
		"changed session":     {public, flipped(50)},
		"GREASE":              {public, hello(session, []extension{sni(public), {extECH, fake.extension(make([]byte, 144))}})},
	} {
		inner, _, err := keys.Open(tt.name, tt.msg)
		if inner != nil || err != nil {
			t.Errorf("%s: %x, %v", name, inner, err)
		}
	}
	if inner, _, err := keys.Open(public, sealed()); inner == nil || err != nil {
		t.Errorf("the same unchanged: %x, %v", inner, err)
	}
}

func alertOf(err error) uint8 {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.TLSAlert()
	}
	return 0
}

// What was encrypted for us and breaks a rule ends the handshake.
func TestIllegalInner(t *testing.T) {
	keys := newKeys(t)
	name := sni("a.example.org")
	body := func(exts ...extension) []byte { return helloBody(nil, exts) }
	x, y := extension{1000, []byte("x")}, extension{1001, []byte("y")}
	for what, encoded := range map[string][]byte{
		"empty":                    {},
		"cut":                      body(name, only13, marker)[:60],
		"padding":                  append(body(name, only13, marker), 0, 0, 1),
		"session id":               helloBody([]byte{1}, []extension{name, only13, marker}),
		"no marker":                body(name, only13),
		"marker of an outer hello": body(name, only13, extension{extECH, []byte{0}}),
		"long marker":              body(name, only13, extension{extECH, []byte{1, 1}}),
		"TLS 1.2 too":              body(name, extension{extVersions, []byte{4, 3, 4, 3, 3}}, marker),
		"no TLS 1.3":               body(name, extension{extVersions, []byte{2, 0x0a, 0x0a}}, marker),
		"no versions":              body(name, marker),
		"odd versions":             body(name, extension{extVersions, []byte{3, 3, 4, 3}}, marker),
		"no name":                  body(only13, marker),
		"two names":                body(extension{extServerName, []byte{0, 8, 0, 0, 1, 'a', 0, 0, 1, 'b'}}, only13, marker),
		"extension twice":          body(name, only13, marker, x, x),
		"reference to nothing":     body(name, only13, marker, refs(1002)),
		"reference twice":          body(name, only13, marker, refs(1000, 1000)),
		"references in disorder":   body(name, only13, marker, refs(1001, 1000)),
		"reference to ECH":         body(name, only13, marker, refs(extECH)),
		"reference to references":  body(name, only13, marker, refs(extOuter)),
		"no references":            body(name, only13, marker, refs()),
		"half a reference":         body(name, only13, marker, extension{extOuter, []byte{1, 3}}),
		"references twice":         body(name, only13, marker, refs(1000), refs(1001)),
		"also by reference":        body(name, only13, marker, x, refs(1000)),
	} {
		msg := newSealer(t, keys.Opener().keys[0], suites[0]).seal(encoded, sni(public), x, y, refs(1000))
		inner, _, err := keys.Open(public, msg)
		if inner != nil || alertOf(err) != alertIllegal {
			t.Errorf("%s: %x, %v", what, inner, err)
		}
	}
	// With the rules kept, references are replaced where they stand.
	msg := newSealer(t, keys.Opener().keys[0], suites[0]).seal(
		append(body(name, refs(1000, 1001), only13, marker), 0, 0, 0), sni(public), x, y)
	want := hello(session, []extension{name, x, y, only13, marker})
	if inner, _, err := keys.Open(public, msg); err != nil || !bytes.Equal(inner, want) {
		t.Errorf("got  %x, %v\nwant %x", inner, err, want)
	}
}

func TestMalformedOuter(t *testing.T) {
	keys := newKeys(t)
	s := newSealer(t, keys.Opener().keys[0], suites[0])
	good := s.extension([]byte("payload"))
	for what, tt := range map[string]struct {
		data []byte
		want uint8
	}{
		"empty":         {nil, alertDecode},
		"type 2":        {[]byte{2}, alertIllegal},
		"inner, longer": {[]byte{1, 1}, alertDecode},
		"cut":           {good[:len(good)-1], alertDecode},
		"longer":        {append(slices.Clone(good), 1), alertDecode},
		"no payload":    {s.extension(nil), alertDecode},
	} {
		_, _, err := keys.Open(public, hello(session, []extension{sni(public), {extECH, tt.data}}))
		if alertOf(err) != tt.want {
			t.Errorf("%s: %v", what, err)
		}
		// Under another name nobody looks at it.
		if _, _, err := keys.Open("ha.example.org", hello(session, []extension{{extECH, tt.data}})); err != nil {
			t.Errorf("%s under another name: %v", what, err)
		}
	}
}

// The second hello belongs to the first.
func TestAgain(t *testing.T) {
	keys := newKeys(t)
	k := keys.Opener().keys[0]
	name, other := sni("a.example.org"), sni("b.example.org")
	body := func(exts ...extension) []byte { return helloBody(nil, exts) }
	good := body(name, only13, marker, extension{1000, []byte("second")})
	tests := map[string]struct {
		second func(s *sealer) []byte
		want   uint8 // alert; 0: fine
	}{
		"good":           {func(s *sealer) []byte { return s.seal(good) }, 0},
		"another name":   {func(s *sealer) []byte { return s.seal(body(other, only13, marker)) }, alertIllegal},
		"not encrypted":  {func(*sealer) []byte { return hello(session, []extension{name, only13}) }, alertMissingExts},
		"marked":         {func(*sealer) []byte { return hello(session, []extension{name, only13, marker}) }, alertMissingExts},
		"another id":     {func(s *sealer) []byte { s.id++; return s.seal(good) }, alertIllegal},
		"another suite":  {func(s *sealer) []byte { s.suite.aead = 3; return s.seal(good) }, alertIllegal},
		"encapsulated":   {func(s *sealer) []byte { s.enc = make([]byte, 32); return s.seal(good) }, alertIllegal},
		"fresh context":  {func(s *sealer) []byte { f := newSealer(t, k, s.suite); f.enc = nil; return f.seal(good) }, alertDecrypt},
		"a later one":    {func(s *sealer) []byte { s.seal(good); return s.seal(good) }, alertDecrypt},
		"illegal inside": {func(s *sealer) []byte { return s.seal(body(name, only13)) }, alertIllegal},
		"no message":     {func(*sealer) []byte { return []byte{1} }, alertDecode},
	}
	for what, tt := range tests {
		s := newSealer(t, k, suites[0])
		inner, again, err := keys.Open(public, s.seal(body(name, only13, marker)))
		if err != nil || inner == nil {
			t.Fatal(err)
		}
		s.enc = nil
		second := tt.second(s)
		inner, err = again(second)
		if alertOf(err) != tt.want || (inner == nil) != (tt.want != 0) {
			t.Errorf("%s: %x, %v", what, inner, err)
		}
		if inner != nil && !bytes.Contains(inner, []byte("second")) {
			t.Errorf("%s: got %x", what, inner)
		}
		if inner, err := again(second); inner != nil || alertOf(err) != alertUnexpected {
			t.Errorf("%s, a third hello: %x, %v", what, inner, err)
		}
	}
}
