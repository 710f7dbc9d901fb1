package admin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// A visit is one request to a dashboard, as our own page sends it.
type visit struct {
	method, path string
	form         url.Values
	edit         func(*http.Request)
}

func (v visit) to(h http.Handler) *httptest.ResponseRecorder {
	var body io.Reader
	if v.form != nil {
		body = strings.NewReader(v.form.Encode())
	}
	r := httptest.NewRequest(v.method, "http://localhost:9080"+v.path, body)
	if v.form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
		r.Header.Set("Origin", "http://localhost:9080")
	}
	if v.edit != nil {
		v.edit(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func get1(h http.Handler, path string) *httptest.ResponseRecorder {
	return visit{method: "GET", path: path}.to(h)
}

func post1(h http.Handler, path string, form url.Values) *httptest.ResponseRecorder {
	return visit{method: "POST", path: path, form: form}.to(h)
}

// commands are all buttons, with what the relay must hear.
var commands = []struct {
	path string
	form url.Values
	want string
	back string
}{
	{"/requests/7kq2mf9x/approve", url.Values{"key": {"9f86d081884c7d65"}}, "issued 7kq2mf9x", "/?said=approve"},
	{"/requests/7kq2mf9x/deny", url.Values{}, "denied 7kq2mf9x", "/?said=deny"},
	{"/devices/anna-tablet/revoke", url.Values{}, "revoke device anna-tablet", "/devices?said=revoke-device"},
	{"/devices/anna-tablet/change", url.Values{"hosts": {"ha"}}, "change anna-tablet", "/devices/anna-tablet?said=change-device"},
	{"/invites/q7m2/withdraw", url.Values{}, "withdraw q7m2", "/devices?said=withdraw-invite"},
	{"/agents/pi/revoke", url.Values{}, "revoke agent pi", "/homes?said=revoke-agent"},
	{"/hosts/*.x.example.org/release", url.Values{}, "release *.x.example.org", "/homes?said=release-host"},
	{"/certificates/cam.cabin.example.org/retry", url.Values{}, "retry cam.cabin.example.org", "/certificates?said=retry-certificate"},
	{"/invite", url.Values{"name": {"carl"}, "ttl": {"15m"}}, "invite carl", ""},
}

func TestCommands(t *testing.T) {
	for _, c := range commands {
		t.Run(c.want, func(t *testing.T) {
			f := newFakeRelay()
			cfg := f.config()
			cfg.Actor = func(*http.Request) string { return "pauls-phone" }
			lines := len(f.log)
			w := post1(NewDashboard(cfg), c.path, c.form)
			if got := f.called(); len(got) != 1 || got[0] != c.want+" by pauls-phone" {
				t.Errorf("the relay heard %q", got)
			}
			if c.back != "" && (w.Code != 303 || w.Header().Get("Location") != c.back) {
				t.Errorf("%d to %s", w.Code, w.Header().Get("Location"))
			}
			if c.back == "" && w.Code != 200 {
				t.Errorf("%d %s", w.Code, w.Body)
			}
			if len(f.log) != lines+1 || f.log[lines].Attrs["actor"] != "pauls-phone" || f.log[lines].Attrs["outcome"] != "done" {
				t.Errorf("audit log: %+v", f.log[lines:])
			}
		})
	}
}

// Whatever is not a form of our own page does nothing.
func TestForgedCommandsDoNothing(t *testing.T) {
	forgeries := map[string]func(*http.Request){
		"by GET":      func(r *http.Request) { r.Method = "GET" },
		"cross-site":  func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
		"other port":  func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
		"old browser": func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "https://evil.example") },
		"no origin":   func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "null") },
		"rebound name": func(r *http.Request) {
			r.Host = "evil.example:9080"
			r.Header.Set("Origin", "http://evil.example:9080")
		},
		"name with our name": func(r *http.Request) { r.Host = "localhost.evil.example" },
		"no name":            func(r *http.Request) { r.Host = "" },
		"text":               func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") },
		"huge":               func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("x=" + strings.Repeat("y", maxForm))) },
	}
	for what, edit := range forgeries {
		for _, c := range commands {
			f := newFakeRelay()
			w := visit{"POST", c.path, c.form, edit}.to(NewDashboard(f.config()))
			if w.Code < 400 && c.path != "/invite" || len(f.called()) != 0 {
				t.Errorf("%s %s: %d, the relay heard %q", what, c.path, w.Code, f.called())
			}
		}
	}
}

func TestHosts(t *testing.T) {
	for got, want := range map[string]bool{
		"localhost": true, "localhost:9080": true, "LocalHost:1": true, "localhost.": true, "127.0.0.1:9080": true, "[::1]:9080": true, "[::1]": true,
		"": false, ":9080": false, "evil.example": false, "localhost@evil.example": false, "127.0.0.1.nip.io": false, "localhost:9080:1": false,
		"127.0.0.2": false, "0.0.0.0:9080": false, "admin.example.org": false,
	} {
		if hostAllowed(LocalHosts, got) != want {
			t.Errorf("%q: want %v", got, want)
		}
	}
	f := newFakeRelay()
	cfg := f.config()
	cfg.Hosts = nil
	if w := get1(NewDashboard(cfg), "/"); w.Code != http.StatusMisdirectedRequest || strings.Contains(w.Body.String(), "anna") {
		t.Errorf("without names it serves: %d", w.Code)
	}
}

var pagePaths = []string{"/", "/devices", "/devices/anna-tablet", "/devices/living-room-tv", "/devices/old-phone", "/invite", "/homes", "/certificates", "/log"}

func TestPagesAreFenced(t *testing.T) {
	h := NewDashboard(newFakeRelay().config())
	for _, path := range append(slices.Clone(pagePaths), "/nowhere", "/devices/nobody", "/assets/no.dashboard.css") {
		w := get1(h, path)
		if want := map[bool]int{true: 200, false: 404}[slices.Contains(pagePaths, path)]; w.Code != want {
			t.Errorf("%s: %d", path, w.Code)
		}
		for _, name := range []string{"Content-Security-Policy", "X-Frame-Options", "Cross-Origin-Opener-Policy", "Cross-Origin-Resource-Policy"} {
			if w.Header().Get(name) == "" {
				t.Errorf("%s: no %s", path, name)
			}
		}
		if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Referrer-Policy") != "no-referrer" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: headers %v", path, w.Header())
		}
		body := w.Body.String()
		for _, bad := range []string{"style=", "onclick", "javascript:", "ZgotmplZ", "<script>", "http://www.w3.org/1999", "&lt;no value"} {
			if strings.Contains(body, bad) {
				t.Errorf("%s contains %s", path, bad)
			}
		}
	}
	for _, weak := range []string{"unsafe-inline", "unsafe-eval", "*", "http:", "https:"} {
		if strings.Contains(contentPolicy, weak) {
			t.Errorf("the policy allows %s", weak)
		}
	}
}

func TestAssets(t *testing.T) {
	h := NewDashboard(newFakeRelay().config())
	for file, kind := range assetTypes {
		w := get1(h, "/assets/"+assetName(file))
		if w.Code != 200 || w.Header().Get("Content-Type") != kind || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") || w.Body.Len() == 0 {
			t.Errorf("%s: %d %v", file, w.Code, w.Header())
		}
	}
	for _, path := range []string{"/assets/000000000000.dashboard.css", "/assets/layout.html", "/assets/000000000000.layout.html", "/assets/..%2fadmin.go"} {
		if w := get1(h, path); w.Code != 404 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

// Everything that strangers may choose arrives as text.
func TestHostileNames(t *testing.T) {
	const evil = `"><script>alert(1)</script><img src=x onerror=alert(2)>{{.}}`
	f := newFakeRelay()
	f.requests = []EnrolRequest{{ID: evil, Name: evil, Via: evil, Agent: evil, Source: evil, Words: evil, KeyID: evil, Hosts: []string{evil}}}
	f.ports = []Port{{Port: evil, Agent: evil, Service: evil, Error: evil}}
	f.devices = []Device{{ID: evil, Name: "x", Hosts: []string{evil}, Target: evil, Path: evil, URL: "javascript:alert(3)", NotAfter: when.Add(time.Hour)}, {Name: evil}}
	f.agents = []Agent{{Name: evil, Allowed: []string{evil}, Ports: []string{evil}, Sessions: []Session{{Transport: evil}}}}
	f.hosts = []Host{{Host: evil, Agent: evil, Services: []HostService{{Name: evil, Path: evil, URL: "javascript:alert(4)", Auth: evil, Reader: evil}}}, {Host: evil, Agent: evil}}
	f.links = []WaitingInvite{{ID: evil, Name: evil, By: evil, Hosts: []string{evil}}}
	f.certs = []PublicCert{{Host: evil, State: evil, Issuer: evil, Problem: evil, Fix: evil}}
	f.line(evil, map[string]any{evil: evil, "list": []any{evil}, "deep": map[string]any{evil: evil}})
	h := NewDashboard(f.config())
	for _, path := range []string{"/", "/devices", "/devices/x", "/invite", "/homes", "/certificates", "/log"} {
		w := get1(h, path)
		if w.Code != 200 {
			t.Errorf("%s: %d", path, w.Code)
		}
		for _, bad := range []string{"<script>", "<img src=x", `"javascript:`} {
			if strings.Contains(w.Body.String(), bad) {
				t.Errorf("%s contains %s", path, bad)
			}
		}
	}
	w := post1(h, "/invite", url.Values{"ttl": {"15m"}, "name": {evil}})
	if w.Code != 200 || strings.Contains(w.Body.String(), "<script>") {
		t.Errorf("invite: %d", w.Code)
	}
}

func TestApproveOnlyWhatWasShown(t *testing.T) {
	for what, form := range map[string]url.Values{"another key": {"key": {"beef"}}, "no key": {}} {
		f := newFakeRelay()
		w := post1(NewDashboard(f.config()), "/requests/7kq2mf9x/approve", form)
		if w.Code != 404 || len(f.called()) != 0 || !strings.Contains(w.Body.String(), "no longer waiting") {
			t.Errorf("%s: %d, the relay heard %q", what, w.Code, f.called())
		}
	}
}

// No page of any entrance reaches what makes or shows keys and join tokens.
func TestNoSecretsAreMade(t *testing.T) {
	f := newFakeRelay()
	h := NewDashboard(f.config())
	for _, path := range []string{"/tokens", "/v1/tokens", "/devices", "/v1/devices", "/token-devices", "/dashboard", "/clock/reset", "/v1/clock/reset", "/reload", "/login", "/logout", "/grants", "/v1/grants", "/agents/pi/grant"} {
		if w := post1(h, path, url.Values{"name": {"x"}}); w.Code != 404 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	if len(f.called()) != 0 {
		t.Errorf("the relay heard %q", f.called())
	}
}

func TestInvite(t *testing.T) {
	f := newFakeRelay()
	h := NewDashboard(f.config())
	w := post1(h, "/invite", url.Values{"name": {" carl-phone "}, "hosts": {"ha, photos\nx"}, "until": {"2h"}, "ttl": {"1h"}, "approve": {"1"}})
	if w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	want := InviteRequest{Name: "carl-phone", Hosts: []string{"ha", "photos", "x"}, Until: when.Add(2 * time.Hour), TTL: 3600, Approve: true}
	same(t, f.invites[0], nil, want)
	if body := w.Body.String(); !strings.Contains(body, "<svg ") || !strings.Contains(body, "https://enroll.home.example.org/#") {
		t.Errorf("no link on %s", body)
	}
	for _, form := range []url.Values{{}, {"ttl": {"-1h"}}, {"ttl": {"x"}}, {"ttl": {"15m"}, "until": {"-2h"}}, {"ttl": {"15m"}, "until": {"999999h"}}} {
		if w := post1(h, "/invite", form); w.Code != 400 {
			t.Errorf("%v: %d", form, w.Code)
		}
	}
	w = post1(h, "/invite", url.Values{"name": {"taken"}, "ttl": {"15m"}})
	if w.Code != 409 || !strings.Contains(w.Body.String(), "choose another name") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := post1(h, "/invite", url.Values{"ttl": {"15m"}}); w.Code != 200 || len(f.invites) != 2 || !f.invites[1].Approve {
		t.Errorf("whoever opens a link without a name chooses his own, and nobody looks: %d %+v", w.Code, f.invites)
	}
	if len(f.invites) != 2 {
		t.Errorf("invited %v", f.invites)
	}
	for _, l := range f.log {
		for _, v := range l.Attrs {
			if s, ok := v.(string); ok && strings.Contains(s, "#") {
				t.Errorf("the log holds a link: %v", l)
			}
		}
	}
}

func TestChangeOnlyWhatTheFormHolds(t *testing.T) {
	none, all := time.Time{}, []string{}
	later, hosts := when.Add(24*time.Hour), []string{"ha", "photos"}
	for _, c := range []struct {
		form string
		want DeviceChange
	}{
		{"", DeviceChange{}},
		{"hosts=ha,+photos&until=keep", DeviceChange{Hosts: &hosts}},
		{"hosts=", DeviceChange{Hosts: &all}},
		{"until=24h", DeviceChange{Until: &later}},
		{"until=none", DeviceChange{Until: &none}},
	} {
		f := newFakeRelay()
		form, _ := url.ParseQuery(c.form)
		if w := post1(NewDashboard(f.config()), "/devices/anna-tablet/change", form); w.Code != 303 {
			t.Errorf("%s: %d", c.form, w.Code)
			continue
		}
		same(t, f.changes[0], nil, c.want)
	}
}

// What cannot be read is named; the rest of the page is there.
func TestBrokenParts(t *testing.T) {
	f := newFakeRelay()
	cfg := f.config()
	cfg.API.Devices = func(context.Context) ([]Device, error) { return nil, errors.New("disk on fire") }
	cfg.Audit = func(int) ([]AuditLine, error) { return nil, errors.New("log eaten") }
	w := get1(NewDashboard(cfg), "/")
	for _, want := range []string{"disk on fire", "log eaten", "anna-phone", "home-assistant"} {
		if w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%d, no %q", w.Code, want)
		}
	}
	bare := NewDashboard(DashboardConfig{Hosts: LocalHosts})
	for _, path := range []string{"/", "/devices", "/homes", "/certificates", "/log"} {
		if w := get1(bare, path); w.Code != 200 || strings.Contains(w.Body.String(), "Invite") {
			t.Errorf("bare %s: %d", path, w.Code)
		}
	}
	for _, c := range commands {
		if w := post1(bare, c.path, c.form); w.Code != 503 {
			t.Errorf("bare %s: %d", c.path, w.Code)
		}
	}
}

func TestFailuresAreRecorded(t *testing.T) {
	f := newFakeRelay()
	cfg := f.config()
	cfg.API.RevokeDevice = func(context.Context, string) (Device, error) {
		return Device{}, &Error{Code: CodeNotFound, Message: "no such device", Hint: "look again"}
	}
	var got []string
	cfg.Record = func(event string, attrs ...slog.Attr) {
		got = append(got, event+" "+slog.GroupValue(attrs...).String())
	}
	w := post1(NewDashboard(cfg), "/devices/ghost/revoke", url.Values{})
	if w.Code != 404 || !strings.Contains(w.Body.String(), "look again") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if len(got) != 1 || got[0] != "dashboard.command [actor=dashboard command=revoke-device name=ghost outcome=not-found]" {
		t.Errorf("recorded %q", got)
	}
}

// A link cannot put words into the page's mouth.
func TestSaidIsFixed(t *testing.T) {
	h := NewDashboard(newFakeRelay().config())
	if body := get1(h, "/?said=approve").Body.String(); !strings.Contains(body, said["approve"]) {
		t.Error("not said")
	}
	if body := get1(h, "/?said=Your+relay+is+broken").Body.String(); strings.Contains(body, "broken") || strings.Contains(body, `class="said"`) {
		t.Error("said what a link wanted")
	}
}

func FuzzHostAllowed(f *testing.F) {
	for _, s := range []string{"localhost:1", "[::1]:1", "::1", "a:b:c", "]", "[", ".", "localhost..", "127.0.0.1%00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if hostAllowed(nil, s) {
			t.Errorf("%q is allowed where nothing is", s)
		}
		if hostAllowed([]string{"localhost"}, s) && !strings.Contains(strings.ToLower(s), "localhost") {
			t.Errorf("%q is allowed", s)
		}
	})
}
