package devices

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/store"
)

func renew(t testing.TB, d *Devices, old *x509.Certificate) (Device, *x509.Certificate) {
	t.Helper()
	return renewWith(t, d, old, newPublic(t))
}

func renewWith(t testing.TB, d *Devices, old *x509.Certificate, key crypto.PublicKey) (Device, *x509.Certificate) {
	t.Helper()
	dev, cert, err := d.Renew(t.Context(), old, key)
	if err != nil {
		t.Fatal(err)
	}
	return dev, cert
}

// TestRenew: the next generation has the same rights, the old one works on to
// its end, and both go with one revocation. All of it survives a restart.
func TestRenew(t *testing.T) {
	c := newClock()
	cfg := configAt(t, c)
	var told revocations
	cfg.OnRevoke = told.add
	d := open(t, cfg)
	first, old, err := d.Add(t.Context(), Grant{Name: "anna-phone", Key: newPublic(t), Hosts: []string{"ha", "*.alice.example.org"}, Admin: true})
	if err != nil {
		t.Fatal(err)
	}
	c.skip(350 * 24 * time.Hour)
	second, next := renew(t, d, old)
	if second.ID == first.ID || second.Name != "anna-phone" || !slices.Equal(second.Hosts, first.Hosts) || !second.Admin || !second.Until.IsZero() ||
		!second.NotAfter.Equal(c.time().Add(defaultLifetime)) || next.Subject.String() != "CN=anna-phone" || second.Renewed {
		t.Errorf("renewed: %+v", second)
	}
	if told.count(first.ID) != 0 {
		t.Error("a renewal cut the old certificate's connections")
	}
	c.skip(15 * 24 * time.Hour)
	for _, d := range []*Devices{d, open(t, cfg)} {
		check(t, d, old, "ha.example.org", c.time(), Allowed) // its last second
		check(t, d, next, "ha.example.org", c.time(), Allowed)
		check(t, d, next, "tv.example.org", c.time(), DeniedHost)
		check(t, d, old, "ha.example.org", c.time().Add(time.Second), DeniedExpired)
		check(t, d, next, "ha.example.org", c.time().Add(time.Second), Allowed)
		if got, _ := d.Get("anna-phone"); got.ID != second.ID {
			t.Errorf("Get = %+v, want the newest", got)
		}
		if got, _ := d.ByID(first.ID); !got.Renewed {
			t.Errorf("the old generation is %+v, want it marked as renewed", got)
		}
		if _, _, err := d.Add(t.Context(), Grant{Name: "anna-phone", Key: newPublic(t)}); !errors.Is(err, ErrNameTaken) {
			t.Errorf("a stranger beside a renewed device: %v", err)
		}
	}
	if _, err := d.Revoke(t.Context(), "anna-phone"); err != nil {
		t.Fatal(err)
	}
	if told.count(first.ID) == 0 || told.count(second.ID) == 0 {
		t.Error("OnRevoke was not told of all generations")
	}
	for _, d := range []*Devices{d, open(t, cfg)} {
		check(t, d, old, "ha.example.org", c.time(), DeniedRevoked)
		check(t, d, next, "ha.example.org", c.time(), DeniedRevoked)
	}
	// The next owner of the name brings none of them back, and is not theirs.
	third, cert := add(t, d, "anna-phone")
	check(t, d, old, "ha.example.org", c.time(), DeniedRevoked)
	check(t, d, next, "ha.example.org", c.time(), DeniedRevoked)
	check(t, d, cert, "ha.example.org", c.time(), Allowed)
	if got, _ := d.ByID(second.ID); got.Renewed {
		t.Error("the former owner's certificate counts as renewed by the new owner")
	}
	told.ids = nil
	if _, err := d.Revoke(t.Context(), "anna-phone"); err != nil || told.count(third.ID) == 0 {
		t.Errorf("revoke: %v, told %v", err, told.ids)
	}
}

func TestRenewRefuses(t *testing.T) {
	c := newClock()
	cfg := configAt(t, c)
	expired := oldGuest(t, cfg, 2, "expired", today.Add(time.Hour))
	d := open(t, cfg)
	key := newPublic(t)
	_, good, err := d.Add(t.Context(), Grant{Name: "good", Key: key})
	if err != nil {
		t.Fatal(err)
	}
	_, revoked := add(t, d, "revoked")
	if _, err := d.Revoke(t.Context(), "revoked"); err != nil {
		t.Fatal(err)
	}
	soon := today.Add(time.Hour)
	_, guest := addGuest(t, d, "guest", soon)
	_, ended := add(t, d, "ended")
	setEnd(t, d, "ended", soon)
	unrecorded, err := cfg.CA.Issue(newPublic(t), pki.Grant{Profile: pki.Device, Name: "good"})
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := newCA(t).Issue(newPublic(t), pki.Grant{Profile: pki.Device, Name: "good"})
	if err != nil {
		t.Fatal(err)
	}
	c.skip(2 * time.Hour)
	for name, old := range map[string]*x509.Certificate{
		"none": nil, "the CA": cfg.CA.Cert(), "revoked": revoked, "expired": expired, "past a guest's end": guest, "past its end": ended,
		"signed but not recorded": unrecorded, "of another CA": foreign,
	} {
		fresh := newPublic(t)
		if _, _, err := d.Renew(t.Context(), old, fresh); !errors.Is(err, ErrNotAllowed) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := cfg.Store.Get(t.Context(), keyPrefix+keyID(must(x509.MarshalPKIXPublicKey(fresh)))); err == nil {
			t.Errorf("%s: the refusal left the key marked as used", name)
		}
	}
	if _, _, err := d.Renew(t.Context(), good, key); !errors.Is(err, ErrKeyUsed) {
		t.Errorf("renewed with the old key: %v", err)
	}
	if _, _, err := d.Renew(t.Context(), good, revoked.PublicKey); !errors.Is(err, ErrKeyUsed) {
		t.Errorf("renewed with another device's key: %v", err)
	}
	if _, _, err := d.Renew(t.Context(), good, cfg.CA.Cert().PublicKey); err == nil {
		t.Error("renewed with the CA's key")
	}
	if n := len(d.List()); n != 5 {
		t.Errorf("%d devices after refusals, want 5", n)
	}
}

// TestRenewAfterRevokeElsewhere: another relay revoked, or took rights away,
// and this one has not heard yet. The store decides.
func TestRenewAfterRevokeElsewhere(t *testing.T) {
	cfg := config(t)
	a := open(t, cfg)
	_, cert := add(t, a, "anna-phone")
	b := open(t, cfg)
	hosts := []string{"tv"}
	if _, err := a.Change(t.Context(), "anna-phone", Change{Hosts: &hosts}); err != nil {
		t.Fatal(err)
	}
	key := newPublic(t)
	if _, _, err := b.Renew(t.Context(), cert, key); err == nil || !strings.Contains(err.Error(), "Try again") {
		t.Errorf("renewed with the rights of before: %v", err)
	}
	dev, _, err := a.Renew(t.Context(), cert, key) // the key is not burnt
	if err != nil || !slices.Equal(dev.Hosts, []string{"tv.example.org"}) {
		t.Errorf("renewed where the change is known: %+v, %v", dev, err)
	}
	if _, err := a.Revoke(t.Context(), "anna-phone"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Renew(t.Context(), cert, newPublic(t)); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("a revoked device renewed: %v", err)
	}
}

// TestRenewOften: renewals whose result got lost do not pile up, and push out
// nothing that is in use.
func TestRenewOften(t *testing.T) {
	unseen := open(t, config(t))
	_, asks := add(t, unseen, "anna-phone")
	for range 3 * maxLive {
		renew(t, unseen, asks)
	}
	check(t, unseen, asks, "ha.example.org", today, Allowed)

	cfg := config(t)
	var told revocations
	cfg.OnRevoke = told.add
	d := open(t, cfg)
	dev, old := add(t, d, "anna-phone")
	d.Seen(dev.ID)
	var all []Device
	for range 3 * maxLive {
		next, _ := renew(t, d, old)
		all = append(all, next)
	}
	live := func() (ids []string) {
		for _, l := range d.List() {
			if !l.Revoked {
				ids = append(ids, l.ID)
			}
		}
		return ids
	}
	if n := len(live()); n != maxLive {
		t.Errorf("%d live generations, want %d", n, maxLive)
	}
	if told.count(all[0].ID) == 0 || told.count(dev.ID) != 0 {
		t.Error("the oldest unseen one should go, and not the one in use")
	}
	check(t, d, old, "ha.example.org", today, Allowed)
	// Where all of them are in use, the oldest goes, but not the one that asks.
	for _, id := range live() {
		d.Seen(id)
	}
	oldest := all[len(all)-maxLive+1]
	sixth, _ := renew(t, d, old)
	if now := live(); len(now) != maxLive || slices.Contains(now, oldest.ID) || !slices.Contains(now, dev.ID) || !slices.Contains(now, sixth.ID) || told.count(oldest.ID) == 0 {
		t.Errorf("live now: %v", now)
	}
	check(t, d, old, "ha.example.org", today, Allowed)
}

// TestRenewOftenInUse: a client that renews often, each time with its newest
// certificate, is never locked out. What it left behind is shut out, and its
// connections are cut.
func TestRenewOftenInUse(t *testing.T) {
	c := newClock()
	cfg := configAt(t, c)
	var told revocations
	cfg.OnRevoke = told.add
	d := open(t, cfg)
	dev, cert := add(t, d, "anna-phone")
	var ids []string
	certs := map[string]*x509.Certificate{}
	for i := range 3 * maxLive {
		c.skip(time.Hour)
		if i != 7 { // one that it used for nothing but to renew
			d.Seen(dev.ID)
		}
		ids, certs[dev.ID] = append(ids, dev.ID), cert
		dev, cert = renew(t, d, cert)
		check(t, d, cert, "ha.example.org", c.time(), Allowed)
	}
	for i, id := range ids {
		gone := i <= len(ids)-maxLive
		want := Allowed
		if gone {
			want = DeniedRevoked
		}
		check(t, d, certs[id], "ha.example.org", c.time(), want)
		check(t, open(t, cfg), certs[id], "ha.example.org", c.time(), want)
		if (told.count(id) > 0) != gone {
			t.Errorf("generation %d: OnRevoke was told %d times", i, told.count(id))
		}
	}
	if n := len(d.current.Load().listing(c.time()).entries); n != len(ids)-maxLive+1 {
		t.Errorf("%d are on the list of revoked ones", n)
	}
}

// TestRetiredElsewhere: a retired generation is cut on the other relay too,
// and one that was retired in a race is not forgotten.
func TestRetiredElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(t)
		var told, far revocations
		cfg.OnRevoke = told.add
		d := open(t, cfg)
		cfg.OnRevoke = far.add
		other := open(t, cfg)
		stop := start(t, other)
		first, cert := add(t, d, "anna-phone")
		synctest.Wait() // the other one knows it
		d.Seen(first.ID)
		dev := first
		for range maxLive {
			dev, cert = renew(t, d, cert)
			d.Seen(dev.ID)
		}
		synctest.Wait()
		stop()
		if told.count(first.ID) == 0 || far.count(first.ID) == 0 || told.count(dev.ID)+far.count(dev.ID) != 0 {
			t.Errorf("told %v here and %v there", told.ids, far.ids)
		}
	})
}

// hasty is a store that tells of a write before the writer hears that it is done.
type hasty struct {
	store.KV
	tell func(store.Event)
}

func (h *hasty) Update(ctx context.Context, key string, value []byte, rev uint64) (uint64, error) {
	rev, err := h.KV.Update(ctx, key, value, rev)
	if err == nil && h.tell != nil {
		h.tell(store.Event{Entry: store.Entry{Key: key, Value: value, Revision: rev}})
	}
	return rev, err
}

// TestRetiredBehindTheWatch: the news may come by the watch first, whose call
// of OnRevoke may not be over. So Renew calls it itself all the same.
func TestRetiredBehindTheWatch(t *testing.T) {
	cfg := config(t)
	kv := &hasty{KV: cfg.Store}
	var told revocations
	cfg.Store, cfg.OnRevoke = kv, told.add
	d := open(t, cfg)
	first, cert := add(t, d, "anna-phone")
	for range maxLive - 1 {
		_, cert = renew(t, d, cert)
	}
	kv.tell = d.learn
	renew(t, d, cert)
	if n := told.count(first.ID); n != 2 {
		t.Errorf("OnRevoke was told %d times, want by the watch and by Renew", n)
	}
}

// TestDispensable: which generation goes, oldest first: p is the one that asks,
// s was seen, u was not.
func TestDispensable(t *testing.T) {
	for generations, want := range map[string]int{
		"ssssp": 0, "pssss": 1, "puuuu": 1, "suuup": 0, "upuuu": 0, "sspuu": 0, "psuuu": 2, "ususp": 0, "psusu": 1, "uuuuu": 0, "suuuu": 1,
	} {
		d := open(t, config(t))
		var valid []*record
		var parent *record
		snap := newSnapshot()
		for i, g := range generations {
			r := &record{Kind: KindToken, TokenHost: string(rune('a' + i)), Hosts: []string{"x"}}
			e := newEntry("x", r)
			if g == 's' {
				e.seen.last.Store(1)
			}
			if g == 'p' {
				parent = r
			}
			snap.byID[e.ID] = e
			valid = append(valid, r)
		}
		d.current.Store(snap)
		if got := d.dispensable(valid, parent); got != want {
			t.Errorf("%s: %d goes, want %d", generations, got, want)
		}
	}
}

func TestDueForRenewal(t *testing.T) {
	c := newClock()
	d := open(t, configAt(t, c))
	ctx := t.Context()
	year, yearCert := add(t, d, "year")
	const day = 24 * time.Hour
	due := func(dev Device, at time.Duration, want bool) {
		t.Helper()
		if got := d.DueForRenewal(dev, today.Add(at)); got != want {
			t.Errorf("%s after %v: due %v, want %v", dev.Name, at, got, want)
		}
	}
	due(year, 0, false)
	due(year, 334*day, false)
	due(year, 335*day, true)
	due(year, 365*day, true)
	due(year, 366*day, false) // too late: it cannot renew
	// An end that the owner set makes renewing pointless, however near to the
	// certificate's it is.
	for _, end := range []time.Duration{100 * day, 350 * day, 365 * day} {
		guest, _ := addGuest(t, d, fmt.Sprintf("guest%d", end/day), today.Add(end))
		due(guest, end-time.Hour, false)
		setEnd(t, d, "year", today.Add(end))
		due(year, end-time.Hour, false)
	}
	setEnd(t, d, "year", time.Time{})
	due(year, 340*day, true)
	// A successor counts once it was seen: until then it may never have arrived.
	c.set(today.Add(340 * day))
	next, _ := renew(t, d, yearCert)
	due(year, 341*day, true)
	due(next, 341*day, false)
	d.Seen(next.ID)
	due(year, 341*day, false)
	if _, err := d.Revoke(ctx, "year"); err != nil {
		t.Fatal(err)
	}
	due(next, (341+365-1)*day, false)
	due(Device{ID: "nobody"}, 0, false)

	cfg := configAt(t, newClock())
	cfg.Lifetime = 90 * day
	d = open(t, cfg)
	machine, _ := add(t, d, "machine")
	due(machine, 67*day, false) // a quarter is 22.5 days
	due(machine, 68*day, true)
	tv, _, err := d.AddToken(ctx, TokenGrant{Name: "tv", Host: "photos", Until: today.Add(day)})
	if err != nil {
		t.Fatal(err)
	}
	due(tv, day-time.Minute, false)
}
