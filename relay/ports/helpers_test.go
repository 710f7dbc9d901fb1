package ports

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/packets"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

const agentID = protocol.AgentID("abcdefghabcdefghabcdefghabcdefghabcdefghabcdefghabcd")

// A datagram is a packet on the way.
type datagram struct {
	peer netip.AddrPort
	data string
}

// fakeSocket is a public UDP socket in memory.
type fakeSocket struct {
	in     chan datagram // from visitors
	out    chan datagram // to visitors
	broken chan error    // what the next reads fail with
	refuse chan error    // what the next writes fail with
	closed chan struct{}
	once   sync.Once
}

func newFakeSocket() *fakeSocket {
	return &fakeSocket{
		in: make(chan datagram, 10000), out: make(chan datagram, 10000),
		broken: make(chan error, 100), refuse: make(chan error, 100), closed: make(chan struct{}),
	}
}

func (s *fakeSocket) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-s.closed:
		return 0, nil, net.ErrClosed
	case err := <-s.broken:
		return 0, nil, err
	case d := <-s.in:
		return copy(b, d.data), net.UDPAddrFromAddrPort(d.peer), nil
	}
}

func (s *fakeSocket) WriteTo(b []byte, to net.Addr) (int, error) {
	select {
	case err := <-s.refuse:
		return 0, err
	default:
	}
	select {
	case <-s.closed:
		return 0, net.ErrClosed
	case s.out <- datagram{addrPort(to), string(b)}:
		return len(b), nil
	}
}

func (s *fakeSocket) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *fakeSocket) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

func (s *fakeSocket) LocalAddr() net.Addr {
	return net.UDPAddrFromAddrPort(netip.MustParseAddrPort("198.51.100.1:5000"))
}
func (s *fakeSocket) SetDeadline(time.Time) error      { return nil }
func (s *fakeSocket) SetReadDeadline(time.Time) error  { return nil }
func (s *fakeSocket) SetWriteDeadline(time.Time) error { return nil }

// send puts a packet of a visitor on the wire.
func (s *fakeSocket) send(from string, data string) {
	s.in <- datagram{netip.MustParseAddrPort(from), data}
}

// expect waits for a packet to a visitor.
func (s *fakeSocket) expect(t *testing.T, to, data string) {
	t.Helper()
	select {
	case d := <-s.out:
		if d.peer.String() != to || d.data != data {
			t.Fatalf("%q went to %v, want %q to %s", d.data, d.peer, data, to)
		}
	case <-time.After(20 * time.Second): // virtual
		t.Fatalf("nothing came for %s", to)
	}
}

// settle makes a visitor one who has sent again after an answer.
func (s *fakeSocket) settle(t *testing.T, who string) {
	t.Helper()
	s.send(who, "x")
	s.expect(t, who, "X")
	time.Sleep(proofDelay) // virtual
	s.send(who, "y")
	s.expect(t, who, "Y")
}

// silent fails when something was sent.
func (s *fakeSocket) silent(t *testing.T) {
	t.Helper()
	select {
	case d := <-s.out:
		t.Fatalf("%q was sent to %v", d.data, d.peer)
	default:
	}
}

// fakeListener is a public TCP port in memory.
type fakeListener struct {
	conns  chan any // net.Conn or error
	closed chan struct{}
	once   sync.Once
}

func newFakeListener() *fakeListener {
	return &fakeListener{conns: make(chan any, 100), closed: make(chan struct{})}
}

func (l *fakeListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	case c := <-l.conns:
		if err, ok := c.(error); ok {
			return nil, err
		}
		return c.(net.Conn), nil
	}
}

func (l *fakeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *fakeListener) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort("198.51.100.1:2222"))
}

// dial makes a visitor.
func (l *fakeListener) dial() *tunneltest.Conn {
	near, far := tunneltest.MemConn()
	l.conns <- far
	return near.(*tunneltest.Conn)
}

// A world is ports with their sockets and a home behind them, for a bubble.
type world struct {
	*Ports
	agent, relay tunnel.Session
	log          logBuffer
	run          sync.WaitGroup
	stop         context.CancelFunc

	mu        sync.Mutex // guards what follows
	sockets   map[uint16]*fakeSocket
	listeners map[uint16]*fakeListener
	busy      map[uint16]error // why a port cannot be had
	opens     []protocol.Open
	gate      chan struct{}   // not nil: opening waits for it
	answer    protocol.Code   // of the home
	streams   []tunnel.Stream // at the home, of TCP
	flows     []*packets.Conn // at the home
	quiet     bool            // the home does not echo
	audit     []string
	attrs     []string // of the same events
}

func newWorld(t *testing.T, limits Limits) *world {
	t.Helper()
	w := &world{sockets: map[uint16]*fakeSocket{}, listeners: map[uint16]*fakeListener{}, busy: map[uint16]error{}}
	w.agent, w.relay = tunneltest.Pair(t)
	var err error
	w.Ports, err = New(Config{
		ListenTCP: func(port uint16) (net.Listener, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if err := w.busy[port]; err != nil {
				return nil, err
			}
			w.listeners[port] = newFakeListener()
			return w.listeners[port], nil
		},
		ListenUDP: func(port uint16) (net.PacketConn, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if err := w.busy[port]; err != nil {
				return nil, err
			}
			w.sockets[port] = newFakeSocket()
			return w.sockets[port], nil
		},
		Open: w.open, Limits: limits, Logger: slog.New(slog.NewTextHandler(&w.log, nil)),
		Audit: func(event string, attrs ...slog.Attr) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.audit = append(w.audit, event+" "+attrs[0].Value.String())
			w.attrs = append(w.attrs, fmt.Sprint(attrs))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	w.run.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	go w.home()
	t.Cleanup(func() {
		cancel()
		w.run.Wait()
	})
	return w
}

// open is what the registry does.
func (w *world) open(ctx context.Context, _ protocol.AgentID, o protocol.Open) (tunnel.Stream, error) {
	w.mu.Lock()
	w.opens = append(w.opens, o)
	gate := w.gate
	w.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	st, err := w.relay.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	if err := protocol.WriteOpen(st, o); err != nil {
		return nil, err
	}
	r, err := protocol.ReadResult(st)
	if err == nil && r.Code != protocol.CodeOK {
		err = errors.New("the home says " + r.Code.String())
	}
	if err != nil {
		st.Close()
		return nil, err
	}
	return st, nil
}

// home serves streams: it sends back what comes, in capitals.
func (w *world) home() {
	for {
		st, err := w.agent.AcceptStream(context.Background())
		if err != nil {
			return
		}
		go w.serve(st)
	}
}

func (w *world) serve(st tunnel.Stream) {
	o, err := protocol.ReadOpen(st)
	if err != nil {
		return
	}
	w.mu.Lock()
	code, quiet := w.answer, w.quiet
	w.mu.Unlock()
	protocol.WriteResult(st, protocol.Result{Code: code})
	switch {
	case code != protocol.CodeOK:
		st.Close()
	case o.Packets:
		c := packets.New(st)
		w.mu.Lock()
		w.flows = append(w.flows, c)
		w.mu.Unlock()
		buf := make([]byte, bigPacket)
		for !quiet {
			n, err := c.ReadPacket(buf)
			if err != nil {
				return
			}
			c.WritePacket(bytes.ToUpper(buf[:n]))
		}
	default:
		w.mu.Lock()
		w.streams = append(w.streams, st)
		w.mu.Unlock()
		if quiet {
			return
		}
		b, err := io.ReadAll(st)
		if err == nil {
			st.Write(bytes.ToUpper(b))
			st.Close()
		}
	}
}

// set makes routes and fails when one cannot be had.
func (w *world) set(t *testing.T, routes ...Route) {
	t.Helper()
	if failed := w.Set(routes); len(failed) > 0 {
		t.Fatal(failed)
	}
}

func udpRoute(service string, port uint16) Route {
	return Route{Agent: agentID, Service: service, Port: port, UDP: true}
}

func tcpRoute(service string, port uint16) Route {
	return Route{Agent: agentID, Service: service, Port: port}
}

// udp makes one UDP port and returns its socket.
func (w *world) udp(t *testing.T) *fakeSocket {
	t.Helper()
	w.set(t, udpRoute("wg", 5000))
	return w.socket(5000)
}

func (w *world) socket(port uint16) *fakeSocket {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sockets[port]
}

func (w *world) listener(port uint16) *fakeListener {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.listeners[port]
}

// opened returns what was opened so far.
func (w *world) opened() []protocol.Open {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]protocol.Open(nil), w.opens...)
}

// change changes the world.
func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// flow returns the home's end of a flow, by number.
func (w *world) flow(t *testing.T, n int) *packets.Conn {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if n >= len(w.flows) {
		t.Fatalf("the home has %d flows, not %d", len(w.flows), n+1)
	}
	return w.flows[n]
}

// ended waits for the end of a flow at the home and returns how it ended. What
// comes before is thrown away.
func ended(c *packets.Conn) error {
	buf := make([]byte, bigPacket)
	c.SetReadDeadline(time.Now().Add(time.Minute)) // virtual
	for {
		if _, err := c.ReadPacket(buf); err != nil {
			return err
		}
	}
}

// alive reports whether a flow goes on at the home.
func alive(c *packets.Conn) bool {
	c.SetReadDeadline(time.Now().Add(time.Second)) // virtual
	defer c.SetReadDeadline(time.Time{})
	_, err := c.ReadPacket(make([]byte, bigPacket))
	return err == nil || errors.Is(err, os.ErrDeadlineExceeded)
}

// A logBuffer is where a test reads the log.
type logBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
