package enroll

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/pki"
)

// Keys in the store.
const (
	codePrefix    = "enroll/codes/"    // + SHA-256 of the code, hex: a code
	requestPrefix = "enroll/requests/" // + ID: a request
)

const recordVersion = 1

// A code is one code at rest.
type code struct {
	Version int       `json:"v"`
	Name    string    `json:"name,omitempty"`
	Hosts   []string  `json:"hosts,omitempty"`
	Until   time.Time `json:"until,omitzero"`
	Admin   bool      `json:"admin,omitempty"`
	Approve bool      `json:"approve,omitempty"`
	By      string    `json:"by,omitempty"` // who invited
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	UsedBy  *user     `json:"used_by,omitempty"` // nil: it waits

	hash     string
	revision uint64
}

// A user is the one applicant whom a used code belongs to.
type user struct {
	Request string `json:"request"`
	KeyID   string `json:"key"`
	Ticket  string `json:"ticket,omitempty"` // hash
}

// clockSlack is how far the clocks of several relays may differ.
const clockSlack = time.Minute

// alive reports whether a code that nobody used may still be used. A clock
// that was set back must not make it live longer.
func (c *code) alive(now time.Time) bool {
	return now.Before(c.Expires) && !now.Before(c.Created.Add(-clockSlack))
}

// opens reports whether the code serves an applicant: it waits for one, or it
// is this one's own.
func (c *code) opens(keyID, ticket string, now time.Time) bool {
	if c.UsedBy == nil {
		return c.alive(now)
	}
	return equal(c.UsedBy.KeyID, keyID) && equal(c.UsedBy.Ticket, ticket)
}

// stateApproved is a state at rest only: granted, but the certificate is not
// there yet. To everybody it looks pending.
const stateApproved State = "approved"

// A request is one Request at rest.
type request struct {
	Version int        `json:"v"`
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	State   State      `json:"state"`
	Via     string     `json:"via"`
	Agent   string     `json:"agent,omitempty"`
	Source  netip.Addr `json:"source,omitzero"`
	SPKI    []byte     `json:"spki"`             // the key, DER
	Ticket  string     `json:"ticket,omitempty"` // hash
	Code    string     `json:"code,omitempty"`   // hash
	Approve bool       `json:"approve,omitempty"`
	Hosts   []string   `json:"hosts,omitempty"`
	Until   time.Time  `json:"until,omitzero"`
	Admin   bool       `json:"admin,omitempty"`
	Created time.Time  `json:"created"`
	Expires time.Time  `json:"expires"`
	Forget  time.Time  `json:"forget"`
	Cert    []byte     `json:"cert,omitempty"`

	keyID    string
	revision uint64
}

// undecided reports whether the request can still become a certificate.
func (r *request) undecided() bool { return r.State == Pending || r.State == stateApproved }

func (r *request) view(now time.Time) Request {
	state := r.State
	if state == stateApproved {
		state = Pending
	}
	if state == Pending && !now.Before(r.Expires) {
		state = Expired
	}
	return Request{
		ID: r.ID, Name: r.Name, State: state, Via: r.Via, Agent: r.Agent, Source: r.Source,
		Words: Words(r.keyID), KeyID: r.keyID, Created: r.Created, Expires: r.Expires,
		Hosts: r.Hosts, Until: r.Until, Admin: r.Admin, Coded: r.Code != "", Cert: r.Cert,
	}
}

func encode(record any) ([]byte, error) {
	data, err := json.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return data, nil
}

// decodeCode fails on all that it does not wholly understand: a lost field
// could be a lost restriction.
func decodeCode(hash string, data []byte, revision uint64) (*code, error) {
	c := code{hash: hash, revision: revision}
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("the record is damaged: %w", err)
	}
	switch {
	case c.Version != recordVersion:
		return nil, fmt.Errorf("the record has version %d, this sallyport reads %d", c.Version, recordVersion)
	case !isHash(hash):
		return nil, errors.New("its key is not the hash of a code")
	case c.Created.IsZero() || !c.Created.Before(c.Expires):
		return nil, errors.New("the record has no dates")
	case c.Name != "" && !validName(c.Name):
		return nil, errors.New("the name in the record is malformed")
	case c.UsedBy != nil && (!isID(c.UsedBy.Request) || !isHash(c.UsedBy.KeyID)):
		return nil, errors.New("the record does not say who used it")
	}
	c.Approve = c.Approve || c.Name == "" // older ones may not say so
	return &c, checkPatterns(c.Hosts)
}

func decodeRequest(id string, data []byte, revision uint64) (*request, error) {
	r := request{revision: revision}
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("the record is damaged: %w", err)
	}
	switch {
	case r.Version != recordVersion:
		return nil, fmt.Errorf("the record has version %d, this sallyport reads %d", r.Version, recordVersion)
	case !isID(id) || r.ID != id:
		return nil, errors.New("the record is not the one of its key")
	case r.State != Pending && r.State != stateApproved && r.State != Issued && r.State != Denied && r.State != Expired:
		return nil, errors.New("the record is in an unknown state")
	case !validName(r.Name):
		return nil, errors.New("the name in the record is malformed")
	case r.Created.IsZero() || r.Expires.IsZero() || r.Forget.IsZero():
		return nil, errors.New("the record has no dates")
	case r.State == Issued && len(r.Cert) == 0:
		return nil, errors.New("the record lacks its certificate")
	}
	pub, err := x509.ParsePKIXPublicKey(r.SPKI)
	if err == nil {
		err = pki.CheckKey(pub)
	}
	if err != nil {
		return nil, fmt.Errorf("the key in the record: %w", err)
	}
	r.keyID = hash(string(r.SPKI))
	return &r, checkPatterns(r.Hosts)
}

func checkPatterns(hosts []string) error {
	for _, h := range hosts {
		if p, err := names.ValidPattern(h); err != nil || p != h {
			return fmt.Errorf("the host pattern %q in the record is not valid", h)
		}
	}
	return nil
}

// hash is how secrets are stored. They have 128 random bits or more, so that a
// plain hash is enough, and looking up by it is the comparison: what leaks
// through timing is at most the hash of a guess.
func hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

func isHash(s string) bool {
	return len(s) == 2*sha256.Size && strings.Trim(s, "0123456789abcdef") == ""
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// idLetters are 32 that nobody takes for each other when typing them.
const (
	idLetters = "abcdefghijkmnpqrstuvwxyz23456789"
	idLength  = 8
)

func newID() string {
	id := make([]byte, idLength)
	rand.Read(id) // never fails
	return letters(id)
}

// letters spells bytes.
func letters(raw []byte) string {
	id := make([]byte, len(raw))
	for i := range id {
		id[i] = idLetters[int(raw[i])%len(idLetters)]
	}
	return string(id)
}

// id is the public name of a code: of a hash of its hash, so that it leads to
// neither.
func (c *code) id() string {
	sum := sha256.Sum256([]byte("sallyport code\n" + c.hash))
	return letters(sum[:idLength])
}

func isID(s string) bool { return len(s) == idLength && strings.Trim(s, idLetters) == "" }

// normal is a code as it was made, whatever a person made of it: links in
// capitals, groups with hyphens. What is too long to be a code becomes empty,
// which is none.
func normal(code string) string {
	if len(code) > 200 {
		return ""
	}
	return strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z':
			return c - 'a' + 'A'
		case c == '-' || c == ' ' || c == '\t' || c == '\r' || c == '\n':
			return -1
		}
		return c
	}, code)
}

// validName reports whether s is [a-z0-9][a-z0-9-]{0,62}.
func validName(s string) bool {
	return s != "" && len(s) <= maxName && s[0] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

const maxName = 63

// cleanName makes a valid name of what somebody wished, or nothing.
func cleanName(wish string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(wish) {
		if b.Len() == maxName {
			break
		}
		switch {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9':
			b.WriteRune(c)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	return strings.TrimSuffix(b.String(), "-")
}
