package lan

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var own = strings.Repeat("a", 52) + ".example.org"

func addrs(texts ...string) []netip.Addr {
	var as []netip.Addr
	for _, t := range texts {
		as = append(as, netip.MustParseAddr(t))
	}
	return as
}

// A fakeListener hands out what dial puts in. Its address is [::]:8443.
type fakeListener struct {
	conns  chan net.Conn
	errs   chan error
	once   sync.Once
	closed chan struct{}
}

func newFakeListener() *fakeListener {
	return &fakeListener{conns: make(chan net.Conn), errs: make(chan error), closed: make(chan struct{})}
}

func (l *fakeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case err := <-l.errs:
		return nil, err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *fakeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *fakeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv6unspecified, Port: 8443} }

// dial connects from an address and returns the visitor's end.
func (l *fakeListener) dial(from string) net.Conn {
	ours, theirs := net.Pipe()
	l.conns <- &fakeConn{Conn: ours, remote: netip.MustParseAddrPort(from)}
	return theirs
}

// A fakeConn has a visitor's address.
type fakeConn struct {
	net.Conn
	remote netip.AddrPort
}

func (c *fakeConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }
func (c *fakeConn) LocalAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.168.1.7:8443"))
}

// gone reports whether a visitor's connection was closed by us, within a minute.
func gone(c net.Conn) bool {
	c.SetReadDeadline(time.Now().Add(time.Minute))
	_, err := c.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// A doorman is a Serve that greets and holds connections until ctx ends or they
// are closed.
type doorman struct {
	mu    sync.Mutex
	taken []net.Conn
}

func (d *doorman) serve(ctx context.Context, c net.Conn) {
	d.mu.Lock()
	d.taken = append(d.taken, c)
	d.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	if _, err := c.Write([]byte("!")); err != nil {
		return
	}
	_, _ = c.Read(make([]byte, 1))
}

func (d *doorman) last() net.Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.taken[len(d.taken)-1]
}

// changes remembers what Changed was told.
type changes struct {
	mu   sync.Mutex
	told [][]netip.Addr
}

func (c *changes) tell(as []netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told = append(c.told, as)
}

func (c *changes) expect(t *testing.T, want ...[]netip.Addr) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.EqualFunc(c.told, want, slices.Equal) {
		t.Errorf("Changed was told %v, want %v", c.told, want)
	}
}

// start runs l until the test ends, and returns what ends it earlier.
func start(t *testing.T, l *LAN) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func newLAN(t *testing.T, c Config) *LAN {
	t.Helper()
	if c.Own == "" {
		c.Own = own
	}
	if c.Serve == nil {
		c.Serve = new(doorman).serve
	}
	l, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
