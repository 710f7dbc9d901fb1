package panel

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A listener is a page that reads, or does not.
type listener struct {
	mu     sync.Mutex // guards all below
	text   strings.Builder
	header http.Header
	stuck  bool
	code   int
}

func (l *listener) Header() http.Header { return l.header }
func (l *listener) WriteHeader(code int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.code = code
}
func (l *listener) Flush() {}
func (l *listener) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stuck {
		return 0, errors.New("deadline exceeded")
	}
	return l.text.Write(p)
}

// events returns what was said since the last call.
func (l *listener) events() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.text.Reset()
	return l.text.String()
}

// listen opens a stream inside a bubble; the channel is closed when it ended.
func (w *world) listen(ctx context.Context, device string) (*listener, chan struct{}) {
	l := &listener{header: http.Header{}}
	r := httptest.NewRequestWithContext(ctx, "GET", "/api/events", nil)
	r.Header.Set("Test-Device", device)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.panel.ServeHTTP(l, r)
	}()
	synctest.Wait()
	return l, ended
}

func closed(c chan struct{}) bool {
	synctest.Wait()
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		l, ended := w.listen(t.Context(), "anna")
		hello, ok := strings.CutPrefix(l.events(), "event: hello\ndata: ")
		var got inventory
		if err := json.Unmarshal([]byte(strings.TrimSpace(hello)), &got); !ok || err != nil || got.Device != "anna" || got.Version != w.panel.assets.version || len(got.Homes) != 1 {
			t.Fatalf("%v %s", err, hello)
		}
		if l.header.Get("Content-Type") != "text/event-stream" || l.header.Get("Cache-Control") != "no-store" {
			t.Error(l.header)
		}
		w.relay.alter("kitchen", func(h *fakeHome) { h.Broker = false })
		synctest.Wait()
		if got := l.events(); !strings.HasPrefix(got, `event: home`+"\n"+`data: {"name":"kitchen"`) || !strings.Contains(got, `"broker":false`) || !strings.HasSuffix(got, "}\n\n") {
			t.Errorf("home: %q", got)
		}
		w.relay.do(func() {
			w.relay.publish("", mqttbridge.Event{Status: &mqttbridge.Status{ID: "x", State: mqttbridge.Done, Reason: "two\nlines"}})
			w.relay.publish("", mqttbridge.Event{HomeGone: "kitchen"})
			w.relay.publish("", mqttbridge.Event{})
		})
		synctest.Wait()
		if got := l.events(); !strings.HasPrefix(got, "event: command\ndata: {\"id\":\"x\"") || !strings.HasSuffix(got, "\n\nevent: gone\ndata: {\"home\":\"kitchen\"}\n\n") || strings.Count(got, "\n") != 6 {
			t.Errorf("%q", got)
		}
		time.Sleep(pingEvery)
		synctest.Wait()
		if got := l.events(); got != "event: ping\ndata:\n\n" {
			t.Errorf("after 15 s: %q", got)
		}
		// For ever is not allowed: the page asks again and is authorised again.
		time.Sleep(streamLife - pingEvery)
		if !closed(ended) {
			t.Error("the stream lives after half an hour")
		}
	})
}

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// TestStreamLives: over real HTTP/1.1 and HTTP/2, whose streams end at a write
// deadline even when nothing waits to be written.
func TestStreamLives(t *testing.T) {
	for _, version := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(version, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.other.Store(new("anna"))
				protocols := new(http.Protocols)
				protocols.SetHTTP1(version == "HTTP/1.1")
				protocols.SetUnencryptedHTTP2(version == "HTTP/2.0")
				l := &pipes{make(chan net.Conn), make(chan struct{})}
				srv := &http.Server{Handler: w.panel, Protocols: protocols, WriteTimeout: 5 * time.Second}
				go srv.Serve(l)
				client := &http.Transport{Protocols: protocols, DialContext: func(context.Context, string, string) (net.Conn, error) {
					here, there := net.Pipe()
					l.conns <- there
					return here, nil
				}}
				defer func() {
					client.CloseIdleConnections()
					close(l.done)
					srv.Close()
				}()
				resp, err := (&http.Client{Transport: client}).Get("http://home.test/api/events")
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				start, pings := time.Now(), 0
				lines := bufio.NewScanner(resp.Body)
				for lines.Scan() {
					if lines.Text() == "event: ping" {
						pings++
					}
				}
				if lived := time.Since(start); lived != streamLife || pings < 118 || lines.Err() != nil || resp.Proto != version {
					t.Errorf("%s: it lived %s with %d pings, %v", resp.Proto, lived, pings, lines.Err())
				}
			})
		})
	}
}

// TestStreamEnds: with the device's right to watch, with the visitor, with a
// visitor that does not read; each time the backend is told.
func TestStreamEnds(t *testing.T) {
	for name, end := range map[string]func(w *world, l *listener, away func()){
		"the backend":     func(w *world, _ *listener, _ func()) { w.relay.endAll() },
		"the visitor":     func(_ *world, _ *listener, away func()) { away() },
		"the certificate": func(w *world, _ *listener, _ func()) { w.other.Store(new("")) },
		"another device":  func(w *world, _ *listener, _ func()) { w.other.Store(new("ben")) },
		"nobody reads":    func(_ *world, l *listener, _ func()) { l.mu.Lock(); l.stuck = true; l.mu.Unlock() },
		"nobody reads news": func(w *world, l *listener, _ func()) {
			l.mu.Lock()
			l.stuck = true
			l.mu.Unlock()
			w.relay.alter("kitchen", func(*fakeHome) {})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				l, ended := w.listen(ctx, "anna")
				if closed(ended) {
					t.Fatal("it ended by itself")
				}
				end(w, l, cancel)
				time.Sleep(pingEvery)
				if !closed(ended) {
					t.Error("the stream goes on")
				}
				if n := look(w.relay, func() int { return len(w.relay.watchers) }); n != 0 {
					t.Errorf("the backend still has %d watchers", n)
				}
			})
		})
	}
}
