package devices

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

// Keys in the store.
const (
	docPrefix  = "devices/"     // + name: a document
	keyPrefix  = "device-keys/" // + ID: the name that the key was certified for
	seenPrefix = "device-seen/" // + ID: RFC 3339
)

const documentVersion = 1

// maxGenerations bounds a document. A device that falls out is unknown instead
// of revoked, and its key stays used.
const maxGenerations = 50

// A document is the value of "devices/NAME": every device that had the name,
// the oldest first.
type document struct {
	Version int      `json:"v"`
	Devices []record `json:"devices"`
}

// A record is one device. What the certificate says is not repeated.
type record struct {
	Cert      []byte    `json:"cert"` // DER
	Hosts     []string  `json:"hosts,omitempty"`
	Created   time.Time `json:"created"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
	Kind      string    `json:"kind"`

	cert *x509.Certificate
}

func (r *record) live() bool { return r.RevokedAt.IsZero() }

func (doc *document) last() *record { return &doc.Devices[len(doc.Devices)-1] }

func (doc *document) encode() ([]byte, error) {
	data, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode device: %w", err)
	}
	return data, nil
}

// decodeDocument reads a document and fails on all that it does not wholly
// understand: a lost field could be a lost restriction.
func decodeDocument(name string, data []byte) (*document, error) {
	if !validName(name) {
		return nil, fmt.Errorf("%q is no device name", name)
	}
	var doc document
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("the record is damaged: %w", err)
	}
	if doc.Version != documentVersion {
		return nil, fmt.Errorf("the record has version %d, this sallyport reads %d: use the newer one", doc.Version, documentVersion)
	}
	if len(doc.Devices) == 0 {
		return nil, errors.New("the record is empty")
	}
	for i := range doc.Devices {
		r := &doc.Devices[i]
		cert, err := x509.ParseCertificate(r.Cert)
		if err != nil {
			return nil, fmt.Errorf("the certificate in the record: %w", err)
		}
		r.cert = cert
		for _, p := range r.Hosts {
			if canonical, err := names.ValidPattern(p); err != nil || canonical != p {
				return nil, fmt.Errorf("the host pattern %q in the record is not valid", p)
			}
		}
		if r.Kind != KindCertificate {
			return nil, fmt.Errorf("the record is of an unknown kind %q", r.Kind)
		}
		if r.live() && i != len(doc.Devices)-1 {
			return nil, errors.New("the record holds two live devices of one name")
		}
	}
	return &doc, nil
}

// deviceID returns the ID of a certificate's key.
func deviceID(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// validName reports whether s is [a-z0-9][a-z0-9-]{0,62}.
func validName(s string) bool {
	return s != "" && len(s) <= 63 && s[0] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
