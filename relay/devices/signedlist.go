package devices

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

const (
	signedListEvery = 12 * time.Hour // how old a list for homes gets before it is made anew
	signedListLife  = 7 * 24 * time.Hour
	// maxGone bounds how many revoked certificates a list names. Nobody needs to
	// be on it to be shut out; its holder only hears why.
	maxGone = 5000
)

// A signedList is one for homes, and what it was made from.
type signedList struct {
	signed  []byte
	number  uint64
	made    time.Time
	devices []pki.ListedDevice // in order of key
}

// A Scope is what a home may know of the devices: whom it may meet. Mine reports
// whether a pattern of hosts that a device is confined to covers one of the home's.
type Scope struct {
	Name string // stable; lists are kept by it
	Mine func(pattern string) bool
}

// SignedList returns the list of devices that a home judges by which does not
// hold the CA (pki.OpenDeviceList), and its number, which rises with every list,
// also over restarts, when the clock jumps, and when the store was restored
// from a backup. The list is kept until something of it changes or half a day
// has passed. It is shared: do not change it.
//
// Devices that may go to no host of the home are not on it, nor are the others'
// hosts elsewhere. Tokens are not on it: their hosts are the relay's own. Expired
// certificates stay for a while, so that their holders hear why they are refused.
func (d *Devices) SignedList(ctx context.Context, scope Scope, now time.Time) ([]byte, uint64, error) {
	now = d.latest(now)
	d.signedTurn.Lock()
	defer d.signedTurn.Unlock()
	l, err := d.signList(ctx, scope, now)
	if err != nil {
		return nil, 0, fmt.Errorf("make the list of devices for homes: %w", err)
	}
	if d.signed == nil {
		d.signed = map[string]*signedList{}
	}
	d.signed[scope.Name] = l
	return l.signed, l.number, nil
}

// fresh reports whether a list is young enough. One from the future is not: the
// owner has said that this future never was (see ResetClock).
func (l *signedList) fresh(now time.Time) bool {
	age := now.Sub(l.made)
	return age >= 0 && age < signedListEvery
}

// signList returns the last list when it is still true, and a new one
// otherwise. The caller has the turn, so that of two lists the one with the
// higher number was made from the newer snapshot.
func (d *Devices) signList(ctx context.Context, scope Scope, now time.Time) (*signedList, error) {
	ctx, cancel := context.WithTimeout(ctx, listWait)
	defer cancel()
	devices := d.current.Load().listed(scope, now)
	if l := d.signed[scope.Name]; l != nil && l.fresh(now) && slices.EqualFunc(l.devices, devices, sameListed) {
		return l, nil
	}
	// The row of numbers is that of the revocation lists.
	number, err := d.nextNumber(ctx, now)
	if err != nil {
		return nil, err
	}
	made := wholeSeconds(now)
	signed, err := d.cfg.CA.SignDeviceList(pki.DeviceList{Number: number.Uint64(), Issued: made, Next: made.Add(signedListLife), Devices: devices})
	if err != nil {
		return nil, err
	}
	return &signedList{signed, number.Uint64(), made, devices}, nil
}

func sameListed(a, b pki.ListedDevice) bool {
	return a.Key == b.Key && a.Name == b.Name && a.Revoked == b.Revoked && a.Until.Equal(b.Until) && slices.Equal(a.Hosts, b.Hosts)
}

// listed returns what belongs on a home's list now.
func (s *snapshot) listed(scope Scope, now time.Time) []pki.ListedDevice {
	var live []pki.ListedDevice
	var gone []*entry
	for _, e := range s.byID {
		switch {
		case e.cert == nil || !e.trusted || !now.Before(e.NotAfter.Add(listedAfter)):
		case len(e.Hosts) > 0 && !slices.ContainsFunc(e.Hosts, scope.Mine):
		case e.Revoked:
			gone = append(gone, e)
		default:
			live = append(live, e.listed(scope))
		}
	}
	if len(gone) > maxGone { // the last ones are those who may still come
		slices.SortFunc(gone, func(a, b *entry) int {
			return cmp.Or(b.RevokedAt.Compare(a.RevokedAt), cmp.Compare(a.ID, b.ID))
		})
		gone = gone[:maxGone]
	}
	for _, e := range gone {
		live = append(live, e.listed(scope))
	}
	slices.SortFunc(live, func(a, b pki.ListedDevice) int { return cmp.Compare(a.Key, b.Key) })
	return live
}

func (e *entry) listed(scope Scope) pki.ListedDevice {
	var hosts []string
	for _, h := range e.Hosts {
		if scope.Mine(h) {
			hosts = append(hosts, h)
		}
	}
	return pki.ListedDevice{Key: e.ID, Name: e.Name, Hosts: hosts, Until: e.Until, Revoked: e.Revoked}
}
