package ech

import (
	"crypto/hpke"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

const public = "front.example.org"

func newKeys(t testing.TB) *Keys {
	t.Helper()
	k, err := NewKeys(Config{Dir: t.TempDir(), PublicName: public})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// clientHello returns the message that crypto/tls sends first.
func clientHello(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	here, there := net.Pipe()
	defer there.Close()
	go func() {
		_ = tls.Client(here, config).Handshake() // fails: nobody answers
		_ = here.Close()
	}()
	_, msg, err := readRecord(there)
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func readRecord(r io.Reader) (kind byte, body []byte, err error) {
	header := make([]byte, 5)
	if _, err := io.ReadFull(r, header); err != nil {
		return 0, nil, err
	}
	body = make([]byte, int(header[3])<<8|int(header[4]))
	_, err = io.ReadFull(r, body)
	return header[0], body, err
}

func record(kind byte, minor byte, body []byte) []byte {
	return append([]byte{kind, 3, minor, byte(len(body) >> 8), byte(len(body))}, body...)
}

// asServer asks crypto/tls what is in a hello: it may hold ECH keys or none.
func asServer(msg []byte, keys []tls.EncryptedClientHelloKey) (info *tls.ClientHelloInfo, err error) {
	here, there := net.Pipe()
	go func() {
		_ = there.SetDeadline(time.Now().Add(5 * time.Second))
		for at := 0; at < len(msg); at += 1 << 14 {
			_, _ = there.Write(record(22, 1, msg[at:min(at+1<<14, len(msg))]))
		}
		_, _ = io.Copy(io.Discard, there)
	}()
	err = tls.Server(here, &tls.Config{
		EncryptedClientHelloKeys: keys,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			info = h
			return nil, io.EOF // seen enough
		},
	}).Handshake()
	_ = here.Close()
	_ = there.Close()
	return info, err
}

// A sealer is a client that obeys no rule.
type sealer struct {
	t      testing.TB
	id     byte
	suite  suite
	enc    []byte
	sender *hpke.Sender
}

func newSealer(t testing.TB, k *key, s suite) *sealer {
	t.Helper()
	kdf, err1 := hpke.NewKDF(s.kdf)
	aead, err2 := hpke.NewAEAD(s.aead)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	enc, sender, err := hpke.NewSender(k.private.PublicKey(), kdf, aead, append([]byte("tls ech\x00"), k.config...))
	if err != nil {
		t.Fatal(err)
	}
	return &sealer{t, k.id, s, enc, sender}
}

// session is the session id of all outer hellos here.
var session = []byte("0123456789abcdef0123456789abcdef")

// seal puts an encoded inner hello into an outer one with the extensions exts.
func (s *sealer) seal(encoded []byte, exts ...extension) []byte {
	s.t.Helper()
	const tag = 16
	build := func(payload []byte) []byte {
		return hello(session, append(exts, extension{extECH, s.extension(payload)}))
	}
	blank := build(make([]byte, len(encoded)+tag))
	payload, err := s.sender.Seal(blank[messageHeader:], encoded)
	if err != nil {
		s.t.Fatal(err)
	}
	return build(payload)
}

func (s *sealer) extension(payload []byte) []byte {
	var b cryptobyte.Builder
	b.AddUint8(echOuter)
	b.AddUint16(s.suite.kdf)
	b.AddUint16(s.suite.aead)
	b.AddUint8(s.id)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(s.enc) })
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(payload) })
	return b.BytesOrPanic()
}

// hello is a ClientHello message.
func hello(sessionID []byte, exts []extension) []byte {
	var b cryptobyte.Builder
	b.AddUint8(typeClientHello)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(helloBody(sessionID, exts)) })
	return b.BytesOrPanic()
}

func helloBody(sessionID []byte, exts []extension) []byte {
	var b cryptobyte.Builder
	b.AddUint16(tls.VersionTLS12)
	b.AddBytes(make([]byte, 32))
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(sessionID) })
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(tls.TLS_AES_128_GCM_SHA256) })
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint8(0) })
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, e := range exts {
			b.AddUint16(e.id)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(e.data) })
		}
	})
	return b.BytesOrPanic()
}

func sni(name string) extension {
	data := []byte{byte((len(name) + 3) >> 8), byte(len(name) + 3), 0, byte(len(name) >> 8), byte(len(name))}
	return extension{extServerName, append(data, name...)}
}

var (
	marker = extension{extECH, []byte{echInner}}
	only13 = extension{extVersions, []byte{2, 3, 4}}
)

func refs(ids ...uint16) extension {
	data := []byte{byte(2 * len(ids))}
	for _, id := range ids {
		data = append(data, byte(id>>8), byte(id))
	}
	return extension{extOuter, data}
}
