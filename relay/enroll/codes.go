package enroll

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

const (
	codeTTL    = 15 * time.Minute
	maxCodeTTL = 7 * 24 * time.Hour
	// maxCodes bounds the codes that wait, and with them the requests that
	// come with a code.
	maxCodes = 200
	maxBy    = 80
)

// Invite makes a code for one device. It is shown once; at rest is only its
// hash. Without a name in the invitation, the owner approves what comes of it. An older code for the same name, not used yet, opens nothing any more.
func (d *Desk) Invite(ctx context.Context, inv Invitation) (text string, expires time.Time, err error) {
	text, expires, err = d.invite(ctx, inv)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("invite %s: %w", orUnnamed(inv.Name), err)
	}
	return text, expires, nil
}

func orUnnamed(name string) string {
	if name == "" {
		return "a device"
	}
	return fmt.Sprintf("device %q", name)
}

func (d *Desk) invite(ctx context.Context, inv Invitation) (string, time.Time, error) {
	now := d.cfg.Now().UTC()
	c, err := d.newCode(inv, now)
	if err != nil {
		return "", time.Time{}, err
	}
	if err := d.begin(ctx); err != nil {
		return "", time.Time{}, err
	}
	defer d.end()
	if inv.Name != "" {
		if _, err := d.withdraw(ctx, func(c *code) bool { return c.Name == inv.Name }); err != nil {
			return "", time.Time{}, err
		}
	}
	if len(d.unused(now)) >= maxCodes {
		return "", time.Time{}, fmt.Errorf("%d codes wait to be used already\nWait until they expire, or withdraw some.", maxCodes)
	}
	text := rand.Text()
	c.hash = hash(text)
	if _, err := d.putCode(ctx, *c); err != nil {
		return "", time.Time{}, err
	}
	d.cfg.Audit("enrol.invited", slog.String("device", c.Name), slog.Any("hosts", c.Hosts), slog.Bool("admin", c.Admin),
		slog.Bool("approve", c.Approve), slog.Time("until", c.Until), slog.Time("expires", c.Expires),
		slog.String("code_id", c.id()), slog.String("by", c.By))
	d.cfg.Changed()
	return text, c.Expires, nil
}

// newCode checks an invitation.
func (d *Desk) newCode(inv Invitation, now time.Time) (*code, error) {
	if inv.TTL == 0 {
		inv.TTL = codeTTL
	}
	if inv.TTL < time.Second || inv.TTL > maxCodeTTL {
		return nil, errors.New("a code lives between one second and 7 days\nChoose another --ttl; the default is 15m.")
	}
	c := &code{
		Version: recordVersion, Name: inv.Name, Until: inv.Until.UTC(), Admin: inv.Admin,
		Approve: inv.Approve || inv.Name == "", By: clip(inv.By, maxBy),
		Created: now, Expires: now.Add(inv.TTL).Truncate(time.Second),
	}
	if !inv.Until.IsZero() {
		if !inv.Until.After(now) {
			return nil, fmt.Errorf("%s is in the past", inv.Until.Format(time.RFC3339))
		}
		if c.Until.Before(c.Expires) {
			c.Expires = c.Until
		}
	}
	if inv.Name != "" {
		if err := d.checkName(inv.Name); err != nil {
			return nil, err
		}
	}
	for _, h := range inv.Hosts {
		p, err := names.ValidPattern(h)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(c.Hosts, p) {
			c.Hosts = append(c.Hosts, p)
		}
	}
	return c, nil
}

func (d *Desk) checkName(name string) error {
	if !validName(name) {
		return errors.New("a device name has 1 to 63 lower-case letters, digits and hyphens, and no hyphen first")
	}
	return d.cfg.CheckName(name)
}

// Look says what a code is good for, and leaves it as it is. A wrong code is
// ErrCode and counts against the source, which gets a *BlockedError after too
// many.
func (d *Desk) Look(_ context.Context, source netip.Addr, text string) (Invitation, error) {
	now, from, hash := d.cfg.Now(), sourceOf(source), hash(normal(text))
	c, err := d.try(from, now, func() *code {
		if c := d.codes[hash]; c != nil && c.UsedBy == nil && c.alive(now) {
			return c
		}
		return nil
	})
	if err != nil {
		return Invitation{}, err
	}
	return Invitation{
		Name: c.Name, Hosts: slices.Clone(c.Hosts), Until: c.Until, Admin: c.Admin, Approve: c.Approve,
		TTL: c.Expires.Sub(now), Expires: c.Expires,
	}, nil
}

// try looks a code up for a source that may ask now. Asking, looking and
// counting are one step: of tries that come at once, no more are answered than
// of those that come one after the other. Look is called with d.mu held.
func (d *Desk) try(from netip.Prefix, now time.Time, look func() *code) (*code, error) {
	d.mu.Lock()
	if wait := d.guard.admit(from, now); wait > 0 {
		d.mu.Unlock()
		return nil, &BlockedError{wait}
	}
	if c := look(); c != nil {
		d.mu.Unlock()
		return c, nil
	}
	v := d.guard.wrong(from, now)
	d.mu.Unlock()
	d.refused(from, v, "code")
	return nil, ErrCode
}

// Codes returns the codes that wait to be used, the first to expire first.
func (d *Desk) Codes() []CodeInfo {
	var list []CodeInfo
	for _, c := range d.unused(d.cfg.Now()) {
		list = append(list, CodeInfo{
			ID: c.id(), Name: c.Name, By: c.By, Hosts: slices.Clone(c.Hosts), Until: c.Until, Admin: c.Admin,
			Approve: c.Approve, Created: c.Created, Expires: c.Expires,
		})
	}
	slices.SortFunc(list, func(a, b CodeInfo) int {
		if c := a.Expires.Compare(b.Expires); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return list
}

func (d *Desk) unused(now time.Time) (list []*code) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.codes {
		if c.UsedBy == nil && c.alive(now) {
			list = append(list, c)
		}
	}
	return list
}
