package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"github.com/sallyport/sallyport/protocol/names"
)

// challengePath is where http-01 asks (RFC 8555 §8.3), and our own probe too:
// whatever stands in between treats both alike.
const challengePath = "/.well-known/acme-challenge/"

// answers are the open challenges. Memory only: they live for seconds.
type answers struct {
	mu     sync.Mutex // guards all below
	tokens map[string]answer
	certs  map[string]*tls.Certificate // by host
	probes map[string]*tls.Certificate // by host; a CA's challenge comes first
}

// An answer is what the owner of host says when it is asked for a token.
type answer struct{ host, text string }

func newAnswers() *answers {
	return &answers{
		tokens: make(map[string]answer), certs: make(map[string]*tls.Certificate), probes: make(map[string]*tls.Certificate),
	}
}

var errNoChallenge = errors.New("no ACME challenge is open for this name")

func (a *answers) cert(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name, err := names.Canonical(hello.ServerName)
	if err != nil || len(hello.SupportedProtos) != 1 || hello.SupportedProtos[0] != acmez.ACMETLS1Protocol {
		return nil, errNoChallenge
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, open := range []map[string]*tls.Certificate{a.certs, a.probes} {
		if cert, ok := open[name]; ok {
			return cert, nil
		}
	}
	return nil, errNoChallenge
}

func (a *answers) serveHTTP(w http.ResponseWriter, r *http.Request) bool {
	token, ok := strings.CutPrefix(r.URL.Path, challengePath)
	if !ok || r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	a.mu.Lock()
	ans, ok := a.tokens[token]
	a.mu.Unlock()
	host, err := names.CanonicalHost(r.Host)
	if !ok || err != nil || host != ans.host {
		return false
	}
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = io.WriteString(w, ans.text)
	return true
}

func (a *answers) setToken(token string, ans answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tokens[token] = ans
}

func (a *answers) dropToken(token string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.tokens, token)
}

func (a *answers) setProbe(host string, cert *tls.Certificate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.probes[host] = cert
}

func (a *answers) dropProbe(host string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.probes, host)
}

// httpSolver is http-01 for acmez.
type httpSolver struct{ *answers }

// Present opens a challenge.
func (s httpSolver) Present(_ context.Context, c acme.Challenge) error {
	s.setToken(c.Token, answer{c.Identifier.Value, c.KeyAuthorization})
	return nil
}

// CleanUp closes it.
func (s httpSolver) CleanUp(_ context.Context, c acme.Challenge) error {
	s.dropToken(c.Token)
	return nil
}

// tlsSolver is tls-alpn-01 for acmez.
type tlsSolver struct{ *answers }

// Present opens a challenge.
func (s tlsSolver) Present(_ context.Context, c acme.Challenge) error {
	cert, err := acmez.TLSALPN01ChallengeCert(c)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.certs[c.Identifier.Value] = cert
	return nil
}

// CleanUp closes it.
func (s tlsSolver) CleanUp(_ context.Context, c acme.Challenge) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.certs, c.Identifier.Value)
	return nil
}
