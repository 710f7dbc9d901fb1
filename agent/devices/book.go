// Package devices is how a home knows the devices of its relay's CA. The CA
// makes them, the relay signs a numbered list of who may come in, and the home
// judges by the last one that it got: so what the owner revokes at the relay
// ends at home within a second, and while the relay is away the home goes on
// with what it has.
//
//	book, err := devices.Open(devices.Config{Dir: dir, Lost: disconnect, NewCA: newDoor})
//	err = book.Pin(joined.DeviceCA)           // at the join
//	err = book.Serve(ctx, conn)               // a stream of FeatureDevices; again when it ends
//	door.New(door.Config{ClientCAs: book.Pool(), Check: book.Check, …})
//	err = book.Confirm(fingerprint)           // a person at home takes what was refused
//
// The relay is believed no more than the CA that was pinned:
//
//   - another CA counts only with the signature of the pinned one, or when a
//     person at home confirms its fingerprint;
//   - a list with a lower number than the last is refused, also after a restart:
//     nobody who was revoked comes back by it;
//   - a list that grows old is shown as old ([Status]): that a relay is silent
//     cannot be told from there being nothing new.
//
// What this cannot do: whoever has the relay has its CA, and can make devices.
// Only a CA at home keeps the relay out.
//
// CA and list are one file, relay-devices.json, so that no crash leaves half of
// a change.
package devices

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// Errors that callers decide by.
var (
	ErrNoCA     = errors.New("no device CA is pinned yet")
	ErrOtherCA  = errors.New("this is not the device CA that was pinned")
	ErrRollback = errors.New("an older list of devices than the last one")
	ErrUnsaved  = errors.New("the list of devices is in force, but not on disk")
)

// Config says what a Book works with. Dir is required.
type Config struct {
	Dir    string           // of the file; made when it is missing
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: silent

	// Lost is called with the IDs of devices that have lost rights, when Check
	// already judges by the new list, to end their connections. It may be called
	// from several goroutines, and no lock is held. Nil: nobody is told.
	Lost func(ids ...string)

	// NewCA is called when another CA is pinned than before, also the first one,
	// after that is on disk: Pool already returns it. Nil: nobody is told.
	NewCA func()
}

// A Book is safe for concurrent use.
type Book struct {
	cfg  Config
	path string
	page atomic.Pointer[page] // what is in force, never nil; replaced under turn
	turn sync.Mutex           // one change at a time; may be held across the disk, never across a callback

	mu      sync.Mutex // guards what follows
	pending *pending   // what only a person can let pass
	problem string     // why the last thing that came was not taken
}

// A page is a CA and its last list. It never changes.
type page struct {
	ca      *x509.Certificate // nil: none is pinned
	list    pki.DeviceList    // number 0: none yet
	signed  []byte            // list as it came
	saved   bool              // it is on disk
	devices map[[sha256.Size]byte]*listed
}

// Open reads what was kept. A file that cannot be wholly understood is an
// error: to go on without it would forget which CA was pinned.
func Open(cfg Config) (*Book, error) {
	if cfg.Dir == "" {
		return nil, errors.New("devices: no directory is named")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Lost == nil {
		cfg.Lost = func(...string) {}
	}
	if cfg.NewCA == nil {
		cfg.NewCA = func() {}
	}
	if err := pki.SecureDir(cfg.Dir); err != nil {
		return nil, err
	}
	b := &Book{cfg: cfg, path: filepath.Join(cfg.Dir, fileName)}
	p, err := load(b.path)
	if err != nil {
		return nil, err
	}
	b.page.Store(p)
	return b, nil
}

// Pool returns a new pool with the pinned CA and nothing else; nil while none
// is pinned.
func (b *Book) Pool() *x509.CertPool {
	ca := b.page.Load().ca
	if ca == nil {
		return nil
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return pool
}

// Number returns the number of the newest list that is on disk; 0: none.
func (b *Book) Number() uint64 {
	if p := b.page.Load(); p.saved {
		return p.list.Number
	}
	return 0
}

// fingerprint is how people compare CAs: all 64 digits, because a shorter one
// could be met by trying.
func fingerprint(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.Raw)
	return hex.EncodeToString(sum[:])
}
