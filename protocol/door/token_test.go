package door

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/sallyport/sallyport/protocol/tunnel"
)

// tokenWorld is a world with tv.test, a token site to a home.
func tokenWorld(t testing.TB, home http.Handler, edit func(*Config)) *world {
	w := newWorld(t, edit)
	w.site("tv.test", Token, w.proxyTo(home, nil))
	w.token("tv.test", tv, Device{ID: "tv", Name: "tv"})
	return w
}

// echo answers with what reached home.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s\n", r.Method, r.RequestURI)
	r.Header.Write(w)
})

func get(target string, headers ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: tv.test\r\nConnection: close\r\n" + strings.Join(append(headers, ""), "\r\n") + "\r\n"
}

func TestTokenOpens(t *testing.T) {
	w := tokenWorld(t, echo, nil)
	for _, row := range []struct {
		name, request string
		want          []string // in what home got
		not           []string
	}{
		{"header", get("/a?b=c", "Authorization: Bearer "+tv), []string{"GET /a?b=c\n", "Sallyport-Device: tv\r\n"}, []string{"Authorization", "Remote-User"}},
		{"header, other case", get("/", "authorization: bEaReR  "+tv), []string{"GET /\n"}, []string{"Authorization"}},
		{"path", get("/" + tv + "/a/b?c=d;e"), []string{"GET /a/b?c=d;e\n", "Sallyport-Device: tv\r\n"}, []string{"Prefix"}},
		{"path, root", get("/" + tv + "/"), []string{"GET /\n"}, nil},
		{"path, empty query", get("/" + tv + "/?"), []string{"GET /?\n"}, nil},
		{"path, escapes", get("/" + tv + "/a%20b/%7E|x"), []string{"GET /a%20b/%7E|x\n"}, nil},
		{"path and another Authorization", get("/"+tv+"/", "Authorization: Bearer glsa_0123456789abcdef0123456789abcdef"), []string{"Authorization: Bearer glsa_"}, nil},
		{"path and Basic", get("/"+tv+"/", "Authorization: Basic YTpi"), []string{"Authorization: Basic YTpi"}, nil},
		{"both", get("/"+tv+"/x", "Authorization: Bearer "+tv), []string{"GET /x\n"}, []string{"Authorization"}},
		{
			"addresses", get("/"+tv+"/x", "Referer: https://tv.test/"+tv+"/y", "Destination: https://tv.test/"+tv+"/z", "X-Odd: "+strings.ToLower(tv), "X-Even: 2"),
			[]string{"Referer: https://tv.test/y\r\n", "Destination: https://tv.test/z\r\n", "X-Even: 2"},
			[]string{"X-Odd"},
		},
		{"no slash, a hook", strings.Replace(get("/"+tv, "Content-Length: 0"), "GET", "POST", 1), []string{"POST /\n"}, nil},
		{"spoofed identity", get("/"+tv+"/", "Sallyport-Device: anna", "Remote-User: anna", "Client-Cert: :eA==:"), []string{"Sallyport-Device: tv"}, []string{"anna", "Client-Cert"}},
	} {
		answer := w.raw("tv.test", nil, row.request)
		head, body, _ := strings.Cut(answer, "\r\n\r\n")
		if statusOf(answer) != 200 {
			t.Errorf("%s: %q", row.name, answer)
			continue
		}
		for _, want := range row.want {
			if !strings.Contains(body, want) {
				t.Errorf("%s: %q is missing at home: %s", row.name, want, body)
			}
		}
		for _, not := range append(row.not, tv, strings.ToLower(tv)) {
			if strings.Contains(body, not) {
				t.Errorf("%s: home got %q: %s", row.name, not, body)
			}
		}
		if strings.Count(head, "Referrer-Policy: no-referrer") != 1 || strings.Count(strings.ToLower(head), "referrer-policy") != 1 {
			t.Errorf("%s: referrers are not off: %s", row.name, head)
		}
	}
	// h2, and a certificate that nobody asked for
	for _, path := range []string{"/" + tv + "/x", "/x"} {
		req, _ := http.NewRequest("GET", "https://tv.test"+path, nil)
		if path == "/x" {
			req.Header.Set("Authorization", "Bearer "+tv)
		}
		res, err := w.client("tv.test", w.phone, true).Do(req)
		ok(t, err)
		body, _ := io.ReadAll(res.Body)
		if res.ProtoMajor != 2 || !strings.HasPrefix(string(body), "GET /x\n") || bytes.Contains(body, []byte(tv)) || bytes.Contains(body, []byte("Client-Cert")) {
			t.Errorf("%s: %s %s", path, res.Status, body)
		}
	}
}

// However a request fails to bring a good secret, the answer is the same to
// the byte, and home hears nothing.
func TestWithoutTokenThereIsOneUnknownPage(t *testing.T) {
	w := tokenWorld(t, hello, nil)
	w.token("tv.test", "REVOKEDREVOKEDREVOKEDREVOK", Device{ID: "revoked", Name: "old-tv"})
	w.token("tv.test", "EXPIREDEXPIREDEXPIREDEXPIR", Device{ID: "expired", Name: "guest", Until: time.Now().Add(-time.Second)})
	w.token("tv.test", "NAMELESSNAMELESSNAMELESSNA", Device{Name: "nameless"})
	w.token("tv.test", "APIAPIAPIAPIAPIAPIAPIAPIAP", Device{ID: "api", Name: "hook", Path: "/api/"})
	w.token("tv.test", "short", Device{ID: "short", Name: "short"})
	w.token("other.test", "OTHEROTHEROTHEROTHEROTHERO", Device{ID: "other", Name: "other"})
	w.denied["revoked"] = DeniedRevoked
	const wrong, api = "WRONGWRONGWRONGWRONGWRONGW", "APIAPIAPIAPIAPIAPIAPIAPIAP"
	date := regexp.MustCompile(`Date: [^\r]*\r\n`)
	var want string
	for _, row := range []struct{ name, request string }{
		{"nothing", get("/")},
		{"a path", get("/api/x")},
		{"favicon", get("/favicon.ico")},
		{"wrong header", get("/", "Authorization: Bearer "+wrong)},
		{"wrong path", get("/" + wrong + "/")},
		{"lower case", get("/" + strings.ToLower(tv) + "/")},
		{"one letter more", get("/" + tv + "V/")},
		{"one letter less", get("/" + tv[1:] + "/")},
		{"second segment", get("/x/" + tv + "/")},
		{"behind a double slash", get("//" + tv + "/")},
		{"behind a dot", get("/./" + tv + "/")},
		{"escaped", get("/%54" + tv[1:] + "/")},
		{"in the query", get("/?token=" + tv)},
		{"in a cookie", get("/", "Cookie: token="+tv)},
		{"as Basic", get("/", "Authorization: Basic "+tv)},
		{"without a scheme", get("/", "Authorization: "+tv)},
		{"in Proxy-Authorization", get("/", "Proxy-Authorization: Bearer "+tv)},
		{"in the second header", get("/", "Authorization: Basic YTpi", "Authorization: Bearer "+tv)},
		{"of another host", get("/OTHEROTHEROTHEROTHEROTHERO/")},
		{"revoked", get("/REVOKEDREVOKEDREVOKEDREVOK/")},
		{"expired", get("/", "Authorization: Bearer EXPIREDEXPIREDEXPIREDEXPIR")},
		{"of nobody", get("/NAMELESSNAMELESSNAMELESSNA/")},
		{"too short to be one", get("/", "Authorization: Bearer short")},
		{"TRACE", strings.Replace(get("/"+tv+"/"), "GET", "TRACE", 1)},
		{"star", strings.Replace(get("*"), "GET", "OPTIONS", 1)},
		{"a whole URL", get("https://tv.test/" + tv + "/")},
		{"fragment", get("/" + tv + "/#x")},
		{"no valid host", strings.Replace(get("/"+tv+"/"), "Host: tv.test", "Host: tv.test:", 1)},
		{"good, but the path is ambiguous", get("/" + tv + "/../x")},
		{"good, escaped dots", get("/" + tv + "/%2e%2e/x")},
		{"good, another host to many", get("/" + tv + "//evil.test/")},
		{"good, outside its path", get("/" + api + "/")},
		{"good, beside its path", get("/" + api + "/apix/")},
		{"good, without its slash", get("/" + api + "/api")},
		{"good, climbing out", get("/" + api + "/api/../x")},
		{"good, climbing out in disguise", get("/" + api + "/api/%2e%2e/x")},
		{"good, twice encoded", get("/" + api + "/api/%252e%252e/x")},
		{"good, backslash", get("/" + api + `/api/..\x`)},
		{"good, encoded slash", get("/"+api+"/api/..%2fx", "X-A: b")},
		{"good, path parameters", get("/" + api + "/api/..;/x")},
		{"good, encoded prefix", get("/" + api + "/%61pi/x")},
		{"header, outside its path", get("/x", "Authorization: Bearer "+api)},
		{"header, climbing out", get("/api/../x", "Authorization: Bearer "+api)},
		{"good, moves a file out", get("/"+api+"/api/x", "Destination: https://tv.test/"+api+"/y")},
		{"good, moves a file elsewhere", get("/"+api+"/api/x", "Destination: https://other.test/api/y")},
		{"good, moves a file out in disguise", get("/"+api+"/api/x", "Destination: /api/%2e%2e/y")},
		{"good, no slash, outside its path", get("/" + api)},
	} {
		w.door.guesses = newGuesses() // TestGuessesAreLimited
		before := w.reached()
		answer := date.ReplaceAllString(w.raw("tv.test", nil, row.request), "")
		if want == "" {
			want = answer
		}
		if statusOf(answer) != 404 || answer != want || w.reached() != before {
			t.Errorf("%s: home was reached %d times, %q", row.name, w.reached()-before, answer)
		}
	}
	if strings.Contains(want, "tv") || !strings.Contains(want, "Referrer-Policy: no-referrer") {
		t.Errorf("the page says too much: %s", want)
	}
	for _, target := range []string{"/" + api + "/api/", "/" + api + "/api/x?y"} {
		if answer := w.raw("tv.test", nil, get(target)); statusOf(answer) != 200 {
			t.Errorf("%s: %q", target, answer)
		}
	}
	if answer := w.raw("tv.test", nil, get("/"+api+"/api/x", "Destination: https://tv.test/"+api+"/api/y")); statusOf(answer) != 200 {
		t.Errorf("a file moves within the path: %q", answer)
	}
	if answer := w.raw("tv.test", nil, strings.Replace(get("/"+tv+"/"), "tv.test", "pub.test", 1)); statusOf(answer) != 421 {
		t.Errorf("another host: %q", answer)
	}
}

// A token site cannot be had without what it needs.
func TestTokenSiteIsHTTPWithACheck(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.CheckToken = nil })
	w.site("tv.test", Token, hello)
	if err := w.handshake(w.clientTLS("tv.test", nil)); alertOf(err) != "unrecognized name" {
		t.Error("without CheckToken:", err)
	}
	w = newWorld(t, nil)
	w.rawSite("tv.test", Token, func(context.Context, tunnel.Conn, Visitor) { t.Error("reached") })
	if err := w.handshake(w.clientTLS("tv.test", nil)); alertOf(err) != "unrecognized name" {
		t.Error("raw:", err)
	}
}

func TestTokenSiteAsksForNoCertificate(t *testing.T) {
	w := tokenWorld(t, hello, nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		c := w.clientTLS("tv.test", nil)
		c.MaxVersion = version
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			t.Error("a certificate was asked for")
			return w.phone, nil
		}
		if err := w.handshake(c); err != nil {
			t.Error(tls.VersionName(version), err)
		}
	}
}

func TestTokenPathIsPutBack(t *testing.T) {
	pages := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Referrer-Policy", "unsafe-url")
		rw.Header().Set("Content-Location", "/doc")
		rw.Header().Set("Refresh", "5; url=/later")
		http.SetCookie(rw, &http.Cookie{Name: "s", Value: "1", Path: "/"})
		if r.Header.Get("Early") != "" {
			rw.Header().Set("Link", "</style.css>; rel=preload")
			rw.WriteHeader(http.StatusEarlyHints)
			rw.Header().Del("Link")
		}
		rw.Header().Set("Location", r.Header.Get("To"))
		rw.WriteHeader(http.StatusFound)
	})
	w := tokenWorld(t, pages, nil)
	w.site("paths.test", Token, NewPaths(map[string]http.Handler{"/lamp/": w.proxyTo(pages, func(b *Backend) { b.Prefix = "/lamp/" })}))
	w.token("paths.test", tv, Device{ID: "tv", Name: "tv"})
	const p = "/" + tv
	for _, row := range []struct{ host, target, to, want, doc, later, cookie string }{
		{"tv.test", p + "/a/b", "/login?next=/x", p + "/login?next=/x", p + "/doc", p + "/later", p + "/"},
		{"tv.test", p + "/a/b", "https://tv.test/login", p + "/login", p + "/doc", p + "/later", p + "/"},
		{"tv.test", p + "/a/b", "../../../up", p + "/up", p + "/doc", p + "/later", p + "/"},
		{"tv.test", p + "/a/b", "c", "c", p + "/doc", p + "/later", p + "/"},
		{"tv.test", p + "/a/b", "https://other.test/x", "https://other.test/x", p + "/doc", p + "/later", p + "/"},
		{"tv.test", "/a/b", "/login", "/login", "/doc", "/later", "/"}, // by header
		{"paths.test", p + "/lamp/a", "/login", p + "/lamp/login", p + "/lamp/doc", p + "/lamp/later", p + "/lamp/"},
		{"paths.test", p + "/lamp/a", "/lamp/login", p + "/lamp/login", p + "/lamp/doc", p + "/lamp/later", p + "/lamp/"},
		{"paths.test", p + "/lamp/a", "../../up", p + "/lamp/up", p + "/lamp/doc", p + "/lamp/later", p + "/lamp/"},
		{"paths.test", p + "/lamp", "", p + "/lamp/", "", "", ""},
		{"paths.test", p, "", p + "/", "", "", ""},
		{"tv.test", p + "?x=1", "", p + "/?x=1", "", "", ""},
	} {
		for _, h2 := range []bool{false, true} {
			for _, early := range []string{"", "yes"} {
				req, _ := http.NewRequest("GET", "https://"+row.host+row.target, nil)
				req.Header.Set("To", row.to)
				if early != "" {
					req.Header.Set("Early", early)
				}
				if !strings.HasPrefix(row.target, p) {
					req.Header.Set("Authorization", "Bearer "+tv)
				}
				res, err := w.client(row.host, nil, h2).Do(req)
				ok(t, err)
				res.Body.Close()
				got := res.Header
				cookie := ""
				if c := res.Cookies(); len(c) > 0 {
					cookie = c[0].Path
				}
				if later := strings.TrimPrefix(got.Get("Refresh"), "5; url="); got.Get("Location") != row.want || got.Get("Content-Location") != row.doc || later != row.later || cookie != row.cookie {
					t.Errorf("%s%s to %q: %v", row.host, row.target, row.to, got)
				}
				if all := got.Values("Referrer-Policy"); len(all) != 1 || all[0] != "no-referrer" {
					t.Errorf("%s%s: Referrer-Policy %q", row.host, row.target, all)
				}
			}
		}
	}
	// What a browser preloads on a 103 must not say where it was asked for.
	answer := w.raw("tv.test", nil, get(p+"/", "Early: yes", "To: /"))
	early, _, _ := strings.Cut(answer, "\r\n\r\n")
	if !strings.Contains(early, " 103 ") || !strings.Contains(early, "Referrer-Policy: no-referrer") || strings.Contains(early, "unsafe-url") {
		t.Errorf("early hints: %q", early)
	}
}

// liveByToken opens a WebSocket and event streams with a secret, by path and by
// header, and returns functions that say how long after `since` each ended.
func (w *world) liveByToken(host, secret string) map[string]func(since time.Time) time.Duration {
	t := w.t
	all := map[string]func(time.Time) time.Duration{}
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	t.Cleanup(cancel)
	for _, how := range []string{"path", "header"} {
		path, header := "/"+secret, http.Header{}
		if how == "header" {
			path = ""
			header.Set("Authorization", "Bearer "+secret)
		}
		ws, _, err := websocket.Dial(ctx, "wss://"+host+path+"/ws", &websocket.DialOptions{
			HTTPClient: &http.Client{Transport: w.client(host, nil, false).Transport}, HTTPHeader: header,
		})
		ok(t, err)
		ok(t, ws.Write(ctx, websocket.MessageText, []byte("ping")))
		if _, msg, err := ws.Read(ctx); string(msg) != "ping" {
			t.Fatalf("echo: %q %v", msg, err)
		}
		all["websocket by "+how] = func(since time.Time) time.Duration {
			if _, _, err := ws.Read(ctx); ctx.Err() != nil {
				t.Error("websocket:", err)
			}
			return time.Since(since)
		}
		for name, h2 := range map[string]bool{"h1": false, "h2": true} {
			c := w.client(host, nil, h2)
			c.Timeout = 0
			req, _ := http.NewRequest("GET", "https://"+host+path+"/sse", nil)
			req.Header = header
			res, err := c.Do(req)
			ok(t, err)
			if line, err := bufio.NewReader(res.Body).ReadString('\n'); line != "data: first\n" {
				t.Fatalf("%s: %q %v", name, line, err)
			}
			all["sse "+name+" by "+how] = func(since time.Time) time.Duration { return ended(t, res.Body, since) }
		}
	}
	return all
}

func TestTokenConnectionsEnd(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(w *world){
		"revoked": func(w *world) {
			w.deny1("tv", DeniedRevoked)
			if n := w.door.Disconnect("tv"); n != 6 {
				w.t.Errorf("Disconnect counted %d", n)
			}
		},
		"rights changed": func(w *world) {
			w.deny1("tv", DeniedHost)
			w.door.Recheck()
		},
		"path changed": func(w *world) {
			w.token("tv.test", tv, Device{ID: "tv", Name: "tv", Path: "/api/"})
			w.door.Recheck()
		},
		"secret replaced": func(w *world) {
			w.set(func() { clear(w.tokens) })
			w.token("tv.test", "NEWNEWNEWNEWNEWNEWNEWNEWNE", Device{ID: "tv", Name: "tv"})
			w.door.Recheck()
		},
		"shortened": func(w *world) { // and nobody asks again
			w.token("tv.test", tv, Device{ID: "tv", Name: "tv", Until: time.Now().Add(200 * time.Millisecond)})
			w.door.Recheck()
		},
		"site gone": func(w *world) {
			w.setSite("tv.test", nil)
			w.door.Recheck()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := tokenWorld(t, lively(), nil)
			connections := w.liveByToken("tv.test", tv)
			w.door.Recheck() // everything stands
			since := time.Now()
			cut(w)
			for kind, wait := range connections {
				if d := wait(since); d > time.Second {
					t.Errorf("%s lived for %v", kind, d)
				}
			}
			w.door.Close()
			if len(w.door.byDevice) != 0 {
				t.Error("the index still holds", w.door.byDevice)
			}
		})
	}
}

func (w *world) deny1(id, denial string) { w.set(func() { w.denied[id] = denial }) }

func TestTokenEndsByItself(t *testing.T) {
	t.Parallel()
	w := tokenWorld(t, lively(), nil)
	until := time.Now().Add(2 * time.Second)
	w.token("tv.test", tv, Device{ID: "tv", Name: "tv", Until: until})
	for kind, wait := range w.liveByToken("tv.test", tv) {
		if d := wait(until); d > time.Second || d < -10*time.Millisecond {
			t.Errorf("%s ended %v after its time", kind, d)
		}
	}
	if answer := w.raw("tv.test", nil, get("/"+tv+"/")); statusOf(answer) != 404 {
		t.Errorf("%q", answer)
	}
}

// Several secrets on one connection: revoking any of them ends it, and each
// request has the rights of its own.
func TestSeveralTokensOnAConnection(t *testing.T) {
	const radio = "RADIORADIORADIORADIORADIOR"
	for _, gone := range []string{"tv", "radio"} {
		seen := map[string]int{}
		var mu sync.Mutex
		w := tokenWorld(t, lively(), func(c *Config) {
			c.Seen = func(id string) { mu.Lock(); defer mu.Unlock(); seen[id]++ }
		})
		w.site("tv.test", Token, w.proxyTo(echo, nil))
		w.token("tv.test", radio, Device{ID: "radio", Name: "radio"})
		conn, err := w.dial(w.clientTLS("tv.test", nil, "http/1.1"))
		ok(t, err)
		br := bufio.NewReader(conn)
		for range 3 {
			for name, secret := range map[string]string{"tv": tv, "radio": radio} {
				io.WriteString(conn, "GET /"+secret+"/ HTTP/1.1\r\nHost: tv.test\r\n\r\n")
				res, err := http.ReadResponse(br, nil)
				ok(t, err)
				body, _ := io.ReadAll(res.Body)
				if !strings.Contains(string(body), "Sallyport-Device: "+name+"\r\n") {
					t.Errorf("home took %s for another: %s", name, body)
				}
			}
		}
		mu.Lock()
		if seen["tv"] != 1 || seen["radio"] != 1 {
			t.Errorf("seen %v", seen)
		}
		mu.Unlock()
		since := time.Now()
		w.deny1(gone, DeniedRevoked)
		if n := w.door.Disconnect(gone); n != 1 {
			t.Errorf("Disconnect counted %d", n)
		}
		if d := ended(t, conn, since); d > time.Second {
			t.Errorf("lived for %v", d)
		}
	}
}

// Revoked between the check and the index: nobody slips through.
func TestTokenRevokedBetweenCheckAndIndex(t *testing.T) {
	var w *world
	var once sync.Once
	w = tokenWorld(t, hello, func(c *Config) {
		check := c.CheckToken
		c.CheckToken = func(host, secret string, now time.Time) (Device, string) {
			d, denial := check(host, secret, now)
			once.Do(func() {
				w.deny1("tv", DeniedRevoked)
				w.door.Disconnect("tv")
			})
			return d, denial
		}
	})
	if answer := w.raw("tv.test", nil, get("/"+tv+"/")); statusOf(answer) != 404 || w.reached() != 0 {
		t.Errorf("%q", answer)
	}
}

// Every request is judged: also the second one on a connection.
func TestEveryTokenRequestIsAuthorised(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		w := tokenWorld(t, hello, nil)
		c := w.client("tv.test", nil, h2)
		for _, want := range []int{200, 404} {
			res, err := c.Get("https://tv.test/" + tv + "/")
			ok(t, err)
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode != want {
				t.Errorf("h2 %v: %d, want %d", h2, res.StatusCode, want)
			}
			w.deny1("tv", DeniedRevoked)
		}
		// A good request opens the door for nobody else on its connection.
		w.deny1("tv", "")
		c = w.client("tv.test", nil, h2)
		for path, want := range map[string]int{"/" + tv + "/": 200, "/": 404} {
			res, err := c.Get("https://tv.test" + path)
			ok(t, err)
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode != want {
				t.Errorf("h2 %v %s: %d, want %d", h2, path, res.StatusCode, want)
			}
		}
	}
}

// The log at its loudest, the audit log, pages and what home gets never hold a
// secret, good or bad.
func TestTokenIsWrittenNowhere(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	loud := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w := tokenWorld(t, lively(), func(c *Config) {
		c.Logger = loud
		c.Audit = func(event string, attrs ...slog.Attr) { fmt.Fprintln(&log, "audit", event, attrs) }
	})
	const wrong, revoked, down = "WRONGWRONGWRONGWRONGWRONGW", "REVOKEDREVOKEDREVOKEDREVOK", "DOWNDOWNDOWNDOWNDOWNDOWNDO"
	w.token("tv.test", revoked, Device{ID: "revoked", Name: "old-tv"})
	w.deny1("revoked", DeniedRevoked)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	dead.Close()
	proxy := w.proxyAddr(dead.Addr().String(), nil)
	proxy.log = loud
	w.site("down.test", Token, proxy)
	w.token("down.test", down, Device{ID: "down", Name: "down"})
	w.site("boom.test", Token, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") }))
	w.token("boom.test", down, Device{ID: "down", Name: "down"})
	var answers strings.Builder
	for _, secret := range []string{tv, wrong, revoked, down} {
		w.door.guesses = newGuesses()
		for _, host := range []string{"tv.test", "down.test", "boom.test"} {
			for _, request := range []string{
				get("/" + secret + "/"), get("/" + secret + "/a;b?c;d"), get("/" + secret + "/../x"), get("/", "Authorization: Bearer "+secret),
				get("/"+secret+"/", "Referer: https://tv.test/"+secret+"/"), "GET /" + secret + "/ HTTP/1.1\r\nHost: tv.test\r\nX y: z\r\n\r\n",
				"GET /" + secret + "/ HTTP/9.9\r\nHost: tv.test\r\n\r\n", "POST /" + secret + "/ HTTP/1.1\r\nHost: tv.test\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
				"GET /" + secret + "/ HTTP/1.1\r\nHost: other.test\r\n\r\n",
			} {
				answers.WriteString(w.raw(host, nil, strings.ReplaceAll(request, "tv.test", host)))
			}
			w.h2(host, nil, map[string]string{":path": "/" + secret + "/"})
		}
	}
	for _, wait := range w.liveByToken("tv.test", tv) {
		w.door.Disconnect("tv")
		wait(time.Now())
	}
	for range 30 {
		w.raw("tv.test", nil, get("/"+wrong+"/"))
	}
	w.door.Close()
	text := log.String() + answers.String()
	for _, secret := range []string{tv, wrong, revoked, down} {
		if i := strings.Index(strings.ToUpper(text), secret); i >= 0 {
			t.Errorf("it was written: …%s", text[max(0, i-200):min(len(text), i+200)])
		}
	}
	for _, line := range []string{"msg=request", "device=tv", "visit ended", "backend failed", "audit device.refused", "audit token.guessing", "device=old-tv"} {
		if !strings.Contains(text, line) {
			t.Errorf("the log should have %q", line)
		}
	}
}

// syncBuffer is a buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
