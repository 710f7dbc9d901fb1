package dispatch

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	homeEvery  = 10 * time.Second // how often one home is written at most
	putTime    = 10 * time.Second // for one write
	lastWrites = 2 * time.Second  // for all of them once Run ends
	slowest    = 30 * time.Second // between two tries while the ledger fails
)

// A writer knows what the ledger does not know yet. Only the goroutine of
// Dispatcher.write changes what is there already, so that an older value never
// follows a newer one.
type writer struct {
	wake chan struct{} // one token

	mu       sync.Mutex // guards the fields below; taken while Dispatcher.mu is held, never the other way round
	commands map[string]bool
	homes    map[string]bool
	revoked  map[string]bool // devices
	drops    map[string]bool // keys to delete
	trouble  error           // why the last write failed
}

func (w *writer) init() {
	w.wake = make(chan struct{}, 1)
	w.commands, w.homes, w.revoked, w.drops = map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}
}

func (w *writer) add(to map[string]bool, key string) {
	w.mu.Lock()
	to[key] = true
	w.mu.Unlock()
	w.ring()
}

func (w *writer) ring() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// ringForHomes wakes the writer when homes wait for their turn.
func (w *writer) ringForHomes() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.homes) > 0 {
		w.ring()
	}
}

func (w *writer) command(id string)   { w.add(w.commands, id) }
func (w *writer) home(name string)    { w.add(w.homes, name) }
func (w *writer) revocation(d string) { w.add(w.revoked, d) }
func (w *writer) drop(key string)     { w.add(w.drops, key) }

// unwell logs that the ledger fails, once until it is well again.
func (w *writer) unwell(log *slog.Logger, err error) {
	w.mu.Lock()
	first := w.trouble == nil
	w.trouble = err
	w.mu.Unlock()
	if first {
		log.Error("cannot write the ledger of commands: new ones are refused until it works again\nIs the disk full?", "err", err)
	}
}

// well logs that the ledger works again, if it did not.
func (w *writer) well(log *slog.Logger) {
	w.mu.Lock()
	again := w.trouble != nil
	w.trouble = nil
	w.mu.Unlock()
	if again {
		log.Info("the ledger of commands can be written again")
	}
}

func (w *writer) problem() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.trouble
}

// write brings the ledger up to date until ctx ends, and then once more. While
// the ledger fails, it tries again less and less often.
func (d *Dispatcher) write(ctx context.Context) {
	wait := time.Second
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWrites)
			defer cancel()
			if err := d.writeOnce(last, true); err != nil {
				d.cfg.Logger.Error("the ledger of commands is not up to date; the homes will be asked at the next start", "err", err)
			}
			return
		case <-d.writer.wake:
		}
		err := d.writeOnce(ctx, false)
		if err == nil {
			wait = time.Second
			d.writer.well(d.cfg.Logger)
			continue
		}
		if ctx.Err() != nil {
			continue
		}
		d.writer.unwell(d.cfg.Logger, err)
		again := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-again.C:
		}
		again.Stop()
		wait = min(2*wait, slowest)
		d.writer.ring()
	}
}

// writeOnce writes what is to be written now; what fails stays to be written.
// Homes are written at leisure, unless all is to be written.
func (d *Dispatcher) writeOnce(ctx context.Context, all bool) error {
	w := &d.writer
	w.mu.Lock()
	commands, homes, drops := slices.Collect(maps.Keys(w.commands)), slices.Collect(maps.Keys(w.homes)), slices.Collect(maps.Keys(w.drops))
	revoked := slices.Collect(maps.Keys(w.revoked))
	w.mu.Unlock()
	for _, device := range revoked { // first: a key that stays trusted at home is the worst that can be forgotten
		if err := d.writeEntry(ctx, w.revoked, device, revokedKey(device), d.revocationValue); err != nil {
			return err
		}
	}
	for _, id := range commands {
		if err := d.writeEntry(ctx, w.commands, id, commandPrefix+id, d.commandValue); err != nil {
			return err
		}
	}
	for _, key := range drops {
		if err := d.writeEntry(ctx, w.drops, key, key, d.dropValue); err != nil {
			return err
		}
	}
	for _, name := range homes {
		if !all && !d.homeDue(name) {
			continue // the sweep wakes the writer again
		}
		if err := d.writeEntry(ctx, w.homes, name, homeKey(name), d.homeValue); err != nil {
			return err
		}
	}
	return nil
}

// What to do with a key.
type deed int

const (
	leave deed = iota
	put
	remove
)

// writeEntry does one thing with one key. What changes meanwhile is marked
// again by whoever changes it.
func (d *Dispatcher) writeEntry(ctx context.Context, marks map[string]bool, mark, key string, value func(string) (deed, []byte)) (err error) {
	ctx, cancel := context.WithTimeout(ctx, putTime)
	defer cancel()
	d.writer.mu.Lock()
	delete(marks, mark)
	d.writer.mu.Unlock()
	switch do, v := value(mark); do {
	case put:
		err = d.cfg.Ledger.Put(ctx, key, v)
	case remove:
		err = d.cfg.Ledger.Delete(ctx, key)
	}
	if err != nil {
		d.writer.mu.Lock()
		marks[mark] = true
		d.writer.mu.Unlock()
	}
	return err
}

func (d *Dispatcher) commandValue(id string) (deed, []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.commands.byID[id]
	if c == nil || c.recorded != nil {
		return leave, nil
	}
	return put, encodeCommand(c)
}

// dropValue spares a command that came back into memory.
func (d *Dispatcher) dropValue(key string) (deed, []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.commands.byID[strings.TrimPrefix(key, commandPrefix)] != nil {
		return leave, nil
	}
	return remove, nil
}

// homeValue also notes that the home is being written.
func (d *Dispatcher) homeValue(name string) (deed, []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.homes[name]
	if h == nil {
		return remove, nil
	}
	h.saved = d.now()
	return put, encodeHome(h)
}

func (d *Dispatcher) homeDue(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.homes[name]
	if h == nil {
		return true
	}
	passed := d.now().Sub(h.saved)
	return passed >= homeEvery || passed < 0
}

func (w *writer) unsaved() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.commands) + len(w.revoked)
}
