package devices

import (
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

// A Denial is why a certificate or token may not come in. The empty one is Allowed.
type Denial string

// The answers of Check and CheckToken.
const (
	Allowed       Denial = ""
	DeniedUnknown Denial = "unknown"     // none of ours
	DeniedExpired Denial = "expired"     // outside its dates, or past the end that the owner set
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
	switch denial := d.judge(e, now); {
	case denial == DeniedUnknown:
		return Device{}, denial
	case denial != Allowed:
		return e.device(), denial
	case !e.mayVisit(host):
		return e.device(), DeniedHost
	}
	return e.device(), Allowed
}

// judge says whether a device may come in anywhere now. The clock is believed
// only where it does not contradict the records.
func (d *Devices) judge(e *entry, now time.Time) Denial {
	now = d.latest(now)
	switch {
	case e == nil || !e.trusted:
		return DeniedUnknown
	case e.Revoked:
		return DeniedRevoked
	case e.endedBy(now), e.cert != nil && now.Before(e.cert.NotBefore):
		return DeniedExpired
	}
	return Allowed
}

// mayVisit fails closed: a host that is empty or not canonical matches no
// pattern, and the empty one not even "everywhere".
func (e *entry) mayVisit(host string) bool {
	if host == "" {
		return false
	}
	return len(e.Hosts) == 0 || slices.ContainsFunc(e.Hosts, func(p string) bool { return names.Match(p, host) })
}
