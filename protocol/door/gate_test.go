package door

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const wsHeaders = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

func TestHostMustBeTheServerName(t *testing.T) {
	w := newWorld(t, nil)
	public, secret := w.proxyTo(hello, nil), w.proxyTo(hello, nil)
	w.site("pub.test", None, public)
	w.site("door.test", Require, secret)
	w.site("*.wild.test", None, public)
	w.site("ask.test", Ask, secret)

	// A visitor of sni asks for host. want: 200 or 421 or 400.
	rows := []struct {
		sni, host string
		want      int
	}{
		{"pub.test", "pub.test", 200},
		{"pub.test", "PUB.test.", 200},
		{"pub.test", "pub.test:8443", 200},
		{"door.test", "door.test", 200},
		{"a.wild.test", "a.wild.test", 200},
		{"pub.test", "door.test", 421},
		{"pub.test", "DOOR.TEST.", 421},
		{"pub.test", "door.test:443", 421},
		{"pub.test", "ask.test", 421},
		{"door.test", "pub.test", 421},
		{"door.test", "ask.test", 421},
		{"a.wild.test", "b.wild.test", 421},
		{"a.wild.test", "door.test", 421},
		{"pub.test", "nowhere.test", 421},
		{"pub.test", "127.0.0.1", 421},
		{"pub.test", "127.0.0.1:8443", 421},
		{"pub.test", "[::1]", 421},
		{"pub.test", "[::1]:443", 421},
		{"pub.test", "0x7f000001", 421},
		{"pub.test", "my_nas.test", 421},
		{"pub.test", "127.0.0.1:", 400},
		{"pub.test", "[::1", 400},
		{"pub.test", "[127.0.0.1", 400},
		{"pub.test", "pub.test:", 400},
		{"pub.test", "pub.test:99999", 400},
	}
	for _, row := range rows {
		var cert *tls.Certificate
		if row.sni == "door.test" {
			cert = w.phone
		}
		forms := map[string]string{
			"h1":       "GET / HTTP/1.1\r\nHost: " + row.host + "\r\n\r\n",
			"ws":       "GET / HTTP/1.1\r\nHost: " + row.host + "\r\n" + wsHeaders + "\r\n",
			"absolute": "GET https://" + row.host + "/ HTTP/1.1\r\nHost: " + row.sni + "\r\n\r\n",
			"plain":    "GET http://" + row.host + "/ HTTP/1.1\r\nHost: " + row.sni + "\r\n\r\n",
		}
		for name, request := range forms {
			want := row.want
			if want == 200 && (name == "absolute" || name == "plain") {
				want = 400
			}
			before := w.reached()
			if want == 200 {
				request = strings.Replace(request, "\r\n\r\n", "\r\nX: y\r\n\r\n", 1)
				if name == "h1" {
					request = strings.Replace(request, "\r\nX: y", "\r\nConnection: close", 1)
				} else {
					continue // a tunnel that stays open; see TestWebSocket
				}
			}
			// raw returns when the server closed: 421 and 400 must.
			answer := w.raw(row.sni, cert, request)
			if got := statusOf(answer); got != want {
				t.Errorf("%s: SNI %s asks %s: %d, want %d", name, row.sni, row.host, got, want)
			}
			if want != 200 && (w.reached() != before || strings.Count(answer, "HTTP/1.1 ") != 1) {
				t.Errorf("%s: SNI %s asks %s: home was reached, or no close: %q", name, row.sni, row.host, answer)
			}
		}
		before := w.reached()
		status, goaway := w.h2(row.sni, cert, map[string]string{":authority": row.host})
		if status != row.want || row.want != 200 && (!goaway || w.reached() != before) {
			t.Errorf("h2: SNI %s asks %s: %d (goaway %v), want %d", row.sni, row.host, status, goaway, row.want)
		}
	}
}

// h2 sends one request with raw HTTP/2 frames and returns its status (0: the
// stream or connection ended without one) and whether GOAWAY followed.
func (w *world) h2(sni string, cert *tls.Certificate, fields map[string]string, extra ...hpack.HeaderField) (status int, goaway bool) {
	w.t.Helper()
	conn, err := w.dial(w.clientTLS(sni, cert, "h2"))
	ok(w.t, err)
	defer conn.Close()
	if fields == nil {
		fields = map[string]string{}
	}
	if _, ok := fields[":authority"]; !ok {
		fields = maps.Clone(fields)
		fields[":authority"] = sni
	}
	status, goaway, _ = h2Request(conn, fields, extra...)
	return status, goaway
}

// h2Once asks for a host over h2; an error only when no status came.
func h2Once(conn *tls.Conn, host string, extra []hpack.HeaderField) (int, error) {
	status, _, err := h2Request(conn, map[string]string{":authority": host}, extra...)
	if status != 0 {
		err = nil
	}
	return status, err
}

func h2Request(conn *tls.Conn, fields map[string]string, extra ...hpack.HeaderField) (status int, goaway bool, err error) {
	io.WriteString(conn, http2.ClientPreface)
	fr := http2.NewFramer(conn, conn)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fr.WriteSettings()
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	for _, f := range []struct{ name, value string }{{":method", "GET"}, {":scheme", "https"}, {":authority", ""}, {":path", "/"}} {
		if v, ok := fields[f.name]; ok {
			f.value = v
		}
		if f.value != "-" {
			enc.WriteField(hpack.HeaderField{Name: f.name, Value: f.value})
		}
	}
	for _, f := range extra {
		enc.WriteField(f)
	}
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(block.String()), EndStream: true, EndHeaders: true})
	done := false
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return status, goaway, err
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			fmt.Sscan(f.PseudoValue("status"), &status)
			done = done || f.StreamEnded()
		case *http2.DataFrame:
			done = done || f.StreamEnded()
		case *http2.RSTStreamFrame:
			done = true
		case *http2.GoAwayFrame:
			goaway = true
		}
		if done && (goaway || status == 200) {
			return status, goaway, nil
		}
		if done { // GOAWAY may still come
			conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		}
	}
}

func TestH2ToH1(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	var dials atomic.Int32 // home must not even be dialled: its parser may be laxer than Go's
	w.site("pub.test", None, w.proxyTo(hello, func(b *Backend) {
		dial := b.Dial
		b.Dial = func(ctx context.Context, v Visitor) (net.Conn, error) {
			dials.Add(1)
			return dial(ctx, v)
		}
	}))
	field := func(name, value string) hpack.HeaderField { return hpack.HeaderField{Name: name, Value: value} }
	for name, row := range map[string]struct {
		fields map[string]string
		extra  []hpack.HeaderField
	}{
		"space in path":        {fields: map[string]string{":path": "/ HTTP/1.1\r\nHost: x\r\n\r\nGET /evil"}},
		"only a space":         {fields: map[string]string{":path": "/a b"}},
		"space in query":       {fields: map[string]string{":path": "/?a HTTP/1.1"}},
		"fragment":             {fields: map[string]string{":path": "/a#b"}},
		"absolute path":        {fields: map[string]string{":path": "https://pub.test/x"}},
		"no authority":         {fields: map[string]string{":authority": "-"}},
		"two hosts":            {extra: []hpack.HeaderField{field("host", "other.test")}},
		"CR in value":          {extra: []hpack.HeaderField{field("x", "a\r\nevil: 1")}},
		"colon in name":        {extra: []hpack.HeaderField{field("x:y", "1")}},
		"space in name":        {extra: []hpack.HeaderField{field("x y", "1")}},
		"transfer-encoding":    {extra: []hpack.HeaderField{field("transfer-encoding", "chunked")}},
		"connection":           {extra: []hpack.HeaderField{field("connection", "x")}},
		"CONNECT":              {fields: map[string]string{":method": "CONNECT", ":scheme": "-", ":path": "-"}},
		"TRACE":                {fields: map[string]string{":method": "TRACE"}},
		"extended CONNECT":     {fields: map[string]string{":method": "CONNECT"}, extra: []hpack.HeaderField{field(":protocol", "websocket")}},
		"star":                 {fields: map[string]string{":path": "*"}},
		"method with a space":  {fields: map[string]string{":method": "GET /x HTTP/1.1\r\n"}},
		"userinfo in the host": {fields: map[string]string{":authority": "a@pub.test"}},
	} {
		if status, _ := w.h2("pub.test", nil, row.fields, row.extra...); status == 200 || dials.Swap(0) != 0 {
			t.Errorf("%s: %d, or home was dialled", name, status)
		}
	}
}

// The table of reliability research §2.4: what a lax front lets through. Home
// may see at most one request, and never "evil".
func TestSmuggling(t *testing.T) {
	w := newWorld(t, nil)
	var mu sync.Mutex
	seen := map[string]int{} // by path
	// Checked after the home has closed: it may count a request late.
	refused := map[string]bool{}
	t.Cleanup(func() {
		for path, n := range seen {
			if n > 1 || refused[path] || path == "/evil" {
				t.Errorf("home saw %s %d times", path, n)
			}
		}
	})
	w.site("pub.test", None, w.proxyTo(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		seen[r.URL.Path]++
		if strings.Contains(string(b), "evil") {
			t.Errorf("%s: the second request became a body", r.URL.Path)
		}
	}), nil))
	post := "POST / HTTP/1.1\r\nHost: pub.test\r\n"
	evil := "GET /evil HTTP/1.1\r\nHost: pub.test\r\n\r\n"
	rows := map[string]struct {
		request string
		status  int // 0: any refusal, or a normalised request
	}{
		"CL and TE":             {post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + evil, 0},
		"TE and CL":             {post + "Transfer-Encoding: chunked\r\nContent-Length: 60\r\n\r\n0\r\n\r\n" + evil, 0},
		"obs-fold TE":           {post + "Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + evil, 0},
		"TE in HTTP/1.0":        {"POST / HTTP/1.0\r\nHost: pub.test\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + evil, 0},
		"bare LF":               {"GET / HTTP/1.1\nHost: pub.test\nConnection: close\n\n" + evil, 0},
		"xchunked":              {post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + evil, 501},
		"TE list":               {post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + evil, 501},
		"TE twice":              {post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + evil, 501},
		"TE with VT":            {post + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + evil, 400},
		"space before colon":    {post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + evil, 400},
		"two lengths":           {post + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab" + evil, 400},
		"length +2":             {post + "Content-Length: +2\r\n\r\nab" + evil, 400},
		"length list":           {post + "Content-Length: 2, 2\r\n\r\nab" + evil, 400},
		"length -1":             {post + "Content-Length: -1\r\n\r\n" + evil, 400},
		"chunk size 0x3":        {post + "Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n" + evil, 400},
		"chunk size overflow":   {post + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff1\r\nabc\r\n0\r\n\r\n" + evil, 400},
		"bare LF in chunk size": {post + "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n" + evil, 400},
		"LF in chunk extension": {post + "Transfer-Encoding: chunked\r\n\r\n3;a\nb\r\nabc\r\n0\r\n\r\n" + evil, 400},
		"NUL in value":          {"GET / HTTP/1.1\r\nHost: pub.test\r\nX: a\x00b\r\n\r\n" + evil, 400},
		"CR in value":           {"GET / HTTP/1.1\r\nHost: pub.test\r\nX: a\rb\r\n\r\n" + evil, 400},
		"two hosts":             {"GET / HTTP/1.1\r\nHost: pub.test\r\nHost: pub.test\r\n\r\n" + evil, 400},
		"no host":               {"GET / HTTP/1.1\r\n\r\n" + evil, 400},
		"no host in 1.0":        {"GET / HTTP/1.0\r\n\r\n" + evil, 400},
		"empty host":            {"GET / HTTP/1.1\r\nHost:\r\n\r\n" + evil, 400},
		"host with @":           {"GET / HTTP/1.1\r\nHost: a@pub.test\r\n\r\n" + evil, 400},
		"host with /":           {"GET / HTTP/1.1\r\nHost: pub.test/x\r\n\r\n" + evil, 400},
		"CONNECT":               {"CONNECT pub.test:443 HTTP/1.1\r\nHost: pub.test:443\r\n\r\n" + evil, 405},
		"TRACE":                 {"TRACE / HTTP/1.1\r\nHost: pub.test\r\n\r\n" + evil, 405},
		"star":                  {"OPTIONS * HTTP/1.1\r\nHost: pub.test\r\n\r\n" + evil, 400},
		"h2 preface":            {"PRI * HTTP/2.0\r\nHost: pub.test\r\n\r\nSM\r\n\r\n" + evil, 0},
		"HTTP/3.0":              {"GET / HTTP/3.0\r\nHost: pub.test\r\n\r\n" + evil, 505},
		"fragment":              {"GET /a#b HTTP/1.1\r\nHost: pub.test\r\n\r\n" + evil, 400},
		"huge header":           {"GET / HTTP/1.1\r\nHost: pub.test\r\nX: " + strings.Repeat("a", 100<<10) + "\r\n\r\n" + evil, 431},
		"body cut off":          {post + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n", 400},
	}
	for name, row := range rows {
		path := "/" + strings.ReplaceAll(name, " ", "-")
		if row.status != 0 && !strings.Contains(name, "hunk") && !strings.Contains(name, "cut") {
			refused[path] = true // before anybody dials home
		}
		answer := w.raw("pub.test", nil, strings.Replace(row.request, " / ", " "+path+" ", 1))
		got := statusOf(answer)
		if row.status != 0 && got != row.status || got == 0 || got >= 500 && row.status < 500 {
			t.Errorf("%s: %d, want %d: %.80q", name, got, row.status, answer)
		}
	}
}

func TestPolicyChangeUnderALiveConnection(t *testing.T) {
	w := newWorld(t, nil)
	w.site("ha.test", None, w.proxyTo(hello, nil))
	for _, h2 := range []bool{false, true} {
		w.site("ha.test", None, w.proxyTo(hello, nil))
		c := w.client("ha.test", nil, h2)
		res, err := c.Get("https://ha.test/")
		ok(t, err)
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		// The owner closes the host. Even before Recheck nothing passes.
		w.site("ha.test", Require, w.proxyTo(hello, nil))
		before := w.reached()
		res, err = c.Get("https://ha.test/")
		if err == nil {
			res.Body.Close()
			if res.StatusCode != 421 {
				t.Errorf("h2 %v: %d after the policy changed", h2, res.StatusCode)
			}
		}
		if w.reached() != before {
			t.Error("home was reached")
		}
	}
}

func TestNoHTTP3IsAnnounced(t *testing.T) {
	w := newWorld(t, nil)
	w.site("ha.test", None, w.proxyTo(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Alt-Svc", `h3=":443"`)
	}), nil))
	res, err := w.client("ha.test", nil, true).Get("https://ha.test/")
	ok(t, err)
	res.Body.Close()
	if v := res.Header.Get("Alt-Svc"); v != "" {
		t.Error("Alt-Svc:", v)
	}
	c := w.clientTLS("ha.test", nil, "h3")
	if err := w.handshake(c); alertOf(err) != "no application protocol" {
		t.Error("h3 alone:", err)
	}
}
