package agent

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/agent/state"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
)

const (
	joinTimeout   = 20 * time.Second // one attempt
	joinDial      = 10 * time.Second // one address
	maxJoinWait   = 15 * time.Second // between attempts
	firstJoinWait = time.Second
)

// JoinOptions are the seams of Join; nil fields are the real thing.
type JoinOptions struct {
	Name        string // a wish
	Logger      *slog.Logger
	Now         func() time.Time
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	Resolve     func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Join redeems a token and stores the identity that the relay grants. While
// the network is absent it tries again until the token expires or ctx ends.
// Its errors are ErrRefused, ErrUnreachable or ErrConfig.
//
// The key is on disk before the token is used. Should the agent die before
// the answer is stored, the next Join asks again with the same key and token.
func Join(ctx context.Context, dir *state.Dir, token protocol.Token, o JoinOptions) (*state.Identity, error) {
	cfg := Config{Name: o.Name, Logger: o.Logger, Now: o.Now, DialContext: o.DialContext, Resolve: o.Resolve}
	cfg.fill()
	j := &joiner{cfg: cfg, dir: dir, token: token, log: cfg.Logger}
	return j.run(ctx)
}

type joiner struct {
	cfg   Config
	dir   *state.Dir
	token protocol.Token
	log   *slog.Logger
	asked bool // a request was sent, its answer was not read

	notBefore time.Time // of the relay's certificate
}

func (j *joiner) run(ctx context.Context) (*state.Identity, error) {
	key, err := j.dir.Key()
	if err != nil {
		return nil, class(ErrConfig, err)
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		return nil, err
	}
	span := firstJoinWait
	for {
		id, err := j.attempt(ctx, csr)
		if err == nil {
			id.Key = key
			return id, j.store(id)
		}
		if errors.Is(err, ErrRefused) {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, class(ErrUnreachable, fmt.Errorf("join %s: %w", j.token.Relay, context.Cause(ctx)))
		}
		if j.expired() {
			return nil, classf(ErrRefused, "the join token expired at %s, and the relay could not be reached before: %w\n%s",
				j.token.Expires.Local().Format(dateTime), err, newTokenHint)
		}
		wait := time.Duration(rand.Float64() * float64(span))
		span = min(2*span, maxJoinWait)
		j.log.Warn("cannot join yet, trying again", "relay", j.token.Relay, "in", wait.Round(time.Millisecond), "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// dateTime is time.DateTime with the zone, which is not the relay's.
const dateTime = time.DateTime + " MST"

// newToken is what the relay's owner types.
const newToken = "sallyport relay token"

const newTokenHint = "Ask the relay for a new one: " + newToken + " (a second home: with --hosts '*.NAME.DOMAIN')"

// expired reports whether trying again is useless. The relay's clock decides
// about a token; ours only about when to give up.
func (j *joiner) expired() bool {
	return !j.token.Expires.IsZero() && j.cfg.Now().After(j.token.Expires)
}

// verifyTime is when the relay's certificate must be valid: now, or, where the
// clock is behind, the token's expiry, which is near the true time for as long
// as the token is worth anything.
func (j *joiner) verifyTime() time.Time {
	t := newClock(j.cfg.Now).Now()
	if j.token.Expires.After(t) {
		t = j.token.Expires
	}
	return t
}

func (j *joiner) store(id *state.Identity) error {
	if err := id.Check(); err != nil {
		return classf(ErrRefused, "the relay's answer does not fit: %w\n%s", err, newTokenHint)
	}
	// The relay's certificate is valid from here on: where the clock is behind,
	// the first session must not find it to be one of the future.
	if err := j.dir.SetLastSeen(j.notBefore); err != nil {
		return class(ErrConfig, err)
	}
	if err := j.dir.SaveIdentity(id); err != nil {
		return class(ErrConfig, err)
	}
	return nil
}

func (j *joiner) attempt(ctx context.Context, csr []byte) (*state.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	raw, err := j.connect(ctx)
	if err != nil {
		return nil, class(ErrUnreachable, err)
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	conn := tls.Client(raw, &tls.Config{
		ServerName: j.token.ServerName,
		NextProtos: []string{protocol.ALPNJoin},
		MinVersion: tls.VersionTLS13,
		// The relay is known by the CA's fingerprint in the token, and by
		// nothing else: VerifyConnection does the whole check.
		InsecureSkipVerify: true,
		VerifyConnection:   j.verify,
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, j.handshakeError(err)
	}
	joined, err := j.exchange(conn, csr)
	if err != nil {
		return nil, class(ErrUnreachable, err)
	}
	if joined.Error != "" {
		return nil, j.refusal(joined.Error)
	}
	return j.identity(conn.ConnectionState(), joined)
}

func (j *joiner) refusal(text string) error {
	hint := newTokenHint
	if j.asked {
		hint = "An earlier answer of the relay was lost on the way. " + hint
	}
	return classf(ErrRefused, "the relay refuses the join token: %s\n%s", text, hint)
}

// connect tries the relay's addresses one after the other.
func (j *joiner) connect(ctx context.Context) (net.Conn, error) {
	host, port, err := net.SplitHostPort(j.token.Relay)
	if err != nil {
		return nil, fmt.Errorf("relay address: %w", err)
	}
	addrs := []string{host}
	if _, err := netip.ParseAddr(host); err != nil {
		ips, err := j.cfg.Resolve(ctx, host)
		if err != nil {
			return nil, fmt.Errorf("look up %s: %w", host, err)
		}
		addrs = addrs[:0]
		for _, ip := range ips {
			addrs = append(addrs, ip.Unmap().String())
		}
	}
	errs := []error{}
	for _, a := range addrs {
		c, err := j.dialOne(ctx, net.JoinHostPort(a, port))
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("look up %s: no addresses", host)
	}
	return nil, errors.Join(errs...)
}

func (j *joiner) dialOne(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, joinDial)
	defer cancel()
	return j.cfg.DialContext(ctx, "tcp", addr)
}

var errFingerprint = errors.New("its certificate authority is not the one that the token names")

// verify trusts exactly the CA whose fingerprint is in the token.
func (j *joiner) verify(cs tls.ConnectionState) error {
	ca := j.authority(cs)
	if ca == nil {
		return errFingerprint
	}
	if cs.NegotiatedProtocol != protocol.ALPNJoin {
		return errors.New("it does not speak the join protocol")
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: roots, DNSName: j.token.ServerName, CurrentTime: j.verifyTime(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}

func (j *joiner) authority(cs tls.ConnectionState) *x509.Certificate {
	for _, c := range cs.PeerCertificates {
		if c.IsCA && fingerprint(c) == j.token.CA {
			return c
		}
	}
	return nil
}

// handshakeError tells a server that is there but is the wrong one from one
// that cannot be reached.
func (j *joiner) handshakeError(err error) error {
	var remote *net.OpError
	_, verifying := errors.AsType[*tls.CertificateVerificationError](err)
	_, invalid := errors.AsType[x509.CertificateInvalidError](err)
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, name := errors.AsType[x509.HostnameError](err)
	switch {
	case errors.Is(err, errFingerprint):
		return classf(ErrRefused, "the server at %s is not the relay that made this token: %w\n"+
			"Somebody is in between, the relay was set up anew, or the address leads elsewhere. %s", j.token.Relay, err, newTokenHint)
	case verifying, invalid, unknown, name:
		return classf(ErrRefused, "the relay at %s has no valid certificate: %w\nCheck the clocks here (%s) and there.",
			j.token.Relay, err, j.cfg.Now().Local().Format(dateTime))
	case errors.As(err, &remote) && remote.Op == "remote error": // a TLS alert
		return classf(ErrRefused, "the server at %s does not know this token: %w\n"+
			"The relay was set up anew, or the address leads elsewhere. %s", j.token.Relay, err, newTokenHint)
	}
	return classf(ErrUnreachable, "TLS with %s: %w", j.token.Relay, err)
}

func (j *joiner) exchange(conn *tls.Conn, csr []byte) (protocol.Joined, error) {
	if err := protocol.WriteMessage(conn, protocol.Join{Secret: j.token.Secret, CSR: csr, Name: j.cfg.Name}); err != nil {
		return protocol.Joined{}, err
	}
	m, err := protocol.ReadMessage(conn)
	if err != nil {
		j.asked = true
		if errors.Is(err, io.EOF) {
			err = errors.New("the relay closed the connection without an answer")
		}
		return protocol.Joined{}, err
	}
	joined, ok := m.(protocol.Joined)
	if !ok {
		return protocol.Joined{}, fmt.Errorf("the relay answered with a message of type %d", m.Type())
	}
	return joined, nil
}

func (j *joiner) identity(cs tls.ConnectionState, joined protocol.Joined) (*state.Identity, error) {
	cert, err := x509.ParseCertificate(joined.Cert)
	if err != nil {
		return nil, classf(ErrRefused, "the relay's answer has no certificate: %w", err)
	}
	var deviceCA *x509.Certificate
	if len(joined.DeviceCA) > 0 {
		if deviceCA, err = x509.ParseCertificate(joined.DeviceCA); err != nil {
			return nil, classf(ErrRefused, "the relay's device CA cannot be read: %w", err)
		}
	}
	j.notBefore = cs.PeerCertificates[0].NotBefore
	return &state.Identity{
		Cert: cert, CA: j.authority(cs), Relay: j.token.Relay, ServerName: j.token.ServerName,
		Name: joined.Name, Domain: joined.Domain, DeviceCA: deviceCA,
	}, nil
}

func fingerprint(cert *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(cert.Raw) }
