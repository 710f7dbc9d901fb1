package executor

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/crypto/scrypt"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	// maxWrong is how many wrong PINs lock a device.
	maxWrong = 5
	// firstLock doubles with every lock until lastLock.
	firstLock = 15 * time.Minute
	lastLock  = 24 * time.Hour

	// scryptN takes 16 MiB and some 40 ms on a small board. It cannot make four
	// digits strong; the file's mode and maxWrong do that.
	scryptN    = 1 << 14
	scryptR    = 8
	scryptP    = 1
	maxScryptN = 1 << 18
)

// errDisk is wrapped when nothing may be decided because it could not be
// written down.
var errDisk = errors.New("it could not be recorded")

// pins are the PINs of the actions, and who tried wrong ones. A slot is an
// action's name, or "" for every action without a PIN of its own.
//
// Locks know no wall clock: what is left of one is counted by the monotonic
// clock while the program runs and kept on disk, so that neither a restart nor
// a clock that jumps makes it shorter. Time while the program is not running does not
// count.
type pins struct {
	dir  folder
	cost int // scrypt's N; tests take less

	// turn is held through a whole check: count on disk, then compare, then
	// count on disk. A channel, because a disk may be slow.
	turn chan struct{}

	mu    sync.Mutex // guards what follows; never held while writing
	slots map[string]pinHash
	tries map[string]*tries // by device
}

type tries struct {
	slots  map[string]slotTries
	locked time.Time // until; its monotonic reading is what counts
}

// pinsJSON is the form of pins.json.
type pinsJSON struct {
	Version int                  `json:"version"` // 1
	PINs    map[string]pinHash   `json:"pins"`
	Tries   map[string]triesJSON `json:"tries,omitempty"`
}

type pinHash struct {
	N    int    `json:"n"`
	R    int    `json:"r"`
	P    int    `json:"p"`
	Salt []byte `json:"salt"`
	Hash []byte `json:"hash"`
}

type triesJSON struct {
	LockedMS int64                `json:"locked_ms,omitempty"` // what was left at the last write
	Slots    map[string]slotTries `json:"slots,omitempty"`
}

// slotTries are of one PIN: whoever knows another one must not be able to reset
// the count of this one with it.
type slotTries struct {
	Wrong int `json:"wrong"`
	Locks int `json:"locks,omitempty"` // how often it locked since the PIN was last right
}

func openPINs(dir folder) (*pins, error) {
	p := &pins{dir: dir, cost: scryptN, turn: make(chan struct{}, 1), slots: make(map[string]pinHash), tries: make(map[string]*tries)}
	var j pinsJSON
	found, err := dir.loadJSON(pinsFile, &j)
	if err == nil && found && j.Version != 1 {
		err = fmt.Errorf("%s has version %d, which this program does not know", dir.file(pinsFile), j.Version)
	}
	for _, h := range j.PINs {
		if err == nil && (h.N < 2 || h.N > maxScryptN || h.R != scryptR || h.P != scryptP || len(h.Hash) != 32 || len(h.Salt) < 16) {
			err = fmt.Errorf("%s is damaged: it holds a hash that this program does not make", dir.file(pinsFile))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w\nRestore it from a backup, or remove it and set the PINs again with: sallyport agent pin", err)
	}
	maps.Copy(p.slots, j.PINs)
	now := time.Now()
	for device, t := range j.Tries {
		left := min(time.Duration(t.LockedMS)*time.Millisecond, lastLock)
		own := &tries{slots: make(map[string]slotTries)}
		maps.Copy(own.slots, t.Slots)
		if left > 0 {
			own.locked = now.Add(left)
		}
		p.tries[device] = own
	}
	return p, nil
}

// lock waits for the turn.
func (p *pins) lock() (unlock func()) {
	p.turn <- struct{}{}
	return func() { <-p.turn }
}

// slot returns which PIN an action asks for; ok is false when there is none.
func (p *pins) slot(action string) (name string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.slots[action]; ok {
		return action, true
	}
	_, ok = p.slots[""]
	return "", ok
}

// left returns how long a device is still locked.
func (p *pins) left(device string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.tries[device]; t != nil && !t.locked.IsZero() {
		return max(0, time.Until(t.locked))
	}
	return 0
}

// A pinVerdict is how a try ended.
type pinVerdict struct {
	ok     bool
	left   int           // tries
	locked time.Duration // > 0: this or an earlier try locked the device
	newly  bool          // this one did
}

// check tries a PIN. The try is on disk before the PIN is compared, so that
// whoever pulls the plug in between has used it up. Errors wrap errDisk.
func (p *pins) check(device, action, pin string) (pinVerdict, error) {
	defer p.lock()()
	// Tries that came at once wait for their turn; the lock may have come
	// meanwhile.
	if left := p.left(device); left > 0 {
		return pinVerdict{locked: left}, nil
	}
	slot, ok := p.slot(action)
	if !ok {
		return pinVerdict{}, fmt.Errorf("no PIN is set")
	}
	p.mu.Lock()
	hash := p.slots[slot]
	t := p.tries[device]
	if t == nil {
		t = &tries{slots: make(map[string]slotTries)}
		p.tries[device] = t
	}
	count := t.slots[slot]
	if count.Wrong >= maxWrong {
		// The last try was counted, and then the program ended before anybody
		// knew whether it was right. Were this one compared, pulling the plug
		// would buy one try after the other.
		p.mu.Unlock()
		return p.settle(t, slot, false)
	}
	t.slots[slot] = slotTries{Wrong: count.Wrong + 1, Locks: count.Locks}
	p.mu.Unlock()
	if err := p.save(); err != nil {
		// Nothing is compared, so it was no try.
		p.mu.Lock()
		t.slots[slot] = count
		p.mu.Unlock()
		return pinVerdict{}, err
	}
	same, err := hash.is(pin)
	if err != nil {
		return pinVerdict{}, err
	}
	return p.settle(t, slot, same)
}

// settle counts how a try ended.
func (p *pins) settle(t *tries, slot string, same bool) (v pinVerdict, err error) {
	p.mu.Lock()
	count := t.slots[slot]
	switch {
	case same:
		v.ok = true
		delete(t.slots, slot)
	case count.Wrong >= maxWrong:
		v.locked, v.newly = lockTime(count.Locks), true
		t.locked = time.Now().Add(v.locked)
		t.slots[slot] = slotTries{Locks: count.Locks + 1}
	default:
		v.left = maxWrong - count.Wrong
	}
	p.mu.Unlock()
	if !v.ok && !v.newly {
		return v, nil // the count is on disk already
	}
	if err := p.save(); err != nil && v.ok {
		// A right PIN that cannot be written down does not open: the seen-set
		// would not be written either.
		return pinVerdict{}, err
	}
	return v, nil
}

func lockTime(locks int) time.Duration {
	d := firstLock
	for range min(locks, 16) {
		d = min(2*d, lastLock)
	}
	return d
}

// set sets or removes ("") the PIN of a slot, and forgets the tries at it. Locks
// stay.
func (p *pins) set(slot, pin string) error {
	defer p.lock()()
	var hash pinHash
	if pin != "" {
		if err := mqttbridge.CheckPIN(pin); err != nil {
			return err
		}
		var err error
		if hash, err = newPINHash(pin, p.cost); err != nil {
			return err
		}
	}
	p.mu.Lock()
	before, had := p.slots[slot]
	if pin == "" {
		delete(p.slots, slot)
	} else {
		p.slots[slot] = hash
	}
	for _, t := range p.tries {
		delete(t.slots, slot)
	}
	p.mu.Unlock()
	if pin == "" && !had {
		return errors.New("there is no PIN to remove")
	}
	if err := p.save(); err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.slots, slot)
		if had {
			p.slots[slot] = before
		}
		return err
	}
	return nil
}

// unlock forgets what a device tried.
func (p *pins) unlock(device string) error {
	defer p.lock()()
	p.mu.Lock()
	before := p.tries[device]
	delete(p.tries, device)
	p.mu.Unlock()
	if before == nil {
		return nil
	}
	if err := p.save(); err != nil {
		p.mu.Lock()
		p.tries[device] = before
		p.mu.Unlock()
		return err
	}
	return nil
}

// keep writes down what is left of the locks, when there are any.
func (p *pins) keep() error {
	defer p.lock()()
	p.mu.Lock()
	running := false
	for _, t := range p.tries {
		if !t.locked.IsZero() {
			running = running || time.Until(t.locked) > 0
		}
	}
	p.mu.Unlock()
	if !running {
		return nil
	}
	return p.save()
}

// save writes the file. The caller has the turn.
func (p *pins) save() error {
	p.mu.Lock()
	j := pinsJSON{Version: 1, PINs: maps.Clone(p.slots), Tries: make(map[string]triesJSON)}
	for device, t := range p.tries {
		one := triesJSON{Slots: maps.Clone(t.slots)}
		if !t.locked.IsZero() {
			one.LockedMS = max(0, time.Until(t.locked).Milliseconds())
		}
		if one.LockedMS > 0 || len(one.Slots) > 0 {
			j.Tries[device] = one
		}
	}
	p.mu.Unlock()
	if err := p.dir.saveJSON(pinsFile, j); err != nil {
		return fmt.Errorf("%w: %w", errDisk, err)
	}
	return nil
}

func newPINHash(pin string, cost int) (pinHash, error) {
	h := pinHash{N: cost, R: scryptR, P: scryptP, Salt: make([]byte, 16)}
	rand.Read(h.Salt) // never fails
	var err error
	h.Hash, err = scrypt.Key([]byte(pin), h.Salt, h.N, h.R, h.P, 32)
	return h, err
}

func (h pinHash) is(pin string) (bool, error) {
	got, err := scrypt.Key([]byte(pin), h.Salt, h.N, h.R, h.P, 32)
	if err != nil {
		return false, fmt.Errorf("hash PIN: %w", err)
	}
	return subtle.ConstantTimeCompare(got, h.Hash) == 1, nil
}
