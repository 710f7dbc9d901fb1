package lan

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/protocol/door"
)

// helped is a LAN that is reached at 192.168.1.7:8443 and has one connection
// from 192.168.1.20:5000.
func helped(t *testing.T, c Config) (l *LAN, indoors door.Visitor) {
	t.Helper()
	c.Ours = func(host string) bool { return host == "ha.example.org" || strings.HasSuffix(host, "."+own) }
	l = newLAN(t, c)
	l.view.Store(&view{port: 8443, addrs: addrs("192.168.1.7", "fd00::7")})
	conn := &fakeConn{remote: netip.MustParseAddrPort("192.168.1.20:5000")}
	l.guests.admit(conn, pairOf(conn))
	return l, door.Visitor{
		Device: &door.Device{ID: "d"}, Remote: conn.remote, Local: netip.MustParseAddrPort("192.168.1.7:8443"), Host: "ha.example.org",
	}
}

// ask sends a request that came through a door; headers are in pairs.
func ask(l *LAN, v door.Visitor, method, path string, headers ...string) *http.Response {
	r := httptest.NewRequest(method, "https://ha.example.org"+path, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	l.Helper().ServeHTTP(w, r.WithContext(door.WithVisitor(r.Context(), v)))
	return w.Result()
}

func decode(t *testing.T, r *http.Response) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
		t.Fatalf("status %d: %v", r.StatusCode, err)
	}
	return m
}

func TestJSON(t *testing.T) {
	l, indoors := helped(t, Config{Name: "attic"})
	outdoors := indoors
	outdoors.Remote, outdoors.Local = netip.MustParseAddrPort("203.0.113.9:5000"), netip.MustParseAddrPort("198.51.100.1:443")
	for what, c := range map[string]struct {
		v    door.Visitor
		here bool
	}{"indoors": {indoors, true}, "outdoors": {outdoors, false}} {
		r := ask(l, c.v, "GET", "/.well-known/sallyport/lan.json")
		got := decode(t, r)
		want := map[string]any{"schema": 1.0, "name": "attic", "here": c.here}
		urls, _ := got["urls"].([]any)
		delete(got, "urls")
		if !maps.Equal(got, want) || len(urls) != 2 || urls[0] != "https://192-168-1-7."+own+":8443" {
			t.Errorf("%s: %v %v, want %v", what, got, urls, want)
		}
		if r.Header.Get("Cache-Control") != "no-store" || r.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: headers %v", what, r.Header)
		}
	}
	l.view.Store(&view{})
	if got := decode(t, ask(l, indoors, "GET", "/.well-known/sallyport/lan.json")); got["urls"] == nil {
		t.Error("no addresses are told as null, and lan.js reads a list")
	}
}

// How the home network is built is told to nobody without a device.
func TestJSONNeedsDevice(t *testing.T) {
	l, v := helped(t, Config{})
	v.Device = nil
	r := ask(l, v, "GET", "/.well-known/sallyport/lan.json")
	body := make([]byte, 1000)
	n, _ := r.Body.Read(body)
	if r.StatusCode != http.StatusForbidden || strings.Contains(string(body[:n]), "192") {
		t.Errorf("without a device: %d %s", r.StatusCode, body[:n])
	}
	req := httptest.NewRequest("GET", "https://ha.example.org/.well-known/sallyport/lan.json", nil)
	w := httptest.NewRecorder()
	l.Helper().ServeHTTP(w, req) // not even through a door
	if w.Code != http.StatusForbidden {
		t.Errorf("without a door: %d", w.Code)
	}
}

func TestHereOrigins(t *testing.T) {
	l, v := helped(t, Config{})
	for origin, want := range map[string]bool{
		"https://ha.example.org":                true,
		"https://ha.example.org:8443":           true,
		"https://192-168-1-7." + own + ":8443":  true,
		"http://ha.example.org":                 false,
		"https://ha.example.org:443":            false, // browsers do not write it
		"https://ha.example.org:9443":           false,
		"https://HA.example.org":                false,
		"https://ha.example.org.":               false,
		"https://ha.example.org/":               false,
		"https://evil.test":                     false,
		"https://evil.test#ha.example.org":      false,
		"https://ha.example.org@evil.test":      false,
		"https://ha.example.org.evil.test":      false,
		"https://xn--ha-.example.org":           false,
		"https://192.168.1.7:8443":              false,
		"https://":                              false,
		"null":                                  false,
		"":                                      false,
		"*":                                     false,
		"https://ha.example.org https://x.test": false,
	} {
		for _, method := range []string{"GET", "OPTIONS"} {
			r := ask(l, v, method, "/.well-known/sallyport/here", "Origin", origin)
			allow := r.Header.Get("Access-Control-Allow-Origin")
			if want && (allow != origin || r.StatusCode > 204 || r.Header.Get("Access-Control-Allow-Credentials") != "true") {
				t.Errorf("%s from %q: %d, allowed %q", method, origin, r.StatusCode, allow)
			}
			if !want && (r.StatusCode != http.StatusForbidden || allow != "" || r.Header.Get("Access-Control-Allow-Credentials") != "") {
				t.Errorf("%s from %q: %d, allowed %q, want refused", method, origin, r.StatusCode, allow)
			}
			if r.Header.Get("Vary") != "Origin" || r.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s from %q: a cache could give this to others: %v", method, origin, r.Header)
			}
		}
	}
	r := ask(l, v, "GET", "/.well-known/sallyport/here", "Origin", "https://ha.example.org", "Origin", "https://evil.test")
	if r.StatusCode != http.StatusForbidden {
		t.Errorf("two origins: %d", r.StatusCode)
	}
	if r := ask(l, v, "GET", "/.well-known/sallyport/here"); decode(t, r)["here"] != true {
		t.Error("a page of the same origin is not told")
	}
	nobody := newLAN(t, Config{})
	if r := ask(nobody, v, "GET", "/.well-known/sallyport/here", "Origin", "https://ha.example.org"); r.StatusCode != http.StatusForbidden {
		t.Error("without Ours somebody is allowed")
	}
}

func TestHerePublicPort(t *testing.T) {
	l, v := helped(t, Config{Port: ":9443"})
	for origin, want := range map[string]int{"https://ha.example.org:9443": 200, "https://ha.example.org": 403} {
		if r := ask(l, v, "GET", "/.well-known/sallyport/here", "Origin", origin); r.StatusCode != want {
			t.Errorf("%s: %d, want %d", origin, r.StatusCode, want)
		}
	}
}

// Through the relay nobody is here.
func TestHereOutdoors(t *testing.T) {
	l, v := helped(t, Config{})
	v.Local = netip.MustParseAddrPort("198.51.100.1:443")
	if decode(t, ask(l, v, "GET", "/.well-known/sallyport/here", "Origin", "https://ha.example.org"))["here"] != false {
		t.Error("a visitor of the relay is here")
	}
	if l.inside(door.Visitor{}) {
		t.Error("a visitor without addresses is here")
	}
}

func TestPreflight(t *testing.T) {
	l, v := helped(t, Config{})
	const path, origin = "/.well-known/sallyport/here", "https://ha.example.org"
	r := ask(l, v, "OPTIONS", path, "Origin", origin, "Access-Control-Request-Method", "GET", "Access-Control-Request-Private-Network", "true")
	if r.StatusCode != 204 || r.Header.Get("Access-Control-Allow-Methods") != "GET" || r.Header.Get("Access-Control-Allow-Private-Network") != "true" {
		t.Errorf("preflight: %d %v", r.StatusCode, r.Header)
	}
	r = ask(l, v, "OPTIONS", path, "Origin", origin, "Access-Control-Request-Method", "GET")
	if r.Header.Get("Access-Control-Allow-Private-Network") != "" {
		t.Error("the private network is allowed without being asked for")
	}
	r = ask(l, v, "OPTIONS", path, "Origin", "https://evil.test", "Access-Control-Request-Private-Network", "true")
	if r.StatusCode != 403 || r.Header.Get("Access-Control-Allow-Private-Network") != "" {
		t.Errorf("preflight of a stranger: %d %v", r.StatusCode, r.Header)
	}
}

func TestMethodsAndPaths(t *testing.T) {
	l, v := helped(t, Config{})
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"POST", "lan.json", 405},
		{"OPTIONS", "lan.json", 405},
		{"PUT", "lan.js", 405},
		{"POST", "here", 405},
		{"DELETE", "here", 405},
		{"HEAD", "lan.json", 200},
		{"HEAD", "lan.js", 200},
		{"HEAD", "here", 200},
		{"GET", "", 404},
		{"GET", "lan.json/", 404},
		{"GET", "here/x", 404},
		{"GET", "other", 404},
	} {
		if r := ask(l, v, c.method, WellKnown+c.path); r.StatusCode != c.want {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, r.StatusCode, c.want)
		}
	}
	if r := ask(l, v, "GET", "/here"); r.StatusCode != 404 {
		t.Errorf("a path outside: %d", r.StatusCode)
	}
}

func TestModuleIsServed(t *testing.T) {
	l, v := helped(t, Config{})
	v.Device = nil
	r := ask(l, v, "GET", WellKnown+"lan.js")
	if r.StatusCode != 200 || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/javascript") || r.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("lan.js: %d %v", r.StatusCode, r.Header)
	}
	r = ask(l, v, "GET", WellKnown+"lan.js", "If-None-Match", r.Header.Get("ETag"))
	if r.StatusCode != http.StatusNotModified {
		t.Errorf("lan.js again: %d", r.StatusCode)
	}
	if len(script) > 2048 {
		t.Errorf("lan.js has %d bytes, more than 2 KB", len(script))
	}
	if i := slices.IndexFunc(script, func(b byte) bool { return b > 126 }); i >= 0 {
		t.Errorf("lan.js has a byte that is not ASCII at %d", i)
	}
}
