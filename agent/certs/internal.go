package certs

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/pki"
)

const (
	internalLife  = 90 * 24 * time.Hour
	internalCheck = time.Minute // so that a clock that jumps is noticed soon
)

// internal makes certificates under the home's own CA, one for each host. Keys
// and certificates live in memory only and are new after a restart; what
// devices trust is the CA.
type internal struct {
	ca     *pki.Authority
	own    string
	now    func() time.Time
	logger *slog.Logger
	table  atomic.Pointer[names.Table[*tls.Certificate]] // swapped whole
	wake   chan struct{}                                 // room for one

	mu    sync.Mutex // guards all below; held while certificates are made, which takes milliseconds
	hosts []string
	certs map[string]*tls.Certificate // by the first name in them
	errs  map[string]error            // why there is none, or no newer one
}

func newInternal(c Config) (*internal, error) {
	if err := pki.SecureDir(c.Dir); err != nil {
		return nil, fmt.Errorf("certificates of the home: %w", err)
	}
	if c.CA == nil {
		var err error
		if c.CA, err = pki.Open(filepath.Join(c.Dir, "ca"), "server", c.Now); err != nil {
			return nil, fmt.Errorf("certificates of the home: %w", err)
		}
	}
	i := &internal{ca: c.CA, own: c.Own, now: c.Now, logger: c.Logger, wake: make(chan struct{}, 1), certs: make(map[string]*tls.Certificate), errs: make(map[string]error)}
	i.setHosts(nil)
	return i, nil
}

func (i *internal) get(name string) (*tls.Certificate, error) {
	cert, ok := i.table.Load().Lookup(name)
	if !ok {
		return nil, fmt.Errorf("no certificate for %q: it is not a host of this home", name)
	}
	if now := i.now(); now.Before(cert.Leaf.NotBefore) || now.After(cert.Leaf.NotAfter) { // the clock jumped
		select {
		case i.wake <- struct{}{}:
		default:
		}
	}
	return cert, nil
}

func (i *internal) setHosts(hosts []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	list := slices.Clone(hosts)
	if i.own != "" {
		list = append(list, i.own)
	}
	i.hosts = slices.Compact(slices.Sorted(slices.Values(list)))
	i.renew()
}

func (i *internal) run(ctx context.Context) error {
	tick := time.NewTicker(internalCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-i.wake:
		case <-tick.C:
		}
		i.mu.Lock()
		i.renew()
		i.mu.Unlock()
	}
}

// renew makes what is missing or past two thirds of its life, and forgets what
// is not asked for any more; mu is held.
func (i *internal) renew() {
	now := i.now()
	certs, errs := make(map[string]*tls.Certificate), make(map[string]error)
	byPattern := make(map[string]*tls.Certificate)
	for _, host := range i.hosts {
		sans := i.sans(host)
		if pattern, err := names.ValidPattern(host); err != nil || pattern != host {
			errs[host] = fmt.Errorf("%q is not the name of a host", host)
			continue
		}
		cert := i.certs[sans[0]]
		if made := certs[sans[0]]; made != nil {
			cert = made
		}
		if cert == nil || now.Before(cert.Leaf.NotBefore) || !now.Before(renewInternal(cert)) {
			fresh, err := i.make(sans, now)
			if err != nil {
				if old := i.errs[host]; old == nil || old.Error() != err.Error() {
					i.logger.Error("certificate.failed", "host", host, "err", err)
				}
				errs[host] = err
			} else {
				cert = fresh
			}
		}
		if cert == nil {
			continue
		}
		certs[sans[0]] = cert
		for _, san := range sans {
			byPattern[san] = cert
		}
	}
	i.certs, i.errs = certs, errs
	table, err := names.NewTable(byPattern)
	if err != nil { // every name was looked at
		i.logger.Error("certificates are not swapped in", "err", err)
		return
	}
	i.table.Store(table)
}

// sans: what is right below the agent's own name shares its certificate.
func (i *internal) sans(host string) []string {
	if i.own != "" && (host == i.own || host == "*."+i.own || names.Match("*."+i.own, host)) {
		return []string{i.own, "*." + i.own}
	}
	return []string{host}
}

func renewInternal(cert *tls.Certificate) time.Time {
	leaf := cert.Leaf
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 2 / 3)
}

func (i *internal) make(sans []string, now time.Time) (*tls.Certificate, error) {
	key, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	leaf, err := i.ca.Issue(key.Public(), pki.Grant{Profile: pki.Server, Name: sans[0], DNSNames: sans[1:], NotAfter: now.Add(internalLife)})
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, i.ca.Cert().Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func (i *internal) status() []Status {
	i.mu.Lock()
	defer i.mu.Unlock()
	list := make([]Status, 0, len(i.hosts))
	for _, host := range i.hosts {
		st := Status{Host: host, State: StateOK}
		if cert := i.certs[i.sans(host)[0]]; cert != nil {
			st.Issuer, st.NotAfter, st.Next = issuerName(cert.Leaf), cert.Leaf.NotAfter, renewInternal(cert)
		}
		if err := i.errs[host]; err != nil {
			st.State, st.Problem, st.Fix = StateFailing, oneLine(err.Error()), "it is tried again every minute"
		}
		list = append(list, st)
	}
	return list
}
