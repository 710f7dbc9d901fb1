package certs

import (
	"context"
	"crypto/tls"
	"slices"
	"sync"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"github.com/sallyport/sallyport/protocol/names"
)

// answers are the open challenges of tls-alpn-01. Memory only: they live for
// seconds.
type answers struct {
	mu     sync.Mutex                  // guards all below
	certs  map[string]*tls.Certificate // by host
	probes map[string]*tls.Certificate // by host; a CA's challenge comes first
}

func newAnswers() *answers {
	return &answers{certs: make(map[string]*tls.Certificate), probes: make(map[string]*tls.Certificate)}
}

// cert is strict about the protocols as RFC 8737 is: a hello that offers
// another one too is no CA's, and a certificate that says yes to everything
// must not reach a visitor's browser.
func (a *answers) cert(hello *tls.ClientHelloInfo) (*tls.Certificate, bool) {
	name, err := names.Canonical(hello.ServerName)
	if err != nil || len(hello.SupportedProtos) != 1 || hello.SupportedProtos[0] != ALPN {
		return nil, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, open := range []map[string]*tls.Certificate{a.certs, a.probes} {
		if cert, ok := open[name]; ok {
			return cert, true
		}
	}
	return nil, false
}

func (a *answers) set(open map[string]*tls.Certificate, host string, cert *tls.Certificate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if cert == nil {
		delete(open, host)
		return
	}
	open[host] = cert
}

// tlsSolver is tls-alpn-01 for acmez.
type tlsSolver struct{ *answers }

// Present opens a challenge.
func (s tlsSolver) Present(_ context.Context, c acme.Challenge) error {
	cert, err := acmez.TLSALPN01ChallengeCert(c)
	if err != nil {
		return err
	}
	s.set(s.certs, c.Identifier.Value, cert)
	return nil
}

// CleanUp closes it.
func (s tlsSolver) CleanUp(_ context.Context, c acme.Challenge) error {
	s.set(s.certs, c.Identifier.Value, nil)
	return nil
}

// A book is what the relay's DNS should answer for dns-01. A name and its
// wildcard are proven by two values of one record, and two orders may need the
// same record at once; so it is always set as a whole.
type book struct {
	setTXT func(ctx context.Context, name string, values []string) error

	mu     sync.Mutex // guards both
	values map[string][]string
	turns  map[string]chan struct{} // by host; whoever holds the one place sets that record
}

func newBook(setTXT func(context.Context, string, []string) error) *book {
	return &book{setTXT: setTXT, values: make(map[string][]string), turns: make(map[string]chan struct{})}
}

// publish makes the relay answer what the book holds for host, often nothing.
func (b *book) publish(ctx context.Context, host string) error {
	b.mu.Lock()
	turn := b.turns[host]
	if turn == nil {
		turn = make(chan struct{}, 1)
		b.turns[host] = turn
	}
	b.mu.Unlock()
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-turn }()
	b.mu.Lock() // read when it is our turn: the last one writes the newest
	values := slices.Clone(b.values[host])
	b.mu.Unlock()
	return b.setTXT(ctx, "_acme-challenge."+host, values)
}

func (b *book) add(host, value string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Contains(b.values[host], value) {
		b.values[host] = append(b.values[host], value)
	}
}

func (b *book) drop(host, value string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.values[host] = slices.DeleteFunc(b.values[host], func(v string) bool { return v == value })
	if len(b.values[host]) == 0 {
		delete(b.values, host)
	}
}

// dnsSolver is dns-01 for acmez.
type dnsSolver struct{ *book }

// Present opens a challenge. The relay's DNS is the only one for its zone and
// gives the value when publish returns, so there is nothing to wait for.
func (s dnsSolver) Present(ctx context.Context, c acme.Challenge) error {
	s.add(c.Identifier.Value, c.DNS01KeyAuthorization())
	ctx, cancel := context.WithTimeout(ctx, txtTime)
	defer cancel()
	if err := s.publish(ctx, c.Identifier.Value); err != nil {
		return txtError{err}
	}
	return nil
}

// cleanTime bounds how long an ended attempt waits for the relay. A record that
// stays goes by itself.
const cleanTime = 5 * time.Second

// CleanUp closes it, also when the attempt was broken off.
func (s dnsSolver) CleanUp(ctx context.Context, c acme.Challenge) error {
	s.drop(c.Identifier.Value, c.DNS01KeyAuthorization())
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
	defer cancel()
	return s.publish(ctx, c.Identifier.Value)
}

// A txtError is one of the relay, not of the CA.
type txtError struct{ error }

// Unwrap returns what the relay said.
func (e txtError) Unwrap() error { return e.error }
