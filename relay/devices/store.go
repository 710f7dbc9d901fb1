package devices

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sallyport/sallyport/relay/store"
)

// errUnchanged tells rewrite that there is nothing to write.
var errUnchanged = errors.New("unchanged")

// rewrite reads a name's document (empty when there is none), lets f change it
// and writes it back, again from the start when somebody else was quicker. It
// returns what is in the store then.
func (d *Devices) rewrite(ctx context.Context, name string, f func(*document) error) (*document, uint64, error) {
	for {
		doc, rev, err := d.read(ctx, name)
		if err != nil {
			return nil, 0, err
		}
		err = f(doc)
		if errors.Is(err, errUnchanged) {
			return doc, rev, nil
		}
		if err != nil {
			return nil, 0, err
		}
		data, err := doc.encode()
		if err != nil {
			return nil, 0, err
		}
		if rev == 0 {
			rev, err = d.cfg.Store.Create(ctx, docPrefix+name, data)
		} else {
			rev, err = d.cfg.Store.Update(ctx, docPrefix+name, data, rev)
		}
		if err == nil {
			return doc, rev, nil
		}
		if !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrConflict) {
			return nil, 0, err
		}
	}
}

func (d *Devices) read(ctx context.Context, name string) (*document, uint64, error) {
	e, err := d.cfg.Store.Get(ctx, docPrefix+name)
	if errors.Is(err, store.ErrNotFound) {
		return &document{}, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	doc, err := decodeDocument(name, e.Value)
	return doc, e.Revision, err
}

// insert makes a new certificate's record durable and then visible; add puts
// it into the document and returns the IDs that it revoked there, or says why
// not. The key is claimed first, so that two that come with one key at once do
// not both succeed.
func (d *Devices) insert(ctx context.Context, name string, r record, add func(*document) (retired []string, err error)) error {
	id := r.id()
	claim, err := d.claim(ctx, name, id)
	if err != nil {
		return err
	}
	var retired []string
	doc, rev, err := d.rewrite(ctx, name, func(doc *document) (err error) {
		if doc.find(id) != nil { // the claim was taken over, and not abandoned
			return keyUsed()
		}
		retired, err = add(doc)
		return err
	})
	if err != nil {
		if claim != 0 {
			d.unclaim(ctx, name, id, claim)
		}
		return err
	}
	d.publish(name, rev, doc, retired)
	return nil
}

func keyUsed() error {
	return fmt.Errorf("%w\nMake a new key (and request) for this device, then try again.", ErrKeyUsed)
}

// claim marks a key as used. It returns zero when it took over a claim that a
// crash left: that one is not ours to give back.
func (d *Devices) claim(ctx context.Context, name, id string) (revision uint64, err error) {
	value := name + " " + d.now().UTC().Format(time.RFC3339)
	revision, err = d.cfg.Store.Create(ctx, keyPrefix+id, []byte(value))
	if !errors.Is(err, store.ErrExists) {
		return revision, err
	}
	// Whether the record got there after all, the change of the document sees.
	abandoned, err := d.abandoned(ctx, name, id)
	if err == nil && !abandoned {
		err = keyUsed()
	}
	return 0, err
}

// claimLife is how long a claim without a record may be taken over by the
// same name. Records leave a document much later (see retained): a key whose
// record is gone for that reason stays used.
const claimLife = 24 * time.Hour

// abandoned reports whether the claim of a key may be one that a crash left
// between claim and record: it is for the same name, and young.
func (d *Devices) abandoned(ctx context.Context, name, id string) (bool, error) {
	e, err := d.cfg.Store.Get(ctx, keyPrefix+id)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil // given back in this moment
	}
	if err != nil {
		return false, err
	}
	owner, when, _ := strings.Cut(string(e.Value), " ")
	at, err := time.Parse(time.RFC3339, when)
	if err != nil || owner != name {
		return false, nil // of version 1, or somebody else's
	}
	age := d.now().Sub(at)
	return age >= -time.Second && age <= claimLife, nil
}

// unclaim gives a key free again after a failed insert, unless the record got
// there all the same.
func (d *Devices) unclaim(ctx context.Context, name, id string, claim uint64) {
	ctx = context.WithoutCancel(ctx)
	doc, _, err := d.read(ctx, name)
	if err == nil && doc.find(id) == nil {
		err = d.cfg.Store.Delete(ctx, keyPrefix+id, claim)
	}
	if err != nil {
		d.cfg.Logger.Warn("a key stays marked as used though its device was not added", "device", name, "err", err)
	}
}

// Bounds of a document.
const (
	maxRecords = 400                 // generations and former owners of one name: one that renews every day never reaches it
	retained   = 30 * 24 * time.Hour // how long a record stays after its end, when there are too many
)

// makeRoom drops the oldest records that ended long ago when a document is
// full. What it drops is unknown instead of expired, and its key stays used.
func (d *Devices) makeRoom(doc *document) error {
	now := d.now()
	for i := 0; len(doc.Devices) >= maxRecords; {
		if i == len(doc.Devices) {
			return fmt.Errorf("this name has had %d devices or renewals that are not over yet, no more fit\nTake another name.", maxRecords)
		}
		if end := doc.Devices[i].over(); !end.IsZero() && now.After(end.Add(retained)) {
			doc.Devices = append(doc.Devices[:i:i], doc.Devices[i+1:]...)
			continue
		}
		i++
	}
	return nil
}

// over returns when nobody needs a record any more, zero for never. A revoked
// certificate stays until its own end: revocation lists name it.
func (r *record) over() time.Time {
	switch {
	case r.cert != nil:
		return r.cert.NotAfter
	case !r.live():
		return r.RevokedAt
	}
	return r.Until
}
