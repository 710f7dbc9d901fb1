package real

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// A chromium is one person's Chromium, with a certificate store of its own.
type chromium struct {
	t    *testing.T
	who  string
	home string // its HOME, with the NSS store
	ctx  context.Context
}

// pageLimit is how long a page may take to come: without a limit a browser that
// wants to ask which certificate to use hangs for ever.
const pageLimit = 20 * time.Second

// newPerson makes a home directory whose NSS store trusts the relay.
func (w *world) newPerson(who string) *chromium {
	w.t.Helper()
	needTools(w.t, "chromium", "certutil", "pk12util")
	needRoot(w.t) // for the policy file below
	allowCertificates(w.t)
	b := &chromium{t: w.t, who: who, home: shortDir(w.t)}
	db := filepath.Join(b.home, ".pki", "nssdb")
	if err := os.MkdirAll(db, 0o700); err != nil {
		w.t.Fatal(err)
	}
	mustRun(w.t, "certutil", "-d", "sql:"+db, "-N", "--empty-password")
	mustRun(w.t, "certutil", "-d", "sql:"+db, "-A", "-t", "C,,", "-n", "relay", "-i", w.roots)
	return b
}

// install puts a PKCS#12 file into the store, as the system's dialog does.
func (b *chromium) install(p12, password string) {
	b.t.Helper()
	mustRun(b.t, "pk12util", "-d", "sql:"+filepath.Join(b.home, ".pki", "nssdb"), "-i", p12, "-W", password)
}

// start opens the browser; what is installed later it does not see.
func (b *chromium) start() *chromium {
	b.t.Helper()
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("/usr/bin/chromium"), chromedp.NoSandbox, chromedp.Flag("headless", "new"),
		chromedp.Flag("host-resolver-rules", "MAP *."+domain+" 127.0.0.1"), chromedp.Env("HOME="+b.home),
		chromedp.UserDataDir(filepath.Join(b.home, "profile-"+fmt.Sprint(time.Now().UnixNano()))), // a fresh one forgets connections
		chromedp.WindowSize(1280, 800),
	)
	alloc, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, cancel := chromedp.NewContext(alloc)
	b.t.Cleanup(func() { cancel(); stop() })
	if err := chromedp.Do(ctx); err != nil { // the browser lives as long as this call's context
		b.t.Fatalf("%s's browser: %v", b.who, err)
	}
	b.ctx = ctx
	return b
}

// again closes the browser and opens it anew.
func (b *chromium) again() *chromium {
	b.t.Helper()
	_ = chromedp.Cancel(b.ctx)
	return b.start()
}

func (b *chromium) do(limit time.Duration, steps ...chromedp.Action[chromedp.Void]) error {
	ctx, cancel := context.WithTimeout(b.ctx, limit)
	defer cancel()
	return chromedp.Do(ctx, steps...)
}

// open goes to a page and returns its text, or what the network said.
func (b *chromium) open(url string) (string, error) {
	if err := b.do(pageLimit, chromedp.Navigate(url)); err != nil {
		return "", err
	}
	return b.text(), nil
}

// mustOpen is open that must show some text, at once or soon.
func (b *chromium) mustOpen(url, want string) string {
	b.t.Helper()
	if _, err := b.open(url); err != nil {
		b.t.Fatalf("%s at %s: want a page that says %q: %v", b.who, url, want, err)
	}
	b.waitText(want, 10*time.Second)
	return b.text()
}

func (b *chromium) text() string {
	text, _ := eval[string](b, `document.body ? document.body.innerText : ""`)
	return text
}

// waitText waits until the page says something.
func (b *chromium) waitText(want string, limit time.Duration) {
	b.t.Helper()
	end := time.Now().Add(limit)
	for {
		ctx, cancel := context.WithDeadline(b.ctx, end)
		_, err := chromedp.Run(ctx, chromedp.Poll[bool](fmt.Sprintf(`document.body && document.body.innerText.includes(%q)`, want), chromedp.WithPollingTimeout(limit)))
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			b.shot("unexpected", 1280, 800)
			b.t.Fatalf("%s waits for a page that says %q; it says %q (%v)", b.who, want, tail(b.text(), 800), err)
		}
	}
}

// eval runs a script in the page.
func eval[T any](b *chromium, script string) (T, error) {
	ctx, cancel := context.WithTimeout(b.ctx, pageLimit)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
}

// shot keeps a picture of the page for people to look at.
func (b *chromium) shot(name string, width, height int64) {
	b.t.Helper()
	dir := os.Getenv("SALLYPORT_ARTIFACTS")
	if dir == "" {
		return
	}
	ctx, cancel := context.WithTimeout(b.ctx, pageLimit)
	defer cancel()
	err := chromedp.Do(ctx, chromedp.EmulateViewport(width, height))
	var png []byte
	if err == nil {
		png, err = chromedp.Run(ctx, chromedp.CaptureScreenshot())
	}
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		file := fmt.Sprintf("%s-%s-%s-%dx%d.png", strings.ReplaceAll(b.t.Name(), "/", "-"), b.who, name, width, height)
		err = os.WriteFile(filepath.Join(dir, file), png, 0o644)
	}
	if err != nil {
		b.t.Logf("no picture of %s: %v", name, err)
	}
}

// shots keeps pictures in the size of a phone and of a desk.
func (b *chromium) shots(name string) {
	b.shot(name, 390, 844)
	b.shot(name, 1280, 800)
}

// allowCertificates lets Chromium choose a client certificate without asking:
// headless, its question would never be answered. The policy directory is the
// machine's, so the file is this test's own and covers only its domain.
func allowCertificates(t *testing.T) {
	t.Helper()
	const dir = "/etc/chromium/policies/managed"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	rule := fmt.Sprintf(`{"pattern":"https://[*.]%s","filter":{}}`, domain)
	policy, err := json.Marshal(map[string][]string{"AutoSelectCertificateForUrls": {rule}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, fmt.Sprintf("sallyport-%d.json", os.Getpid()))
	if err := os.WriteFile(file, policy, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(file) })
}

// waitTrue waits until an expression in the page is true.
func waitTrue(expression string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Run(ctx, chromedp.Poll[bool](expression))
		return err
	})
}
