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
)

// A Grant is what the owner gives a new device. Name and Key are required.
type Grant struct {
	Name  string           // [a-z0-9][a-z0-9-]{0,62}, of no other live device
	Key   crypto.PublicKey // never certified before
	Hosts []string         // patterns of where it may go, bare labels below the domain; none: everywhere
	Until time.Time        // end of its rights, whatever it renews; Change moves it. Zero: none but the certificate's
	Admin bool             // may use the dashboard at the admin host
}

// Add issues a certificate and records it under a name that no live device
// has. A key is certified once: a revoked device comes back with a new one.
// Adding what is there already, with the same name, key and rights, returns
// it: a caller that was killed before it heard the answer may ask again.
func (d *Devices) Add(ctx context.Context, g Grant) (Device, *x509.Certificate, error) {
	dev, cert, err := d.add(ctx, g)
	if err != nil {
		return Device{}, nil, fmt.Errorf("add device %q: %w", g.Name, err)
	}
	return dev, cert, nil
}

func (d *Devices) add(ctx context.Context, g Grant) (Device, *x509.Certificate, error) {
	if !validName(g.Name) {
		return Device{}, nil, errName
	}
	hosts, err := d.patterns(g.Hosts)
	if err != nil {
		return Device{}, nil, err
	}
	until := wholeSeconds(g.Until)
	if e := d.added(g, hosts, until); e != nil {
		return e.device(), e.cert, nil
	}
	if err := d.CheckName(g.Name); err != nil {
		return Device{}, nil, err
	}
	now := d.now()
	if err := d.checkUntil(now, until); err != nil {
		return Device{}, nil, err
	}
	cert, err := d.issue(g.Key, g.Name, now, until)
	if err != nil {
		return Device{}, nil, err
	}
	r := record{Kind: KindCertificate, Cert: cert.Raw, cert: cert, Hosts: hosts, Until: until, Admin: g.Admin, Created: wholeSeconds(now)}
	err = d.insert(ctx, g.Name, r, func(doc *document) ([]string, error) { return nil, d.appendFirst(g.Name, doc, r) })
	if err != nil {
		return Device{}, nil, err
	}
	return d.inserted(cert)
}

// inserted returns what insert made.
func (d *Devices) inserted(cert *x509.Certificate) (Device, *x509.Certificate, error) {
	dev, ok := d.ByID(deviceID(cert))
	if !ok { // deleted again by somebody else in between
		return Device{}, nil, ErrUnknown
	}
	return dev, cert, nil
}

// appendFirst adds a device that begins a chain of its own.
func (d *Devices) appendFirst(name string, doc *document, r record) error {
	if live := doc.live(); len(live) > 0 {
		return d.taken(name, live[len(live)-1].end())
	}
	if err := d.makeRoom(doc); err != nil {
		return err
	}
	doc.Devices = append(doc.Devices, r)
	return nil
}

// added returns the live device that Add would make again.
func (d *Devices) added(g Grant, hosts []string, until time.Time) *entry {
	spki, err := x509.MarshalPKIXPublicKey(g.Key)
	if err != nil {
		return nil // Issue says it better
	}
	e := d.current.Load().byID[keyID(spki)]
	if e == nil || e.Revoked || !e.trusted || e.Name != g.Name || e.Admin != g.Admin || !e.Until.Equal(until) || !slices.Equal(e.Hosts, hosts) {
		return nil
	}
	return e
}

var errName = errors.New("a name has 1 to 63 lower-case letters, digits and hyphens, and no hyphen first")

// CheckName says why a new device cannot have a name: it is no name, or a live
// device has it (ErrNameTaken). Only Add decides.
func (d *Devices) CheckName(name string) error {
	if !validName(name) {
		return errName
	}
	if dev, ok := d.Get(name); ok && !dev.Revoked {
		return d.taken(name, dev.Ends())
	}
	return nil
}

func (d *Devices) taken(name string, end time.Time) error {
	state := "is in use"
	if !end.IsZero() && d.now().After(end) {
		state = "expired on " + end.Format(time.DateOnly)
	}
	return fmt.Errorf("%w, which %s\nTake another name, or free this one first: sallyport device revoke %s", ErrNameTaken, state, name)
}

// patterns returns hosts in canonical form without repetitions.
func (d *Devices) patterns(hosts []string) ([]string, error) {
	var list []string
	var errs []error
	for _, h := range hosts {
		p, err := d.pattern(h)
		switch {
		case err != nil:
			errs = append(errs, err)
		case !slices.Contains(list, p):
			list = append(list, p)
		}
	}
	return list, errors.Join(errs...)
}

// pattern returns the canonical form of a host or pattern; a bare label is
// one below the domain.
func (d *Devices) pattern(h string) (string, error) {
	p, err := names.ValidPattern(h)
	if err == nil && !strings.Contains(p, ".") && d.cfg.Domain != "" && p != d.cfg.Domain {
		return names.ValidPattern(p + "." + d.cfg.Domain)
	}
	return p, err
}

// checkUntil says why rights cannot end then; zero is no end.
func (d *Devices) checkUntil(now, until time.Time) error {
	if !until.IsZero() && !until.After(now) {
		return fmt.Errorf("%s is in the past", until.Format(time.RFC3339))
	}
	if last := d.cfg.CA.Cert().NotAfter; until.After(last) {
		return fmt.Errorf("%s is after the end of the device CA, %s", until.Format(time.DateOnly), last.Format(time.DateOnly))
	}
	return nil
}

// issue makes a device's certificate.
func (d *Devices) issue(pub crypto.PublicKey, name string, now, until time.Time) (*x509.Certificate, error) {
	return d.cfg.CA.Issue(pub, pki.Grant{Profile: pki.Device, Name: name, NotAfter: d.lasts(now, until), CRLURL: d.cfg.CRLURL})
}

// lasts returns when a certificate ends that is issued now. That of a guest
// lives as long as any other: Check knows when the guest's time is over, and
// only so can the owner give it more without a new certificate.
func (d *Devices) lasts(now, until time.Time) time.Time {
	end := now.Add(d.cfg.Lifetime)
	if until.After(end) {
		end = until
	}
	if last := d.cfg.CA.Cert().NotAfter; end.After(last) {
		end = last
	}
	return end
}

// wholeSeconds is how times are recorded: as certificates can say them.
func wholeSeconds(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Second)
}
