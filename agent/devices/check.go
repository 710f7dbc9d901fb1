package devices

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/pki"
)

// listed is a device of a list, ready for Check.
type listed struct {
	pki.ListedDevice
	device door.Device
}

// newPage opens a list of a CA.
func newPage(ca *x509.Certificate, signed []byte) (*page, error) {
	list, err := pki.OpenDeviceList(ca, signed)
	if err != nil {
		return nil, err
	}
	p := &page{ca: ca, list: list, signed: signed, devices: make(map[[sha256.Size]byte]*listed, len(list.Devices))}
	for _, d := range list.Devices {
		var key [sha256.Size]byte
		if n, err := hex.Decode(key[:], []byte(d.Key)); err != nil || n != len(key) {
			return nil, fmt.Errorf("list of devices: %q is no key", d.Key)
		}
		p.devices[key] = &listed{d, door.Device{ID: d.Key, Name: d.Name, Until: d.Until}}
	}
	return p, nil
}

// Check says whether the holder of a certificate, which the pool has signed for
// clients, may come in at a canonical host now. The denials are package door's.
// It costs one hash and one look into a map. Before the first list nobody comes
// in. A clock that is behind the list does not count: it is at least as late as
// when the list was made.
func (b *Book) Check(leaf *x509.Certificate, host string, now time.Time) (door.Device, string) {
	if leaf == nil {
		return door.Device{}, door.DeniedMissing
	}
	p := b.page.Load()
	d := p.devices[sha256.Sum256(leaf.RawSubjectPublicKeyInfo)]
	if d == nil {
		return door.Device{}, door.DeniedUnknown
	}
	if p.list.Issued.After(now) {
		now = p.list.Issued
	}
	switch {
	case d.Revoked:
		return d.device, door.DeniedRevoked
	case now.After(leaf.NotAfter), now.Before(leaf.NotBefore), !d.Until.IsZero() && now.After(d.Until):
		return d.device, door.DeniedExpired
	case !d.mayVisit(host):
		return d.device, door.DeniedHost
	}
	return d.device, ""
}

// mayVisit fails closed: a host that is empty or not canonical matches no
// pattern, and the empty one not even "everywhere".
func (d *listed) mayVisit(host string) bool {
	if host == "" {
		return false
	}
	return len(d.Hosts) == 0 || slices.ContainsFunc(d.Hosts, func(p string) bool { return names.Match(p, host) })
}

// lost returns the IDs of devices that could do more under one page than under
// the next. Their connections were opened, and armed to end, under the old one.
func lost(was, is *page) (ids []string) {
	for key, d := range was.devices {
		if now := is.devices[key]; !d.Revoked && (now == nil || now.Revoked || shrunk(d, now)) {
			ids = append(ids, d.Key)
		}
	}
	slices.SortFunc(ids, strings.Compare)
	return ids
}

func shrunk(was, is *listed) bool {
	switch {
	case !is.Until.IsZero() && (was.Until.IsZero() || is.Until.Before(was.Until)):
		return true
	case len(is.Hosts) == 0: // everywhere
		return false
	}
	return len(was.Hosts) == 0 || slices.ContainsFunc(was.Hosts, func(p string) bool { return !covered(p, is.Hosts) })
}

// covered reports whether a pattern is among others, or a name among those
// that they match.
func covered(p string, by []string) bool {
	return slices.ContainsFunc(by, func(q string) bool {
		return p == q || names.Match(q, p) // which no "*.x" is, as a name
	})
}
