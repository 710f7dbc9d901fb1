// Package devices keeps the phones and laptops that hold a client certificate,
// and the visitors that can hold none and bring a token instead: it issues,
// renews, lists and revokes, and answers at every request who may come in.
//
//	devs, err := devices.New(ctx, devices.Config{Store: kv, CA: ca, Domain: "example.org", OnRevoke: door.Disconnect})
//	go devs.Run(ctx)
//	dev, cert, err := devs.Add(ctx, devices.Grant{Name: "anna-phone", Key: pub})
//	dev, denial := devs.Check(leaf, "ha.example.org", time.Now())
//	dev, cert, err = devs.Renew(ctx, leaf, newPub)
//	dev, err = devs.Change(ctx, "anna-phone", devices.Change{Hosts: &[]string{"ha"}})
//	dev, err = devs.Revoke(ctx, "anna-phone")
//
// Only certificates that stand in the records come in: one that the CA signed
// but nobody recorded is unknown. In the store, "devices/NAME" holds all
// generations of a name, so that one compare-and-set keeps names unique: of
// all that ever had the name only one device is live, be it with several
// certificates that renewed each other. "device-keys/ID" remembers every key
// that was ever certified; "device-seen/ID" says when a device came last;
// "device-crl" is the number of the last revocation list or list for homes;
// "device-clock" is what the owner said about the clock.
//
// Time is the clock's, but never earlier than the newest moment that the
// records know of (see ClockWarning): a clock that was set back lets nothing
// in that had ended before.
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

// Config says what Devices works with. Store and CA are required.
type Config struct {
	Store    store.KV
	CA       *pki.Authority
	Domain   string           // the relay's, canonical; completes bare labels and the hosts of tokens
	Lifetime time.Duration    // of certificates; 0: 365 days
	CRLURL   string           // where CRL is served, written into certificates; empty: nothing is written
	Now      func() time.Time // nil: time.Now
	Logger   *slog.Logger     // nil: silent

	// OnRevoke is called with a device's ID when it has lost rights: after
	// that is on disk and Check already says no. It may be called more than
	// once for one device and from several goroutines. Nil: nobody is told.
	OnRevoke func(id string)

	// OnChange is called after anything has changed in the set of devices and
	// tokens, also through another relay on the same store: Tokens already
	// tells the new state. No lock is held. It may be called more often than
	// things change, and from several goroutines. Nil: nobody is told.
	OnChange func()
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
	if c.OnChange == nil {
		c.OnChange = func() {}
	}
	return nil
}

// Devices is safe for concurrent use.
type Devices struct {
	cfg      Config
	current  atomic.Pointer[snapshot]
	mu       sync.Mutex                     // guards the replacement of current; no I/O and no callback under it
	newest   atomic.Int64                   // the latest moment that the records know of, Unix seconds
	resets   atomic.Pointer[clockReset]     // what the owner said about the clock, never nil; replaced under mu
	seenTurn sync.Mutex                     // "device-seen" is written by one at a time; held across the store
	crlTurn  sync.Mutex                     // one revocation list is made at a time; may be held across the store
	crl      atomic.Pointer[revocationList] // the last one made here; replaced under crlTurn

	signedTurn sync.Mutex             // one list for homes is made at a time; may be held across the store
	signed     map[string]*signedList // the last ones made here, by scope; guarded by signedTurn
}

// New reads all records. One that cannot be read is an error: to go on without
// it would forget a revocation.
func New(ctx context.Context, cfg Config) (*Devices, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	d := &Devices{cfg: cfg}
	reset, err := d.readReset(ctx)
	if err != nil {
		return nil, fmt.Errorf("read what was said about the clock: %w\nRestore the relay's state from a backup.", err)
	}
	d.resets.Store(reset) // before the records: it says which of their moments count
	if reset.rev != 0 {
		d.learnTime(reset.At)
	}
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
