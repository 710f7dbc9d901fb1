package real

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"software.sslmate.com/src/go-pkcs12"
)

// linkIn finds the one-time link in what device add printed.
var linkIn = regexp.MustCompile(`https://enroll\.\S+#[A-Z2-7]{26}`)

// invite adds a device and returns its one-time link.
func (w *world) invite(name string, flags ...string) string {
	w.t.Helper()
	out := mustRun(w.t, append([]string{binary, "device", "add", name, "--data", w.relayDir()}, flags...)...)
	link := linkIn.FindString(out)
	if link == "" {
		w.t.Fatalf("device add prints no link: %s", out)
	}
	return link
}

// A capture is everything that the pages of a browser sent.
type capture struct{ text strings.Builder }

// capture records from now on. Only the goroutine of the browser's events
// writes; read it when the pages are quiet.
func (b *chromium) capture() *capture {
	b.t.Helper()
	c := &capture{}
	if err := chromedp.Listen(b.ctx, c.hear); err != nil {
		b.t.Fatal(err)
	}
	if _, err := chromedp.Call(b.ctx, network.Enable, network.EnableParams{}); err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (c *capture) hear(ev any) {
	req, ok := ev.(*network.EventRequestWillBeSent)
	if !ok {
		return
	}
	c.text.WriteString(req.Request.URL + "\n")
	for _, part := range req.Request.PostDataEntries {
		c.text.Write(append(part.Bytes, '\n'))
	}
}

// saveTo lets the browser keep what it downloads.
func (b *chromium) saveTo(dir string) {
	b.t.Helper()
	_, err := chromedp.CallBrowser(b.ctx, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{
		Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: dir,
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *chromium) click(css string) {
	b.t.Helper()
	if err := b.do(pageLimit, chromedp.WaitVisible(chromedp.CSS(css)), chromedp.Click(chromedp.CSS(css))); err != nil {
		b.shot("unexpected", 1280, 800)
		b.t.Fatalf("%s clicks %s: %v; the page says %q", b.who, css, err, tail(b.text(), 600))
	}
}

// enrol walks the page from a link to the saved file, and returns the file and
// its password. ask runs while the page waits for the owner; nil: it does not.
func (b *chromium) enrol(link, name string, ask func(words string)) (p12, password string) {
	b.t.Helper()
	dir := shortDir(b.t)
	b.saveTo(dir)
	b.mustOpen(link, name)
	if at, _ := eval[string](b, `location.href`); strings.Contains(at, "#") {
		b.t.Errorf("the code stays in the address bar")
	}
	b.shots("name")
	b.click("#make")
	if ask != nil {
		b.waitText("six words", pageLimit)
		words, err := eval[string](b, `Array.from(document.querySelectorAll("#words li"), e => e.textContent.trim()).join(" ")`)
		if err != nil {
			b.t.Fatal(err)
		}
		b.shots("words")
		ask(words)
	}
	b.waitText("This password opens the file", pageLimit)
	password, err := eval[string](b, `document.getElementById("password").textContent`)
	if err != nil {
		b.t.Fatal(err)
	}
	b.shots("install")
	b.click("#download")
	p12 = filepath.Join(dir, name+".p12")
	eventually(b.t, 10*time.Second, "the file is saved", func() bool {
		data, err := os.ReadFile(p12)
		return err == nil && len(data) > 0
	})
	b.click("#install .to-test")
	b.shots("test")
	return p12, password
}

// TestEnrolment walks from device add to the open home page: the key is made
// in the page, no request and no file of the relay ever holds it.
func TestEnrolment(t *testing.T) {
	slow(t)
	needTools(t, "openssl")
	w := newWorld(t)
	app := clockApp(t)
	w.home("first", "--expose", "ha="+app)
	link := w.invite("anna-phone")

	anna := w.newPerson("anna").start()
	seen := anna.capture()
	p12, password := anna.enrol(link, "anna-phone", nil)

	// What a messenger's preview does: it must not have used up the code, and
	// now that it is used, nobody else gets anything for it.
	code := link[strings.LastIndex(link, "#")+1:]
	late := w.newPerson("late").start()
	late.mustOpen(link, "not valid")

	// The key is in the file and nowhere else.
	data, err := os.ReadFile(p12)
	if err != nil {
		t.Fatal(err)
	}
	key, cert, _, err := pkcs12.DecodeChain(data, password)
	if err != nil {
		t.Fatalf("the file from the page: %v", err)
	}
	if cert.Subject.CommonName != "anna-phone" {
		t.Errorf("the certificate is for %q", cert.Subject.CommonName)
	}
	places := map[string][]byte{"a request": []byte(seen.text.String()), "the relay's log": []byte(w.relay.out.String()), "the agent's log": []byte(w.agents["first"].out.String())}
	if !strings.Contains(seen.text.String(), "/api/requests") || !strings.Contains(seen.text.String(), code) {
		t.Error("the recorded requests do not hold the one with the code: the search below would prove nothing")
	}
	w.files(places)
	for place, text := range places {
		if found := keyIn(key, text); found != "" {
			t.Errorf("%s holds the private key (%s)", place, found)
		}
		if place != "a request" && bytes.Contains(text, []byte(code)) {
			t.Errorf("%s holds the code", place)
		}
		if bytes.Contains(text, []byte(password)) {
			t.Errorf("%s holds the password of the file", place)
		}
	}
	for at := range strings.Lines(seen.text.String()) {
		if strings.HasPrefix(at, "https://") && strings.Contains(at, code) {
			t.Errorf("the code stands in an address: %s", at)
		}
	}
	mustRun(t, "openssl", "pkcs12", "-legacy", "-in", p12, "-passin", "pass:"+password, "-noout")

	anna.install(p12, password)
	anna.again()
	anna.mustOpen(w.url("check", "/"), "Certificate seen: anna-phone")
	anna.shots("seen")
	anna.mustOpen(w.url("ha", "/page"), "Home of anna-phone")
	anna.waitText("echo hello", 10*time.Second)
}

// TestApproval: with --approve the phone waits, both screens show the same
// words, and nothing is issued before the owner says so.
func TestApproval(t *testing.T) {
	slow(t)
	w := newWorld(t)
	w.home("first", "--expose", "ha="+clockApp(t))
	link := w.invite("berta-phone", "--approve")
	berta := w.newPerson("berta").start()
	p12, password := berta.enrol(link, "berta-phone", func(words string) {
		list := mustRun(t, binary, "device", "list", "--data", w.relayDir())
		if len(strings.Fields(words)) != 6 || !strings.Contains(list, words) {
			t.Errorf("the phone shows %q, device list:\n%s", words, list)
		}
		if _, err := eval[string](berta, `document.getElementById("password").textContent || (() => { throw "none" })()`); err == nil {
			t.Error("the phone has a certificate before the owner agreed")
		}
		mustRun(t, binary, "device", "approve", "berta-phone", "--data", w.relayDir())
	})
	berta.install(p12, password)
	berta.again()
	berta.mustOpen(w.url("ha", "/page"), "Home of berta-phone")

	// Renewal under the certificate that works, without a code. Both work then.
	dir := shortDir(t)
	berta.saveTo(dir)
	berta.mustOpen(w.url("check", "/renew"), "berta-phone")
	berta.shots("renew")
	berta.click("#make")
	berta.waitText("This password opens the file", pageLimit)
	second, err := eval[string](berta, `document.getElementById("password").textContent`)
	if err != nil {
		t.Fatal(err)
	}
	berta.click("#download")
	renewed := filepath.Join(dir, "berta-phone.p12")
	eventually(t, 10*time.Second, "the file is saved", func() bool {
		data, err := os.ReadFile(renewed)
		return err == nil && len(data) > 0
	})
	fresh := w.newPerson("berta-renewed")
	fresh.install(renewed, second)
	fresh.start()
	fresh.mustOpen(w.url("ha", "/page"), "Home of berta-phone")
	berta.again()
	berta.mustOpen(w.url("ha", "/page"), "Home of berta-phone")

	// One revocation takes both.
	mustRun(t, binary, "device", "revoke", "berta-phone", "--data", w.relayDir())
	for _, b := range []*chromium{fresh, berta} {
		b.again()
		if text, err := b.open(w.url("ha", "/page")); err == nil {
			t.Errorf("%s comes in after the revocation: %q", b.who, tail(text, 200))
		}
	}
}

// files adds the content of every file of the relay and the homes.
func (w *world) files(places map[string][]byte) {
	w.t.Helper()
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		places["the file "+filepath.Base(path)] = data
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// keyIn says in which form a private key stands in a text, "" when in none.
func keyIn(key any, text []byte) string {
	forms := map[string][]byte{}
	number := func(what string, raw []byte) {
		forms[what], forms[what+" in hex"] = raw, []byte(hex.EncodeToString(raw))
	}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		if raw, err := k.Bytes(); err == nil {
			number("scalar", raw)
		}
	case *rsa.PrivateKey:
		number("exponent", k.D.Bytes())
		number("prime", k.Primes[0].Bytes())
	}
	if der, err := x509.MarshalPKCS8PrivateKey(key); err == nil {
		forms["PKCS#8"] = der
		forms["base64"] = []byte(base64.StdEncoding.EncodeToString(der)[:60])
		forms["base64url"] = []byte(base64.RawURLEncoding.EncodeToString(der)[:60])
	}
	for form, secret := range forms {
		if bytes.Contains(text, secret) {
			return form
		}
	}
	return ""
}
