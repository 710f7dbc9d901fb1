package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/pki"
)

// ACMEConfig is what ACME needs. Dir is required. Whoever uses it agrees to
// the terms of service of the CA.
type ACMEConfig struct {
	// Dir keeps account, keys and certificates (0700, files 0600). One process
	// at a time uses it.
	Dir string
	// CA is the URL of the ACME directory, https unless it is on loopback.
	// Default Let's Encrypt.
	CA string
	// Roots and the PEM file RootFile are trusted for connections to the CA
	// beside the system's roots.
	Roots    []*x509.Certificate
	RootFile string
	// Email is given to the CA for the account. Another address is another
	// account. Default none.
	Email string
	// Port80 and Port443 are where this machine's own probes look for
	// HTTPChallenge and ChallengeCert; a CA always looks at 80 and 443. Default
	// 80 and 443; Port80 below zero: HTTPChallenge is not served.
	Port80, Port443 int
	// NewPerDay is for how many new names the CA is asked in 24 hours; a name
	// that is tried again counts once, renewals do not count. What is over it
	// waits. Default 100; below zero: no limit. A CA has limits of its own
	// (Let's Encrypt: 50 new certificates per domain and week).
	NewPerDay int
	// NoPreflight asks the CA without looking at DNS and ports first.
	NoPreflight bool
	Resolver    Resolver         // nil: the system's
	Now         func() time.Time // nil: time.Now
	Logger      *slog.Logger     // nil: no logs
	// Events hears of certificate.issued, certificate.renewed and
	// certificate.failed (once per new reason). Nil: nobody does.
	Events func(event string, attrs ...slog.Attr)
}

// States of a host's certificate.
const (
	StateOK      = "ok"      // it serves
	StateIssuing = "issuing" // the first one is on its way
	StateFailing = "failing" // the last attempt failed; an old one serves on when NotAfter is set
	StateRefused = "refused" // no CA will be asked for this name
)

// CertStatus is how the certificate of one host stands.
type CertStatus struct {
	Host, State  string
	NotAfter     time.Time // of the certificate that serves; zero: there is none
	Issuer       string    // of the same
	Problem, Fix string    // one line each, for the relay's owner: with addresses and what probes found; empty while all is well
	Public       string    // one line for homes, without any of that; empty when Problem is
	Next         time.Time // when it is renewed, or tried again; zero: never
}

// ACME gets certificates for registered hosts from an ACME server, one per
// host, and renews them. Handshakes are served from memory: nothing is
// obtained because a visitor asked for it.
type ACME struct {
	config  ACMEConfig
	storage *storage
	answers *answers
	account *account
	http    *http.Client
	probe   *prober
	budget  *budget
	retries []time.Duration // waits after the first, second, … failure; the last one repeats

	identities atomic.Pointer[[]string] // of the CA, for CAA; nil: not asked yet

	serving atomic.Pointer[map[string]*tls.Certificate] // by host; swapped whole
	wake    chan struct{}                               // room for one: something changed

	setting sync.Mutex // one SetHosts at a time
	mu      sync.Mutex // guards all below, and the fields of managed
	hosts   map[string]*managed
	retired map[string]*managed // were listed before; see retire
	running int                 // attempts under way
}

// NewACME reads no network and starts nothing: certificates that are in Dir
// serve as soon as SetHosts names their hosts.
func NewACME(c ACMEConfig) (*ACME, error) {
	if c.Dir == "" {
		return nil, errors.New("certs: ACME needs a directory for its state")
	}
	if c.CA == "" {
		c.CA = certmagic.LetsEncryptProductionCA
	}
	if c.Port80 == 0 {
		c.Port80 = 80
	}
	if c.Port443 == 0 {
		c.Port443 = 443
	}
	if c.NewPerDay == 0 {
		c.NewPerDay = defaultBudget
	}
	if c.Resolver == nil {
		c.Resolver = systemResolver{}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Events == nil {
		c.Events = func(string, ...slog.Attr) {}
	}
	if err := checkDirectoryURL(c.CA); err != nil {
		return nil, err
	}
	client, err := newHTTPClient(c.Roots, c.RootFile)
	if err != nil {
		return nil, err
	}
	if err := pki.SecureDir(c.Dir); err != nil {
		return nil, fmt.Errorf("state of the ACME client: %w", err)
	}
	a := &ACME{
		config: c, storage: newStorage(c.Dir), answers: newAnswers(), http: client,
		retries: defaultRetries, wake: make(chan struct{}, 1), hosts: make(map[string]*managed), retired: make(map[string]*managed),
	}
	a.account = &account{storage: a.storage, ca: c.CA, email: c.Email}
	a.probe = &prober{answers: a.answers, port80: c.Port80, port443: c.Port443, loopback: onLoopback(c.CA), pause: probePause}
	a.budget = openBudget(c.Dir, c.NewPerDay, c.Logger)
	a.serving.Store(&map[string]*tls.Certificate{})
	return a, nil
}

// GetCertificate returns the certificate of a host that SetHosts named. It
// never waits. An expired one is returned too: a browser's warning tells the
// owner more than a dead port.
func (a *ACME) GetCertificate(name string) (*tls.Certificate, error) {
	if cert, ok := (*a.serving.Load())[name]; ok {
		return cert, nil
	}
	return nil, fmt.Errorf("no certificate for %q yet: sallyport relay certs says why", name)
}

// SetHosts replaces the list of hosts, canonical names or patterns. What is
// kept for a new one in Dir serves when SetHosts returns; what is not there is
// obtained by Run. Hosts that are no longer listed are neither served nor
// renewed; their files stay, for they may come back. Patterns are reported in
// Status and never tried: wildcards need the DNS challenge.
func (a *ACME) SetHosts(hosts []string) {
	a.setting.Lock()
	defer a.setting.Unlock()
	a.mu.Lock()
	known := maps.Clone(a.retired)
	maps.Copy(known, a.hosts)
	a.mu.Unlock()

	next := make(map[string]*managed, len(hosts))
	for _, name := range hosts {
		if _, ok := next[name]; ok {
			continue
		}
		m, ok := known[name]
		if !ok {
			m = a.manage(name) // reads files: not under mu
		}
		next[name] = m
	}

	a.mu.Lock()
	for name, m := range a.hosts {
		if next[name] == nil {
			a.retire(m)
		}
	}
	for name := range next {
		delete(a.retired, name)
	}
	a.hosts = next
	a.publish()
	a.mu.Unlock()
	a.kick()
}

// maxRetired bounds what is remembered of hosts that are gone.
const maxRetired = 1000

// retire remembers a host that is not listed any more: one that comes and goes
// with its agent must not get around the waits that failures brought. For the
// same reason an attempt that is under way goes on to its end, and those that
// have nothing to wait for are forgotten first. mu is held.
func (a *ACME) retire(m *managed) {
	if now := a.config.Now(); len(a.retired) >= maxRetired {
		maps.DeleteFunc(a.retired, func(_ string, old *managed) bool { return !old.busy && (old.problem == "" || !now.Before(old.due)) })
	}
	for name := range a.retired {
		if len(a.retired) < maxRetired {
			break
		}
		delete(a.retired, name) // any: the map's order is random
	}
	a.retired[m.name] = m
}

// manage makes the record of a new host.
func (a *ACME) manage(name string) *managed {
	m := &managed{name: name}
	if m.problem, m.fix = a.refuses(name); m.problem != "" {
		m.refused = true
		a.config.Logger.Warn("no certificate can be obtained for a host", "host", name, "problem", m.problem, "fix", m.fix)
		return m
	}
	cert, err := a.storage.certificate(issuerKey(a.config.CA), name)
	if err != nil {
		a.config.Logger.Warn("kept certificate not used", "host", name, "err", err)
	}
	m.cert, m.due = cert, a.config.Now() // the first attempt looks whether anything has to be done
	return m
}

// refuses says why no CA is asked for name.
func (a *ACME) refuses(name string) (problem, fix string) {
	if strings.HasPrefix(name, "*.") {
		return name + " is a wildcard, and the challenges on ports 80 and 443 cannot prove those",
			"expose hosts by their whole names, or bring a wildcard certificate (--certs files)"
	}
	if canonical, err := names.Canonical(name); err != nil || canonical != name {
		return name + " is not the name of a host", "register it under a DNS name"
	}
	if a.config.CA == certmagic.LetsEncryptProductionCA && (!strings.Contains(name, ".") || !certmagic.SubjectQualifiesForPublicCert(name)) {
		return name + " is not a name of the public DNS, so that Let's Encrypt certifies it for nobody",
			"use a domain of your own, or the relay's internal CA (--certs internal)"
	}
	return "", ""
}

// publish rebuilds what serves; mu is held.
func (a *ACME) publish() {
	table := make(map[string]*tls.Certificate, len(a.hosts))
	for name, m := range a.hosts {
		if m.cert != nil {
			table[name] = m.cert
		}
	}
	a.serving.Store(&table)
}

// kick makes Run look again.
func (a *ACME) kick() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// ChallengeCert answers a CA's handshake for tls-alpn-01 (RFC 8737). It is an
// error when no challenge for that name is open or the hello asks for another
// protocol too.
func (a *ACME) ChallengeCert(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return a.answers.cert(hello)
}

// HTTPChallenge answers a CA's request for http-01 and returns true, or leaves
// the request alone. It belongs before the redirect of port 80.
func (a *ACME) HTTPChallenge(w http.ResponseWriter, r *http.Request) bool {
	return a.answers.serveHTTP(w, r)
}
