package cms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// A Message is what Sign signs, by SHA-256.
type Message struct {
	Content    []byte              // nil: the message carries none
	Key        crypto.Signer       // RSA or ECDSA; belongs to Certs[0]
	Certs      []*x509.Certificate // the signer's first, then its issuers; all travel along
	Attributes []Attribute         // signed with it, besides content type and digest
	Time       time.Time           // signing time; zero: none is written
}

// An Attribute is signed along with the content. Value is one whole element in
// DER.
type Attribute struct {
	OID   asn1.ObjectIdentifier
	Value []byte
}

// Sign returns a signed message (DER) with its content inside.
func Sign(m Message) ([]byte, error) {
	der, err := sign(m)
	if err != nil {
		return nil, fmt.Errorf("sign a message: %w", err)
	}
	return der, nil
}

func sign(m Message) ([]byte, error) {
	if m.Key == nil || len(m.Certs) == 0 {
		return nil, errors.New("a key and its certificate are needed")
	}
	if pub, ok := m.Key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(m.Certs[0].PublicKey) {
		return nil, errors.New("the key and the certificate do not belong together")
	}
	algorithm, params := oidRSA, derNull // so, and not "SHA-256 with RSA": strongSwan insists
	switch m.Key.Public().(type) {
	case *rsa.PublicKey:
	case *ecdsa.PublicKey:
		algorithm, params = oidECDSASHA256, nil
	default:
		return nil, fmt.Errorf("a key of type %T: %w", m.Key.Public(), ErrAlgorithm)
	}
	signer, err := FromX509(m.Certs[0])
	if err != nil {
		return nil, err
	}
	attributes, err := m.attributes()
	if err != nil {
		return nil, err
	}
	var signed cryptobyte.Builder
	addSet(&signed, casn1.SET, attributes)
	toSign, err := signed.Bytes()
	if err != nil {
		return nil, err
	}
	signature, err := m.Key.Sign(rand.Reader, digest(crypto.SHA256, toSign), crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return contentInfo(oidSigned, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) { addAlgorithm(b, oidSHA256, nil) })
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidData)
			if m.Content != nil {
				b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { b.AddASN1OctetString(m.Content) })
			}
		})
		addSet(b, tagExplicit0, rawCerts(m.Certs))
		b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				addIssuerAndSerial(b, signer)
				addAlgorithm(b, oidSHA256, nil)
				addSet(b, tagExplicit0, attributes)
				addAlgorithm(b, algorithm, params)
				b.AddASN1OctetString(signature)
			})
		})
	})
}

// attributes returns each attribute as DER.
func (m Message) attributes() ([][]byte, error) {
	contentType, err := asn1.Marshal(oidData)
	if err != nil {
		return nil, err
	}
	sum, err := asn1.Marshal(digest(crypto.SHA256, m.Content))
	if err != nil {
		return nil, err
	}
	all := []Attribute{{oidContentType, contentType}, {oidDigest, sum}}
	if !m.Time.IsZero() {
		at, err := asn1.Marshal(m.Time.UTC())
		if err != nil {
			return nil, err
		}
		all = append(all, Attribute{oidSigningTime, at})
	}
	var list [][]byte
	for _, a := range append(all, m.Attributes...) {
		var b cryptobyte.Builder
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(a.OID)
			b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(a.Value) })
		})
		der, err := b.Bytes()
		if err != nil {
			return nil, err
		}
		list = append(list, der)
	}
	return list, nil
}

// CertsOnly returns a message that carries certificates and neither content
// nor signature ("degenerate"), which is how SCEP hands them out.
func CertsOnly(certs ...*x509.Certificate) ([]byte, error) {
	return contentInfo(oidSigned, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(casn1.SET, func(*cryptobyte.Builder) {})
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidData) })
		// Not sorted as DER would have it: clients take the first one for theirs.
		b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) {
			for _, c := range certs {
				b.AddBytes(c.Raw)
			}
		})
		b.AddASN1(casn1.SET, func(*cryptobyte.Builder) {})
	})
}

func rawCerts(certs []*x509.Certificate) [][]byte {
	var list [][]byte
	for _, c := range certs {
		list = append(list, c.Raw)
	}
	return list
}

func addIssuerAndSerial(b *cryptobyte.Builder, c Certificate) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(c.Issuer)
		b.AddBytes(c.Serial)
	})
}
