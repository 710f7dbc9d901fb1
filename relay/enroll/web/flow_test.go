package web

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/relay/enroll"
)

const code = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

// TestEnrolInBrowser is the way from the link to the self-test, as a person
// with a new laptop goes it.
func TestEnrolInBrowser(t *testing.T) {
	s := serve(t)
	s.desk.codes[code] = enroll.Invitation{Approve: true, Hosts: []string{"photos.home.test", "ha.home.test"}}
	v := s.visitor(t, "")
	v.do(open(s.url("enroll")+"#"+code), seen("#naming"))
	if at := get(v, chromedp.Location()); at != s.url("enroll") {
		t.Errorf("the address bar says %q", at)
	}
	if n := eval[int](v, `history.length`); n != 2 { // about:blank and this page
		t.Errorf("the history has %d entries", n)
	}
	v.shots("name")
	v.do(click("#make"), seen("#name-why")) // no name yet
	v.do(typed("#name", "  Anna's Phone_2 "), click("#make"), seen("#words"))
	if got := v.text("#words"); strings.Join(strings.Fields(got), " ") != "acorn bamboo candle dolphin elbow falcon" {
		t.Errorf("words %q", got)
	}
	v.shots("wait")
	s.desk.decide(t, true)
	v.do(seen("#install"))
	password := v.text("#password")
	v.shots("install")

	legacy := v.download(func() { v.do(click("#download")) })
	v.shots("saved")
	v.do(click("#install details summary"), click("input[value=modern]"))
	modern := v.download(func() { v.do(click("#download")) })
	v.shots("options")
	if bytes.Equal(legacy, modern) {
		t.Error("both forms are one file")
	}
	ca := s.ca.Cert()
	key, cert, _, err := pkcs12.DecodeChain(legacy, password)
	if err != nil || cert.Subject.CommonName != "annas-phone-2" {
		t.Fatalf("the file: %v", err)
	}
	checkPKCS12(t, "legacy", legacy, password, "annas-phone-2", cert, ca)
	checkPKCS12(t, "modern", modern, password, "annas-phone-2", cert, ca)

	v.do(click("#install .to-test"), seen("#test"))
	v.shots("test")
	if href := eval[string](v, `document.querySelector('#test a.button').href`); href != s.url("check") {
		t.Errorf("the test is at %q", href)
	}
	if got := s.visitAs(t, key, cert); !strings.Contains(got, "<h1>Certificate seen: annas-phone-2</h1>") {
		t.Errorf("the self-test says %s", got)
	}
	s.noSecretLeft(t, key, password)
}

// visitAs opens the self-test with what was installed.
func (s *site) visitAs(t *testing.T, key any, cert *x509.Certificate) string {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, s.server.Listener.Addr().String())
		},
		TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true, // the server is ours; it is the visitor who is checked
			Certificates:       []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
		},
	}}
	defer c.CloseIdleConnections()
	resp, err := c.Get(s.url("check"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return readAllOf(t, resp.Body)
}

// download returns the file that an action saves.
func (v *visitor) download(act func()) []byte {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, patience)
	defer cancel()
	progress := chromedp.BrowserEvents(ctx, browser.DownloadProgress)
	act()
	for ev, err := range progress {
		if err != nil {
			v.t.Fatal(err)
		}
		if ev.State == browser.DownloadProgressStateCompleted {
			break
		}
	}
	entries, err := os.ReadDir(v.dir)
	if err != nil || len(entries) != 1 {
		v.t.Fatalf("downloads: %v, %v", entries, err)
	}
	path := filepath.Join(v.dir, entries[0].Name())
	data, err := os.ReadFile(path)
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		v.t.Fatal(err)
	}
	return data
}

// noSecretLeft looks through all requests for the private key and the
// password, and for the code where it must not be.
func (s *site) noSecretLeft(t *testing.T, key any, password string) {
	t.Helper()
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string][]byte{"the key": pkcs8, "the password": []byte(password)}
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		raw, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		secrets["the scalar"] = raw
	case *rsa.PrivateKey:
		secrets["the exponent"], secrets["a prime"], secrets["the other prime"] = key.D.Bytes(), key.Primes[0].Bytes(), key.Primes[1].Bytes()
	default:
		t.Fatalf("a key of type %T", key)
	}
	posts := 0
	for _, r := range s.requests() {
		var head bytes.Buffer
		head.WriteString(r.line + "\n")
		if err := r.header.Write(&head); err != nil {
			t.Fatal(err)
		}
		if r.body != "" {
			posts++
		}
		for what, secret := range secrets {
			if holds(head.String()+r.body, secret) {
				t.Errorf("%s carried %s", r.line, what)
			}
		}
		if strings.Contains(strings.ToUpper(head.String()), code) {
			t.Errorf("%s carried the code outside its body", r.line)
		}
		if r.header.Get("Referer") != "" || r.header.Get("Cookie") != "" {
			t.Errorf("%s: %v", r.line, r.header)
		}
	}
	if posts == 0 {
		t.Error("no request had a body: the search is for nothing")
	}
	// The search itself: the public key, which was sent, is found.
	if pub, err := x509.MarshalPKIXPublicKey(publicOf(key)); err != nil || !slices.ContainsFunc(s.requests(), func(r sent) bool { return holds(r.body, pub) }) {
		t.Errorf("the search finds not even the public key (%v)", err)
	}
}

func publicOf(key any) crypto.PublicKey { return key.(crypto.Signer).Public() }

// holds looks for bytes as they are, in hexadecimal, and in base64 of both
// alphabets at each of the three ways in which they can lie in it.
func holds(text string, secret []byte) bool {
	if strings.Contains(text, string(secret)) || strings.Contains(strings.ToLower(text), hex.EncodeToString(secret)) {
		return true
	}
	for shift := range 3 {
		// Whole groups of three bytes look alike wherever they are.
		whole := secret[shift : shift+(len(secret)-shift)/3*3]
		if strings.Contains(text, base64.StdEncoding.EncodeToString(whole)) || strings.Contains(text, base64.URLEncoding.EncodeToString(whole)) {
			return true
		}
	}
	return false
}

// TestEnrolRSA: the other kind of key, and a code that needs no approval.
func TestEnrolRSA(t *testing.T) {
	s := serve(t)
	s.desk.codes[code] = enroll.Invitation{Name: "old-tablet"}
	v := s.visitor(t, android)
	v.do(open(s.url("enroll")+"#"+strings.ToLower(code[:13])+"-"+code[13:]), seen("#naming"))
	if got := v.text("#naming h1"); got != "This is old-tablet" {
		t.Errorf("heading %q", got)
	}
	v.shots("named")
	v.do(click("#naming summary"), click("#rsa"), click("#make"), seen("#install"))
	v.shots("install-android")
	password := v.text("#password")
	file := v.download(func() { v.do(click("#download")) })
	key, cert, _, err := pkcs12.DecodeChain(file, password)
	if k, ok := key.(*rsa.PrivateKey); err != nil || !ok || k.N.BitLen() != 2048 || cert.Subject.CommonName != "old-tablet" {
		t.Fatalf("the file: %T, %v", key, err)
	}
	checkPKCS12(t, "legacy", file, password, "old-tablet", cert, s.ca.Cert())
	s.noSecretLeft(t, key, password)
}

// TestKeyboardAndWrongCode: from a mistyped code to the waiting page without a
// mouse, each step announced.
func TestKeyboardAndWrongCode(t *testing.T) {
	s := serve(t)
	v := s.visitor(t, "")
	v.do(open(s.url("enroll")), seen("#code"))
	v.shots("code")
	v.expect("403") // the console says so
	focus := func(want string) {
		t.Helper()
		if got := eval[string](v, `document.activeElement.id || document.activeElement.tagName + ' of ' + document.activeElement.closest('section').id`); got != want {
			t.Errorf("the focus is on %q, not on %q", got, want)
		}
	}
	tab := chromedp.KeyEvent("\t")
	focus("H1 of start")
	v.do(tab)
	focus("code")
	v.do(chromedp.KeyEvent("wrong"), chromedp.KeyEvent("\r"), seen("#code-why"))
	if got := v.text("#code-why"); !strings.Contains(got, "The code is not valid") || !strings.Contains(got, "new link") {
		t.Errorf("a wrong code: %q", got)
	}
	v.shots("code-wrong")
	focus("code")
	s.desk.codes[code] = enroll.Invitation{Approve: true}
	if _, err := chromedp.Run(v.ctx, chromedp.Evaluate[chromedp.Void](`document.activeElement.select()`)); err != nil {
		t.Fatal(err)
	}
	v.do(chromedp.KeyEvent(strings.ToLower(code[:6])+" "+code[6:]), chromedp.KeyEvent("\r"), seen("#naming"))
	focus("H1 of naming")
	v.do(tab)
	focus("name")
	v.do(chromedp.KeyEvent("anna-phone"), chromedp.KeyEvent("\r"), seen("#words"))
	focus("H1 of wait")
	s.desk.decide(t, false)
	v.do(seen("#failed"))
	focus("H1 of failed")
	if got := v.text("#failed"); !strings.Contains(got, "The owner said no") {
		t.Errorf("denied: %q", got)
	}
	v.shots("denied-by-owner")
}

// TestLostAnswer: the connection breaks after the desk has taken the request,
// and the stream is cut while the owner thinks. One certificate comes of it.
func TestLostAnswer(t *testing.T) {
	s := serve(t)
	s.desk.codes[code] = enroll.Invitation{Name: "anna-phone", Approve: true}
	v := s.visitor(t, "")
	v.expect("net::ERR_")
	broken := make(chan struct{}, 1)
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method == "POST" && r.URL.Path == "/api/requests" && len(broken) == 0:
			broken <- struct{}{}
			s.pages.Enroll().ServeHTTP(discard{}, r)
			panic(http.ErrAbortHandler)
		case strings.HasSuffix(r.URL.Path, "/events") && s.cut.CompareAndSwap(false, true):
			panic(http.ErrAbortHandler)
		}
		return false
	}
	v.do(open(s.url("enroll")+"#"+code), seen("#naming"), click("#make"), seen("#words"))
	s.desk.decide(t, true)
	v.do(seen("#install"))
	s.desk.mu.Lock()
	defer s.desk.mu.Unlock()
	if len(s.desk.requests) != 1 || !s.cut.Load() || len(broken) != 1 {
		t.Errorf("%d requests, cut %v, broken %v", len(s.desk.requests), s.cut.Load(), len(broken))
	}
}

// discard is an answer that nobody gets.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) WriteHeader(int)             {}
func (discard) Write(p []byte) (int, error) { return io.Discard.Write(p) }

// TestOpenDesk: without a code the owner decides; a link that is opened later
// in the same tab is taken up.
func TestOpenDesk(t *testing.T) {
	s := serve(t, func(c *Config) { c.Open = true })
	v := s.visitor(t, windows)
	v.do(open(s.url("enroll")), seen("#naming"), seen("#have-code"))
	v.shots("open")
	s.desk.codes[code] = enroll.Invitation{Name: "anna-laptop"}
	if _, err := chromedp.Run(v.ctx, chromedp.Evaluate[chromedp.Void](`location.hash = '`+code+`'`)); err != nil {
		t.Fatal(err)
	}
	v.do(chromedp.WaitVisible(chromedp.CSS("[data-when=named]")))
	if got := v.text("#naming h1"); got != "This is anna-laptop" {
		t.Errorf("heading %q", got)
	}
	if at := get(v, chromedp.Location()); at != s.url("enroll") {
		t.Errorf("the address bar says %q", at)
	}
	v.do(click("#make"), seen("#install"))
	if got := eval[string](v, `document.querySelector('select.system').value`); got != "windows" {
		t.Errorf("steps for %s", got)
	}
	v.shots("install-windows")
}

// TestApple: Safari on Apple devices is offered a profile; other browsers of
// iOS and those inside of apps say that they are the wrong ones.
func TestApple(t *testing.T) {
	var given []string
	s := serve(t, func(c *Config) {
		c.Profile = func(code string, r *http.Request) ([]byte, error) {
			given = append(given, code, r.PostFormValue("name"))
			return []byte("<plist/>"), nil
		}
	})
	s.desk.codes[code] = enroll.Invitation{Approve: true}
	for _, c := range []struct {
		name, agent    string
		profile, wrong bool
	}{
		{"iphone", iphone, true, false},
		{"iphone-chrome", iphoneCr, false, true},
		{"in-app", androidWV, false, true},
		{"mac", mac, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := s.visitor(t, c.agent)
			v.do(open(s.url("enroll")+"#"+code), seen("#naming"))
			visible := func(id string) bool { return eval[bool](v, `document.querySelector('`+id+`').checkVisibility()`) }
			if visible("#profile-form") != c.profile || visible("#copy-link") != c.wrong {
				t.Errorf("profile %v, wrong browser %v", visible("#profile-form"), visible("#copy-link"))
			}
			v.shots("name-" + c.name)
			if !c.profile {
				return
			}
			given = nil
			v.do(click("#profile-form button"), seen("#name-why")) // no name yet
			v.do(typed("#name", "anna-"+c.name))
			file := v.download(func() { v.do(click("#profile-form button")) })
			if string(file) != "<plist/>" || !slices.Equal(given, []string{code, "anna-" + c.name}) {
				t.Errorf("%q for %q", file, given)
			}
			v.do(seen("#profile"))
			v.shots("profile-" + c.name)
			v.do(click("#profile .to-test"), seen("#test"))
		})
	}
	if len(s.desk.codes) != 1 {
		t.Error("a profile used the code up")
	}
}

func TestRenewInBrowser(t *testing.T) {
	s := serve(t)
	s.device = s.newDevice("anna-phone", hour)
	v := s.visitor(t, android)
	v.do(open(s.url("check")), seen(".seal"))
	v.shots("seen")
	v.do(open(s.url("check")+"renew?from=photos.home.test"), seen("#naming"))
	v.shots("renew")
	v.do(click("#make"), seen("#install"))
	password := v.text("#password")
	file := v.download(func() { v.do(click("#download")) })
	key, cert, _, err := pkcs12.DecodeChain(file, password)
	if err != nil || cert.Subject.CommonName != "anna-phone" || bytes.Equal(cert.Raw, s.device.Cert.Raw) {
		t.Fatalf("the file: %v", err)
	}
	v.do(click("#install .to-test"), seen("#test"))
	v.shots("renew-test")
	s.noSecretLeft(t, key, password)
}

// TestNotes shows what can be seen of the pages without a script.
func TestNotes(t *testing.T) {
	s := serve(t, func(c *Config) { c.Due = func(*door.Device) bool { return true } })
	v := s.visitor(t, "")
	v.expect("401")
	v.expect("404")
	for _, denial := range []string{"missing", "unknown", "expired", "revoked", "not-allowed"} {
		v.do(open(strings.Replace(s.url("check"), "check", "photos", 1)+denial), seen("h1"))
		// The style is in the page, and the policy lets it in.
		if got := eval[string](v, `getComputedStyle(document.querySelector('a.button')).display`); got != "block" {
			t.Errorf("%s has no style", denial)
		}
		v.shots("denied-" + denial)
	}
	s.device = s.newDevice("anna-phone", hour)
	v.do(open(s.url("check")), seen(".seal"))
	v.shots("seen-due")
	v.do(open(s.url("enroll")+"nowhere"), seen("h1"))
	v.shots("nowhere")
	if _, err := chromedp.Call(v.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}); err != nil {
		t.Fatal(err)
	}
	v.do(open(s.url("enroll")), seen("noscript h1"))
	v.shots("no-script")
}
