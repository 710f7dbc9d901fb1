package devices

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/relay/store"
)

const clockVersion = 1

// A clockReset is the value of "device-clock": what the owner said about the
// clock. It never changes once it is read.
type clockReset struct {
	Version int       `json:"v"`
	At      time.Time `json:"at"`              // the time that it was then
	Never   []int64   `json:"never,omitempty"` // moments of records that never were, Unix seconds, ascending
	rev     uint64
}

// denies reports whether the owner said that a moment never was.
func (c *clockReset) denies(t time.Time) bool {
	_, found := slices.BinarySearch(c.Never, t.Unix())
	return found
}

// ResetClock is the owner's word that it is now: moments of the records that
// are later were written while the clock was ahead, and are not believed any
// more. So devices are judged by now again, those that had seemed to be over
// come in, and ClockWarning falls silent. After a clock that went back it must
// not be called: what had ended would live again.
//
// Records keep their data: when a device was added or revoked is shown as it
// was written, and what is revoked stays revoked. Only when a device was last
// seen is set to now where it was later. Certificates of that time begin when
// they say: devices that were added then are to be added anew.
//
// It is on disk when ResetClock returns nil; calling it again does no harm.
func (d *Devices) ResetClock(ctx context.Context, now time.Time) error {
	changed, err := d.resetClock(ctx, wholeSeconds(now))
	if changed {
		d.cfg.OnChange() // what had seemed over is there again
	}
	if err != nil {
		return fmt.Errorf("reset the clock of the device records: %w", err)
	}
	return nil
}

func (d *Devices) resetClock(ctx context.Context, now time.Time) (changed bool, err error) {
	if ca := d.cfg.CA.Cert(); now.Before(ca.NotBefore) || now.After(ca.NotAfter) {
		return false, fmt.Errorf("this machine's clock says %s, outside the life of the device CA\nSet the clock first: timedatectl set-ntp true", now.Format(time.RFC3339))
	}
	// No round of saveSeen may bring back what is re-dated here.
	d.seenTurn.Lock()
	defer d.seenTurn.Unlock()
	if !d.latest(now).After(now) {
		return false, nil // nothing is later
	}
	reset, err := d.writeReset(ctx, now)
	if err != nil {
		return false, err
	}
	d.applyReset(reset)
	return true, d.redateSeen(ctx, now) // for people only: what stands there is denied already
}

// redateSeen sets when devices were seen to now, on disk, where it is later.
func (d *Devices) redateSeen(ctx context.Context, now time.Time) error {
	entries, err := d.cfg.Store.List(ctx, seenPrefix)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if at, err := time.Parse(time.RFC3339, string(e.Value)); err != nil || !at.After(now) {
			continue
		}
		_, err := d.cfg.Store.Update(ctx, e.Key, []byte(now.Format(time.RFC3339)), e.Revision)
		if err != nil && !errors.Is(err, store.ErrConflict) { // seen in this moment, by another relay
			return err
		}
	}
	return nil
}

// writeReset makes durable, with one write, which moments never were.
func (d *Devices) writeReset(ctx context.Context, now time.Time) (*clockReset, error) {
	for {
		last, err := d.readReset(ctx)
		if err != nil {
			return nil, err
		}
		later, err := d.laterMoments(ctx, now)
		if err != nil {
			return nil, err
		}
		slices.Sort(later)
		reset := &clockReset{Version: clockVersion, At: now, Never: slices.Compact(later)}
		data, err := json.Marshal(reset)
		if err != nil {
			return nil, err
		}
		if last.rev == 0 {
			reset.rev, err = d.cfg.Store.Create(ctx, clockKey, data)
		} else {
			reset.rev, err = d.cfg.Store.Update(ctx, clockKey, data, last.rev)
		}
		if err == nil {
			return reset, nil
		}
		if !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrConflict) {
			return nil, err
		}
	}
}

// laterMoments returns the moments of all records that are later than now.
func (d *Devices) laterMoments(ctx context.Context, now time.Time) (list []int64, err error) {
	add := func(at time.Time) {
		if at.After(now) {
			list = append(list, at.Unix())
		}
	}
	entries, err := d.cfg.Store.List(ctx, docPrefix)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		doc, err := decodeDocument(strings.TrimPrefix(e.Key, docPrefix), e.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Key, err)
		}
		for _, r := range doc.Devices {
			add(r.Created)
			add(r.RevokedAt)
		}
	}
	if entries, err = d.cfg.Store.List(ctx, seenPrefix); err != nil {
		return nil, err
	}
	for _, e := range entries {
		if at, err := time.Parse(time.RFC3339, string(e.Value)); err == nil {
			add(at)
		}
	}
	return list, nil
}

// readReset returns what the owner said last, never nil.
func (d *Devices) readReset(ctx context.Context) (*clockReset, error) {
	e, err := d.cfg.Store.Get(ctx, clockKey)
	if errors.Is(err, store.ErrNotFound) {
		return &clockReset{}, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeReset(e)
}

func decodeReset(e store.Entry) (*clockReset, error) {
	c := clockReset{rev: e.Revision}
	dec := json.NewDecoder(bytes.NewReader(e.Value))
	dec.DisallowUnknownFields()
	err := dec.Decode(&c)
	switch _, end := dec.Token(); {
	case c.Version > clockVersion:
		return nil, fmt.Errorf("the record of the clock has version %d, this sallyport reads up to %d: use the newer one", c.Version, clockVersion)
	case err != nil:
		return nil, fmt.Errorf("the record of the clock is damaged: %w", err)
	case end != io.EOF, c.Version < 1, c.At.IsZero(), !slices.IsSorted(c.Never):
		return nil, errors.New("the record of the clock is damaged")
	}
	return &c, nil
}

// learnReset applies what another relay, or this one before a restart, was told
// by the owner. What cannot be read is not obeyed: later moments count then,
// which shuts out more, and lets nothing in.
func (d *Devices) learnReset(e store.Entry) {
	reset, err := decodeReset(e)
	if err != nil {
		d.cfg.Logger.Warn("what the owner said about the clock is not known", "err", err)
		return
	}
	if d.applyReset(reset) {
		d.cfg.OnChange()
	}
}

// applyReset makes the newest moment anew, of all that is still believed, and
// reports whether the reset was news.
func (d *Devices) applyReset(reset *clockReset) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.resets.Load().rev >= reset.rev {
		return false
	}
	d.resets.Store(reset)
	d.newest.Store(reset.At.Unix())
	for _, e := range d.current.Load().byID {
		d.learnRecorded(e.Created)
		d.learnRecorded(e.RevokedAt)
		lower(&e.seen.last, reset.At.Unix())
		lower(&e.seen.saved, reset.At.Unix())
	}
	return true
}

// lower moves v down to at, never up.
func lower(v interface {
	Load() int64
	CompareAndSwap(old, new int64) bool
}, at int64,
) {
	for {
		old := v.Load()
		if at >= old || v.CompareAndSwap(old, at) {
			return
		}
	}
}
