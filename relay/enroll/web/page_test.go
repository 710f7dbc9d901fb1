package web

import (
	"bytes"
	"compress/gzip"
	"io/fs"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

func logTo(b *bytes.Buffer) *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

func TestNewRefuses(t *testing.T) {
	good := newWorld(t).cfg
	for name, spoil := range map[string]func(*Config){
		"no domain": func(c *Config) { c.Domain = "" },
		"no desk":   func(c *Config) { c.Desk = nil },
		"no CA":     func(c *Config) { c.CA = nil },
		"no renew":  func(c *Config) { c.Renew = nil },
		"no source": func(c *Config) { c.Source = nil },
	} {
		cfg := good
		spoil(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestHeaders: whatever is asked, on whichever host, no answer lets foreign
// script in, stays in a cache, or tells the next site where it came from.
func TestHeaders(t *testing.T) {
	w := newWorld(t)
	w.device = w.newDevice("anna-phone", 1000*hour)
	for name, h := range map[string]http.Handler{"enroll": w.pages.Enroll(), "check": w.check()} {
		for _, target := range []string{"/", "/renew", "/nowhere", "/api/nowhere", "/api/requests/x", "/root.crt", "/assets/x/y.js", "/profile"} {
			got := call(h, "GET", target, "").Header()
			for key, want := range map[string]string{
				"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer",
				"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
			} {
				if got.Get(key) != want {
					t.Errorf("%s %s: %s is %q", name, target, key, got.Get(key))
				}
			}
		}
	}
	for _, want := range []string{
		"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:",
		"form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'", "require-trusted-types-for 'script'",
	} {
		if !strings.Contains(policy, want) {
			t.Errorf("the policy lacks %q", want)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
		t.Errorf("policy %q", policy)
	}
}

// addresses are what the page makes a browser load.
var addresses = regexp.MustCompile(`(?:src|href)="(/assets/[^"]+)"`)

// TestBudget: the enrolment page with everything that it loads.
func TestBudget(t *testing.T) {
	h := newWorld(t, func(c *Config) { c.Open = true }).pages.Enroll()
	page := call(h, "GET", "/", "", "Accept-Encoding", "br, gzip")
	if page.Header().Get("Content-Encoding") != "gzip" {
		t.Fatalf("the page comes unpacked: %v", page.Header())
	}
	sum := page.Body.Len()
	plain, err := gzip.NewReader(page.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := addresses.FindAllStringSubmatch(readAllOf(t, plain), -1)
	loaded := map[string]bool{}
	for _, m := range found {
		asset := call(h, "GET", m[1], "", "Accept-Encoding", "gzip")
		if cc := asset.Header().Get("Cache-Control"); asset.Code != 200 || !strings.Contains(cc, "immutable") {
			t.Errorf("%s: %d, %q", m[1], asset.Code, cc)
		}
		sum += asset.Body.Len()
		loaded[m[1][strings.LastIndex(m[1], "/")+1:]] = true
	}
	// What scripts import must be announced, or it is not counted here.
	imports := regexp.MustCompile(`from '\./([^']+)'`)
	for name := range loaded {
		src, _ := files.ReadFile("assets/" + name)
		for _, m := range imports.FindAllSubmatch(src, -1) {
			if !loaded[string(m[1])] {
				t.Errorf("%s imports %s, which the page does not announce", name, m[1])
			}
		}
	}
	t.Logf("%d files, %d bytes packed", len(loaded)+1, sum)
	if sum > 25<<10 || len(loaded) < 5 {
		t.Errorf("%d files, %d bytes packed: at most 25 KiB", len(loaded)+1, sum)
	}
}

// TestNoMarkupFromText: scripts never make markup or code of strings, and no
// page carries a script or style of its own that the policy would refuse.
func TestNoMarkupFromText(t *testing.T) {
	banned := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc|setAttribute\('on|javascript:|localStorage|sessionStorage|indexedDB|https?://`)
	inline := regexp.MustCompile(`<script[^>]*>[^<]|\son[a-z]+=|\sstyle=`)
	err := fs.WalkDir(files, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		src, err := files.ReadFile(path)
		if strings.HasSuffix(path, ".js") && banned.Match(src) {
			t.Errorf("%s uses %q", path, banned.Find(src))
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

func TestAssets(t *testing.T) {
	w := newWorld(t)
	h := w.pages.Enroll()
	base := w.pages.assets.base()
	if rec := call(h, "GET", base+"style.css", ""); rec.Code != 200 || rec.Header().Get("Content-Type") != "text/css; charset=utf-8" ||
		rec.Header().Get("Content-Encoding") != "" || !strings.Contains(rec.Body.String(), ":root") {
		t.Errorf("style: %d %v", rec.Code, rec.Header())
	}
	if rec := call(h, "HEAD", base+"enroll.js", ""); rec.Code != 200 || rec.Body.Len() != 0 || rec.Header().Get("Content-Type") != "text/javascript; charset=utf-8" {
		t.Errorf("HEAD: %d %v", rec.Code, rec.Header())
	}
	// A file of another version would be cached for ever under this one's name.
	for _, target := range []string{"/assets/0000000000000000/style.css", base + "nothing.js", base + "..%2fpages%2fnote.html", base} {
		if rec := call(h, "GET", target, ""); rec.Code != 404 || strings.Contains(rec.Header().Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %d %q", target, rec.Code, rec.Header().Get("Cache-Control"))
		}
	}
}

// TestNothingIsUsedUpByLooking: messengers fetch links to preview them.
func TestNothingIsUsedUpByLooking(t *testing.T) {
	w := newWorld(t)
	for _, method := range []string{"GET", "HEAD"} {
		for _, target := range []string{"/", "/profile", "/api/code", "/api/requests"} {
			call(w.pages.Enroll(), method, target, "")
		}
	}
	if w.desk.looked != 0 || len(w.desk.requests) != 0 {
		t.Error("a GET reached the desk")
	}
}
