package devices

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/store"
)

// Add issues a certificate for a public key and records it under a name that
// no live device has: [a-z0-9][a-z0-9-]{0,62}. Hosts are patterns of where the
// device may go, none means everywhere. A zero until means the configured
// lifetime. A key is certified once: a revoked device comes back with a new
// one.
func (d *Devices) Add(ctx context.Context, name string, pub crypto.PublicKey, hosts []string, until time.Time) (Device, *x509.Certificate, error) {
	dev, cert, err := d.add(ctx, name, pub, hosts, until)
	if err != nil {
		return Device{}, nil, fmt.Errorf("add device %q: %w", name, err)
	}
	return dev, cert, nil
}

func (d *Devices) add(ctx context.Context, name string, pub crypto.PublicKey, hosts []string, until time.Time) (Device, *x509.Certificate, error) {
	if !validName(name) {
		return Device{}, nil, errors.New("a name has 1 to 63 lower-case letters, digits and hyphens, and no hyphen first")
	}
	if dev, ok := d.Get(name); ok && !dev.Revoked {
		return Device{}, nil, d.taken(name, dev.NotAfter)
	}
	hosts, err := d.patterns(hosts)
	if err != nil {
		return Device{}, nil, err
	}
	now := d.cfg.Now()
	end, err := d.end(now, until)
	if err != nil {
		return Device{}, nil, err
	}
	cert, err := d.cfg.CA.Issue(pub, pki.Grant{Profile: pki.Device, Name: name, NotAfter: end})
	if err != nil {
		return Device{}, nil, err
	}
	r := record{Cert: cert.Raw, Hosts: hosts, Created: now.UTC().Truncate(time.Second), Kind: KindCertificate, cert: cert}
	if err := d.record(ctx, name, r); err != nil {
		return Device{}, nil, err
	}
	dev, ok := d.ByID(deviceID(cert))
	if !ok { // deleted again by somebody else in between
		return Device{}, nil, ErrUnknown
	}
	return dev, cert, nil
}

// record makes a new device durable and then visible. The key is claimed
// first, so that two that come with one key at once do not both succeed.
func (d *Devices) record(ctx context.Context, name string, r record) error {
	id := deviceID(r.cert)
	claim, err := d.cfg.Store.Create(ctx, keyPrefix+id, []byte(name))
	if errors.Is(err, store.ErrExists) {
		return fmt.Errorf("%w\nMake a new key (and request) for this device, then add it again.", ErrKeyUsed)
	}
	if err != nil {
		return err
	}
	doc, rev, err := d.change(ctx, name, func(doc *document) error {
		if len(doc.Devices) > 0 && doc.last().live() {
			return d.taken(name, doc.last().cert.NotAfter)
		}
		doc.Devices = append(doc.Devices, r)
		doc.Devices = doc.Devices[max(0, len(doc.Devices)-maxGenerations):]
		return nil
	})
	if err != nil {
		d.unclaim(ctx, name, id, claim)
		return err
	}
	d.apply(name, rev, doc)
	return nil
}

// unclaim gives a key free again after a failed Add, unless the record got
// there all the same.
func (d *Devices) unclaim(ctx context.Context, name, id string, claim uint64) {
	ctx = context.WithoutCancel(ctx)
	doc, _, err := d.read(ctx, name)
	if err == nil && !slices.ContainsFunc(doc.Devices, func(r record) bool { return deviceID(r.cert) == id }) {
		err = d.cfg.Store.Delete(ctx, keyPrefix+id, claim)
	}
	if err != nil {
		d.cfg.Logger.Warn("a key stays marked as used though its device was not added", "device", name, "err", err)
	}
}

// Revoke shuts a device out for good. When it returns without an error, the
// revocation is on disk, Check says no, and OnRevoke has returned. Revoking a
// revoked device does the latter two again.
func (d *Devices) Revoke(ctx context.Context, name string) (Device, error) {
	dev, err := d.revoke(ctx, name)
	if err != nil {
		return Device{}, fmt.Errorf("revoke device %q: %w", name, err)
	}
	return dev, nil
}

func (d *Devices) revoke(ctx context.Context, name string) (Device, error) {
	if !validName(name) {
		return Device{}, fmt.Errorf("%w\nThe names are in: sallyport device list", ErrUnknown)
	}
	doc, rev, err := d.change(ctx, name, func(doc *document) error {
		if len(doc.Devices) == 0 {
			return fmt.Errorf("%w\nThe names are in: sallyport device list", ErrUnknown)
		}
		if !doc.last().live() {
			return errUnchanged
		}
		doc.last().RevokedAt = d.cfg.Now().UTC().Truncate(time.Second)
		return nil
	})
	if err != nil {
		return Device{}, err
	}
	// The watch in Run may have been quicker with the news, and may still be
	// in OnRevoke. The caller wants to know that it is over, so: once more.
	d.replace(name, rev, doc)
	id := deviceID(doc.last().cert)
	d.cfg.OnRevoke(id)
	dev, _ := d.ByID(id)
	return dev, nil
}

// errUnchanged tells change that there is nothing to write.
var errUnchanged = errors.New("unchanged")

// change reads a name's document (empty when there is none), lets f change it
// and writes it back, again from the start when somebody else was quicker. It
// returns what is in the store then.
func (d *Devices) change(ctx context.Context, name string, f func(*document) error) (*document, uint64, error) {
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
		return &document{Version: documentVersion}, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	doc, err := decodeDocument(name, e.Value)
	return doc, e.Revision, err
}

func (d *Devices) taken(name string, end time.Time) error {
	state := "is in use"
	if d.cfg.Now().After(end) {
		state = "expired on " + end.Format(time.DateOnly)
	}
	return fmt.Errorf("%w, which %s\nTake another name, or free this one first: sallyport device revoke %s", ErrNameTaken, state, name)
}

// patterns returns hosts in canonical form without repetitions.
func (d *Devices) patterns(hosts []string) ([]string, error) {
	var list []string
	var errs []error
	for _, h := range hosts {
		p, err := names.ValidPattern(h)
		switch {
		case err != nil:
			errs = append(errs, err)
		case !strings.Contains(p, ".") && d.cfg.Domain != "" && p != d.cfg.Domain:
			errs = append(errs, fmt.Errorf("host name %q has no domain: write %s.%s", h, p, d.cfg.Domain))
		case !slices.Contains(list, p):
			list = append(list, p)
		}
	}
	return list, errors.Join(errs...)
}

// end returns when a certificate ends that is issued now.
func (d *Devices) end(now, until time.Time) (time.Time, error) {
	last := d.cfg.CA.Cert().NotAfter
	switch {
	case until.IsZero():
		return now.Add(d.cfg.Lifetime), nil // pki cuts it at the CA's end
	case !until.After(now):
		return until, fmt.Errorf("%s is in the past", until.Format(time.RFC3339))
	case until.After(last):
		return until, fmt.Errorf("%s is after the end of the device CA, %s", until.Format(time.DateOnly), last.Format(time.DateOnly))
	}
	return until, nil
}
