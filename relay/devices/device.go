package devices

import (
	"crypto/x509"
	"time"
)

// A Device is one certificate or one token, and who it was given to. After a
// renewal several generations of one device are live side by side.
type Device struct {
	ID        string    `json:"id"` // hex: SHA-256 of the certificate's public key (SubjectPublicKeyInfo), or of the token's host and birth
	Name      string    `json:"name"`
	Kind      string    `json:"kind"`             // how it proves itself: KindCertificate or KindToken
	Serial    string    `json:"serial,omitempty"` // of the certificate, hex
	Hosts     []string  `json:"hosts,omitempty"`  // patterns of where it may go; empty: everywhere. Shared: do not change
	Admin     bool      `json:"admin,omitempty"`  // may use the dashboard at the admin host
	Created   time.Time `json:"created"`
	NotAfter  time.Time `json:"not_after,omitzero"` // end of the certificate; zero for tokens
	Until     time.Time `json:"until,omitzero"`     // end of its rights, which Change moves; zero: only the certificate ends
	LastSeen  time.Time `json:"last_seen,omitzero"` // to the minute after a restart
	RevokedAt time.Time `json:"revoked_at,omitzero"`
	Revoked   bool      `json:"revoked"`
	Renewed   bool      `json:"renewed,omitempty"` // a newer generation exists

	// Of tokens only.
	TokenHost string `json:"token_host,omitempty"` // the host of its own, t-RANDOM.DOMAIN
	Target    string `json:"target,omitempty"`     // the host that it reaches
	Path      string `json:"path,omitempty"`       // the path that it is confined to, "/api/"; empty: all
}

// How devices prove themselves.
const (
	KindCertificate = "certificate" // by a client certificate
	KindToken       = "token"       // by a secret, on a host of its own
)

// Ends returns when the device's rights end by themselves: the earlier of
// NotAfter and Until. Zero means never.
func (dev Device) Ends() time.Time {
	if dev.NotAfter.IsZero() || !dev.Until.IsZero() && dev.Until.Before(dev.NotAfter) {
		return dev.Until
	}
	return dev.NotAfter
}

// endedBy reports whether its rights are over at now.
func (dev Device) endedBy(now time.Time) bool {
	end := dev.Ends()
	return !end.IsZero() && now.After(end)
}

// ByID returns the device with an ID.
func (d *Devices) ByID(id string) (Device, bool) {
	e := d.current.Load().byID[id]
	if e == nil {
		return Device{}, false
	}
	return e.device(), true
}

// Certificate returns the certificate of the device with an ID, whatever has
// become of it; a token has none. It is shared: do not change it.
func (d *Devices) Certificate(id string) (*x509.Certificate, bool) {
	e := d.current.Load().byID[id]
	if e == nil || e.cert == nil {
		return nil, false
	}
	return e.cert, true
}
