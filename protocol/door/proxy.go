package door

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/netip"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/names"
)

// A Backend is an HTTP service that a Proxy forwards to.
type Backend struct {
	// Dial opens a connection to the service, on behalf of the visitor whose
	// request needs one. Unless Solo is set, other visitors' requests may follow
	// on it. Required.
	Dial func(ctx context.Context, v Visitor) (net.Conn, error)
	// Proto is protocol.ProtoHTTP1 (also when empty) or protocol.ProtoH2:
	// HTTP/2 with prior knowledge; WebSockets still use HTTP/1.1.
	Proto string
	// Solo gives every request a connection of its own.
	Solo bool
	// Prefix ("/x/") is stripped from paths and put back into redirects and
	// cookies. Empty or "/": the whole host.
	Prefix string
	// Errors turns what Dial or the exchange failed with into a page. Only
	// verified devices see its title and text; others get a page that is always
	// the same. Nil: everybody gets that one.
	Errors func(err error) (status int, title, text string)
	// ExternalPort is the port that visitors use, for X-Forwarded-Port. Empty:
	// the header is not set.
	ExternalPort string
	// RemoteUser names the visitor's device in Remote-User too, for services
	// that sign in whom a proxy names so. Without a verified device there is no
	// such header.
	RemoteUser bool
}

const (
	maxInformational  = 32        // 1xx responses before the real one
	maxResponseHeader = 256 << 10 // homes are not trusted with our memory either
	// Backends close idle connections after a while (Node.js: 5 s). A request
	// that is not idempotent and meets such a close is lost, so we stop using
	// them earlier. HTTP/2 announces its end, so there it does not matter.
	idleHTTP1 = 4 * time.Second
	idleHTTP2 = 90 * time.Second
)

// A Proxy forwards requests to a Backend.
type Proxy struct {
	backend Backend
	prefix  string // "" or "/x/"
	log     *slog.Logger
	main    *http.Transport
	upgrade *http.Transport // HTTP/1.1, for WebSockets; may be main
	reverse *httputil.ReverseProxy
}

var _ http.Handler = (*Proxy)(nil)

// NewProxy makes a Proxy. A nil logger keeps it silent.
func NewProxy(b Backend, logger *slog.Logger) *Proxy {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{backend: b, log: logger}
	if b.Prefix != "/" {
		p.prefix = b.Prefix
	}
	p.upgrade = p.transport(false)
	p.main = p.upgrade
	if b.Proto == protocol.ProtoH2 {
		p.main = p.transport(true)
	}
	p.reverse = &httputil.ReverseProxy{
		Rewrite:        p.rewrite, // Director would let "Connection: Client-Cert" delete what we set
		Transport:      roundTripper(p.roundTrip),
		FlushInterval:  -1, // a timer that flushes would hold a lock while a slow visitor reads
		BufferPool:     &buffers{},
		ModifyResponse: p.modifyResponse,
		ErrorHandler:   p.fail,
		ErrorLog:       debugLog(logger),
	}
	return p
}

func (p *Proxy) transport(h2 bool) *http.Transport {
	t := &http.Transport{
		DialContext:            p.dial,
		DisableKeepAlives:      p.backend.Solo,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    32,
		IdleConnTimeout:        idleHTTP1,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxResponseHeader,
		Protocols:              new(http.Protocols),
	}
	if h2 {
		t.Protocols.SetUnencryptedHTTP2(true)
		t.IdleConnTimeout = idleHTTP2
		t.HTTP2 = &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}
	} else {
		t.Protocols.SetHTTP1(true)
	}
	return t
}

func (p *Proxy) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	v, _ := VisitorFrom(ctx)
	return p.backend.Dial(ctx, v)
}

// Close closes idle connections. Requests in flight go on.
func (p *Proxy) Close() error {
	p.main.CloseIdleConnections()
	p.upgrade.CloseIdleConnections()
	return nil
}

// An exchange is one request on its way to the backend and back.
type exchange struct {
	in        *http.Request
	visitor   Visitor
	path      string    // what the backend is asked for, raw, without the prefix
	secret    *stripped // came with a secret; nil: not from a token site
	websocket bool
	key       string // Sec-WebSocket-Key
	body      *requestBody
}

type exchangeKey struct{}

func exchangeOf(r *http.Request) *exchange { return r.Context().Value(exchangeKey{}).(*exchange) }

func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{in: r}
	if x.secret, _ = r.Context().Value(secretKey).(*stripped); x.secret != nil {
		w.Header().Del("Referrer-Policy") // modifyResponse sets it, and pages do
	}
	var ok bool
	if x.visitor, ok = VisitorFrom(r.Context()); !ok {
		x.visitor.Remote, _ = netip.ParseAddrPort(r.RemoteAddr)
	}
	path, refusal := p.judgePath(r.URL)
	if refusal != nil {
		refusal.write(w, r)
		return
	}
	x.path = path
	x.websocket, x.key = isWebSocket(r)

	ctx := context.WithValue(r.Context(), exchangeKey{}, x)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: limitInformational()})
	r = r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		x.body = &requestBody{ReadCloser: r.Body}
		r.Body = x.body
	}
	p.reverse.ServeHTTP(w, r)
}

// judgePath returns the path as the backend will get it, byte for byte, or a
// refusal. What is judged here is what is forwarded.
func (p *Proxy) judgePath(u *url.URL) (string, *page) {
	raw := rawPath(u)
	if p.prefix != "" {
		rest, refusal := stripPrefix(u.Path, raw, p.prefix)
		if refusal != nil {
			return "", refusal
		}
		raw = rest
	}
	// A path that starts with two slashes cannot be given to http.Request as
	// raw bytes; it goes when Go would write the same bytes again.
	if strings.HasPrefix(raw, "//") && u.EscapedPath() != raw {
		return "", badRequest("The address is malformed.")
	}
	return raw, nil
}

func limitInformational() func(int, textproto.MIMEHeader) error {
	var n atomic.Int32
	return func(int, textproto.MIMEHeader) error {
		if n.Add(1) >= maxInformational {
			return errors.New("too many 1xx responses")
		}
		return nil
	}
}

// rewrite makes the request that goes home. ReverseProxy has already removed
// the hop-by-hop headers.
func (p *Proxy) rewrite(pr *httputil.ProxyRequest) {
	in, out := pr.In, pr.Out
	x := exchangeOf(out)

	// Bytes of path and query stay what they were: ReverseProxy "cleans" queries
	// with semicolons, and URL.Path would be escaped anew.
	out.URL = &url.URL{
		Scheme: "http", Host: "home", // the pool's key; the request names out.Host
		Opaque: x.path, RawQuery: in.URL.RawQuery, ForceQuery: in.URL.ForceQuery,
	}
	if strings.HasPrefix(x.path, "//") {
		out.URL.Opaque, out.URL.Path, out.URL.RawPath = "", in.URL.Path, in.URL.RawPath
	}
	out.Host = canonicalHostPort(in.Host)

	stripIdentity(out.Header)
	proto := "https"
	if in.TLS == nil {
		proto = "http"
	}
	setIdentity(out.Header, x.visitor, out.Host, proto, p.backend.ExternalPort, p.prefix, p.backend.RemoteUser)

	if !x.websocket {
		out.Header.Del("Upgrade") // h2c and whatever else would be a tunnel past the gate
		out.Header.Del("Connection")
	}
	if len(out.Trailer) > 0 {
		stripIdentity(out.Trailer)
		if x.body != nil {
			x.body.trailers(in, out)
		}
	}
}

// canonicalHostPort gives the backend the host as it was judged.
func canonicalHostPort(host string) string {
	name, err := names.CanonicalHost(host)
	if err != nil {
		return host
	}
	if _, port, ok := strings.Cut(host, ":"); ok {
		return name + ":" + port
	}
	return name
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// cleanEarly cleans 1xx responses. It has to be the innermost trace: then it
// runs before the one with which ReverseProxy passes them on.
func (x *exchange) cleanEarly(_ int, h textproto.MIMEHeader) error {
	h.Del("Alt-Svc")
	if x.secret != nil {
		h.Set("Referrer-Policy", "no-referrer") // what is preloaded must not hear of the secret either
		if x.secret.prefix != "" {
			dropReports(http.Header(h))
		}
	}
	return nil
}

func (p *Proxy) roundTrip(r *http.Request) (*http.Response, error) {
	// WithClientTrace writes into the trace: every request needs its own.
	x := exchangeOf(r)
	early := &httptrace.ClientTrace{Got1xxResponse: x.cleanEarly}
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), early))
	if x.websocket {
		return p.upgrade.RoundTrip(r)
	}
	return p.main.RoundTrip(r)
}

func (p *Proxy) modifyResponse(res *http.Response) error {
	x := exchangeOf(res.Request)
	if res.StatusCode == http.StatusSwitchingProtocols && !(x.websocket && validAccept(res, x.key)) {
		return errors.New("the service switched protocols in a way that nobody asked for")
	}
	if x.body != nil && res.ProtoMajor == 2 && x.in.ProtoMajor == 2 && res.StatusCode != http.StatusSwitchingProtocols {
		res.Body = &responseBody{ReadCloser: res.Body, request: x.body.ReadCloser}
	}
	res.Header.Del("Alt-Svc") // HTTP/3 carries no client certificates
	if p.prefix != "" {
		mapBack(res.Header, p.prefix, x.path, x.in.Host)
	}
	if x.secret != nil {
		x.secret.putBack(res.Header, x.in)
	}
	return nil
}

// fail answers when the backend did not.
func (p *Proxy) fail(w http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(r)
	if x.body != nil {
		if bodyErr := x.body.failure(); bodyErr != nil {
			// Not the home's fault: the visitor's body is broken off or malformed.
			p.log.Debug("request body failed", "host", x.visitor.Host, "err", clip(bodyErr.Error(), 256))
			var tooLarge *http.MaxBytesError
			if errors.As(bodyErr, &tooLarge) {
				(&page{status: http.StatusRequestEntityTooLarge, title: "Too large", text: "This request is too large.", close: true}).write(w, r)
				return
			}
			badRequest("The request was broken off or is malformed.").write(w, r)
			return
		}
	}
	if x.in.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the visitor has gone
	}
	p.log.Warn("backend failed", "host", x.visitor.Host, "device", deviceName(x.visitor), "err", clip(err.Error(), 512))
	unavailable := &page{
		status: http.StatusBadGateway, title: "Not available now",
		text: "The service behind this address does not answer. Please try again later.",
	}
	if x.visitor.Device != nil && p.backend.Errors != nil {
		status, title, text := p.backend.Errors(err)
		if status >= 400 && status <= 599 {
			unavailable.status = status
		}
		unavailable.title, unavailable.text = cmp.Or(title, unavailable.title), cmp.Or(text, unavailable.text)
	}
	unavailable.write(w, r)
}

func deviceName(v Visitor) string {
	if v.Device == nil {
		return ""
	}
	return v.Device.Name
}

// requestBody notices how reading the visitor's body failed, so that the answer
// can say whose fault it was, and carries the trailers over.
type requestBody struct {
	io.ReadCloser
	copyTrailers func()

	mu  sync.Mutex // guards err
	err error
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == nil:
	case err == io.EOF:
		if b.copyTrailers != nil {
			b.copyTrailers()
		}
	default:
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
	}
	return n, err
}

func (b *requestBody) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// trailers carries the values of announced trailers over. net/http fills them
// into the request that it read when its body ends; ReverseProxy made out's
// copy before that.
func (b *requestBody) trailers(in, out *http.Request) {
	b.copyTrailers = func() {
		for name := range out.Trailer {
			if values := in.Trailer[name]; len(values) > 0 && !isIdentity(name) {
				out.Trailer[name] = values
			}
		}
	}
}

// buffers lends copy buffers to ReverseProxy.
type buffers struct{ pool sync.Pool }

const bufferSize = 32 << 10

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return p[:]
	}
	return make([]byte, bufferSize)
}

func (b *buffers) Put(p []byte) { b.pool.Put((*[bufferSize]byte)(p)) }

// responseBody ends the reading of the visitor's body before it is closed. The
// HTTP/2 transport waits in Close until it has stopped sending, and ReverseProxy
// keeps it from closing the visitor's body itself: an answer that is complete
// before the visitor has half-closed (every gRPC error status) would wait for ever.
type responseBody struct {
	io.ReadCloser
	request io.Closer
}

func (b *responseBody) Close() error {
	b.request.Close()
	return b.ReadCloser.Close()
}
