package devices

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

// A Change is what Change does to a device's rights; nil leaves as it is.
type Change struct {
	Hosts *[]string  // as in Grant; of a token: the one host that it reaches
	Until *time.Time // in the future, not after the certificate's end; zero: no end but that
	Admin *bool      // certificates only
}

// Change gives a live device other rights, all its generations at once. It is
// on disk and in force when Change returns; of an ID that lost rights, OnRevoke
// has returned.
//
// The end of a guest's time moves back and forth as long as its certificate
// lives, also when it has passed: then the guest is let in again. An end later
// than the newest certificate's is refused: it would come sooner than said.
func (d *Devices) Change(ctx context.Context, name string, c Change) (Device, error) {
	dev, err := d.changeRights(ctx, name, c)
	if err != nil {
		return Device{}, fmt.Errorf("change device %q: %w", name, err)
	}
	return dev, nil
}

func (d *Devices) changeRights(ctx context.Context, name string, c Change) (Device, error) {
	if !validName(name) {
		return Device{}, unknownName()
	}
	if c.Hosts != nil {
		hosts, err := d.patterns(*c.Hosts)
		if err != nil {
			return Device{}, err
		}
		c.Hosts = &hosts
	}
	if c.Until != nil {
		until := wholeSeconds(*c.Until)
		if !until.IsZero() && !until.After(d.now()) {
			return Device{}, fmt.Errorf("%s is in the past\nTo shut it out now: sallyport device revoke %s", until.Format(time.RFC3339), name)
		}
		c.Until = &until
	}
	var lost []string
	doc, rev, err := d.rewrite(ctx, name, func(doc *document) (err error) {
		lost, err = d.applyChange(name, doc, c)
		return err
	})
	if err != nil {
		return Device{}, err
	}
	d.publish(name, rev, doc, lost)
	dev, _ := d.ByID(doc.last().id())
	return dev, nil
}

// applyChange changes the live generations of a document and returns the IDs
// that lost rights by it.
func (d *Devices) applyChange(name string, doc *document, c Change) (lost []string, err error) {
	if len(doc.Devices) == 0 {
		return nil, unknownName()
	}
	live := doc.live()
	if len(live) == 0 {
		return nil, fmt.Errorf("%w: it is revoked, and stays so\nAdd it anew: sallyport device add %s", ErrUnknown, name)
	}
	if err := d.checkChange(name, live, c); err != nil {
		return nil, err
	}
	for _, r := range live {
		was := *r
		if c.Hosts != nil {
			r.Hosts = *c.Hosts
		}
		if c.Until != nil {
			r.Until = *c.Until
		}
		if c.Admin != nil {
			r.Admin = *c.Admin
		}
		if shrunk(was.rights(), r.rights()) {
			lost = append(lost, r.id())
		}
	}
	return lost, nil
}

// checkChange says why live generations of one device cannot get new rights.
func (d *Devices) checkChange(name string, live []*record, c Change) error {
	if live[0].Kind == KindToken {
		if c.Admin != nil && *c.Admin {
			return errors.New("a token opens no dashboard: give a device with a certificate that right")
		}
		if c.Hosts == nil {
			return nil
		}
		if len(*c.Hosts) != 1 {
			return errors.New("a token reaches one host\nAdd one more token for another host.")
		}
		return d.checkTarget((*c.Hosts)[0])
	}
	if c.Until == nil || c.Until.IsZero() {
		return nil
	}
	newest := live[len(live)-1]
	if c.Until.After(newest.cert.NotAfter) {
		return d.tooLate(name, newest, *c.Until)
	}
	return nil
}

// tooLate says what to do where an end is wanted that the newest certificate
// does not reach. Renewing is the answer only for a device that can, and where
// the next certificate reaches further.
func (d *Devices) tooLate(name string, newest *record, until time.Time) error {
	now, end := d.now(), newest.cert.NotAfter
	if err := d.checkUntil(now, until); err != nil {
		return err
	}
	const say = time.RFC3339
	anew := fmt.Sprintf("give it a new certificate: sallyport device revoke %s, then add it again.", name)
	switch next := d.lasts(now, newest.Until); {
	case now.After(end):
		return fmt.Errorf("its certificate ended on %s\nIt cannot be renewed any more; %s", end.Format(say), anew)
	case until.After(next):
		return fmt.Errorf("its certificate ends before that, on %s, and renewed now it would end on %s\nSet an earlier end, or %s", end.Format(say), next.Format(say), anew)
	case now.After(newest.end()):
		return fmt.Errorf("its certificate ends before that, on %s\nIts time is over, so that it cannot renew: set an end before that first, let it renew at its check page, then set this one.", end.Format(say))
	}
	return fmt.Errorf("its certificate ends before that, on %s\nLet the device renew first, at its check page, then set the end again.", end.Format(say))
}

// rights are what a live device may, for comparison.
type rights struct {
	hosts []string
	until time.Time
	admin bool
	path  string
}

func (r *record) rights() rights { return rights{r.Hosts, r.Until, r.Admin, r.Path} }

func (e *entry) rights() rights { return rights{e.Hosts, e.Until, e.Admin, e.Path} }

// shrunk reports whether anything that was allowed is not any more: live
// connections were opened, and armed to end, under the old rights.
func shrunk(was, is rights) bool {
	switch {
	case was.admin && !is.admin, was.path != is.path:
		return true
	case !is.until.IsZero() && (was.until.IsZero() || is.until.Before(was.until)):
		return true
	case len(is.hosts) == 0: // everywhere
		return false
	}
	return len(was.hosts) == 0 || slices.ContainsFunc(was.hosts, func(p string) bool { return !covered(p, is.hosts) })
}

// covered reports whether a pattern is among others, or a name among those
// that they match.
func covered(p string, by []string) bool {
	return slices.ContainsFunc(by, func(q string) bool {
		return p == q || names.Match(q, p) // which no "*.x" is, as a name
	})
}
