package door

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/sallyport/sallyport/protocol"
)

func TestPathAndQueryKeepTheirBytes(t *testing.T) {
	w := newWorld(t, nil)
	w.site("pub.test", None, w.proxyTo(hello, nil))
	for _, target := range []string{
		"/", "/a%2Fb", "/a%2fb", "/%7Euser/~user", "/a|b{c}", "/a;b=c?x=1;y=2", "/?x=%zz&y=%", "/?", "/??a", "/x?a=b&a=b;c", "//a//b", "/a/../b", "/a/./b/%2e%2e/c",
		"/caf\xc3\xa9", "/?q=\xff", "/a\\b", "/'\"<>^`", "/?" + strings.Repeat("a&", 20000),
	} {
		answer := w.raw("pub.test", nil, "GET "+target+" HTTP/1.1\r\nHost: pub.test\r\nConnection: close\r\n\r\n")
		_, rest, _ := strings.Cut(answer, "X-Path: ")
		got, _, _ := strings.Cut(rest, "\r\n")
		if got != target {
			t.Errorf("%.40q became %.40q (%.60q)", target, got, answer)
		}
	}
	if answer := w.raw("pub.test", nil, "GET //a|b HTTP/1.1\r\nHost: pub.test\r\nConnection: close\r\n\r\n"); statusOf(answer) != 400 {
		t.Errorf("//a|b: %q", answer)
	}
}

func TestUploadAndDownloadAreFlat(t *testing.T) {
	const size = 100 << 20
	w := newWorld(t, nil)
	for host, proto := range map[string]string{"h1.test": protocol.ProtoHTTP1, "h2.test": protocol.ProtoH2} {
		w.site(host, None, w.proxyTo(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.Method == "POST" {
				n, _ := io.Copy(io.Discard, r.Body)
				if n != size {
					t.Errorf("home got %d bytes", n)
				}
				return
			}
			io.Copy(rw, io.LimitReader(zeros{}, size))
		}), func(b *Backend) { b.Proto = proto }))
	}
	var peak atomic.Uint64
	stop, stopped := make(chan struct{}), make(chan struct{})
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	go func() {
		defer close(stopped)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), m.HeapAlloc))
			}
		}
	}()
	var all sync.WaitGroup
	for _, row := range []struct {
		host string
		h2   bool
	}{{"h1.test", false}, {"h2.test", true}} {
		all.Go(func() {
			c := w.client(row.host, nil, row.h2)
			c.Timeout = 0
			res, err := c.Post("https://"+row.host+"/", "", io.LimitReader(zeros{}, size))
			if err != nil || res.StatusCode != 200 {
				t.Errorf("%s upload: %v", row.host, err)
				return
			}
			res.Body.Close()
			if res, err = c.Get("https://" + row.host + "/"); err != nil {
				t.Error(err)
				return
			}
			if n, err := io.Copy(io.Discard, res.Body); n != size || err != nil {
				t.Errorf("%s download: %d bytes, %v", row.host, n, err)
			}
			res.Body.Close()
		})
	}
	all.Wait()
	close(stop)
	<-stopped
	if grown := int64(peak.Load()) - int64(before.HeapAlloc); grown > 40<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	} else {
		t.Logf("the heap grew by %d MiB at most", grown>>20)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Both directions of one request stream at the same time.
func TestDuplexStreaming(t *testing.T) {
	w := newWorld(t, nil)
	w.site("pub.test", None, w.proxyTo(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(rw)
		rc.EnableFullDuplex()
		rc.Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			rw.Write(buf[:n])
			rc.Flush()
			if err != nil {
				return
			}
		}
	}), func(b *Backend) { b.Proto = protocol.ProtoH2 }))
	pr, pw := io.Pipe()
	req, _ := http.NewRequest("POST", "https://pub.test/", pr)
	res, err := w.client("pub.test", nil, true).Do(req)
	ok(t, err)
	defer res.Body.Close()
	for _, word := range []string{"one", "two"} {
		io.WriteString(pw, word)
		buf := make([]byte, len(word))
		if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != word {
			t.Fatalf("%q %v", buf, err)
		}
	}
	pw.Close()
	if _, err := io.ReadAll(res.Body); err != nil {
		t.Error(err)
	}
}

func TestIdleWebSocketOutlivesTheTimeouts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.door.server.ReadHeaderTimeout, w.door.server.IdleTimeout = 50*time.Millisecond, 50*time.Millisecond
	w.site("ha.test", Require, w.proxyTo(lively(), func(b *Backend) { b.Proto = protocol.ProtoH2 }))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "wss://ha.test/ws", &websocket.DialOptions{HTTPClient: &http.Client{Transport: w.client("ha.test", w.phone, false).Transport}})
	ok(t, err)
	defer ws.CloseNow()
	<-time.After(200 * time.Millisecond)
	ok(t, ws.Write(ctx, websocket.MessageText, []byte("still there")))
	if _, msg, err := ws.Read(ctx); string(msg) != "still there" {
		t.Errorf("%q %v", msg, err)
	}
}

// A backend that dies in the middle is never a whole answer.
func TestBrokenOffAnswers(t *testing.T) {
	w := newWorld(t, nil)
	w.site("pub.test", None, w.proxyTo(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		io.WriteString(rw, "half")
		http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	}), nil))
	for _, h2 := range []bool{false, true} {
		if _, body, err := w.get("pub.test", "https://pub.test/", nil, h2); err == nil || body != "half" {
			t.Errorf("h2 %v: %q %v", h2, body, err)
		}
	}
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	home := grpc.NewServer()
	hs := health.NewServer()
	healthpb.RegisterHealthServer(home, hs)
	go home.Serve(l)
	defer home.Stop()
	w := newWorld(t, nil)
	w.site("grpc.test", Require, w.proxyAddr(l.Addr().String(), func(b *Backend) { b.Proto = protocol.ProtoH2 }))

	conn, err := grpc.NewClient("passthrough:///grpc.test:443", grpc.WithTransportCredentials(credentials.NewTLS(w.clientTLS("grpc.test", w.phone))),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", w.addr)
		}))
	ok(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	client := healthpb.NewHealthClient(conn)
	res, err := client.Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil || res.Status != healthpb.HealthCheckResponse_SERVING {
		t.Fatal(res, err)
	}
	// The status travels in trailers.
	if _, err = client.Check(ctx, &healthpb.HealthCheckRequest{Service: "none"}); status.Code(err) != codes.NotFound {
		t.Error(err)
	}
	// A stream of answers, each flushed.
	watch, err := client.Watch(ctx, &healthpb.HealthCheckRequest{})
	ok(t, err)
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING} {
		got, err := watch.Recv()
		ok(t, err)
		if got.Status != want {
			t.Errorf("%v, want %v", got.Status, want)
		}
		hs.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	}
}

func TestExpectContinue(t *testing.T) {
	w := newWorld(t, nil)
	w.site("pub.test", None, w.proxyTo(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			rw.WriteHeader(401)
			return
		}
		io.Copy(rw, r.Body)
	}), nil))
	for path, want := range map[string]int{"/yes": 100, "/no": 401} {
		c, err := w.dial(w.clientTLS("pub.test", nil, "http/1.1"))
		ok(t, err)
		io.WriteString(c, "POST "+path+" HTTP/1.1\r\nHost: pub.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
		br := bufio.NewReader(c)
		line, _ := br.ReadString('\n')
		if statusOf(line) != want {
			t.Fatalf("%s: %q", path, line)
		}
		if want == 100 {
			io.WriteString(c, "body")
			br.ReadString('\n')
			res, err := http.ReadResponse(br, nil)
			ok(t, err)
			if res.StatusCode == 100 { // the proxy's own and the home's: both may come
				res, err = http.ReadResponse(br, nil)
				ok(t, err)
			}
			if b, _ := io.ReadAll(res.Body); string(b) != "body" {
				t.Errorf("%q", b)
			}
		}
	}
}

// A pooled connection that the backend closed costs no visitor an error.
func TestDeadPooledConnections(t *testing.T) {
	w := newWorld(t, nil)
	var dials atomic.Int32
	var mu sync.Mutex
	var conns []net.Conn
	p := w.proxyTo(hello, nil)
	inner := p.backend.Dial
	p.backend.Dial = func(ctx context.Context, v Visitor) (net.Conn, error) {
		dials.Add(1)
		c, err := inner(ctx, v)
		mu.Lock()
		conns = append(conns, c)
		mu.Unlock()
		return c, err
	}
	w.site("pub.test", None, p)
	for range 20 {
		for _, method := range []string{"GET", "POST"} {
			req, _ := http.NewRequest(method, "https://pub.test/", nil)
			res, err := w.client("pub.test", nil, false).Do(req)
			ok(t, err)
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode != 200 && method == "GET" {
				t.Errorf("%s: %d", method, res.StatusCode)
			}
		}
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
	}
	if dials.Load() < 2 {
		t.Error("nothing was pooled or nothing died")
	}
}

func TestSoloNeverPools(t *testing.T) {
	w := newWorld(t, nil)
	for _, proto := range []string{protocol.ProtoHTTP1, protocol.ProtoH2} {
		var dials atomic.Int32
		visitors := make(chan Visitor, 10)
		p := w.proxyTo(hello, func(b *Backend) { b.Solo, b.Proto = true, proto })
		inner := p.backend.Dial
		p.backend.Dial = func(ctx context.Context, v Visitor) (net.Conn, error) {
			dials.Add(1)
			visitors <- v
			return inner(ctx, v)
		}
		w.site("pub.test", None, p)
		c := w.client("pub.test", nil, false)
		for range 3 {
			res, err := c.Get("https://pub.test/")
			ok(t, err)
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if v := <-visitors; v.Host != "pub.test" || v.Remote.Addr() != loopback {
				t.Errorf("dialled for %+v", v)
			}
		}
		if n := dials.Load(); n != 3 {
			t.Errorf("%s: %d connections for 3 requests", proto, n)
		}
	}
}

var errSecret = errors.New("dial 192.168.1.20:8123: agent abcdef offline since 12:00")

func TestErrorPages(t *testing.T) {
	w := newWorld(t, nil)
	broken := w.proxyTo(hello, func(b *Backend) {
		b.Dial = func(context.Context, Visitor) (net.Conn, error) { return nil, errSecret }
		b.Errors = func(err error) (int, string, string) {
			if !errors.Is(err, errSecret) {
				t.Error("Errors got", err)
			}
			return 503, "Home is offline", "Home has been offline since 12:00."
		}
	})
	down := w.proxyTo(hello, func(b *Backend) {
		b.Dial = func(context.Context, Visitor) (net.Conn, error) { return nil, io.EOF }
	})
	w.site("pub.test", None, broken)
	w.site("down.test", None, down)
	w.site("door.test", Require, broken)
	status, stranger, err := w.get("pub.test", "https://pub.test/", nil, true)
	if err != nil || status != 502 || strings.Contains(stranger, "offline") || strings.Contains(stranger, "12:00") {
		t.Errorf("a stranger learned: %d %s %v", status, stranger, err)
	}
	if _, other, _ := w.get("down.test", "https://down.test/", nil, true); other != stranger {
		t.Error("a stranger can tell a home that is offline from a service that is down")
	}
	status, page, err := w.get("door.test", "https://door.test/", w.phone, true)
	if err != nil || status != 503 || !strings.Contains(page, "offline since 12:00") {
		t.Errorf("a device got: %d %s %v", status, page, err)
	}
	for _, p := range []string{stranger, page} {
		for _, inside := range []string{"192.168", "dial", "8123", "agent", "127.0.0.1", "<script"} {
			if strings.Contains(p, inside) {
				t.Errorf("the page shows %q", inside)
			}
		}
	}
}

func TestPagesAreStrict(t *testing.T) {
	w := newWorld(t, nil)
	w.site("ask.test", Ask, hello)
	res, err := w.client("ask.test", nil, false).Get("https://ask.test/%3Cscript%3E?<b>")
	ok(t, err)
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	for k, want := range map[string]string{
		"Content-Security-Policy": "default-src 'none'; style-src 'sha256-", "X-Content-Type-Options": "nosniff",
		"Cache-Control": "no-store", "Content-Type": "text/html; charset=utf-8", "Referrer-Policy": "no-referrer",
	} {
		if !strings.HasPrefix(res.Header.Get(k), want) {
			t.Errorf("%s: %q", k, res.Header.Get(k))
		}
	}
	for _, want := range []string{"prefers-color-scheme:dark", "width=device-width"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(string(body), "script") || len(body) > 2<<10 {
		t.Errorf("%d bytes: %s", len(body), body)
	}
	if _, ok := res.Header["Server"]; ok {
		t.Error("Server header")
	}
}
