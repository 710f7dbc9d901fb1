package panel

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A world is a panel in front of a fake relay; the visitor is in a header.
type world struct {
	t     *testing.T
	relay *fakeRelay
	panel *Panel
	log   bytes.Buffer
	other atomic.Pointer[string] // who visits in truth: not the one in the header
	key   *ecdsa.PrivateKey
	spki  []byte
}

func newWorld(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, relay: newFake(t)}
	var err error
	if w.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err == nil {
		w.spki, err = x509.MarshalPKIXPublicKey(w.key.Public())
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Backend: w.relay, Enroll: "https://enroll.home.test/", Name: "Miller's home",
		Device: func(r *http.Request) (string, bool) {
			name := r.Header.Get("Test-Device")
			if other := w.other.Load(); other != nil {
				name = *other
			}
			return name, name != ""
		},
		Logger: slog.New(slog.NewTextHandler(&w.log, nil)),
	}
	for _, c := range change {
		c(&cfg)
	}
	if w.panel, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return w
}

// as asks the panel with headers in pairs; a body is JSON.
func (w *world) as(device, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set("Test-Device", device)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	w.panel.ServeHTTP(rec, r)
	return rec
}

func decode[T any](t *testing.T, rec *httptest.ResponseRecorder) T {
	t.Helper()
	var v T
	if kind := rec.Header().Get("Content-Type"); kind != "application/json" {
		t.Errorf("content type %q", kind)
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &v); err != nil {
		t.Fatalf("%v in %s", err, rec.Body)
	}
	return v
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// signed is what a page sends for a press of the lamp.
func (w *world) signed(change ...func(*mqttbridge.Envelope)) (mqttbridge.Envelope, string) {
	w.t.Helper()
	rec := w.as("anna", "POST", "/api/challenge", `{"home":"kitchen","action":"lamp"}`)
	got := decode[struct {
		Challenge string
		LifeMS    int64 `json:"life_ms"`
	}](w.t, rec)
	if rec.Code != 200 || got.LifeMS != 10000 {
		w.t.Fatalf("challenge: %d %s", rec.Code, rec.Body)
	}
	e := mqttbridge.Envelope{
		ID: mqttbridge.NewID(), Home: w.relay.homes["kitchen"].ID, Action: "lamp", Device: "anna",
		Issued: time.Now(), NotAfter: time.Now().Add(10 * time.Second), Challenge: got.Challenge,
	}
	for _, c := range change {
		c(&e)
	}
	s, err := mqttbridge.Sign(e, w.key)
	if err != nil {
		w.t.Fatal(err)
	}
	return e, toJSON(w.t, map[string]any{"home": "kitchen", "command": s})
}

// trusts makes the home know the test's key.
func (w *world) trusts() {
	w.t.Helper()
	body := toJSON(w.t, map[string]any{"home": "kitchen", "key": w.spki})
	if rec := w.as("anna", "POST", "/api/keys", body); rec.Code != 200 || rec.Body.String() != `{"trust":"pending"}`+"\n" {
		w.t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	w.relay.do(w.relay.homes["kitchen"].trust)
	if rec := w.as("anna", "POST", "/api/keys", body); rec.Body.String() != `{"trust":"trusted"}`+"\n" {
		w.t.Fatalf("%d %s", rec.Code, rec.Body)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{Backend: newFake(t)}); err == nil {
		t.Error("without Device")
	}
	if _, err := New(Config{Device: func(*http.Request) (string, bool) { return "", false }}); err == nil {
		t.Error("without Backend")
	}
}

func TestCommand(t *testing.T) {
	w := newWorld(t)
	w.trusts()
	e, body := w.signed()
	rec := w.as("anna", "POST", "/api/commands/lamp", body, "Idempotency-Key", e.ID)
	if st := decode[mqttbridge.Status](t, rec); rec.Code != 202 || st.ID != e.ID || st.State != mqttbridge.Sent || st.Device != "anna" {
		t.Errorf("%d %+v", rec.Code, st)
	}
	rec = w.as("anna", "GET", "/api/commands/"+e.ID, "")
	if st := decode[mqttbridge.Status](t, rec); rec.Code != 200 || st.State != mqttbridge.Delivered || !st.Final {
		t.Errorf("%d %+v", rec.Code, st)
	}
	// The same bytes again are the same command.
	if rec := w.as("anna", "POST", "/api/commands/lamp", body); rec.Code != 202 || w.relay.names() != "lamp" {
		t.Errorf("%d, ran: %s", rec.Code, w.relay.names())
	}
	// Somebody else's command is nobody's.
	if rec := w.as("ben", "GET", "/api/commands/"+e.ID, ""); rec.Code != 404 || strings.Contains(rec.Body.String(), "lamp") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// TestContradictions: what the address and the certificate say must be what is
// signed, and what contradicts goes nowhere.
func TestContradictions(t *testing.T) {
	w := newWorld(t)
	w.trusts()
	_, good := w.signed()
	_, ben := w.signed(func(e *mqttbridge.Envelope) { e.Device = "ben" })
	for name, c := range map[string]struct{ action, body, key string }{
		"another action": {"gate", good, ""},
		"another device": {"lamp", ben, ""},
		"another key":    {"lamp", good, "0123456789abcdef0123"},
		"no envelope":    {"lamp", `{"home":"kitchen","command":{"body":"e30=","key":"x","signature":"eA=="}}`, ""},
		"nothing":        {"lamp", `{}`, ""},
	} {
		rec := w.as("anna", "POST", "/api/commands/"+c.action, c.body, "Idempotency-Key", c.key)
		st := decode[mqttbridge.Status](t, rec)
		if rec.Code != 400 || st.State != mqttbridge.Refused || !st.Final || st.Code != mqttbridge.CodeMalformed || st.Reason == "" {
			t.Errorf("%s: %d %s", name, rec.Code, rec.Body)
		}
	}
	if n := look(w.relay, func() int { return w.relay.sends }); n != 0 {
		t.Errorf("%d of them were sent", n)
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	_, body := w.signed()
	for code, want := range map[mqttbridge.Code]int{
		mqttbridge.CodeOffline: 503, mqttbridge.CodeBroker: 503, mqttbridge.CodeDisk: 503, mqttbridge.CodeNoAction: 404, mqttbridge.CodeUntrusted: 403,
		mqttbridge.CodePINWrong: 403, mqttbridge.CodeHours: 403, mqttbridge.CodeLocked: 423, mqttbridge.CodeRate: 429, mqttbridge.CodeBusy: 429,
		mqttbridge.CodeChallenge: 409, mqttbridge.CodeDuplicate: 409, mqttbridge.CodeMalformed: 400, "something-new": 409,
	} {
		w.relay.do(func() { w.relay.fail = refusal(code, "Because.") })
		rec := w.as("anna", "POST", "/api/commands/lamp", body)
		if st := decode[mqttbridge.Status](t, rec); rec.Code != want || st.State != mqttbridge.Refused || st.Code != code || st.Reason != "Because." {
			t.Errorf("%s: %d %s", code, rec.Code, rec.Body)
		}
		rec = w.as("anna", "POST", "/api/challenge", `{"home":"kitchen","action":"lamp"}`)
		if f := decode[fault](t, rec); rec.Code != want || f.Code != code || f.Error != "Because." {
			t.Errorf("challenge, %s: %d %s", code, rec.Code, rec.Body)
		}
	}
	if w.log.Len() != 0 {
		t.Errorf("refusals are no faults: %s", w.log.String())
	}
	// What went wrong inside stays inside.
	w.relay.do(func() { w.relay.fail = errors.New("disk /dev/sda is on fire") })
	for _, target := range []string{"/api/commands/lamp", "/api/challenge", "/api/keys"} {
		b := body
		if target == "/api/keys" {
			b = toJSON(t, map[string]any{"home": "kitchen", "key": w.spki})
		}
		rec := w.as("anna", "POST", target, b)
		if rec.Code != 500 || strings.Contains(rec.Body.String(), "sda") || !strings.Contains(rec.Body.String(), `"code":"internal"`) {
			t.Errorf("%s: %d %s", target, rec.Code, rec.Body)
		}
	}
	if got := strings.Count(w.log.String(), "on fire"); got != 3 {
		t.Errorf("the log has it %d times", got)
	}
}

func TestBadBodies(t *testing.T) {
	w := newWorld(t)
	for _, target := range []string{"/api/challenge", "/api/keys", "/api/commands/lamp"} {
		for _, c := range []struct {
			body, kind string
			want       int
		}{
			{`{"home":"kitchen"`, "application/json", 400},
			{`[]`, "application/json", 400},
			{`{}`, "text/plain", 415},
			{`{}`, "", 415},
			{`{"x":"` + strings.Repeat("x", maxBody) + `"}`, "application/json", 413},
		} {
			rec := w.as("anna", "POST", target, c.body, "Content-Type", c.kind)
			if f := decode[fault](t, rec); rec.Code != c.want || f.Code != mqttbridge.CodeMalformed {
				t.Errorf("%s %.20s: %d %s", target, c.body, rec.Code, rec.Body)
			}
		}
	}
	if rec := w.as("anna", "POST", "/api/keys", `{"home":"kitchen","key":"AAAA"}`); rec.Code != 400 {
		t.Errorf("no key: %d %s", rec.Code, rec.Body)
	}
}

// TestStrangers: without a certificate there is the shell, which is the same
// for everybody, and nothing else.
func TestStrangers(t *testing.T) {
	w := newWorld(t)
	e, body := w.signed()
	for _, c := range []struct{ method, target, body string }{
		{"GET", "/api/homes", ""},
		{"GET", "/api/events", ""},
		{"GET", "/api/commands/" + e.ID, ""},
		{"POST", "/api/challenge", `{"home":"kitchen","action":"lamp"}`},
		{"POST", "/api/keys", `{}`},
		{"POST", "/api/commands/lamp", body},
		{"POST", "/api/nowhere", ""},
	} {
		rec := w.as("", c.method, c.target, c.body)
		if f := decode[fault](t, rec); rec.Code != 403 || f.Code != "" || f.Error == "" {
			t.Errorf("%s: %d %s", c.target, rec.Code, rec.Body)
		}
	}
	if n := look(w.relay, func() int { return w.relay.sends }); n != 0 {
		t.Error("a stranger's command was sent")
	}
	rec := w.as("", "GET", "/", "")
	if got := rec.Body.String(); rec.Code != 401 || !strings.Contains(got, `href="https://enroll.home.test/"`) || strings.Contains(got, "<script") {
		t.Errorf("%d %s", rec.Code, got)
	}
	for _, target := range append(w.shell(), "/app/"+w.panel.assets.version+"/words.js") {
		r := httptest.NewRequest("GET", target, nil)
		rec := httptest.NewRecorder()
		if !w.panel.Shell(rec, r) || rec.Code != 200 || rec.Header().Get("Content-Security-Policy") != policy {
			t.Errorf("%s: %d", target, rec.Code)
		}
		for _, secret := range []string{"anna", "kitchen", "garage door", "enroll.home.test"} {
			if strings.Contains(strings.ToLower(rec.Body.String()), secret) {
				t.Errorf("%s says %q", target, secret)
			}
		}
	}
	for _, target := range []string{"/", "/api/homes", "/api/events", "/index.html", "/app/", "/icons/icon.svg", "/pages/page.html", "//", "/icon-192.png/x"} {
		rec := httptest.NewRecorder()
		if w.panel.Shell(rec, httptest.NewRequest("GET", target, nil)) && rec.Code == 200 {
			t.Errorf("the shell has %s", target)
		}
	}
	rec = httptest.NewRecorder()
	if w.panel.Shell(rec, httptest.NewRequest("POST", "/sw.js", nil)) || rec.Body.Len() != 0 || len(rec.Header()) != 0 {
		t.Error("the shell took a POST, or wrote to what is not its own")
	}
}

// shell lists what may be loaded without a certificate.
func (w *world) shell() []string {
	var out []string
	for path := range w.panel.assets.fixed {
		out = append(out, path)
	}
	for name := range w.panel.assets.versioned {
		out = append(out, "/app/"+w.panel.assets.version+"/"+name)
	}
	slices.Sort(out)
	return out
}

// TestOtherSites: a page of another site has the visitor's certificate too, and
// must not get to press with it.
func TestOtherSites(t *testing.T) {
	w := newWorld(t)
	w.trusts()
	e, body := w.signed()
	for _, header := range [][]string{
		{"Sec-Fetch-Site", "cross-site"},
		{"Sec-Fetch-Site", "same-site"},
		{"Origin", "https://evil.test"},
		{"Origin", "null"},
	} {
		rec := w.as("anna", "POST", "/api/commands/lamp", body, header...)
		if f := decode[fault](t, rec); rec.Code != 403 || f.Code != "cross-origin" {
			t.Errorf("%v: %d %s", header, rec.Code, rec.Body)
		}
	}
	if got := w.relay.names(); got != "" {
		t.Errorf("ran: %s", got)
	}
	if rec := w.as("anna", "POST", "/api/commands/lamp", body, "Sec-Fetch-Site", "same-origin", "Idempotency-Key", e.ID); rec.Code != 202 {
		t.Errorf("our own page: %d %s", rec.Code, rec.Body)
	}
}

// TestHeaders: no answer lets foreign script in, or stays in a cache, or tells
// the next site where it came from. Only the shell may be kept.
func TestHeaders(t *testing.T) {
	w := newWorld(t)
	for _, target := range append(w.shell(), "/", "/nowhere", "/api/homes", "/api/nowhere", "/api/commands/x", "/app/x/app.js") {
		for _, device := range []string{"anna", ""} {
			got := w.as(device, "GET", target, "").Header()
			for key, want := range map[string]string{
				"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
				"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
			} {
				if got.Get(key) != want {
					t.Errorf("%s: %s is %q", target, key, got.Get(key))
				}
			}
			if keep := got.Get("Cache-Control") != "no-store"; keep && !slices.Contains(w.shell(), target) {
				t.Errorf("%s: Cache-Control %q", target, got.Get("Cache-Control"))
			}
		}
	}
	for _, want := range []string{
		"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self'", "manifest-src 'self'", "worker-src 'self'",
		"form-action 'none'", "frame-ancestors 'none'", "base-uri 'none'", "require-trusted-types-for 'script'",
	} {
		if !strings.Contains(policy, want) {
			t.Errorf("the policy lacks %q", want)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") || strings.Contains(policy, "data:") {
		t.Errorf("policy %q", policy)
	}
}

// TestNoMarkupFromText: scripts never make markup or code of strings, and no
// page carries a script or style of its own that the policy would refuse.
func TestNoMarkupFromText(t *testing.T) {
	banned := regexp.MustCompile("innerHTML|outerHTML|insertAdjacentHTML|document\\.write|\\beval\\b|new Function|srcdoc|setAttribute\\('on|javascript:|localStorage|sessionStorage|https?://|`|/\\*")
	quoted, foreign := regexp.MustCompile(`"[^"\n]*"`), regexp.MustCompile(`url\(|/\*|@import`)
	inline := regexp.MustCompile(`<script[^>]*>[^<]|\son[a-z]+=|\sstyle=|<style`)
	err := fs.WalkDir(files, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		src, err := files.ReadFile(path)
		if strings.HasSuffix(path, ".js") && banned.Match(src) {
			t.Errorf("%s uses %q", path, banned.Find(src))
		}
		if strings.HasSuffix(path, ".css") {
			for _, text := range append(quoted.FindAll(src, -1), foreign.FindAll(src, -1)...) {
				if bytes.ContainsAny(text, "{};,:(/") {
					t.Errorf("%s holds %s", path, text)
				}
			}
		}
		if strings.HasSuffix(path, ".html") && inline.Match(src) {
			t.Errorf("%s holds %q", path, inline.Find(src))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// addresses are what the page makes a browser load.
var addresses = regexp.MustCompile(`<(?:script|link rel="(?:stylesheet|modulepreload|manifest)")[^>]*(?:src|href)="([^"]+)"`)

// TestBudget: the page with everything that it loads at first.
func TestBudget(t *testing.T) {
	w := newWorld(t)
	page := w.as("anna", "GET", "/", "", "Accept-Encoding", "br, gzip")
	if page.Header().Get("Content-Encoding") != "gzip" {
		t.Fatalf("the page comes unpacked: %v", page.Header())
	}
	sum := page.Body.Len()
	plain, err := gzip.NewReader(page.Body)
	if err != nil {
		t.Fatal(err)
	}
	html, err := io.ReadAll(plain)
	if err != nil {
		t.Fatal(err)
	}
	loaded := map[string]bool{}
	for _, m := range addresses.FindAllStringSubmatch(string(html), -1) {
		asset := w.as("anna", "GET", m[1], "", "Accept-Encoding", "gzip")
		if cc := asset.Header().Get("Cache-Control"); asset.Code != 200 || strings.HasPrefix(m[1], "/app/") != strings.Contains(cc, "immutable") {
			t.Errorf("%s: %d, %q", m[1], asset.Code, cc)
		}
		sum += asset.Body.Len()
		loaded[m[1][strings.LastIndex(m[1], "/")+1:]] = true
		t.Logf("%6d %s", asset.Body.Len(), m[1])
	}
	// What scripts import must be announced, or it is not counted here.
	imports := regexp.MustCompile(`from '\./([^']+)'`)
	for name := range loaded {
		src, _ := files.ReadFile("app/" + name)
		for _, m := range imports.FindAllSubmatch(src, -1) {
			if !loaded[string(m[1])] {
				t.Errorf("%s imports %s, which the page does not announce", name, m[1])
			}
		}
	}
	t.Logf("%d files, %d bytes packed", len(loaded)+1, sum)
	if sum > 15<<10 || !loaded["app.js"] || !loaded["style.css"] || !loaded["manifest.webmanifest"] || len(loaded) < 7 {
		t.Errorf("%v, %d bytes packed: at most 15 KiB", loaded, sum)
	}
}

func TestAssets(t *testing.T) {
	w := newWorld(t)
	base := "/app/" + w.panel.assets.version + "/"
	if rec := w.as("", "GET", base+"style.css", ""); rec.Header().Get("Content-Type") != "text/css; charset=utf-8" || rec.Header().Get("Content-Encoding") != "" {
		t.Errorf("style: %d %v", rec.Code, rec.Header())
	}
	if rec := w.as("", "HEAD", base+"app.js", ""); rec.Code != 200 || rec.Body.Len() != 0 || rec.Header().Get("Content-Type") != "text/javascript; charset=utf-8" {
		t.Errorf("HEAD: %d %v", rec.Code, rec.Header())
	}
	// A file of another version would be cached for ever under this one's name.
	for _, target := range []string{"/app/0000000000000000/style.css", base + "nothing.js", base + "..%2fsw.js", base + "page.html"} {
		if rec := w.as("anna", "GET", target, ""); rec.Code != 404 || strings.Contains(rec.Header().Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %d %v", target, rec.Code, rec.Header())
		}
	}
	for path, most := range map[string]int{"/icon-192.png": 4 << 10, "/icon-512.png": 8 << 10, "/icon-maskable-512.png": 8 << 10, "/icon.svg": 1 << 10} {
		rec := w.as("", "GET", path, "")
		if !strings.HasPrefix(rec.Header().Get("Content-Type"), "image/") || rec.Body.Len() > most || rec.Body.Len() < 100 {
			t.Errorf("%s: %v, %d bytes", path, rec.Header(), rec.Body.Len())
		}
	}
	worker := w.as("", "GET", "/sw.js", "")
	if got := worker.Body.String(); !strings.Contains(got, w.panel.assets.version) || strings.Contains(got, "VERSION") || worker.Header().Get("Cache-Control") != "no-cache" {
		t.Errorf("worker: %v %.200s", worker.Header(), got)
	}
	rec := w.as("", "GET", "/manifest.webmanifest", "")
	var m manifest
	if err := json.Unmarshal(rec.Body.Bytes(), &m); err != nil || m.Name != "Miller's home" || m.StartURL != "/" || m.Display != "standalone" ||
		rec.Header().Get("Content-Type") != "application/manifest+json" {
		t.Errorf("manifest: %v %s", err, rec.Body)
	}
	for _, i := range m.Icons {
		if rec := w.as("", "GET", i.Source, ""); rec.Code != 200 || rec.Header().Get("Content-Type") != i.Type {
			t.Errorf("icon %+v: %d", i, rec.Code)
		}
	}
}

// TestName: the owner's name for the page is text, whatever it holds.
func TestName(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Name = `</title><script>alert("x")</script>` })
	for _, target := range []string{"/", "/app/" + w.panel.assets.version + "/offline.html"} {
		if got := w.as("anna", "GET", target, "").Body.String(); strings.Contains(got, "<script>") || !strings.Contains(got, "&lt;script&gt;") {
			t.Errorf("%s: %s", target, got)
		}
	}
}
