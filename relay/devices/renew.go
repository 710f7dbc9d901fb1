package devices

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrNotAllowed is Renew's answer to a certificate that does not come in
// itself: unknown, revoked or expired.
var ErrNotAllowed = errors.New("only a certificate that is valid now can be renewed")

// maxLive is how many generations of one device may be live. More than two
// come from renewals whose result never reached the device.
const maxLive = 5

// Renew issues the next certificate of a device that shows its present one.
// The caller has verified that the peer holds old's key. The new one has the
// same name and rights; an end that the owner set does not move, though the
// certificate lives its full time. The old one works on until its own end, so
// that a renewal that fails half way locks nobody out; Revoke takes all of them.
//
// No more than five generations are live. When there are more, the oldest whose
// successor was seen is revoked, or else the oldest that was never seen itself:
// nobody needs it. OnRevoke is told. Old itself stays.
func (d *Devices) Renew(ctx context.Context, old *x509.Certificate, pub crypto.PublicKey) (Device, *x509.Certificate, error) {
	e, err := d.renewable(old)
	if err != nil {
		return Device{}, nil, fmt.Errorf("renew: %w", err)
	}
	dev, cert, err := d.renew(ctx, e, pub)
	if err != nil {
		return Device{}, nil, fmt.Errorf("renew device %q: %w", e.Name, err)
	}
	return dev, cert, nil
}

// renewable returns the device of a certificate that may come in now, no
// matter where.
func (d *Devices) renewable(old *x509.Certificate) (*entry, error) {
	if old == nil {
		return nil, ErrNotAllowed
	}
	e := d.current.Load().byCert[sha256.Sum256(old.Raw)]
	if denial := d.judge(e, d.cfg.Now()); denial != Allowed {
		hint := "for a new link: sallyport device add"
		if denial == DeniedExpired && !d.now().After(e.NotAfter) { // its time is over, and not its certificate
			hint = fmt.Sprintf("for more time: sallyport device set %s --until …", e.Name)
		}
		return nil, fmt.Errorf("%w, this one is %s\nAsk the owner %s", ErrNotAllowed, denial, hint)
	}
	return e, nil
}

func (d *Devices) renew(ctx context.Context, old *entry, pub crypto.PublicKey) (Device, *x509.Certificate, error) {
	now := d.now()
	cert, err := d.issue(pub, old.Name, now, old.Until)
	if err != nil {
		return Device{}, nil, err
	}
	r := record{
		Kind: KindCertificate, Cert: cert.Raw, cert: cert, Chain: old.chain,
		Hosts: old.Hosts, Until: old.Until, Admin: old.Admin, Created: wholeSeconds(now),
	}
	err = d.insert(ctx, old.Name, r, func(doc *document) ([]string, error) { return d.appendNext(doc, old, r) })
	if err != nil {
		return Device{}, nil, err
	}
	return d.inserted(cert)
}

// appendNext adds a generation to a chain of which old must still be a live
// part, with the rights that the certificate was issued for.
func (d *Devices) appendNext(doc *document, old *entry, r record) (retired []string, err error) {
	parent := doc.find(old.ID)
	if parent == nil || !parent.live() {
		return nil, fmt.Errorf("%w, this one is %s", ErrNotAllowed, DeniedRevoked)
	}
	if parent.Admin != r.Admin || !parent.Until.Equal(r.Until) || !slices.Equal(parent.Hosts, r.Hosts) {
		return nil, errors.New("its rights were changed in this moment\nTry again.")
	}
	now := d.now()
	valid := slices.DeleteFunc(doc.live(), func(l *record) bool { return now.After(l.end()) })
	for len(valid) >= maxLive {
		i := d.dispensable(valid, parent)
		valid[i].RevokedAt = wholeSeconds(now)
		retired = append(retired, valid[i].id())
		valid = slices.Delete(valid, i, i+1)
	}
	if err := d.makeRoom(doc); err != nil {
		return nil, err
	}
	doc.Devices = append(doc.Devices, r)
	return retired, nil
}

// dispensable returns which of several valid generations goes first: the oldest
// that has a successor in use, or else the oldest that nobody ever used. The
// parent, which is in use now, never does.
func (d *Devices) dispensable(valid []*record, parent *record) int {
	last := len(valid) - 1 // the newest that is in use
	for ; last >= 0 && valid[last] != parent && !d.wasSeen(valid[last].id()); last-- {
	}
	for i, l := range valid[:max(last, 0)] {
		if l != parent {
			return i
		}
	}
	// Nothing is in use but the parent, and perhaps what follows it: so there are
	// others, and all the later ones are unseen.
	return slices.IndexFunc(valid, func(l *record) bool { return l != parent && !d.wasSeen(l.id()) })
}

func (d *Devices) wasSeen(id string) bool {
	e := d.current.Load().byID[id]
	return e != nil && e.seen.last.Load() != 0
}

// Renewal is due in the last renewLast of a certificate's life, or in its last
// quarter when it lives shorter than four times that.
const renewLast = 30 * 24 * time.Hour

// DueForRenewal reports whether a device should be led to the renewal page
// now. Not when a newer certificate of it has been seen, not when the owner set
// an end that this certificate reaches, and never for tokens.
func (d *Devices) DueForRenewal(dev Device, now time.Time) bool {
	snap := d.current.Load()
	e := snap.byID[dev.ID]
	if e == nil || e.cert == nil || d.judge(e, now) != Allowed {
		return false
	}
	if !e.Until.IsZero() && !e.Until.After(e.NotAfter) {
		return false
	}
	last := min(renewLast, e.NotAfter.Sub(e.cert.NotBefore)/4)
	if d.latest(now).Before(e.NotAfter.Add(-last)) {
		return false
	}
	g := snap.groups[e.Name].entries
	for _, next := range g[slices.Index(g, e)+1:] { // of the same device: this one is live
		if !next.Revoked && next.seen.last.Load() != 0 {
			return false
		}
	}
	return true
}
