package dispatch

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

var errFull = errors.New("no space left on device")

// memLedger is a ledger that survives its dispatcher and fails on demand.
type memLedger struct {
	mu     sync.Mutex
	values map[string][]byte
	// before is asked before every operation ("create", "put", "get",
	// "delete"); its error is the answer. It may block.
	before func(op, key string) error
	count  map[string]int
	hangs  bool // until the context ends
}

func newLedger() *memLedger {
	return &memLedger{values: map[string][]byte{}, count: map[string]int{}}
}

func (l *memLedger) do(ctx context.Context, op, key string) error {
	if key == "" || len(key) > 512 || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("a key that no ledger takes: " + key)
	}
	l.mu.Lock()
	before, hangs := l.before, l.hangs
	l.count[op+" "+key]++
	l.count[op]++
	l.mu.Unlock()
	if hangs {
		<-ctx.Done()
	}
	if before != nil {
		if err := before(op, key); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (l *memLedger) Put(ctx context.Context, key string, value []byte) error {
	if err := l.do(ctx, "put", key); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.values[key] = bytes.Clone(value)
	return nil
}

func (l *memLedger) Get(ctx context.Context, key string) ([]byte, error) {
	if err := l.do(ctx, "get", key); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.values[key]), nil
}

func (l *memLedger) Create(ctx context.Context, key string, value []byte) (bool, error) {
	if err := l.do(ctx, "create", key); err != nil {
		return false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.values[key] != nil {
		return false, nil
	}
	l.values[key] = bytes.Clone(value)
	return true, nil
}

func (l *memLedger) Delete(ctx context.Context, key string) error {
	if err := l.do(ctx, "delete", key); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.values, key)
	return nil
}

func (l *memLedger) List(_ context.Context, prefix string) (map[string][]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := maps.Clone(l.values)
	maps.DeleteFunc(list, func(key string, _ []byte) bool { return !strings.HasPrefix(key, prefix) })
	return list, nil
}

func (l *memLedger) fail(before func(op, key string) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.before = before
}

func (l *memLedger) counted(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count[what]
}

// state returns the state of a command as it is on disk, "" when it is not.
func (l *memLedger) state(t *testing.T, id string) mqttbridge.State {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	value := l.values[commandPrefix+id]
	if value == nil {
		return ""
	}
	var r commandRecord
	if err := json.Unmarshal(value, &r); err != nil {
		t.Fatal(err)
	}
	return r.Status.State
}

// A world is a relay with agents and devices, in virtual time.
type world struct {
	t       *testing.T
	d       *Dispatcher
	ledger  *memLedger
	revoked sync.Map // names
	log     syncBuffer
	audits  syncBuffer
	stop    func() // ends Run and every stream, and waits
	ctx     context.Context
	wg      sync.WaitGroup
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// inWorld runs a story in virtual time.
func inWorld(t *testing.T, limits Limits, story func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, ledger: newLedger()}
		w.start(limits)
		defer func() { w.stop() }()
		story(t, w)
	})
}

func (w *world) start(limits Limits) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	d, err := New(ctx, Config{
		Ledger: w.ledger, Limits: limits,
		Allowed: func(device string) bool { _, gone := w.revoked.Load(device); return !gone },
		Logger:  slog.New(slog.NewTextHandler(&w.log, nil)),
		Audit: func(event string, attrs ...slog.Attr) {
			slog.New(slog.NewTextHandler(&w.audits, nil)).LogAttrs(context.Background(), slog.LevelInfo, event, attrs...)
		},
	})
	if err != nil {
		cancel()
		w.t.Fatal(err)
	}
	w.d, w.ctx = d, ctx
	w.wg.Go(func() { d.Run(ctx) })
	w.stop = func() { cancel(); w.wg.Wait() }
}

// restart ends the relay and starts another on the same ledger.
func (w *world) restart(limits Limits) {
	w.stop()
	w.start(limits)
}

// A fakeAgent is the other end of a stream.
type fakeAgent struct {
	t      *testing.T
	conn   net.Conn
	frames chan mqttbridge.Frame // all that came
	served chan error            // what ServeAgent returned
	// turn is held while writing. The pipe has a mutex for that, but waiting for
	// a mutex stops virtual time.
	turn chan struct{}
}

func (a *fakeAgent) write(f mqttbridge.Frame) error {
	a.turn <- struct{}{}
	defer func() { <-a.turn }()
	return mqttbridge.WriteFrame(a.conn, f)
}

var kitchen = Agent{ID: "key-of-kitchen", Name: "kitchen"}

// dial opens a stream without a word. answer, if not nil, is called for every
// frame; what it returns is sent back.
func (w *world) dial(a Agent, answer func(f mqttbridge.Frame) []mqttbridge.Frame) *fakeAgent {
	theirs, ours := net.Pipe()
	ag := &fakeAgent{t: w.t, conn: theirs, frames: make(chan mqttbridge.Frame, 10_000), served: make(chan error, 1), turn: make(chan struct{}, 1)}
	d, ctx := w.d, w.ctx
	w.wg.Go(func() { ag.served <- d.ServeAgent(ctx, ours, a) })
	w.wg.Go(func() {
		for {
			f, err := mqttbridge.ReadFrame(theirs)
			if err != nil {
				return
			}
			ag.frames <- f
			if answer == nil {
				continue
			}
			for _, reply := range answer(f) {
				if ag.write(reply) != nil {
					return
				}
			}
		}
	})
	return ag
}

// agent opens a stream that says what it offers.
func (w *world) agent(a Agent, h mqttbridge.Home, answer func(f mqttbridge.Frame) []mqttbridge.Frame) *fakeAgent {
	w.t.Helper()
	ag := w.dial(a, answer)
	ag.offer(h)
	return ag
}

func (a *fakeAgent) offer(h mqttbridge.Home) {
	a.t.Helper()
	a.say(mqttbridge.Frame{Type: mqttbridge.FrameHome, Home: &h})
}

func (a *fakeAgent) status(s mqttbridge.Status) {
	a.t.Helper()
	a.say(mqttbridge.Frame{Type: mqttbridge.FrameStatus, Status: &s})
}

func (a *fakeAgent) say(f mqttbridge.Frame) {
	a.t.Helper()
	if err := a.write(f); err != nil {
		a.t.Fatal(err)
	}
	synctest.Wait()
}

// got returns the frames of a type that came since the last call, and drops
// the others.
func (a *fakeAgent) got(kind string) (list []mqttbridge.Frame) {
	synctest.Wait()
	for {
		select {
		case f := <-a.frames:
			if f.Type == kind {
				list = append(list, f)
			}
		default:
			return list
		}
	}
}

// leave ends the stream and returns what ServeAgent says.
func (a *fakeAgent) leave() error {
	a.conn.Close()
	return <-a.served
}

type keypair struct {
	private *ecdsa.PrivateKey
	spki    []byte
	id      string
}

func newKey() keypair {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		panic(err)
	}
	id, err := mqttbridge.KeyID(spki)
	if err != nil {
		panic(err)
	}
	return keypair{key, spki, id}
}

var (
	homeKey1  = sync.OnceValue(newKey)
	deviceKey = sync.OnceValue(newKey)
)

// aHome offers a door for everybody who is trusted, and what is added.
func aHome(more ...mqttbridge.Action) mqttbridge.Home {
	return mqttbridge.Home{
		ID: homeKey1().id, Key: homeKey1().spki, Broker: true,
		Actions: append([]mqttbridge.Action{{Name: "door", Label: "Door", Confirm: mqttbridge.ConfirmHold, Ack: true, Life: 10_000}}, more...),
	}
}

// press signs a command as a page would.
func press(device, action string) mqttbridge.Signed {
	return pressID(mqttbridge.NewID(), device, action)
}

func pressID(id, device, action string) mqttbridge.Signed {
	now := time.Now()
	s, err := mqttbridge.Sign(mqttbridge.Envelope{
		ID: id, Home: homeKey1().id, Action: action, Device: device, Issued: now, NotAfter: now.Add(10 * time.Second), Challenge: "challenge-1",
	}, deviceKey().private)
	if err != nil {
		panic(err)
	}
	return s
}

func idOf(s mqttbridge.Signed) string {
	e, err := s.Envelope()
	if err != nil {
		panic(err)
	}
	return e.ID
}

// send presses and expects no refusal.
func (w *world) send(device string, s mqttbridge.Signed) mqttbridge.Status {
	w.t.Helper()
	status, err := w.d.Send(w.t.Context(), device, "kitchen", s)
	if err != nil {
		w.t.Fatalf("Send: %v", err)
	}
	return status
}

// sendRefused presses and expects a refusal with that code.
func (w *world) sendRefused(device, home string, s mqttbridge.Signed, code mqttbridge.Code) mqttbridge.Status {
	w.t.Helper()
	status, err := w.d.Send(w.t.Context(), device, home, s)
	w.isRefusal(err, code)
	if status.State != mqttbridge.Refused || !status.Final || status.Code != code || status.Reason == "" {
		w.t.Errorf("Send returned status %+v; want refused as %q", status, code)
	}
	return status
}

func (w *world) isRefusal(err error, code mqttbridge.Code) {
	w.t.Helper()
	if r, ok := errors.AsType[*Refusal](err); !ok || r.Code != code || r.Reason == "" {
		w.t.Errorf("got error %#v (%v); want a refusal %q with a reason", err, err, code)
	}
}

// is expects a command to be in a state.
func (w *world) is(device, id string, state mqttbridge.State) mqttbridge.Status {
	w.t.Helper()
	synctest.Wait()
	s, ok := w.d.Command(device, id)
	if !ok || s.State != state {
		w.t.Errorf("command %s is %q (found %v); want %q", id, s.State, ok, state)
	}
	return s
}

// obedient answers everything as a good home does.
func obedient(f mqttbridge.Frame) []mqttbridge.Frame {
	switch f.Type {
	case mqttbridge.FrameChallenge:
		return []mqttbridge.Frame{{Type: f.Type, Seq: f.Seq, Challenge: "challenge-1", LifeMS: 10_000}}
	case mqttbridge.FrameKey:
		return []mqttbridge.Frame{{Type: f.Type, Seq: f.Seq, Trust: mqttbridge.TrustPending}}
	case mqttbridge.FrameCommand:
		return []mqttbridge.Frame{
			{Type: mqttbridge.FrameStatus, Seq: f.Seq, Status: &mqttbridge.Status{ID: idOf(*f.Command), State: mqttbridge.Delivered}},
			{Type: mqttbridge.FrameStatus, Status: &mqttbridge.Status{ID: idOf(*f.Command), State: mqttbridge.Done}},
		}
	}
	return nil
}

// events collects what a watch tells until now.
type eyes struct {
	mu     sync.Mutex
	list   []mqttbridge.Event
	closed bool
	cancel context.CancelFunc
}

func (w *world) look(device string) *eyes {
	ctx, cancel := context.WithCancel(w.ctx)
	e := &eyes{cancel: cancel}
	ch := w.d.Watch(ctx, device)
	w.wg.Go(func() {
		for ev := range ch {
			e.mu.Lock()
			e.list = append(e.list, ev)
			e.mu.Unlock()
		}
		e.mu.Lock()
		e.closed = true
		e.mu.Unlock()
	})
	return e
}

// seen returns the events since the last call.
func (e *eyes) seen() []mqttbridge.Event {
	synctest.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	list := e.list
	e.list = nil
	return list
}

func (e *eyes) ended() bool {
	synctest.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closed
}

// brokenList is a ledger that cannot be read.
type brokenList struct{ *memLedger }

func (brokenList) List(context.Context, string) (map[string][]byte, error) { return nil, errFull }

func contextWithCancel(w *world) (context.Context, context.CancelFunc) {
	return context.WithCancel(w.ctx)
}
