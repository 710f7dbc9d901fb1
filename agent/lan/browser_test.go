package lan

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"

	"github.com/sallyport/sallyport/protocol/door"
)

const page = `<!doctype html><script type="module">
import {lan} from "/.well-known/sallyport/lan.js";
globalThis.lan = lan;
</script>`

// withDevice serves page and the helper to visitors that hold a device, in the
// place of the certificate that this browser has not.
func withDevice(l func() *LAN) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, _ := door.VisitorFrom(r.Context())
		v.Device = &door.Device{ID: "d"}
		if strings.HasPrefix(r.URL.Path, WellKnown) {
			l().Helper().ServeHTTP(w, r.WithContext(door.WithVisitor(r.Context(), v)))
			return
		}
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte(page))
	})
}

// TestChromium: a public page finds the home network once its reader allows it,
// and not before. Chromium is told which port of this machine is which network.
func TestChromium(t *testing.T) {
	ci := os.Getenv("CI") == "true"
	if testing.Short() || raceEnabled || !ci && os.Getenv("SALLYPORT_REAL") != "1" {
		t.Skip("slow: runs with CI=true or SALLYPORT_REAL=1, without -race")
	}
	chromium, err := exec.LookPath("chromium")
	if err != nil && ci {
		t.Fatal("chromium is not installed")
	}
	if err != nil {
		t.Skip("chromium is not installed")
	}

	cert := newCert(t, &x509.Certificate{DNSNames: []string{"*." + own, "ha.example.org"}}, nil)
	var l *LAN
	handler := withDevice(func() *LAN { return l })

	public := httptest.NewUnstartedServer(handler)
	public.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
	public.StartTLS()
	t.Cleanup(public.Close)
	publicPort := public.Listener.Addr().(*net.TCPAddr).Port
	outside := fmt.Sprintf("https://ha.example.org:%d", publicPort)

	pool := x509.NewCertPool()
	pool.AddCert(cert.Leaf)
	d, err := door.New(door.Config{
		Lookup: func(name string) (*door.Site, bool) {
			return &door.Site{
				Host: name, Mode: door.None, Policy: "p", Handler: handler,
				Certificate: func(string) (*tls.Certificate, error) { return cert, nil },
			}, true
		},
		ClientCAs: pool,
		Check: func(*x509.Certificate, string, time.Time) (door.Device, string) {
			return door.Device{}, door.DeniedUnknown
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	var visits atomic.Int32
	ready := make(chan struct{}, 1)
	l = newLAN(t, Config{
		Listen: "127.0.0.1:0", Port: fmt.Sprintf(":%d", publicPort),
		Serve: func(ctx context.Context, c net.Conn) {
			visits.Add(1)
			d.ServeConn(ctx, c)
		},
		Addrs:   func() []netip.Addr { return addrs("127.0.0.1") },
		Changed: func([]netip.Addr) { ready <- struct{}{} },
		Ours:    func(name string) bool { return name == "ha.example.org" || strings.HasSuffix(name, own) },
	})
	start(t, l)
	<-ready

	spki := sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo)
	alloc, stop := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium), chromedp.NoSandbox, chromedp.Flag("headless", "new"),
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(spki[:])),
		chromedp.Flag("host-resolver-rules", "MAP *.example.org 127.0.0.1"),
		chromedp.Flag("ip-address-space-overrides", fmt.Sprintf("127.0.0.1:%d=public,127.0.0.1:%d=local", publicPort, l.view.Load().port)),
		chromedp.Env("HOME="+t.TempDir()), chromedp.UserDataDir(t.TempDir()))...)
	tab, quit := chromedp.NewContext(alloc)
	t.Cleanup(func() {
		_ = chromedp.Cancel(tab) // waits until its files are free
		quit()
		stop()
	})
	if err := chromedp.Do(tab); err != nil { // the browser lives as long as this call's context
		t.Fatal(err)
	}
	run := func(url, script string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(tab, 20*time.Second)
		defer cancel()
		if url != "" {
			if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
				t.Fatal(err)
			}
		}
		got, err := chromedp.Run(ctx, chromedp.Evaluate[string](script, chromedp.EvalAwaitPromise))
		if err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		return got
	}
	decide := func(setting browser.PermissionSetting) error {
		var errs []error
		for _, name := range []string{"local-network", "local-network-access"} {
			_, err := chromedp.CallBrowser(tab, browser.SetPermission, browser.SetPermissionParams{
				Permission: &browser.PermissionDescriptor{Name: name}, Setting: setting, Origin: outside,
			})
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	// What the browser does with a plain fetch shows that it sees two networks.
	plain := fmt.Sprintf(`fetch(%q, {targetAddressSpace: "local", credentials: "include"}).then(() => "came", () => "blocked")`, l.URL()+WellKnown+"here")
	const quietly, asking = `lan().then(String)`, `lan({ask: true}).then(String)`

	if got := run(outside+"/", quietly); got != "null" || visits.Load() != 0 {
		t.Errorf("before anybody was asked: %s, %d connections", got, visits.Load())
	}
	if err := decide(browser.PermissionSettingDenied); err != nil {
		t.Fatal(err)
	}
	if got := run(outside+"/", asking); got != "null" || visits.Load() != 0 {
		t.Errorf("after no: %s, %d connections", got, visits.Load())
	}
	if got := run("", plain); got != "blocked" {
		t.Errorf("after no a plain fetch %s", got)
	}
	if err := decide(browser.PermissionSettingGranted); err != nil {
		t.Fatal(err)
	}
	for _, script := range []string{quietly, asking} {
		if got := run(outside+"/", script); got != l.URL() {
			t.Errorf("after yes: %s: %s, want %s", script, got, l.URL())
		}
	}
	if got := run("", plain); got != "came" {
		t.Errorf("after yes a plain fetch is %s", got)
	}
	if got := run(l.URL()+"/", quietly); got != l.URL() {
		t.Errorf("there: %s, want %s", got, l.URL())
	}
}
