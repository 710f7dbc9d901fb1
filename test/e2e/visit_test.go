package e2e_test

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/sallyport/sallyport/test/world"
)

const (
	domain  = "example.org"
	homeURL = "https://web.example.org"
)

// standard is the world of most tests: a relay, a home with a web app and an
// echo, a phone.
func standard(w *world.World) (*world.Relay, *world.Home, *world.Phone) {
	w.T.Helper()
	r := w.Relay(domain)
	h := r.Home("kitchen", world.Web("web"), world.Echo("echo"))
	return r, h, r.Phone("anna")
}

// visit checks that a visit succeeds.
func visit(w *world.World, p *world.Phone, url string) world.Reply {
	w.T.Helper()
	reply, err := p.Get(url)
	if err != nil {
		w.T.Fatal(err)
	}
	if reply.Status != http.StatusOK {
		w.T.Fatalf("%s: status %d: %s", url, reply.Status, reply.Body)
	}
	return reply
}

func TestJoinAndVisit(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, h, p := standard(w)
		reply := visit(w, p, homeURL+"/")
		if reply.Proto != "HTTP/2.0" || reply.Body != "this is web" || reply.Header.Get("X-Device") != "anna" {
			t.Errorf("got %+v", reply)
		}
		if got := h.Transport(); got != "quic" {
			t.Errorf("connected by %q", got)
		}
		if a := r.Agent("kitchen"); !a.Online || len(a.Hosts) != 2 {
			t.Errorf("the relay says %+v", a)
		}

		c, err := p.Dial("echo.example.org")
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "hello")
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
			t.Errorf("after the half-close: %q, %v", got, err)
		}

		if reply, err := r.Stranger().Get(homeURL + "/"); err == nil {
			t.Errorf("a stranger got %+v", reply)
		}
		if reply, err := p.Get("https://nobody.example.org/"); err == nil {
			t.Errorf("a name that nobody claimed answers %+v", reply)
		}
	})
}

// The list of services changes without a new session: what remains goes on,
// what is gone ends.
func TestServicesChange(t *testing.T) {
	world.Run(t, func(w *world.World) {
		_, h, p := standard(w)
		before := h.Status()
		kept, gone := openRaw(w, p), openDrip(w, p, true)
		changed := time.Now()
		h.Offer(world.Web("fresh"))
		took := w.Until(time.Second, "the new service is there", func() bool { return p.Visits("https://fresh.example.org/") })
		t.Logf("a visit of a new service succeeds after %v", took)
		allLive(t, []*world.Watch{kept, gone})
		h.Withdraw("web")
		allCut(t, []*world.Watch{gone}, changed, time.Second)
		if p.Visits(homeURL + "/") {
			t.Error("the service that is gone still answers")
		}
		allLive(t, []*world.Watch{kept})
		if !h.Status().Since.Equal(before.Since) {
			t.Error("the session was made anew")
		}
	})
}
