package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/pki"
)

// A sent is one request as the server got it.
type sent struct {
	line, body string
	header     http.Header
}

// A site serves a world over TLS and remembers every request.
type site struct {
	*relayWorld
	server *httptest.Server
	spki   string // of its key, for the browser to trust

	before func(w http.ResponseWriter, r *http.Request) (done bool) // of each request; may be nil
	cut    atomic.Bool

	mu   sync.Mutex
	sent []sent
}

// serve starts enroll., check. and photos.home.test. A client certificate at
// check. is the visitor.
func serve(t *testing.T, change ...func(*Config)) *site {
	t.Helper()
	public, err := pki.NewAuthority("public", nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := public.Issue(key.Public(), pki.Grant{Profile: pki.Server, Name: "home.test", DNSNames: []string{"*.home.test"}})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{}
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(s.handle))
	s.server.EnableHTTP2 = true
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.server.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
		ClientAuth:   tls.RequestClientCert,
	}
	s.server.TLS.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c := s.server.TLS.Clone()
		c.GetConfigForClient = nil
		if !strings.HasPrefix(hello.ServerName, "check.") {
			c.ClientAuth = tls.NoClientCert
		}
		return c, nil
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	s.spki = base64.StdEncoding.EncodeToString(sum[:])
	port := s.server.Listener.Addr().String()
	port = port[strings.LastIndex(port, ":"):]
	s.relayWorld = newWorld(t, append([]func(*Config){func(c *Config) {
		c.Port = port
		c.Roots = func() []*x509.Certificate { return []*x509.Certificate{public.Cert()} }
	}}, change...)...)
	s.server.StartTLS()
	t.Cleanup(func() {
		s.server.CloseClientConnections()
		s.server.Close()
	})
	return s
}

func (s *site) url(label string) string { return s.pages.url(label) }

func (s *site) handle(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	s.mu.Lock()
	s.sent = append(s.sent, sent{r.Method + " " + r.Host + r.RequestURI, string(body), r.Header.Clone()})
	d := s.device
	s.mu.Unlock()
	if s.before != nil && s.before(w, r) {
		return
	}
	if certs := r.TLS.PeerCertificates; len(certs) > 0 && certs[0].CheckSignatureFrom(s.ca.Cert()) == nil {
		d = &door.Device{ID: "peer", Name: certs[0].Subject.CommonName, Cert: certs[0]}
	}
	switch host, _, _ := strings.Cut(r.Host, "."); host {
	case "enroll":
		s.pages.Enroll().ServeHTTP(w, r)
	case "check":
		if d == nil {
			s.pages.Denied(w, r, door.DeniedMissing)
			return
		}
		s.pages.Check().ServeHTTP(w, r.WithContext(door.WithVisitor(r.Context(), door.Visitor{Device: d})))
	default:
		s.pages.Denied(w, r, strings.TrimPrefix(r.URL.Path, "/"))
	}
}

func (s *site) requests() []sent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]sent(nil), s.sent...)
}

// A visitor is one Chromium. Whatever the browser complains of fails the test:
// a violation of the page's policy above all, and loading from elsewhere.
type visitor struct {
	t    *testing.T
	site *site
	ctx  context.Context
	dir  string // where downloads go

	mu      sync.Mutex
	allowed []string // complaints that the test provokes
}

// userAgents of systems that the tests do not run on.
const (
	iphone    = "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/19.1 Mobile/15E148 Safari/604.1"
	iphoneCr  = "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/150.0.7000.40 Mobile/15E148 Safari/604.1"
	android   = "Mozilla/5.0 (Linux; Android 16; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Mobile Safari/537.36"
	androidWV = "Mozilla/5.0 (Linux; Android 16; Pixel 9; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/156.0.0.0 Mobile Safari/537.36"
	windows   = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36"
	mac       = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/19.1 Safari/605.1.15"
)

func (s *site) visitor(t *testing.T, userAgent string) *visitor {
	t.Helper()
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(tool(t, "chromium")), chromedp.NoSandbox, chromedp.Flag("headless", "new"),
		chromedp.Flag("host-resolver-rules", "MAP *.home.test 127.0.0.1, MAP * ~NOTFOUND"),
		chromedp.Flag("ignore-certificate-errors-spki-list", s.spki),
		chromedp.Env("HOME="+t.TempDir()), chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1280, 800))
	if userAgent != "" {
		opts = append(opts, chromedp.UserAgent(userAgent))
	}
	alloc, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, quit := chromedp.NewContext(alloc)
	v := &visitor{t: t, site: s, ctx: ctx, dir: t.TempDir()}
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits until its files are free
		quit()
		stop()
	})
	if err := chromedp.Do(ctx); err != nil { // the browser lives as long as this call's context
		t.Fatal(err)
	}
	if err := chromedp.Listen(ctx, v.hear); err != nil {
		t.Fatal(err)
	}
	v.enable()
	return v
}

func (v *visitor) enable() {
	v.t.Helper()
	const watch = `addEventListener('securitypolicyviolation', (e) => console.error('POLICY ' + e.violatedDirective + ' ' + e.blockedURI + ' ' + e.sample))`
	_, e1 := chromedp.Call(v.ctx, cdplog.Enable, cdp.Empty{})
	_, e2 := chromedp.Call(v.ctx, network.Enable, network.EnableParams{})
	_, e3 := chromedp.Call(v.ctx, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{Source: watch})
	_, e4 := chromedp.CallBrowser(v.ctx, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{
		Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: v.dir, EventsEnabled: new(true),
	})
	for _, err := range []error{e1, e2, e3, e4} {
		if err != nil {
			v.t.Fatal(err)
		}
	}
}

func (v *visitor) hear(ev any) {
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		v.complain(fmt.Sprintf("the page threw: %s %+v", ev.ExceptionDetails.Text, ev.ExceptionDetails.Exception))
	case *runtime.EventConsoleAPICalled:
		for _, arg := range ev.Args {
			v.complain(fmt.Sprintf("the console says: %s", arg.Value))
		}
	case *cdplog.EventEntryAdded:
		v.complain(ev.Entry.Text + " " + ev.Entry.URL)
	case *network.EventRequestWillBeSent:
		if u := ev.Request.URL; !strings.Contains(u, ".home.test"+v.site.cfg.Port+"/") && !strings.HasPrefix(u, "data:") && !strings.HasPrefix(u, "blob:https://enroll.home.test") {
			v.complain("a request went elsewhere: " + u)
		}
	}
}

func (v *visitor) complain(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, ok := range v.allowed {
		if strings.Contains(text, ok) {
			return
		}
	}
	v.t.Error(text)
}

// expect allows a complaint that the test provokes.
func (v *visitor) expect(part string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.allowed = append(v.allowed, part)
}

const patience = 30 * time.Second

func (v *visitor) do(steps ...chromedp.Action[chromedp.Void]) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		text, _ := chromedp.Run(v.ctx, chromedp.Evaluate[string](`document.body.dataset.now + ': ' + document.body.innerText`))
		v.t.Fatalf("%v; the page says %s", err, text)
	}
}

func get[T any](v *visitor, a chromedp.Action[T]) T {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, patience)
	defer cancel()
	got, err := chromedp.Run(ctx, a)
	if err != nil {
		v.t.Fatal(err)
	}
	return got
}

func eval[T any](v *visitor, script string) T {
	v.t.Helper()
	return get(v, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
}

func open(url string) chromedp.Action[chromedp.Void]  { return chromedp.Navigate(url) }
func seen(css string) chromedp.Action[chromedp.Void]  { return chromedp.WaitVisible(chromedp.CSS(css)) }
func click(css string) chromedp.Action[chromedp.Void] { return chromedp.Click(chromedp.CSS(css)) }
func (v *visitor) text(css string) string             { return get(v, chromedp.Text(chromedp.CSS(css))) }

func typed(css, s string) chromedp.Action[chromedp.Void] {
	return chromedp.SendKeys(chromedp.CSS(css), s)
}

// shots keeps pictures of the page for people to look at: phone and desk,
// light and dark.
func (v *visitor) shots(name string) {
	v.t.Helper()
	v.named(name)
	dir := os.Getenv("SALLYPORT_ARTIFACTS")
	if dir == "" {
		v.fits(name, 390)
		return
	}
	for _, scheme := range []string{"light", "dark"} {
		_, err := chromedp.Call(v.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		})
		if err != nil {
			v.t.Fatal(err)
		}
		for _, size := range [][2]int64{{390, 844}, {1280, 800}} {
			v.fits(name, size[0])
			png := get(v, chromedp.FullScreenshot(100))
			file := fmt.Sprintf("web-%s-%s-%dx%d.png", name, scheme, size[0], size[1])
			if err := os.MkdirAll(dir, 0o755); err != nil {
				v.t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, file), png, 0o644); err != nil {
				v.t.Fatal(err)
			}
		}
	}
	v.do(chromedp.EmulateViewport(1280, 800))
}

// fits sets the size of the window. A page that is wider than a phone is one
// that nobody can read.
func (v *visitor) fits(name string, width int64) {
	v.t.Helper()
	height := int64(800)
	if width < 500 {
		height = 844
	}
	v.do(chromedp.EmulateViewport(width, height))
	if wide := eval[int64](v, `document.documentElement.scrollWidth`); wide > width {
		v.t.Errorf("%s is %d pixels wide on a screen of %d", name, wide, width)
	}
}

// named asks the browser what a screen reader would say: whatever can be
// operated has a name, and the page a heading.
func (v *visitor) named(page string) {
	v.t.Helper()
	tree, err := chromedp.Call(v.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	if err != nil {
		v.t.Fatal(err)
	}
	headings := 0
	for _, n := range tree.Nodes {
		if n.Ignored || n.Role == nil {
			continue
		}
		name := ""
		if n.Name != nil {
			name = strings.Trim(string(n.Name.Value), `" `)
		}
		switch role := strings.Trim(string(n.Role.Value), `"`); role {
		case "button", "link", "textbox", "combobox", "checkbox", "radio", "heading", "status":
			if role == "heading" {
				headings++
			}
			if name == "" && role != "status" {
				v.t.Errorf("%s: a %s has no name for screen readers", page, role)
			}
		}
	}
	if headings == 0 {
		v.t.Errorf("%s has no heading", page)
	}
}
