package world

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// A listener is a TCP port, at a machine or (without process) at home.
type listener struct {
	process *process
	addr    net.Addr
	close   func()
	conns   chan net.Conn
	done    chan struct{}
	once    sync.Once
}

func newListener(addr net.Addr) *listener {
	return &listener{addr: addr, close: func() {}, conns: make(chan net.Conn, 4096), done: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.close()
	})
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.addr }

// dial hands over a new connection, or says that nobody listens.
func (l *listener) offer(c net.Conn) error {
	select {
	case <-l.done:
		return syscall.ECONNREFUSED
	default:
	}
	select {
	case l.conns <- c:
		return nil
	default:
		return syscall.ECONNREFUSED
	}
}

// listenTCP opens a port of the process's machine. Its address is the
// unspecified one, as with ":443".
func (p *process) listenTCP(addr string) (net.Listener, error) {
	port, err := portOf(addr)
	if err != nil {
		return nil, err
	}
	w := p.m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	at := netip.AddrPortFrom(p.m.Addr, port)
	if w.listeners[at] != nil {
		return nil, fmt.Errorf("listen tcp %s: %w", at, syscall.EADDRINUSE)
	}
	l := newListener(&net.TCPAddr{IP: net.IPv4zero, Port: int(port)})
	l.process = p
	l.close = func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.listeners[at] == l {
			delete(w.listeners, at)
		}
	}
	w.listeners[at] = l
	return l, nil
}

// dialTCP is DialContext of a process. The handshake takes a round trip; on a
// frozen way it takes until ctx ends.
func (p *process) dialTCP(ctx context.Context, _, addr string) (net.Conn, error) {
	w := p.m.w
	p.m.change(func() { p.m.dials++ })
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := portOf(addr)
	if err != nil {
		return nil, err
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		ips, err := w.resolve(ctx, host)
		if err != nil {
			return nil, err
		}
		ip = ips[0]
	}
	to := netip.AddrPortFrom(ip, port)
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	select {
	case <-time.After(2 * Latency):
	case <-ctx.Done():
		return fail(context.Cause(ctx))
	}
	for {
		w.mu.Lock()
		l, dead, changed, closed := w.listeners[to], p.dead, w.changed, w.closed
		blocked := p.m.frozen || l != nil && l.process.m.frozen
		w.mu.Unlock()
		switch {
		case dead || closed:
			return fail(errGone)
		case !blocked && l == nil:
			return fail(syscall.ECONNREFUSED)
		case !blocked:
			c, err := w.connect(p, l, to)
			if err != nil {
				return fail(err)
			}
			return c, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fail(context.Cause(ctx))
		}
	}
}

// connect makes a connection: two pairs in memory, and the way between them.
func (w *World) connect(p *process, l *listener, to netip.AddrPort) (net.Conn, error) {
	near, nearEnd := memConn()
	farEnd, far := memConn()
	w.mu.Lock()
	w.seq++
	from := netip.AddrPortFrom(p.m.Addr, w.freePort())
	near.SetAddrs(from, to)
	far.SetAddrs(to, from)
	f := &flow{w: w, client: p, server: l.process, near: nearEnd, far: farEnd, seq: w.seq, done: make(chan struct{})}
	w.flows[f] = struct{}{}
	w.mu.Unlock()
	f.run()
	if err := l.offer(far); err != nil {
		f.reset()
		return nil, err
	}
	return near, nil
}

func memConn() (a, b *tunneltest.Conn) {
	x, y := tunneltest.MemConn()
	return x.(*tunneltest.Conn), y.(*tunneltest.Conn)
}
