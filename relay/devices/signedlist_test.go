package devices

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// everywhere is a home that has all hosts.
var everywhere = Scope{Name: "everywhere", Mine: func(string) bool { return true }}

// signedAt returns the list that homes get at a time.
func signedAt(t testing.TB, d *Devices, now time.Time) pki.DeviceList {
	t.Helper()
	signed, number, err := d.SignedList(t.Context(), everywhere, now)
	if err != nil {
		t.Fatal(err)
	}
	l, err := pki.OpenDeviceList(d.cfg.CA.Cert(), signed)
	if err != nil {
		t.Fatal(err)
	}
	if l.Number != number {
		t.Errorf("list %d is called %d", l.Number, number)
	}
	return l
}

// onList fails unless a list holds exactly the given devices; one with a "-"
// before its name is revoked.
func onList(t testing.TB, l pki.DeviceList, want ...string) {
	t.Helper()
	var got []string
	for _, d := range l.Devices {
		name := d.Name
		if d.Revoked {
			name = "-" + name
		}
		got = append(got, name)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("listed are %v, want %v", got, want)
	}
}

func find(t testing.TB, l pki.DeviceList, cert *x509.Certificate) pki.ListedDevice {
	t.Helper()
	i := slices.IndexFunc(l.Devices, func(d pki.ListedDevice) bool { return d.Key == pki.DeviceKey(cert) })
	if i < 0 {
		t.Fatalf("%s is not listed", cert.Subject.CommonName)
	}
	return l.Devices[i]
}

func TestSignedList(t *testing.T) {
	c := newClock()
	cfg := configAt(t, c)
	d := open(t, cfg)
	ctx := t.Context()
	empty := signedAt(t, d, c.time())
	onList(t, empty)
	if !empty.Issued.Equal(today) || !empty.Next.Equal(today.Add(signedListLife)) {
		t.Errorf("from %v to %v", empty.Issued, empty.Next)
	}
	last := empty.Number
	fresh := func(want ...string) pki.DeviceList {
		t.Helper()
		l := signedAt(t, d, c.time())
		if l.Number <= last {
			t.Errorf("number %d after %d", l.Number, last)
		}
		last = l.Number
		onList(t, l, want...)
		return l
	}
	same := func() {
		t.Helper()
		if l := signedAt(t, d, c.time()); l.Number != last {
			t.Errorf("a new list for nothing: %d after %d", l.Number, last)
		}
	}
	end := today.Add(time.Hour)
	anna, first := add(t, d, "anna-phone", "ha", "*.photos")
	_, guest := addGuest(t, d, "guest", end)
	l := fresh("anna-phone", "guest")
	if got := find(t, l, first); len(got.Hosts) != 2 || !slices.Equal(got.Hosts, anna.Hosts) || !got.Until.IsZero() || got.Key != anna.ID {
		t.Errorf("listed as %+v, is %+v", got, anna)
	}
	if got := find(t, l, guest); !got.Until.Equal(end) || got.Hosts != nil {
		t.Errorf("the guest is listed as %+v", got)
	}
	same()
	d.Seen(anna.ID)
	addToken(t, d, TokenGrant{Name: "tv", Host: "photos"}) // concerns no home
	same()
	renew(t, d, first)
	fresh("anna-phone", "anna-phone", "guest")
	if _, err := d.Revoke(ctx, "anna-phone"); err != nil {
		t.Fatal(err)
	}
	fresh("-anna-phone", "-anna-phone", "guest")
	setEnd(t, d, "guest", today.Add(2*time.Hour))
	if got := find(t, fresh("-anna-phone", "-anna-phone", "guest"), guest); !got.Until.Equal(today.Add(2 * time.Hour)) {
		t.Errorf("the guest stays until %v", got.Until)
	}
	hosts := []string{"nas"}
	if _, err := d.Change(ctx, "guest", Change{Hosts: &hosts}); err != nil {
		t.Fatal(err)
	}
	if got := find(t, fresh("-anna-phone", "-anna-phone", "guest"), guest); !slices.Equal(got.Hosts, []string{"nas.example.org"}) {
		t.Errorf("the guest may go to %v", got.Hosts)
	}
	c.skip(signedListEvery - time.Second)
	same()
	c.skip(time.Second)
	if l := fresh("-anna-phone", "-anna-phone", "guest"); !l.Issued.Equal(c.time()) {
		t.Errorf("made at %v, it is %v", l.Issued, c.time())
	}
	d = open(t, cfg) // a restart knows no list, and no number is given twice
	fresh("-anna-phone", "-anna-phone", "guest")

	// Who is refused for his dates hears it for a while, and then is unknown.
	c.set(first.NotAfter.Add(listedAfter - time.Minute))
	fresh("-anna-phone", "-anna-phone", "guest")
	c.skip(2 * time.Minute)
	d = open(t, cfg)
	fresh()
}

// TestSignedListOfAnotherCA: what a former CA has signed is on no list.
func TestSignedListOfAnotherCA(t *testing.T) {
	cfg := config(t)
	add(t, open(t, cfg), "anna-phone")
	cfg.CA = newCA(t)
	d := open(t, cfg)
	add(t, d, "ben-phone")
	onList(t, signedAt(t, d, today), "ben-phone")
}

// TestSignedListNumber rises also when the store forgot the last one, or the
// clock jumps.
func TestSignedListNumber(t *testing.T) {
	c := newClock()
	cfg := configAt(t, c)
	var last uint64
	for i, step := range []func(){
		func() {},
		func() { c.skip(-time.Hour) },
		func() { c.skip(time.Hour) },
		func() {
			c.skip(time.Minute)
			if err := cfg.Store.Delete(t.Context(), crlKey, 0); err != nil {
				t.Fatal(err)
			}
		},
		func() { c.set(today.AddDate(5, 0, 0)) },
		func() { c.set(today) },
		func() { list(t, open(t, cfg), c.time()) }, // a revocation list in between
	} {
		step()
		l := signedAt(t, open(t, cfg), c.time())
		if l.Number <= last {
			t.Errorf("step %d: number %d after %d", i, l.Number, last)
		}
		last = l.Number
	}
}

func TestSignedListRefuses(t *testing.T) {
	cfg := config(t)
	healthy := cfg.Store
	cfg.Store = unwritable{healthy}
	d := open(t, cfg)
	if _, _, err := d.SignedList(t.Context(), everywhere, today); !errors.Is(err, errDisk) {
		t.Errorf("a list whose number a restart would forget: %v", err)
	}
	cfg.Store = healthy
	d = open(t, cfg)
	if _, _, err := d.SignedList(t.Context(), everywhere, time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)); err == nil {
		t.Error("a list of the year 2000")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	signedAt(t, d, today)
	if _, _, err := d.SignedList(ctx, everywhere, today); err != nil {
		t.Errorf("what is there already needs no store: %v", err)
	}
}

// TestSignedListBounds: those who are gone fill no list; the last ones stay.
func TestSignedListBounds(t *testing.T) {
	s := newSnapshot()
	cert := &x509.Certificate{NotAfter: today.AddDate(1, 0, 0)}
	for i := range maxGone + 100 {
		id := fmt.Sprintf("%064x", i)
		s.byID[id] = &entry{Device: Device{ID: id, Name: "x", NotAfter: cert.NotAfter, Revoked: true, RevokedAt: today.Add(time.Duration(i) * time.Second)}, cert: cert, trusted: true}
	}
	live := fmt.Sprintf("%064x", 1<<40)
	s.byID[live] = &entry{Device: Device{ID: live, Name: "x", NotAfter: cert.NotAfter}, cert: cert, trusted: true}
	got := s.listed(everywhere, today)
	if len(got) != maxGone+1 || got[0].Key != fmt.Sprintf("%064x", 100) || got[maxGone].Key != live || got[maxGone].Revoked {
		t.Errorf("%d are listed, the first is %s, the last %+v", len(got), got[0].Key, got[len(got)-1])
	}
}

// TestSignedListUnderLoad: many that ask at once get one list, and none that was
// asked for after a revocation knows less than it.
func TestSignedListUnderLoad(t *testing.T) {
	d := open(t, config(t))
	add(t, d, "anna-phone")
	var wg sync.WaitGroup
	lists := make([][]byte, 50)
	for i := range lists {
		wg.Go(func() { lists[i], _, _ = d.SignedList(t.Context(), everywhere, today) })
	}
	wg.Wait()
	for _, l := range lists {
		if l == nil || !bytes.Equal(l, lists[0]) {
			t.Fatal("two lists for one state")
		}
	}
	for i := range 20 {
		name := fmt.Sprintf("phone-%d", i)
		_, cert := add(t, d, name)
		for range 4 {
			wg.Go(func() { _, _, _ = d.SignedList(t.Context(), everywhere, today) })
		}
		if _, err := d.Revoke(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if !find(t, signedAt(t, d, today), cert).Revoked {
			t.Fatal("a list made after a revocation does not know it")
		}
	}
	wg.Wait()
}

// TestSignedListElsewhere: another relay on the same store lists the same, with
// a number of its own.
func TestSignedListElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClock()
		cfg := configAt(t, c)
		d, other := open(t, cfg), open(t, cfg)
		defer start(t, other)()
		_, cert := add(t, d, "anna-phone")
		here := signedAt(t, d, c.time())
		if _, err := d.Revoke(t.Context(), "anna-phone"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		there := signedAt(t, other, c.time())
		if !find(t, there, cert).Revoked || there.Number <= here.Number {
			t.Errorf("list %d here, %d there: %+v", here.Number, there.Number, there.Devices)
		}
	})
}

// TestSignedListAfterResetClock: a list from a future that never was is made
// anew at once, however near that future was.
func TestSignedListAfterResetClock(t *testing.T) {
	c := newClock()
	d := open(t, configAt(t, c))
	anna, _ := add(t, d, "anna-phone")
	c.skip(time.Hour) // ahead
	d.Seen(anna.ID)
	ahead := signedAt(t, d, c.time())
	c.set(today.Add(time.Minute)) // right, and not believed
	if l := signedAt(t, d, c.time()); l.Number != ahead.Number {
		t.Error("a new list for nothing")
	}
	if err := d.ResetClock(t.Context(), c.time()); err != nil {
		t.Fatal(err)
	}
	if l := signedAt(t, d, c.time()); l.Number <= ahead.Number || !l.Issued.Equal(c.time()) {
		t.Errorf("list %d made at %v, after %d made at %v", l.Number, l.Issued, ahead.Number, ahead.Issued)
	}
}

// A home hears of devices that may come to it, and not where else they may go.
func TestSignedListScope(t *testing.T) {
	c := newClock()
	d := open(t, configAt(t, c))
	add := func(name string, hosts ...string) {
		t.Helper()
		if _, _, err := d.Add(t.Context(), Grant{Name: name, Key: newPublic(t), Hosts: hosts}); err != nil {
			t.Fatal(err)
		}
	}
	add("anywhere")
	add("both", "ha.example.org", "nas.example.org")
	add("elsewhere", "nas.example.org")
	scope := Scope{Name: "kitchen", Mine: func(p string) bool { return p == "ha.example.org" }}
	get := func() pki.DeviceList {
		t.Helper()
		signed, _, err := d.SignedList(t.Context(), scope, c.time())
		if err != nil {
			t.Fatal(err)
		}
		l, err := pki.OpenDeviceList(d.cfg.CA.Cert(), signed)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := get()
	onList(t, l, "anywhere", "both")
	for _, dev := range l.Devices {
		if dev.Name == "both" && !slices.Equal(dev.Hosts, []string{"ha.example.org"}) {
			t.Errorf("the home hears of %v", dev.Hosts)
		}
	}
	// What concerns other homes alone makes no new list.
	number := l.Number
	add("more", "nas.example.org")
	if l := get(); l.Number != number {
		t.Errorf("list %d after %d, though nothing of it changed", l.Number, number)
	}
	if _, err := d.Revoke(t.Context(), "both"); err != nil {
		t.Fatal(err)
	}
	if l := get(); l.Number <= number {
		t.Errorf("list %d after a revocation, before it was %d", l.Number, number)
	} else {
		onList(t, l, "anywhere", "-both")
	}
}
