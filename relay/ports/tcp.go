package ports

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// Back-off of accept and of reads from a UDP socket.
const (
	minDelay = 5 * time.Millisecond
	maxDelay = time.Second
)

// tcpPort joins each connection with a stream home.
type tcpPort struct {
	*base
	listener net.Listener
}

func (t *tcpPort) unbind(why *tunnel.CloseError) {
	t.remove(why)
	_ = t.listener.Close()
}

func (t *tcpPort) status() Status { return t.base.status(t.listener.Addr()) }

func (t *tcpPort) serve(ctx context.Context) {
	ctx, cancel := t.during(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = t.listener.Close() })
	defer stop()
	var visitors sync.WaitGroup
	t.accept(ctx, &visitors)
	visitors.Wait()
}

// accept goes on until the listener is closed. No other error ends it.
func (t *tcpPort) accept(ctx context.Context, visitors *sync.WaitGroup) {
	delay := time.Duration(0)
	for {
		conn, err := t.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return
			}
			delay = min(max(2*delay, minDelay), maxDelay)
			t.often.warn("accept failed", "error", err, "retry_in", delay)
			select {
			case <-time.After(delay):
			case <-ctx.Done():
			}
			continue
		}
		delay = 0
		t.admit(ctx, conn, visitors)
	}
}

// admit gives a connection a place and a goroutine, or aborts it.
func (t *tcpPort) admit(ctx context.Context, conn net.Conn, visitors *sync.WaitGroup) {
	c, ok := conn.(tunnel.Conn)
	if !ok {
		t.often.warn("connection refused", "error", fmt.Errorf("a %T cannot end its two directions separately", conn))
		tunnel.Abort(conn, protocol.CodeInternal)
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	from := addrPort(conn.RemoteAddr())
	m, err := t.crowd.admit(from.Addr(), cancel, nil)
	if err != nil {
		cancel(nil)
		t.counts.refused.Add(1)
		t.often.warn("connection refused", "client", from, "error", err)
		tunnel.Abort(conn, protocol.CodeOverload)
		return
	}
	t.counts.total.Add(1)
	visitors.Go(func() {
		defer cancel(nil)
		t.handle(ctx, c, m)
	})
}

// handle takes one connection from its stream to its log line.
func (t *tcpPort) handle(ctx context.Context, c tunnel.Conn, m *member) {
	start := time.Now()
	client := addrPort(c.RemoteAddr())
	r, err := t.join(ctx, c, client, m)
	t.crowd.leave(m)
	attrs := []any{"client", client, "in", r.AtoB, "out", r.BtoA, "took", time.Since(start).Round(time.Millisecond)}
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	t.log.Log(ctx, slog.LevelInfo, "connection ended", attrs...)
}

func (t *tcpPort) join(ctx context.Context, c tunnel.Conn, client netip.AddrPort, m *member) (tunnel.SpliceResult, error) {
	stream, err := t.openHome(ctx, client, addrPort(c.LocalAddr()))
	if err != nil {
		tunnel.Abort(c, protocol.CodeBackendDown)
		return tunnel.SpliceResult{}, fmt.Errorf("open stream to the home: %w", err)
	}
	t.crowd.settle(m)
	r := tunnel.Splice(ctx, c, stream, tunnel.SpliceOptions{
		Idle: t.cfg.Limits.TCPIdle, OnBytes: t.counts.moved,
	})
	return r, r.Err
}

// addrPort returns the address and port of a socket's end; zero when it has none.
func addrPort(a net.Addr) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
