package devices

import (
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

// A Denial is why a certificate may not come in. The empty one is Allowed.
type Denial string

// The answers of Check.
const (
	Allowed       Denial = ""
	DeniedUnknown Denial = "unknown"     // not one of our certificates
	DeniedExpired Denial = "expired"     // outside its dates
	DeniedRevoked Denial = "revoked"     //
	DeniedHost    Denial = "not-allowed" // may come in, but not at this host
)

// Check says whether a certificate may come in at a host (canonical, never
// empty) now. It is asked at every request: one hash and one look into a map,
// no I/O, no lock.
//
// The chain need not be verified before. A certificate is looked up by the
// hash of all its bytes among those that were issued and recorded, and each of
// these was checked against the CA when its record was read: signature, client
// authentication only, no CA, key and serial as recorded. So nothing else that
// the CA ever signed, and nothing that it did not sign, is found. The device
// is returned with every denial but DeniedUnknown.
func (d *Devices) Check(leaf *x509.Certificate, host string, now time.Time) (Device, Denial) {
	if leaf == nil {
		return Device{}, DeniedUnknown
	}
	e := d.current.Load().byCert[sha256.Sum256(leaf.Raw)]
	switch {
	case e == nil || !e.trusted:
		return Device{}, DeniedUnknown
	case e.Revoked:
		return e.device(), DeniedRevoked
	case now.Before(e.notBefore) || now.After(e.NotAfter):
		return e.device(), DeniedExpired
	case !e.mayVisit(host):
		return e.device(), DeniedHost
	}
	return e.device(), Allowed
}

// mayVisit fails closed: a host that is empty or not canonical matches no
// pattern, and the empty one not even "everywhere".
func (e *entry) mayVisit(host string) bool {
	if host == "" {
		return false
	}
	return len(e.Hosts) == 0 || slices.ContainsFunc(e.Hosts, func(p string) bool { return names.Match(p, host) })
}
