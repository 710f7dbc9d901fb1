package devices

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

func grantFor(name string) pki.Grant { return pki.Grant{Profile: pki.Device, Name: name} }

// TestClockGoesBack: what had ended stays out when the clock is set back, in
// the same process and after a restart; what is valid works on.
func TestClockGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClock()
		cfg := configAt(t, c)
		d := open(t, cfg)
		stop := start(t, d)
		_, guest, err := d.Add(t.Context(), Grant{Name: "guest", Key: newPublic(t), Until: today.Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		tv, secret := addToken(t, d, TokenGrant{Name: "tv", Host: "photos", Until: today.Add(time.Hour)})
		anna, cert := add(t, d, "anna-phone")
		c.skip(3 * time.Hour)
		d.Seen(anna.ID) // the only sign of the time that passed
		stop()          // writes it down
		restarted := open(t, cfg)
		for _, back := range []time.Time{
			today.Add(30 * time.Minute),
			today.Add(-30 * 24 * time.Hour), // before everything was issued
			time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
			time.Unix(0, 0),
		} {
			c.set(back)
			for _, d := range []*Devices{d, restarted} {
				check(t, d, guest, "ha.example.org", back, DeniedExpired)
				checkToken(t, d, tv.TokenHost, secret, back, DeniedExpired)
				check(t, d, cert, "ha.example.org", back, Allowed)
				if len(d.Tokens()) != 0 {
					t.Errorf("at %v: Tokens = %+v", back, d.Tokens())
				}
				if _, _, err := d.Renew(t.Context(), guest, newPublic(t)); err == nil {
					t.Errorf("at %v: an expired guest renewed", back)
				}
				if w := d.ClockWarning(back); !strings.Contains(w, back.UTC().Format("2006-01-02 15:04")) || !strings.Contains(w, "2027-03-01 15:00") {
					t.Errorf("at %v the warning is %q", back, w)
				}
			}
		}
		// Nothing is issued by a clock that cannot be right.
		if _, _, err := restarted.Add(t.Context(), Grant{Name: "new", Key: newPublic(t)}); err == nil {
			t.Error("a device was added in 1970")
		}
		// But what is revoked then is revoked.
		if dev, err := restarted.Revoke(t.Context(), "anna-phone"); err != nil || dev.RevokedAt.Before(today) {
			t.Errorf("Revoke: %+v, %v", dev, err)
		}
	})
}

// TestClockWasAhead: a wrong future shuts out no more than what ends in it,
// and one beyond the CA's own end is not believed.
func TestClockWasAhead(t *testing.T) {
	c := newClock()
	d := open(t, configAt(t, c))
	_, guest, err := d.Add(t.Context(), Grant{Name: "guest", Key: newPublic(t), Until: today.Add(24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	anna, cert := add(t, d, "anna-phone")
	for _, wrong := range []time.Duration{50 * 365 * 24 * time.Hour, 48 * time.Hour} {
		c.set(today.Add(wrong))
		d.Seen(anna.ID)
		c.set(today)
		check(t, d, cert, "ha.example.org", today, Allowed)
		if wrong > 365*24*time.Hour {
			check(t, d, guest, "ha.example.org", today, Allowed)
			if w := d.ClockWarning(today); w != "" {
				t.Errorf("the warning is %q", w)
			}
		} else {
			check(t, d, guest, "ha.example.org", today, DeniedExpired)
			if w := d.ClockWarning(today); !strings.Contains(w, "2027-03-03") {
				t.Errorf("the warning is %q", w)
			}
		}
	}
}

func TestClockWarning(t *testing.T) {
	d := open(t, config(t))
	for _, c := range []struct {
		now  time.Time
		says string
	}{
		{today, ""},
		{today.AddDate(1, 0, 0), ""},
		{today.AddDate(11, 0, 0), "every device is shut out"},
		{time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), "cannot be right"},
		{time.Time{}, "cannot be right"},
	} {
		if w := d.ClockWarning(c.now); (w == "") != (c.says == "") || !strings.Contains(w, c.says) || strings.Contains(w, "\n") {
			t.Errorf("on %v: %q, want %q", c.now, w, c.says)
		}
	}
	add(t, d, "anna-phone") // now the records know a moment
	if w := d.ClockWarning(today.Add(-clockSlack)); w != "" {
		t.Errorf("relays' clocks may differ a little: %q", w)
	}
	if w := d.ClockWarning(today.Add(-clockSlack - time.Second)); !strings.Contains(w, "timedatectl") {
		t.Errorf("a clock that went back: %q", w)
	}
}

// TestClockIsLogged once when it goes wrong, and once when it is right again.
func TestClockIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClock()
		cfg := configAt(t, c)
		var log bytes.Buffer
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		d := open(t, cfg)
		add(t, d, "anna-phone")
		c.set(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))
		stop := start(t, d) // a relay that begins with a wrong clock says so at once
		if strings.Count(log.String(), "cannot be right") != 1 {
			t.Errorf("the log says %q", log.String())
		}
		time.Sleep(5 * time.Minute) // virtual
		c.set(today)
		time.Sleep(5 * time.Minute) // virtual
		stop()
		if strings.Count(log.String(), "WARN") != 1 || strings.Count(log.String(), "agrees with the records again") != 1 {
			t.Errorf("the log says %q", log.String())
		}
	})
}
