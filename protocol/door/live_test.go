package door

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/sallyport/sallyport/protocol/tunnel"
)

// live opens one connection of each kind with a device and returns functions
// that say how long after `since` each ended.
func (w *world) live(host, rawHost string, cert *tls.Certificate) map[string]func(since time.Time) time.Duration {
	t := w.t
	all := map[string]func(time.Time) time.Duration{}

	// WebSocket
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	t.Cleanup(cancel)
	ws, _, err := websocket.Dial(ctx, "wss://"+host+"/ws", &websocket.DialOptions{HTTPClient: &http.Client{Transport: w.client(host, cert, false).Transport}})
	ok(t, err)
	ok(t, ws.Write(ctx, websocket.MessageText, []byte("ping")))
	_, msg, err := ws.Read(ctx)
	ok(t, err)
	if string(msg) != "ping" {
		t.Fatalf("echo: %q", msg)
	}
	all["websocket"] = func(since time.Time) time.Duration {
		if _, _, err := ws.Read(ctx); ctx.Err() != nil {
			t.Error("websocket:", err)
		}
		return time.Since(since)
	}

	// Server-sent events over h1 and h2; h2 has a second stream idle beside it.
	for name, h2 := range map[string]bool{"sse h1": false, "sse h2": true} {
		c := w.client(host, cert, h2)
		c.Timeout = 0
		res, err := c.Get("https://" + host + "/sse")
		ok(t, err)
		line, err := bufio.NewReader(res.Body).ReadString('\n')
		ok(t, err)
		if line != "data: first\n" {
			t.Fatalf("%s: %q", name, line)
		}
		all[name] = func(since time.Time) time.Duration { return ended(t, res.Body, since) }
	}

	// Idle keep-alive
	idle, err := w.dial(w.clientTLS(host, cert, "http/1.1"))
	ok(t, err)
	io.WriteString(idle, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(idle), nil)
	ok(t, err)
	io.Copy(io.Discard, res.Body)
	all["idle h1"] = func(since time.Time) time.Duration { return ended(t, idle, since) }

	// Raw
	raw, err := w.dial(w.clientTLS(rawHost, cert))
	ok(t, err)
	io.WriteString(raw, "hi")
	buf := make([]byte, 2)
	_, err = io.ReadFull(raw, buf)
	ok(t, err)
	all["raw"] = func(since time.Time) time.Duration { return ended(t, raw, since) }
	return all
}

// lively is a home with everything that stays open.
func lively() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "home") })
	mux.HandleFunc("/sse", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: first\n\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, msg, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, msg) != nil {
				return
			}
		}
	})
	return mux
}

func echoRaw(_ context.Context, c tunnel.Conn, _ Visitor) {
	io.Copy(c, c)
	c.CloseWrite()
	c.Close()
}

func TestLiveConnectionsEnd(t *testing.T) {
	for name, cut := range map[string]func(w *world, phone *tls.Certificate){
		"revoked": func(w *world, phone *tls.Certificate) {
			w.deny(phone, DeniedRevoked)
			if n := w.door.Disconnect(deviceID(phone.Leaf)); n != 5 {
				w.t.Errorf("Disconnect counted %d", n)
			}
		},
		"rights changed": func(w *world, phone *tls.Certificate) {
			w.deny(phone, DeniedHost)
			w.door.Recheck()
		},
		"policy changed": func(w *world, _ *tls.Certificate) {
			w.site("ha.test", None, hello)
			w.rawSite("raw.test", Require, echoRaw).Policy = "new"
			w.door.Recheck()
		},
		"site gone": func(w *world, _ *tls.Certificate) {
			w.setSite("ha.test", nil)
			w.setSite("raw.test", nil)
			w.door.Recheck()
		},
		"door closed": func(w *world, _ *tls.Certificate) { w.door.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			w.site("ha.test", Require, w.proxyTo(lively(), nil))
			w.rawSite("raw.test", Require, echoRaw)
			phone := w.devices.device("phone2", nil)
			connections := w.live("ha.test", "raw.test", phone)
			since := time.Now()
			cut(w, phone)
			for kind, wait := range connections {
				if d := wait(since); d > time.Second {
					t.Errorf("%s lived for %v", kind, d)
				}
			}
		})
	}
}

func TestDisconnectSparesOthers(t *testing.T) {
	w := newWorld(t, nil)
	w.site("ha.test", Require, w.proxyTo(lively(), nil))
	w.rawSite("raw.test", Require, echoRaw)
	w.live("ha.test", "raw.test", w.phone)
	raw, err := w.dial(w.clientTLS("raw.test", w.phone))
	ok(t, err)
	w.door.Disconnect("somebody else")
	w.door.Recheck()
	io.WriteString(raw, "hi")
	if _, err := io.ReadFull(raw, make([]byte, 2)); err != nil {
		t.Error(err)
	}
}

// Without Disconnect, the next request finds out.
func TestEveryRequestIsAuthorised(t *testing.T) {
	for _, mode := range []Mode{Require, Ask} {
		for _, h2 := range []bool{false, true} {
			w := newWorld(t, nil)
			w.site("ha.test", mode, w.proxyTo(hello, nil))
			c := w.client("ha.test", w.phone, h2)
			get := func() int {
				res, err := c.Get("https://ha.test/")
				if err != nil {
					return 0
				}
				defer res.Body.Close()
				io.Copy(io.Discard, res.Body)
				return res.StatusCode
			}
			if got := get(); got != 200 {
				t.Fatal(got)
			}
			w.deny(w.phone, DeniedRevoked)
			before, want := w.reached(), 0
			if mode == Ask {
				want = 401
			}
			if got := get(); got != want || w.reached() != before {
				t.Errorf("%s, h2 %v: %d", mode, h2, got)
			}
		}
	}
}

// A certificate that runs out under a live connection ends it.
func TestExpiryUnderALiveConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.site("ha.test", Require, w.proxyTo(lively(), nil))
	w.rawSite("raw.test", Require, echoRaw)
	phone := w.devices.device("short", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(2 * time.Second).Truncate(time.Second) })
	connections := w.live("ha.test", "raw.test", phone)
	for kind, wait := range connections {
		if d := wait(phone.Leaf.NotAfter); d > time.Second || d < 0 {
			t.Errorf("%s ended %v after the certificate", kind, d)
		}
	}
}

// The clock that judges is Config.Now, also between two requests.
func TestExpiryByTheClock(t *testing.T) {
	var mu sync.Mutex
	now := time.Now()
	w := newWorld(t, func(c *Config) {
		c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	})
	w.site("ha.test", Ask, w.proxyTo(hello, nil))
	c := w.client("ha.test", w.phone, false)
	for _, want := range []int{200, 401} {
		res, err := c.Get("https://ha.test/")
		ok(t, err)
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%d, want %d", res.StatusCode, want)
		}
		mu.Lock()
		now = now.Add(2 * time.Hour)
		mu.Unlock()
	}
}

func TestRawHalfCloseAndVisitor(t *testing.T) {
	w := newWorld(t, nil)
	visitors := make(chan Visitor, 1)
	reads := make(chan error, 1)
	w.rawSite("raw.test", Require, func(_ context.Context, c tunnel.Conn, v Visitor) {
		visitors <- v
		b, err := io.ReadAll(c)
		reads <- err
		io.WriteString(c, "got "+string(b))
		c.Close()
	})
	c, err := w.dial(w.clientTLS("raw.test", w.phone))
	ok(t, err)
	io.WriteString(c, "everything")
	ok(t, c.CloseWrite())
	answer, err := io.ReadAll(c)
	if string(answer) != "got everything" || err != nil || <-reads != nil {
		t.Errorf("%q %v", answer, err)
	}
	v := <-visitors
	if v.Device == nil || v.Device.Name != "phone" || v.Host != "raw.test" || v.Remote.Addr() != loopback || v.Device.Cert == nil {
		t.Errorf("%+v", v)
	}

	// A connection that is cut is no end, though crypto/tls says io.EOF.
	c, err = w.dial(w.clientTLS("raw.test", w.phone))
	ok(t, err)
	io.WriteString(c, "part")
	<-visitors
	c.NetConn().Close()
	if err := <-reads; !errors.Is(err, errCut) {
		t.Errorf("a cut connection read as %v", err)
	}
}

func TestRawAskWithoutDevice(t *testing.T) {
	w := newWorld(t, nil)
	w.rawSite("raw.test", Ask, func(context.Context, tunnel.Conn, Visitor) { t.Error("reached") })
	c, err := w.dial(w.clientTLS("raw.test", nil))
	ok(t, err)
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("%q", b)
	}
}

func TestShutdownLosesNoRequest(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Linger = 300 * time.Millisecond })
	slow, arrived := make(chan struct{}), make(chan struct{}, 2)
	w.site("ha.test", None, w.proxyTo(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			arrived <- struct{}{}
			<-slow
		}
		io.WriteString(rw, "home")
	}), nil))
	// A fresh connection that has not asked yet, and requests in flight.
	fresh, err := w.dial(w.clientTLS("ha.test", nil, "http/1.1"))
	ok(t, err)
	var flight sync.WaitGroup
	for _, h2 := range []bool{false, true} {
		flight.Go(func() {
			if status, body, err := w.get("ha.test", "https://ha.test/slow", nil, h2); status != 200 || body != "home" {
				t.Errorf("h2 %v: %d %q %v", h2, status, body, err)
			}
		})
	}
	<-arrived
	<-arrived
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		done <- w.door.Shutdown(ctx)
	}()
	for { // until the door is closing
		c, err := w.dial(w.clientTLS("ha.test", nil))
		if err != nil {
			break
		}
		c.Close()
	}
	io.WriteString(fresh, "GET / HTTP/1.1\r\nHost: ha.test\r\n\r\n")
	if b, _ := io.ReadAll(fresh); statusOf(string(b)) != 200 {
		t.Errorf("the fresh connection's request was lost: %q", b)
	}
	close(slow)
	flight.Wait()
	ok(t, <-done)
	if _, err := w.dial(w.clientTLS("ha.test", nil)); err == nil {
		t.Error("a new connection after Shutdown")
	}
}

func TestSeenAtMostOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		v := &visit{door: &Door{cfg: Config{Seen: func(string) { n++ }}}}
		for range 125 {
			v.seen()
			time.Sleep(time.Second)
		}
		if n != 3 {
			t.Errorf("seen %d times in two minutes", n)
		}
	})
}

// Revoked between the handshake's look and the index: nobody slips through.
func TestRevokedDuringTheHandshake(t *testing.T) {
	var w *world
	var once sync.Once
	w = newWorld(t, func(c *Config) {
		check := c.Check
		c.Check = func(leaf *x509.Certificate, host string, now time.Time) (Device, string) {
			d, denial := check(leaf, host, now)
			once.Do(func() {
				w.deny(w.phone, DeniedRevoked)
				w.door.Disconnect(d.ID)
			})
			return d, denial
		}
	})
	w.rawSite("raw.test", Require, func(context.Context, tunnel.Conn, Visitor) { t.Error("reached") })
	c, err := w.dial(w.clientTLS("raw.test", w.phone))
	ok(t, err)
	if d := ended(t, c, time.Now()); d > time.Second {
		t.Error("lived for", d)
	}
}

func TestIdleRawOutlivesTheHandshakeDeadline(t *testing.T) {
	t.Parallel()
	const deadline = 500 * time.Millisecond
	w := newWorld(t, func(c *Config) { c.HandshakeTimeout = deadline })
	w.rawSite("raw.test", Require, echoRaw)
	c, err := w.dial(w.clientTLS("raw.test", w.phone))
	ok(t, err)
	<-time.After(deadline + 50*time.Millisecond)
	io.WriteString(c, "hi")
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
		t.Error(err)
	}
}
