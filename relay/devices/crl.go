package devices

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"time"

	"github.com/sallyport/sallyport/relay/store"
)

const (
	listEvery   = 24 * time.Hour     // how old a list gets before it is made anew
	listLife    = 7 * 24 * time.Hour // how long readers may keep it
	listWait    = 10 * time.Second   // for the store
	listedAfter = retained           // how long a certificate stays listed after its end: readers' clocks lag
)

// certificateHold is the reason of an entry that may be lifted again (RFC 5280,
// 5.3.1).
const certificateHold = 6

// A revocationList is one that was signed, and what it was made from.
type revocationList struct {
	der  []byte
	made time.Time
	next time.Time // when another one is due
	snap *snapshot
	listing
}

// A listing is what belongs on a list from since on and before until, when the
// next guest's time is over; zero: since ever, for ever.
type listing struct {
	entries      []x509.RevocationListEntry // in order of serial number
	since, until time.Time
}

// CRL returns the list (DER) of device certificates that are not to be
// believed, for verifiers that cannot ask Check: revoked ones, and on hold
// (certificateHold) those of guests whose time is over, which Change may let in
// again. Its number rises with every list, also over restarts. The list is kept
// until something of it changes or a day has passed. It is shared: do not
// change it.
//
// A list stays good for a week, though another may be due before: at the
// latest when the next guest's time is over.
func (d *Devices) CRL(now time.Time) ([]byte, error) {
	now = d.latest(now)
	if l := d.crl.Load(); l != nil && l.snap == d.current.Load() && l.fresh(now) {
		return l.der, nil
	}
	d.crlTurn.Lock()
	defer d.crlTurn.Unlock()
	l, err := d.list(now)
	if err != nil {
		return nil, fmt.Errorf("make the list of revoked devices: %w", err)
	}
	d.crl.Store(l)
	return l.der, nil
}

// fresh reports whether a list may still be true, as far as that depends on
// the time. It may go back, too: see ResetClock.
func (l *revocationList) fresh(now time.Time) bool {
	return now.Sub(l.made).Abs() < listEvery && !now.Before(l.since) && now.Before(l.next)
}

// list returns the last list when it is still true, and a new one otherwise.
// The caller has the turn.
func (d *Devices) list(now time.Time) (*revocationList, error) {
	ctx, cancel := context.WithTimeout(context.Background(), listWait)
	defer cancel()
	snap := d.current.Load()
	is := snap.listing(now)
	if l := d.crl.Load(); l != nil && l.fresh(now) && (is.until.IsZero() || !l.next.After(is.until)) && slices.EqualFunc(l.entries, is.entries, sameEntry) {
		return &revocationList{der: l.der, made: l.made, next: l.next, snap: snap, listing: is}, nil
	}
	// Promised for a week in any case: readers that take a list past its next
	// update for none would refuse everybody when one guest's time is over.
	promised := now.Add(listLife)
	next := promised
	if !is.until.IsZero() && is.until.Before(next) {
		next = is.until
	}
	number, err := d.nextNumber(ctx, now)
	if err != nil {
		return nil, err
	}
	der, err := d.cfg.CA.RevocationList(is.entries, number, now, promised)
	if err != nil {
		return nil, err
	}
	return &revocationList{der: der, made: now, next: next, snap: snap, listing: is}, nil
}

func sameEntry(a, b x509.RevocationListEntry) bool {
	return a.SerialNumber.Cmp(b.SerialNumber) == 0 && a.RevocationTime.Equal(b.RevocationTime) && a.ReasonCode == b.ReasonCode
}

// listing returns what belongs on a list now. An end that the certificate says
// itself needs no list.
func (s *snapshot) listing(now time.Time) (l listing) {
	for _, e := range s.byCert {
		entry := x509.RevocationListEntry{SerialNumber: e.cert.SerialNumber, RevocationTime: e.RevokedAt}
		switch {
		case !e.trusted || !now.Before(e.NotAfter.Add(listedAfter)):
			continue
		case e.Revoked:
		case e.Until.IsZero() || !e.Until.Before(e.NotAfter):
			continue
		case now.Before(e.Until):
			if l.until.IsZero() || e.Until.Before(l.until) {
				l.until = e.Until
			}
			continue
		default:
			entry.RevocationTime, entry.ReasonCode = e.Until, certificateHold
			if e.Until.After(l.since) {
				l.since = e.Until
			}
		}
		l.entries = append(l.entries, entry)
	}
	slices.SortFunc(l.entries, func(a, b x509.RevocationListEntry) int { return a.SerialNumber.Cmp(b.SerialNumber) })
	return l
}

// nextNumber takes the next number, on disk before it is used. It is at least
// the time in seconds: so it rises also when the store was restored from an
// old backup.
func (d *Devices) nextNumber(ctx context.Context, now time.Time) (*big.Int, error) {
	for {
		e, err := d.cfg.Store.Get(ctx, crlKey)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		number := now.Unix()
		if err == nil {
			last, err := strconv.ParseInt(string(e.Value), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("its last number is damaged: %w\nRestore the relay's state from a backup.", err)
			}
			number = max(number, last+1)
		}
		value := []byte(strconv.FormatInt(number, 10))
		if e.Revision == 0 {
			_, err = d.cfg.Store.Create(ctx, crlKey, value)
		} else {
			_, err = d.cfg.Store.Update(ctx, crlKey, value, e.Revision)
		}
		if err == nil {
			return big.NewInt(number), nil
		}
		if !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrConflict) {
			return nil, err
		}
	}
}
