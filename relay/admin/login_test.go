package admin

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// clock is a time that the test moves.
type clock struct {
	mu sync.Mutex // guards now
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// guarded is a Login before a page that says "inside".
func guarded() (*Login, *clock, http.Handler) {
	c := &clock{at: when}
	l := NewLogin(c.now, nil)
	return l, c, l.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "inside")
	}))
}

func code(t *testing.T, link string) url.Values {
	t.Helper()
	u, err := url.Parse(link)
	if err != nil || u.Fragment == "" || u.RawQuery != "" || u.Path != "/login" {
		t.Fatalf("link %q, %v: the secret belongs into the fragment", link, err)
	}
	return url.Values{"code": {u.Fragment}}
}

func with(c *http.Cookie) func(*http.Request) {
	return func(r *http.Request) { r.AddCookie(c) }
}

func signIn(t *testing.T, l *Login, h http.Handler) *http.Cookie {
	t.Helper()
	w := post1(h, "/login", code(t, l.Link("http://127.0.0.1:9080")))
	if w.Code != 303 || len(w.Result().Cookies()) != 1 {
		t.Fatalf("login: %d %v", w.Code, w.Header())
	}
	return w.Result().Cookies()[0]
}

func inside(h http.Handler, c *http.Cookie) bool {
	return visit{method: "GET", path: "/", edit: with(c)}.to(h).Body.String() == "inside"
}

func TestLogin(t *testing.T) {
	l, _, h := guarded()
	for _, path := range []string{"/", "/devices", "/events", "/login/x"} {
		if w := get1(h, path); strings.Contains(w.Body.String(), "inside") || w.Code == 200 {
			t.Errorf("%s without a session: %d", path, w.Code)
		}
	}
	form := code(t, l.Link("http://127.0.0.1:9080/"))
	if w := get1(h, "/login"); w.Code != 200 { // a preview of the link
		t.Errorf("login page: %d", w.Code)
	}
	w := post1(h, "/login", form)
	if w.Code != 303 || w.Header().Get("Location") != "/" || len(w.Result().Cookies()) != 1 {
		t.Fatalf("login: %d %v", w.Code, w.Header())
	}
	c := w.Result().Cookies()[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.MaxAge != 12*3600 || c.Domain != "" {
		t.Errorf("cookie %+v", c)
	}
	if !inside(h, c) {
		t.Error("the session does not open")
	}
	if w := post1(h, "/login", form); w.Code != 403 || len(w.Result().Cookies()) != 0 {
		t.Errorf("the same code again: %d", w.Code)
	}
	again := visit{method: "POST", path: "/login", form: form, edit: with(c)}
	if w := again.to(h); w.Code != 303 || w.Header().Get("Location") != "/" || len(w.Result().Cookies()) != 0 {
		t.Errorf("the used link, in the browser that is signed in: %d %v", w.Code, w.Header())
	}
	for _, wrong := range []string{"", "x", "AAAAAAAAAAAAAAAAAAAAAAAAAA", c.Value} {
		if w := post1(h, "/login", url.Values{"code": {wrong}}); w.Code != 403 {
			t.Errorf("code %q: %d", wrong, w.Code)
		}
	}
	if inside(h, &http.Cookie{Name: c.Name, Value: "wrong"}) || inside(h, &http.Cookie{Name: "other", Value: c.Value}) {
		t.Error("a wrong cookie opens")
	}
	forged := visit{"POST", "/login", code(t, l.Link("http://127.0.0.1:1")), func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }}
	if w := forged.to(h); w.Code != 403 || len(w.Result().Cookies()) != 0 {
		t.Errorf("a foreign page signs in: %d", w.Code)
	}
	rebound := visit{method: "GET", path: "/", edit: func(r *http.Request) { r.AddCookie(c); r.Host = "evil.example" }}
	if w := rebound.to(h); w.Code != http.StatusMisdirectedRequest {
		t.Errorf("a rebound name: %d", w.Code)
	}
	if w := (visit{"POST", "/logout", url.Values{}, with(c)}).to(h); w.Code != 303 || inside(h, c) {
		t.Errorf("after logout: %d", w.Code)
	}
}

func TestLoginEnds(t *testing.T) {
	l, clock, h := guarded()
	form := code(t, l.Link("http://127.0.0.1:9080"))
	clock.pass(loginTTL)
	if w := post1(h, "/login", form); w.Code != 403 {
		t.Errorf("a link after ten minutes: %d", w.Code)
	}
	c := signIn(t, l, h)
	clock.pass(sessionTTL - time.Second)
	if !inside(h, c) {
		t.Error("the session ended early")
	}
	clock.pass(time.Second)
	if inside(h, c) {
		t.Error("the session did not end")
	}
}

func TestLoginIsBounded(t *testing.T) {
	l, _, h := guarded()
	first := code(t, l.Link("http://127.0.0.1:1"))
	for range maxLogins {
		l.Link("http://127.0.0.1:1")
	}
	if w := post1(h, "/login", first); w.Code != 403 || len(l.links) != maxLogins {
		t.Errorf("the oldest link: %d, %d links", w.Code, len(l.links))
	}
	oldest := signIn(t, l, h)
	for range maxSessions {
		signIn(t, l, h)
	}
	if inside(h, oldest) || len(l.sessions) != maxSessions {
		t.Errorf("%d sessions", len(l.sessions))
	}
}

// One code, many hands: one session.
func TestLoginRace(t *testing.T) {
	l, _, h := guarded()
	form := code(t, l.Link("http://127.0.0.1:1"))
	var wins sync.Map
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			if post1(h, "/login", form).Code == 303 {
				wins.Store(i, true)
			}
		})
	}
	wg.Wait()
	n := 0
	wins.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d sessions of one code", n)
	}
}

// Requests that are under way end with their session: an event stream would
// show the owner's home for as long as somebody holds it.
func TestLogoutCutsStreams(t *testing.T) {
	for _, how := range []string{"logout", "too many"} {
		l := NewLogin(nil, nil)
		began := make(chan struct{})
		ended := make(chan struct{})
		h := l.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(began)
			<-r.Context().Done()
			close(ended)
		}))
		c := signIn(t, l, h)
		go visit{method: "GET", path: "/events", edit: with(c)}.to(h)
		<-began
		if how == "logout" {
			visit{"POST", "/logout", url.Values{}, with(c)}.to(h)
		} else {
			for range maxSessions {
				signIn(t, l, h)
			}
		}
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the stream goes on", how)
		}
	}
}

func TestLoginIsRecordedSparingly(t *testing.T) {
	c := &clock{at: when}
	var events []string
	l := NewLogin(c.now, func(event string, attrs ...slog.Attr) {
		if len(attrs) != 0 {
			t.Errorf("%s says too much: %v", event, attrs)
		}
		events = append(events, event)
	})
	h := l.Wrap(http.NotFoundHandler())
	for range 5 {
		post1(h, "/login", url.Values{"code": {"wrong"}})
	}
	c.pass(time.Minute)
	post1(h, "/login", url.Values{"code": {"wrong"}})
	signIn(t, l, h)
	if got := strings.Join(events, " "); got != "dashboard.login-failed dashboard.login-failed dashboard.login" {
		t.Errorf("recorded %s", got)
	}
}

func TestListenLoopback(t *testing.T) {
	l, err := ListenLoopback(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:9080", "example.org:9080", "9080", ""} {
		if l, err := ListenLoopback(t.Context(), addr); err == nil {
			l.Close()
			t.Errorf("%q: opened", addr)
		} else {
			wantError(t, err, Error{Code: CodeBadRequest, Message: "loopback only", Hint: "127.0.0.1"})
		}
	}
}

func TestDashboardSocket(t *testing.T) {
	dir := t.TempDir()
	l, err := ListenDashboard(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ListenDashboard(dir); err == nil {
		t.Fatal("opened twice")
	} else {
		wantError(t, err, Error{Code: CodeConflict, Message: "another relay"})
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	f := newFakeRelay()
	go func() { ended <- ServeDashboard(ctx, l, NewDashboard(f.config()), nil) }()
	res := overSocket(t, dir, "/events") // held open
	if res.StatusCode != 200 || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
		t.Errorf("%s %v", res.Status, res.Header)
	}
	page := overSocket(t, dir, "/")
	if body, err := io.ReadAll(page.Body); err != nil || !strings.Contains(string(body), "anna-phone") {
		t.Errorf("%s, %v", page.Status, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(res.Body); err != nil {
		t.Errorf("the event stream was torn: %v", err)
	}
}
