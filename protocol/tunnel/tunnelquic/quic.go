// Package tunnelquic carries tunnel sessions over QUIC. Streams are QUIC
// streams, byte for byte; package flow adds the control stream.
//
//	CloseWrite    FIN
//	Reset(code)   RESET_STREAM and STOP_SENDING with the code
//	Close         FIN, and STOP_SENDING when the peer has not finished
//	Session.Close CONNECTION_CLOSE (application) with code and reason
//
// Datagrams of a stream (see package packets) are DATAGRAM frames: the number
// of the stream as a varint, then the payload.
//
// Congestion control is quic-go's Reno: on a lossy path the TCP transport with
// BBR is far faster, and the uplink chooses.
package tunnelquic

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/flow"
)

// Name is what Transport.Name and Peer.Transport say.
const Name = "quic"

// A Config tunes sessions. The zero value is what production uses.
type Config struct {
	Budget      int64         // bytes of unread stream data per session; 0 = 64 MiB
	ResetKey    *[32]byte     // key of stateless resets, kept over restarts; nil = none are sent
	KeepAlive   time.Duration // 0 = 4 s
	IdleTimeout time.Duration // nothing heard for so long ends the session; 0 = 9 s
	Logger      *slog.Logger  // nil = silent
	MaxAccept   int64         // streams that the peer may have open; QUIC lets it open no more; 0 = 10000
}

// A path that froze is noticed within 4 s + 9 s, whenever it froze: QUIC counts
// its idle time from the first packet that it sends after the last one that it
// got, and that may be a keep-alive.
const (
	defaultKeepAlive   = 4 * time.Second
	defaultIdleTimeout = 9 * time.Second
	defaultMaxAccept   = 10000

	// Package flow empties quic-go's buffers at once, so these windows are only
	// what may be on its way, or wait for a lost packet. Larger than the credit,
	// as quic-go grants by quarters.
	streamWindow = flow.MaxWindow * 3 / 2
	connWindow   = flow.MaxWindow * 2
)

func (c Config) quic() *quic.Config {
	q := &quic.Config{
		HandshakeIdleTimeout:           5 * time.Second,
		MaxIdleTimeout:                 c.IdleTimeout,
		KeepAlivePeriod:                c.KeepAlive,
		MaxIncomingStreams:             c.maxAccept() + 1, // the control stream
		MaxIncomingUniStreams:          -1,
		InitialStreamReceiveWindow:     streamWindow,
		MaxStreamReceiveWindow:         streamWindow,
		InitialConnectionReceiveWindow: connWindow,
		MaxConnectionReceiveWindow:     connWindow,
		InitialPacketSize:              1200, // what every path carries; path MTU discovery raises it
		EnableDatagrams:                true,
	}
	if q.MaxIdleTimeout <= 0 {
		q.MaxIdleTimeout = defaultIdleTimeout
	}
	if q.KeepAlivePeriod <= 0 {
		q.KeepAlivePeriod = defaultKeepAlive
	}
	return q
}

func (c Config) maxAccept() int64 {
	if c.MaxAccept <= 0 {
		return defaultMaxAccept
	}
	return c.MaxAccept
}

func (c Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
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

// A Dialer dials sessions, each over a UDP socket of its own.
type Dialer struct {
	TLS    *tls.Config
	Config Config
	// ListenPacket opens the socket, which the session then owns; nil =
	// net.ListenUDP of the right family.
	ListenPacket func(ctx context.Context, remote netip.AddrPort) (net.PacketConn, error)
}

var _ tunnel.Transport = (*Dialer)(nil)

// Name returns "quic".
func (d *Dialer) Name() string { return Name }

// Dial implements tunnel.Transport.
func (d *Dialer) Dial(ctx context.Context, addr netip.AddrPort) (tunnel.Session, error) {
	listen := d.ListenPacket
	if listen == nil {
		listen = listenUDP
	}
	pc, err := listen(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket: %w", err)
	}
	raiseBuffers(pc, d.Config.logger())
	tr := &quic.Transport{Conn: pc}
	hangUp := func() { tr.Close(); pc.Close() }
	conn, err := tr.Dial(ctx, net.UDPAddrFromAddrPort(addr), tlsConfig(d.TLS), d.Config.quic())
	if err != nil {
		hangUp()
		return nil, fmt.Errorf("dial %s by quic: %w", addr, err)
	}
	s, err := newSession(ctx, conn, d.Config, true, hangUp)
	if err != nil {
		return nil, fmt.Errorf("dial %s by quic: %w", addr, err)
	}
	return s, nil
}

func listenUDP(_ context.Context, remote netip.AddrPort) (net.PacketConn, error) {
	network := "udp6"
	if remote.Addr().Unmap().Is4() {
		network = "udp4" // a dual-stack socket cannot forbid fragments everywhere
	}
	return net.ListenUDP(network, nil)
}

func newSession(ctx context.Context, conn *quic.Conn, cfg Config, dialer bool, hangUp func()) (*flow.Session, error) {
	peer := tunnel.Peer{Addr: conn.RemoteAddr(), Transport: Name}
	if certs := conn.ConnectionState().TLS.PeerCertificates; len(certs) > 0 {
		peer.Cert = certs[0]
		peer.ID = protocol.AgentIDOf(certs[0])
	}
	l := &link{conn: conn, datagrams: conn.ConnectionState().SupportsDatagrams.Remote, hangUp: hangUp}
	return flow.New(ctx, l, flow.Config{
		Peer: peer, Local: conn.LocalAddr(), Dialer: dialer, Budget: cfg.Budget, Logger: cfg.Logger,
		MaxStreams: int(cfg.maxAccept()), // QUIC's own limit does not count streams that ended and nobody accepted
	})
}
