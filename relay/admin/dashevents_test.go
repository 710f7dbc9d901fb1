package admin

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/localsock"
)

// overSocket asks through the dashboard's socket as a browser behind ssh -L
// does. The body is closed with the test.
func overSocket(t *testing.T, dir, path string) *http.Response {
	t.Helper()
	if info, err := os.Stat(filepath.Join(dir, DashboardSocketName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v, %v", info, err)
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return localsock.Dial(ctx, dir, DashboardSocketName)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	res, err := (&http.Client{Transport: tr}).Get("http://localhost:9080" + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

// stream is a ResponseWriter whose text can be read while it is written.
type stream struct {
	*io.PipeWriter
	header http.Header
}

func (s stream) Header() http.Header { return s.header }
func (s stream) WriteHeader(int)     {}
func (s stream) Flush()              {}

// watch opens an event stream and returns its events.
func watch(t *testing.T, ctx context.Context, h http.Handler) <-chan string {
	t.Helper()
	in, out := io.Pipe()
	r := httptest.NewRequestWithContext(ctx, "GET", "http://localhost/events", nil)
	go func() {
		h.ServeHTTP(stream{out, http.Header{}}, r)
		out.Close()
	}()
	events := make(chan string)
	go func() {
		defer close(events)
		for lines := bufio.NewScanner(in); lines.Scan(); {
			if event, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				events <- event
			}
		}
	}()
	return events
}

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRelay()
		h := NewDashboard(f.config())
		ctx, cancel := context.WithCancel(t.Context())
		events := watch(t, ctx, h)
		synctest.Wait()

		began := time.Now()
		for range 100 { // a burst
			f.bell.Ring()
		}
		if got := <-events; got != "change" || time.Since(began) != settle {
			t.Errorf("%s after %v", got, time.Since(began))
		}
		if got := <-events; got != "tick" || time.Since(began) != tickEvery {
			t.Errorf("%s after %v: a burst is one event", got, time.Since(began))
		}
		cancel()
		if got, more := <-events; more {
			t.Errorf("%s after the end", got)
		}
		synctest.Wait()
		if n := len(f.bell.listeners); n != 0 {
			t.Errorf("%d listeners are left", n)
		}
	})
}

func TestStreamsEndByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := newFakeRelay().config()
		cfg.Changes = nil
		began, n := time.Now(), 0
		for range watch(t, t.Context(), NewDashboard(cfg)) {
			n++
		}
		if d := time.Since(began); d != streamLife || n != int(streamLife/tickEvery)-1 && n != int(streamLife/tickEvery) {
			t.Errorf("%d events in %v", n, d)
		}
	})
}

func TestStreamsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewDashboard(newFakeRelay().config())
		ctx, cancel := context.WithCancel(t.Context())
		for range maxStreams {
			watch(t, ctx, h)
		}
		synctest.Wait()
		if w := get1(h, "/events"); w.Code != http.StatusServiceUnavailable {
			t.Errorf("one too many: %d", w.Code)
		}
		cancel()
		synctest.Wait()
		ctx, cancel = context.WithCancel(t.Context())
		watch(t, ctx, h)
		synctest.Wait()
		cancel()
	})
}

func TestBell(t *testing.T) {
	var b Bell
	b.Ring() // nobody listens
	ctx, cancel := context.WithCancel(t.Context())
	c := b.Listen(ctx)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(b.Ring)
	}
	wg.Wait()
	<-c
	select {
	case <-c:
		t.Error("rings were queued")
	default:
	}
	cancel()
}
