// Package tunnel declares what relay and agent need of a tunnel: an
// authenticated Session that carries many Streams, and the Transport that
// makes Sessions. tunnelquic and tunneltcp implement it; tunneltest is the
// conformance suite that both pass; Splice joins a Stream with a connection;
// package packets carries datagrams on a Stream.
package tunnel

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/protocol"
)

// A Session is one authenticated connection to a peer. Its methods are safe
// for concurrent use.
type Session interface {
	// OpenStream opens a stream. It blocks while the peer's limit of open
	// streams is reached, until ctx ends. The peer learns of the stream with
	// its first byte.
	OpenStream(ctx context.Context) (Stream, error)
	// AcceptStream returns the next stream that the peer opened. It fails when
	// ctx or the session ends.
	AcceptStream(ctx context.Context) (Stream, error)
	// Close ends the session and resets its open streams; the peer's Err
	// carries code and reason (at most 255 bytes). The second call does nothing.
	Close(code protocol.Code, reason string) error
	// Done is closed when the session has ended, for whatever reason.
	Done() <-chan struct{}
	// Err says why: nil before Done, then always a *CloseError.
	Err() error
	// Peer says who is at the other end.
	Peer() Peer
	// Stats returns counters, cheap enough for once a second.
	Stats() Stats
}

// A Stream is one connection inside a session. Close ends both directions:
// what was written is still delivered, what comes in is refused. A Stream
// that its owner drops without Close or Reset leaks.
type Stream interface {
	net.Conn
	// CloseWrite ends the write side cleanly; the peer reads io.EOF after the
	// last byte. Reading goes on.
	CloseWrite() error
	// Reset aborts both directions at once, also while the peer does not read.
	// The peer's Read and Write fail with a *ResetError that carries code; it
	// never sees a clean end. After Close or a second time it does nothing.
	Reset(code protocol.Code)
}

// A Transport dials Sessions.
type Transport interface {
	// Name is short, lower case, and stable: "quic" or "tcp". It appears in
	// logs, in status, and in the agent's memory of what worked.
	Name() string
	// Dial connects to one address and returns after both sides are
	// authenticated. The caller owns the session.
	Dial(ctx context.Context, addr netip.AddrPort) (Session, error)
}

// A Listener accepts authenticated Sessions. One bad peer never ends it.
type Listener interface {
	Accept(ctx context.Context) (Session, error)
	Addr() net.Addr
	Close() error
}

// A Peer is the other end of a session. At the relay, ID and Cert are the
// agent's, verified by the TLS configuration that the listener was given.
type Peer struct {
	ID        protocol.AgentID // empty when the peer showed no certificate
	Cert      *x509.Certificate
	Addr      net.Addr
	Transport string // Transport.Name
}

// Stats are a session's counters.
type Stats struct {
	RTT       time.Duration // smoothed; zero when not known
	Streams   int           // open now, both directions
	BytesIn   uint64        // payload of streams, and of their datagrams
	BytesOut  uint64
	Unread    int64     // bytes that arrived and were not read here; the budget bounds the memory that they take
	BlockedAt time.Time // since when a write waits for the path without any progress on this session; zero: none waits. A peer that does not read is no stalled path
}

// A CloseError is why a session ended.
type CloseError struct {
	Code   protocol.Code
	Reason string
	Remote bool  // the peer said so
	Err    error // the transport's error, when there was one
}

func (e *CloseError) Error() string {
	who := "here"
	if e.Remote {
		who = "by the peer"
	}
	s := fmt.Sprintf("session closed %s: %s", who, e.Code)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *CloseError) Unwrap() error { return e.Err }

// A ResetError is what Read and Write return on a stream that was aborted.
type ResetError struct {
	Code   protocol.Code
	Remote bool
}

func (e *ResetError) Error() string {
	if e.Remote {
		return "stream reset by the peer: " + e.Code.String()
	}
	return "stream reset: " + e.Code.String()
}
