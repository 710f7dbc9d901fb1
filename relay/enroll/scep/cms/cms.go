// Package cms reads and writes the Cryptographic Message Syntax (RFC 5652,
// once PKCS#7), as far as SCEP and signed configuration profiles need it.
//
//	signed, err := cms.Verify(body)                  // whose key signed, what it says
//	env, err := cms.ParseEnvelope(signed.Content)
//	plain, err := env.Open(raKey)
//
//	certs, err := cms.CertsOnly(issued)
//	sealed, err := cms.Seal(certs, signed.Signer, env.Cipher)
//	reply, err := cms.Sign(cms.Message{Content: sealed, Key: raKey, Certs: …, Attributes: …})
//
// It is our own and small because it stands in front of strangers. The usual
// library converts BER by unbounded recursion, in time that grows with the
// square of the input, tells wrong RSA padding from a wrong key, and keeps its
// choice of algorithms in package variables that begin as SHA-1 and single DES.
// Here input is bounded in size and depth, opening has one error, only
// SHA-256 and stronger digests and AES-CBC or triple DES exist, and what is
// written is always SHA-256.
package cms

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// MaxBytes bounds the messages that are read: the largest request of an 8192
// bit RSA key stays below a fifth of it.
const MaxBytes = 64 << 10

// ErrAlgorithm is wrapped by errors about an algorithm that is too weak or
// unknown.
var ErrAlgorithm = errors.New("the algorithm is not accepted")

var errStructure = errors.New("it is not a well-formed message")

var (
	oidData         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSigned       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidEnveloped    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}
	oidContentType  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidDigest       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSigningTime  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}
	oidSHA256       = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidSHA384       = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}
	oidSHA512       = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}
	oidRSA          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidRSASHA256    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	oidRSASHA384    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12}
	oidRSASHA512    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 13}
	oidECDSASHA256  = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	oidECDSASHA384  = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}
	oidECDSASHA512  = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}
	oidAES128       = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}
	oidAES192       = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 22}
	oidAES256       = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
	oidTripleDES    = asn1.ObjectIdentifier{1, 2, 840, 113549, 3, 7}
	tagExplicit0    = casn1.Tag(0).ContextSpecific().Constructed()
	tagImplicit0    = casn1.Tag(0).ContextSpecific()
	tagConstructed1 = casn1.Tag(1).ContextSpecific().Constructed()
)

// readContentInfo returns the inside of a message of the wanted type.
func readContentInfo(data []byte, want asn1.ObjectIdentifier) (cryptobyte.String, error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("%d bytes are too many, at most %d are read", len(data), MaxBytes)
	}
	der, err := normalize(data)
	if err != nil {
		return nil, err
	}
	in := cryptobyte.String(der)
	var info, wrapped, inner cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !in.ReadASN1(&info, casn1.SEQUENCE) || !in.Empty() || !info.ReadASN1ObjectIdentifier(&oid) {
		return nil, errStructure
	}
	if !oid.Equal(want) {
		return nil, fmt.Errorf("it is a message of type %v, not %v", oid, want)
	}
	if !info.ReadASN1(&wrapped, tagExplicit0) || !info.Empty() ||
		!wrapped.ReadASN1(&inner, casn1.SEQUENCE) || !wrapped.Empty() {
		return nil, errStructure
	}
	return inner, nil
}

// readAlgorithm reads an AlgorithmIdentifier; params is what follows the OID,
// often nothing or NULL.
func readAlgorithm(in *cryptobyte.String) (oid asn1.ObjectIdentifier, params cryptobyte.String, ok bool) {
	var alg cryptobyte.String
	if !in.ReadASN1(&alg, casn1.SEQUENCE) || !alg.ReadASN1ObjectIdentifier(&oid) {
		return nil, nil, false
	}
	return oid, alg, true
}

// addAlgorithm writes an AlgorithmIdentifier whose parameters are given as DER.
func addAlgorithm(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, params []byte) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddBytes(params)
	})
}

// derNull are the parameters that RFC 3370 demands of rsaEncryption.
var derNull = []byte{5, 0}

// contentInfo wraps the inside of a message.
func contentInfo(oid asn1.ObjectIdentifier, inner func(*cryptobyte.Builder)) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, inner)
		})
	})
	return b.Bytes()
}

// addSet writes a SET OF, whose elements DER wants sorted.
func addSet(b *cryptobyte.Builder, tag casn1.Tag, elements [][]byte) {
	slices.SortFunc(elements, bytes.Compare)
	b.AddASN1(tag, func(b *cryptobyte.Builder) {
		for _, e := range elements {
			b.AddBytes(e)
		}
	})
}
