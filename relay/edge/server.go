package edge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"
)

// Limits bound what visitors can take from the relay. Zero values mean the
// defaults.
type Limits struct {
	// HelloTimeout is how long a visitor may take for its whole ClientHello.
	// Default 10 s.
	HelloTimeout time.Duration
	// MaxConns is how many connections of one listener are open at a time.
	// Default 20000.
	MaxConns int
	// MaxConnsPerIP is how many strangers (connections whose target has not
	// called Settled) one IPv4 address or IPv6 /64 may have. One more, and its
	// oldest goes. Default 256.
	MaxConnsPerIP int
	// MaxSettledPerIP is how many others it may have. One more is closed as
	// soon as it settles. Default 2000.
	MaxSettledPerIP int
	// Grace is how long settled connections have to end by themselves after
	// the server's context did. Default 1 s.
	Grace time.Duration
}

func (l Limits) withDefaults() Limits {
	l.HelloTimeout = cmp.Or(l.HelloTimeout, 10*time.Second)
	l.MaxConns = cmp.Or(l.MaxConns, 20000)
	l.MaxConnsPerIP = cmp.Or(l.MaxConnsPerIP, 256)
	l.MaxSettledPerIP = cmp.Or(l.MaxSettledPerIP, 2000)
	l.Grace = cmp.Or(l.Grace, time.Second)
	return l
}

// Back-off of the accept loop.
const (
	minAcceptDelay = 5 * time.Millisecond
	maxAcceptDelay = time.Second
)

// A Server accepts public connections and routes them. Set the fields before
// Serve.
type Server struct {
	Router *Router
	Logger *slog.Logger // nil: no logs
	Limits Limits       // per listener
	// ECH opens encrypted hellos. Nil: nobody's are, and the extension means
	// nothing, as GREASE does.
	ECH ECH
	// ProxyFrom are the addresses of load balancers in front: connections from
	// there must begin with a header of the PROXY protocol, version 1 or 2,
	// and the address in it is the visitor's. From everywhere else no such
	// header is read. Empty: from nowhere.
	ProxyFrom []netip.Prefix
}

// Serve accepts until ctx ends or l is closed, and returns nil after every
// connection has ended. No other error of Accept ends it. The end of ctx
// closes l and then the connections; closing l alone lets them finish.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if s.Router == nil {
		return errors.New("edge: the server has no router")
	}
	logger := s.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	limits := s.Limits.withDefaults()
	serving := &serving{
		router: s.Router, logger: logger, limits: limits, crowd: newCrowd(limits),
		ech: s.ECH, proxies: maskedPrefixes(s.ProxyFrom),
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	serving.accept(ctx, l)
	serving.end(ctx)
	return nil
}

// serving is one call of Serve.
type serving struct {
	router *Router
	logger *slog.Logger
	limits Limits
	crowd  *crowd
	conns  sync.WaitGroup

	ech     ECH
	proxies []netip.Prefix
}

// accept hands every connection to a goroutine of its own until the listener
// is closed. When there are no file descriptors left the oldest stranger gives
// up its own, so that silent connections cannot keep everybody out.
func (s *serving) accept(ctx context.Context, l net.Listener) {
	delay := time.Duration(0)
	for {
		conn, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return
			}
			s.crowd.makeRoom()
			delay = min(max(2*delay, minAcceptDelay), maxAcceptDelay)
			s.logger.Warn("accept failed", "err", err, "retry_in", delay)
			select {
			case <-time.After(delay):
			case <-ctx.Done():
			}
			continue
		}
		delay = 0
		admit, proxied := s.crowd.admit, s.isProxy(conn.RemoteAddr())
		if proxied {
			admit = s.crowd.admitUnnamed
		}
		m := admit(conn)
		if m == nil {
			s.logger.Warn("connection refused: too many are open", "remote", conn.RemoteAddr(), "limit", s.limits.MaxConns)
			abort(conn)
			continue
		}
		s.conns.Go(func() { s.handle(ctx, m, proxied) })
	}
}

// end waits for the connections and cuts them short after ctx.
func (s *serving) end(ctx context.Context) {
	ended := make(chan struct{})
	go func() {
		s.conns.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	s.crowd.cut(false)
	select {
	case <-ended:
		return
	case <-time.After(s.limits.Grace):
	}
	s.crowd.cut(true)
	<-ended
}

// handle takes one connection from its first byte to its log line.
func (s *serving) handle(ctx context.Context, m *member, proxied bool) {
	start := time.Now()
	c := &Conn{Conn: m.conn, settle: func() { s.crowd.settle(m) }}
	kind := s.serveConn(ctx, c, m, proxied)
	_ = m.conn.Close()
	err := c.failed()
	if why := s.crowd.leave(m); why != nil {
		err = why // what the target met was only its echo
	}
	logEnd(s.logger, c, kind, start, err)
}

// serveConn reads what comes before TLS and calls the target. A panic ends this
// connection and no other.
func (s *serving) serveConn(ctx context.Context, c *Conn, m *member, proxied bool) (kind string) {
	defer func() {
		if v := recover(); v != nil {
			c.Fail(fmt.Errorf("panic: %v", v))
			s.logger.Error("panic while handling a connection", "panic", v, "stack", string(debug.Stack()))
			abort(c.Conn)
		}
	}()
	kind = kindHello
	var before func() ([]byte, error)
	if proxied {
		before = func() ([]byte, error) { return s.readProxy(c, m) }
	}
	if err := c.meet(s.limits.HelloTimeout, before); err != nil {
		c.Fail(err)
		return kind
	}
	target := s.route(c)
	kind = kindOf(target)
	target.HandleConn(ctx, c)
	return kind
}
