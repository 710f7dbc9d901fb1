package devices

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

// Keys in the store.
const (
	docPrefix  = "devices/"     // + name: a document
	keyPrefix  = "device-keys/" // + ID: the name that the key was certified for, a space, when (RFC 3339; in old ones only the name)
	seenPrefix = "device-seen/" // + ID: RFC 3339
	crlKey     = "device-crl"   // decimal number of the last revocation list
	clockKey   = "device-clock" // what the owner said about the clock: a clockReset
)

// documentVersion is what is written. 2 added tokens, generations that renew
// each other, admin and until. 1 is still read.
const documentVersion = 2

// A document is the value of "devices/NAME": every device that had the name,
// the oldest first.
type document struct {
	Version int      `json:"v"`
	Devices []record `json:"devices"`
}

// A record is one device. What its certificate says is not repeated.
type record struct {
	Kind      string    `json:"kind"`
	Cert      []byte    `json:"cert,omitempty"`  // DER
	Chain     string    `json:"chain,omitempty"` // ID of the generation that the chain of renewals began with; empty: this one
	Hosts     []string  `json:"hosts,omitempty"` // of a token: the one host that it reaches
	Until     time.Time `json:"until,omitzero"`
	Admin     bool      `json:"admin,omitempty"`
	TokenHost string    `json:"token_host,omitempty"`
	Secret    []byte    `json:"secret_sha256,omitempty"`
	Path      string    `json:"path,omitempty"`
	Created   time.Time `json:"created"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`

	cert *x509.Certificate // nil for tokens
}

func (r *record) live() bool { return r.RevokedAt.IsZero() }

// id returns the device's ID. That of a token says nothing about its secret.
func (r *record) id() string {
	if r.cert != nil {
		return deviceID(r.cert)
	}
	sum := sha256.Sum256([]byte("sallyport token\n" + r.TokenHost + "\n" + r.Created.UTC().Format(time.RFC3339Nano)))
	return hex.EncodeToString(sum[:])
}

// chain names the generations that belong together.
func (r *record) chain() string {
	if r.Chain != "" {
		return r.Chain
	}
	return r.id()
}

// end returns when the rights end, zero for never.
func (r *record) end() time.Time {
	dev := Device{Until: r.Until}
	if r.cert != nil {
		dev.NotAfter = r.cert.NotAfter
	}
	return dev.Ends()
}

// live returns the generations that are not revoked; none: the name is free.
func (doc *document) live() (list []*record) {
	for i := range doc.Devices {
		if doc.Devices[i].live() {
			list = append(list, &doc.Devices[i])
		}
	}
	return list
}

func (doc *document) last() *record { return &doc.Devices[len(doc.Devices)-1] }

func (doc *document) find(id string) *record {
	i := slices.IndexFunc(doc.Devices, func(r record) bool { return r.id() == id })
	if i < 0 {
		return nil
	}
	return &doc.Devices[i]
}

func (doc *document) encode() ([]byte, error) {
	doc.Version = documentVersion
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
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	err := dec.Decode(&doc)
	if doc.Version > documentVersion { // before its new fields are called damage
		return nil, fmt.Errorf("the record has version %d, this sallyport reads up to %d: use the newer one", doc.Version, documentVersion)
	}
	if err == nil {
		if _, end := dec.Token(); end != io.EOF {
			err = errors.New("there is more than one record")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the record is damaged: %w", err)
	}
	if doc.Version < 1 {
		return nil, fmt.Errorf("the record is damaged: its version is %d", doc.Version)
	}
	if len(doc.Devices) == 0 {
		return nil, errors.New("the record is empty")
	}
	ids := map[string]bool{}
	for i := range doc.Devices {
		r := &doc.Devices[i]
		if err := r.check(); err != nil {
			return nil, err
		}
		if id := r.id(); ids[id] {
			return nil, errors.New("the record holds one device twice")
		} else {
			ids[id] = true
		}
		if doc.Version == 1 {
			r.guessUntil()
		}
	}
	live := doc.live()
	for _, r := range live {
		if r.chain() != live[0].chain() {
			return nil, errors.New("the record holds two live devices of one name")
		}
	}
	return &doc, nil
}

// check reads the certificate and says what cannot be in a record.
func (r *record) check() error {
	for _, p := range r.Hosts {
		if canonical, err := names.ValidPattern(p); err != nil || canonical != p {
			return fmt.Errorf("the host pattern %q in the record is not valid", p)
		}
	}
	switch r.Kind {
	case KindCertificate:
		cert, err := x509.ParseCertificate(r.Cert)
		if err != nil {
			return fmt.Errorf("the certificate in the record: %w", err)
		}
		if r.TokenHost != "" || r.Secret != nil || r.Path != "" {
			return errors.New("the record is of a certificate and of a token")
		}
		r.cert = cert
		return nil
	case KindToken:
		return r.checkToken()
	}
	return fmt.Errorf("the record is of an unknown kind %q", r.Kind)
}

func (r *record) checkToken() error {
	if r.Cert != nil || r.Chain != "" || r.Admin {
		return errors.New("the record of a token has rights of a certificate")
	}
	if host, err := names.Canonical(r.TokenHost); err != nil || host != r.TokenHost {
		return fmt.Errorf("the token's host %q in the record is not valid", r.TokenHost)
	}
	if len(r.Secret) != sha256.Size {
		return errors.New("the record of a token has no secret")
	}
	if len(r.Hosts) != 1 || strings.HasPrefix(r.Hosts[0], "*") {
		return errors.New("the record of a token does not name the one host that it reaches")
	}
	return checkTokenPath(r.Path)
}

// guessUntil fills in what version 1 did not write: that the owner had set an
// end. Its certificates lived 365 days unless he had. Without it a guest's
// certificate could be renewed for ever.
func (r *record) guessUntil() {
	if r.cert != nil && r.Until.IsZero() && r.cert.NotAfter.Sub(r.Created.Add(defaultLifetime)).Abs() > time.Minute {
		r.Until = r.cert.NotAfter
	}
}

// deviceID returns the ID of a certificate's key.
func deviceID(cert *x509.Certificate) string { return keyID(cert.RawSubjectPublicKeyInfo) }

func keyID(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// validName reports whether s is [a-z0-9][a-z0-9-]{0,62}.
func validName(s string) bool {
	return s != "" && len(s) <= 63 && s[0] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
