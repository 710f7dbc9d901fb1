// Package dispatch is the relay's half of commands: it writes what a device
// asks for into a ledger, carries it to the home, and tells the device how far
// it came. It is for the relay, which hands it the agents' streams, and for
// the panel, which asks it on behalf of devices.
//
//	d, err := dispatch.New(ctx, dispatch.Config{Ledger: ledger, Allowed: allowed})
//	go d.Run(ctx)
//	go d.ServeAgent(ctx, stream, dispatch.Agent{ID: id, Name: "kitchen"}) // for each stream of an agent
//	challenge, err := d.Challenge(ctx, "anna-phone", "kitchen", "door")
//	status, err := d.Send(ctx, "anna-phone", "kitchen", signed) // status.State is accepted
//	for ev := range d.Watch(ctx, "anna-phone") { … }
//
// It judges nothing that the home decides: signatures, challenges, PINs and
// hours are the agent's. What it promises is this. A command is on disk before
// one byte of it leaves for the home. It leaves once: nothing is kept for a
// home that is away, nothing is sent again after a failure or a restart; the
// home is asked instead what became of it. Every command ends, at worst as
// mqttbridge.Unknown, which a home that comes back may still correct; no other
// end is ever changed.
//
// # Ledger
//
// "commands/ID" is a command and "homes/NAME" what a home offered last, so that
// a page shows its buttons while it is away. A command is written when it is
// accepted, before it is sent, and when it has ended; a crash in between is
// mended by asking the home. "revoked/DEVICE" is a revocation with the homes
// that were not told of it yet.
//
// # Revoked devices
//
// A home trusts a device's key until somebody at home says otherwise, or the
// relay says that the device was revoked (EndDevice). Homes that are away are
// told when they return, also after a restart of the relay, until they say that
// it is on their disk. A relay can only take that trust away: who is enrolled
// again under the same name has to be trusted at home again.
//
// # Who is believed
//
// Devices and agents may be hostile. A device sees the actions that are
// offered to it and its own commands; an agent speaks about commands that were
// sent to it and about its own actions. Both are limited in what they may send
// and in how much of it.
package dispatch

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A Refusal is the error of everything that devices may ask for.
type Refusal = mqttbridge.Refusal

// A Ledger keeps what must survive a restart. Keys are paths of printable ASCII
// without spaces, at most 512 bytes; values at most 512 KiB and the callee's
// until the call ends. It is safe for concurrent use. A write that returned nil
// is on disk; one that failed may be there or not. Calls end when ctx does.
type Ledger interface {
	Put(ctx context.Context, key string, value []byte) error
	// Get returns nil, nil where there is nothing.
	Get(ctx context.Context, key string) ([]byte, error)
	// Create writes a key that must not exist; false means that it does.
	Create(ctx context.Context, key string, value []byte) (created bool, err error)
	// Delete does not mind absence.
	Delete(ctx context.Context, key string) error
	// List returns all values under a prefix by their full keys.
	List(ctx context.Context, prefix string) (map[string][]byte, error)
}

// An Agent is the verified peer of a stream.
type Agent struct {
	ID   string // of its key; commands belong to it
	Name string // what devices call the home, unique at the relay; 1 to 64 bytes, printable
}

// Limits bound what one device may do and what is kept. A zero value means the
// default.
type Limits struct {
	PerSecond int           // commands of one device, and apart from them its challenges and keys; 10
	Burst     int           // how many may come at once; 20
	PerHour   int           // commands of one device over a long time; 600, of which all may come in the first minutes
	Watches   int           // open Watch channels of one device; 50
	Open      int           // commands of one device without an end; 32
	Silence   time.Duration // how long after its challenge's life a home may say nothing of a command; 60 s
	Ack       time.Duration // how much longer once it was delivered and waits for its ack; 5 min
	Keep      time.Duration // how long commands are kept; 7 days
	KeepCount int           // how many; 10,000. The device with the most loses its oldest first
}

// Config says what a Dispatcher works with. Ledger is required.
type Config struct {
	Ledger Ledger
	// Allowed says whether a device may come in now: known and not revoked. It
	// is asked often and must be fast. Nil: everybody.
	Allowed func(device string) bool
	// Revoked says whether a device has lost all its rights, and not only some
	// of them or an old certificate. EndDevice asks it: the homes are told of
	// revoked devices alone. Nil: whoever is not Allowed.
	Revoked func(device string) bool
	Limits  Limits
	Now     func() time.Time // nil: time.Now
	Logger  *slog.Logger     // nil: silent
	// Audit records what an owner wants to look up later; called without locks
	// held. Nil: nothing.
	Audit func(event string, attrs ...slog.Attr)
}

func (c *Config) fill() error {
	if c.Ledger == nil {
		return errors.New("dispatch: a ledger is needed")
	}
	if c.Allowed == nil {
		c.Allowed = func(string) bool { return true }
	}
	if allowed := c.Allowed; c.Revoked == nil {
		c.Revoked = func(device string) bool { return !allowed(device) }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Audit == nil {
		c.Audit = func(string, ...slog.Attr) {}
	}
	l := &c.Limits
	for _, n := range []struct {
		value *int
		def   int
	}{{&l.PerSecond, 10}, {&l.Burst, 20}, {&l.PerHour, 600}, {&l.Watches, 50}, {&l.Open, 32}, {&l.KeepCount, 10_000}} {
		if *n.value <= 0 {
			*n.value = n.def
		}
	}
	for _, n := range []struct {
		value *time.Duration
		def   time.Duration
	}{{&l.Silence, time.Minute}, {&l.Ack, 5 * time.Minute}, {&l.Keep, 7 * 24 * time.Hour}} {
		if *n.value <= 0 {
			*n.value = n.def
		}
	}
	return nil
}

// A Dispatcher is safe for concurrent use.
type Dispatcher struct {
	cfg    Config
	writer writer

	mu       sync.Mutex // guards the fields below; never held across I/O or callbacks
	homes    map[string]*home
	commands shelf
	guests   map[string]*guest      // by device
	revoked  map[string]*revocation // by device: what homes do not know yet
	live     map[*stream]bool       // streams of agents, also those that said nothing yet
	streams  uint64                 // how many there were: numbers them
	said     []func()               // lines for the logs, written by unlock
}

// New reads the ledger. Commands that had no end are asked for when their home
// is there.
func New(ctx context.Context, cfg Config) (*Dispatcher, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	d := &Dispatcher{
		cfg: cfg, homes: map[string]*home{}, commands: newShelf(),
		guests: map[string]*guest{}, revoked: map[string]*revocation{}, live: map[*stream]bool{},
	}
	d.writer.init()
	if err := d.load(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// Run ends commands that nobody speaks of, keeps the ledger up to date and
// short, and returns after ctx ended and what was left to write is written, or
// could not be for two seconds. Without Run nothing ends by time.
func (d *Dispatcher) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { d.write(ctx) })
	d.sweepUntil(ctx)
	wg.Wait()
	return nil
}

// note adds a line to the audit log. It wants d.mu.
func (d *Dispatcher) note(event string, attrs ...slog.Attr) {
	d.said = append(d.said, func() { d.cfg.Audit(event, attrs...) })
}

// unlock releases d.mu and writes what was said while it was held: a log that
// blocks must not stop the doors.
func (d *Dispatcher) unlock() {
	said := d.said
	d.said = nil
	d.mu.Unlock()
	for _, say := range said {
		say()
	}
}

// refuse makes an error of a device.
func refuse(code mqttbridge.Code, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Reason: fmt.Sprintf(format, args...)}
}

// digestOf tells whether a command that comes again is the same one.
func digestOf(home string, s mqttbridge.Signed) [sha256.Size]byte {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(home), s.Body, []byte(s.Key), s.Signature} {
		fmt.Fprintf(h, "%d\n", len(part))
		h.Write(part)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
