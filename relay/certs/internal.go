package certs

import (
	"cmp"
	"container/list"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// InternalConfig is what Internal needs. Issue and Allow are required.
type InternalConfig struct {
	// Issue signs a server certificate for one DNS name. It is called without
	// a lock, once at a time per name.
	Issue func(pub crypto.PublicKey, name string, notBefore, notAfter time.Time) (*x509.Certificate, error)
	// Allow vouches for a canonical name: it is a host of this relay. Names
	// that visitors make up get no certificate.
	Allow func(name string) bool
	// Chain is sent after the leaf; a root need not be in it.
	Chain []*x509.Certificate
	// Lifetime of a certificate. Default 90 days. It is replaced when a third
	// is left.
	Lifetime time.Duration
	// MaxNames bounds the cache; the name not asked for longest goes.
	// Default 1000.
	MaxNames int
	Now      func() time.Time // nil: time.Now
	Logger   *slog.Logger     // nil: no logs
}

// Internal makes a certificate for each host when it is first asked for, under
// the relay's own CA, and keeps it in memory only.
type Internal struct {
	config InternalConfig

	mu     sync.Mutex // guards all below, never held while issuing
	byName map[string]*list.Element
	recent list.List // of *issued, latest used first
}

// issued is one name of the cache.
type issued struct {
	name string
	cert *tls.Certificate // nil until the first one is there
	busy chan struct{}    // closed when the issuing that runs now has ended; nil: none runs
	err  error            // how the last issuing ended
	at   time.Time        // and when
}

const (
	backdate  = time.Hour        // lets visitors in whose clocks are a little late
	holdAfter = 10 * time.Second // a failed issuing is not repeated sooner
)

// NewInternal returns a source that has issued nothing yet.
func NewInternal(c InternalConfig) (*Internal, error) {
	if c.Issue == nil || c.Allow == nil {
		return nil, errors.New("certs: internal certificates need both Issue and Allow")
	}
	c.Lifetime = cmp.Or(c.Lifetime, 90*24*time.Hour)
	c.MaxNames = cmp.Or(c.MaxNames, 1000)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Internal{config: c, byName: make(map[string]*list.Element)}, nil
}

// GetCertificate returns the certificate of name, a new one when there is none
// or it is due. Callers that ask at the same time share one issuing. When
// renewal fails the old one serves until it expires.
func (s *Internal) GetCertificate(name string) (*tls.Certificate, error) {
	if !s.config.Allow(name) {
		return nil, fmt.Errorf("no certificate for %q: it is not a host of this relay", name)
	}
	now := s.config.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entry(name)
	if e.cert == nil || s.due(e.cert.Leaf, now) {
		s.renew(e, now)
	}
	if e.cert != nil && now.Before(e.cert.Leaf.NotAfter) {
		return e.cert, nil
	}
	return nil, e.err
}

// entry returns the cache's entry of name, a new one if need be; mu is held.
func (s *Internal) entry(name string) *issued {
	if at, ok := s.byName[name]; ok {
		s.recent.MoveToFront(at)
		return at.Value.(*issued)
	}
	if s.recent.Len() >= s.config.MaxNames {
		oldest := s.recent.Back()
		delete(s.byName, oldest.Value.(*issued).name)
		s.recent.Remove(oldest)
	}
	e := &issued{name: name}
	s.byName[name] = s.recent.PushFront(e)
	return e
}

// due also says yes when the clock went back behind the certificate.
func (s *Internal) due(leaf *x509.Certificate, now time.Time) bool {
	return now.Before(leaf.NotBefore) || leaf.NotAfter.Sub(now) < s.config.Lifetime/3
}

// renew issues for e, or waits for the call that does so already; mu is held,
// but not meanwhile.
func (s *Internal) renew(e *issued, now time.Time) {
	if e.busy != nil {
		busy := e.busy
		s.mu.Unlock()
		<-busy
		s.mu.Lock()
		return
	}
	if since := now.Sub(e.at); e.err != nil && 0 <= since && since < holdAfter {
		return
	}
	busy := make(chan struct{})
	e.busy, e.at = busy, now
	var cert *tls.Certificate
	err := errors.New("issuing the certificate was broken off")
	s.mu.Unlock()
	defer func() { // also when Issue panics: nobody must wait for ever
		s.mu.Lock()
		if e.err = err; err == nil {
			e.cert = cert
		}
		e.busy = nil
		close(busy)
	}()
	if cert, err = s.issue(e.name, now); err != nil {
		s.config.Logger.Error("issuing a certificate failed", "host", e.name, "err", err)
	}
}

func (s *Internal) issue(name string, now time.Time) (*tls.Certificate, error) {
	key, err := pki.NewKey()
	if err != nil {
		return nil, fmt.Errorf("make key for %s: %w", name, err)
	}
	leaf, err := s.config.Issue(key.Public(), name, now.Add(-backdate), now.Add(s.config.Lifetime))
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", name, err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, c := range s.config.Chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}
