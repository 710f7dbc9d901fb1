// Package door is what a visitor meets: TLS, the check of his device, and the
// way to a service. Relay and agent use it alike.
//
// A Door is handed connections whose ClientHello is still unread
// ([Door.ServeConn]). The server name chooses a [Site]; the site says what is
// asked of the visitor (a client certificate or not) and what stands behind:
// an http.Handler, usually a [Proxy], or a function that takes raw bytes.
//
// The rules of DESIGN §6 that live here:
//
//   - policy, certificate and route come from one lookup by one canonical name;
//   - every certificate check runs in VerifyConnection, so on resumption too,
//     and the device is judged again at every request;
//   - every request names the host of its TLS connection, or gets 421;
//   - connections are indexed by device: Disconnect ends them at once;
//   - session tickets are bound to host and policy, their key changes with
//     every revocation;
//   - no h3 and no Alt-Svc: browsers send no client certificate over QUIC;
//   - visitors that cannot hold a certificate bring a secret, on a host of its
//     own ([Token]); without it there is nothing but an unknown page.
package door

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A Mode says what a site asks of its visitors.
type Mode string

const (
	// Require: without an allowed device certificate the handshake fails.
	Require Mode = protocol.AuthRequire
	// Ask: without an allowed device certificate the visitor gets a page that
	// says what is wrong, and nothing else.
	Ask Mode = protocol.AuthAsk
	// None: everybody may come in.
	None Mode = protocol.AuthNone
	// Token: no certificate is asked for; every request brings a secret, as
	// "Authorization: Bearer SECRET" or as its first path segment, which home
	// never sees. Without a good one everything is the same page, 404. The
	// relay makes such sites itself: protocol.Service knows no such Auth.
	Token Mode = "token"
)

// asks reports whether visitors are asked for a certificate.
func (m Mode) asks() bool { return m == Require || m == Ask }

// Denials: why a device may not come in. The empty string means that it may.
const (
	DeniedMissing = "missing"     // no certificate was shown
	DeniedUnknown = "unknown"     // not one of ours
	DeniedExpired = "expired"     // too old, or not valid yet
	DeniedRevoked = "revoked"     // taken back
	DeniedHost    = "not-allowed" // not on this host
)

// A Device is who holds a certificate, or the secret of a token site.
type Device struct {
	ID   string // stable key of the device: Disconnect and the index use it
	Name string // what the owner calls it; backends see it in Sallyport-Device
	// Cert is its certificate, nil on token sites. The door sets it.
	Cert *x509.Certificate
	// Chain holds the issuers of Cert, its direct one first. The door sets it.
	Chain []*x509.Certificate
	// Until is when its connections end, whatever the certificate says. Zero:
	// with the certificate; for the secret of a token site, never.
	Until time.Time
	// Path confines its requests to what lies below, as in "/api/". Paths that
	// somebody could read differently are refused then. Empty: all.
	Path string
	// Admin says that it may use the dashboard; the door only carries it.
	Admin bool
}

// A Visitor is one connection's other end.
type Visitor struct {
	Device *Device        // nil: nobody verified
	Remote netip.AddrPort // as the door sees it; zero when unknown
	Local  netip.AddrPort // what the visitor reached; zero when unknown
	Host   string         // canonical server name of the TLS connection
}

// A Site is one public host behind the door. It is read on every request and
// never changed after Lookup returned it.
type Site struct {
	// Host is the pattern that matched, for logs.
	Host string
	// Policy names the rules of this site. A connection whose policy is not
	// the one that its host has now is refused (421) and closed by Recheck.
	Policy string
	// Mode must be one of the four. Anything else refuses all visitors. Token
	// needs Config.CheckToken and a Handler.
	Mode Mode
	// Certificate returns the certificate for a canonical name. It must not
	// wait for the network. An error refuses the handshake as if the name were
	// unknown.
	Certificate func(name string) (*tls.Certificate, error)
	// Handler serves HTTP/1.1 and HTTP/2. VisitorFrom on the request's
	// context says who asks. Exactly one of Handler and Raw is set, but for
	// RawALPN.
	Handler http.Handler
	// Raw takes the TLS connection, owns it, and returns when it has ended.
	// An io.EOF that it reads is the visitor's close_notify; a connection that
	// was cut reads as another error.
	Raw func(ctx context.Context, c tunnel.Conn, v Visitor)
	// RawALPN lets a site have both: visitors who agree on this protocol, or
	// offer none at all, are Raw's; Handler has those of HTTP/1.1, and there is
	// no HTTP/2. MQTT and its WebSocket form share a host so.
	RawALPN string
	// Denied answers visitors of this site instead of Config.Denied. May be nil.
	Denied func(w http.ResponseWriter, r *http.Request, denial string)
}

// serves reports whether the door can keep what a site promises.
func (d *Door) serves(s *Site) bool {
	if s == nil || s.Certificate == nil {
		return false
	}
	if both := s.Handler != nil && s.Raw != nil; both != (s.RawALPN != "") || s.Handler == nil && s.Raw == nil {
		return false
	}
	if s.Mode == Token {
		return s.Raw == nil && d.cfg.CheckToken != nil
	}
	return s.Mode.asks() || s.Mode == None
}

// Config is what a Door needs. Its functions are called concurrently and on
// every request: they must be fast and must not block.
type Config struct {
	// Lookup returns the site of a canonical name: the same table that routes
	// connections. Required.
	Lookup func(name string) (*Site, bool)
	// ClientCAs are the direct issuers of device certificates. Required, and
	// neither empty nor the system's roots: New refuses.
	ClientCAs *x509.CertPool
	// Check judges a certificate whose signature, usage and dates are fine.
	// The empty denial admits, and then the device must have an ID. Required.
	Check func(leaf *x509.Certificate, host string, now time.Time) (Device, string)
	// CheckToken judges what a visitor of a token site brought as its secret, at
	// every request. It is asked only about strings of 16 to 128 letters,
	// digits, "-" and "_", and must compare in constant time. The empty denial
	// admits, and then the device must have an ID; DeniedUnknown counts as a
	// guess. Nil: token sites refuse all visitors.
	CheckToken func(host, secret string, now time.Time) (Device, string)
	// Challenge returns the certificate that answers a challenge of RFC 8737 for
	// one of the sites: a handshake with ALPN acme-tls/1 and nothing else, after
	// which the connection is closed. It must not block. Nil: such visitors are
	// refused.
	Challenge func(hello *tls.ClientHelloInfo) (*tls.Certificate, bool)
	// Denied answers a visitor of an ask site who may not come in, unless the
	// site has its own. Nil: a built-in page with status 401.
	Denied func(w http.ResponseWriter, r *http.Request, denial string)
	// Seen is told that a device was let in: when it connects, then at most
	// once a minute per connection. May be nil.
	Seen func(deviceID string)
	// Audit is told of refused devices. May be nil.
	Audit func(event string, attrs ...slog.Attr)
	// Now is the clock for certificates. Nil: time.Now.
	Now func() time.Time
	// Logger gets a line per visit at info, per request at debug. Nil: silence.
	Logger *slog.Logger
	// HandshakeTimeout bounds the TLS handshake. 0: 10 s.
	HandshakeTimeout time.Duration
	// Linger is how long Shutdown keeps serving after it announced the end, so
	// that no request in flight is lost (golang/go#75591). 0: 1.5 s.
	Linger time.Duration
}

// A Door serves connections. Its methods may be called concurrently.
type Door struct {
	cfg     Config
	log     *slog.Logger
	tickets *tickets
	guesses *guesses
	server  *http.Server

	mu       sync.Mutex // guards what follows
	visits   map[*visit]struct{}
	byDevice map[string]map[*visit]struct{}
	closing  bool          // no new connections
	drained  chan struct{} // closed when closing and no visit is left
}

// New checks the configuration and makes a Door. It starts nothing.
func New(cfg Config) (*Door, error) {
	switch {
	case cfg.Lookup == nil:
		return nil, errors.New("door: no Lookup function")
	case cfg.Check == nil:
		return nil, errors.New("door: no Check function")
	}
	if err := checkPool(cfg.ClientCAs); err != nil {
		return nil, err
	}
	cfg.ClientCAs = cfg.ClientCAs.Clone()
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 10 * time.Second
	}
	if cfg.Linger == 0 {
		cfg.Linger = 1500 * time.Millisecond
	}
	d := &Door{
		cfg:      cfg,
		log:      cfg.Logger,
		tickets:  newTickets(),
		guesses:  newGuesses(),
		visits:   make(map[*visit]struct{}),
		byDevice: make(map[string]map[*visit]struct{}),
		drained:  make(chan struct{}),
	}
	d.server = newServer(d)
	return d, nil
}

// checkPool refuses the pools that would let strangers in: crypto/tls reads
// nil as "the system's roots" (CVE-2026-27586).
func checkPool(pool *x509.CertPool) error {
	switch {
	case pool == nil:
		return errors.New("door: no device CA: a nil pool would trust the system's roots")
	case pool.Equal(x509.NewCertPool()):
		return errors.New("door: the pool of device CAs is empty")
	}
	if system, err := x509.SystemCertPool(); err == nil && pool.Equal(system) {
		return errors.New("door: the system's roots cannot be the device CA")
	}
	return nil
}

type contextKey int

const (
	visitKey contextKey = iota
	visitorKey
	secretKey
)

// VisitorFrom returns who sent a request that came through a door.
func VisitorFrom(ctx context.Context) (Visitor, bool) {
	if v, ok := ctx.Value(visitorKey).(Visitor); ok {
		return v, true
	}
	v, ok := ctx.Value(visitKey).(*visit)
	if !ok {
		return Visitor{}, false
	}
	return v.visitor, true
}

// WithVisitor returns a context in which VisitorFrom finds v. It is for
// callers that serve a Proxy without a Door.
func WithVisitor(ctx context.Context, v Visitor) context.Context {
	return context.WithValue(ctx, visitorKey, v)
}
