// Package web is what people see of enrolment: the page at enroll.DOMAIN on
// which a browser makes its own key and gets a certificate for it, the
// self-test and the renewal at check.DOMAIN, and the page for visitors who may
// not come in. It keeps no state: the desk (package enroll) does.
//
// The one-time code is in the fragment of the link, which browsers never send.
// Only the bodies of POSTs carry it: messengers that preview a link use up
// nothing. The private key is made in the page, leaves it inside an encrypted
// PKCS#12 file on the visitor's own disk, and is in no request.
//
// # The JSON API
//
// Pages and "sallyport device enroll" use it alike. Bodies are
// application/json, at most 64 KiB; DER is base64 (standard, padded); times
// are RFC 3339. Unknown fields are ignored on both sides. At enroll.DOMAIN:
//
//	POST /api/code      {"code"}
//	  200 {"name", "approve", "hosts", "until"?, "expires"?}
//	      What the code is good for; it stays unused. An empty name: the
//	      visitor chooses one. No hosts: all. until: when the rights end. expires:
//	      when the code does.
//	POST /api/requests  {"code"?, "name"?, "csr", "ticket"}
//	  201 a request: {"id", "state", "name", "words", "expires"?, "cert"?, "ca"?}
//	      Uses the code up. ticket is a secret of ≥ 128 random bits that the
//	      applicant makes (22–128 letters, digits, "-", "_"). The same key, code
//	      and ticket again get the same request: a lost answer is no lost code.
//	      state is pending, issued, denied or expired; cert comes with issued,
//	      ca (what to install beside it) too. words are for the owner to compare.
//	      A User-Agent that begins with "sallyport" is listed as the command line.
//	GET  /api/requests/{id}         Authorization: Bearer TICKET
//	  200 the request as it is now
//	GET  /api/requests/{id}/events  Authorization: Bearer TICKET
//	  200 text/event-stream: "event: state", its data the request; one now and
//	      one at each change. Ends after the last one, or after half an hour:
//	      whoever still waits asks again.
//
// At check.DOMAIN, under the client certificate that is to be renewed:
//
//	POST /api/renew     {"csr"}
//	  201 {"name", "cert", "ca", "until"}
//
// Every other answer is {"error", "hint"?, "retry_after"?}: 400 malformed, 401
// no certificate, 403 the code is wrong, used or expired, 404 no such request
// or not with this ticket, 409 the name is taken, 429 and 503 come with
// retry_after in seconds (and the header).
package web

import (
	"context"
	"crypto/x509"
	"errors"
	"html/template"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/relay/enroll"
)

// A Desk takes requests for certificates; *enroll.Desk is one.
type Desk interface {
	// Look says what a code is good for and does not use it up.
	Look(ctx context.Context, source netip.Addr, code string) (enroll.Invitation, error)
	// Apply hands in a request.
	Apply(ctx context.Context, a enroll.Application) (enroll.Request, error)
	// Status returns a request to whoever holds its ticket.
	Status(ctx context.Context, source netip.Addr, id, ticket string) (enroll.Request, error)
	// Changed returns a channel that is closed at the next change of a request.
	Changed(id string) <-chan struct{}
}

// Config is what the pages need. Domain, Desk, CA, Renew and Source are
// required. The functions are called concurrently.
type Config struct {
	// Domain is the relay's: pages link to enroll.Domain and check.Domain.
	Domain string
	// Shown is what pages call this place. Empty: Domain.
	Shown string
	// Port is the suffix of public URLs: ":8443", or "" for 443.
	Port string
	// Desk takes the requests.
	Desk Desk
	// CA returns what a device installs beside its certificate: the device CA.
	CA func() []*x509.Certificate
	// Roots returns the roots that a visitor must trust to reach the relay
	// without a warning. Nil or none: a public CA vouches for it.
	Roots func() []*x509.Certificate
	// Renew gives the device of an old certificate, which the door let in, a
	// certificate for the key of a PKCS#10 request (DER).
	Renew func(ctx context.Context, old *x509.Certificate, csr []byte) (*x509.Certificate, error)
	// Profile makes an Apple profile (.mobileconfig) for a code without using it
	// up; the request's form may hold the name that the visitor chose. Nil: not
	// offered.
	Profile func(code string, r *http.Request) ([]byte, error)
	// Source is where a request comes from, for the desk's counting.
	Source func(r *http.Request) netip.Addr
	// Open: the owner takes requests without a code.
	Open bool
	// KnownHost reports whether pages may link to a host. Nil: to none.
	KnownHost func(host string) bool
	// Due reports whether the certificate of a device should be renewed now.
	// Nil: in its last 30 days, or its last quarter when that is shorter.
	Due func(d *door.Device) bool
	// Hosts returns the hosts that a device may open now, in the order in which
	// its page shows them. Nil: the page shows none.
	Hosts func(d *door.Device) []string
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
	// Logger gets what fails inside; never a code, a ticket or a key. Nil: silence.
	Logger *slog.Logger
}

// Pages serves them all. Its methods may be called concurrently.
type Pages struct {
	cfg    Config
	log    *slog.Logger
	assets *assets

	templates   *template.Template
	enrollBody  *body
	style       template.CSS // for pages that load nothing
	alonePolicy string       // and their CSP

	mu      sync.Mutex     // guards streams
	streams map[string]int // open event streams by request ID
}

// New checks the configuration and prepares the pages. It starts nothing.
func New(cfg Config) (*Pages, error) {
	switch {
	case cfg.Domain == "":
		return nil, errors.New("enrolment pages: no domain")
	case cfg.Desk == nil, cfg.CA == nil, cfg.Renew == nil, cfg.Source == nil:
		return nil, errors.New("enrolment pages: Desk, CA, Renew and Source are needed")
	}
	if cfg.Roots == nil {
		cfg.Roots = func() []*x509.Certificate { return nil }
	}
	if cfg.KnownHost == nil {
		cfg.KnownHost = func(string) bool { return false }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Pages{cfg: cfg, log: cfg.Logger, streams: make(map[string]int)}
	if p.cfg.Due == nil {
		p.cfg.Due = p.nearItsEnd
	}
	var err error
	if p.assets, err = loadAssets(); err != nil {
		return nil, err
	}
	if err := p.prepare(); err != nil {
		return nil, err
	}
	return p, nil
}

// Enroll serves enroll.DOMAIN, which asks for no certificate.
func (p *Pages) Enroll() http.Handler {
	guard := http.NewCrossOriginProtection()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.enrollPage)
	mux.HandleFunc("GET /assets/{version}/{name}", p.assets.serve)
	mux.HandleFunc("GET /root.crt", p.root)
	mux.Handle("POST /api/code", guard.Handler(http.HandlerFunc(p.lookAtCode)))
	mux.Handle("POST /api/requests", guard.Handler(http.HandlerFunc(p.apply)))
	mux.HandleFunc("GET /api/requests/{id}", p.status)
	mux.HandleFunc("GET /api/requests/{id}/events", p.events)
	// No guard: a form's POST under no-referrer says "Origin: null", which older
	// Safaris cannot soften with Sec-Fetch-Site. Nothing changes here, no
	// cookie or certificate is involved, and the code must be in the body.
	mux.HandleFunc("POST /profile", p.profile)
	mux.HandleFunc("/api/", notFoundAPI)
	mux.HandleFunc("/", p.notFound)
	return harden(mux)
}

// Check serves check.DOMAIN, an ask host: the door lets devices in and leads
// everybody else to Denied.
func (p *Pages) Check() http.Handler {
	guard := http.NewCrossOriginProtection()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.selfTest)
	mux.HandleFunc("GET /renew", p.renewPage)
	mux.HandleFunc("GET /assets/{version}/{name}", p.assets.serve)
	mux.Handle("POST /api/renew", guard.Handler(http.HandlerFunc(p.renew)))
	mux.HandleFunc("/api/", notFoundAPI)
	mux.HandleFunc("/", p.notFound)
	return harden(mux)
}

func (p *Pages) url(label string) string {
	return "https://" + label + "." + p.cfg.Domain + p.cfg.Port + "/"
}

// nearItsEnd is the default of Config.Due.
func (p *Pages) nearItsEnd(d *door.Device) bool {
	if d == nil || d.Cert == nil {
		return false
	}
	life := d.Cert.NotAfter.Sub(d.Cert.NotBefore)
	return d.Cert.NotAfter.Sub(p.cfg.Now()) < min(30*24*time.Hour, life/4)
}
