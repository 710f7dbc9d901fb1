package scep

import (
	"encoding/asn1"
	"errors"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var oidChallenge = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}

const (
	tagT61       = casn1.Tag(20)
	tagBMP       = casn1.Tag(30)
	maxChallenge = 256
)

var errChallenge = errors.New("the challenge password of the request is not readable")

// challengeOf returns the challenge password of a PKCS#10 request, "" when it
// has none. crypto/x509 does not read this attribute. A request with two of
// them is refused.
func challengeOf(csr []byte) (string, error) {
	in := cryptobyte.String(csr)
	var outer, info, attributes cryptobyte.String
	var has bool
	if !in.ReadASN1(&outer, casn1.SEQUENCE) || !outer.ReadASN1(&info, casn1.SEQUENCE) ||
		!info.SkipASN1(casn1.INTEGER) || // version
		!info.SkipASN1(casn1.SEQUENCE) || // subject
		!info.SkipASN1(casn1.SEQUENCE) || // key
		!info.ReadOptionalASN1(&attributes, &has, casn1.Tag(0).ContextSpecific().Constructed()) || !info.Empty() {
		return "", errChallenge
	}
	var found []string
	for !attributes.Empty() {
		var attribute, set, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		var tag casn1.Tag
		if !attributes.ReadASN1(&attribute, casn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) {
			return "", errChallenge
		}
		if !oid.Equal(oidChallenge) {
			continue
		}
		if !attribute.ReadASN1(&set, casn1.SET) || !attribute.Empty() ||
			!set.ReadAnyASN1(&value, &tag) || !set.Empty() || len(value) > maxChallenge {
			return "", errChallenge
		}
		text, ok := directoryString(tag, value)
		if !ok {
			return "", errChallenge
		}
		found = append(found, text)
	}
	switch len(found) {
	case 0:
		return "", nil
	case 1:
		return found[0], nil
	}
	return "", errChallenge
}

// directoryString reads the string types that clients choose from.
func directoryString(tag casn1.Tag, value []byte) (string, bool) {
	switch {
	case isText(tag), tag == tagT61:
		return string(value), utf8.Valid(value)
	case tag == tagBMP && len(value)%2 == 0:
		units := make([]uint16, 0, len(value)/2)
		for i := 0; i < len(value); i += 2 {
			units = append(units, uint16(value[i])<<8|uint16(value[i+1]))
		}
		return string(utf16.Decode(units)), true
	}
	return "", false
}
