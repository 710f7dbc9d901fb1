package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel"
)

// Passthrough carries a connection to a home that ends TLS itself, unread.
//
// A home that cannot be reached is answered with the alert internal_error: the
// relay holds no certificate of that name and cannot pretend to be there. It
// is not the answer of a name that nobody claimed, and need not be: the name
// was already seen answering with the home's own certificate.
type Passthrough struct {
	// Open opens the stream to the home, the Open header already answered.
	// It bounds its own time.
	Open func(ctx context.Context, c *Conn) (tunnel.Stream, error)
	// Proven, if set, is asked once a second whether the home has let the visitor
	// in, by the bytes that went both ways; until it has, the connection is a
	// stranger's. Nil: who gets a stream is no stranger.
	Proven func(in, out int64) bool
	// Idle ends a connection on which nothing moved for so long. 0: never.
	Idle time.Duration
}

// HandleConn opens a stream and joins both.
func (p Passthrough) HandleConn(ctx context.Context, c *Conn) {
	stream, err := p.Open(ctx, c)
	if err != nil {
		c.Fail(fmt.Errorf("open stream to the home: %w", err))
		refuse(c, alertInternalError)
		return
	}
	if p.Proven == nil {
		c.Settled()
	} else {
		defer p.watch(c)()
	}
	c.Fail(tunnel.Splice(ctx, c, stream, tunnel.SpliceOptions{Idle: p.Idle}).Err)
}

// watch settles the connection when it is proven; stop ends the watching.
func (p Passthrough) watch(c *Conn) (stop func()) {
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
				if p.Proven(c.Bytes()) {
					c.Settled()
					return
				}
			}
		}
	}()
	return func() { close(over); <-ended }
}

// Kind is "passthrough".
func (Passthrough) Kind() string { return "passthrough" }

// ForwardsACME is true: the home's server answers for its own certificates.
func (Passthrough) ForwardsACME() bool { return true }

// Bounds of a decoy's connections: they belong to strangers.
const (
	decoyDialTime = 5 * time.Second
	decoyIdleTime = 2 * time.Minute
)

// DecoyTCP hands strangers to another server, with every byte that they sent.
// When that server does not answer, they are refused.
type DecoyTCP struct {
	Addr string // host:port; see CheckDecoy
	// Dial replaces the plain TCP dialler, in tests. Nil: net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// HandleConn dials the decoy and joins both.
func (d DecoyTCP) HandleConn(ctx context.Context, c *Conn) {
	dial := d.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	dialCtx, cancel := context.WithTimeout(ctx, decoyDialTime)
	defer cancel()
	conn, err := dial(dialCtx, "tcp", d.Addr)
	if err != nil {
		c.Fail(fmt.Errorf("dial decoy: %w", err))
		refuse(c, alertUnrecognizedName)
		return
	}
	out, ok := conn.(tunnel.Conn)
	if !ok {
		_ = conn.Close()
		c.Fail(fmt.Errorf("dial decoy: %T has no half-close", conn))
		refuse(c, alertUnrecognizedName)
		return
	}
	err = tunnel.Splice(ctx, c, out, tunnel.SpliceOptions{Idle: decoyIdleTime}).Err
	if errors.Is(err, syscall.ENOTCONN) {
		err = nil // one end hung up before it could be told that the other had
	}
	c.Fail(err)
}

// Kind is "decoy-tcp".
func (DecoyTCP) Kind() string { return "decoy-tcp" }
