// Package est speaks Enrollment over Secure Transport (RFC 7030, RFC 8951), by
// which machines ask for a certificate and renew it.
//
//	h := est.New(est.Config{CA: cas, Apply: apply, Renew: renew, Peer: peer, Source: source})
//	mux.Handle("/.well-known/est/", h)
//
//	GET  /.well-known/est/cacerts         the CA's certificates, to anybody
//	GET  /.well-known/est/csrattrs        204: a request needs no attributes
//	POST /.well-known/est/simpleenroll    Basic authentication, any user name, the one-time code as password
//	POST /.well-known/est/simplereenroll  under the client certificate that is to be renewed
//
// A request that waits for the owner is answered with 202 and Retry-After; the
// client sends the same again until it is decided. Subject and extensions of a
// signing request change nothing about the certificate; simplereenroll wants
// them equal to the old certificate's because the RFC does.
//
// Handlers are served over TLS only, and on a host that asks for certificates
// when simplereenroll is to be of use. Such a host speaks TLS 1.3 only, which
// strongSwan 5.9 must be told: libtls { version_max = 1.3 } in strongswan.conf.
package est

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/smallstep/pkcs7"
)

// Config says whom a handler asks. All fields but Logger are required.
type Config struct {
	// CA returns the certificates that clients shall trust for devices, the
	// issuer first.
	CA func() []*x509.Certificate

	// Apply hands in a request (DER) with a code, as enroll.Desk.Apply does,
	// and returns an enroll.State. RetryAfter is for "pending"; 0: a minute.
	// Errors are those of package enroll; others become a 500 without a word.
	Apply func(ctx context.Context, code string, csr []byte, source netip.Addr, agent string) (state string, cert *x509.Certificate, retryAfter time.Duration, err error)

	// Renew issues the next certificate of a device for the key of a request
	// (DER, its signature is checked). enroll.ErrNotAllowed and
	// enroll.ErrKeyUsed are told to the client; others become a 500.
	Renew func(ctx context.Context, peer *x509.Certificate, csr []byte) (*x509.Certificate, error)

	// Peer returns the client certificate of a request's connection when it
	// may come in now, otherwise nil.
	Peer func(*http.Request) *x509.Certificate

	// Source returns the visitor's address.
	Source func(*http.Request) netip.Addr

	Logger *slog.Logger // nil: silent
}

const root = "/.well-known/est/"

// New returns the handler of everything under /.well-known/est/. It panics
// when a field of the Config is missing.
func New(cfg Config) http.Handler {
	if cfg.CA == nil || cfg.Apply == nil || cfg.Renew == nil || cfg.Peer == nil || cfg.Source == nil {
		panic("est: a Config without all of its functions")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &server{cfg}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+root+"cacerts", s.caCerts)
	mux.HandleFunc("GET "+root+"csrattrs", noAttributes)
	mux.HandleFunc("POST "+root+"simpleenroll", s.enrol)
	mux.HandleFunc("POST "+root+"simplereenroll", s.reenrol)
	// A web page that a device has open elsewhere, also at a neighbouring host,
	// must not renew in its name.
	guarded := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		guarded.ServeHTTP(w, r)
	})
}

type server struct{ cfg Config }

func (s *server) caCerts(w http.ResponseWriter, _ *http.Request) { s.reply(w, s.cfg.CA()...) }

func noAttributes(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }

// reply sends certificates as CMS "certs-only". The base64 has no line breaks:
// RFC 8951 allows none, and strongSwan reads none.
func (s *server) reply(w http.ResponseWriter, certs ...*x509.Certificate) {
	var raw [][]byte
	for _, c := range certs {
		raw = append(raw, c.Raw)
	}
	p7, err := pkcs7.DegenerateCertificate(slices.Concat(raw...))
	if err == nil && len(raw) == 0 {
		err = errors.New("there is no certificate to send")
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
	w.Header().Set("Content-Transfer-Encoding", "base64")
	w.Write([]byte(base64.StdEncoding.EncodeToString(p7)))
}
