package devices

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/relay/store"
)

const year = 365 * 24 * time.Hour

// An aheadWorld is a relay whose clock was four years ahead for a while, and is
// right again.
type aheadWorld struct {
	*testClock
	cfg   Config
	d     *Devices
	anna  Device // was seen in the future
	check func(*Devices, Denial)
}

func newAhead(t *testing.T) *aheadWorld {
	t.Helper()
	c := newClock()
	w := &aheadWorld{testClock: c, cfg: configAt(t, c)}
	w.d = open(t, w.cfg)
	stop := start(t, w.d)
	_, guest, err := w.d.Add(t.Context(), Grant{Name: "guest", Key: newPublic(t), Until: today.Add(48 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	w.check = func(d *Devices, want Denial) {
		t.Helper()
		check(t, d, guest, "ha.example.org", c.time(), want)
		warned := strings.Contains(d.ClockWarning(c.time()), "sallyport device clock --reset")
		if warned != (want != Allowed) {
			t.Errorf("the warning is %q", d.ClockWarning(c.time()))
		}
	}
	w.anna, _ = add(t, w.d, "anna-phone")
	add(t, w.d, "lost")
	c.set(today.Add(4 * year))
	w.d.Seen(w.anna.ID)
	add(t, w.d, "added-ahead")
	if _, err := w.d.Revoke(t.Context(), "lost"); err != nil {
		t.Fatal(err)
	}
	stop() // writes down who was seen
	c.set(today.Add(time.Hour))
	return w
}

// TestResetClock: after a clock that was years ahead, the owner's word ends the
// rule of the newest moment, for good and on every relay. Records stay.
func TestResetClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAhead(t)
		other := open(t, w.cfg)
		stop := start(t, other)
		for _, d := range []*Devices{w.d, other, open(t, w.cfg)} {
			w.check(d, DeniedExpired)
		}
		before := entriesOf(t, w.cfg.Store, docPrefix)
		changed := 0
		w.d.cfg.OnChange = func() { changed++; w.d.saveSeen(t.Context()) } // no lock is held
		if err := w.d.ResetClock(t.Context(), w.time()); err != nil {
			t.Fatal(err)
		}
		if changed == 0 {
			t.Error("OnChange was not called")
		}
		synctest.Wait()
		for _, d := range []*Devices{w.d, other, open(t, w.cfg)} {
			w.check(d, Allowed)
			if dev, _ := d.Get("lost"); !dev.Revoked || !dev.RevokedAt.Equal(today.Add(4*year)) {
				t.Errorf("what was revoked is %+v", dev)
			}
			if dev, _ := d.Get("anna-phone"); !dev.LastSeen.Equal(w.time()) {
				t.Errorf("anna was seen %v", dev.LastSeen)
			}
		}
		stop()
		if after := entriesOf(t, w.cfg.Store, docPrefix); after != before {
			t.Error("the records were changed")
		}
		// From here the rule holds as ever: what ends now stays out.
		w.skip(48 * time.Hour)
		w.d.Seen(w.anna.ID)
		w.d.saveSeen(t.Context())
		w.skip(-24 * time.Hour)
		for _, d := range []*Devices{w.d, open(t, w.cfg)} {
			w.check(d, DeniedExpired)
			if dev, _ := d.Get("anna-phone"); !dev.LastSeen.Equal(today.Add(49 * time.Hour)) {
				t.Errorf("anna was seen %v", dev.LastSeen)
			}
		}
	})
}

func entriesOf(t *testing.T, kv store.KV, prefix string) string {
	t.Helper()
	var b strings.Builder
	for _, e := range must(kv.List(t.Context(), prefix)) {
		b.WriteString(e.Key + string(e.Value) + "\n")
	}
	return b.String()
}

// TestResetClockTwice: a second accident, later than the first, is mended too,
// and does not bring the first back.
func TestResetClockTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAhead(t)
		for i := range 3 {
			if err := w.d.ResetClock(t.Context(), w.time()); err != nil {
				t.Fatal(err)
			}
			w.check(w.d, Allowed)
			w.check(open(t, w.cfg), Allowed)
			right := w.time()
			w.set(today.Add(time.Duration(i+2)*year + time.Minute))
			add(t, w.d, strings.Repeat("x", i+1))
			w.set(right)
			w.check(w.d, DeniedExpired)
			w.check(open(t, w.cfg), DeniedExpired)
		}
	})
}

// TestResetIsAMoment: what the owner said has been, also after a restart.
func TestResetIsAMoment(t *testing.T) {
	cfg := config(t)
	_, guest, err := open(t, cfg).Add(t.Context(), Grant{Name: "guest", Key: newPublic(t), Until: today.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	must(cfg.Store.Create(t.Context(), clockKey, []byte(`{"v":1,"at":"`+today.Add(2*time.Hour).Format(time.RFC3339)+`"}`)))
	check(t, open(t, cfg), guest, "ha.example.org", today, DeniedExpired)
}

// TestResetClockNothingToDo: a clock that agrees with the records writes nothing.
func TestResetClockNothingToDo(t *testing.T) {
	d := open(t, config(t))
	add(t, d, "anna-phone")
	if err := d.ResetClock(t.Context(), today.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.cfg.Store.Get(t.Context(), clockKey); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// TestResetClockRefuses a clock that is itself wrong.
func TestResetClockRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAhead(t)
		for _, wrong := range []time.Time{{}, time.Unix(0, 0), time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), today.AddDate(-1, 0, 0), today.AddDate(50, 0, 0)} {
			if err := w.d.ResetClock(t.Context(), wrong); err == nil || !strings.Contains(err.Error(), "\nSet the clock first") {
				t.Errorf("%v: %v", wrong, err)
			}
		}
		w.check(w.d, DeniedExpired)
	})
}

// A fullDisk is a store that fails at its n-th write and after.
type fullDisk struct {
	store.KV
	left int
}

func (f *fullDisk) Create(ctx context.Context, key string, v []byte) (uint64, error) {
	if f.left--; f.left < 0 {
		return 0, errors.New("the disk is full")
	}
	return f.KV.Create(ctx, key, v)
}

func (f *fullDisk) Update(ctx context.Context, key string, v []byte, rev uint64) (uint64, error) {
	if f.left--; f.left < 0 {
		return 0, errors.New("the disk is full")
	}
	return f.KV.Update(ctx, key, v, rev)
}

// TestResetClockCrash: wherever it ends, the rule holds wholly or not at all,
// the same before and after a restart, and trying again mends the rest.
func TestResetClockCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for n := range 2 {
			w := newAhead(t)
			w.d.cfg.Store = &fullDisk{KV: w.cfg.Store, left: n}
			if err := w.d.ResetClock(t.Context(), w.time()); err == nil {
				t.Fatalf("after %d writes there was no error", n)
			}
			want := DeniedExpired
			if n > 0 {
				want = Allowed
			}
			w.check(w.d, want)
			again := open(t, w.cfg)
			w.check(again, want)
			if err := again.ResetClock(t.Context(), w.time()); err != nil {
				t.Fatal(err)
			}
			w.check(again, Allowed)
		}
	})
}

// TestStaleSeen: news of who was seen that come late bring nothing back.
func TestStaleSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAhead(t)
		stale := must(w.cfg.Store.Get(t.Context(), seenPrefix+w.anna.ID))
		if err := w.d.ResetClock(t.Context(), w.time()); err != nil {
			t.Fatal(err)
		}
		w.d.learnSeen(stale)
		w.check(w.d, Allowed)
		if dev, _ := w.d.Get("anna-phone"); !dev.LastSeen.Equal(w.time()) {
			t.Errorf("anna was seen %v", dev.LastSeen)
		}
	})
}

// TestResetClockRaces with visits and rounds of saveSeen.
func TestResetClockRaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAhead(t)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 50 {
					w.d.Seen(w.anna.ID)
					w.d.saveSeen(t.Context())
					w.d.ClockWarning(w.time())
				}
			})
			wg.Go(func() {
				if err := w.d.ResetClock(t.Context(), w.time()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		w.check(w.d, Allowed)
		w.check(open(t, w.cfg), Allowed)
	})
}

// TestDamagedReset: what is not understood is not obeyed, and is an error where
// it cannot be passed over.
func TestDamagedReset(t *testing.T) {
	for _, bad := range []string{"", "{", "{}", `{"v":1}`, `{"v":2,"at":"2027-03-01T12:00:00Z"}`, `{"v":1,"at":"2027-03-01T12:00:00Z","x":1}`, `{"v":1,"at":"2027-03-01T12:00:00Z","never":[2,1]}`, `{"v":1,"at":"2027-03-01T12:00:00Z"}{}`} {
		cfg := config(t)
		d := open(t, cfg)
		rev := must(cfg.Store.Create(t.Context(), clockKey, []byte(bad)))
		d.learnReset(store.Entry{Key: clockKey, Value: []byte(bad), Revision: rev})
		if d.resets.Load().rev != 0 {
			t.Errorf("%q was obeyed", bad)
		}
		if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "backup") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A turnstile is a store that sees whether its writer has the turn.
type turnstile struct {
	store.KV
	t      *testing.T
	d      *Devices
	writes map[string]bool // prefixes
}

func (s *turnstile) Update(ctx context.Context, key string, v []byte, rev uint64) (uint64, error) {
	s.see(key)
	return s.KV.Update(ctx, key, v, rev)
}

func (s *turnstile) Create(ctx context.Context, key string, v []byte) (uint64, error) {
	s.see(key)
	return s.KV.Create(ctx, key, v)
}

func (s *turnstile) see(key string) {
	prefix, _, _ := strings.Cut(key, "/")
	s.writes[prefix] = true
	if s.d.seenTurn.TryLock() {
		s.d.seenTurn.Unlock()
		s.t.Errorf("%s is written without the turn", prefix)
	}
}

// TestResetClockTakesTurns: a round of saveSeen that has a wrong moment in hand
// writes it before the reset reads, or not at all.
func TestResetClockTakesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAhead(t)
		kv := &turnstile{KV: w.cfg.Store, t: t, d: w.d, writes: map[string]bool{}}
		w.d.cfg.Store = kv
		w.set(today.Add(4*year + time.Hour))
		w.d.Seen(w.anna.ID)
		w.d.saveSeen(t.Context())
		w.set(today.Add(time.Hour))
		if err := w.d.ResetClock(t.Context(), w.time()); err != nil {
			t.Fatal(err)
		}
		if !kv.writes["device-seen"] || !kv.writes[clockKey] {
			t.Errorf("written were %v", kv.writes)
		}
	})
}
