package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/mholt/acmez/v3"

	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/pki"
)

// Where certificates come from: values of Config.Mode.
const (
	ModeACME     = "acme"     // Let's Encrypt or another ACME server
	ModeFiles    = "files"    // pairs of PEM files that somebody else renews
	ModeInternal = "internal" // the home's own CA, which every device must trust first
)

// ALPN is the protocol of the challenge tls-alpn-01 (RFC 8737).
const ALPN = acmez.ACMETLS1Protocol

// ErrNoDNS is the answer of Config.SetTXT when the relay does not answer the
// zone's DNS. Then tls-alpn-01 is the way, and wildcards are out of reach.
var ErrNoDNS = errors.New("the relay does not answer the DNS of its zone")

// ErrRefused is wrapped by the answer of Config.SetTXT when the relay is there
// and does not let us set this name: tls-alpn-01 may still be a way.
var ErrRefused = errors.New("the relay refuses the record")

// Config is what New needs. Dir and Domain are required.
type Config struct {
	// Dir keeps account, keys and certificates (0700, files 0600). One process
	// at a time uses it.
	Dir string
	// Mode is ModeACME, ModeFiles or ModeInternal. Default ModeACME.
	Mode  string
	ACME  ACME   // of ModeACME
	Files []Pair // of ModeFiles
	// CA signs in ModeInternal. Nil: one is made, and kept in Dir.
	CA *pki.Authority

	// Domain is the relay's, and Own the agent's name below it (HASH.DOMAIN).
	// Own may be empty: then there is no certificate for it. Both canonical.
	Domain, Own string
	// SetTXT sets all values of one TXT record in the relay's DNS and returns
	// when that gives them; no values: the record goes. name is
	// "_acme-challenge." and a canonical host. ErrNoDNS: this relay answers no DNS.
	// Any other error: the relay is not there, or refuses the name; the CA is not
	// asked then, and the look is repeated (see Connected). It may be called by
	// several goroutines for different names, for one name in order. Nil:
	// never possible.
	SetTXT func(ctx context.Context, name string, values []string) error
	// Account is told the URI of our account at the CA and the names that the CA
	// has in CAA records (at most 4; none: it does not say), at the start of Run
	// when it is known from before, and before the first order of a new account.
	// It returns when the relay knows, or cannot be told now. Nil: nobody asks.
	Account func(uri string, issuers []string)

	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: no logs

	// HTTPClient reaches the CA. Nil: one that trusts the system's roots and
	// ACME.RootFile.
	HTTPClient *http.Client
	// Dial opens a connection to "HOST:443" to see, before the CA does, whether a
	// host leads here. Nil: the system's.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// ACME says whom to ask. Whoever uses it agrees to the terms of service of the
// CA.
type ACME struct {
	// CA is the URL of the ACME directory, https unless it is on loopback.
	// Default Let's Encrypt.
	CA string
	// RootFile is a PEM file of roots that are trusted for connections to the CA
	// beside the system's. Default none.
	RootFile string
	// Email is given to the CA for the account. Default none.
	Email string
}

// A Pair names the PEM files of a certificate (the leaf first, then its chain)
// and of its key.
type Pair struct {
	Cert, Key string
}

// States of a host's certificate.
const (
	StateOK      = "ok"      // it serves
	StateIssuing = "issuing" // the first one is on its way
	StateFailing = "failing" // see Problem; an old one serves on while NotAfter is ahead
	StateRefused = "refused" // nobody will be asked for this name
	StateOff     = "off"     // not possible with this relay, and no service needs it
)

// Status is how the certificate of one host stands.
type Status struct {
	Host, State  string
	Issuer       string    // of the certificate that serves
	NotAfter     time.Time // of the same; zero: there is none
	Next         time.Time // when it is renewed, or tried again; zero: never, or not by us
	Problem, Fix string    // one line each; empty while all is well
}

// A source is one way to get certificates.
type source interface {
	setHosts(hosts []string)
	run(ctx context.Context) error
	get(name string) (*tls.Certificate, error)
	status() []Status
}

// Certs holds the certificates of one agent. All methods may be called at any
// time by anybody.
type Certs struct {
	source source
	acme   *orders        // ModeACME; otherwise nil
	ca     *pki.Authority // ModeInternal; otherwise nil
}

// New reads no network and starts nothing: what is kept in Dir serves as soon
// as SetHosts names the hosts.
func New(c Config) (*Certs, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	switch c.Mode {
	case "", ModeACME:
		o, err := newOrders(c)
		if err != nil {
			return nil, err
		}
		return &Certs{source: o, acme: o}, nil
	case ModeFiles:
		f, err := loadFiles(c)
		if err != nil {
			return nil, err
		}
		return &Certs{source: f}, nil
	case ModeInternal:
		i, err := newInternal(c)
		if err != nil {
			return nil, err
		}
		return &Certs{source: i, ca: i.ca}, nil
	}
	return nil, fmt.Errorf("certificates of the home: there is no way called %q\nuse %s, %s or %s", c.Mode, ModeACME, ModeFiles, ModeInternal)
}

func (c *Config) check() error {
	if c.Dir == "" && c.Mode != ModeFiles {
		return errors.New("certificates of the home: a directory for keys is needed")
	}
	for _, name := range []string{c.Domain, c.Own} {
		if name == "" {
			continue
		}
		if canonical, err := names.Canonical(name); err != nil {
			return fmt.Errorf("certificates of the home: %w", err)
		} else if canonical != name {
			return fmt.Errorf("certificates of the home: %q is not in canonical form, which is %q", name, canonical)
		}
	}
	if c.Domain == "" {
		return errors.New("certificates of the home: the relay's domain is not known")
	}
	return nil
}

// Run obtains and renews until ctx ends, and returns after everything that it
// started has ended.
func (c *Certs) Run(ctx context.Context) error { return c.source.run(ctx) }

// SetHosts replaces the list of hosts, exact or "*.x". What is kept for a new
// one serves when SetHosts returns; what is missing is obtained by Run. Keys and
// certificates of hosts that are no longer listed stay in Dir, for they may
// come back.
func (c *Certs) SetHosts(hosts []string) { c.source.setHosts(hosts) }

// GetCertificate returns the certificate for a canonical name: one of exactly
// that name before a wildcard, never one of another name. It never waits for
// the network. An expired one is returned too: a browser's warning tells the
// owner more than a dead port.
func (c *Certs) GetCertificate(name string) (*tls.Certificate, error) { return c.source.get(name) }

// Challenge answers a CA's handshake for tls-alpn-01 (RFC 8737). It is false
// when no challenge for that name is open or the hello offers any protocol
// beside ALPN.
func (c *Certs) Challenge(hello *tls.ClientHelloInfo) (*tls.Certificate, bool) {
	if c.acme == nil {
		return nil, false
	}
	return c.acme.answers.cert(hello)
}

// Status says how the certificate of each host stands, by name.
func (c *Certs) Status() []Status { return c.source.status() }

// Root returns the home's own CA in ModeInternal, otherwise nil.
func (c *Certs) Root() *x509.Certificate {
	if c.ca == nil {
		return nil
	}
	return c.ca.Cert()
}

// Connected says that a relay is there (again): what waited for it is looked
// at now, and not at its next turn.
func (c *Certs) Connected() {
	if c.acme != nil {
		c.acme.connected()
	}
}

// Retry tries a failing host again at once instead of at its next turn, but
// not before the time that the CA itself has named.
func (c *Certs) Retry(host string) error {
	if c.acme == nil {
		return nil
	}
	return c.acme.retry(host)
}
