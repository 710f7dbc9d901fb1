package panel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

func inCI() bool { return os.Getenv("CI") == "true" }

// tool returns the path of a program; without it the test is skipped, or fails
// where nothing may be left out.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && inCI() {
		t.Fatalf("%s is not installed", name)
	}
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

// A site serves a world's panel over TLS to one device and remembers the
// requests.
type site struct {
	*world
	server *httptest.Server
	spki   string // of its key, for the browser to trust

	cut    atomic.Bool                                                       // nobody answers
	before atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool] // of each request; true: it was answered

	mu   sync.Mutex // guards sent
	sent []string   // method, path and body
}

func serve(t *testing.T, change ...func(*Config)) *site {
	t.Helper()
	if testing.Short() || raceEnabled || !inCI() && os.Getenv("SALLYPORT_REAL") != "1" {
		t.Skip("slow: runs with CI=true or SALLYPORT_REAL=1, without -race")
	}
	t.Parallel() // they mostly wait
	s := &site{world: newWorld(t, change...)}
	s.other.Store(new("anna-phone"))
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(s.handle))
	s.server.EnableHTTP2 = true
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if s.cut.Load() {
			return nil, errors.New("nobody is here")
		}
		return nil, nil
	}}
	s.server.StartTLS()
	cert, err := x509.ParseCertificate(s.server.TLS.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	s.spki = base64.StdEncoding.EncodeToString(sum[:])
	t.Cleanup(func() {
		s.relay.endAll()
		s.server.CloseClientConnections()
		s.server.Close()
	})
	return s
}

func (s *site) handle(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if r.Body != http.NoBody {
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	s.mu.Lock()
	s.sent = append(s.sent, r.Method+" "+r.RequestURI+" "+string(body))
	s.mu.Unlock()
	if before := s.before.Load(); before != nil && (*before)(w, r) {
		return
	}
	s.panel.ServeHTTP(w, r)
}

// requests counts the requests that began with a method and path.
func (s *site) requests(start string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, line := range s.sent {
		if strings.HasPrefix(line, start) {
			n++
		}
	}
	return n
}

// away cuts the site off the network, or brings it back.
func (s *site) away(yes bool) {
	s.cut.Store(yes)
	if yes {
		s.server.CloseClientConnections()
	}
}

// A visitor is one Chromium. Whatever it complains of fails the test: a
// violation of the page's policy above all.
type visitor struct {
	t    *testing.T
	site *site
	ctx  context.Context

	mu      sync.Mutex // guards allowed
	allowed []string   // complaints that the test provokes
}

// prepare runs before the page's scripts: it tells violations of the policy.
const prepare = `addEventListener('securitypolicyviolation', (e) => console.error('POLICY ' + e.violatedDirective + ' ' + e.blockedURI + ' ' + e.sample));`

func (s *site) visitor(t *testing.T, scripts ...string) *visitor {
	t.Helper()
	alloc, stop := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(tool(t, "chromium")), chromedp.NoSandbox, chromedp.Flag("headless", "new"),
		chromedp.Flag("ignore-certificate-errors-spki-list", s.spki),
		chromedp.Env("HOME="+t.TempDir(), "TZ=Europe/Berlin"), chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(390, 844))...)
	ctx, quit := chromedp.NewContext(alloc)
	v := &visitor{t: t, site: s, ctx: ctx}
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
	tell(v, cdplog.Enable, cdp.Empty{})
	tell(v, network.Enable, network.EnableParams{})
	for _, script := range append(scripts, prepare) {
		tell(v, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{Source: script})
	}
	return v
}

func tell[P, R any](v *visitor, cmd cdp.Command[P, R], params P) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, patience)
	defer cancel()
	if _, err := chromedp.Call(ctx, cmd, params); err != nil {
		v.t.Fatal(err)
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
		if u := ev.Request.URL; !strings.HasPrefix(u, v.site.server.URL+"/") {
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

// expect allows complaints that the test provokes.
func (v *visitor) expect(parts ...string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.allowed = append(v.allowed, parts...)
}

const patience = 20 * time.Second

func (v *visitor) do(steps ...chromedp.Action[chromedp.Void]) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, patience)
	defer cancel()
	for i, step := range steps {
		if err := chromedp.Do(ctx, step); err != nil {
			text, _ := chromedp.Run(v.ctx, chromedp.Evaluate[string](`document.body.innerText`))
			v.t.Fatalf("step %d: %v; the page says %s", i+1, err, text)
		}
	}
}

func eval[T any](v *visitor, script string) T {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, patience)
	defer cancel()
	got, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		v.t.Fatalf("%v: %s", err, script)
	}
	return got
}

func (v *visitor) open() { v.t.Helper(); v.do(chromedp.Navigate(v.site.server.URL + "/")) }

func seen(css string) chromedp.Action[chromedp.Void]  { return chromedp.WaitVisible(chromedp.CSS(css)) }
func click(css string) chromedp.Action[chromedp.Void] { return chromedp.Click(chromedp.CSS(css)) }

// says waits until the page shows a text.
func (v *visitor) says(css, want string) {
	v.t.Helper()
	const script = `new Promise((ok) => {
		const end = Date.now() + 15000;
		const look = () => {
			const texts = [...document.querySelectorAll(%q)].filter((e) => e.checkVisibility()).map((e) => e.innerText);
			if (texts.some((t) => t.includes(%q))) ok('');
			else if (Date.now() > end) ok(JSON.stringify(texts));
			else setTimeout(look, 20);
		};
		look();
	})`
	var got string
	for range 5 { // the page may load itself again meanwhile
		ctx, cancel := context.WithTimeout(v.ctx, patience)
		text, err := chromedp.Run(ctx, chromedp.Evaluate[string](fmt.Sprintf(script, css, want), chromedp.EvalAwaitPromise))
		cancel()
		if got = text; err == nil {
			break
		}
		got = err.Error()
	}
	if got != "" {
		v.t.Fatalf("%s never says %q, but %s; the page: %s", css, want, got, eval[string](v, `document.body.innerText`))
	}
}

// renewed waits until an act has loaded a page.
func (v *visitor) renewed(act func()) {
	v.t.Helper()
	eval[bool](v, `(globalThis.old = true)`)
	act()
	ctx, cancel := context.WithTimeout(v.ctx, patience)
	defer cancel()
	for ctx.Err() == nil {
		fresh, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`new Promise((ok) => setTimeout(() => ok(!globalThis.old), 50))`, chromedp.EvalAwaitPromise))
		if err == nil && fresh {
			return
		}
	}
	v.t.Fatal("the page did not load itself again")
}

// gone waits until nothing visible fits.
func (v *visitor) gone(css string) {
	v.t.Helper()
	v.do(chromedp.WaitNotVisible(chromedp.CSS(css)))
}

// tile is the selector of an action's tile, by its place.
func tile(n int) string { return fmt.Sprintf(".tile:nth-child(%d)", n) }

// middle returns where an element is.
func (v *visitor) middle(css string) (x, y float64) {
	v.t.Helper()
	at := eval[[]float64](v, fmt.Sprintf(`(() => { const e = document.querySelector(%q); e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()`, css))
	return at[0], at[1]
}

// down presses a finger or the mouse on an element; up lets go.
func (v *visitor) down(css string) {
	v.t.Helper()
	x, y := v.middle(css)
	tell(v, input.DispatchMouseEvent, input.DispatchMouseEventParams{Type: input.DispatchMouseEventTypeMousePressed, X: x, Y: y, Button: "left", Buttons: 1, ClickCount: 1})
}

func (v *visitor) up(css string) {
	v.t.Helper()
	x, y := v.middle(css)
	tell(v, input.DispatchMouseEvent, input.DispatchMouseEventParams{Type: input.DispatchMouseEventTypeMouseReleased, X: x, Y: y, Button: "left", ClickCount: 1})
}

// enter opens the page and has the home trust the browser.
func (v *visitor) enter() {
	v.t.Helper()
	v.open()
	v.do(seen("#words li:nth-child(12)"))
	v.site.relay.do(v.site.relay.homes["kitchen"].trust)
	v.gone("#trust")
}

// shots keeps pictures of the page for people to look at: phone and desk,
// light and dark.
func (v *visitor) shots(name string) {
	v.t.Helper()
	v.named(name)
	dir := os.Getenv("SALLYPORT_ARTIFACTS")
	for _, scheme := range []string{"light", "dark"} {
		tell(v, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		})
		for _, size := range [][2]int64{{390, 844}, {1280, 800}} {
			v.do(chromedp.EmulateViewport(size[0], size[1]))
			// A page that is wider than a phone is one that nobody can read.
			if wide := eval[int64](v, `document.documentElement.scrollWidth`); wide > size[0] {
				v.t.Errorf("%s is %d pixels wide on a screen of %d", name, wide, size[0])
			}
			v.fingers(name)
			if dir == "" {
				continue
			}
			ctx, cancel := context.WithTimeout(v.ctx, patience)
			png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
			cancel()
			if err == nil {
				err = os.MkdirAll(dir, 0o755)
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, fmt.Sprintf("panel-%s-%s-%dx%d.png", name, scheme, size[0], size[1])), png, 0o644)
			}
			if err != nil {
				v.t.Fatal(err)
			}
		}
	}
	v.do(chromedp.EmulateViewport(390, 844))
}

// fingers: whatever is pressed is at least 48 pixels large.
func (v *visitor) fingers(name string) {
	v.t.Helper()
	small := eval[[]string](v, `[...document.querySelectorAll('button, a')].filter((e) => e.checkVisibility()).filter((e) => {
		const r = e.getBoundingClientRect();
		return r.width < 48 || r.height < 48;
	}).map((e) => e.outerHTML.slice(0, 80))`)
	if len(small) > 0 {
		v.t.Errorf("%s: too small for a finger: %q", name, small)
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
		case "button", "link", "heading", "dialog":
			if role == "heading" {
				headings++
			}
			if name == "" {
				v.t.Errorf("%s: a %s has no name for screen readers", page, role)
			}
		}
	}
	if headings == 0 {
		v.t.Errorf("%s has no heading", page)
	}
}
