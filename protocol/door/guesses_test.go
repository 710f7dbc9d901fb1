package door

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var someone = netip.MustParseAddr("192.0.2.1")

// try is one request with one secret; the answer says whether it was looked at.
func (g *guesses) try(ip netip.Addr, secret string, good bool) bool {
	t := g.begin(ip, "tv.test", secret)
	switch {
	case t == nil:
		return false
	case good:
		g.right(t, true)
	default:
		g.wrong(t)
	}
	return true
}

func (g *guesses) looked(ip netip.Addr, n int) (looked int) {
	for i := range n {
		if g.try(ip, fmt.Sprint("wrong", i), false) {
			looked++
		}
	}
	return looked
}

func TestGuessesOfASource(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuesses()
		g.try(someone, tv, true)
		for range 10 * guessBurst {
			g.try(someone, tv, true) // good ones cost nothing
		}
		if n := g.looked(someone, 1000); n != guessBurst {
			t.Errorf("%d guesses were looked at", n)
		}
		if g.try(someone, "another good one", true) {
			t.Error("a source without tries was listened to")
		}
		if !g.try(someone, tv, true) {
			t.Error("a secret that was good here is locked out by its neighbours")
		}
		if g.try(netip.MustParseAddr("192.0.2.2"), "wrong", false) != true {
			t.Error("another source is locked out")
		}
		time.Sleep(guessEvery)
		if n := g.looked(someone, 1000); n != 1 {
			t.Errorf("%d guesses after %v", n, guessEvery)
		}
		time.Sleep(time.Hour)
		if n := g.looked(someone, 1000); n != guessBurst {
			t.Errorf("%d guesses after an hour", n)
		}
		// A day of guessing without pause.
		n := 0
		for range 24 * 3600 {
			time.Sleep(time.Second)
			n += g.looked(someone, 3)
		}
		if most := int(24*time.Hour/guessEvery) + 1; n > most {
			t.Errorf("%d guesses in a day, want at most %d", n, most)
		}
	})
}

// What stopped being good is a guess like any other from its next try on.
func TestForgottenSecretIsAGuess(t *testing.T) {
	g := newGuesses()
	g.try(someone, tv, true)
	n := 0
	for range 100 {
		if g.try(someone, tv, false) {
			n++
		}
	}
	if n != guessBurst+1 {
		t.Errorf("%d tries", n)
	}
}

// Tries at the same time are counted when they begin.
func TestGuessesAtOnce(t *testing.T) {
	g := newGuesses()
	var all []*guess
	for i := range 100 {
		if t := g.begin(someone, "tv.test", fmt.Sprint(i)); t != nil {
			all = append(all, t)
		}
	}
	if len(all) != guessBurst {
		t.Errorf("%d at once", len(all))
	}
	told := 0
	for _, guess := range all {
		if g.wrong(guess) {
			told++
		}
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
}

func TestSources(t *testing.T) {
	for ip, want := range map[string]string{
		"192.0.2.1": "192.0.2.1/32", "::ffff:192.0.2.1": "192.0.2.1/32", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := source(netip.MustParseAddr(ip)); got.String() != want {
			t.Errorf("%s is %s", ip, got)
		}
	}
	if source(netip.Addr{}).IsValid() {
		t.Error("nobody has a source")
	}
}

func TestGuessesAreBounded(t *testing.T) {
	g := newGuesses()
	for i := range 10 * mostSources {
		ip := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		g.try(ip, "wrong", false)
		g.try(ip, tv, true)
	}
	if n := len(g.sources.now) + len(g.sources.old); n > 2*mostSources || n < mostSources {
		t.Errorf("%d sources", n)
	}
	if n := len(g.known.now) + len(g.known.old); n > 2*mostKnown || n < mostKnown {
		t.Errorf("%d known secrets", n)
	}
	if !g.try(someone, "a newcomer", false) {
		t.Error("a full memory locks newcomers out")
	}
}

// On the wire: guesses end in silence, what is no guess costs nothing, and the
// audit log has one line.
func TestGuessesAreLimited(t *testing.T) {
	t.Parallel()
	var lines atomic.Int32
	var asked atomic.Int32
	w := tokenWorld(t, hello, func(c *Config) {
		c.Audit = func(event string, _ ...slog.Attr) {
			if event == eventGuessing {
				lines.Add(1)
			}
		}
		check := c.CheckToken
		c.CheckToken = func(host, secret string, now time.Time) (Device, string) {
			asked.Add(1)
			return check(host, secret, now)
		}
	})
	for range 3 * guessBurst { // pages that know nothing of their prefix; a webhook that was revoked
		for _, request := range []string{get("/favicon.ico"), get("/api/x"), get("/", "Authorization: Bearer ey.J.x"), get("/", "Authorization: Basic YTpi")} {
			if answer := w.raw("tv.test", nil, request); statusOf(answer) != 404 {
				t.Fatalf("%q", answer)
			}
		}
	}
	if asked.Load() != 0 {
		t.Errorf("what is no secret was looked up %d times", asked.Load())
	}
	const hook = "HOOKHOOKHOOKHOOKHOOKHOOKHO"
	w.token("tv.test", hook, Device{ID: "hook", Name: "hook"})
	w.deny1("hook", DeniedRevoked)
	for range 2 * guessBurst {
		w.raw("tv.test", nil, get("/"+hook+"/"))
		// A good secret beside something that looks like one.
		if answer := w.raw("tv.test", nil, get("/"+tv+"/", "Authorization: Bearer glsa_0123456789abcdef0123456789abcdef")); statusOf(answer) != 200 {
			t.Fatalf("%q", answer)
		}
		if answer := w.raw("tv.test", nil, get("/a-long-name-of-an-album/", "Authorization: Bearer "+tv)); statusOf(answer) != 200 {
			t.Fatalf("%q", answer)
		}
	}
	asked.Store(0)
	for i := range 3 * guessBurst {
		w.raw("tv.test", nil, get(fmt.Sprintf("/%026d/", i)))
	}
	if n := asked.Load(); n != guessBurst {
		t.Errorf("%d guesses were looked up", n)
	}
	const late = "LATELATELATELATELATELATELA"
	w.token("tv.test", late, Device{ID: "late", Name: "late"})
	if answer := w.raw("tv.test", nil, get("/"+late+"/")); statusOf(answer) != 404 {
		t.Errorf("the right guess after all the wrong ones: %q", answer)
	}
	if answer := w.raw("tv.test", nil, get("/"+tv+"/")); statusOf(answer) != 200 {
		t.Errorf("who is known was locked out: %q", answer)
	}
	if n := lines.Load(); n != 1 {
		t.Errorf("%d lines in the audit log", n)
	}
	if strings.Contains(w.raw("tv.test", nil, get("/"+late+"/")), "429") {
		t.Error("the page says that it counts")
	}
}
