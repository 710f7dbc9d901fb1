package edge

import (
	"net"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestRedirect(t *testing.T) {
	tests := []struct {
		method, host, target, port string
		status                     int
		location                   string
	}{
		{"GET", "ha.example.org", "/", "", 301, "https://ha.example.org/"},
		{"HEAD", "HA.Example.org.:80", "/a%2Fb?x=1&y=%20", "443", 301, "https://ha.example.org/a%2Fb?x=1&y=%20"},
		{"GET", "nobody.example.com", "/", "", 301, "https://nobody.example.com/"},
		{"GET", "sallyport.localhost:8080", "/x", "8443", 301, "https://sallyport.localhost:8443/x"},
		{"POST", "ha.example.org", "/api", "", 308, "https://ha.example.org/api"},
		{"GET", "ha.example.org", "//evil.org/x", "", 301, "https://ha.example.org//evil.org/x"},
		{"GET", "192.0.2.1", "/", "", 400, ""},
		{"GET", "[2001:db8::1]", "/", "", 400, ""},
		{"GET", "", "/", "", 400, ""},
		{"GET", "evil.org/x?", "/", "", 400, ""},
		{"GET", "user@evil.org", "/", "", 400, ""},
		{"GET", "ha.example.org:99999", "/", "", 400, ""},
		{"OPTIONS", "ha.example.org", "*", "", 400, ""},
	}
	for _, tt := range tests {
		r := httptest.NewRequest(tt.method, tt.target, nil)
		r.Host = tt.host
		w := httptest.NewRecorder()
		Redirect(tt.port).ServeHTTP(w, r)
		if w.Code != tt.status || w.Header().Get("Location") != tt.location {
			t.Errorf("%s %s at %q: %d %q, want %d %q", tt.method, tt.target, tt.host, w.Code, w.Header().Get("Location"), tt.status, tt.location)
		}
	}
}

func TestHTTPServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewHTTPServer(Redirect(""), nil)
	go s.Serve(l)
	defer s.Close()
	for _, zero := range []bool{
		s.ReadHeaderTimeout == 0, s.ReadTimeout == 0, s.WriteTimeout == 0, s.IdleTimeout == 0, s.MaxHeaderBytes == 0, s.MaxHeaderBytes > 16<<10,
	} {
		if zero {
			t.Errorf("a limit is missing: %+v", s)
		}
	}
	for request, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: ha.example.org\r\nConnection: close\r\n\r\n":                       "HTTP/1.1 301 ",
		"GET http://ha.example.org/x HTTP/1.1\r\nHost: ha.example.org\r\nConnection: close\r\n\r\n": "HTTP/1.1 301 ",
		"OPTIONS * HTTP/1.1\r\nHost: ha.example.org\r\nConnection: close\r\n\r\n":                   "HTTP/1.1 400 ",
		"CONNECT ha.example.org:443 HTTP/1.1\r\nHost: ha.example.org:443\r\n\r\n":                   "HTTP/1.1 400 ",
		"GET / HTTP/1.1\r\nHost: ha.example.org\r\nX: " + strings.Repeat("x", 30<<10) + "\r\n\r\n":  "HTTP/1.1 431 ",
		"GET / HTTP/1.0\r\n\r\n": "HTTP/1.0 400 ",
		"POST / HTTP/1.1\r\nHost: ha.example.org\r\nContent-Length: 5000000\r\n\r\n": "HTTP/1.1 308 ",
	} {
		got, _ := answer(t, l.Addr().String(), []byte(request))
		if !strings.HasPrefix(string(got), want) {
			t.Errorf("%.60q: %.60q, want %q", request, got, want)
		}
	}
}
