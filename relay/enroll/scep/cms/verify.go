package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/sallyport/sallyport/protocol/pki"
)

// maxCertificates bounds how many certificates of a message are looked at.
const maxCertificates = 8

// A Certificate is what a message needs of one: whose key it is and how it is
// named. A SCEP client signs its first request with a certificate that it
// makes itself, often with faults that crypto/x509 refuses and that do not
// matter here: nothing in it is believed but the key, which the signature proves.
type Certificate struct {
	Raw    []byte           // DER
	Issuer []byte           // DER of the name
	Serial []byte           // DER of the INTEGER
	Key    crypto.PublicKey // checked by pki.CheckKey
}

// FromX509 returns the same of a parsed certificate.
func FromX509(cert *x509.Certificate) (Certificate, error) {
	c, _, err := readCertificate(cert.Raw)
	if err != nil {
		return Certificate{}, err
	}
	c.Key = cert.PublicKey
	return c, nil
}

// readCertificate reads what Certificate holds but the key, which it returns
// as DER (SubjectPublicKeyInfo).
func readCertificate(raw []byte) (c Certificate, spki []byte, err error) {
	in := cryptobyte.String(raw)
	var outer, tbs, serial, issuer, key cryptobyte.String
	ok := in.ReadASN1(&outer, casn1.SEQUENCE) && in.Empty() &&
		outer.ReadASN1(&tbs, casn1.SEQUENCE) &&
		tbs.SkipOptionalASN1(tagExplicit0) && // version
		tbs.ReadASN1Element(&serial, casn1.INTEGER) &&
		tbs.SkipASN1(casn1.SEQUENCE) && // signature algorithm
		tbs.ReadASN1Element(&issuer, casn1.SEQUENCE) &&
		tbs.SkipASN1(casn1.SEQUENCE) && // validity
		tbs.SkipASN1(casn1.SEQUENCE) && // subject
		tbs.ReadASN1Element(&key, casn1.SEQUENCE)
	if !ok {
		return Certificate{}, nil, errors.New("a certificate in it is broken")
	}
	return Certificate{Raw: raw, Issuer: issuer, Serial: serial}, key, nil
}

// A Signed message has exactly one signature, and it holds.
type Signed struct {
	Content []byte // nil when the message carries none
	Signer  Certificate

	attributes []attribute
}

type attribute struct {
	oid   asn1.ObjectIdentifier
	tag   casn1.Tag
	value []byte // inside of the one value
}

// Attribute returns the tag and the inside of a signed attribute's value.
func (s *Signed) Attribute(oid asn1.ObjectIdentifier) (casn1.Tag, []byte, bool) {
	for _, a := range s.attributes {
		if a.oid.Equal(oid) {
			return a.tag, a.value, true
		}
	}
	return 0, nil, false
}

// Verify reads a signed message (BER or DER, at most MaxBytes) and checks its
// one signature against the certificate that it brings along. Who that
// certificate belongs to is the caller's question. Messages without signed
// attributes are refused: SCEP keeps what matters there.
func Verify(data []byte) (*Signed, error) {
	in, err := readContentInfo(data, oidSigned)
	if err != nil {
		return nil, fmt.Errorf("signed message: %w", err)
	}
	s, err := verify(in)
	if err != nil {
		return nil, fmt.Errorf("signed message: %w", err)
	}
	return s, nil
}

func verify(in cryptobyte.String) (*Signed, error) {
	s := new(Signed)
	var encap, certs, signers, signer cryptobyte.String
	var contentType asn1.ObjectIdentifier
	var hasCerts bool
	if !in.SkipASN1(casn1.INTEGER) || !in.SkipASN1(casn1.SET) ||
		!in.ReadASN1(&encap, casn1.SEQUENCE) || !encap.ReadASN1ObjectIdentifier(&contentType) ||
		!readContent(encap, &s.Content) ||
		!in.ReadOptionalASN1(&certs, &hasCerts, tagExplicit0) ||
		!in.SkipOptionalASN1(tagConstructed1) || // revocation lists
		!in.ReadASN1(&signers, casn1.SET) || !in.Empty() {
		return nil, errStructure
	}
	if !signers.ReadASN1(&signer, casn1.SEQUENCE) || !signers.Empty() {
		return nil, errors.New("it has no signature, or more than one")
	}
	info, err := readSignerInfo(signer)
	if err != nil {
		return nil, err
	}
	if s.Signer, err = findSigner(certs, info); err != nil {
		return nil, err
	}
	if s.attributes, err = readAttributes(info.attributes); err != nil {
		return nil, err
	}
	if err := s.checkContent(info.hash, contentType); err != nil {
		return nil, err
	}
	return s, info.check(s.Signer.Key)
}

// readContent reads the optional content. An empty one counts as none: older
// clients write so what RFC 8894 wants left out.
func readContent(encap cryptobyte.String, content *[]byte) bool {
	if encap.Empty() {
		return true
	}
	var wrapped, octets cryptobyte.String
	if !encap.ReadASN1(&wrapped, tagExplicit0) || !encap.Empty() ||
		!wrapped.ReadASN1(&octets, casn1.OCTET_STRING) || !wrapped.Empty() {
		return false
	}
	if len(octets) > 0 {
		*content = octets
	}
	return true
}

type signerInfo struct {
	issuer, serial []byte
	hash           crypto.Hash
	algorithm      asn1.ObjectIdentifier
	attributes     cryptobyte.String // inside of the SET
	signature      []byte
}

func readSignerInfo(in cryptobyte.String) (info signerInfo, err error) {
	var id, issuer, serial, signature cryptobyte.String
	var hasAttributes bool
	if !in.SkipASN1(casn1.INTEGER) || !in.ReadASN1(&id, casn1.SEQUENCE) ||
		!id.ReadASN1Element(&issuer, casn1.SEQUENCE) || !id.ReadASN1Element(&serial, casn1.INTEGER) || !id.Empty() {
		return info, errors.New("its signer is not named by issuer and serial number")
	}
	digest, _, ok := readAlgorithm(&in)
	if !ok || !in.ReadOptionalASN1(&info.attributes, &hasAttributes, tagExplicit0) || !hasAttributes {
		return info, errors.New("its signature covers no attributes")
	}
	if info.algorithm, _, ok = readAlgorithm(&in); !ok || !in.ReadASN1(&signature, casn1.OCTET_STRING) ||
		!in.SkipOptionalASN1(tagConstructed1) || !in.Empty() {
		return info, errStructure
	}
	switch {
	case digest.Equal(oidSHA256):
		info.hash = crypto.SHA256
	case digest.Equal(oidSHA384):
		info.hash = crypto.SHA384
	case digest.Equal(oidSHA512):
		info.hash = crypto.SHA512
	default:
		return info, fmt.Errorf("digest %v: %w, SHA-256 is needed", digest, ErrAlgorithm)
	}
	info.issuer, info.serial, info.signature = issuer, serial, signature
	return info, nil
}

// findSigner returns the certificate that the signature names, with its key.
func findSigner(certs cryptobyte.String, info signerInfo) (Certificate, error) {
	for count := 0; !certs.Empty(); count++ {
		var raw cryptobyte.String
		if count == maxCertificates {
			return Certificate{}, fmt.Errorf("it brings more than %d certificates", maxCertificates)
		}
		if !certs.ReadASN1Element(&raw, casn1.SEQUENCE) {
			return Certificate{}, errStructure
		}
		c, spki, err := readCertificate(raw)
		if err != nil {
			return Certificate{}, err
		}
		if !bytes.Equal(c.Issuer, info.issuer) || !bytes.Equal(c.Serial, info.serial) {
			continue
		}
		if c.Key, err = x509.ParsePKIXPublicKey(spki); err != nil {
			return Certificate{}, fmt.Errorf("the signer's key: %w", err)
		}
		// Before the signature: checking one by an absurdly large key takes long.
		if err := pki.CheckKey(c.Key); err != nil {
			return Certificate{}, fmt.Errorf("the signer's key: %w", err)
		}
		return c, nil
	}
	return Certificate{}, errors.New("the signer's certificate is not in it")
}

// readAttributes wants every attribute once and with one value, so that no two
// readers can understand a message differently.
func readAttributes(in cryptobyte.String) (list []attribute, err error) {
	for !in.Empty() {
		var seq, set, value cryptobyte.String
		var a attribute
		if !in.ReadASN1(&seq, casn1.SEQUENCE) || !seq.ReadASN1ObjectIdentifier(&a.oid) ||
			!seq.ReadASN1(&set, casn1.SET) || !seq.Empty() ||
			!set.ReadAnyASN1(&value, &a.tag) || !set.Empty() {
			return nil, errors.New("its attributes are not well-formed")
		}
		for _, b := range list {
			if b.oid.Equal(a.oid) {
				return nil, fmt.Errorf("attribute %v stands in it twice", a.oid)
			}
		}
		if len(list) == 32 {
			return nil, errors.New("it has too many attributes")
		}
		a.value = value
		list = append(list, a)
	}
	return list, nil
}

// checkContent binds the content to the attributes, which are what is signed.
func (s *Signed) checkContent(hash crypto.Hash, contentType asn1.ObjectIdentifier) error {
	tag, value, ok := s.Attribute(oidContentType)
	if want, err := asn1.Marshal(contentType); err != nil || !ok || tag != casn1.OBJECT_IDENTIFIER || !bytes.Equal(value, contentOf(want)) {
		return errors.New("its content is not of the type that was signed")
	}
	tag, value, ok = s.Attribute(oidDigest)
	if !ok || tag != casn1.OCTET_STRING || subtle.ConstantTimeCompare(value, digest(hash, s.Content)) != 1 {
		return errors.New("its content is not what was signed")
	}
	return nil
}

func digest(hash crypto.Hash, data []byte) []byte {
	switch hash {
	case crypto.SHA512:
		sum := sha512.Sum512(data)
		return sum[:]
	case crypto.SHA384:
		sum := sha512.Sum384(data)
		return sum[:]
	default:
		sum := sha256.Sum256(data)
		return sum[:]
	}
}

// check verifies the signature over the attributes.
func (info signerInfo) check(key crypto.PublicKey) error {
	// They travel under the tag [0] but are signed as what they are, a SET.
	signed := append(appendHeader(nil, byte(casn1.SET), len(info.attributes)), info.attributes...)
	sum := digest(info.hash, signed)
	switch key := key.(type) {
	case *rsa.PublicKey:
		want := map[crypto.Hash]asn1.ObjectIdentifier{crypto.SHA256: oidRSASHA256, crypto.SHA384: oidRSASHA384, crypto.SHA512: oidRSASHA512}
		if !info.algorithm.Equal(oidRSA) && !info.algorithm.Equal(want[info.hash]) {
			return fmt.Errorf("signature %v: %w, RSA with PKCS#1 v1.5 padding is needed", info.algorithm, ErrAlgorithm)
		}
		if err := rsa.VerifyPKCS1v15(key, info.hash, sum, info.signature); err != nil {
			return errors.New("its signature is wrong")
		}
		return nil
	case *ecdsa.PublicKey:
		want := map[crypto.Hash]asn1.ObjectIdentifier{crypto.SHA256: oidECDSASHA256, crypto.SHA384: oidECDSASHA384, crypto.SHA512: oidECDSASHA512}
		if !info.algorithm.Equal(want[info.hash]) {
			return fmt.Errorf("signature %v: %w", info.algorithm, ErrAlgorithm)
		}
		if !ecdsa.VerifyASN1(key, sum, info.signature) {
			return errors.New("its signature is wrong")
		}
		return nil
	}
	return fmt.Errorf("a key of type %T: %w", key, ErrAlgorithm)
}
