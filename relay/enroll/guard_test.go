package enroll

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// TestBruteForce: five wrong tries are answered, then the source waits longer
// and longer, and from the tenth on an hour. While it waits not even the good
// code opens; for everybody else it does.
func TestBruteForce(t *testing.T) {
	w := newWorld(t)
	code := w.invite(t, Invitation{Name: "anna", TTL: 24 * time.Hour})
	other := netip.MustParseAddr("203.0.113.8")
	waits := []time.Duration{0, 0, 0, 0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, time.Hour, 0, 0, 0, 0, 10 * time.Second}
	for i, want := range waits {
		if _, err := w.Look(t.Context(), phone, rand.Text()); !errors.Is(err, ErrCode) {
			t.Fatalf("try %d: %v", i+1, err)
		}
		_, err := w.Look(t.Context(), phone, code)
		var wait time.Duration
		if b, ok := errors.AsType[*BlockedError](err); ok {
			wait = b.RetryAfter()
		} else if err != nil {
			t.Fatal(err)
		}
		if wait != want {
			t.Errorf("after %d wrong tries it waits %v, want %v", i+1, wait, want)
		}
		if _, err := w.Look(t.Context(), other, code); err != nil {
			t.Errorf("another source after %d tries: %v", i+1, err)
		}
		if wait == 0 {
			continue
		}
		// Whatever it does meanwhile is refused, and does not prolong the wait.
		w.clock.add(wait - time.Second)
		app := application(t, code)
		if _, err := w.Apply(t.Context(), app); !errors.Is(err, ErrBlocked) {
			t.Errorf("Apply while waiting: %v", err)
		}
		if _, err := w.Apply(t.Context(), Application{Source: phone, CSR: []byte("never read")}); !errors.Is(err, ErrBlocked) {
			t.Errorf("a broken request while waiting: %v", err)
		}
		if _, err := w.Status(t.Context(), phone, "abcdefgh", "x"); !errors.Is(err, ErrBlocked) {
			t.Errorf("Status while waiting: %v", err)
		}
		w.clock.add(time.Second)
	}
	if n := w.diary.count("enrol.refused"); n != len(waits) {
		t.Errorf("%d wrong tries were audited, want %d", n, len(waits))
	}
	w.clock.add(time.Hour)
	app := application(t, code)
	w.apply(t, app, Issued)
}

// TestBurst: tries that come at once are answered no more often than others.
func TestBurst(t *testing.T) {
	w := newWorld(t)
	apps := make([]Application, 60)
	for i := range apps {
		apps[i] = application(t, rand.Text())
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	answered := 0
	start := make(chan struct{})
	for i, app := range apps {
		wg.Go(func() {
			<-start
			var err error
			switch i % 3 {
			case 0:
				_, err = w.Look(t.Context(), phone, app.Code)
			case 1:
				_, err = w.Apply(t.Context(), app)
			default:
				_, err = w.Status(t.Context(), phone, "abcdefgh", app.Ticket)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, ErrCode), errors.Is(err, ErrUnknown):
				answered++
			case !errors.Is(err, ErrBlocked):
				t.Error(err)
			}
		})
	}
	close(start)
	wg.Wait()
	if answered != freeTries {
		t.Errorf("%d of 60 tries at once were answered, want %d", answered, freeTries)
	}
}

// TestTicketBruteForce: tickets are guessed no cheaper than codes, and a
// request without a ticket is not read with an empty one.
func TestTicketBruteForce(t *testing.T) {
	w := newWorld(t)
	app := application(t, w.invite(t, Invitation{Name: "anna", Approve: true}))
	r := w.apply(t, app, Pending)
	bare := application(t, w.invite(t, Invitation{Name: "berta", Approve: true}))
	bare.Ticket = ""
	b := w.apply(t, bare, Pending)
	for i, try := range []struct{ id, ticket string }{{r.ID, rand.Text()}, {b.ID, ""}, {r.ID, ""}, {"", ""}, {b.ID, rand.Text()}} {
		if _, err := w.Status(t.Context(), phone, try.id, try.ticket); !errors.Is(err, ErrUnknown) {
			t.Errorf("try %d: %v", i, err)
		}
	}
	if _, err := w.Status(t.Context(), phone, r.ID, app.Ticket); !errors.Is(err, ErrBlocked) {
		t.Errorf("the right ticket after five wrong ones: %v", err)
	}
	if _, err := w.Status(t.Context(), netip.MustParseAddr("2001:db8::1"), r.ID, app.Ticket); err != nil {
		t.Errorf("from elsewhere: %v", err)
	}
}

func TestSourceOf(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"203.0.113.7", "::ffff:203.0.113.7", true},
		{"203.0.113.7", "203.0.113.8", false},
		{"2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true},
		{"2001:db8:1:2::1", "2001:db8:1:3::1", false},
		{"fe80::1%eth0", "fe80::2%wlan0", true},
	} {
		if got := sourceOf(netip.MustParseAddr(c.a)) == sourceOf(netip.MustParseAddr(c.b)); got != c.same {
			t.Errorf("%s and %s: one source %v", c.a, c.b, got)
		}
	}
	if sourceOf(netip.Addr{}) == sourceOf(netip.MustParseAddr("0.0.0.0")) {
		t.Error("no address is counted as an address")
	}
}

func addr(i int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(0x0a000000+i))
	return netip.AddrFrom4(b)
}

// TestFlood: many sources spend the budget of all. From then on each has two
// tries an hour, the audit log does not grow, and the owner's good code opens
// from an address that did nothing wrong.
func TestFlood(t *testing.T) {
	w := newWorld(t)
	code := w.invite(t, Invitation{Name: "anna"})
	for i := range globalBudget {
		w.Look(t.Context(), addr(i), rand.Text())
	}
	answered := 0
	for i := globalBudget; i < globalBudget+200; i++ {
		for range 3 {
			if _, err := w.Look(t.Context(), addr(i), rand.Text()); errors.Is(err, ErrCode) {
				answered++
			}
		}
	}
	if answered != 200 {
		t.Errorf("%d tries of 200 sources were answered at once, want one each", answered)
	}
	w.clock.add(firstDelay)
	i := globalBudget + 5
	if _, err := w.Look(t.Context(), addr(i), rand.Text()); !errors.Is(err, ErrCode) {
		t.Error(err)
	}
	if _, err := w.Look(t.Context(), addr(i), code); !errors.Is(err, ErrBlocked) {
		t.Errorf("a third try: %v", err)
	}
	if n := w.diary.count("enrol.refused"); n > globalBudget+2 {
		t.Errorf("%d wrong tries were audited", n)
	}
	if n := w.diary.count("enrol.flood"); n != 1 {
		t.Errorf("the flood was audited %d times", n)
	}
	w.apply(t, application(t, code), Issued)
	// Afterwards everything is as before.
	w.clock.add(globalEvery * globalBudget)
	for range freeTries {
		if _, err := w.Look(t.Context(), addr(1_000_000), rand.Text()); !errors.Is(err, ErrCode) {
			t.Error(err)
		}
	}
}

// TestGuardMemory: a hundred thousand sources cost no more than maxSuspects,
// and it is the quietest that are forgotten.
func TestGuardMemory(t *testing.T) {
	var g guard
	now := today
	for range maxTries {
		g.wrong(sourceOf(phone), now)
	}
	for i := range 100_000 {
		now = now.Add(time.Millisecond)
		g.wrong(sourceOf(addr(i)), now)
		if i%1000 == 0 {
			if g.admit(sourceOf(phone), now) == 0 {
				t.Fatal("a busy source was forgotten")
			}
			g.wrong(sourceOf(phone), now)
		}
	}
	if len(g.sources) != maxSuspects || g.order.Len() != maxSuspects {
		t.Errorf("%d sources, %d in order", len(g.sources), g.order.Len())
	}
	if g.admit(sourceOf(addr(0)), now) != 0 {
		t.Error("a quiet source was kept")
	}
}

func TestBlockedError(t *testing.T) {
	err := error(&BlockedError{1500 * time.Millisecond})
	if b, ok := errors.AsType[*BlockedError](err); !ok || b.RetryAfter() != 2*time.Second || !errors.Is(err, ErrBlocked) || errors.Is(err, ErrCode) {
		t.Error(err)
	}
	if (&BlockedError{}).RetryAfter() != time.Second {
		t.Error("a wait of nothing")
	}
}
