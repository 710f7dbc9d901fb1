// Package scep lets devices enrol and renew by SCEP (RFC 8894): iPhones, iPads
// and Macs by a configuration profile, network gear and strongSwan by
// themselves. The key is made on the device.
//
//	cert, key, err := scep.LoadRA(dir, ca, nil)
//	mux.Handle("/scep", scep.New(scep.Config{RA: cert, Key: key, CA: ca.Cert(), Apply: …, StatusOfKey: …, Renew: …}))
//
// A PKCSReq carries the one-time code as its challenge password and is
// answered by SUCCESS, PENDING (the owner has to approve) or FAILURE. Whoever
// waits asks again by CertPoll, signed with the same key. A RenewalReq is signed
// with the certificate that is to be followed by a new one, and needs no code.
//
// SCEP encrypts to RSA keys only, and our CA has an ECDSA key. So an RSA
// go-between (RA) of that CA signs and decrypts the messages, and only devices
// with RSA keys can come this way. What a GET asks changes nothing: PKIOperation
// is a POST, which RFC 8894 demands of every client.
package scep

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/relay/enroll/scep/cms"
)

// Config says what a Server works with. All but Allow, Failed, Logger and Now
// are required.
type Config struct {
	RA  *x509.Certificate // the go-between's, of LoadRA
	Key *rsa.PrivateKey   // belongs to RA
	CA  *x509.Certificate // the device CA's

	// Apply hands in a request (PKCS#10, DER, its signature checked) with the
	// challenge that it carried, "" for none. The state is "issued" with a
	// certificate, "pending", "denied" or "expired". The same key with the
	// same challenge gets the same answer again. An error with a method
	// RetryAfter() time.Duration becomes a 429.
	Apply func(ctx context.Context, challenge string, csr []byte, source netip.Addr, agent string) (state string, cert *x509.Certificate, err error)

	// StatusOfKey says how the request of a key stands; the asker has proven
	// to hold the key. keyID is the hex SHA-256 of the SubjectPublicKeyInfo. The
	// states are those of Apply, "" for a key that never asked.
	StatusOfKey func(ctx context.Context, keyID string) (state string, cert *x509.Certificate, err error)

	// Renew certifies the key of csr in place of old, which is of the CA and
	// whose key signed the request. Whether it may renew is for Renew to say.
	Renew func(ctx context.Context, old *x509.Certificate, csr []byte) (*x509.Certificate, error)

	// Allow says whether a source may ask now, before anything of its message
	// is read; nil: always. An error with a method RetryAfter() becomes a 429.
	Allow func(source netip.Addr) error

	// Failed hears of messages that no honest client sends: an envelope that
	// does not open, a poll for a key that never asked, a signer without the
	// key. What Apply refuses is for Apply to count. Nil: nobody hears.
	Failed func(source netip.Addr)

	Source func(*http.Request) netip.Addr // who asks
	Logger *slog.Logger                   // nil: silent
	Now    func() time.Time               // nil: time.Now
}

// A Server answers SCEP at one path. It is safe for concurrent use.
type Server struct {
	cfg     Config
	inside  chan struct{} // holds one token for every message, from before it is read
	busy    chan struct{} // holds one token for every message in work
	pace    pace
	foreign *http.CrossOriginProtection
}

const (
	maxAtOnce   = 8  // messages in work: each costs two operations with an RSA key, before anybody is known
	maxWaiting  = 32 // messages more, which are read or wait for a hand
	busyRetry   = 10 * time.Second
	readTime    = 10 * time.Second
	maxAgent    = 200
	contentType = "application/x-pki-message"
)

// New returns a handler for one path, usually /scep.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Allow == nil {
		cfg.Allow = func(netip.Addr) error { return nil }
	}
	if cfg.Failed == nil {
		cfg.Failed = func(netip.Addr) {}
	}
	return &Server{
		cfg: cfg, foreign: http.NewCrossOriginProtection(),
		inside: make(chan struct{}, maxAtOnce+maxWaiting), busy: make(chan struct{}, maxAtOnce),
	}
}

// capabilities are what GetCACaps answers. AES stands alone besides
// SCEPStandard, and DES3 too, for clients that know only the older words. SHA-1
// and single DES are not offered.
var capabilities = []string{"AES", "DES3", "POSTPKIOperation", "Renewal", "SCEPStandard", "SHA-256", "SHA-512"}

// ServeHTTP answers GetCACaps, GetCACert and PKIOperation.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch operation := r.URL.Query().Get("operation"); {
	case operation == "GetCACaps" && get:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		io.WriteString(w, strings.Join(capabilities, "\n")+"\n")
	case operation == "GetCACert" && get:
		s.certificates(w)
	case operation == "PKIOperation" && r.Method == http.MethodPost:
		s.message(w, r)
	case operation == "PKIOperation":
		// By GET the message would stand in the address, in logs and caches, and
		// fetching an address must never use up a code.
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "PKIOperation is a POST", http.StatusMethodNotAllowed)
	default:
		http.Error(w, "unknown SCEP operation", http.StatusBadRequest)
	}
}

// certificates answers GetCACert: the go-between first, then its issuer.
func (s *Server) certificates(w http.ResponseWriter) {
	der, err := cms.CertsOnly(s.cfg.RA, s.cfg.CA)
	if err != nil {
		s.fail(w, "scep certificates", err)
		return
	}
	w.Header().Set("Content-Type", "application/x-x509-ca-ra-cert")
	w.Write(der)
}

// message answers PKIOperation.
func (s *Server) message(w http.ResponseWriter, r *http.Request) {
	// No client of SCEP is a web page: one that a visitor has open elsewhere
	// must not ask in his name, nor use up the tries of his address.
	if s.foreign.Check(r) != nil {
		http.Error(w, "SCEP is not for web pages", http.StatusForbidden)
		return
	}
	source := s.cfg.Source(r)
	leave, ok := s.enter(w, source)
	if !ok {
		return
	}
	defer leave()
	body, err := readBody(w, r)
	if err != nil {
		http.Error(w, "the message could not be read", http.StatusBadRequest)
		return
	}
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
	case <-r.Context().Done():
		return
	}
	// Of many that came at once, those that failed meanwhile count.
	if err := s.cfg.Allow(source); err != nil {
		tooMany(w, err)
		return
	}
	s.work(w, r, source, body)
}

// enter lets a message in before it is read, or answers. Leave is called when
// it is answered.
func (s *Server) enter(w http.ResponseWriter, source netip.Addr) (leave func(), ok bool) {
	if err := s.cfg.Allow(source); err != nil {
		tooMany(w, err)
		return nil, false
	}
	if !s.pace.take(source, s.cfg.Now()) {
		retryLater(w, paceWindow)
		http.Error(w, "too many messages from this address, try again later", http.StatusTooManyRequests)
		return nil, false
	}
	select {
	case s.inside <- struct{}{}:
		return func() { <-s.inside }, true
	default:
		retryLater(w, busyRetry)
		http.Error(w, "too many messages at once, try again later", http.StatusServiceUnavailable)
		return nil, false
	}
}

// work answers a message that was read.
func (s *Server) work(w http.ResponseWriter, r *http.Request, source netip.Addr, body []byte) {
	agent := r.UserAgent()
	if len(agent) > maxAgent {
		agent = agent[:maxAgent]
	}
	req, err := parseRequest(body)
	if err != nil {
		// Until the signature holds there is nobody to sign an answer to.
		s.cfg.Logger.Debug("scep message refused", "source", source, "error", err)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	rep, err := s.answer(r.Context(), req, source, agent)
	if _, ok := errors.AsType[waiter](err); ok {
		tooMany(w, err)
		return
	}
	if err != nil {
		s.cfg.Logger.Info("scep request refused", "source", source, "kind", req.kind.String(), "error", err)
	}
	if rep.dishonest() {
		s.cfg.Failed(source)
	}
	der, err := s.seal(req, rep)
	if err != nil {
		s.fail(w, "scep answer", err)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Write(der)
}

// A waiter is an error that knows how long to wait.
type waiter interface {
	error
	RetryAfter() time.Duration
}

// tooMany answers an error of Allow or Apply that says to wait.
func tooMany(w http.ResponseWriter, err error) {
	wait := busyRetry
	if e, ok := errors.AsType[waiter](err); ok {
		wait = e.RetryAfter()
	}
	retryLater(w, wait)
	http.Error(w, "too many wrong codes from this address, try again later", http.StatusTooManyRequests)
}

func retryLater(w http.ResponseWriter, wait time.Duration) {
	w.Header().Set("Retry-After", strconv.Itoa(max(1, int(wait.Round(time.Second)/time.Second))))
}

func (s *Server) fail(w http.ResponseWriter, what string, err error) {
	s.cfg.Logger.Error(what+" failed", "error", err)
	http.Error(w, "the relay could not answer, its log says why", http.StatusInternalServerError)
}

// readBody reads a message, bounded in size and time.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	c := http.NewResponseController(w)
	// Not every ResponseWriter has deadlines; the server's own then holds.
	timed := c.SetReadDeadline(time.Now().Add(readTime)) == nil
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, cms.MaxBytes))
	if timed && err == nil {
		// It would end the request's context while an answer is in the making.
		err = c.SetReadDeadline(time.Time{})
	}
	return body, err
}
