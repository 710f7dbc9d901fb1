package edge

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/tls"
	"errors"
	"slices"
	"testing"

	"golang.org/x/crypto/cryptobyte"
)

const publicName = "front.example.org"

// A frontDoor opens the hellos of crypto/tls, and holds nobody to any rule.
// The real one is not for this package to know.
type frontDoor struct {
	private hpke.PrivateKey
	config  []byte
	err     error // what to say of everything
}

func newFrontDoor(t testing.TB) *frontDoor {
	t.Helper()
	private, err := hpke.DHKEM(ecdh.X25519()).GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddUint16(extECH)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint8(9)
		b.AddUint16(0x20)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(private.PublicKey().Bytes()) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint32(0x00010001) })
		b.AddUint8(64)
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(publicName)) })
		b.AddUint16(0)
	})
	return &frontDoor{private: private, config: b.BytesOrPanic()}
}

func (f *frontDoor) list() []byte {
	return append([]byte{byte(len(f.config) >> 8), byte(len(f.config))}, f.config...)
}

// retryKeys hands the config out and opens nothing.
func (f *frontDoor) retryKeys() []tls.EncryptedClientHelloKey {
	nobody, _ := hpke.DHKEM(ecdh.X25519()).GenerateKey()
	private, _ := nobody.Bytes()
	return []tls.EncryptedClientHelloKey{{Config: f.config, PrivateKey: private, SendAsRetry: true}}
}

func (f *frontDoor) Open(name string, outer []byte) ([]byte, func([]byte) ([]byte, error), error) {
	if name != publicName || f.err != nil {
		return nil, nil, f.err
	}
	enc, _, ok := echOf(outer)
	if !ok {
		return nil, nil, nil
	}
	recipient, err := hpke.NewRecipient(enc, f.private, hpke.HKDFSHA256(), hpke.AES128GCM(), append([]byte("tls ech\x00"), f.config...))
	if err != nil {
		return nil, nil, nil
	}
	open := func(outer []byte) ([]byte, error) { return openOuter(recipient, outer) }
	inner, err := open(outer)
	if err != nil {
		return nil, nil, nil
	}
	return inner, open, nil
}

// echOf finds what is encrypted.
func echOf(msg []byte) (enc []byte, payloadAt int, ok bool) {
	_, _, exts := takeApart(msg[messageHeader:])
	for _, e := range exts {
		s := cryptobyte.String(e.data)
		var encString, payload cryptobyte.String
		if e.id == extECH && s.Skip(6) && s.ReadUint16LengthPrefixed(&encString) && s.ReadUint16LengthPrefixed(&payload) {
			at := slices.IndexFunc(slices.Collect(func(yield func([]byte) bool) {
				for i := range msg {
					if !yield(msg[i:]) {
						return
					}
				}
			}), func(rest []byte) bool { return len(rest) >= len(payload) && &rest[0] == &payload[0] })
			return encString, at, true
		}
	}
	return nil, 0, false
}

func openOuter(r *hpke.Recipient, outer []byte) ([]byte, error) {
	_, at, ok := echOf(outer)
	if !ok {
		return nil, errors.New("not encrypted")
	}
	size := int(outer[at-2])<<8 | int(outer[at-1])
	aad := slices.Clone(outer)
	clear(aad[at : at+size])
	encoded, err := r.Open(aad[messageHeader:], outer[at:at+size])
	if err != nil {
		return nil, err
	}
	session, _, outerExts := takeApart(outer[messageHeader:])
	_, rest, exts := takeApart(encoded)
	var b cryptobyte.Builder
	b.AddUint8(typeClientHello)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddBytes(encoded[:34])
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(session) })
		b.AddBytes(rest)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, e := range exts {
				if e.id != 0xfd00 {
					addExt(b, e)
					continue
				}
				for ids := e.data[1:]; len(ids) > 0; ids = ids[2:] {
					for _, o := range outerExts {
						if o.id == uint16(ids[0])<<8|uint16(ids[1]) {
							addExt(b, o)
						}
					}
				}
			}
		})
	})
	return b.Bytes()
}

func addExt(b *cryptobyte.Builder, e ext) {
	b.AddUint16(e.id)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(e.data) })
}

// takeApart returns the parts of a hello's body: rest is what stands between
// the session id and the extensions.
func takeApart(body cryptobyte.String) (session, rest []byte, exts []ext) {
	var id, suites, compression, list cryptobyte.String
	body.Skip(34)
	body.ReadUint8LengthPrefixed(&id)
	before := body
	body.ReadUint16LengthPrefixed(&suites)
	body.ReadUint8LengthPrefixed(&compression)
	rest = before[:len(before)-len(body)]
	body.ReadUint16LengthPrefixed(&list)
	for !list.Empty() {
		var e ext
		var data cryptobyte.String
		list.ReadUint16(&e.id)
		list.ReadUint16LengthPrefixed(&data)
		e.data = data
		exts = append(exts, e)
	}
	return id, rest, exts
}
