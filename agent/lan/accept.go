package lan

import (
	"context"
	"errors"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

const (
	minAcceptDelay = 5 * time.Millisecond
	maxAcceptDelay = time.Second
)

// accept hands every connection to a goroutine of its own until the listener is
// closed, and returns when all of them have ended.
func (l *LAN) accept(ctx context.Context, listener net.Listener) {
	var conns sync.WaitGroup
	defer conns.Wait()
	delay := time.Duration(0)
	for {
		c, err := listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return
			}
			l.guests.makeRoom()
			delay = min(max(2*delay, minAcceptDelay), maxAcceptDelay)
			l.log.Warn("accept failed on the home network", "err", err, "retry_in", delay)
			select {
			case <-time.After(delay):
			case <-ctx.Done():
			}
			continue
		}
		delay = 0
		if g := l.admit(c); g != nil {
			conns.Go(func() { l.serve(ctx, g) })
		}
	}
}

// admit takes a connection in, or closes it and returns nil.
func (l *LAN) admit(c net.Conn) *guest {
	p := pairOf(c)
	if !l.cfg.Open && !ofHome(p.remote.Addr()) {
		tunnel.Abort(c, protocol.CodeRefused)
		if l.guests.turnAway() == 1 {
			l.log.Warn("an address that is not of a home network was turned away; more are only counted", "remote", p.remote,
				"fix", "do not forward the port in the router; where home has no private addresses, open the LAN door for all")
		}
		return nil
	}
	g := l.guests.admit(c, p)
	if g == nil {
		tunnel.Abort(c, protocol.CodeOverload)
		l.log.Warn("a connection on the home network was refused: too many are open", "remote", p.remote, "limit", l.cfg.MaxConns)
	}
	return g
}

// serve runs one connection. A panic ends this one and no other.
func (l *LAN) serve(ctx context.Context, g *guest) {
	defer l.guests.leave(g)
	defer g.Close()
	defer func() {
		if v := recover(); v != nil {
			l.log.Error("panic while serving the home network", "panic", v, "stack", string(debug.Stack()))
			tunnel.Abort(g.Conn, protocol.CodeInternal)
		}
	}()
	l.cfg.Serve(ctx, g)
}
