package enroll

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// ask applies without a code from an address.
func (w *world) ask(t *testing.T, from string) (Application, Request, error) {
	t.Helper()
	w.clock.add(time.Second)
	app := application(t, "")
	app.Name, app.Source = fmt.Sprintf("x%d", w.clock.Now().Unix()), netip.MustParseAddr(from)
	r, err := w.Apply(t.Context(), app)
	return app, r, err
}

// TestCrowd: ten addresses fill the queue, and shut nobody out: a source that
// waits for nothing yet gets the place of the oldest of those who have most.
func TestCrowd(t *testing.T) {
	w := newWorld(t, open)
	_, anna, err := w.ask(t, "203.0.113.7") // was first, and waits for one thing only
	if err != nil {
		t.Fatal(err)
	}
	var oldest Request
	var first Application
	for i := range maxOpen - 1 {
		from := fmt.Sprintf("198.51.100.%d", i/maxPerSource) // one network
		if i >= 50 {
			from = fmt.Sprintf("2001:db8::%d:0:0:0:1", i/maxPerSource)
		}
		app, r, err := w.ask(t, from)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first, oldest = app, r
		}
	}
	for _, from := range []string{"198.51.100.0", "198.51.100.200", "2001:db8::5:ffff:0:0:2", "203.0.113.99"} {
		if _, _, err := w.ask(t, from); !errors.Is(err, ErrFull) {
			t.Errorf("from %s, which waits already: %v", from, err)
		}
	}
	_, berta, err := w.ask(t, "192.0.2.1")
	if err != nil || berta.State != Pending {
		t.Fatalf("a newcomer: %+v, %v", berta, err)
	}
	if n := len(w.Pending()); n != maxOpen {
		t.Errorf("%d wait", n)
	}
	if r, err := w.Status(t.Context(), phone, oldest.ID, first.Ticket); err != nil || r.State != Expired {
		t.Errorf("the one that made place: %+v, %v", r, err)
	}
	if n := w.diary.count("enrol.displaced"); n != 1 {
		t.Errorf("%d were audited as displaced", n)
	}
	// A botnet takes the places of those who have several, and no more.
	let := 0
	for i := range 2 * maxOpen {
		if _, _, err := w.ask(t, fmt.Sprintf("10.0.%d.1", i)); err == nil {
			let++
		} else if !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
	}
	if let == 0 || let >= maxOpen {
		t.Errorf("%d of a botnet found a place", let)
	}
	waits := map[string]bool{}
	for _, r := range w.Pending() {
		waits[r.ID] = true
	}
	if !waits[anna.ID] || !waits[berta.ID] || len(waits) != maxOpen {
		t.Errorf("%d wait, anna %v, berta %v", len(waits), waits[anna.ID], waits[berta.ID])
	}
}

// TestCrowdSparesTheGranted: a request that the owner granted does not make
// place while its certificate is on the way.
func TestCrowdSparesTheGranted(t *testing.T) {
	w := newWorld(t, open)
	var old Request
	for i := range maxOpen {
		_, r, err := w.ask(t, fmt.Sprintf("10.0.%d.1", i/2))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			old = r
		}
	}
	granted := *w.request(old.ID)
	granted.State = stateApproved
	if _, err := w.put(t.Context(), granted); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.ask(t, "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	if r := w.request(old.ID); r.State != stateApproved {
		t.Errorf("it is %q", r.State)
	}
}

// TestCrowdElsewhere: another relay decided who was to make place.
func TestCrowdElsewhere(t *testing.T) {
	w := newWorld(t, open)
	for i := range maxOpen {
		if _, _, err := w.ask(t, fmt.Sprintf("10.0.%d.1", i/maxPerSource)); err != nil {
			t.Fatal(err)
		}
	}
	old := w.Pending()[0]
	if _, err := w.open(t, w.kv, open).Approve(t.Context(), old.ID); err != nil {
		t.Fatal(err)
	}
	if _, r, err := w.ask(t, "192.0.2.1"); err != nil || r.State != Pending {
		t.Errorf("%+v, %v", r, err)
	}
	if got := w.request(old.ID); got.State != Issued {
		t.Errorf("it is %q", got.State)
	}
}
