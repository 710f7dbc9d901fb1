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

// A revocationList is one that was signed, and what it was made from.
type revocationList struct {
	der     []byte
	made    time.Time
	snap    *snapshot
	revoked []x509.RevocationListEntry
}

// CRL returns the list (DER) of revoked device certificates, for verifiers
// that cannot ask Check. Its number rises with every list, also over restarts.
// The list is kept until a revocation changes it or a day has passed. It is
// shared: do not change it.
//
// It knows revocations only. A guest whose end was moved forward by Change is
// not on it until its certificate is revoked.
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

func (l *revocationList) fresh(now time.Time) bool { return now.Sub(l.made).Abs() < listEvery }

// list returns the last list when it is still true, and a new one otherwise.
// The caller has the turn.
func (d *Devices) list(now time.Time) (*revocationList, error) {
	ctx, cancel := context.WithTimeout(context.Background(), listWait)
	defer cancel()
	snap := d.current.Load()
	revoked := snap.revoked(now)
	if l := d.crl.Load(); l != nil && l.fresh(now) && slices.EqualFunc(l.revoked, revoked, sameEntry) {
		return &revocationList{der: l.der, made: l.made, snap: snap, revoked: revoked}, nil
	}
	number, err := d.nextNumber(ctx, now)
	if err != nil {
		return nil, err
	}
	der, err := d.cfg.CA.RevocationList(revoked, number, now, now.Add(listLife))
	if err != nil {
		return nil, err
	}
	return &revocationList{der: der, made: now, snap: snap, revoked: revoked}, nil
}

func sameEntry(a, b x509.RevocationListEntry) bool {
	return a.SerialNumber.Cmp(b.SerialNumber) == 0 && a.RevocationTime.Equal(b.RevocationTime)
}

// revoked returns what belongs on a list, in order of serial number.
func (s *snapshot) revoked(now time.Time) []x509.RevocationListEntry {
	var list []x509.RevocationListEntry
	for _, e := range s.byCert {
		if e.Revoked && e.trusted && now.Before(e.NotAfter.Add(listedAfter)) {
			list = append(list, x509.RevocationListEntry{SerialNumber: e.cert.SerialNumber, RevocationTime: e.RevokedAt})
		}
	}
	slices.SortFunc(list, func(a, b x509.RevocationListEntry) int { return a.SerialNumber.Cmp(b.SerialNumber) })
	return list
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
