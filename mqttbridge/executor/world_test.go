package executor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

var (
	errOffline   = errors.New("not connected")
	errUncertain = errors.New("lost in flight")
)

// A message is one that was published at home.
type message struct {
	topic, payload string
	retain         bool
	at             time.Time
}

// fakeBroker is a home broker that remembers what it took.
type fakeBroker struct {
	mu      sync.Mutex
	away    bool
	took    []message
	subs    map[int]subscription
	next    int
	publish func(topic, payload string) error // nil, or decides how a Publish ends; errOffline means that it was not taken
	hang    func(left time.Duration)          // nil, or Publish never gets an answer; left is how long its context lasts
}

type subscription struct {
	filter string
	f      func(string, []byte, bool)
}

func (b *fakeBroker) Publish(ctx context.Context, topic string, payload []byte, qos byte, retain bool) error {
	b.mu.Lock()
	away, decide, hang := b.away, b.publish, b.hang
	b.mu.Unlock()
	if hang != nil {
		end, _ := ctx.Deadline()
		hang(time.Until(end))
		<-ctx.Done()
		return errUncertain
	}
	if away {
		return errOffline
	}
	if err := ctx.Err(); err != nil {
		return errors.Join(errOffline, err)
	}
	if qos == 0 {
		panic("QoS 0: nobody would know")
	}
	var err error
	if decide != nil {
		err = decide(topic, string(payload))
	}
	if errors.Is(err, errOffline) {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.took = append(b.took, message{topic, string(payload), retain, time.Now()})
	return err
}

func (b *fakeBroker) Subscribe(filter string, f func(string, []byte, bool)) func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subs == nil {
		b.subs = make(map[int]subscription)
	}
	b.next++
	n := b.next
	b.subs[n] = subscription{filter, f}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.subs, n)
	}
}

func (b *fakeBroker) Connected() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.away
}

func (b *fakeBroker) setAway(away bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = away
}

func (b *fakeBroker) decide(f func(topic, payload string) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.publish = f
}

// say lets a device publish.
func (b *fakeBroker) say(topic, payload string, retained bool) {
	b.mu.Lock()
	var to []subscription
	for _, s := range b.subs {
		if mqttbridge.Match(s.filter, topic) {
			to = append(to, s)
		}
	}
	b.mu.Unlock()
	for _, s := range to {
		s.f(topic, []byte(payload), retained)
	}
}

// at returns what was published at a topic.
func (b *fakeBroker) at(topic string) (list []message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.took {
		if m.topic == topic {
			list = append(list, m)
		}
	}
	return list
}

func (b *fakeBroker) payloads(topic string) (list []string) {
	for _, m := range b.at(topic) {
		list = append(list, m.payload)
	}
	return list
}

// phone is a device with its signing key.
type phone struct {
	name string
	key  *ecdsa.PrivateKey
	spki []byte
}

func newPhone(name string) *phone {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		panic(err)
	}
	return &phone{name, key, spki}
}

// world is a home with one executor and the relay's end of its streams. It
// lives in a bubble: all waiting is virtual.
type world struct {
	t      *testing.T
	dir    string
	broker *fakeBroker
	acts   []Action
	wall   func() time.Time // the home's wall clock; nil = the bubble's
	phones map[string]*phone

	e     *Executor
	relay *relay
	stop  func() // ends Run and waits
	tune  func(*Executor)
}

const garage = "cmnd/garage/POWER"

func testActions() []Action {
	return []Action{
		{Name: "garage", Topic: garage, Payload: "ON", Confirm: mqttbridge.ConfirmNone},
		{Name: "gate", Topic: "cmnd/gate/POWER", Payload: "ON", Confirm: mqttbridge.ConfirmPIN},
		{Name: "door", Topic: "cmnd/door/POWER", Payload: "ON", Confirm: mqttbridge.ConfirmPIN},
		{Name: "lamp", Topic: "lamp/set", Values: map[string]string{"on": "1", "off": "0"}, Who: []string{"anna-*", "bob"}, State: "lamp/state", Confirm: mqttbridge.ConfirmNone},
		{Name: "blind", Topic: "blind/set", Payload: "OPEN", Ack: &Ack{Topic: "blind/state", Match: "open", Timeout: 20 * time.Second}, State: "blind/state", Confirm: mqttbridge.ConfirmNone},
		{Name: "buzzer", Topic: "buzzer/set", Payload: "ON", Pulse: &Pulse{After: time.Second, Payload: "OFF"}, Confirm: mqttbridge.ConfirmNone},
		{Name: "bell", Topic: "bell/set", Payload: "RING", Rate: "2/m", Confirm: mqttbridge.ConfirmNone},
		{Name: "night", Topic: "night/set", Payload: "GO", Hours: "22:00-06:00", Confirm: mqttbridge.ConfirmNone},
	}
}

// bubble runs a test in virtual time, in a home with testActions and the
// trusted phones anna-phone and bob.
func bubble(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer func() { w.end() }() // also after Fatal: what a bubble began has to end in it
		w.trust("anna-phone")
		w.trust("bob")
		f(w)
	})
}

func newWorld(t *testing.T) *world {
	return &world{t: t, dir: tempDir(t), broker: &fakeBroker{}, acts: testActions(), phones: make(map[string]*phone)}
}

// tempDir is in memory where there is such a place: nothing here loses power,
// and most of the time of these tests would be fsync.
func tempDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "sallyport-executor-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// open makes an executor on the directory.
func (w *world) open() (*Executor, error) {
	e, err := New(Config{
		Dir: w.dir, Actions: w.acts, Broker: w.broker, Agent: "kitchen", Now: w.wall,
		Offline: func(err error) bool { return errors.Is(err, errOffline) },
	})
	if err == nil {
		e.pins.cost = 2
		if w.tune != nil {
			w.tune(e)
		}
	}
	return e, err
}

func (w *world) start() {
	w.t.Helper()
	e, err := w.open()
	if err != nil {
		w.t.Fatal(err)
	}
	w.e = e
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { e.Run(ctx) })
	w.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	w.relay = w.connect()
}

// end ends executor and relay in good order.
func (w *world) end() {
	w.t.Helper()
	w.stop()
	if err := w.e.Close(); err != nil {
		w.t.Error("close:", err)
	}
	w.relay.close()
}

func (w *world) restart() {
	w.t.Helper()
	w.end()
	w.start()
}

// crash takes the files away from the executor, as the end of its process
// does. What still runs in it can write nothing any more.
func (w *world) crash() {
	w.e.seen.close()
	w.e.audit.close()
	dead := func(string, []byte, os.FileMode) error { return errors.New("crashed") }
	w.writePINs(dead)
	w.e.keys.mu.Lock()
	w.e.keys.dir.write = dead
	w.e.keys.mu.Unlock()
}

// writePINs replaces how the file of PINs is written.
func (w *world) writePINs(f func(string, []byte, os.FileMode) error) {
	defer w.e.pins.lock()()
	w.e.pins.dir.write = f
}

func (w *world) phone(name string) *phone {
	if w.phones[name] == nil {
		w.phones[name] = newPhone(name)
	}
	return w.phones[name]
}

// trust offers a phone's key and trusts it.
func (w *world) trust(name string) *phone {
	w.t.Helper()
	p := w.phone(name)
	w.relay.ask(mqttbridge.Frame{Type: mqttbridge.FrameKey, Device: name, Key: p.spki})
	if err := w.e.Trust(name, ""); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// challenge asks for one as the relay does for a device.
func (w *world) challenge(device, action string) string {
	w.t.Helper()
	f := w.relay.ask(mqttbridge.Frame{Type: mqttbridge.FrameChallenge, Device: device, Action: action})
	if f.Challenge == "" {
		w.t.Fatalf("no challenge for %s, %s: %+v", device, action, f.Status)
	}
	return f.Challenge
}

// envelope fills in a press.
func (w *world) envelope(device, action, challenge string) mqttbridge.Envelope {
	return mqttbridge.Envelope{
		ID: mqttbridge.NewID(), Home: w.e.id, Action: action, Device: device,
		Issued: time.Now(), NotAfter: time.Now().Add(10 * time.Second), Challenge: challenge,
	}
}

func (w *world) sign(p *phone, env mqttbridge.Envelope) *mqttbridge.Signed {
	w.t.Helper()
	s, err := mqttbridge.Sign(env, p.key)
	if err != nil {
		w.t.Fatal(err)
	}
	return &s
}

// seal puts a PIN into an envelope.
func (w *world) seal(env *mqttbridge.Envelope, pin string) {
	w.t.Helper()
	var err error
	if env.PIN, err = mqttbridge.SealPIN(w.e.spki, pin, *env); err != nil {
		w.t.Fatal(err)
	}
}

// press does all that an honest press does, and returns its final state.
func (w *world) press(device, action string, change ...func(*mqttbridge.Envelope)) mqttbridge.Status {
	w.t.Helper()
	env := w.envelope(device, action, w.challenge(device, action))
	for _, c := range change {
		c(&env)
	}
	return w.relay.final(w.command(device, w.sign(w.phone(device), env)))
}

func (w *world) withPIN(pin string) func(*mqttbridge.Envelope) {
	return func(env *mqttbridge.Envelope) { w.seal(env, pin) }
}

func withValue(v string) func(*mqttbridge.Envelope) {
	return func(env *mqttbridge.Envelope) { env.Value = v }
}

// command sends a signed command as the relay would, and returns the number of
// its frame.
func (w *world) command(device string, s *mqttbridge.Signed) uint64 {
	return w.relay.send(mqttbridge.Frame{Type: mqttbridge.FrameCommand, Device: device, Command: s})
}

func (w *world) published(topic string, want ...string) {
	w.t.Helper()
	synctest.Wait()
	if got := w.broker.payloads(topic); !slices.Equal(got, want) {
		w.t.Errorf("published at %s: %q, want %q", topic, got, want)
	}
	for _, m := range w.broker.at(topic) {
		if m.retain {
			w.t.Errorf("retained message at %s", topic)
		}
	}
}

func wantState(t *testing.T, s mqttbridge.Status, state mqttbridge.State, code mqttbridge.Code) {
	t.Helper()
	if s.State != state || s.Code != code {
		t.Errorf("state %s, code %q (%s); want %s, %q", s.State, s.Code, s.Reason, state, code)
	}
	if s.State == mqttbridge.Refused && s.Reason == "" {
		t.Error("refused without a word to people")
	}
}

// relay is the other end of a stream. It does what it wants.
type relay struct {
	w    *world
	conn net.Conn
	done chan struct{} // reader ended
	err  chan error    // of ServeRelay

	mu       sync.Mutex
	seq      uint64
	homes    []mqttbridge.Home
	replies  map[uint64][]mqttbridge.Frame
	statuses []mqttbridge.Status
}

func (w *world) connect() *relay {
	ours, theirs := net.Pipe()
	r := &relay{w: w, conn: ours, done: make(chan struct{}), err: make(chan error, 1), replies: make(map[uint64][]mqttbridge.Frame)}
	e := w.e
	go func() { r.err <- e.ServeRelay(context.Background(), theirs) }()
	go r.read()
	synctest.Wait()
	return r
}

func (r *relay) read() {
	defer close(r.done)
	for {
		f, err := mqttbridge.ReadFrame(r.conn)
		if err != nil {
			return
		}
		r.mu.Lock()
		if f.Type == mqttbridge.FrameHome {
			r.homes = append(r.homes, *f.Home)
		}
		if f.Type == mqttbridge.FrameStatus {
			r.statuses = append(r.statuses, *f.Status)
		}
		if f.Seq != 0 {
			r.replies[f.Seq] = append(r.replies[f.Seq], f)
		}
		r.mu.Unlock()
	}
}

func (r *relay) close() error {
	r.conn.Close()
	<-r.done
	return <-r.err
}

func (r *relay) send(f mqttbridge.Frame) uint64 {
	r.mu.Lock()
	r.seq++
	f.Seq = r.seq
	r.mu.Unlock()
	mqttbridge.WriteFrame(r.conn, f)
	return f.Seq
}

// ask sends a frame and returns its first reply.
func (r *relay) ask(f mqttbridge.Frame) mqttbridge.Frame {
	r.w.t.Helper()
	return r.reply(r.send(f), func(mqttbridge.Frame) bool { return true })
}

// reply waits (virtual) for a reply that fits.
func (r *relay) reply(seq uint64, fits func(mqttbridge.Frame) bool) mqttbridge.Frame {
	r.w.t.Helper()
	for range 100_000 {
		synctest.Wait()
		r.mu.Lock()
		i := slices.IndexFunc(r.replies[seq], fits)
		if i >= 0 {
			defer r.mu.Unlock()
			return r.replies[seq][i]
		}
		r.mu.Unlock()
		time.Sleep(10 * time.Millisecond) // virtual
	}
	r.w.t.Fatalf("no reply to frame %d: %+v", seq, r.replies[seq])
	panic("unreachable")
}

// final waits for the final state that answers a frame.
func (r *relay) final(seq uint64) mqttbridge.Status {
	r.w.t.Helper()
	return *r.reply(seq, func(f mqttbridge.Frame) bool { return f.Status != nil && f.Status.Final }).Status
}

func (r *relay) query(id string) mqttbridge.Status {
	r.w.t.Helper()
	return *r.ask(mqttbridge.Frame{Type: mqttbridge.FrameQuery, IDs: []string{id}}).Status
}

// states returns the states that were told of an id, in order.
func (r *relay) states(id string) (list []mqttbridge.State) {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.statuses {
		if s.ID == id {
			list = append(list, s.State)
		}
	}
	return list
}

func (r *relay) home() mqttbridge.Home {
	r.w.t.Helper()
	time.Sleep(homeEvery + time.Millisecond) // virtual
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.homes) == 0 {
		r.w.t.Fatal("no home was told")
	}
	return r.homes[len(r.homes)-1]
}

func (r *relay) action(name string) mqttbridge.Action {
	r.w.t.Helper()
	for _, a := range r.home().Actions {
		if a.Name == name {
			return a
		}
	}
	r.w.t.Fatalf("no action %q", name)
	panic("unreachable")
}
