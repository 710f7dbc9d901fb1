// Package homeca keeps the devices of a home's own CA: the key of that CA, who
// holds a certificate of it, the pages and protocols by which devices ask for
// one, and what the owner may say about them. The relay carries all of it
// unread and can make no device. The parts are those of the relay itself
// (devices, enroll, boltstore), put together for one home:
//
//	h, err := homeca.Open(homeca.Config{Dir: data, Own: hash + ".example.org", Lost: disconnect})
//	go h.Run(ctx)
//	d, err := door.New(door.Config{ClientCAs: h.Pool(), Check: h.Check, Seen: h.Seen, Denied: h.Denied, …})
//	mux.Handle(homeca.Prefix, h.API()) // on the agent's socket
//	defer h.Close()
//
// Three hosts lead here, all with the agent's own certificate: Site is at
// HASH.DOMAIN, where links lead, and at enroll.HASH.DOMAIN, for everybody;
// SelfTest, which asks for a certificate and renews it, at check.HASH.DOMAIN.
//
// In the data directory are device-ca.crt and device-ca.key, devices.db, and
// scep.crt and scep.key once a device has asked by SCEP.
//
// # What a hostile relay can do
//
// It cannot open what is under way, nor sign a certificate. But it answers for
// the names of its zone, so that it could get a public certificate for
// HASH.DOMAIN and show a false page there: the page would use the visitor's
// code for a key of the relay's own, and show the words of that key. Therefore
// links of a home only open the queue (Invitation with Approve), and an owner
// who wants to be safe from this, too, compares words that the page did not
// make: `sallyport device enroll` makes them itself. Or the key is carried by
// hand (device add --p12).
package homeca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/devices"
	"github.com/sallyport/sallyport/relay/enroll"
	"github.com/sallyport/sallyport/relay/enroll/web"
	"github.com/sallyport/sallyport/relay/store"
	"github.com/sallyport/sallyport/relay/store/boltstore"
)

// The home's hosts below its own name, beside that name itself.
const (
	EnrollLabel = "enroll" // the pages of Site, where `sallyport device enroll` looks for them
	CheckLabel  = "check"  // the pages of SelfTest
)

const (
	caName    = "device-ca"  // the CA's files
	storeName = "devices.db" // all the rest
)

// Config says what a Home works with. Dir and Own are required.
type Config struct {
	Dir    string           // the agent's data directory
	Own    string           // HASH.DOMAIN, canonical
	Port   string           // of public URLs: ":8443", or "" for 443
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: silent
	// Lost is called with the ID of a device that lost rights, after that is on
	// disk and Check says no. It must not block. Nil: nobody is told.
	Lost func(deviceID string)

	// The rest only makes the pages better; all of it may be nil.

	// Hosts lists the canonical hosts whose TLS ends here: pages link to those.
	Hosts func() []string
	// Roots are what a visitor must trust to reach the home without a warning.
	// None: a public CA vouches for it.
	Roots func() []*x509.Certificate
	// Certificate signs the profiles of Apple devices: that of HASH.DOMAIN.
	Certificate func(name string) (*tls.Certificate, error)
}

func (c *Config) fill() error {
	if c.Dir == "" {
		return errors.New("devices of the home: no data directory")
	}
	if own, err := names.Canonical(c.Own); err != nil || own != c.Own || !strings.Contains(own, ".") {
		return fmt.Errorf("devices of the home: %q is not the agent's own name", c.Own)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Lost == nil {
		c.Lost = func(string) {}
	}
	if c.Hosts == nil {
		c.Hosts = func() []string { return nil }
	}
	if c.Roots == nil {
		c.Roots = func() []*x509.Certificate { return nil }
	}
	return nil
}

// A Home is safe for concurrent use.
type Home struct {
	cfg    Config
	log    *slog.Logger
	domain string // of the relay: bare labels in a device's rights are below it

	ca      *pki.Authority
	store   store.KV
	devices *devices.Devices
	desk    *enroll.Desk
	pages   *web.Pages

	site, selfTest, api http.Handler
}

// Open opens what is in the data directory, or makes it. It starts nothing. One
// process at a time may have it open. The caller closes it.
func Open(cfg Config) (*Home, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	h := &Home{cfg: cfg, log: cfg.Logger}
	_, h.domain, _ = strings.Cut(cfg.Own, ".")
	var err error
	if h.ca, err = pki.Open(cfg.Dir, caName, cfg.Now); err != nil {
		return nil, err
	}
	if h.store, err = boltstore.Open(filepath.Join(cfg.Dir, storeName)); err != nil {
		return nil, err
	}
	if err := h.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("devices of the home: %w", err), h.Close())
	}
	return h, nil
}

// open makes the parts that need the store.
func (h *Home) open() (err error) {
	ctx := context.Background()
	h.devices, err = devices.New(ctx, devices.Config{
		Store: h.store, CA: h.ca, Domain: h.domain, Now: h.cfg.Now, Logger: h.log, OnRevoke: h.cfg.Lost,
	})
	if err != nil {
		return err
	}
	h.desk, err = enroll.New(ctx, enroll.Config{
		Store: h.store, Now: h.cfg.Now, Logger: h.log, Audit: h.event,
		Issue: h.issue, Issued: h.issued, CheckName: h.checkName,
	})
	if err != nil {
		return err
	}
	if err := h.makeSites(); err != nil {
		return err
	}
	h.api, err = h.makeAPI()
	return err
}

// Run issues what was approved before a restart, forgets what is over, and
// writes down when devices were seen, until ctx ends. Without it the rest works
// all the same.
func (h *Home) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{h.devices.Run, h.desk.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				cancel(fmt.Errorf("devices of the home: %w", err))
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// Close releases the data directory; Run has ended before. Who may come in is
// in memory, so that Check works on. The second call does nothing.
func (h *Home) Close() error { return h.store.Close() }

// CA returns the certificate of the home's device CA.
func (h *Home) CA() *x509.Certificate { return h.ca.Cert() }

// Pool returns a new pool with the home's device CA alone.
func (h *Home) Pool() *x509.CertPool { return h.ca.Pool() }

// Check judges a certificate at a canonical host, as door.Config wants it: in
// memory, no lock. Every device may see its self-test.
func (h *Home) Check(leaf *x509.Certificate, host string, now time.Time) (door.Device, string) {
	d, denial := h.devices.Check(leaf, host, now)
	if denial == devices.DeniedHost && host == CheckLabel+"."+h.cfg.Own {
		denial = devices.Allowed
	}
	return door.Device{ID: d.ID, Name: d.Name, Cert: leaf, Until: d.Until}, string(denial)
}

// Seen notes that a device is here.
func (h *Home) Seen(deviceID string) { h.devices.Seen(deviceID) }

// Warnings are what the owner should look at now, a sentence each.
func (h *Home) Warnings() []string {
	var list []string
	if w := h.devices.ClockWarning(h.cfg.Now()); w != "" {
		list = append(list, ofHome(w))
	}
	switch n := len(h.desk.Pending()); n {
	case 0:
	case 1:
		list = append(list, "a device waits for approval: sallyport device list --home")
	default:
		list = append(list, fmt.Sprintf("%d devices wait for approval: sallyport device list --home", n))
	}
	return list
}

// event logs what an owner wants to look up later. What strangers can cause is
// bounded by the desk.
func (h *Home) event(name string, attrs ...slog.Attr) {
	h.log.LogAttrs(context.Background(), slog.LevelInfo, name, attrs...)
}
