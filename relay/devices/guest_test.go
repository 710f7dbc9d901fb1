package devices

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

func addGuest(t testing.TB, d *Devices, name string, until time.Time) (Device, *x509.Certificate) {
	t.Helper()
	dev, cert, err := d.Add(t.Context(), Grant{Name: name, Key: newPublic(t), Until: until})
	if err != nil {
		t.Fatal(err)
	}
	return dev, cert
}

// setEnd changes Until and nothing else.
func setEnd(t testing.TB, d *Devices, name string, until time.Time) Device {
	t.Helper()
	dev, err := d.Change(t.Context(), name, Change{Until: &until})
	if err != nil || !dev.Until.Equal(until) {
		t.Fatalf("Until %v: %+v, %v", until, dev, err)
	}
	return dev
}

// oldGuest puts a guest into the store as earlier versions did: the certificate
// ends with its rights. Version 1 did not write the end down.
func oldGuest(t testing.TB, cfg Config, version int, name string, until time.Time) *x509.Certificate {
	t.Helper()
	cert := must(cfg.CA.Issue(newPublic(t), pki.Grant{Profile: pki.Device, Name: name, NotAfter: until}))
	r := record{Kind: KindCertificate, Cert: cert.Raw, Created: cfg.Now(), Until: until}
	if version == 1 {
		r.Until = time.Time{}
	}
	data := must((&document{Devices: []record{r}}).encode())
	if version == 1 {
		data = []byte(strings.Replace(string(data), `"v":2`, `"v":1`, 1))
	}
	must(cfg.Store.Create(t.Context(), docPrefix+name, data))
	return cert
}

// TestUntil: a guest's certificate lives as long as any other, or longer where
// its time does, and never longer than the CA.
func TestUntil(t *testing.T) {
	lasts := newCA(t).Cert().NotAfter // by the fixed clock: of every CA here
	for name, c := range map[string]struct {
		lifetime   time.Duration
		until, end time.Time
	}{
		"no guest":               {0, time.Time{}, today.Add(defaultLifetime)},
		"hours":                  {0, today.Add(2 * time.Hour), today.Add(defaultLifetime)},
		"as long as any":         {0, today.Add(defaultLifetime), today.Add(defaultLifetime)},
		"two years":              {0, today.AddDate(2, 0, 0), today.AddDate(2, 0, 0)},
		"longer than others":     {time.Hour, today.Add(2 * time.Hour), today.Add(2 * time.Hour)},
		"as long as the CA":      {0, lasts, lasts},
		"others outlive the CA":  {100 * year, today.Add(time.Hour), lasts},
		"nobody outlives the CA": {100 * year, time.Time{}, lasts},
		"shorter than any other": {time.Hour, today.Add(time.Minute), today.Add(time.Hour)},
	} {
		cfg := config(t)
		cfg.Lifetime = c.lifetime
		d := open(t, cfg)
		dev, cert := addGuest(t, d, "guest", c.until)
		if !cert.NotAfter.Equal(c.end) || !dev.NotAfter.Equal(c.end) || !dev.Until.Equal(c.until) {
			t.Errorf("%s: %+v, certificate until %v, want %v", name, dev, cert.NotAfter, c.end)
		}
		end := c.end
		if !c.until.IsZero() {
			end = c.until
		}
		if !dev.Ends().Equal(end) {
			t.Errorf("%s: ends %v, want %v", name, dev.Ends(), end)
		}
		check(t, d, cert, "ha.example.org", end, Allowed)
		check(t, d, cert, "ha.example.org", end.Add(time.Second), DeniedExpired)
	}
}

// TestGuestsEndMoves back and forth, also after it has passed and after a
// restart, as long as the certificate lives.
func TestGuestsEndMoves(t *testing.T) {
	c := newClock()
	cfg := configAt(t, c)
	d := open(t, cfg)
	at := func(by time.Duration) time.Time { return today.Add(by) }
	dev, cert := addGuest(t, d, "guest", at(2*time.Hour))
	ends := func(want time.Time) {
		t.Helper()
		for _, d := range []*Devices{d, open(t, cfg)} {
			check(t, d, cert, "ha.example.org", want, Allowed)
			check(t, d, cert, "ha.example.org", want.Add(time.Second), DeniedExpired)
		}
	}
	for _, hours := range []time.Duration{4, 1, 2, 24 * 300, 3} { // longer, shorter, and what was before
		setEnd(t, d, "guest", at(hours*time.Hour))
		ends(at(hours * time.Hour))
	}
	c.set(at(100 * time.Hour)) // long over
	check(t, d, cert, "ha.example.org", c.time(), DeniedExpired)
	d = open(t, cfg)
	setEnd(t, d, "guest", at(102*time.Hour))
	ends(at(102 * time.Hour))
	check(t, d, cert, "ha.example.org", c.time(), Allowed)
	c.set(at(103 * time.Hour))
	setEnd(t, d, "guest", dev.NotAfter) // to the very end
	ends(dev.NotAfter)
	setEnd(t, d, "guest", at(104*time.Hour))
	c.set(at(105 * time.Hour))
	if got := setEnd(t, d, "guest", time.Time{}); !got.Ends().Equal(dev.NotAfter) {
		t.Errorf("without an end of its own: %+v", got)
	}
	ends(dev.NotAfter)
	if got, _ := d.Get("guest"); got.ID != dev.ID {
		t.Errorf("the guest is another one now: %+v", got)
	}
}

// TestGuestsEndElsewhere: an end that passes is no event; that it moves, the
// other relay hears. Only a shorter time cuts.
func TestGuestsEndElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClock()
		cfg := configAt(t, c)
		var told, far revocations
		cfg.OnRevoke = told.add
		d := open(t, cfg)
		cfg.OnRevoke = far.add
		other := open(t, cfg)
		defer start(t, d)()
		defer start(t, other)()
		dev, cert := addGuest(t, d, "guest", today.Add(time.Hour))
		c.skip(2 * time.Hour)
		time.Sleep(time.Hour) // virtual: rounds of Run
		check(t, other, cert, "ha.example.org", c.time(), DeniedExpired)
		setEnd(t, d, "guest", today.Add(4*time.Hour))
		synctest.Wait()
		check(t, other, cert, "ha.example.org", c.time(), Allowed)
		if told.count(dev.ID)+far.count(dev.ID) != 0 {
			t.Error("an end that passed, or moved on, cut")
		}
		setEnd(t, d, "guest", today.Add(3*time.Hour))
		synctest.Wait()
		if told.count(dev.ID) == 0 || far.count(dev.ID) == 0 {
			t.Error("who was let in for longer is not looked at again")
		}
	})
}

// TestRenewKeepsTheGuestsEnd: a renewed certificate lives its full time, also
// after the guest's was shortened. The guest's time stays.
func TestRenewKeepsTheGuestsEnd(t *testing.T) {
	c := newClock()
	cfg := configAt(t, c)
	d := open(t, cfg)
	end := today.Add(48 * time.Hour)
	_, first := addGuest(t, d, "guest", end.Add(time.Hour))
	setEnd(t, d, "guest", end)
	c.skip(47 * time.Hour)
	dev, second := renew(t, d, first)
	if !second.NotAfter.Equal(c.time().Add(defaultLifetime)) || !dev.Until.Equal(end) || !dev.Ends().Equal(end) {
		t.Errorf("renewed: %+v, certificate until %v", dev, second.NotAfter)
	}
	both := func(d *Devices, want Denial) {
		t.Helper()
		check(t, d, first, "ha.example.org", c.time(), want)
		check(t, d, second, "ha.example.org", c.time(), want)
	}
	c.skip(2 * time.Hour)
	for _, d := range []*Devices{d, open(t, cfg)} {
		both(d, DeniedExpired)
		for _, cert := range []*x509.Certificate{first, second} {
			_, _, err := d.Renew(t.Context(), cert, newPublic(t))
			if !errors.Is(err, ErrNotAllowed) || !strings.Contains(err.Error(), "sallyport device set guest --until") {
				t.Errorf("renewed after the end: %v", err)
			}
		}
	}
	setEnd(t, d, "guest", c.time().Add(time.Hour))
	both(d, Allowed)
	both(open(t, cfg), Allowed)
	renew(t, d, first)

	// A guest for longer than a certificate lives.
	long := c.time().AddDate(3, 0, 0)
	_, cert := addGuest(t, d, "long", long)
	c.skip(time.Hour)
	if dev, cert := renew(t, d, cert); !cert.NotAfter.Equal(long) || !dev.Until.Equal(long) {
		t.Errorf("renewed: %+v, certificate until %v, want %v", dev, cert.NotAfter, long)
	}
}

// TestOldGuests: those whose certificates were made to end with their time keep
// both. Once renewed, they are like the others.
func TestOldGuests(t *testing.T) {
	end := today.Add(48 * time.Hour)
	for _, version := range []int{1, 2} {
		c := newClock()
		cfg := configAt(t, c)
		old := oldGuest(t, cfg, version, "guest", end)
		d := open(t, cfg)
		dev, _ := d.Get("guest")
		if !dev.Until.Equal(end) || !dev.NotAfter.Equal(end) {
			t.Errorf("version %d: %+v", version, dev)
		}
		check(t, d, old, "ha.example.org", end, Allowed)
		check(t, d, old, "ha.example.org", end.Add(time.Second), DeniedExpired)
		if d.DueForRenewal(dev, end.Add(-time.Hour)) {
			t.Errorf("version %d: led to a renewal that extends nothing", version)
		}
		setEnd(t, d, "guest", end.Add(-time.Hour))
		setEnd(t, d, "guest", end)
		later := end.Add(time.Hour)
		if _, err := d.Change(t.Context(), "guest", Change{Until: &later}); err == nil || !strings.Contains(err.Error(), "\nLet the device renew first") {
			t.Errorf("version %d: moved behind its certificate: %v", version, err)
		}
		c.skip(47 * time.Hour)
		dev, cert := renew(t, d, old)
		if !dev.Until.Equal(end) || !cert.NotAfter.Equal(c.time().Add(defaultLifetime)) {
			t.Errorf("version %d: renewed %+v", version, dev)
		}
		for _, d := range []*Devices{d, open(t, cfg)} {
			check(t, d, cert, "ha.example.org", end, Allowed)
			check(t, d, cert, "ha.example.org", end.Add(time.Second), DeniedExpired)
		}
		setEnd(t, d, "guest", later)
		for _, d := range []*Devices{d, open(t, cfg)} {
			check(t, d, cert, "ha.example.org", later, Allowed)
			check(t, d, old, "ha.example.org", later, DeniedExpired)
		}
	}
}

// TestTooLate: whoever wants an end that the certificate does not reach is told
// what helps.
func TestTooLate(t *testing.T) {
	c := newClock()
	cfg := configAt(t, c)
	d := open(t, cfg)
	_, cert := addGuest(t, d, "guest", today.Add(48*time.Hour))
	refused := func(until time.Time, says string) {
		t.Helper()
		_, err := d.Change(t.Context(), "guest", Change{Until: &until})
		if err == nil || !strings.Contains(err.Error(), says) || strings.Count(err.Error(), "\n") > 1 {
			t.Errorf("until %v: %v, want %q", until, err, says)
		}
		if got, _ := d.Get("guest"); got.Until.Equal(until) {
			t.Errorf("until %v was set", until)
		}
	}
	wish := cert.NotAfter.Add(12 * time.Hour)
	refused(wish, "sallyport device revoke guest, then add it again") // renewing now would bring less
	refused(wish, "renewed now it would end on")
	refused(cfg.CA.Cert().NotAfter.Add(time.Hour), "after the end of the device CA")
	c.skip(24 * time.Hour)
	refused(wish, "\nLet the device renew first")
	c.skip(48 * time.Hour)
	refused(wish, "cannot renew: set an end before that first")
	// The way that it says:
	setEnd(t, d, "guest", c.time().Add(time.Hour))
	refused(wish, "\nLet the device renew first")
	renew(t, d, cert)
	setEnd(t, d, "guest", wish)
	// Nor is there one for who has no certificate any more.
	c.set(cert.NotAfter.Add(10 * 24 * time.Hour))
	refused(c.time().Add(time.Hour), "\nIt cannot be renewed any more; give it a new certificate: sallyport device revoke guest")
}
