package admin

import (
	"strings"
	"time"
)

// A Device is a phone, tablet or laptop that may come in.
type Device struct {
	ID            string    `json:"id"`
	Name          string    `json:"name"`
	Serial        string    `json:"serial"`
	Hosts         []string  `json:"hosts,omitempty"` // patterns; empty: all hosts
	Kind          string    `json:"kind,omitempty"`  // "certificate" or "token"
	Admin         bool      `json:"admin,omitempty"` // may open the dashboard at admin.DOMAIN
	Created       time.Time `json:"created"`
	NotAfter      time.Time `json:"not_after"`
	Until         time.Time `json:"until,omitzero"` // shut out from then on; zero: with its certificate
	LastSeen      time.Time `json:"last_seen,omitzero"`
	Revoked       bool      `json:"revoked"`
	RevokedAt     time.Time `json:"revoked_at,omitzero"`
	Renewed       bool      `json:"renewed,omitempty"`         // a newer certificate of the same device exists
	DueForRenewal bool      `json:"due_for_renewal,omitempty"` // its certificate ends soon
	// The rest is of tokens only.
	Path      string `json:"path,omitempty"`       // it reaches what is below; empty: all
	TokenHost string `json:"token_host,omitempty"` // its own public host
	Target    string `json:"target,omitempty"`     // the host whose service it reaches
	URL       string `json:"url,omitempty"`        // its base address, without the secret
}

// Ends returns when the device is shut out by itself: the earlier of its
// certificate's end and Until. Zero: never.
func (d Device) Ends() time.Time {
	if d.NotAfter.IsZero() || !d.Until.IsZero() && d.Until.Before(d.NotAfter) {
		return d.Until
	}
	return d.NotAfter
}

// An InviteRequest asks for a one-time enrolment link.
type InviteRequest struct {
	Name    string    `json:"name,omitempty"`        // empty: the visitor names the device, and the owner always approves it
	Hosts   []string  `json:"hosts,omitempty"`       // patterns; empty: all hosts
	Until   time.Time `json:"until,omitzero"`        // of the device; zero: as long as its certificate
	TTL     int64     `json:"ttl_seconds,omitempty"` // of the link; 0: the relay's default
	Admin   bool      `json:"admin,omitempty"`       // the device may open the dashboard at admin.DOMAIN
	Approve bool      `json:"approve,omitempty"`     // the owner approves what comes of it
}

// An Invite is a one-time enrolment link. Whoever opens it first becomes the
// device: treat Link and SVG as secrets.
type Invite struct {
	Name    string    `json:"name,omitempty"`
	Link    string    `json:"link"`
	Expires time.Time `json:"expires"`
	Approve bool      `json:"approve,omitempty"`
	SVG     string    `json:"svg,omitempty"` // QR code of Link, see QRSVG
}

// A WaitingInvite is an enrolment link that nobody used yet. The link itself
// is known to nobody here.
type WaitingInvite struct {
	ID      string    `json:"id"`              // short, for the owner to type
	Name    string    `json:"name,omitempty"`  // empty: the visitor names the device
	By      string    `json:"by,omitempty"`    // who made it, see Actor
	Hosts   []string  `json:"hosts,omitempty"` // patterns; empty: all hosts
	Admin   bool      `json:"admin,omitempty"`
	Until   time.Time `json:"until,omitzero"` // of the device; zero: as long as its certificate
	Approve bool      `json:"approve,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
}

// A TokenDeviceRequest asks for a secret for a visitor that cannot hold a
// certificate.
type TokenDeviceRequest struct {
	Name  string    `json:"name"`
	Host  string    `json:"host"`           // the one host that it reaches, or its label
	Path  string    `json:"path,omitempty"` // "/api/": only what is below; empty: all
	Until time.Time `json:"until,omitzero"` // zero: until it is revoked
}

// A TokenDevice is a new token with its secret, shown once.
type TokenDevice struct {
	Device Device `json:"device"`
	Secret string `json:"secret"`
	URL    string `json:"url"` // base address, without the secret
}

// A DeviceChange changes the rights of a device; nil leaves a field as it is.
type DeviceChange struct {
	Hosts *[]string  `json:"hosts,omitempty"` // empty list: all hosts
	Until *time.Time `json:"until,omitempty"` // zero time: as long as its certificate
	Admin *bool      `json:"admin,omitempty"`
}

// An EnrolRequest is a device that asks to come in.
type EnrolRequest struct {
	ID      string    `json:"id"` // short, for the owner to type
	Name    string    `json:"name"`
	State   string    `json:"state"`            // "pending", "issued", "denied" or "expired"
	Via     string    `json:"via,omitempty"`    // "browser", "scep", "est" or "cli"
	Agent   string    `json:"agent,omitempty"`  // what the device says about itself
	Source  string    `json:"source,omitempty"` // its address
	Words   string    `json:"words,omitempty"`  // fingerprint of its key; see ShowsWords
	KeyID   string    `json:"key_id,omitempty"` // hex SHA-256 of its public key
	Hosts   []string  `json:"hosts,omitempty"`
	Until   time.Time `json:"until,omitzero"`  // of the device; zero: as long as its certificate
	Admin   bool      `json:"admin,omitempty"` // it would become an administrator: never approved from afar
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
}

// ShowsWords reports whether the device shows Words on its own screen, to be
// compared. Those that ask by SCEP or EST cannot: for the owner to look for
// words there would teach him to approve without them.
func (q EnrolRequest) ShowsWords() bool {
	return q.Words != "" && (q.Via == "browser" || q.Via == "cli")
}

// Fingerprint is the start of KeyID in groups of four, at most 64 bits: enough
// to tell requests apart and to find the key with tools.
func (q EnrolRequest) Fingerprint() string {
	const digits, group = 16, 4
	id := q.KeyID[:min(len(q.KeyID), digits)]
	var groups []string
	for len(id) > group {
		groups, id = append(groups, id[:group]), id[group:]
	}
	return strings.Join(append(groups, id), " ")
}

// A PublicCert is how a host's public certificate stands.
type PublicCert struct {
	Host     string    `json:"host"`
	State    string    `json:"state"`
	Issuer   string    `json:"issuer,omitempty"`
	Problem  string    `json:"problem,omitempty"` // one line
	Fix      string    `json:"fix,omitempty"`     // what the owner can do about it
	NotAfter time.Time `json:"not_after,omitzero"`
	Next     time.Time `json:"next,omitzero"` // when the relay tries again or renews
}

// DashboardInfo says how to open the dashboard.
type DashboardInfo struct {
	Socket string `json:"socket,omitempty"` // path of its unix socket, for ssh -L
	Listen string `json:"listen,omitempty"` // address of the loopback listener; empty: off
	Login  string `json:"login,omitempty"`  // one-time link to the loopback listener; a secret
}

type (
	requestList struct {
		Requests []EnrolRequest `json:"requests"`
	}
	inviteList struct {
		Invites []WaitingInvite `json:"invites"`
	}
	certList struct {
		Certificates []PublicCert `json:"certificates"`
	}
)
