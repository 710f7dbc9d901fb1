package ech

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/sallyport/sallyport/protocol/names"
)

// version is the codepoint of ECHConfig.version and of the extension: RFC 9849
// kept the one of its last drafts.
const version = 0xfe0d

// A suite is the KDF and the AEAD of one hello.
type suite struct{ kdf, aead uint16 }

// suites are what every config offers. The first is mandatory (RFC 9849 §9);
// the second is for processors without AES.
var suites = []suite{{1, 1}, {1, 3}} // HKDF-SHA256 with AES-128-GCM, with ChaCha20Poly1305

// kem is DHKEM(X25519, HKDF-SHA256), the only one that all clients know.
func kem() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }

// A key is one ECHConfig with its private half. It is never changed.
type key struct {
	id      byte
	public  string // public_name, canonical
	config  []byte // the ECHConfig, as serialised: it is an input of HPKE
	private hpke.PrivateKey
	made    time.Time
}

// maxName is maximum_name_length: clients pad the inner name up to it, so that
// the length of a hello tells nothing. Names of agents' addresses
// (2001-db8-….HASH.DOMAIN) have about 110 bytes.
const maxName = 128

// makeKey makes a key whose id is none of taken. A client that has an older
// config is told apart by the id alone; a second key of the same one would
// only cost another try.
func makeKey(public string, made time.Time, taken []*key) (*key, error) {
	if err := checkPublicName(public); err != nil {
		return nil, err
	}
	private, err := kem().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("make ECH key: %w", err)
	}
	if len(taken) > 255 {
		return nil, errors.New("make ECH key: all ids are taken")
	}
	var id [1]byte
	for {
		_, _ = rand.Read(id[:]) // never fails
		if !slices.ContainsFunc(taken, func(k *key) bool { return k.id == id[0] }) {
			break
		}
	}
	config, err := marshalConfig(id[0], public, private.PublicKey().Bytes())
	if err != nil {
		return nil, fmt.Errorf("make ECH key: %w", err)
	}
	return &key{id: id[0], public: public, config: config, private: private, made: made}, nil
}

// checkPublicName wants a canonical name of at least two labels: clients
// ignore configs without (RFC 9849 §4).
func checkPublicName(public string) error {
	switch c, err := names.Canonical(public); {
	case err != nil:
		return fmt.Errorf("ECH public name: %w", err)
	case c != public:
		return fmt.Errorf("ECH public name %q is not in canonical form: write %q", public, c)
	case len(public) > 253:
		return fmt.Errorf("ECH public name %q is too long", public)
	case !slices.Contains([]byte(public), '.'):
		return fmt.Errorf("ECH public name %q is a single label: browsers ignore such configs", public)
	}
	return nil
}

// marshalConfig writes an ECHConfig (RFC 9849 §4):
//
//	uint16 version, uint16 length, then
//	uint8  config_id
//	uint16 kem_id
//	opaque public_key<1..2^16-1>
//	(uint16 kdf, uint16 aead) cipher_suites<4..2^16-4>
//	uint8  maximum_name_length
//	opaque public_name<1..255>
//	extensions<0..2^16-1>
func marshalConfig(id byte, public string, publicKey []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddUint16(version)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint8(id)
		b.AddUint16(kem().ID())
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(publicKey) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, s := range suites {
				b.AddUint16(s.kdf)
				b.AddUint16(s.aead)
			}
		})
		b.AddUint8(maxName)
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(public)) })
		b.AddUint16(0)
	})
	return b.Bytes()
}

// readKey is makeKey's way back from the disk. It takes only configs that
// makeKey made: a damaged one would be published, and every visitor fail.
func readKey(config, private []byte, made time.Time) (*key, error) {
	s := cryptobyte.String(config)
	var v, k uint16
	var body, public, publicKey cryptobyte.String
	var id uint8
	if !s.ReadUint16(&v) || v != version || !s.ReadUint16LengthPrefixed(&body) || !s.Empty() ||
		!body.ReadUint8(&id) || !body.ReadUint16(&k) || k != kem().ID() || !body.ReadUint16LengthPrefixed(&publicKey) ||
		!body.Skip(2+4*len(suites)+1) || !body.ReadUint8LengthPrefixed(&public) {
		return nil, errors.New("the config is malformed")
	}
	if err := checkPublicName(string(public)); err != nil {
		return nil, err
	}
	priv, err := kem().NewPrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("the private key is malformed: %w", err)
	}
	again, err := marshalConfig(id, string(public), priv.PublicKey().Bytes())
	if err != nil || !slices.Equal(again, config) {
		return nil, errors.New("the config is not the one of its private key")
	}
	return &key{id: id, public: string(public), config: config, private: priv, made: made}, nil
}

// configList is an ECHConfigList with one config.
func configList(config []byte) []byte {
	list := make([]byte, 2, 2+len(config))
	list[0], list[1] = byte(len(config)>>8), byte(len(config))
	return append(list, config...)
}
