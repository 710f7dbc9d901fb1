package admin

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

func inCI() bool { return os.Getenv("CI") == "true" }

// A tab is a page in a Chromium of its own.
type tab struct {
	t      *testing.T
	ctx    context.Context
	silent atomic.Bool // complaints of the browser are expected
}

// browser starts a Chromium. Whatever a page writes to its console, and every
// breach of its policy, fails the test.
func browser(t *testing.T) *tab {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		absent(t, "no chromium here")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.Flag("headless", "new"), chromedp.UserDataDir(t.TempDir()),
		chromedp.Env("HOME="+t.TempDir()), chromedp.WindowSize(1280, 800))
	alloc, end := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, quit := chromedp.NewContext(alloc)
	b := &tab{t: t, ctx: ctx}
	t.Cleanup(func() {
		b.silent.Store(true)
		_ = chromedp.Cancel(ctx) // waits until its files are free
		quit()
		end()
	})
	if err := chromedp.Do(ctx); err != nil { // the browser lives as long as this call's context
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, log.Enable, cdp.Empty{}); err != nil {
		t.Fatal(err)
	}
	err = chromedp.Listen(ctx, func(ev any) {
		if b.silent.Load() {
			return
		}
		switch ev := ev.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("the page threw: %v", ev.ExceptionDetails)
		case *runtime.EventConsoleAPICalled:
			t.Errorf("the page wrote to its console: %v", ev.Args)
		case *log.EventEntryAdded:
			t.Errorf("the browser complains: %s %s", ev.Entry.Text, ev.Entry.URL)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// do runs steps with a deadline.
func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	for i, step := range steps {
		if err := chromedp.Do(ctx, step); err != nil {
			where, _ := chromedp.Run(b.ctx, chromedp.Location())
			b.t.Fatalf("step %d, at %s: %v", i+1, where, err)
		}
	}
}

// found runs one action and returns what it found.
func found[T any](b *tab, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// tell sends one command of the protocol.
func tell[P, R any](b *tab, cmd cdp.Command[P, R], params P) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, cmd, params); err != nil {
		b.t.Fatal(err)
	}
}

// site serves a dashboard with its login on loopback.
func site(t *testing.T, f *fakeRelay, cfg DashboardConfig) (base string, login *Login) {
	t.Helper()
	login = NewLogin(nil, f.record)
	srv := httptest.NewServer(login.Wrap(NewDashboard(cfg)))
	t.Cleanup(func() {
		srv.CloseClientConnections() // event streams
		srv.Close()
	})
	return srv.URL, login
}

func TestBrowserOwner(t *testing.T) {
	f := newFakeRelay()
	base, login := site(t, f, f.config())
	b := browser(t)
	b.do(chromedp.Navigate(login.Link(base)), chromedp.WaitVisible("#queue .ask"))
	if at := found(b, chromedp.Location()); at != base+"/" {
		t.Errorf("after the login at %s", at)
	}
	b.do(chromedp.WaitVisible("#live.good"))

	// A second device asks: the page shows it without being asked to.
	f.did(t.Context(), "asked", func() {
		q := anna()
		q.ID, q.Name, q.KeyID = "second01", "omas-tablet", "ff00"
		f.requests = append(f.requests, q)
	})
	b.do(chromedp.WaitVisible("#approve-second01"))
	if title := found(b, chromedp.Title()); !strings.HasPrefix(title, "(2) ") {
		t.Errorf("title %q", title)
	}
	b.do(chromedp.WaitNotPresent("body.moving"), chromedp.Click("#approve-7kq2mf9x"), chromedp.WaitVisible(".said"))
	if text := found(b, chromedp.Text(".said")); !strings.HasPrefix(text, "Approved.") {
		t.Errorf("said %q", text)
	}
	b.do(chromedp.WaitNotPresent("#approve-7kq2mf9x"), chromedp.WaitNotPresent("body.moving"),
		chromedp.Click("#deny-second01"), chromedp.WaitNotPresent("#queue .ask"))
	if got := strings.Join(f.called(), "; "); got != "asked by local; issued 7kq2mf9x by dashboard; denied second01 by dashboard" {
		t.Errorf("the relay was told: %s", got)
	}

	// What the owner opened stays open while the page renews itself.
	b.do(chromedp.Navigate(base+"/devices"), chromedp.WaitVisible("#live.good"), chromedp.Click("#gone summary"), chromedp.WaitVisible("#gone[open] .row"))
	f.did(t.Context(), "added", func() {
		f.devices = append(f.devices, Device{ID: "f6", Name: "new-laptop", Created: when, NotAfter: when.AddDate(1, 0, 0)})
	})
	b.do(chromedp.WaitVisible(`a[href="/devices/new-laptop"]`), chromedp.WaitVisible("#gone[open] .row"))

	// Invite: QR code and link, and nothing of it in the address.
	b.do(chromedp.Navigate(base+"/invite"), chromedp.SendKeys(`input[name=name]`, "carl-phone"), chromedp.Submit(`form[action="/invite"]`), chromedp.WaitVisible(".qr svg"))
	if link, at := found(b, chromedp.Value("#link")), found(b, chromedp.Location()); !strings.HasPrefix(link, "https://enroll.home.example.org/#") || at != base+"/invite" {
		t.Errorf("link %q at %q", link, at)
	}
	b.do(chromedp.Navigate(base+"/devices/new-laptop"), chromedp.Click("#revoke summary"), chromedp.Click("#revoke button"), chromedp.WaitVisible(".said"))

	b.do(chromedp.Navigate(base+"/"), chromedp.WaitVisible("#live.good"), chromedp.Click(".top form button"), chromedp.WaitVisible("#code"),
		chromedp.Navigate(base+"/"), chromedp.WaitVisible("#code"))
}

// Pages without scripts do the same, after a reload.
func TestBrowserWithoutScripts(t *testing.T) {
	f := newFakeRelay()
	srv := httptest.NewServer(NewDashboard(f.config()))
	defer srv.Close()
	b := browser(t)
	tell(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.do(chromedp.Navigate(srv.URL), chromedp.Click("#approve-7kq2mf9x"), chromedp.WaitReady(".said"),
		chromedp.Navigate(srv.URL+"/devices/anna-phone"), chromedp.Click("#revoke summary"), chromedp.Click("#revoke button"), chromedp.WaitReady(".said"))
	if got := strings.Join(f.called(), "; "); got != "issued 7kq2mf9x by dashboard; revoke device anna-phone by dashboard" {
		t.Errorf("the relay was told: %s", got)
	}
}

// The session ends elsewhere: the open page notices by itself.
func TestBrowserSessionEnds(t *testing.T) {
	f := newFakeRelay()
	base, login := site(t, f, f.config())
	b := browser(t)
	b.do(chromedp.Navigate(login.Link(base)), chromedp.WaitVisible("#live.good"))
	b.silent.Store(true) // it will complain of a 401
	login.mu.Lock()
	login.sessions[0].cut()
	login.sessions = nil
	login.mu.Unlock()
	b.do(chromedp.WaitVisible("#live.bad"))
}

func TestScreenshots(t *testing.T) {
	f := newFakeRelay()
	f.requests = append(f.requests, printer())
	base, login := site(t, f, f.config())
	b := browser(t)
	b.do(chromedp.Navigate(login.Link(base)), chromedp.WaitVisible("#queue .ask"))
	for _, size := range []struct {
		name          string
		width, height int64
		mobile        bool
	}{{"390x844", 390, 844, true}, {"1280x800", 1280, 800, false}} {
		for _, scheme := range []string{"light", "dark"} {
			tell(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
				Width: size.width, Height: size.height, DeviceScaleFactor: 1, Mobile: size.mobile,
			})
			tell(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			for _, path := range []string{"/", "/devices", "/devices/anna-tablet", "/devices/pauls-phone", "/invite", "/invited", "/homes", "/certificates", "/log", "/nowhere", "/login"} {
				name := strings.Join([]string{size.name, scheme, strings.ReplaceAll("overview"+path, "/", "-")}, "-")
				if path != "/" {
					name = strings.Replace(name, "overview-", "", 1)
				}
				shoot(b, base, path, size.width, strings.TrimSuffix(name, "-"))
			}
		}
	}
}

// shoot looks at one page: nothing may be wider than the screen, every button
// big enough for a thumb and every field named.
func shoot(b *tab, base, path string, width int64, name string) {
	b.t.Helper()
	switch path {
	case "/invited":
		b.do(chromedp.Navigate(base+"/invite"), chromedp.SendKeys("input[name=name]", "anna-phone"), chromedp.Click("input[name=approve]"),
			chromedp.Click("main form button.main"), chromedp.WaitVisible(".qr"))
	case "/nowhere":
		b.silent.Store(true) // a 404
		defer b.silent.Store(false)
		fallthrough
	default:
		b.do(chromedp.Navigate(base+path), chromedp.WaitReady("h1"))
	}
	if path != "/login" {
		b.do(chromedp.WaitVisible("#live.good"))
	}
	for _, fault := range found(b, chromedp.Evaluate[[]string](fmt.Sprintf(faultsJS, width))) {
		b.t.Errorf("%s: %s", name, fault)
	}
	dir := os.Getenv("SALLYPORT_ARTIFACTS")
	if dir == "" {
		return
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "dashboard-"+name+".png"), found(b, chromedp.FullScreenshot(100)), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

const faultsJS = `(() => {
  const faults = [];
  if (document.documentElement.scrollWidth > %d) faults.push("the page is " + document.documentElement.scrollWidth + " wide");
  for (const e of document.querySelectorAll("main button, main .button, nav a")) {
    const r = e.getBoundingClientRect();
    if (r.width && r.height < 40) faults.push("too small for a thumb: " + e.textContent.trim() + " " + r.height);
  }
  for (const e of document.querySelectorAll("input:not([type=hidden]), select")) {
    if (!e.labels || !e.labels.length) faults.push("a field has no label: " + e.name);
  }
  for (const e of document.querySelectorAll("button, a")) {
    if (e.checkVisibility() && !e.innerText.trim() && !e.getAttribute("aria-label")) faults.push("a button or link has no name: " + e.outerHTML);
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size !== ids.length) faults.push("an id is used twice: " + ids.filter((v, i) => ids.indexOf(v) !== i));
  if (document.querySelectorAll("h1").length !== 1) faults.push("not one h1");
  return faults;
})()`
