// Package tunneltcp carries tunnel sessions over one TCP connection: TLS 1.3,
// in it hashicorp/yamux, in its streams the records that yamux lacks words for.
//
//	type u8 | length u24 | payload, big endian
//
//	0 DATA   length bytes of the stream
//	1 END    nothing more comes: the peer's Read returns io.EOF. Length 0
//	2 RESET  the direction is aborted. Payload: code u32
//	3 STOP   the sender of this record does not read any more; the peer
//	         answers with RESET unless it has sent END. Payload: code u32
//
// A yamux FIN comes only after END or RESET went both ways, because yamux
// frees a stream some time after its own FIN and would cut a long reply; a FIN
// without END or RESET is an abort. STOP travels in the stream itself, and not
// on the control stream by number: package flow always reads, so it arrives
// also while the peer's application does not read, and never before its
// stream. The control stream, with CREDIT and CLOSE, is described there.
package tunneltcp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/flow"
)

// Name is what Transport.Name and Peer.Transport say.
const Name = "tcp"

// A Config tunes sessions. The zero value is what production uses.
type Config struct {
	Budget       int64         // bytes of unread stream data per session; 0 = 64 MiB
	KeepAlive    time.Duration // a ping every so often; 0 = 4 s
	WriteTimeout time.Duration // a write or ping without answer for so long ends the session; 0 = 10 s
	Logger       *slog.Logger  // nil = silent
	MaxStreams   int           // streams that we have open at most, as the peer accepts no more; 0 = 10000
	MaxAccept    int           // streams that the peer may have open; one more ends the session with CodeProtocol; 0 = 10000
}

// A path that froze is noticed within 4 s + 10 s, whenever it froze.
const (
	defaultKeepAlive    = 4 * time.Second
	defaultWriteTimeout = 10 * time.Second
	defaultMaxStreams   = 10000
)

func (c Config) withDefaults() Config {
	if c.KeepAlive <= 0 {
		c.KeepAlive = defaultKeepAlive
	}
	if c.WriteTimeout <= 0 {
		c.WriteTimeout = defaultWriteTimeout
	}
	if c.MaxStreams <= 0 {
		c.MaxStreams = defaultMaxStreams
	}
	if c.MaxAccept <= 0 {
		c.MaxAccept = defaultMaxStreams
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// tlsConfig fills in the protocol name when the caller left it to us.
func tlsConfig(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.MinVersion = tls.VersionTLS13
	if len(c.NextProtos) == 0 {
		c.NextProtos = []string{protocol.ALPN}
	}
	return c
}

// Server takes over an accepted connection: it shakes hands, for which ctx is
// the limit, and returns the session. conn is closed also on error.
func Server(ctx context.Context, conn net.Conn, tlsConf *tls.Config, cfg Config) (tunnel.Session, error) {
	return newSession(ctx, conn, tls.Server, tlsConf, cfg, false)
}

// A Dialer dials sessions.
type Dialer struct {
	TLS    *tls.Config
	Config Config
	// DialContext connects; nil = net.Dialer.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
}

var _ tunnel.Transport = (*Dialer)(nil)

// Name returns "tcp".
func (d *Dialer) Name() string { return Name }

// Dial implements tunnel.Transport.
func (d *Dialer) Dial(ctx context.Context, addr netip.AddrPort) (tunnel.Session, error) {
	dial := d.DialContext
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	conn, err := dial(ctx, "tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("dial %s by tcp: %w", addr, err)
	}
	TuneTCP(conn)
	s, err := newSession(ctx, conn, tls.Client, d.TLS, d.Config, true)
	if err != nil {
		return nil, fmt.Errorf("dial %s by tcp: %w", addr, err)
	}
	return s, nil
}

// newSession shakes hands on conn and starts a session on it.
func newSession(ctx context.Context, raw net.Conn, side func(net.Conn, *tls.Config) *tls.Conn, tlsConf *tls.Config, cfg Config, dialer bool) (*flow.Session, error) {
	cfg = cfg.withDefaults()
	cork := &cork{Conn: raw}
	conn := side(cork, tlsConfig(tlsConf))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("tls handshake: %w", err)
	}
	state := conn.ConnectionState()
	if state.Version < tls.VersionTLS13 { // GetConfigForClient may have allowed it
		raw.Close()
		return nil, errors.New("tls handshake: older than TLS 1.3")
	}
	peer := tunnel.Peer{Addr: conn.RemoteAddr(), Transport: Name}
	if len(state.PeerCertificates) > 0 {
		peer.Cert = state.PeerCertificates[0]
		peer.ID = protocol.AgentIDOf(peer.Cert)
	}
	l, err := newLink(conn, cork, cfg, dialer)
	if err != nil {
		raw.Close()
		return nil, err
	}
	return flow.New(ctx, l, flow.Config{
		Peer: peer, Local: conn.LocalAddr(), Dialer: dialer,
		Budget: cfg.Budget, MaxStreams: cfg.MaxAccept, Logger: cfg.Logger,
	})
}
