package enroll

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestNoNameNeedsApproval: a visitor who names himself is let in by the owner
// only, also with a code of before this rule.
func TestNoNameNeedsApproval(t *testing.T) {
	w := newWorld(t)
	code := w.invite(t, Invitation{})
	if inv, err := w.Look(t.Context(), phone, code); err != nil || !inv.Approve {
		t.Errorf("Look = %+v, %v", inv, err)
	}
	if c := w.Codes(); len(c) != 1 || !c[0].Approve {
		t.Errorf("Codes = %+v", c)
	}
	old := w.invite(t, Invitation{})
	e, err := w.kv.Get(t.Context(), codePrefix+hash(old))
	if err != nil {
		t.Fatal(err)
	}
	before := strings.Replace(string(e.Value), `"approve":true,`, "", 1)
	if before == string(e.Value) {
		t.Fatal(before)
	}
	if _, err := w.kv.Update(t.Context(), e.Key, []byte(before), e.Revision); err != nil {
		t.Fatal(err)
	}
	d := w.open(t, w.kv)
	for _, code := range []string{code, old} {
		app := application(t, code)
		app.Name = "admin"
		if r, err := d.Apply(t.Context(), app); err != nil || r.State != Pending {
			t.Errorf("%+v, %v", r, err)
		}
	}
	d.tidy(t.Context())
	if w.office.count() != 0 {
		t.Error("issued without the owner")
	}
}

func TestWithdrawOne(t *testing.T) {
	w := newWorld(t)
	first, second := w.invite(t, Invitation{By: "anna"}), w.invite(t, Invitation{By: "local\x1b[31m" + strings.Repeat("x", 200)})
	codes := w.Codes()
	if len(codes) != 2 {
		t.Fatalf("Codes = %+v", codes)
	}
	ids := map[string]string{}
	for _, c := range codes {
		if !isID(c.ID) || strings.ContainsRune(c.By, '\x1b') || len(c.By) > maxBy {
			t.Errorf("%+v", c)
		}
		if strings.Contains(hash(first)+hash(second), c.ID) {
			t.Error("the ID is a part of a hash")
		}
		ids[c.By] = c.ID
	}
	if ids["anna"] == "" || codes[0].ID == codes[1].ID {
		t.Fatalf("Codes = %+v", codes)
	}
	if got := w.open(t, w.kv).Codes(); len(got) != 2 || got[0].ID != codes[0].ID && got[0].ID != codes[1].ID {
		t.Errorf("after a restart Codes = %+v", got)
	}
	if err := w.WithdrawID(t.Context(), ids["anna"]); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Look(t.Context(), phone, first); !errors.Is(err, ErrCode) {
		t.Errorf("a withdrawn code: %v", err)
	}
	if _, err := w.Look(t.Context(), phone, second); err != nil {
		t.Errorf("the other code: %v", err)
	}
	for _, id := range []string{ids["anna"], "", "nobody"} {
		if err := w.WithdrawID(t.Context(), id); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// TestWithdrawBy: who is thrown out leaves no codes behind. Those of others,
// and those of nobody known, stay.
func TestWithdrawBy(t *testing.T) {
	w := newWorld(t)
	gone := []string{w.invite(t, Invitation{Name: "a", By: "mallory"}), w.invite(t, Invitation{By: "mallory"})}
	stay := []string{w.invite(t, Invitation{Name: "b", By: "local"}), w.invite(t, Invitation{Name: "c"})}
	used := application(t, w.invite(t, Invitation{Name: "d", By: "mallory"}))
	w.apply(t, used, Issued)
	w.Desk = w.open(t, w.kv) // by whom survives
	for _, c := range []struct {
		actor string
		want  int
	}{{"", 0}, {"mal", 0}, {"mallory", 2}, {"mallory", 0}} {
		if n, err := w.WithdrawBy(t.Context(), c.actor); err != nil || n != c.want {
			t.Errorf("%q: %d, %v", c.actor, n, err)
		}
	}
	for i, code := range gone {
		if _, err := w.Look(t.Context(), addr(i), code); !errors.Is(err, ErrCode) {
			t.Errorf("a code of the one who went: %v", err)
		}
	}
	for _, code := range stay {
		if _, err := w.Look(t.Context(), phone, code); err != nil {
			t.Errorf("a code of another: %v", err)
		}
	}
	w.apply(t, used, Issued) // what was issued is for Revoke
	if n := w.diary.count("enrol.withdrawn"); n != 2 {
		t.Errorf("%d withdrawals were audited", n)
	}
}

// TestWithdrawAfterCrash: a code that a crash left bound to a key, without a
// request, dies too: its applicant would get the certificate by asking again.
func TestWithdrawAfterCrash(t *testing.T) {
	for name, withdraw := range map[string]func(*Desk) error{
		"by name": func(d *Desk) error { return d.Withdraw(t.Context(), "anna") },
		"by ID": func(d *Desk) error {
			for _, c := range d.allCodes() {
				return d.WithdrawID(t.Context(), c.id())
			}
			return ErrUnknown
		},
		"by actor": func(d *Desk) error { _, err := d.WithdrawBy(t.Context(), "mallory"); return err },
		"by a new code": func(d *Desk) error {
			_, _, err := d.Invite(t.Context(), Invitation{Name: "anna", TTL: time.Hour})
			return err
		},
	} {
		w := newWorld(t)
		app := application(t, w.invite(t, Invitation{Name: "anna", By: "mallory"}))
		if _, err := w.open(t, &dying{KV: w.kv, left: 2}).Apply(t.Context(), app); !errors.Is(err, errCrash) {
			t.Fatal(err)
		}
		d := w.open(t, w.kv)
		if err := withdraw(d); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, d := range []*Desk{d, w.open(t, w.kv)} {
			if r, err := d.Apply(t.Context(), app); !errors.Is(err, ErrCode) {
				t.Errorf("%s: the applicant came back to %+v, %v", name, r, err)
			}
		}
		if w.office.count() != 0 {
			t.Errorf("%s: a certificate was issued", name)
		}
	}
}

// TestWithdrawAsksTheStore: a request that another relay wrote, and that is not
// known here yet, keeps its code.
func TestWithdrawAsksTheStore(t *testing.T) {
	w := newWorld(t)
	app := application(t, w.invite(t, Invitation{Name: "anna", Approve: true}))
	other := w.open(t, w.kv)
	r := w.apply(t, app, Pending)
	e, err := w.kv.Get(t.Context(), codePrefix+hash(app.Code))
	if err != nil {
		t.Fatal(err)
	}
	c, err := decodeCode(hash(app.Code), e.Value, e.Revision)
	if err != nil {
		t.Fatal(err)
	}
	other.setCode(c.hash, c) // the news of the code came first
	if err := other.Withdraw(t.Context(), "anna"); !errors.Is(err, ErrUnknown) {
		t.Errorf("%v", err)
	}
	if again, err := w.open(t, w.kv).Apply(t.Context(), app); err != nil || again.ID != r.ID {
		t.Errorf("%+v, %v", again, err)
	}
}

// TestAdmitAndFailed: what callers find is counted like what the desk finds,
// and asking is not.
func TestAdmitAndFailed(t *testing.T) {
	w := newWorld(t)
	for i := range 3 * freeTries {
		if err := w.Admit(phone); err != nil {
			t.Fatalf("question %d: %v", i, err)
		}
	}
	for range freeTries {
		w.Failed(phone)
	}
	b, ok := errors.AsType[*BlockedError](w.Admit(phone))
	if !ok || b.RetryAfter() != firstDelay {
		t.Errorf("after %d wrong messages: %v", freeTries, b)
	}
	if err := w.Admit(netip.MustParseAddr("203.0.113.8")); err != nil {
		t.Errorf("a neighbour: %v", err)
	}
	if n := w.diary.count("enrol.refused"); n != freeTries {
		t.Errorf("%d were audited", n)
	}
	w.clock.add(firstDelay)
	if err := w.Admit(phone); err != nil {
		t.Error(err)
	}
}

// TestNoCodeCounts: where codes are needed, none is a wrong one.
func TestNoCodeCounts(t *testing.T) {
	w := newWorld(t)
	for range freeTries {
		if _, err := w.Apply(t.Context(), application(t, "")); !errors.Is(err, ErrCode) {
			t.Error(err)
		}
	}
	if _, err := w.Apply(t.Context(), application(t, "")); !errors.Is(err, ErrBlocked) {
		t.Error(err)
	}
}
