package enroll

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func open(c *Config) { c.Open = true }

func TestApproval(t *testing.T) {
	w := newWorld(t)
	app := application(t, w.invite(t, Invitation{Name: "anna", Hosts: []string{"ha"}, Approve: true}))
	app.Agent = strings.Repeat("ä", 500) + "\x1b[31m"
	r := w.apply(t, app, Pending)
	if w.office.count() != 0 {
		t.Fatal("issued without approval")
	}
	list := w.Pending()
	if len(list) != 1 || list[0].ID != r.ID || list[0].Words != r.Words || list[0].Source != phone || fmt.Sprint(list[0].Hosts) != "[ha]" || !list[0].Coded {
		t.Errorf("Pending = %+v", list)
	}
	if a := list[0].Agent; strings.ContainsRune(a, '\x1b') || len([]rune(a)) != maxAgent {
		t.Errorf("agent %q", a)
	}
	if len(r.ID) != 8 || len(strings.Fields(r.Words)) != 6 {
		t.Errorf("ID %q, words %q", r.ID, r.Words)
	}
	news := w.Changed(r.ID)
	select {
	case <-news:
		t.Fatal("changed already")
	default:
	}
	got, err := w.Approve(t.Context(), "anna")
	if err != nil || got.State != Issued || got.ID != r.ID {
		t.Fatalf("%+v, %v", got, err)
	}
	<-news
	if s, err := w.Status(t.Context(), phone, r.ID, app.Ticket); err != nil || s.State != Issued || len(s.Cert) == 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if again, err := w.Approve(t.Context(), r.ID); err != nil || again.State != Issued {
		t.Errorf("approved twice: %+v, %v", again, err)
	}
	if _, err := w.Deny(t.Context(), r.ID); err == nil || !strings.Contains(err.Error(), "device revoke anna") {
		t.Errorf("denied after it was issued: %v", err)
	}
	if w.office.count() != 1 {
		t.Errorf("%d certificates", w.office.count())
	}
}

func TestDenial(t *testing.T) {
	w := newWorld(t)
	app := application(t, w.invite(t, Invitation{Name: "anna", Approve: true}))
	r := w.apply(t, app, Pending)
	news := w.Changed(r.ID)
	if got, err := w.Deny(t.Context(), r.ID); err != nil || got.State != Denied {
		t.Fatalf("%+v, %v", got, err)
	}
	<-news
	if got := w.apply(t, app, Denied); got.ID != r.ID {
		t.Error("a denied application became a new request")
	}
	if _, err := w.Approve(t.Context(), r.ID); err == nil {
		t.Error("approved after it was denied")
	}
	if _, err := w.Deny(t.Context(), r.ID); err != nil {
		t.Errorf("denied twice: %v", err)
	}
	if _, err := w.Apply(t.Context(), application(t, app.Code)); !errors.Is(err, ErrCode) {
		t.Errorf("a denied code again: %v", err)
	}
	// The name is free again.
	w.apply(t, application(t, w.invite(t, Invitation{Name: "anna"})), Issued)
	for _, f := range []func(context.Context, string) (Request, error){w.Approve, w.Deny} {
		if _, err := f(t.Context(), "nobody"); !errors.Is(err, ErrUnknown) {
			t.Error(err)
		}
	}
	if w.Changed("nobody") != nil {
		t.Error("an unknown request can change")
	}
}

// TestNameConflictAtApproval: two wait for one name; the second finds it taken,
// waits on, and can be denied.
func TestNameConflictAtApproval(t *testing.T) {
	w := newWorld(t)
	var ids []string
	for range 2 {
		app := application(t, w.invite(t, Invitation{Approve: true}))
		app.Name = "anna"
		ids = append(ids, w.apply(t, app, Pending).ID)
	}
	if _, err := w.Approve(t.Context(), "anna"); err == nil || !strings.Contains(err.Error(), "ID") {
		t.Errorf("one of two was approved by the name: %v", err)
	}
	if _, err := w.Approve(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Approve(t.Context(), ids[1]); !errors.Is(err, ErrNameTaken) {
		t.Errorf("%v", err)
	}
	w.tidy(t.Context())
	if p := w.Pending(); len(p) != 1 || p[0].ID != ids[1] {
		t.Errorf("Pending = %+v", p)
	}
	delete(w.office.names, "anna") // freed: but the owner has not said yes again
	w.tidy(t.Context())
	if w.office.count() != 1 {
		t.Error("issued later without the owner")
	}
	if r, err := w.Deny(t.Context(), ids[1]); err != nil || r.State != Denied {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestOpenQueue(t *testing.T) {
	w := newWorld(t)
	if _, err := w.Apply(t.Context(), application(t, "")); !errors.Is(err, ErrCode) {
		t.Errorf("without a code where codes are needed: %v", err)
	}
	w = newWorld(t, open)
	app := application(t, "")
	app.Name = "tv"
	r := w.apply(t, app, Pending)
	if r.Coded || w.office.count() != 0 {
		t.Errorf("%+v", r)
	}
	if again := w.apply(t, app, Pending); again.ID != r.ID {
		t.Error("the same application waits twice")
	}
	stolen := app
	stolen.Ticket = rand.Text() // who saw the CSR must not take the request over
	if _, err := w.Apply(t.Context(), stolen); err == nil {
		t.Error("the same key waits under two tickets")
	}
	if _, err := w.Approve(t.Context(), "tv"); err != nil {
		t.Fatal(err)
	}
	if again := w.apply(t, app, Issued); again.ID != r.ID {
		t.Error("another answer after the approval")
	}
	// Strangers are not told which names are taken.
	probe := application(t, "")
	probe.Name = "tv"
	w.apply(t, probe, Pending)
	if _, err := w.Approve(t.Context(), "tv"); !errors.Is(err, ErrNameTaken) {
		t.Error(err)
	}
}

// TestOpenQueueIsBounded: strangers fill neither the queue nor the place of
// those who come with a code.
func TestOpenQueueIsBounded(t *testing.T) {
	w := newWorld(t, open)
	waits := 0
	for i := range 15 * (maxPerSource + 1) {
		app := application(t, "")
		app.Name = fmt.Sprintf("x%d", i)
		app.Source = addr(i / (maxPerSource + 1))
		_, err := w.Apply(t.Context(), app)
		if err == nil {
			waits++
		} else if !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		if n := i + 1; n == maxPerSource+1 && waits != maxPerSource {
			t.Errorf("one source has %d requests", waits)
		}
	}
	if waits != maxOpen || len(w.Pending()) != maxOpen {
		t.Errorf("%d wait", waits)
	}
	w.apply(t, application(t, w.invite(t, Invitation{Name: "anna", Approve: true})), Pending)

	// Denying makes place for others, not for the one who was denied.
	for _, r := range w.Pending() {
		if r.Source == addr(0) {
			w.Deny(t.Context(), r.ID)
		}
	}
	app := application(t, "")
	app.Name, app.Source = "y", addr(0)
	if _, err := w.Apply(t.Context(), app); !errors.Is(err, ErrFull) {
		t.Errorf("the denied source: %v", err)
	}
	app.Source = netip.MustParseAddr("2001:db8::1")
	w.apply(t, app, Pending)
}

// TestStatusOfKey: the newest request of a key counts.
func TestStatusOfKey(t *testing.T) {
	w := newWorld(t)
	if _, ok, err := w.StatusOfKey(t.Context(), keyIDOf(t, newKey(t))); ok || err != nil {
		t.Error("an unknown key has a request")
	}
	app := application(t, w.invite(t, Invitation{Name: "anna", Approve: true}))
	app.Ticket, app.Via = "", ViaSCEP
	r := w.apply(t, app, Pending)
	if again := w.apply(t, app, Pending); again.ID != r.ID {
		t.Error("a client without a ticket waits twice")
	}
	w.Deny(t.Context(), r.ID)
	w.clock.add(time.Second)
	app.Code = w.invite(t, Invitation{Name: "anna"})
	r = w.apply(t, app, Issued)
	if got, ok, err := w.StatusOfKey(t.Context(), r.KeyID); !ok || err != nil || got.ID != r.ID || got.State != Issued {
		t.Errorf("%+v, %v, %v", got, ok, err)
	}
}

// TestTime: in virtual time, with Run: requests expire, are forgotten with
// their codes, and nothing stays in the store.
func TestTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		w := newWorld(t)
		now := func() time.Time { return today.Add(time.Since(began)) }
		changes := make(chan struct{}, 1000)
		d := w.open(t, w.kv, func(c *Config) {
			c.Now, c.Open, c.Changed = now, true, func() { changes <- struct{}{} }
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- d.Run(ctx) }()
		synctest.Wait()
		invite := func(inv Invitation) string {
			code, _, err := d.Invite(t.Context(), inv)
			if err != nil {
				t.Fatal(err)
			}
			return code
		}
		apply := func(code, name string) (Application, Request) {
			app := application(t, code)
			app.Name = name
			r, err := d.Apply(t.Context(), app)
			if err != nil {
				t.Fatal(err)
			}
			return app, r
		}
		records := func() int {
			entries, err := w.kv.List(t.Context(), "enroll/")
			if err != nil {
				t.Fatal(err)
			}
			return len(entries)
		}
		invite(Invitation{Name: "never-used"})
		coded, c := apply(invite(Invitation{Name: "coded", Approve: true}), "")
		free, f := apply("", "free")
		_, issued := apply(invite(Invitation{Name: "issued", TTL: maxCodeTTL}), "")
		if records() != 6 {
			t.Errorf("%d records at first", records())
		}
		time.Sleep(16 * time.Minute)
		if records() != 5 || len(d.Codes()) != 0 {
			t.Errorf("%d records after the code expired", records())
		}
		time.Sleep(23 * time.Hour)
		if n := len(d.Pending()); n != 2 {
			t.Errorf("%d wait after 23 hours", n)
		}
		news := d.Changed(f.ID)
		time.Sleep(46 * time.Minute)
		<-news
		for _, app := range []Application{coded, free} {
			id := c.ID
			if app.Code == "" {
				id = f.ID
			}
			if r, err := d.Status(t.Context(), phone, id, app.Ticket); err != nil || r.State != Expired {
				t.Errorf("after a day %+v, %v", r, err)
			}
		}
		if _, err := d.Approve(t.Context(), c.ID); err == nil {
			t.Error("an expired request was approved")
		}
		if _, ok, _ := d.StatusOfKey(t.Context(), issued.KeyID); ok {
			t.Error("an issued request is kept for ever")
		}
		if records() != 3 {
			t.Errorf("%d records: the code of a forgotten request is kept", records())
		}
		time.Sleep(time.Hour)
		if r, err := d.Apply(t.Context(), coded); err != nil || r.State != Expired {
			t.Errorf("the late applicant gets %+v, %v", r, err)
		}
		gone := d.Changed(c.ID)
		time.Sleep(25 * time.Hour)
		<-gone
		if records() != 0 {
			t.Errorf("%d records at last", records())
		}
		if _, err := d.Apply(t.Context(), coded); !errors.Is(err, ErrCode) {
			t.Errorf("a forgotten code: %v", err)
		}
		if w.office.count() != 1 {
			t.Errorf("%d certificates", w.office.count())
		}
		if n := w.diary.count("enrol.expired"); n != 2 {
			t.Errorf("%d expiries audited", n)
		}
		if len(changes) == 0 {
			t.Error("Changed was never called")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestLateApproval: a request that expired is not approved, whether Run has
// seen it or not.
func TestLateApproval(t *testing.T) {
	w := newWorld(t)
	r := w.apply(t, application(t, w.invite(t, Invitation{Name: "anna", Approve: true})), Pending)
	w.clock.add(24 * time.Hour)
	if _, err := w.Approve(t.Context(), r.ID); err == nil || w.office.count() != 0 {
		t.Errorf("approved after a day: %v", err)
	}
	if len(w.Pending()) != 0 {
		t.Error("it still waits")
	}
}

// TestRestart: everything is as before; records that cannot be read open
// nothing.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	code := w.invite(t, Invitation{Name: "anna", Hosts: []string{"ha"}, Admin: true})
	app := application(t, w.invite(t, Invitation{Name: "berta", Approve: true}))
	r := w.apply(t, app, Pending)
	broken := w.invite(t, Invitation{Name: "carla"})
	e, err := w.kv.Get(t.Context(), codePrefix+hash(broken))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"{", strings.Replace(string(e.Value), `"v":1`, `"v":2`, 1)} {
		if e.Revision, err = w.kv.Update(t.Context(), e.Key, []byte(bad), e.Revision); err != nil {
			t.Fatal(err)
		}
		d := w.open(t, w.kv)
		if _, err := d.Look(t.Context(), phone, broken); !errors.Is(err, ErrCode) {
			t.Errorf("a broken record: %v", err)
		}
		if inv, err := d.Look(t.Context(), phone, code); err != nil || inv.Name != "anna" || !inv.Admin || !slices.Equal(inv.Hosts, []string{"ha"}) {
			t.Errorf("%+v, %v", inv, err)
		}
		if got, err := d.Status(t.Context(), phone, r.ID, app.Ticket); err != nil || got.State != Pending || got.Words != r.Words {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if got, err := w.open(t, w.kv).Approve(t.Context(), "berta"); err != nil || got.State != Issued {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestConfig(t *testing.T) {
	if _, err := New(t.Context(), Config{}); err == nil {
		t.Error("a desk without anything")
	}
}
