// Package enroll is the desk at which devices ask for their certificate. It
// knows one-time codes, the queue of requests that wait for the owner, and the
// one way by which every protocol (page, SCEP, EST, command line) gets a
// certificate issued.
//
//	desk, err := enroll.New(ctx, enroll.Config{Store: kv, Issue: issue, Issued: issued, CheckName: free})
//	go desk.Run(ctx)
//	code, expires, err := desk.Invite(ctx, enroll.Invitation{Name: "anna-phone"})
//	req, err := desk.Apply(ctx, enroll.Application{Code: code, CSR: der, Ticket: ticket, Source: addr, Via: enroll.ViaBrowser})
//	req, err = desk.Status(ctx, addr, req.ID, ticket) // until req.State is no longer pending
//
// # Codes
//
// A code has 130 random bits, lives 15 minutes, and opens the door for one
// key. Only its hash is stored. Looking at it changes nothing; Apply binds it
// to the applicant's key and ticket with one compare-and-set before anything
// is issued, so that of many that race exactly one wins. The winner may ask
// again with the same three and gets the same answer, however often a crash or
// a lost connection came between. Wrong, used, withdrawn and expired codes get
// one answer, and wrong tries are counted by source; see guard.
//
// # Requests
//
// In the store, "enroll/codes/HASH" is a code and "enroll/requests/ID" a
// request. A request is pending until the owner approves it, then approved,
// then issued; with a code that needs no approval it is approved from the
// begin. A code without a name always needs one: backends are told the name of
// a device, and a visitor who called himself "admin" could be believed. What is approved and not yet issued is issued by Run, whatever
// happened in between.
package enroll

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport/sallyport/relay/store"
)

// Errors that callers decide by.
var (
	// ErrCode is the one answer to a code that opens nothing: it does not say
	// whether the code was wrong, used, withdrawn or too old.
	ErrCode = errors.New("the code is not valid: wrong, already used, or older than its time\n" +
		"Ask the owner for a new link: sallyport device add NAME")
	// ErrBlocked matches every *BlockedError.
	ErrBlocked = errors.New("too many wrong tries from this address")
	// ErrUnknown means that there is no such request, or that the ticket is
	// not its own.
	ErrUnknown = errors.New("no such request")
	// ErrNameTaken means that the name belongs to another device. CheckName
	// and Issue return errors that wrap it.
	ErrNameTaken = errors.New("the name belongs to another device")
	// ErrKeyUsed means that the key was certified before. Issue, and the
	// functions that renew, return errors that match it.
	ErrKeyUsed = errors.New("this key was certified before")
	// ErrNotAllowed means that a certificate cannot be renewed, because it does
	// not come in itself. Functions that renew return errors that match it.
	ErrNotAllowed = errors.New("only a certificate that is valid now can be renewed")
	// ErrFull means that too many requests without a code wait already.
	ErrFull = errors.New("too many requests wait for the owner\n" +
		"Ask the owner for a link, or try again tomorrow.")
	// ErrForm matches errors about the application itself (its signing
	// request, its name), which the applicant can mend.
	ErrForm = errors.New("the application is not in order")
)

// A formError is about an application itself. It matches ErrForm.
type formError struct{ error }

func (e formError) Unwrap() error        { return e.error }
func (e formError) Is(target error) bool { return target == ErrForm }

// A BlockedError tells a source that it must wait. It matches ErrBlocked.
type BlockedError struct{ After time.Duration }

func (e *BlockedError) Error() string {
	return fmt.Sprintf("%v\nTry again in %v.", ErrBlocked, e.RetryAfter())
}

// Is makes errors.Is(err, ErrBlocked) true.
func (e *BlockedError) Is(target error) bool { return target == ErrBlocked }

// RetryAfter is how long to wait, in whole seconds, at least one.
func (e *BlockedError) RetryAfter() time.Duration {
	return max(time.Second, (e.After + time.Second - 1).Truncate(time.Second))
}

// An Invitation says what the device that comes with a code will get.
type Invitation struct {
	Name    string        // empty: the visitor names the device, which implies Approve
	Hosts   []string      // patterns of where it may go; empty: everywhere
	Until   time.Time     // when its rights end; zero: with the certificate
	Admin   bool          // may use the dashboard
	Approve bool          // the owner approves the request before it is granted
	By      string        // who invites: an actor's name, or "local"; clipped to 80 characters. Look does not tell
	TTL     time.Duration // how long the code lives; 0: 15 minutes, at most 7 days. From Look: what is left
	Expires time.Time     // from Look: the end of the code. Invite ignores it
}

// A Grant is what Issue makes a certificate of.
type Grant struct {
	Name  string
	Key   crypto.PublicKey
	Hosts []string
	Until time.Time
	Admin bool
}

// Config says what a Desk works with. Store, Issue, Issued and CheckName are
// required.
type Config struct {
	Store store.KV

	// Issue records a device and returns its certificate. It is called by one
	// goroutine at a time. Its error reaches the applicant or the owner; it
	// wraps ErrNameTaken when the name went to somebody else.
	Issue func(ctx context.Context, g Grant) (*x509.Certificate, error)

	// Issued returns the live certificate of a key, or nil when there is none
	// (SHA-256 of the SubjectPublicKeyInfo, hex). It settles what became of an
	// Issue that failed or that a crash cut short.
	Issued func(ctx context.Context, keyID string) (*x509.Certificate, error)

	// CheckName says why a device cannot have a name: malformed, or taken
	// (wraps ErrNameTaken).
	CheckName func(name string) error

	Open   bool             // requests without a code may wait for approval
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: silent

	// Audit records what an owner wants to look up later. Nil: nothing.
	Audit func(event string, attrs ...slog.Attr)
	// Changed is called without locks held after codes or requests changed. It
	// must not block. Nil: nobody is told.
	Changed func()
}

func (c *Config) fill() error {
	if c.Store == nil || c.Issue == nil || c.Issued == nil || c.CheckName == nil {
		return errors.New("enroll: a store, Issue, Issued and CheckName are needed")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Audit == nil {
		c.Audit = func(string, ...slog.Attr) {}
	}
	if c.Changed == nil {
		c.Changed = func() {}
	}
	return nil
}

// A State is how far a request has come.
type State string

// The states.
const (
	Pending State = "pending" // waits for the owner, or is being issued
	Issued  State = "issued"  // the certificate is there
	Denied  State = "denied"  // by the owner
	Expired State = "expired" // nobody decided in time
)

// How an application came.
const (
	ViaBrowser = "browser"
	ViaSCEP    = "scep"
	ViaEST     = "est"
	ViaCLI     = "cli"
)

// An Application is what a device hands in. Everything in it is hostile until
// checked; of the CSR only the key is used, and the common name as a wish when
// there is no other name.
type Application struct {
	Code   string     // any letter case, spaces and hyphens do not matter; empty only where the desk is Open
	CSR    []byte     // PKCS#10, DER
	Name   string     // wished; ignored when the invitation has one
	Ticket string     // a secret of 22 to 200 characters with at least 128 random bits; empty: Status never answers, only StatusOfKey
	Source netip.Addr // who asks
	Via    string     // ViaBrowser, …
	Agent  string     // the User-Agent header, clipped here
}

// A Request is one application at the desk.
type Request struct {
	ID      string // 8 characters, public, for the owner to type
	Name    string
	State   State
	Via     string
	Agent   string
	Source  netip.Addr
	Words   string // the key's fingerprint, shown on both screens
	KeyID   string // SHA-256 of the key's SubjectPublicKeyInfo, hex
	Created time.Time
	Expires time.Time // when it is no longer pending without a decision
	Hosts   []string  // shared: do not change
	Until   time.Time
	Admin   bool
	Coded   bool   // it came with a code
	Cert    []byte // DER, when issued
}

// CodeInfo describes a code that waits to be used. The code itself is known to
// nobody here.
type CodeInfo struct {
	ID      string // 8 characters, public: says nothing about the code
	Name    string // empty: the visitor names the device
	By      string // who invited; empty: not known
	Hosts   []string
	Until   time.Time // of the device's rights; zero: none
	Admin   bool
	Approve bool
	Created time.Time
	Expires time.Time
}

// A Desk is safe for concurrent use.
type Desk struct {
	cfg Config

	// writing holds one token: it serialises Apply, Approve and Deny across
	// their store writes and Issue. Wrong codes never get as far.
	writing chan struct{}

	mu       sync.Mutex // guards the fields below; never held across I/O or callbacks
	codes    map[string]*code
	requests map[string]*request
	waiting  map[string]chan struct{} // by request ID: closed at its next change
	guard    guard
}
