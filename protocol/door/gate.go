package door

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/names"
)

// serveRequest is the gate before every request: what passes names the host of
// its connection, comes from a device that may come in now, and reads the same
// to everybody behind.
func (d *Door) serveRequest(w http.ResponseWriter, r *http.Request) {
	v, ok := r.Context().Value(visitKey).(*visit)
	if !ok || !v.beginHandler() {
		panic(http.ErrAbortHandler)
	}
	defer v.endHandler()
	defer v.noteCancelled(r)
	v.requests.Add(1)
	if d.log.Enabled(r.Context(), slog.LevelDebug) {
		sw := &statusWriter{ResponseWriter: w}
		w = sw
		defer v.logRequest(r, sw, time.Now())
	}
	if r.ProtoMajor == 1 && (len(r.TransferEncoding) > 0 || !r.ProtoAtLeast(1, 1)) {
		// Where a body ends could be seen in two ways (Content-Length beside
		// Transfer-Encoding, which net/http drops silently; chunked in HTTP/1.0).
		// Nobody reads what follows it.
		w.Header().Set("Connection", "close")
	}

	host, refusal := checkRequest(r)
	if refusal != nil {
		v.conceal(refusal).write(w, r)
		return
	}
	site, ok := d.cfg.Lookup(host)
	if host != v.visitor.Host || !ok || !v.sameSite(site) {
		misdirected.write(w, r)
		return
	}
	if absolute(r) {
		v.conceal(badRequest("Only a proxy is asked like this.")).write(w, r)
		return
	}
	if site.Mode == Token {
		v.serveToken(w, r, site)
		return
	}
	dev, denial := v.authorise()
	if denial != "" {
		v.refused(denial, v.device.Name)
		v.deny(w, r, site, denial)
		return
	}
	if v.visitor.Device != nil {
		v.seen()
		if !dev.permits(r) {
			noSuchPage().write(w, r)
			return
		}
		r = v.asNow(r, dev)
	}
	site.Handler.ServeHTTP(w, r)
}

// asNow returns a request whose visitor is the device as the owner has it now:
// its name or marks may have changed since the handshake.
func (v *visit) asNow(r *http.Request, dev Device) *http.Request {
	was := &v.device
	if dev.Name == was.Name && dev.Admin == was.Admin && dev.Until.Equal(was.Until) && dev.Path == was.Path {
		return r
	}
	visitor := v.visitor
	visitor.Device = &dev
	return r.WithContext(WithVisitor(r.Context(), visitor))
}

// deny answers a visitor without rights; never the backend.
func (v *visit) deny(w http.ResponseWriter, r *http.Request, site *Site, denial string) {
	if site.Mode != Ask {
		// The rights went away under a live connection. Its other requests have
		// none either.
		v.abort(protocol.CodeRevoked)
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Connection", "close") // the next handshake may show a better certificate
	switch {
	case site.Denied != nil:
		site.Denied(w, r, denial)
	case v.door.cfg.Denied != nil:
		v.door.cfg.Denied(w, r, denial)
	default:
		deniedPage(denial).write(w, r)
	}
}

// misdirected answers a request for another host than the connection's.
// Browsers reuse a connection of one host for another when certificate and
// address fit; on 421 they open a new one (RFC 9110 §15.5.20).
var misdirected = page{
	status: http.StatusMisdirectedRequest, title: "Wrong connection", close: true,
	text: "This request came over a connection that was made for another host. Please try again.",
}

func badRequest(text string) *page {
	return &page{status: http.StatusBadRequest, title: "Bad request", text: text, close: true}
}

// checkRequest returns the canonical host that a request is for, or why nobody
// should answer it.
func checkRequest(r *http.Request) (string, *page) {
	host, err := names.CanonicalHost(r.Host)
	switch {
	case err != nil && namesAnother(r.Host):
		return "", &misdirected
	case err != nil:
		return "", badRequest("The request names no valid host.")
	case len(r.Header["Host"]) > 0 && !hostsAgree(r.Header["Host"], r.Host):
		return "", badRequest("The request names two hosts.")
	case r.Method == http.MethodConnect, r.Method == http.MethodTrace:
		return "", &page{status: http.StatusMethodNotAllowed, title: "Method not allowed", text: "This method is not served here.", close: true}
	case r.RequestURI == "*", !cleanTarget(r.RequestURI):
		return "", badRequest("The address is malformed.")
	}
	return host, nil
}

// namesAnother reports whether a Host that is never one of ours (see
// names.Canonical) still names a machine: an IP address, or a name in the
// letters that DNS knows.
func namesAnother(hostport string) bool {
	if ap, err := netip.ParseAddrPort(hostport); err == nil {
		return ap.Port() != 0
	}
	if bare, ok := strings.CutPrefix(hostport, "["); ok {
		ip, err := netip.ParseAddr(strings.TrimSuffix(bare, "]"))
		return err == nil && ip.Is6() && strings.HasSuffix(bare, "]")
	}
	host, port, found := strings.Cut(hostport, ":")
	if n, err := strconv.ParseUint(port, 10, 16); found && (err != nil || n == 0) {
		return false
	}
	return host != "" && strings.Trim(strings.ToLower(host), "abcdefghijklmnopqrstuvwxyz0123456789-._") == ""
}

// hostsAgree compares a Host header that came beside :authority.
func hostsAgree(headers []string, authority string) bool {
	return len(headers) == 1 && headers[0] == authority
}

// absolute reports whether the request line carries a whole URL (net/http takes
// the host from there) or anything else that is not a path.
func absolute(r *http.Request) bool {
	return !strings.HasPrefix(r.RequestURI, "/") || r.URL.Host != "" || r.URL.Scheme != ""
}

// cleanTarget refuses bytes that would end or split the request line at home,
// which h2 can carry (CVE-2026-30851 class), and fragments.
func cleanTarget(target string) bool {
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c == 0x7f || c == '#' {
			return false
		}
	}
	return target != ""
}

// statusWriter remembers the status for the log.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status < 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status < 200 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack is here because Unwrap alone is asked by ResponseController only.
func (w *statusWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

// Flush is here because handlers other than ours assert http.Flusher.
func (w *statusWriter) Flush() { http.NewResponseController(w.ResponseWriter).Flush() }

func (v *visit) logRequest(r *http.Request, w *statusWriter, start time.Time) {
	path := clip(r.URL.EscapedPath(), 256)
	if v.site.Mode == Token {
		path = "" // it may hold the secret, or somebody's mistyped one
	}
	v.door.log.LogAttrs(r.Context(), slog.LevelDebug, "request",
		slog.String("host", v.visitor.Host), slog.String("device", v.who()),
		slog.String("remote", v.visitor.Remote.String()), slog.String("method", clip(r.Method, 16)),
		slog.String("path", path), slog.String("proto", r.Proto),
		slog.Int("status", w.status), slog.Duration("took", time.Since(start)))
}

func (v *visit) logHandshake(err error) {
	log, level := v.door.log, slog.LevelDebug
	if v.site != nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
		level = slog.LevelInfo // a real host: the owner may look for this line
		if v.denial != "" {
			v.refused(v.denial, v.device.Name)
		}
	}
	log.LogAttrs(context.Background(), level, "visitor not let in",
		slog.String("host", v.visitor.Host), slog.String("remote", v.visitor.Remote.String()),
		slog.String("device", v.device.Name), slog.String("err", clip(err.Error(), 256)))
}

func (v *visit) logEnd() {
	state := v.tls.ConnectionState()
	v.door.log.LogAttrs(context.Background(), slog.LevelInfo, "visit ended",
		slog.String("host", v.visitor.Host), slog.String("remote", v.visitor.Remote.String()),
		slog.String("device", v.who()), slog.String("denied", v.denial),
		slog.String("tls", tls.VersionName(state.Version)), slog.Bool("resumed", state.DidResume),
		slog.String("proto", state.NegotiatedProtocol), slog.Int64("requests", v.requests.Load()),
		slog.Duration("took", time.Since(v.start)))
}

// clip bounds what a stranger can put into a log line.
func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// debugLog is for net/http and ReverseProxy, which log what visitors do wrong.
func debugLog(l *slog.Logger) *log.Logger { return slog.NewLogLogger(l.Handler(), slog.LevelDebug) }
