package devices

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
)

// told is whom a change concerns, once it is in force.
type told struct {
	newCA bool
	lost  []string
}

// change runs one change at a time and then tells of it, with no lock held.
func (b *Book) change(f func() (told, error)) error {
	b.turn.Lock()
	t, err := f()
	b.turn.Unlock()
	if t.newCA {
		b.cfg.NewCA()
	}
	if len(t.lost) > 0 {
		b.cfg.Lost(t.lost...)
	}
	return err
}

// heard is change for what comes from the relay: why it was not taken is shown
// until something is, and logged when it is news, as a relay may send the same
// every second.
func (b *Book) heard(f func() (told, error)) error {
	err := b.change(f)
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	b.mu.Lock()
	news := problem != b.problem
	b.problem = problem
	b.mu.Unlock()
	if news && err != nil {
		b.cfg.Logger.Warn("what the relay says about devices was not taken", "err", err)
	}
	return err
}

// Pin keeps the relay's device CA (DER) as the one that is believed. The first
// one is taken; later the same is fine, and another is ErrOtherCA until a
// person at home confirms it.
func (b *Book) Pin(ca []byte) error {
	return b.heard(func() (told, error) { return b.take(protocol.DeviceFrame{CA: ca}) })
}

// Update takes a list that the pinned CA has signed. It is on disk and in force
// when Update returns; of devices that lost rights, Lost has returned. An older
// one is ErrRollback, the one that is there already is fine.
//
// When the disk takes nothing, the list is in force all the same, so that a
// full disk keeps nobody in, and the error is ErrUnsaved: a restart would go
// back to the one before. Calling again with the same list tries again.
func (b *Book) Update(signed []byte) error {
	return b.heard(func() (told, error) { return b.update(signed) })
}

// take applies what came over a stream, all or nothing. The caller has the turn.
func (b *Book) take(f protocol.DeviceFrame) (told, error) {
	if len(f.CA) == 0 {
		if len(f.List) == 0 {
			return told{}, nil // of a kind that is not known yet
		}
		return b.update(f.List)
	}
	was := b.page.Load()
	if was.ca != nil && bytes.Equal(f.CA, was.ca.Raw) {
		if len(f.List) == 0 {
			return told{}, nil
		}
		return b.update(f.List)
	}
	ca, err := pki.ParseCA(f.CA)
	if err != nil {
		return told{}, err
	}
	next := &page{ca: ca}
	if len(f.List) > 0 {
		if next, err = newPage(ca, f.List); err != nil {
			return told{}, err
		}
	}
	switch {
	case was.ca == nil:
		return b.replace(next)
	case len(f.Succession) > 0 && pki.VerifySuccessor(was.ca, ca, f.Succession) == nil:
		if next.list.Number == 0 {
			return told{}, errors.New("the relay's device CA has a successor, but no list of devices came with it")
		}
		return b.replace(next)
	}
	b.hold(next)
	return told{}, fmt.Errorf("%w: the relay shows one with the fingerprint %s\n"+
		"If the relay was set up anew, compare this with what it says itself, and confirm it here, at home.", ErrOtherCA, fingerprint(ca))
}

func (b *Book) update(signed []byte) (told, error) {
	was := b.page.Load()
	if was.ca == nil {
		return told{}, ErrNoCA
	}
	if was.saved && bytes.Equal(signed, was.signed) {
		return told{}, nil
	}
	next, err := newPage(was.ca, signed)
	if err != nil {
		return told{}, err
	}
	switch n := next.list.Number; {
	case n < was.list.Number:
		b.hold(next)
		return told{}, fmt.Errorf("%w: number %d after %d, made at %s\n"+
			"If the relay was restored from a backup, confirm its device CA %s here, at home.",
			ErrRollback, n, was.list.Number, next.list.Issued.Format(time.RFC3339), fingerprint(was.ca))
	case n == was.list.Number && !reflect.DeepEqual(next.list, was.list):
		return told{}, fmt.Errorf("%w: number %d was another one before", ErrRollback, n)
	case n == was.list.Number && was.saved: // signed once more
		return told{}, nil
	}
	err = b.save(next)
	b.page.Store(next)
	b.release(next)
	t := told{lost: lost(was, next)}
	b.cfg.Logger.Debug("a list of devices was taken", "number", next.list.Number, "devices", len(next.list.Devices), "lost_rights", len(t.lost))
	if err != nil {
		return t, fmt.Errorf("%w: %w", ErrUnsaved, err)
	}
	return t, nil
}

// replace pins a CA, with its list if there is one. Numbers begin anew: no list
// of the CA before counts any more.
func (b *Book) replace(next *page) (told, error) {
	was := b.page.Load()
	if err := b.save(next); err != nil {
		return told{}, err
	}
	b.page.Store(next)
	b.release(nil)
	b.cfg.Logger.Info("the relay's device CA is pinned", "fingerprint", fingerprint(next.ca), "list", next.list.Number)
	return told{newCA: was.ca == nil || !was.ca.Equal(next.ca), lost: lost(was, next)}, nil
}

// pending is what was refused and what a person may let pass.
type pending struct {
	page  *page
	since time.Time
}

// hold keeps what was refused: the last of each CA.
func (b *Book) hold(p *page) {
	b.mu.Lock()
	defer b.mu.Unlock()
	since := b.cfg.Now()
	if b.pending != nil && b.pending.page.ca.Equal(p.ca) {
		since = b.pending.since
	}
	b.pending = &pending{p, since}
}

// release forgets what was refused once it does not matter any more: another CA
// is pinned (nil), or the pinned one sent a list that counts.
func (b *Book) release(taken *page) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if taken == nil || b.pending != nil && b.pending.page.ca.Equal(taken.ca) {
		b.pending = nil
	}
}

// Confirm is the word of a person at home that the CA with a fingerprint
// (SHA-256, 64 hex digits in any spelling) is the relay's. It must be the one
// that was refused last: see Status. With it its list is taken. Confirming the
// pinned CA takes the older list that was refused last, as after the relay was
// restored from a backup.
func (b *Book) Confirm(print string) error {
	return b.change(func() (told, error) { return b.confirm(print) })
}

func (b *Book) confirm(print string) (told, error) {
	print, err := parseFingerprint(print)
	if err != nil {
		return told{}, err
	}
	b.mu.Lock()
	held := b.pending
	b.mu.Unlock()
	was := b.page.Load()
	switch {
	case held != nil && fingerprint(held.page.ca) == print:
	case was.ca != nil && fingerprint(was.ca) == print:
		return told{}, nil // nothing was refused, or it came right by itself
	default:
		return told{}, fmt.Errorf("the relay has shown no device CA with the fingerprint %s\nWhat it shows is in the status of this agent.", print)
	}
	t, err := b.replace(held.page)
	if err == nil {
		b.mu.Lock()
		b.problem = ""
		b.mu.Unlock()
	}
	return t, err
}

// parseFingerprint reads what people copy: with colons or spaces, in any case.
func parseFingerprint(s string) (string, error) {
	s = strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(s))
	if sum, err := hex.DecodeString(s); err != nil || len(sum) != 32 {
		return "", errors.New("a fingerprint has 64 hexadecimal digits\nGive all of them: a part of it could be met by trying.")
	}
	return s, nil
}
