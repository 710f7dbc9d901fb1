package scep

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

type waitError time.Duration

func (e waitError) Error() string             { return "too many wrong tries" }
func (e waitError) RetryAfter() time.Duration { return time.Duration(e) }

// A guard lets a source in until it failed too often.
type guard struct {
	mu     sync.Mutex // guards the fields below
	failed map[netip.Addr]int
	asked  int
}

func (g *guard) allow(source netip.Addr) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked++
	if g.failed[source] >= 5 {
		return waitError(90 * time.Second)
	}
	return nil
}

func (g *guard) fail(source netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failed[source]++
}

func (g *guard) count(source netip.Addr) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failed[source]
}

var here = netip.MustParseAddr("203.0.113.7")

// guarded returns a server of w with a guard, at which everybody comes from
// the address in X-From, or from here.
func guarded(w *world) (*Server, *guard) {
	g := &guard{failed: map[netip.Addr]int{}}
	cfg := w.server.cfg
	cfg.Allow, cfg.Failed = g.allow, g.fail
	cfg.Source = func(r *http.Request) netip.Addr {
		if from, err := netip.ParseAddr(r.Header.Get("X-From")); err == nil {
			return from
		}
		return here
	}
	return New(cfg), g
}

func postTo(t testing.TB, s *Server, body io.Reader, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://enroll.example.org/scep?operation=PKIOperation", body)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// TestReplayIsNotWorkedOn: a message that fails is answered a few times, then
// its source waits, and nothing of it is read any more. Other sources come in.
func TestReplayIsNotWorkedOn(t *testing.T) {
	w := newWorld(t)
	c := newClient(t, w)
	c.kind, c.plain = 20, issuerAndSubject
	poll := c.message()
	c = newClient(t, w)
	c.plain = csr(t, someRSA(), printable("x"))
	c.meddle = func(b []byte) []byte { b = bytes.Clone(b); b[len(b)-1] ^= 1; return b }
	broken := c.message()
	c = newClient(t, w)
	c.kind, c.plain = 17, csr(t, someRSA())
	renewal := c.message() // signed with a certificate that the client made itself
	c = newClient(t, w)
	victim, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c.plain = csr(t, victim, printable("x"))
	stolen := c.message()
	for name, message := range map[string][]byte{"poll": poll, "envelope": broken, "renewal": renewal, "not its key": stolen} {
		s, g := guarded(w)
		for i := range 5 {
			if rec := postTo(t, s, bytes.NewReader(message)); rec.Code != http.StatusOK || g.count(here) != i+1 {
				t.Errorf("%s, try %d: %d, %d failures", name, i+1, rec.Code, g.count(here))
			}
		}
		body := new(endless)
		if rec := postTo(t, s, body); rec.Code != http.StatusTooManyRequests || rec.Header().Get("Retry-After") != "90" || body.read != 0 {
			t.Errorf("%s: %d %v after %d bytes", name, rec.Code, rec.Header(), body.read)
		}
		if rec := postTo(t, s, bytes.NewReader(message), "X-From", "198.51.100.1"); rec.Code != http.StatusOK {
			t.Errorf("%s, from elsewhere: %d", name, rec.Code)
		}
	}
}

// TestHonestClientsDoNotFail: what works, what waits, and what the desk counts
// itself is not counted here.
func TestHonestClientsDoNotFail(t *testing.T) {
	w := newWorld(t)
	w.codes["code-1"] = "queue"
	s, g := guarded(w)
	c := newClient(t, w)
	c.plain = csr(t, someRSA(), printable("wrong"))
	postTo(t, s, bytes.NewReader(c.message()))
	c.plain = csr(t, someRSA(), printable("code-1"))
	postTo(t, s, bytes.NewReader(c.message()))
	c.kind, c.plain = 20, issuerAndSubject
	postTo(t, s, bytes.NewReader(c.message()))
	w.decide(true)
	postTo(t, s, bytes.NewReader(c.message()))
	w.decide(false)
	good := w.issue(csr(t, someRSA()))
	c.kind, c.cert, c.plain = 17, good, csr(t, someRSA())
	postTo(t, s, bytes.NewReader(c.message()))
	if n := g.count(here); n != 0 || w.applications() != 2 || w.renewed != 1 {
		t.Errorf("%d failures, %d applications, %d renewals", n, w.applications(), w.renewed)
	}
}

// TestReplayOfAGoodMessage: one that is answered well every time, too, is
// answered only so often.
func TestReplayOfAGoodMessage(t *testing.T) {
	w := newWorld(t)
	w.codes["code-1"] = "queue"
	s, _ := guarded(w)
	now := time.Now()
	s.cfg.Now = func() time.Time { return now }
	c := newClient(t, w)
	c.plain = csr(t, someRSA(), printable("code-1"))
	message := c.message()
	answered := 0
	for range 2 * maxMessages {
		switch rec := postTo(t, s, bytes.NewReader(message)); {
		case rec.Code == http.StatusOK:
			answered++
		case rec.Code != http.StatusTooManyRequests || rec.Header().Get("Retry-After") != "60":
			t.Fatalf("%d %v", rec.Code, rec.Header())
		}
	}
	if answered != maxMessages || w.applications() != maxMessages {
		t.Errorf("%d were answered, %d applications", answered, w.applications())
	}
	now = now.Add(paceWindow)
	if rec := postTo(t, s, bytes.NewReader(message)); rec.Code != http.StatusOK {
		t.Errorf("a minute later: %d", rec.Code)
	}
}

func TestPace(t *testing.T) {
	var p pace
	now := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	spend := func(from string) (n int) {
		for p.take(netip.MustParseAddr(from), now) {
			if n++; n > 2*maxMessages {
				break
			}
		}
		return n
	}
	if n := spend("2001:db8::1"); n != maxMessages {
		t.Errorf("%d messages", n)
	}
	for _, same := range []string{"2001:db8::ffff:2", "2001:db8::1"} {
		if spend(same) != 0 {
			t.Errorf("%s counts as another source", same)
		}
	}
	if spend("2001:db8:0:1::1") != maxMessages || spend("203.0.113.7") != maxMessages || spend("::ffff:203.0.113.7") != 0 {
		t.Error("sources are mixed up")
	}
	if p.take(netip.Addr{}, now) != true {
		t.Error("who hides was never here")
	}
	now = now.Add(-time.Hour) // a clock that was set back locks nobody out
	if spend("2001:db8::1") != maxMessages {
		t.Error("locked out by the clock")
	}
	for i := range 3 * maxSources {
		p.take(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now)
	}
	if len(p.count) > maxSources || spend("2001:db8::1") != 0 || spend("198.51.100.77") == 0 {
		t.Errorf("%d sources are remembered", len(p.count))
	}
	if maxMessages >= maxAtOnce+maxWaiting {
		t.Error("one source alone can keep all others out")
	}
}

// TestWaitersAreBounded: who comes when too many are inside is sent away at
// once, and nothing that he sends is read. Who stalls while he sends is inside.
func TestWaitersAreBounded(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		s, _ := guarded(w)
		var wg sync.WaitGroup
		var ends []*io.PipeWriter
		for i := range maxAtOnce + maxWaiting {
			body, end := io.Pipe()
			ends = append(ends, end)
			wg.Go(func() { postTo(t, s, body, "X-From", netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).String()) })
		}
		synctest.Wait()
		body := new(endless)
		if rec := postTo(t, s, body); rec.Code != http.StatusServiceUnavailable || rec.Header().Get("Retry-After") != "10" || body.read != 0 {
			t.Errorf("%d %v after %d bytes", rec.Code, rec.Header(), body.read)
		}
		ends[0].Close()
		synctest.Wait()
		if rec := postTo(t, s, bytes.NewReader([]byte("x"))); rec.Code != http.StatusBadRequest {
			t.Errorf("with a place free: %d", rec.Code)
		}
		for _, end := range ends {
			end.CloseWithError(errors.New("gone"))
		}
		wg.Wait()
		if len(s.inside) != 0 || len(s.busy) != 0 {
			t.Errorf("%d are still inside, %d hands busy", len(s.inside), len(s.busy))
		}
	})
}

// TestBurstIsStopped: of many that are inside at once, those behind the failed
// ones are not worked on.
func TestBurstIsStopped(t *testing.T) {
	w := newWorld(t)
	c := newClient(t, w)
	c.kind, c.plain = 20, issuerAndSubject
	poll := c.message()
	synctest.Test(t, func(t *testing.T) {
		s, g := guarded(w)
		for range maxAtOnce {
			s.busy <- struct{}{}
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { postTo(t, s, bytes.NewReader(poll)) })
		}
		synctest.Wait()
		<-s.busy // one hand
		wg.Wait()
		if n := g.count(here); n != 5 {
			t.Errorf("%d of 20 were worked on", n)
		}
	})
}

// TestPagesAreRefused: a web page cannot ask, nor spend the tries of its
// visitor; SCEP clients, which send no such header, can.
func TestPagesAreRefused(t *testing.T) {
	w := newWorld(t)
	w.codes["code-1"] = "issue"
	s, g := guarded(w)
	c := newClient(t, w)
	c.plain = csr(t, someRSA(), printable("code-1"))
	message := c.message()
	for _, header := range [][]string{
		{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Sec-Fetch-Site", "x"}, {"Origin", "https://evil.example"},
	} {
		body := new(endless)
		if rec := postTo(t, s, body, header...); rec.Code != http.StatusForbidden || body.read != 0 {
			t.Errorf("%v: %d", header, rec.Code)
		}
		postTo(t, s, bytes.NewReader(message), header...)
	}
	if w.applications() != 0 || g.asked != 0 || g.count(here) != 0 {
		t.Errorf("%d applications, the guard was asked %d times", w.applications(), g.asked)
	}
	for _, header := range [][]string{{}, {"Sec-Fetch-Site", "none"}, {"Sec-Fetch-Site", "same-origin"}} {
		if rec := postTo(t, s, bytes.NewReader(message), header...); rec.Code != http.StatusOK {
			t.Errorf("%v: %d", header, rec.Code)
		}
	}
}

// TestAllowWithoutWait: an error that knows no time is a refusal all the same.
func TestAllowWithoutWait(t *testing.T) {
	w := newWorld(t)
	s, _ := guarded(w)
	s.cfg.Allow = func(netip.Addr) error { return errors.New("/secret/path") }
	rec := postTo(t, s, bytes.NewReader([]byte("x")))
	if rec.Code != http.StatusTooManyRequests || rec.Header().Get("Retry-After") == "" || bytes.Contains(rec.Body.Bytes(), []byte("secret")) {
		t.Errorf("%d %v %s", rec.Code, rec.Header(), rec.Body)
	}
}
