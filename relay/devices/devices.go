// Package devices keeps the phones and laptops that hold a client certificate:
// it issues, lists and revokes, and answers at every request whether a
// certificate may come in.
//
//	devs, err := devices.New(ctx, devices.Config{Store: kv, CA: ca, Domain: "example.org", OnRevoke: door.Disconnect})
//	go devs.Run(ctx)
//	dev, cert, err := devs.Add(ctx, "anna-phone", pub, nil, time.Time{})
//	dev, denial := devs.Check(leaf, "ha.example.org", time.Now())
//	dev, err = devs.Revoke(ctx, "anna-phone")
//
// Only certificates that stand in the records come in: one that the CA signed
// but nobody recorded is unknown. In the store, "devices/NAME" holds all
// generations of a name, of which only the last may be live, so that one
// compare-and-set keeps names unique; "device-keys/ID" remembers every key
// that was ever certified; "device-seen/ID" says when a device came last.
package devices

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/store"
)

// Errors that callers decide by.
var (
	ErrNameTaken = errors.New("the name belongs to another device")
	ErrKeyUsed   = errors.New("this key was certified before")
	ErrUnknown   = errors.New("no such device")
)

// A Device is one certificate and who it was given to.
type Device struct {
	ID        string    `json:"id"` // SHA-256 of the certificate's public key (SubjectPublicKeyInfo), hex
	Name      string    `json:"name"`
	Serial    string    `json:"serial"`          // of the certificate, hex
	Hosts     []string  `json:"hosts,omitempty"` // patterns of where it may go; empty: everywhere. Shared: do not change
	Created   time.Time `json:"created"`
	NotAfter  time.Time `json:"not_after"`
	LastSeen  time.Time `json:"last_seen,omitzero"` // to the minute after a restart
	RevokedAt time.Time `json:"revoked_at,omitzero"`
	Revoked   bool      `json:"revoked"`
	Kind      string    `json:"kind"` // how it proves itself: KindCertificate
}

// KindCertificate is the kind of a device that holds a client certificate.
const KindCertificate = "certificate"

// Config says what Devices works with. Store and CA are required.
type Config struct {
	Store    store.KV
	CA       *pki.Authority
	Domain   string           // the relay's; completes hints to the owner
	Lifetime time.Duration    // of certificates; 0: 365 days
	Now      func() time.Time // nil: time.Now
	Logger   *slog.Logger     // nil: silent

	// OnRevoke is called with a device's ID when it has lost rights: after
	// that is on disk and Check already says no. It may be called more than
	// once for one device and from several goroutines. Nil: nobody is told.
	OnRevoke func(id string)
}

const defaultLifetime = 365 * 24 * time.Hour

func (c *Config) fill() error {
	if c.Store == nil || c.CA == nil {
		return errors.New("devices: a store and a CA are needed")
	}
	if c.Lifetime == 0 {
		c.Lifetime = defaultLifetime
	}
	if c.Lifetime < 0 {
		return fmt.Errorf("devices: a lifetime of %v is not possible", c.Lifetime)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnRevoke == nil {
		c.OnRevoke = func(string) {}
	}
	return nil
}

// Devices is safe for concurrent use.
type Devices struct {
	cfg     Config
	current atomic.Pointer[snapshot]
	mu      sync.Mutex // guards the replacement of current; no I/O and no callback under it
}

// New reads all records. One that cannot be read is an error: to go on without
// it would forget a revocation.
func New(ctx context.Context, cfg Config) (*Devices, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	d := &Devices{cfg: cfg}
	entries, err := cfg.Store.List(ctx, docPrefix)
	if err != nil {
		return nil, fmt.Errorf("read the devices: %w", err)
	}
	snap := newSnapshot()
	for _, e := range entries {
		name := strings.TrimPrefix(e.Key, docPrefix)
		doc, err := decodeDocument(name, e.Value)
		if err != nil {
			return nil, fmt.Errorf("read device %s: %w\nRestore the relay's state from a backup.", name, err)
		}
		g := d.group(snap, name, e.Revision, doc)
		snap.put(g)
		for _, dev := range g.entries {
			if !dev.trusted && !dev.Revoked {
				cfg.Logger.Warn("device is shut out: its certificate is not one of this CA", "device", name)
			}
		}
	}
	d.current.Store(snap)
	seen, err := cfg.Store.List(ctx, seenPrefix)
	if err != nil {
		return nil, fmt.Errorf("read when devices were seen: %w", err)
	}
	for _, e := range seen {
		d.learnSeen(e)
	}
	return d, nil
}

// List returns all devices, also revoked and expired ones, by name and then by
// age.
func (d *Devices) List() []Device {
	var list []Device
	for _, g := range d.current.Load().groups {
		for _, e := range g.entries {
			list = append(list, e.device())
		}
	}
	slices.SortFunc(list, func(a, b Device) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return list
}

// Get returns the device that has a name now, or had it last.
func (d *Devices) Get(name string) (Device, bool) {
	g := d.current.Load().groups[name]
	if g == nil || len(g.entries) == 0 {
		return Device{}, false
	}
	return g.entries[len(g.entries)-1].device(), true
}

// ByID returns the device with an ID.
func (d *Devices) ByID(id string) (Device, bool) {
	e := d.current.Load().byID[id]
	if e == nil {
		return Device{}, false
	}
	return e.device(), true
}
