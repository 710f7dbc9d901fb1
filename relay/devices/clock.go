package devices

import (
	"fmt"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// The rule of time: nothing is older than it was. The records know moments
// that have been (a device was added, revoked, seen), also those before the
// last restart, and a clock that says less than the newest of them is behind.
// Then the newest counts instead. So an end that has come does not go away,
// and devices that are valid work on while the clock says 2000.
//
// The price: after a clock that was ahead and was put right, the rule holds on
// to the wrong moment until it has come. What ends before that is shut out
// early, not let in late; ClockWarning says so, and the owner can say otherwise
// by ResetClock. Moments after the CA's own end are not believed at all.

// learnRecorded notes a moment that stands in a record, unless the owner said
// that it never was.
func (d *Devices) learnRecorded(t time.Time) {
	if !d.resets.Load().denies(t) {
		d.learnTime(t)
	}
}

// learnTime notes a moment that has been.
func (d *Devices) learnTime(t time.Time) {
	if !t.IsZero() && !t.After(d.cfg.CA.Cert().NotAfter) {
		raise(&d.newest, t.Unix())
	}
}

// latest returns now, or the newest moment of the records when that is later.
func (d *Devices) latest(now time.Time) time.Time {
	if newest := time.Unix(d.newest.Load(), 0); newest.After(now) {
		return newest.UTC()
	}
	return now
}

// now is the time that all decisions go by.
func (d *Devices) now() time.Time { return d.latest(d.cfg.Now()) }

// clockSlack is how far the clocks of relays that share a store may be apart.
const clockSlack = 5 * time.Minute

// ClockWarning says in one line what is wrong with the clock, by what the
// records and the CA know; "" when nothing is. Run logs it.
func (d *Devices) ClockWarning(now time.Time) string {
	newest := d.latest(now)
	says := fmt.Sprintf("this machine's clock says %s", now.UTC().Format("2006-01-02 15:04 MST"))
	const set = "set the clock (timedatectl set-ntp true)"
	switch {
	case now.Before(pki.Floor()):
		return fmt.Sprintf("%s, which cannot be right: devices are judged as if it were %s; %s", says, newest.UTC().Format("2006-01-02 15:04 MST"), set)
	case newest.Sub(now) > clockSlack:
		return fmt.Sprintf("%s, but the records know of %s: until then devices are judged by the later time, and what ends before it is shut out; %s, or, when it is the clock that is right: sallyport device clock --reset",
			says, newest.UTC().Format("2006-01-02 15:04 MST"), set)
	case now.After(d.cfg.CA.Cert().NotAfter):
		return fmt.Sprintf("%s, which is after the end of the device CA: every device is shut out; %s", says, set)
	}
	return ""
}

// watchClock logs a warning when it comes, and when it goes.
func (d *Devices) watchClock(before string) string {
	warning := d.ClockWarning(d.cfg.Now())
	switch {
	case warning != "" && before == "":
		d.cfg.Logger.Warn(warning)
	case warning == "" && before != "":
		d.cfg.Logger.Info("this machine's clock agrees with the records again")
	}
	return warning
}
