package door

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

var errCut = errors.New("connection ended without close_notify")

// A wire is the connection under TLS. It tells when it was closed, and for raw
// sites it tells a cut connection from an ended one: crypto/tls reads both as
// io.EOF.
type wire struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
	raw    atomic.Bool
	visit  *visit
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err == io.EOF && w.raw.Load() {
		err = errCut
	}
	return n, err
}

func (w *wire) Close() error {
	err := w.Conn.Close()
	w.once.Do(func() { close(w.closed) })
	return err
}

// NetConn lets tunnel.Abort reach the TCP connection.
func (w *wire) NetConn() net.Conn { return w.Conn }

// A visit is one connection from its first byte to its end.
type visit struct {
	door  *Door
	wire  *wire
	tls   *tls.Conn
	start time.Time

	// Written during the handshake by its goroutine, then only read.
	site    *Site
	visitor Visitor
	leaf    *x509.Certificate // signed by our CA; nil otherwise
	chain   []*x509.Certificate
	device  Device
	denial  string
	judged  bool
	// challenge says that the handshake is the answer to an ACME server.
	challenge bool

	ctx      context.Context // ends with the connection
	cancel   context.CancelCauseFunc
	requests atomic.Int64
	lastSeen atomic.Int64 // unix seconds
	audited  atomic.Bool  // a refusal was written down
	settled  atomic.Bool  // the handshake is done: what it wrote may be read
	until    atomic.Int64 // the device's Until at the last look, see unixNano

	mu      sync.Mutex // guards what follows
	running int        // handlers
	ended   bool
	second  time.Time     // since when cancels counts
	cancels int           // requests that the visitor cancelled in that second
	holders []*holder     // whose secrets came over this connection
	watch   *time.Timer   // looks when the next right ends; nil: there is none
	idle    chan struct{} // closed when ended and no handler runs
}

// ServeConn serves one visitor and owns c, whose first byte is the visitor's
// ClientHello. A c that has Settled is told when the handshake is done, one that
// has Met(*Device) also who came, nil for those without a device. It returns when the connection and everything that it started
// have ended. The end of ctx cuts the connection.
func (d *Door) ServeConn(ctx context.Context, c net.Conn) {
	v := &visit{door: d, start: time.Now(), idle: make(chan struct{})}
	v.wire = &wire{Conn: c, closed: make(chan struct{}), visit: v}
	v.visitor.Remote, v.visitor.Local = addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())
	v.ctx, v.cancel = context.WithCancelCause(ctx)
	defer v.cancel(nil)
	v.tls = tls.Server(v.wire, &tls.Config{
		MinVersion:         tls.VersionTLS12,
		Time:               d.cfg.Now,
		GetConfigForClient: v.greet,
	})
	if !d.enter(v) {
		c.Close()
		return
	}
	defer d.leave(v)
	defer v.wire.Close()
	stop := context.AfterFunc(ctx, func() { v.abort(protocol.CodeGoingAway) })
	defer stop()

	c.SetDeadline(time.Now().Add(d.cfg.HandshakeTimeout))
	if err := v.tls.HandshakeContext(ctx); err != nil {
		v.logHandshake(err)
		linger(c)
		return
	}
	if v.challenge {
		v.tls.Close() // the handshake was the answer
		return
	}
	c.SetDeadline(time.Time{})

	// The device may have been revoked, or the route changed, since the
	// handshake looked: from here on Disconnect and Recheck find this visit, so
	// one more look misses nothing.
	d.index(v)
	if !v.stands() {
		v.abort(protocol.CodeRevoked)
		return
	}
	// Only now: anybody can send a hello with our name in it.
	if s, ok := c.(interface{ Settled() }); ok {
		s.Settled()
	}
	if m, ok := c.(interface{ Met(*Device) }); ok {
		m.Met(v.visitor.Device)
	}
	if v.visitor.Device != nil {
		v.seen()
	}
	v.rewatch()
	defer v.unwatch()
	if v.raw() {
		v.serveRaw()
	} else {
		l := &oneConn{conn: v.tls}
		d.server.Serve(l) // returns when the connection was handed over
		if l.conn != nil {
			return // the server had been shut down
		}
		<-v.wire.closed
	}
	v.end()
	v.logEnd()
}

// raw reports whether the connection is the site's Raw's.
func (v *visit) raw() bool {
	if v.site.RawALPN == "" {
		return v.site.Raw != nil
	}
	proto := v.tls.ConnectionState().NegotiatedProtocol
	return proto == "" || proto == v.site.RawALPN
}

func (v *visit) serveRaw() {
	if v.denial != "" && v.site.Mode.asks() {
		return // ask: there is no page to show on a raw connection
	}
	v.wire.raw.Store(true)
	v.site.Raw(v.ctx, v.tls, v.visitor)
}

// abort cuts the connection, whatever it is doing, so that the visitor cannot
// take it for a clean end.
func (v *visit) abort(code protocol.Code) {
	v.cancel(&tunnel.CloseError{Code: code})
	tunnel.Abort(v.wire, code)
}

// end waits for the handlers of a connection that is closed.
func (v *visit) end() {
	v.cancel(net.ErrClosed)
	v.mu.Lock()
	v.ended = true
	if v.running == 0 {
		v.mu.Unlock()
		return
	}
	v.mu.Unlock()
	<-v.idle
}

func (v *visit) beginHandler() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return false
	}
	v.running++
	return true
}

func (v *visit) endHandler() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.running--
	if v.ended && v.running == 0 {
		close(v.idle)
	}
}

// maxCancels is how many requests a visitor may cancel in a second.
const maxCancels = 200

// noteCancelled cuts a connection that opens HTTP/2 streams only to reset them:
// each costs us and the home a request, and the visitor next to nothing
// (CVE-2023-44487). The limit on concurrent streams does not see them.
func (v *visit) noteCancelled(r *http.Request) {
	if r.ProtoMajor != 2 || r.Context().Err() == nil || v.ctx.Err() != nil {
		return
	}
	now := time.Now()
	v.mu.Lock()
	if now.Sub(v.second) > time.Second {
		v.second, v.cancels = now, 0
	}
	v.cancels++
	over := v.cancels > maxCancels
	v.mu.Unlock()
	if over {
		v.abort(protocol.CodeOverload)
	}
}

// stands reports whether the connection may go on: its site has the same
// policy, and its device the same rights.
func (v *visit) stands() bool {
	if site, ok := v.door.cfg.Lookup(v.visitor.Host); !ok || !v.sameSite(site) {
		return false
	}
	if v.site.Mode == Token {
		return v.holdersStand()
	}
	if !v.site.Mode.asks() || v.denial != "" {
		return true // a denied visitor of an ask site keeps his page
	}
	_, denial := v.authorise()
	return denial == ""
}

// sameSite reports whether a site that was looked up now is what the
// handshake agreed to.
func (v *visit) sameSite(s *Site) bool {
	return v.door.serves(s) && s.Policy == v.site.Policy && s.Mode == v.site.Mode && (s.Raw == nil) == (v.site.Raw == nil) && s.RawALPN == v.site.RawALPN
}

// authorise judges the certificate's device again, now, and returns it as it
// is now.
func (v *visit) authorise() (Device, string) {
	if !v.site.Mode.asks() {
		return Device{}, ""
	}
	if v.leaf == nil || v.denial != "" {
		return Device{}, v.denial
	}
	dev, denial := v.check(v.door.cfg.Now())
	if denial == "" && dev.ID != v.device.ID {
		denial = DeniedUnknown // the index has it under another name
	}
	if until := unixNano(dev.Until); denial == "" && v.until.Swap(until) != until {
		v.rewatch()
	}
	return dev, denial
}

func (v *visit) seen() {
	now := time.Now().Unix()
	last := v.lastSeen.Load()
	if v.door.cfg.Seen != nil && now-last >= 60 && v.lastSeen.CompareAndSwap(last, now) {
		v.door.cfg.Seen(v.device.ID)
	}
}

// oneConn is a listener with one connection to accept: net/http serves
// connections only through one.
type oneConn struct {
	conn net.Conn
}

func (l *oneConn) Accept() (net.Conn, error) {
	c := l.conn
	if c == nil {
		return nil, net.ErrClosed
	}
	l.conn = nil
	return c, nil
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

func newServer(d *Door) *http.Server {
	s := &http.Server{
		Handler:                      http.HandlerFunc(d.serveRequest),
		ReadHeaderTimeout:            10 * time.Second,
		IdleTimeout:                  3 * time.Minute,
		MaxHeaderBytes:               64 << 10,
		DisableGeneralOptionsHandler: true,
		Protocols:                    new(http.Protocols),
		ErrorLog:                     debugLog(d.log),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          250,
			MaxReadFrameSize:              64 << 10,
			MaxReceiveBufferPerConnection: 2 << 20,
			MaxReceiveBufferPerStream:     1 << 20,
			SendPingTimeout:               time.Minute, // silent phones: long enough not to wake their radio all the time
			PingTimeout:                   15 * time.Second,
			WriteByteTimeout:              time.Minute,
		},
		ConnContext: connContext,
	}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	return s
}

// connContext puts the visit into the context of its requests and ends them
// with it.
func connContext(ctx context.Context, c net.Conn) context.Context {
	v := c.(*tls.Conn).NetConn().(*wire).visit
	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, visitKey, v))
	context.AfterFunc(v.ctx, func() { cancel(context.Cause(v.ctx)) })
	return ctx
}

// addrPort reads an address of whatever type; zero when it has none.
func addrPort(a net.Addr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// linger lets the visitor read the alert: with TLS 1.3 its first request is on
// its way already, and closing a socket that has unread bytes sends RST. Our
// FIN waits, too: Chromium takes a connection that has ended before it looks
// for one that broke, and then does not tell its user about the certificate.
func linger(c net.Conn) {
	c.SetDeadline(time.Now().Add(time.Second))
	_, _ = io.CopyN(io.Discard, c, 256<<10)
}
