package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

// orders gets certificates from an ACME server. Handshakes are served from
// memory: nothing is obtained because a visitor asked for it.
type orders struct {
	config  Config
	keeper  keeper
	answers *answers
	book    *book
	account *account
	http    *http.Client
	retries []time.Duration                     // waits after the first, second, … failure; the last one repeats
	jitter  func(d time.Duration) time.Duration // something up to d

	table atomic.Pointer[names.Table[*tls.Certificate]] // what serves; swapped whole
	wake  chan struct{}                                 // room for one: something changed

	setting sync.Mutex        // one setHosts at a time
	saving  sync.Mutex        // one write of the tries at a time; taken before mu
	mu      sync.Mutex        // guards all below, and the fields of entries
	entries map[string]*entry // by entry.name; also those that are not wanted any more
	wanted  map[string]*entry // by host; several hosts may share the agent's own certificate
	running int               // attempts under way
	away    map[string]try    // kept tries of names that have no entry
}

// letsEncrypt is the directory of Let's Encrypt.
const letsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"

func newOrders(c Config) (*orders, error) {
	if c.ACME.CA == "" {
		c.ACME.CA = letsEncrypt
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	if c.Account == nil {
		c.Account = func(string, []string) {}
	}
	if err := checkDirectoryURL(c.ACME.CA); err != nil {
		return nil, err
	}
	client := c.HTTPClient
	if client == nil {
		var err error
		if client, err = newHTTPClient(c.ACME.RootFile, c.Now); err != nil {
			return nil, err
		}
	}
	keep, err := openKeeper(filepath.Join(c.Dir, "acme"), c.ACME.CA)
	if err != nil {
		return nil, err
	}
	o := &orders{
		config: c, keeper: keep, answers: newAnswers(), http: client, retries: defaultRetries,
		jitter: func(d time.Duration) time.Duration { return rand.N(d + 1) },
		wake:   make(chan struct{}, 1), entries: make(map[string]*entry), wanted: make(map[string]*entry),
	}
	if c.SetTXT != nil {
		o.book = newBook(c.SetTXT)
	}
	o.account = &account{keeper: keep, email: c.ACME.Email, tell: c.Account, logger: c.Logger}
	o.account.load()
	if o.away, err = keep.tries(); err != nil {
		// A bound that fails open once is better than no certificates.
		c.Logger.Warn("how often the CA was asked before is not known", "err", err)
		o.away = make(map[string]try)
	}
	o.table.Store(new(names.Table[*tls.Certificate]))
	o.setHosts(nil)
	return o, nil
}

// checkDirectoryURL refuses plain HTTP to other machines: a certificate says
// no more than the way to its issuer can be trusted.
func checkDirectoryURL(ca string) error {
	u, err := url.Parse(ca)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("the ACME server %q is not a URL\nname its directory: %s", ca, letsEncrypt)
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("the ACME server %s is reached without TLS\nuse its https URL", ca)
	}
	return nil
}

func (o *orders) get(name string) (*tls.Certificate, error) {
	if cert, ok := o.table.Load().Lookup(name); ok {
		return cert, nil
	}
	return nil, fmt.Errorf("no certificate for %q yet: sallyport status says why", name)
}

// ownEntry reports whether the agent's own certificate is possible at all.
func (o *orders) ownEntry() bool { return o.config.Own != "" && o.book != nil }

// maxEntries bounds what is remembered of hosts that are gone.
const maxEntries = 200

func (o *orders) setHosts(hosts []string) {
	o.setting.Lock()
	defer o.setting.Unlock()
	byHost := make(map[string]*entry, len(hosts)+1)
	inUse := make(map[string]*entry)
	want := func(host, name string, sans []string) {
		e, ok := inUse[name]
		if !ok {
			e = o.entry(name, sans) // reads files: not under mu
			inUse[name] = e
		}
		byHost[host] = e
	}
	own := o.config.Own
	needed := false
	for _, host := range hosts {
		if o.ownEntry() && (host == own || host == "*."+own || names.Match("*."+own, host)) {
			want(host, own, []string{own, "*." + own})
			needed = true
			continue
		}
		want(host, host, []string{host})
	}
	if o.ownEntry() {
		want(own, own, []string{own, "*." + own})
	}

	o.mu.Lock()
	for name, e := range o.entries {
		e.wanted = inUse[name] == e
	}
	for name, e := range inUse {
		e.wanted, o.entries[name] = true, e
		delete(o.away, name)
	}
	if e := inUse[own]; e != nil {
		e.optional = !needed
	}
	for name, e := range o.entries {
		// Whoever comes and goes does not get around the waits that failures
		// brought, and does not start a second attempt beside a first.
		if len(o.entries) > maxEntries && !e.wanted && !e.busy {
			delete(o.entries, name)
		}
	}
	o.wanted = byHost
	o.publish()
	o.mu.Unlock()
	o.kick()
}

// entry returns the record of a certificate, a new one if need be.
func (o *orders) entry(name string, sans []string) *entry {
	o.mu.Lock()
	e, before := o.entries[name], o.away[name]
	o.mu.Unlock()
	if e != nil {
		return e
	}
	e = &entry{name: name, sans: sans, due: o.config.Now()} // the first attempt looks whether anything has to be done
	if e.problem, e.fix = o.refuses(name); e.problem != "" {
		e.refused = true
		o.config.Logger.Warn("no certificate can be obtained for a host", "host", name, "problem", e.problem, "fix", e.fix)
		return e
	}
	cert, err := o.keeper.certificate(name, sans)
	if err != nil {
		o.config.Logger.Warn("kept certificate not used", "host", name, "err", err)
	}
	e.cert = cert
	e.remember(before, o.config.Now())
	return e
}

// refuses says why no CA is asked for name.
func (o *orders) refuses(name string) (problem, fix string) {
	if pattern, err := names.ValidPattern(name); err != nil || pattern != name {
		return fmt.Sprintf("%q is not the name of a host", name), "expose the service under a DNS name in lower case"
	}
	base, wild := strings.CutPrefix(name, "*.")
	if wild && o.book == nil {
		return noWildcard(name)
	}
	last := base[strings.LastIndexByte(base, '.')+1:]
	if o.config.ACME.CA == letsEncrypt && (last == base || slices.Contains(notPublic, last) || strings.HasSuffix(base, ".home.arpa")) {
		return name + " is not a name of the public DNS, so that Let's Encrypt certifies it for nobody",
			"use a domain of your own, files of your own, or the home's own CA"
	}
	return "", ""
}

// notPublic are the top-level names that nobody can own (RFC 6761 and its kin).
var notPublic = []string{"local", "localhost", "internal", "lan", "home", "test", "example", "invalid", "onion", "localdomain"}

func noWildcard(name string) (problem, fix string) {
	return name + " is a wildcard, which a CA believes by DNS alone (dns-01), and this relay does not answer the DNS of its zone",
		"let the relay answer it (sallyport relay up --dns), or expose hosts by their whole names, or bring a certificate of your own"
}

// publish rebuilds what serves; mu is held.
func (o *orders) publish() {
	byPattern := make(map[string]*tls.Certificate)
	for _, e := range o.entries {
		if !e.wanted || e.cert == nil {
			continue
		}
		for _, san := range e.sans {
			byPattern[san] = e.cert
		}
	}
	table, err := names.NewTable(byPattern)
	if err != nil { // refuses looked at every name before
		o.config.Logger.Error("certificates are not swapped in", "err", err)
		return
	}
	o.table.Store(table)
}

// kick makes run look again.
func (o *orders) kick() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// connected looks again at what was held.
func (o *orders) connected() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.entries {
		switch {
		case e.busy:
			e.back = true
		case e.held:
			e.due = o.config.Now()
		}
	}
	o.kick()
}

func (o *orders) retry(host string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	e, ok := o.wanted[host]
	now := o.config.Now()
	switch {
	case !ok:
		return fmt.Errorf("certificate of %s: no service of this agent has that host\nsee the hosts: sallyport status", host)
	case e.refused:
		return fmt.Errorf("certificate of %s: %s\n%s", host, e.problem, e.fix)
	case e.problem == "":
		return nil
	case now.Before(e.limit):
		return fmt.Errorf("certificate of %s: %s\nwait until %s: it is tried then by itself", host, e.problem, e.limit.UTC().Format(clockFormat))
	}
	e.due, e.failures = now, 0
	o.kick()
	return nil
}

func (o *orders) status() []Status {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := make([]Status, 0, len(o.wanted))
	for host, e := range o.wanted {
		list = append(list, e.status(host, o.config.Now()))
	}
	slices.SortFunc(list, func(a, b Status) int { return strings.Compare(a.Host, b.Host) })
	return list
}

// issuerName is what people call the issuer: "Let's Encrypt R11".
func issuerName(leaf *x509.Certificate) string {
	return strings.TrimSpace(strings.Join(leaf.Issuer.Organization, " ") + " " + leaf.Issuer.CommonName)
}
