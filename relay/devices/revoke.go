package devices

import (
	"context"
	"fmt"
)

// Revoke shuts a device out for good, with all its generations. When it
// returns without an error, the revocation is on disk, Check says no, and
// OnRevoke has returned. Revoking a revoked device does the latter two again.
func (d *Devices) Revoke(ctx context.Context, name string) (Device, error) {
	dev, err := d.revoke(ctx, name)
	if err != nil {
		return Device{}, fmt.Errorf("revoke device %q: %w", name, err)
	}
	return dev, nil
}

func unknownName() error {
	return fmt.Errorf("%w\nThe names are in: sallyport device list", ErrUnknown)
}

func (d *Devices) revoke(ctx context.Context, name string) (Device, error) {
	if !validName(name) {
		return Device{}, unknownName()
	}
	var ids []string
	doc, rev, err := d.rewrite(ctx, name, func(doc *document) error {
		if len(doc.Devices) == 0 {
			return unknownName()
		}
		ids = nil
		for i := range doc.Devices {
			if r := &doc.Devices[i]; r.chain() == doc.last().chain() {
				ids = append(ids, r.id())
			}
		}
		live := doc.live()
		if len(live) == 0 {
			return errUnchanged
		}
		for _, r := range live {
			r.RevokedAt = wholeSeconds(d.now())
		}
		return nil
	})
	if err != nil {
		return Device{}, err
	}
	d.publish(name, rev, doc, ids)
	dev, _ := d.ByID(doc.last().id())
	return dev, nil
}
