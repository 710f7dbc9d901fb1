package door

import (
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"
)

// named answers with its name and what it was asked for.
func (w *world) named(name, prefix string) http.Handler {
	return w.proxyTo(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, name+" "+r.RequestURI+" "+r.Header.Get("X-Forwarded-Prefix"))
	}), func(b *Backend) { b.Prefix = prefix })
}

func TestPaths(t *testing.T) {
	w := newWorld(t, nil)
	w.site("geek.test", None, NewPaths(map[string]http.Handler{
		"/livinglamp/":      w.named("lamp", "/livinglamp/"),
		"/livinglamp/deep/": w.named("deep", "/livinglamp/deep/"),
		"/tv/":              w.named("tv", "/tv/"),
	}))
	w.site("both.test", None, NewPaths(map[string]http.Handler{
		"/x/": w.named("x", "/x/"),
		"/":   w.named("rest", "/"),
	}))
	for _, row := range []struct {
		host, target string
		status       int
		body         string // or Location
	}{
		{"geek.test", "/livinglamp/", 200, "lamp / /livinglamp"},
		{"geek.test", "/livinglamp/on?x=1;y=%zz", 200, "lamp /on?x=1;y=%zz /livinglamp"},
		{"geek.test", "/livinglamp/deep/er", 200, "deep /er /livinglamp/deep"},
		{"geek.test", "/livinglamp/deeper", 200, "lamp /deeper /livinglamp"},
		{"geek.test", "/livinglamp/a%20b/%7E|x", 200, "lamp /a%20b/%7E|x /livinglamp"},
		{"geek.test", "/livinglamp/a//b", 200, "lamp /a//b /livinglamp"},
		{"geek.test", "/livinglamp/...", 200, "lamp /... /livinglamp"},
		{"geek.test", "/livinglamp/a..b", 200, "lamp /a..b /livinglamp"},
		{"geek.test", "/livinglamp/50%25", 200, "lamp /50%25 /livinglamp"},
		{"geek.test", "/livinglamp", 307, "/livinglamp/"},
		{"geek.test", "/livinglamp?a=b", 307, "/livinglamp/?a=b"},
		{"geek.test", "/livinglamp/deep", 307, "/livinglamp/deep/"},
		{"geek.test", "/livinglampx", 404, ""},
		{"geek.test", "/", 404, ""},
		{"geek.test", "/LIVINGLAMP/", 404, ""},
		{"geek.test", "/livinglamp/../tv/", 400, ""},
		{"geek.test", "/livinglamp/..", 400, ""},
		{"geek.test", "/livinglamp/%2e%2e/tv/", 400, ""},
		{"geek.test", "/livinglamp/%2E./tv/", 400, ""},
		{"geek.test", "/livinglamp/..%2ftv/", 400, ""},
		{"geek.test", "/livinglamp/..%5ctv/", 400, ""},
		{"geek.test", "/livinglamp/..\\tv/", 400, ""},
		{"geek.test", "/livinglamp/a%2Fb", 400, ""},
		{"geek.test", "/livinglamp%2f", 400, ""},
		{"geek.test", "/livinglamp/%00", 400, ""},
		{"geek.test", "/livinglamp/a%0d%0ab", 400, ""},
		{"geek.test", "/livinglamp//evil.test/", 400, ""},
		{"geek.test", "//livinglamp/", 400, ""},
		{"geek.test", "/livinglamp/./x", 400, ""},
		{"geek.test", "/livinglamp/..;/tv/", 400, ""},
		{"geek.test", "/livinglamp/%252e%252e/tv/", 400, ""},
		{"geek.test", "/livinglamp/..%252ftv", 400, ""},
		{"geek.test", "/livinglamp/..%255ctv", 400, ""},
		{"geek.test", "/livinglamp/%c0%ae%c0%ae/tv/", 400, ""},
		{"geek.test", "/livinglam%70/", 400, ""},
		{"geek.test", "/tv/../livinglamp/", 400, ""},
		{"both.test", "/x/1", 200, "x /1 /x"},
		{"both.test", "/y", 200, "rest /y "},
		{"both.test", "/%78/1", 400, ""},
		{"both.test", "/y/../x/1", 400, ""},
		{"both.test", "/xy", 200, "rest /xy "},
	} {
		before := w.reached()
		answer := w.raw(row.host, nil, "GET "+row.target+" HTTP/1.1\r\nHost: "+row.host+"\r\nConnection: close\r\n\r\n")
		head, body, _ := strings.Cut(answer, "\r\n\r\n")
		switch got := statusOf(answer); {
		case got != row.status:
			t.Errorf("%s: %d, want %d: %s", row.target, got, row.status, body)
		case got == 200 && body != row.body:
			t.Errorf("%s: %q, want %q", row.target, body, row.body)
		case got == 307 && !strings.Contains(head+"\r\n", "\r\nLocation: "+row.body+"\r\n"):
			t.Errorf("%s: %s", row.target, head)
		case got != 200 && w.reached() != before:
			t.Errorf("%s: home was reached", row.target)
		}
	}
}

func TestMapBack(t *testing.T) {
	const prefix = "/lamp/"
	urls := map[string]string{
		"/":                            "/lamp/",
		"/login?next=/x#y":             "/lamp/login?next=/x#y",
		"/lamp/login":                  "/lamp/login", // a backend that knows its prefix
		"/lamp":                        "/lamp",
		"/lampshade":                   "/lamp/lampshade",
		"login":                        "login",
		"?a=b":                         "?a=b",
		"../up":                        "/lamp/up",
		"../../../up?x":                "/lamp/up?x",
		"http://geek.test/a":           "/lamp/a",
		"https://GEEK.test:8443/a?b#c": "/lamp/a?b#c",
		"https://geek.test":            "/lamp/",
		"https://geek.test?x":          "/lamp/?x",
		"//geek.test/a":                "/lamp/a",
		"https://other.test/a":         "https://other.test/a",
		"//other.test/a":               "//other.test/a",
		"/../x":                        "/lamp/x",
		"/a/../../x?b=/../c#/../d":     "/lamp/x?b=/../c#/../d",
		"/lamp/../x":                   "/lamp/x",
		"/lamp/./y/..":                 "/lamp/",
		"/.%2E/x":                      "/lamp/x",
		"/..\\..\\x":                   "/lamp/x",
		"%2e%2e/%2e%2e/x":              "/lamp/x",
		"https://geek.test/../a":       "/lamp/a",
		"/a//../b/.":                   "/lamp/a/b/",
		"/..a/...":                     "/lamp/..a/...",
		"mailto:x@y":                   "mailto:x@y",
		"ftp://geek.test/a":            "ftp://geek.test/a",
		"https://u@geek.test/a":        "https://u@geek.test/a",
		"/a%2Fb|c;d":                   "/lamp/a%2Fb|c;d",
		"":                             "",
		"%zz":                          "%zz",
	}
	for in, want := range urls {
		if got := mapURL(in, prefix, "/dir/page", "geek.test:443"); got != want {
			t.Errorf("Location %q → %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"5; url=/x": "5; url=/lamp/x", "0;URL='/x'": "0; url='/lamp/x'", `3, url="/x"`: `3; url="/lamp/x"`, "5": "5", "5; url=http://o.test/": "5; url=http://o.test/",
		"5; /y": "5; url=/lamp/y", "5;/y": "5; url=/lamp/y", "5,/y": "5; url=/lamp/y", "5 /y": "5; url=/lamp/y", "5 ; '/y' x": "5; url='/lamp/y'", `0;url="/y`: `0; url="/lamp/y"`,
		"5;": "5;", "5; y": "5; y", "5; url": "5; url", "/y": "/y", "5x; /y": "5x; /y", "": "", "0; url = /y ": "0; url=/lamp/y",
	} {
		if got := mapRefresh(in, prefix, "/", "geek.test"); got != want {
			t.Errorf("Refresh %q → %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"a=b; Path=/; Secure":   "a=b; Path=/lamp/; Secure",
		"a=b; path=/sub":        "a=b; path=/lamp/sub",
		"a=b":                   "a=b",
		"a=b; Path=/lamp/":      "a=b; Path=/lamp/",
		"Path=/x; HttpOnly":     "Path=/x; HttpOnly", // a cookie called Path
		"__Host-a=b; Path=/":    "__Host-a=b; Path=/",
		"a=b; Path=x; SameSite": "a=b; Path=x; SameSite",
	} {
		if got := mapCookie(in, prefix); got != want {
			t.Errorf("Set-Cookie %q → %q, want %q", in, got, want)
		}
	}
}

func TestMapBackOnTheWire(t *testing.T) {
	w := newWorld(t, nil)
	w.site("geek.test", None, NewPaths(map[string]http.Handler{"/lamp/": w.proxyTo(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Location", "/doc")
		http.SetCookie(rw, &http.Cookie{Name: "s", Value: "1", Path: "/"})
		http.Redirect(rw, r, "http://"+r.Host+"/login?x=1;2", http.StatusFound)
	}), func(b *Backend) { b.Prefix = "/lamp/" })}))
	res, err := w.client("geek.test", nil, true).Get("https://geek.test/lamp/")
	ok(t, err)
	res.Body.Close()
	for k, want := range map[string]string{"Location": "/lamp/login?x=1;2", "Content-Location": "/lamp/doc", "Set-Cookie": "s=1; Path=/lamp/"} {
		if got := res.Header.Get(k); got != want {
			t.Errorf("%s: %q, want %q", k, got, want)
		}
	}
}

// However a path is read, below the prefix it stays below.
func FuzzPathNeverLeavesPrefix(f *testing.F) {
	for _, s := range []string{"/lamp/", "/lamp/../x", "/lamp/%2e%2e/x", "/lamp/..%2fx", "/lamp/..\\x", "/lamp//x", "/lamp/%252e%252e%252fx", "/lamp/..;/x", "/lamp/a/b|c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || u.Host != "" || u.Opaque != "" {
			return
		}
		raw := rawPath(u)
		rest, refusal := stripPrefix(u.Path, raw, "/lamp/")
		if refusal != nil {
			return
		}
		if "/lamp"+rest != raw || !strings.HasPrefix(rest, "/") || strings.HasPrefix(rest, "//") {
			t.Fatalf("%q: judged %q, forwards %q", target, raw, rest)
		}
		// Readers that decode up to twice, take backslashes for slashes and drop
		// path parameters.
		seen := raw
		for range 3 {
			normal := strings.ReplaceAll(seen, "\\", "/")
			var segments []string
			for s := range strings.SplitSeq(normal, "/") {
				name, _, _ := strings.Cut(s, ";")
				segments = append(segments, name)
			}
			if clean := path.Clean(strings.Join(segments, "/")) + "/"; !strings.HasPrefix(clean, "/lamp/") {
				t.Fatalf("%q: a reader sees %q", target, clean)
			}
			decoded, err := url.PathUnescape(seen)
			if err != nil {
				return
			}
			seen = decoded
		}
	})
}
