package executor

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	maxOpen    = 256  // commands that have no final state, waiting for acks included
	maxAtOnce  = 16   // commands that are judged or published at the same time
	maxRecent  = 1024 // refused commands that are remembered
	maxBarred  = 4096 // ids that were asked for before they came
	keepBarred = 2 * maxLife

	publishTimeout = 10 * time.Second      // of what is no command
	minPublish     = 50 * time.Millisecond // of a challenge's life: with less, nothing is sent
	tick           = time.Second
	lockEvery      = 60 // ticks between two writes of what is left of the locks
)

// A Broker is a connection to the home broker, of the commands alone.
type Broker interface {
	// Publish returns nil only after the broker took the message. An error for
	// which Config.Offline is true means that nothing was sent; any other, that
	// nobody knows.
	Publish(ctx context.Context, topic string, payload []byte, qos byte, retain bool) error
	// Subscribe calls f, which does not block, in order for what matches, over
	// reconnects, until cancel. A later Publish reaches the broker after the
	// subscription.
	Subscribe(filter string, f func(topic string, payload []byte, retained bool)) (cancel func())
	Connected() bool
}

// Config is what New needs.
type Config struct {
	Dir     string   // mode 0700, of the executor alone; made when it is missing
	Actions []Action // see Check
	Broker  Broker
	// Offline tells which errors of Broker.Publish mean that nothing was sent.
	// Nil: none does, and such commands end as unknown.
	Offline func(error) bool
	Agent   string           // the agent's name at the relay
	Now     func() time.Time // the wall clock, in the home's zone; nil = time.Now. It stamps records and judges Hours, nothing else
	Logger  *slog.Logger     // nil discards
}

// An Executor judges and runs commands. Its methods are safe for concurrent
// use.
type Executor struct {
	agent   string
	broker  Broker
	offline func(error) bool
	now     func() time.Time
	log     *slog.Logger

	key  *ecdh.PrivateKey
	spki []byte
	id   string // of the home

	keys       *keyring
	pins       *pins
	seen       *seenSet
	audit      *auditLog
	strangers  budget // of lines about refusals: of what anybody may have sent
	devices    budget // and of what a trusted device signed
	challenges *challenges
	limits     limits
	rules      []rule // judgeRules; tests leave one out

	set   atomic.Pointer[actionSet]
	slots chan struct{} // one for each command that is judged or published

	life   context.Context // of work: ends with Run or Close
	stop   context.CancelFunc
	line   context.Context // of streams: ends when the work has ended, so that the last states are told
	hangUp context.CancelFunc
	begun  chan struct{} // closed when Run listens to the topics
	runs   atomic.Bool

	setting   sync.Mutex // one SetActions at a time; guards what follows
	listening bool
	watches   map[string]func() // by filter; they end the subscription

	mu       sync.Mutex // guards what follows; nothing is read, written or waited for under it
	closed   bool
	work     sync.WaitGroup // Add only under mu when not closed, or by work that is counted
	talks    sync.WaitGroup // the same for streams
	streams  map[*stream]struct{}
	open     map[string]*command
	recent   map[string]mqttbridge.Status // refused ones, and their digests
	digests  map[string][32]byte
	order    []string // of recent, oldest first
	barred   map[string]time.Time
	waiters  map[*waiter]struct{}
	pulsing  map[string]bool // topics with a pulse that is not over
	live     map[string]mqttbridge.Live
	last     map[string]mqttbridge.Last
	alerts   map[string]alert
	found    map[string][]Suggestion // by discovery topic
	accepted uint64
	refused  uint64
}

// New opens the directory and checks the actions; Close closes it. It starts
// nothing.
func New(cfg Config) (*Executor, error) {
	if cfg.Broker == nil {
		return nil, errors.New("commands need a connection to the home broker")
	}
	set, err := compile(cfg.Actions)
	if err != nil {
		return nil, err
	}
	e := &Executor{
		agent: cfg.Agent, broker: cfg.Broker, offline: cfg.Offline, now: cfg.Now, log: cfg.Logger,
		challenges: newChallenges(), rules: judgeRules, slots: make(chan struct{}, maxAtOnce), begun: make(chan struct{}),
		watches: make(map[string]func()), streams: make(map[*stream]struct{}), open: make(map[string]*command),
		recent: make(map[string]mqttbridge.Status), digests: make(map[string][32]byte), barred: make(map[string]time.Time),
		waiters: make(map[*waiter]struct{}), pulsing: make(map[string]bool), live: make(map[string]mqttbridge.Live),
		alerts: make(map[string]alert), found: make(map[string][]Suggestion),
	}
	if e.offline == nil {
		e.offline = func(error) bool { return false }
	}
	if e.now == nil {
		e.now = time.Now
	}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	e.set.Store(set)
	e.life, e.stop = context.WithCancel(context.Background())
	e.line, e.hangUp = context.WithCancel(context.Background())
	if err := e.openFiles(cfg.Dir); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

// compile checks actions; the error holds everything that is wrong.
func compile(actions []Action) (*actionSet, error) {
	set, faults := compileAll(actions)
	var errs []error
	for _, f := range faults {
		name := ""
		if f.Index < len(actions) {
			name = actions[f.Index].Name
		}
		errs = append(errs, fmt.Errorf("action %d (%s), %s: %s", f.Index+1, name, f.Key, f.Message))
	}
	return set, errors.Join(errs...)
}

func (e *Executor) openFiles(path string) error {
	dir, err := openFolder(path)
	if err != nil {
		return err
	}
	if e.key, e.spki, err = dir.homeKey(); err != nil {
		return err
	}
	if e.id, err = mqttbridge.KeyID(e.spki); err != nil {
		return err
	}
	if e.keys, err = openKeyring(dir, e.spki, e.now); err != nil {
		return err
	}
	if e.pins, err = openPINs(dir); err != nil {
		return err
	}
	if e.seen, err = openSeen(dir.file(seenFile)); err != nil {
		return err
	}
	torn := int64(0)
	if e.audit, torn, err = openLog(dir.file(logName), e.now); err != nil {
		return err
	}
	if torn > 0 {
		e.log.Warn("the log of commands ended in the middle of a line, as after a crash; the piece was cut off", "bytes", torn)
		e.note("log.torn", map[string]any{"bytes": torn})
	}
	if e.last, err = e.seen.last(); err != nil {
		return fmt.Errorf("%s is damaged: %w\nMove it away: no command runs twice for that, but what became of the old ones is lost.", dir.file(seenFile), err)
	}
	return e.closeOld()
}

// Run listens to the state topics and acks, and finishes pulses that an earlier
// process owes, until ctx ends. Commands that are being published then come to
// their end first; those that wait for an ack end as unconfirmed, and pulses
// are released at once. After Run the executor takes no commands any more.
func (e *Executor) Run(ctx context.Context) error {
	if !e.runs.CompareAndSwap(false, true) {
		return errors.New("the executor ran before")
	}
	e.listen()
	e.resumePulses()
	close(e.begun)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for n := 1; ; n++ {
		select {
		case <-ticker.C:
			e.tellBroker()
			e.forgetOld()
			if n%lockEvery == 0 {
				e.keepLocks()
			}
			continue
		case <-ctx.Done():
		case <-e.life.Done():
		}
		break
	}
	e.end()
	e.unlisten()
	e.keepLocks()
	return nil
}

// end takes no more work and waits for what goes on.
func (e *Executor) end() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.stop()
	e.work.Wait()
	e.hangUp()
	e.talks.Wait()
}

// begin counts one piece of work that Run waits for; ok is false when the
// executor has ended.
func (e *Executor) begin(f func()) (ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.work.Go(f)
	return true
}

// Close ends everything that still goes on and closes the files. End Run first,
// so that commands come to their end; the second call does nothing.
func (e *Executor) Close() error {
	e.end()
	var errs []error
	if e.seen != nil {
		errs = append(errs, e.seen.close())
	}
	if e.audit != nil {
		errs = append(errs, e.audit.close())
	}
	return errors.Join(errs...)
}

// SetActions replaces the actions, all or nothing. Commands that are not yet
// published by an action that is gone or changed are refused.
func (e *Executor) SetActions(actions []Action) error {
	set, err := compile(actions)
	if err != nil {
		return err
	}
	e.setting.Lock()
	defer e.setting.Unlock()
	if e.listening {
		e.subscribe(set) // before the first command may need it
	}
	before := e.set.Swap(set)
	if e.listening {
		e.unsubscribe(set)
	}
	e.limits.forget(set.byName)
	e.mu.Lock()
	for name := range e.live {
		if now, was := set.byName[name], before.byName[name]; now == nil || was == nil || now.State != was.State || now.StatePath != was.StatePath {
			delete(e.live, name)
		}
	}
	e.mu.Unlock()
	e.changed()
	return nil
}

// HomeKey returns the home's command key, DER SubjectPublicKeyInfo. Its
// mqttbridge.KeyID is the home's id.
func (e *Executor) HomeKey() []byte { return append([]byte(nil), e.spki...) }

// Keys returns the devices' keys: those that are trusted, then those that wait,
// then those that lost their trust because the relay revoked the device.
func (e *Executor) Keys() []Key { return e.keys.keys() }

// Trust accepts a device's key, after a person compared Key.Words with those
// that the device shows. With keyID "" the device must have offered one key
// alone; a key with a Withdrawn time has to be named. It also lifts a lock of that device for wrong PINs, so trusting a
// trusted device again is how an owner at home unlocks it.
func (e *Executor) Trust(device, keyID string) error {
	key, err := e.keys.trust(device, keyID)
	if err != nil {
		return err
	}
	if err := e.pins.unlock(device); err != nil {
		return err
	}
	e.clearAlert(lockAlert(device))
	e.note("key.trusted", map[string]any{"device": device, "key": key.ID, "words": key.Words})
	e.log.Info("a device may send commands now", "device", device, "key", key.ID)
	return nil
}

// Untrust forgets a device's keys, withdrawn ones as well. None of its commands runs any more, but for
// those that are at the home broker already. When that cannot be written down
// it holds all the same, until the next start, and the error says so.
func (e *Executor) Untrust(device string) error {
	was, err := e.keys.untrust(device)
	if was.ID == "" {
		return err
	}
	e.challenges.void(device)
	e.note("key.untrusted", map[string]any{"device": device, "key": was.ID})
	e.log.Info("a device may send no more commands", "device", device, "key", was.ID)
	return err
}

// SetPIN sets the PIN of an action: 4 to 12 digits, or "" to remove it. The
// action "" is every action that asks for a PIN and has none of its own.
func (e *Executor) SetPIN(action, pin string) error {
	if a := e.set.Load().byName[action]; action != "" && pin != "" && (a == nil || a.Confirm != mqttbridge.ConfirmPIN) {
		return fmt.Errorf("there is no action %q that asks for a PIN\nWrite confirm: pin into its configuration first.", clean(action, 64))
	}
	if err := e.pins.set(action, pin); err != nil {
		return err
	}
	event := "pin.set"
	if pin == "" {
		event = "pin.removed"
	}
	e.note(event, map[string]any{"action": action})
	e.changed()
	return nil
}

func (e *Executor) keepLocks() {
	if err := e.pins.keep(); err != nil {
		e.log.Error("cannot write down how long devices are still locked", "err", err)
	}
}
