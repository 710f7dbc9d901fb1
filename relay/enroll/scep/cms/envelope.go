package cms

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// A Cipher encrypts the content of an envelope, in CBC mode. The zero value is
// none.
type Cipher int

// The ciphers. Triple DES is there because some clients know nothing better;
// single DES is not.
const (
	AES128 Cipher = iota + 1
	AES192
	AES256
	TripleDES
)

var ciphers = map[Cipher]struct {
	oid     asn1.ObjectIdentifier
	keySize int
	block   func(key []byte) (cipher.Block, error)
}{
	AES128:    {oidAES128, 16, aes.NewCipher},
	AES192:    {oidAES192, 24, aes.NewCipher},
	AES256:    {oidAES256, 32, aes.NewCipher},
	TripleDES: {oidTripleDES, 24, des.NewTripleDESCipher},
}

// ErrOpen is the only error of opening an envelope: whoever sends envelopes
// that somebody else sealed must not learn from the answer how far they came.
var ErrOpen = errors.New("the envelope cannot be opened")

// An Envelope is a message that was encrypted to one RSA key.
type Envelope struct {
	Cipher Cipher // what the sender used, and so understands

	key, iv, content []byte
}

// ParseEnvelope reads an envelope (BER or DER, at most MaxBytes). Ciphers and
// key encryptions that are not accepted are ErrAlgorithm.
func ParseEnvelope(data []byte) (*Envelope, error) {
	in, err := readContentInfo(data, oidEnveloped)
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	e, err := parseEnvelope(in)
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	return e, nil
}

func parseEnvelope(in cryptobyte.String) (*Envelope, error) {
	e := new(Envelope)
	var recipients, recipient, key, content cryptobyte.String
	var inner asn1.ObjectIdentifier
	if !in.SkipASN1(casn1.INTEGER) || !in.SkipOptionalASN1(tagExplicit0) ||
		!in.ReadASN1(&recipients, casn1.SET) || !in.ReadASN1(&content, casn1.SEQUENCE) ||
		!in.SkipOptionalASN1(tagConstructed1) || !in.Empty() {
		return nil, errStructure
	}
	// One recipient, whatever it is called: the certificate that names our key
	// may have been renewed since the sender fetched it.
	if !recipients.ReadASN1(&recipient, casn1.SEQUENCE) || !recipients.Empty() ||
		!recipient.SkipASN1(casn1.INTEGER) || !skipAny(&recipient) {
		return nil, errors.New("it is not addressed to one RSA key")
	}
	algorithm, _, ok := readAlgorithm(&recipient)
	if !ok || !recipient.ReadASN1(&key, casn1.OCTET_STRING) || !recipient.Empty() {
		return nil, errStructure
	}
	if !algorithm.Equal(oidRSA) {
		return nil, fmt.Errorf("key encryption %v: %w, RSA with PKCS#1 v1.5 padding is needed", algorithm, ErrAlgorithm)
	}
	e.key = key
	if !content.ReadASN1ObjectIdentifier(&inner) || !inner.Equal(oidData) {
		return nil, errStructure
	}
	if err := e.readCipher(&content); err != nil {
		return nil, err
	}
	if e.content, ok = readPieces(content); !ok {
		return nil, errStructure
	}
	return e, nil
}

func (e *Envelope) readCipher(in *cryptobyte.String) error {
	oid, params, ok := readAlgorithm(in)
	if !ok {
		return errStructure
	}
	for c, def := range ciphers {
		if !oid.Equal(def.oid) {
			continue
		}
		var iv cryptobyte.String
		if !params.ReadASN1(&iv, casn1.OCTET_STRING) || !params.Empty() {
			return errStructure
		}
		e.Cipher, e.iv = c, iv
		return nil
	}
	return fmt.Errorf("cipher %v: %w, AES or triple DES in CBC mode is needed", oid, ErrAlgorithm)
}

// readPieces reads [0] IMPLICIT OCTET STRING, whole or in pieces.
func readPieces(in cryptobyte.String) ([]byte, bool) {
	var whole, pieces cryptobyte.String
	if in.PeekASN1Tag(tagImplicit0) {
		ok := in.ReadASN1(&whole, tagImplicit0) && in.Empty()
		return whole, ok
	}
	if !in.ReadASN1(&pieces, tagExplicit0) || !in.Empty() {
		return nil, false
	}
	var joined []byte
	for !pieces.Empty() {
		var piece cryptobyte.String
		if !pieces.ReadASN1(&piece, casn1.OCTET_STRING) {
			return nil, false
		}
		joined = append(joined, piece...)
	}
	return joined, true
}

func skipAny(in *cryptobyte.String) bool {
	var value cryptobyte.String
	var tag casn1.Tag
	return in.ReadAnyASN1(&value, &tag)
}

// Open decrypts the envelope with the key that it was sealed to. Every failure
// is ErrOpen. A content key that does not decrypt is replaced by a random one,
// so that neither answer nor time tells (RFC 3218); the caller must answer what
// does not parse afterwards the same way.
func (e *Envelope) Open(key *rsa.PrivateKey) ([]byte, error) {
	def := ciphers[e.Cipher]
	contentKey := make([]byte, def.keySize)
	rand.Read(contentKey) // never fails
	//lint:ignore SA1019 OAEP is better, but no SCEP client writes it; this is the form that leaks nothing
	if err := rsa.DecryptPKCS1v15SessionKey(nil, key, e.key, contentKey); err != nil {
		return nil, ErrOpen // its length is wrong, which everybody can see
	}
	block, err := def.block(contentKey)
	if err != nil {
		return nil, ErrOpen
	}
	size := block.BlockSize()
	if len(e.iv) != size || len(e.content) == 0 || len(e.content)%size != 0 {
		return nil, ErrOpen
	}
	plain := make([]byte, len(e.content))
	cipher.NewCBCDecrypter(block, e.iv).CryptBlocks(plain, e.content)
	n, ok := padding(plain, size)
	if ok != 1 {
		return nil, ErrOpen
	}
	return plain[:len(plain)-n], nil
}

// padding returns how long the padding is, and 1 when it is right, in a time
// that depends on neither.
func padding(plain []byte, size int) (n, ok int) {
	last := plain[len(plain)-size:]
	n = int(last[size-1])
	ok = subtle.ConstantTimeLessOrEq(1, n) & subtle.ConstantTimeLessOrEq(n, size)
	for i, b := range last {
		inside := subtle.ConstantTimeLessOrEq(size-i, n)
		ok &= subtle.ConstantTimeSelect(inside, subtle.ConstantTimeByteEq(b, byte(n)), 1)
	}
	return n, ok
}

// Seal encrypts content to the RSA key of a certificate, which need not be one
// that anybody believes.
func Seal(content []byte, to Certificate, c Cipher) ([]byte, error) {
	def, known := ciphers[c]
	pub, isRSA := to.Key.(*rsa.PublicKey)
	if !known || !isRSA {
		return nil, fmt.Errorf("seal an envelope to a key of type %T: %w, RSA is needed", to.Key, ErrAlgorithm)
	}
	contentKey := make([]byte, def.keySize)
	rand.Read(contentKey)
	block, err := def.block(contentKey)
	if err != nil {
		return nil, fmt.Errorf("seal an envelope: %w", err)
	}
	iv := make([]byte, block.BlockSize())
	rand.Read(iv)
	n := block.BlockSize() - len(content)%block.BlockSize()
	padded := append(bytes.Clone(content), bytes.Repeat([]byte{byte(n)}, n)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(padded, padded)
	//lint:ignore SA1019 OAEP is better, but no SCEP client reads it; it is opened by the client, not by us
	key, err := rsa.EncryptPKCS1v15(rand.Reader, pub, contentKey)
	if err != nil {
		return nil, fmt.Errorf("seal an envelope: %w", err)
	}
	ivDER, err := asn1.Marshal(iv)
	if err != nil {
		return nil, fmt.Errorf("seal an envelope: %w", err)
	}
	return contentInfo(oidEnveloped, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(0)
				addIssuerAndSerial(b, to)
				addAlgorithm(b, oidRSA, derNull)
				b.AddASN1OctetString(key)
			})
		})
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidData)
			addAlgorithm(b, def.oid, ivDER)
			b.AddASN1(tagImplicit0, func(b *cryptobyte.Builder) { b.AddBytes(padded) })
		})
	})
}
