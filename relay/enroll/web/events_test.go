package web

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/relay/enroll"
)

// A flow is the answer of an event stream, read while it is written.
type flow struct {
	header http.Header

	mu     sync.Mutex // guards what follows
	status int
	text   strings.Builder
}

func (f *flow) Header() http.Header { return f.header }
func (f *flow) Flush()              {}

func (f *flow) WriteHeader(status int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status = status
}

func (f *flow) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text.Write(p)
}

// String returns what has come.
func (f *flow) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text.String()
}

// watch opens the events of a request; done gets the status, 0 for 200, when
// they end.
func watch(ctx context.Context, h http.Handler, id string) (f *flow, done chan int) {
	r := httptest.NewRequestWithContext(ctx, "GET", "https://enroll.home.test/api/requests/"+id+"/events", nil)
	r.Header.Set("Authorization", "Bearer "+ticket)
	f, done = &flow{header: http.Header{}}, make(chan int, 1)
	go func() {
		h.ServeHTTP(f, r)
		done <- f.status
	}()
	return f, done
}

// pending makes a request that waits.
func pending(t *testing.T, w *relayWorld) request {
	t.Helper()
	w.desk.codes[code] = enroll.Invitation{Name: "anna-phone", Approve: true}
	csr, _ := newCSR(t)
	return decode[request](t, call(w.pages.Enroll(), "POST", "/api/requests", application(t, csr)))
}

func TestEvents(t *testing.T) {
	w := newWorld(t) // no CA can be made at the time of a bubble, 2000-01-01
	synctest.Test(t, func(t *testing.T) {
		made := pending(t, w)
		lines, done := watch(t.Context(), w.pages.Enroll(), made.ID)
		synctest.Wait()
		first := lines.String()
		data, ok := strings.CutPrefix(first, "event: state\ndata: ")
		var q request
		if err := json.Unmarshal([]byte(data), &q); !ok || err != nil || q.State != enroll.Pending || !strings.HasSuffix(first, "\n\n") {
			t.Fatalf("first %q: %v", first, err)
		}
		time.Sleep(heartbeat + time.Second)
		synctest.Wait()
		if got := lines.String()[len(first):]; got != ": waiting\n\n" {
			t.Errorf("after a silence: %q", got)
		}
		// A change that changes nothing for the applicant does not end it.
		w.desk.mu.Lock()
		w.desk.wake(made.ID)
		w.desk.mu.Unlock()
		synctest.Wait()
		if n := strings.Count(lines.String(), "event: state"); n != 2 {
			t.Errorf("%d events", n)
		}
		w.desk.decide(t, true)
		synctest.Wait()
		if all := lines.String(); !strings.Contains(all[strings.LastIndex(all, "event"):], `"state":"issued"`) {
			t.Errorf("last: %s", all)
		}
		select {
		case <-done:
		default:
			t.Error("the stream goes on after the last state")
		}
	})
}

// TestEventsLoseNothing: a decision that falls between the look at the state
// and the wait for its change is seen at once.
func TestEventsLoseNothing(t *testing.T) {
	w := newWorld(t) // no CA can be made at the time of a bubble, 2000-01-01
	synctest.Test(t, func(t *testing.T) {
		made := pending(t, w)
		w.pages.cfg.Desk = &hasty{fakeDesk: w.desk, after: func() { w.desk.decide(t, true) }}
		lines, done := watch(t.Context(), w.pages.Enroll(), made.ID)
		synctest.Wait()
		select {
		case <-done:
		default:
			t.Errorf("the decision was lost: %s", lines)
		}
	})
}

// hasty decides right after the first look.
type hasty struct {
	*fakeDesk
	once  sync.Once
	after func()
}

func (h *hasty) Status(ctx context.Context, from netip.Addr, id, ticket string) (enroll.Request, error) {
	q, err := h.fakeDesk.Status(ctx, from, id, ticket)
	h.once.Do(h.after)
	return q, err
}

func TestEventsEnd(t *testing.T) {
	w := newWorld(t) // no CA can be made at the time of a bubble, 2000-01-01
	synctest.Test(t, func(t *testing.T) {
		made := pending(t, w)
		h := w.pages.Enroll()
		var all []chan int
		ctx, leave := context.WithCancel(t.Context())
		for range maxStreams {
			_, done := watch(ctx, h, made.ID)
			all = append(all, done)
		}
		synctest.Wait()
		_, done := watch(t.Context(), h, made.ID)
		if status := <-done; status != 429 {
			t.Errorf("one stream too many: %d", status)
		}
		leave() // the pages are closed
		for _, done := range all {
			<-done
		}
		if len(w.pages.streams) != 0 {
			t.Errorf("%v streams are still counted", w.pages.streams)
		}
		start := time.Now()
		_, done = watch(t.Context(), h, made.ID)
		<-done
		if took := time.Since(start); took != streamLife {
			t.Errorf("a stream that nobody ends took %v", took)
		}
	})
}

func TestEventsNeedTheTicket(t *testing.T) {
	w := newWorld(t)
	made := pending(t, w)
	for header, want := range map[string]int{"": 401, "Bearer " + strings.Repeat("x", 22): 404} {
		if rec := call(w.pages.Enroll(), "GET", "/api/requests/"+made.ID+"/events", "", "Authorization", header); rec.Code != want || strings.Contains(rec.Body.String(), "event:") {
			t.Errorf("%q: %d %s", header, rec.Code, rec.Body)
		}
	}
	if len(w.pages.streams) != 0 {
		t.Error("refused streams are counted")
	}
}
