package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/relay/store"
	"github.com/sallyport/sallyport/relay/store/memstore"
)

// TestRaceForOneCode: of fifty that come at once, to two relays with one
// store, exactly one gets a request. One relay alone serialises; two must
// do it by the store.
func TestRaceForOneCode(t *testing.T) {
	for round := range 10 {
		w := newWorld(t)
		code := w.invite(t, Invitation{})
		desks := []*Desk{w.Desk, w.open(t, w.kv)}
		var apps []Application
		for i := range 50 {
			app := application(t, code)
			app.Name = fmt.Sprintf("phone-%d", i)
			app.Source = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			apps = append(apps, app)
		}
		start := make(chan struct{})
		results := make([]error, len(apps))
		requests := make([]Request, len(apps))
		var wg sync.WaitGroup
		for i, app := range apps {
			wg.Go(func() {
				<-start
				requests[i], results[i] = desks[i%2].Apply(t.Context(), app)
			})
		}
		close(start)
		wg.Wait()
		won := 0
		for i, err := range results {
			switch {
			case err == nil && requests[i].State == Pending:
				won++
			case !errors.Is(err, ErrCode):
				t.Errorf("round %d: a loser got %+v, %v", round, requests[i], err)
			}
		}
		written, err := w.kv.List(t.Context(), requestPrefix)
		if err != nil || won != 1 || len(written) != 1 {
			t.Fatalf("round %d: %d winners, %d requests, %v", round, won, len(written), err)
		}
	}
}

// TestRaceBehindTheFirst: fifty that were found good before the first one took
// the code are judged again after it.
func TestRaceBehindTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		code := w.invite(t, Invitation{Name: "anna"})
		var mu sync.Mutex
		won := 0
		if err := w.begin(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			app := application(t, code)
			app.Source = addr(i)
			go func() {
				_, err := w.Apply(t.Context(), app)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
				} else if !errors.Is(err, ErrCode) {
					t.Error(err)
				}
			}()
		}
		synctest.Wait() // all wait for the token
		w.end()
		synctest.Wait()
		if won != 1 || w.office.count() != 1 {
			t.Errorf("%d winners, %d certificates", won, w.office.count())
		}
	})
}

// TestTwoOwners: of two decisions at two relays the first counts.
func TestTwoOwners(t *testing.T) {
	w := newWorld(t)
	r := w.apply(t, application(t, w.invite(t, Invitation{Name: "anna", Approve: true})), Pending)
	other := w.open(t, w.kv) // Run does not tell it anything
	if _, err := w.Deny(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Approve(t.Context(), r.ID); err == nil || w.office.count() != 0 {
		t.Errorf("approved what was denied elsewhere: %v", err)
	}
	if got, _, _ := other.StatusOfKey(t.Context(), r.KeyID); got.State != Denied {
		t.Errorf("state %q", got.State)
	}
}

// TestRaceOfOneApplicant: a client that sends its request fifty times at once
// gets one certificate and the same answer every time.
func TestRaceOfOneApplicant(t *testing.T) {
	w := newWorld(t)
	app := application(t, w.invite(t, Invitation{Name: "anna"}))
	var wg sync.WaitGroup
	ids := make([]string, 50)
	for i := range ids {
		wg.Go(func() {
			r, err := w.Apply(t.Context(), app)
			if err != nil || r.State != Issued {
				t.Errorf("%+v, %v", r, err)
			}
			ids[i] = r.ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatal("several requests were made")
		}
	}
	if w.office.count() != 1 {
		t.Errorf("%d certificates", w.office.count())
	}
}

var errCrash = errors.New("crash")

// A dying store fails at its n-th write and at everything after it. With done,
// the n-th is on disk all the same: power went between the write and the
// answer.
type dying struct {
	store.KV
	mu   sync.Mutex // guards the fields below
	left int
	done bool
}

func (d *dying) write(f func() (uint64, error)) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left--
	if d.left > 0 {
		return f()
	}
	if d.left == 0 && d.done {
		f()
	}
	return 0, errCrash
}

func (d *dying) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	return d.write(func() (uint64, error) { return d.KV.Create(ctx, key, value) })
}

func (d *dying) Update(ctx context.Context, key string, value []byte, rev uint64) (uint64, error) {
	return d.write(func() (uint64, error) { return d.KV.Update(ctx, key, value, rev) })
}

func (d *dying) Delete(ctx context.Context, key string, rev uint64) error {
	_, err := d.write(func() (uint64, error) { return 0, d.KV.Delete(ctx, key, rev) })
	return err
}

// TestCrashAnywhere: wherever the relay dies while it serves a code, exactly
// one certificate comes of it, the applicant gets it by asking again, and
// nobody else does.
func TestCrashAnywhere(t *testing.T) {
	for _, inv := range []Invitation{{Name: "anna"}, {Name: "anna", Approve: true}, {}} {
		for n := 1; ; n++ {
			reached := false
			for _, done := range []bool{false, true} {
				reached = crash(t, inv, n, done) || reached
			}
			if !reached {
				if n < 4 {
					t.Errorf("only %d writes", n-1)
				}
				break
			}
		}
	}
}

// crash reports whether the n-th write was reached.
func crash(t *testing.T, inv Invitation, n int, done bool) bool {
	what := fmt.Sprintf("%+v, crash at write %d, written %v", inv, n, done)
	w := newWorld(t)
	app := application(t, w.invite(t, inv))
	app.Name = "anna"
	inv.Approve = inv.Approve || inv.Name == ""
	kv := &dying{KV: w.kv, left: n, done: done}
	first := w.open(t, kv)
	r, err := first.Apply(t.Context(), app)
	if err == nil && inv.Approve {
		r, err = first.Approve(t.Context(), r.ID)
	}
	if err == nil && r.State == Issued {
		return false
	}
	if !errors.Is(err, errCrash) {
		t.Fatalf("%s: %v", what, err)
	}

	again := w.open(t, w.kv)
	again.tidy(t.Context()) // Run's first act
	thief := application(t, app.Code)
	thief.Name = "thief"
	if c := again.codes[hash(app.Code)]; c.UsedBy != nil {
		thief.Source = netip.MustParseAddr("198.51.100.1")
		if _, err := again.Apply(t.Context(), thief); !errors.Is(err, ErrCode) {
			t.Errorf("%s: somebody else: %v", what, err)
		}
	} else if n > 1 {
		t.Errorf("%s: the code waits again", what)
	}
	r, err = again.Apply(t.Context(), app)
	if err == nil && inv.Approve && r.State == Pending {
		r, err = again.Approve(t.Context(), "anna")
	}
	if err != nil || r.State != Issued || len(r.Cert) == 0 {
		t.Errorf("%s: afterwards %q, %v", what, r.State, err)
	}
	if w.office.count() != 1 {
		t.Errorf("%s: %d certificates", what, w.office.count())
	}
	if _, err := again.Apply(t.Context(), thief); !errors.Is(err, ErrCode) {
		t.Errorf("%s: at last somebody else: %v", what, err)
	}
	return true
}

// TestIssueFails: a code whose certificate could not be issued is as good as
// before, and one whose certificate was issued in spite of the error is used.
func TestIssueFails(t *testing.T) {
	boom := errors.New("the disk is full")
	w := newWorld(t)
	app := application(t, w.invite(t, Invitation{Name: "anna"}))
	w.office.fail = boom
	if _, err := w.Apply(t.Context(), app); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if len(w.Codes()) != 1 || len(w.Pending()) != 0 {
		t.Errorf("codes %v, pending %v", w.Codes(), w.Pending())
	}
	other := application(t, app.Code) // the page was loaded anew: another key
	w.apply(t, other, Issued)
	if _, err := w.Apply(t.Context(), app); !errors.Is(err, ErrCode) {
		t.Errorf("the first one now: %v", err)
	}

	w.office.fail, w.office.late = boom, true
	app = application(t, w.invite(t, Invitation{Name: "berta"}))
	w.apply(t, app, Issued)
	if w.office.count() != 2 {
		t.Errorf("%d certificates", w.office.count())
	}
}

// TestIssueFailsUnknown: where nobody can tell whether a certificate was
// issued, the code stays with its applicant, and Run tries on.
func TestIssueFailsUnknown(t *testing.T) {
	w := newWorld(t)
	silent := true
	d := w.open(t, w.kv, func(c *Config) {
		c.Issued = func(ctx context.Context, keyID string) (*x509.Certificate, error) {
			if silent {
				return nil, errCrash
			}
			return w.office.issued(ctx, keyID)
		}
	})
	code, _, err := d.Invite(t.Context(), Invitation{Name: "anna"})
	if err != nil {
		t.Fatal(err)
	}
	app := application(t, code)
	w.office.fail = errCrash
	if _, err := d.Apply(t.Context(), app); !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	if _, err := d.Apply(t.Context(), application(t, code)); !errors.Is(err, ErrCode) {
		t.Errorf("somebody else: %v", err)
	}
	if _, err := d.Deny(t.Context(), "anna"); !errors.Is(err, errCrash) {
		t.Errorf("denied what may have been issued: %v", err)
	}
	silent = false
	list := d.Pending()
	if len(list) != 1 || list[0].State != Pending {
		t.Fatalf("Pending = %+v", list)
	}
	d.tidy(t.Context())
	if r, err := d.Status(t.Context(), phone, list[0].ID, app.Ticket); err != nil || r.State != Issued {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestUsedKey: a key that has a certificate under another name is not given
// that one, and the code stays good.
func TestUsedKey(t *testing.T) {
	w := newWorld(t)
	first := application(t, w.invite(t, Invitation{Name: "anna"}))
	w.apply(t, first, Issued)
	again := first
	again.Code = w.invite(t, Invitation{Name: "berta"})
	if r, err := w.Apply(t.Context(), again); !errors.Is(err, errKeyUsed) {
		t.Errorf("%+v, %v", r, err)
	}
	w.apply(t, application(t, again.Code), Issued)
}

// TestForeignCertificate: what the office mixes up is given to nobody.
func TestForeignCertificate(t *testing.T) {
	w := newWorld(t)
	foreign, err := w.office.issue(t.Context(), Grant{Name: "anna", Key: newKey(t).Public()})
	if err != nil {
		t.Fatal(err)
	}
	give := func(context.Context, Grant) (*x509.Certificate, error) { return foreign, nil }
	find := func(context.Context, string) (*x509.Certificate, error) { return foreign, nil }
	delete(w.office.names, "anna")
	for _, change := range []func(*Config){
		func(c *Config) { c.Issue = give },
		func(c *Config) { c.Issued = find; w.office.fail = errCrash },
	} {
		d := w.open(t, w.kv, change)
		code, _, err := d.Invite(t.Context(), Invitation{Name: "anna"})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := d.Apply(t.Context(), application(t, code)); err == nil {
			t.Errorf("%+v", r)
		}
	}
}

// TestLongOutage: after a crash the relay stays down for long. Who was issued
// a certificate gets it, and who was on the way may go on.
func TestLongOutage(t *testing.T) {
	// Writes: 1 the code, 2 the request, 3 the certificate.
	for n, down := range map[int]time.Duration{2: 20 * time.Minute, 3: 25 * time.Hour} {
		w := newWorld(t)
		app := application(t, w.invite(t, Invitation{Name: "anna"}))
		if _, err := w.open(t, &dying{KV: w.kv, left: n}).Apply(t.Context(), app); !errors.Is(err, errCrash) {
			t.Fatal(err)
		}
		w.clock.add(down)
		d := w.open(t, w.kv)
		d.tidy(t.Context())
		if r, err := d.Apply(t.Context(), app); err != nil || r.State != Issued || w.office.count() != 1 {
			t.Errorf("after write %d and %v: %+v, %v", n, down, r, err)
		}
	}
}

// TestForeignRequest: a code whose record names somebody else's request (two
// relays drew one ID) does not show that request.
func TestForeignRequest(t *testing.T) {
	w := newWorld(t)
	victim := w.apply(t, application(t, w.invite(t, Invitation{Name: "anna"})), Issued)
	app := application(t, w.invite(t, Invitation{Name: "berta"}))
	a, err := examine(app)
	if err != nil {
		t.Fatal(err)
	}
	c := *w.codes[hash(app.Code)]
	c.UsedBy = &user{Request: victim.ID, KeyID: a.keyID, Ticket: a.ticket}
	if _, err := w.putCode(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if r, err := w.Apply(t.Context(), app); !errors.Is(err, ErrCode) {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestHangUp: an applicant who is gone after the code was taken changes
// nothing: the certificate is issued and waits for him.
func TestHangUp(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	d := w.open(t, w.kv, func(c *Config) {
		c.Issue = func(ctx context.Context, g Grant) (*x509.Certificate, error) {
			cancel()
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if _, ok := ctx.Deadline(); !ok {
				t.Error("Issue may take for ever")
			}
			return w.office.issue(ctx, g)
		}
	})
	code, _, err := d.Invite(t.Context(), Invitation{Name: "anna"})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := d.Apply(ctx, application(t, code)); err != nil || r.State != Issued {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestTwoRelays: what one relay does, the other knows when Run tells it.
func TestTwoRelays(t *testing.T) {
	w := newWorld(t)
	changed := make(chan struct{}, 100)
	other := w.open(t, w.kv, func(c *Config) { c.Changed = func() { changed <- struct{}{} } })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- other.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	wait := func(what string, ok func() bool) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for !ok() {
			select {
			case <-changed:
			case <-deadline:
				t.Fatal(what, "was not told")
			}
		}
	}
	code := w.invite(t, Invitation{Name: "anna", Approve: true})
	wait("the code", func() bool { return len(other.Codes()) == 1 })
	app := application(t, code)
	r, err := other.Apply(t.Context(), app)
	if err != nil || r.State != Pending {
		t.Fatalf("%+v, %v", r, err)
	}
	news := other.Changed(r.ID)
	w.reread(t.Context(), r.ID)
	if _, err := w.Approve(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	wait("the decision", func() bool {
		r, err = other.Status(t.Context(), phone, r.ID, app.Ticket)
		return err == nil && r.State == Issued
	})
	<-news
}

// TestRunEndsWithTheStore: a store that stops telling is an error, not silence.
func TestRunEndsWithTheStore(t *testing.T) {
	w := newWorld(t)
	w.kv.Close()
	if err := w.Run(t.Context()); err == nil {
		t.Error("Run returned nil after the store was closed")
	}
	kv := memstore.New()
	d := w.open(t, kv)
	done := make(chan error)
	go func() { done <- d.Run(t.Context()) }()
	kv.Close()
	if err := <-done; err == nil {
		t.Error("Run returned nil after the store was closed")
	}
}
