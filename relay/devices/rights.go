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
	Until *time.Time // zero: no end but the certificate's
	Admin *bool      // certificates only
}

// Change gives a live device other rights, all its generations at once. It is
// on disk and in force when Change returns; of an ID that lost rights, OnRevoke
// has returned. An end that is later than the certificate's is refused.
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
	if end := newest.cert.NotAfter; c.Until.After(end) {
		if !newest.Until.IsZero() && !newest.Until.Before(end) { // issued for that end, so that renewing does not move it
			return fmt.Errorf("its certificate ends with its rights, on %s\nGive it a new one: sallyport device revoke %s, then add it again.", end.Format(time.RFC3339), name)
		}
		return fmt.Errorf("its certificate ends before that, on %s\nLet the device renew first, at its check page, then set the end again.", end.Format(time.RFC3339))
	}
	return nil
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
