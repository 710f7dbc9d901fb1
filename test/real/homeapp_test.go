package real

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// helperEnv holds the address on which the test binary, started again inside a
// namespace, serves the home app instead of running tests.
const helperEnv = "SALLYPORT_REAL_HELPER"

// homeApp is what a home serves in these tests:
//
//	/          "hello from home"
//	/seen      what arrived: host, headers, protocol, as JSON
//	/bytes?n=  n bytes
//	/upload    counts the body
//	/clock     server-sent events, a line every 50 ms, for ever
//	/ws        a WebSocket echo
//	/drip      a download of known length that never ends by itself: 1 kB every 50 ms
func homeApp() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello from home") })
	seen := func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"host": r.Host, "header": r.Header, "uri": r.RequestURI, "proto": r.Proto})
	}
	mux.HandleFunc("/seen", seen)
	mux.HandleFunc("/seen/", seen)
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.FormValue("n"), 10, 64)
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.CopyN(w, zeros{}, n)
	})
	mux.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d %v\n", n, err)
	})
	mux.HandleFunc("/clock", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		every(r, 50*time.Millisecond, func(i int) error {
			_, err := fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			return err
		})
	})
	mux.HandleFunc("/drip", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000000000")
		every(r, 50*time.Millisecond, func(int) error {
			_, err := w.Write(make([]byte, 1000))
			w.(http.Flusher).Flush()
			return err
		})
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(1 << 20)
		for {
			kind, msg, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, msg) != nil {
				return
			}
		}
	})
	return mux
}

// every calls f again and again until it fails or the visitor is gone.
func every(r *http.Request, d time.Duration, f func(i int) error) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for i := 0; f(i) == nil; i++ {
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// startHomeApp serves homeApp on loopback; returns its address.
func startHomeApp(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(homeApp())
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.Listener.Addr().String()
}

// startEcho serves a TCP echo that answers only after the client's half-close:
// everything it heard, in upper case.
func startEcho(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serveEcho(l)
	return l.Addr().String()
}

func serveEcho(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if heard, err := io.ReadAll(c); err == nil {
				_, _ = io.WriteString(c, strings.ToUpper(string(heard)))
			}
		}()
	}
}

// serveHelper serves homeApp on addr and never returns but with an error.
func serveHelper(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "home app listens on", l.Addr())
	return http.Serve(l, homeApp())
}
