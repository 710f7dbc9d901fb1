package devices

import (
	"bytes"
	"crypto/x509"
	"testing"
	"testing/synctest"
	"time"
)

// held fails unless a list has exactly the given certificates on hold since at.
func held(t testing.TB, l *x509.RevocationList, at time.Time, certs ...*x509.Certificate) {
	t.Helper()
	listed(t, l, certs...)
	for _, e := range l.RevokedCertificateEntries {
		if e.ReasonCode != certificateHold || !e.RevocationTime.Equal(at) {
			t.Errorf("listed for reason %d since %v, want on hold since %v", e.ReasonCode, e.RevocationTime, at)
		}
	}
}

// TestCRLHolds: certificates of guests whose time is over are on hold, all
// generations, from that moment on, and not any more once it is not over.
func TestCRLHolds(t *testing.T) {
	c := newClock()
	cfg := configAt(t, c)
	d := open(t, cfg)
	end := today.Add(2 * time.Hour)
	_, first := addGuest(t, d, "guest", end)
	_, second := renew(t, d, first)
	oldGuest(t, cfg, 2, "old", end) // whose certificate says all itself
	add(t, d, "anna-phone")
	d = open(t, cfg)
	l := list(t, d, c.time())
	listed(t, l)
	if !due(d).Equal(end) {
		t.Errorf("the next list comes %v, the guest goes %v", due(d), end)
	}
	c.set(end.Add(-time.Second))
	if again := list(t, d, c.time()); !bytes.Equal(again.Raw, l.Raw) {
		t.Error("a new list for nothing")
	}
	last := l.Number
	fresh := func() *x509.RevocationList {
		t.Helper()
		l := list(t, d, c.time())
		if l.Number.Cmp(last) <= 0 {
			t.Errorf("number %v after %v", l.Number, last)
		}
		last = l.Number
		return l
	}
	c.set(end)
	l = fresh()
	held(t, l, end, first, second)
	if !due(d).Equal(c.time().Add(listLife)) {
		t.Errorf("nobody else is a guest, and the next list comes %v", due(d))
	}
	held(t, list(t, open(t, cfg), c.time()), end, first, second)

	// The owner lets the guest in again.
	c.skip(time.Hour)
	d = open(t, cfg)
	held(t, list(t, d, c.time()), end, first, second)
	later := c.time().Add(time.Hour)
	setEnd(t, d, "guest", later)
	last = l.Number
	l = fresh()
	listed(t, l)
	if !due(d).Equal(later) {
		t.Errorf("the next list comes %v, the guest goes %v", due(d), later)
	}
	c.set(later.Add(time.Minute))
	held(t, fresh(), later, first, second)
	setEnd(t, d, "guest", time.Time{})
	listed(t, fresh())

	// Who is revoked while on hold stays out, be it in the same second.
	setEnd(t, d, "guest", c.time().Add(time.Minute))
	c.skip(time.Minute)
	held(t, fresh(), c.time(), first, second)
	if _, err := d.Revoke(t.Context(), "guest"); err != nil {
		t.Fatal(err)
	}
	l = fresh()
	listed(t, l, first, second)
	for _, e := range l.RevokedCertificateEntries {
		if e.ReasonCode != 0 || !e.RevocationTime.Equal(c.time()) {
			t.Errorf("revoked: listed for reason %d since %v", e.ReasonCode, e.RevocationTime)
		}
	}
}

// due is when another list than the present one is made.
func due(d *Devices) time.Time { return d.crl.Load().next }

// TestCRLNextUpdate: a list is replaced when the next guest's time is over, also
// where nothing else changed, and stays good for readers who come later.
func TestCRLNextUpdate(t *testing.T) {
	c := newClock()
	d := open(t, configAt(t, c))
	next := func(want time.Time) (number string) {
		t.Helper()
		l := list(t, d, c.time())
		if !due(d).Equal(want) {
			t.Errorf("the next list comes %v, want %v", due(d), want)
		}
		if left := l.NextUpdate.Sub(c.time()); left < listLife-listEvery {
			t.Errorf("the list is good for %v only: readers would refuse everybody", left)
		}
		return l.Number.String()
	}
	week := today.Add(listLife)
	none := next(week)
	addGuest(t, d, "month", today.AddDate(0, 1, 0))
	addGuest(t, d, "whole", today.Add(defaultLifetime)) // ends with its certificate
	if next(week) != none {
		t.Error("a new list for guests that stay for longer than it")
	}
	addGuest(t, d, "day", today.Add(23*time.Hour))
	next(today.Add(23 * time.Hour))
	addGuest(t, d, "hour", today.Add(time.Hour))
	hour := next(today.Add(time.Hour))
	setEnd(t, d, "hour", today.Add(3*time.Hour))
	if next(today.Add(time.Hour)) != hour {
		t.Error("a new list where the old one promises less than is true")
	}
	c.set(today.Add(time.Hour)) // what it promised
	next(today.Add(3 * time.Hour))
	setEnd(t, d, "hour", today.Add(2*time.Hour))
	next(today.Add(2 * time.Hour))
	c.set(today.Add(2*time.Hour + time.Second))
	next(today.Add(23 * time.Hour))
	if _, err := d.Revoke(t.Context(), "day"); err != nil {
		t.Fatal(err)
	}
	next(c.time().Add(listLife))
	c.set(today.AddDate(0, 1, -1))
	next(today.AddDate(0, 1, 0))
}

// TestCRLHoldsWhile the certificate may be believed, and not much longer.
func TestCRLHoldsWhile(t *testing.T) {
	c := newClock()
	d := open(t, configAt(t, c))
	end := today.Add(time.Hour)
	_, cert := addGuest(t, d, "guest", end)
	addToken(t, d, TokenGrant{Name: "tv", Host: "photos", Until: end})
	for at, want := range map[time.Time]int{
		end.Add(-time.Second): 0, end: 1, cert.NotAfter.Add(-time.Second): 1,
		cert.NotAfter.Add(listedAfter - time.Second): 1, cert.NotAfter.Add(listedAfter): 0,
	} {
		if n := len(d.current.Load().listing(at).entries); n != want {
			t.Errorf("at %v %d are listed, want %d", at, n, want)
		}
	}
}

// TestCRLHoldsElsewhere: another relay on the same store lists the same.
func TestCRLHoldsElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClock()
		cfg := configAt(t, c)
		d, other := open(t, cfg), open(t, cfg)
		defer start(t, other)()
		listed(t, list(t, other, c.time()))
		end := today.Add(time.Hour)
		_, cert := addGuest(t, d, "guest", end)
		synctest.Wait()
		list(t, other, c.time())
		if !due(other).Equal(end) {
			t.Errorf("the next list comes %v", due(other))
		}
		c.skip(2 * time.Hour)
		held(t, list(t, other, c.time()), end, cert)
		setEnd(t, d, "guest", today.Add(3*time.Hour))
		synctest.Wait()
		listed(t, list(t, other, c.time()))
	})
}

// TestCRLAfterResetClock: who was on hold because the clock was ahead is not
// any more once the owner has said so.
func TestCRLAfterResetClock(t *testing.T) {
	c := newClock()
	d := open(t, configAt(t, c))
	anna, _ := add(t, d, "anna-phone")
	past, end := today.Add(30*time.Minute), today.Add(2*time.Hour)
	_, gone := addGuest(t, d, "gone", past)
	_, cert := addGuest(t, d, "guest", end)
	c.set(end.Add(time.Hour)) // ahead
	d.Seen(anna.ID)
	c.set(today.Add(time.Hour)) // right, and not believed
	listed(t, list(t, d, c.time()), gone, cert)
	if err := d.ResetClock(t.Context(), c.time()); err != nil {
		t.Fatal(err)
	}
	l := list(t, d, c.time())
	held(t, l, past, gone)
	if !due(d).Equal(end) {
		t.Errorf("the next list comes %v", due(d))
	}
}
