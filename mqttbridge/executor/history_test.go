package executor

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// One home lives through many histories: random presses by two devices, a
// relay that replays, edits, delays, duplicates and asks, a broker that comes
// and goes, disks that fill up, clocks that jump, crashes and restarts. An
// oracle that knows what was signed, and when and by which process the
// challenge was made, holds every message at the home broker against that.
const historiesPerHome = 50

func histories() int {
	switch {
	case raceEnabled || testing.Short():
		return 300
	case os.Getenv("SALLYPORT_LARGE") == "1":
		return 20_000
	case os.Getenv("CI") == "true":
		return 5_000
	}
	return 1_000
}

func TestHistories(t *testing.T) {
	seed := rand.Uint64()
	total := &tally{}
	for home := range histories() / historiesPerHome {
		rng := rand.New(rand.NewPCG(seed, uint64(home)))
		synctest.Test(t, func(t *testing.T) {
			runHome(t, rng, total)
		})
		if t.Failed() {
			t.Fatalf("home %d of seed %d", home, seed)
		}
	}
	t.Logf("%d histories: %d commands, %d published, %d forged, %d replays, %d crashes, %d states: %v", total.histories, total.commands, total.published, total.forged, total.replays, total.crashes, len(total.finals), total.finals)
	// A test in which nothing happens proves nothing.
	if total.published < total.commands/10 || total.forged == 0 || total.replays == 0 || total.crashes == 0 || len(total.finals) < 6 {
		t.Errorf("too little happened: %+v", total)
	}
}

type tally struct {
	histories, commands, published, forged, replays, crashes int
	finals                                                   map[mqttbridge.State]int
}

// press is one command in the oracle's books.
type press struct {
	id     string
	device string
	action string
	value  string
	signed *mqttbridge.Signed
	honest bool // everything in it is as it should be
	asked  *asked
}

// asked is one challenge in the oracle's books.
type asked struct {
	value          string
	device, action string
	at             time.Time // the bubble's clock is the monotonic one
	epoch          int       // process
	used           *press    // published
}

type homeUnderTest struct {
	*world
	rng  *rand.Rand
	jump atomic.Int64 // of the wall clock
	// Disks without room.
	fullSeen, fullLog atomic.Bool

	presses []*press
	asked   []*asked
	crashes []func() // what is left of dead processes

	mu      sync.Mutex // guards what follows, and asked.used: the oracle is asked at any time
	luck    *rand.Rand // of the broker
	epoch   int
	trusted map[string]bool
	byValue map[string]*press // topic + payload
	byID    map[string]int    // how often an id was published
}

func historyActions() []Action {
	values := make(map[string]string)
	for i := range maxValues {
		values[fmt.Sprint("v", i)] = fmt.Sprint("p", i)
	}
	return []Action{
		{Name: "plain", Topic: "plain/set", Values: values, Confirm: mqttbridge.ConfirmNone},
		{Name: "acked", Topic: "acked/set", Values: values, Ack: &Ack{Topic: "acked/state", Match: "ok", Timeout: 5 * time.Second}, Life: 4 * time.Second, Confirm: mqttbridge.ConfirmNone},
		{Name: "annas", Topic: "annas/set", Values: values, Who: []string{"anna"}, Rate: "3/10s", Confirm: mqttbridge.ConfirmPIN},
	}
}

func runHome(t *testing.T, rng *rand.Rand, total *tally) {
	h := &homeUnderTest{world: newWorld(t), rng: rng, luck: rand.New(rand.NewPCG(rng.Uint64(), 0)), trusted: make(map[string]bool), byValue: make(map[string]*press), byID: make(map[string]int)}
	h.acts = historyActions()
	h.wall = func() time.Time { return time.Now().Add(time.Duration(h.jump.Load())) }
	h.tune = h.makeDisksFail
	h.start()
	defer func() {
		for _, f := range h.crashes {
			f()
		}
		h.end()
	}()
	for _, device := range []string{"anna", "bob"} {
		h.trust(device)
		h.setTrusted(device, true)
	}
	if err := h.e.SetPIN("", "1234"); err != nil {
		t.Fatal(err)
	}
	h.broker.decide(h.oracle)
	for range historiesPerHome {
		h.history(total)
		total.histories++
	}
}

func (h *homeUnderTest) makeDisksFail(e *Executor) {
	e.seen.update = func(f func(tx) error) error {
		if h.fullSeen.Load() {
			return errFull
		}
		return e.seen.db.Update(f)
	}
	e.audit.file = &brokenFile{logFile: e.audit.file, write: func() error {
		if h.fullLog.Load() {
			return errFull
		}
		return nil
	}}
}

// oracle sees every message before the broker takes it.
func (h *homeUnderTest) oracle(topic, payload string) (err error) {
	if topic == AlertTopic {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.byValue[topic+payload]
	switch {
	case p == nil:
		h.t.Errorf("published %s %s, which nobody pressed", topic, payload)
		return nil
	case h.byID[p.id] > 0:
		h.t.Errorf("%s came twice", p.id)
	case !p.honest:
		h.t.Errorf("%s is forged: %+v", p.id, p)
	case p.asked.used != nil:
		h.t.Errorf("%s and %s have the same challenge", p.id, p.asked.used.id)
	case p.asked.device != p.device || p.asked.action != p.action:
		h.t.Errorf("%s has the challenge of %s for %s", p.id, p.asked.device, p.asked.action)
	case p.asked.epoch != h.epoch:
		h.t.Errorf("%s has a challenge of an earlier process", p.id)
	case time.Since(p.asked.at) > h.e.set.Load().byName[p.action].Life:
		h.t.Errorf("%s is %v late", p.id, time.Since(p.asked.at))
	case !h.trusted[p.device]:
		h.t.Errorf("%s is of %s, whom nobody trusts", p.id, p.device)
	}
	switch h.luck.IntN(12) {
	case 0:
		return errOffline // not taken
	case 1:
		err = errUncertain
	}
	h.byID[p.id]++
	p.asked.used = p
	return err
}

func (h *homeUnderTest) history(total *tally) {
	h.presses, h.asked = nil, nil
	h.mu.Lock()
	clear(h.byValue)
	h.mu.Unlock()
	for range 4 + h.rng.IntN(12) {
		h.step(total)
	}
	h.settle(total)
}

func (h *homeUnderTest) step(total *tally) {
	switch h.rng.IntN(24) {
	case 0, 1, 2, 3, 4, 5, 6, 7:
		p := h.newPress()
		if p == nil {
			return
		}
		total.commands++
		if !p.honest {
			total.forged++
		}
		if h.rng.IntN(8) > 0 {
			h.deliver(p)
		}
	case 8, 9, 10, 11: // a replay, or the late delivery of what was held back
		if len(h.presses) > 0 {
			total.replays++
			h.deliver(h.presses[h.rng.IntN(len(h.presses))])
		}
	case 12, 13:
		time.Sleep(time.Duration(h.rng.IntN(12_000)) * time.Millisecond) // virtual
	case 14:
		h.jump.Store(h.rng.Int64N(1<<62) - 1<<61)
	case 15:
		h.broker.setAway(h.rng.IntN(2) == 0)
	case 16, 17:
		h.broker.say("acked/state", "ok", h.rng.IntN(3) == 0)
	case 18:
		if len(h.presses) > 0 {
			h.relay.query(h.presses[h.rng.IntN(len(h.presses))].id)
		}
	case 19:
		if h.rng.IntN(4) > 0 {
			return // dear, and there are many histories
		}
		h.end() // what is on its way may still come
		h.nextEpoch()
		h.start()
	case 20:
		if h.rng.IntN(4) > 0 {
			return
		}
		total.crashes++
		h.die()
	case 21:
		h.fullSeen.Store(h.rng.IntN(2) == 0)
	case 22:
		h.fullLog.Store(h.rng.IntN(2) == 0)
	case 23:
		device := []string{"anna", "bob"}[h.rng.IntN(2)]
		if h.trusted[device] && h.rng.IntN(3) == 0 {
			synctest.Wait() // what runs already may come
			if err := h.e.Untrust(device); err != nil {
				h.t.Error(err)
			}
			h.setTrusted(device, false)
		} else {
			h.setTrusted(device, true)
			h.trust(device)
		}
	}
	if h.rng.IntN(3) > 0 {
		synctest.Wait()
	}
}

// die ends the process without a word and starts the next one.
func (h *homeUnderTest) die() {
	synctest.Wait()
	h.crash()
	old, stop := h.relay, h.stop
	h.crashes = append(h.crashes, func() { stop(); old.close() })
	h.nextEpoch()
	h.start()
}

func (h *homeUnderTest) nextEpoch() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.epoch++
}

func (h *homeUnderTest) setTrusted(device string, yes bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trusted[device] = yes
}

// newPress asks for a challenge and signs something with it.
func (h *homeUnderTest) newPress() *press {
	device := []string{"anna", "bob"}[h.rng.IntN(2)]
	action := []string{"plain", "acked", "annas"}[h.rng.IntN(3)]
	if h.rng.IntN(3) == 0 && len(h.asked) > 0 { // one that is used, old or another's
		a := h.asked[h.rng.IntN(len(h.asked))]
		return h.sign1(device, action, a)
	}
	f := h.relay.ask(mqttbridge.Frame{Type: mqttbridge.FrameChallenge, Device: device, Action: action})
	if f.Challenge == "" {
		if action != "annas" || device == "anna" {
			h.t.Errorf("no challenge: %+v", f.Status)
		}
		return nil
	}
	a := &asked{value: f.Challenge, device: device, action: action, at: time.Now(), epoch: h.epoch}
	h.asked = append(h.asked, a)
	return h.sign1(device, action, a)
}

func (h *homeUnderTest) sign1(device, action string, a *asked) *press {
	value := fmt.Sprint("v", len(h.presses))
	p := &press{id: mqttbridge.NewID(), device: device, action: action, value: value, asked: a, honest: true}
	env := h.envelope(device, action, a.value)
	env.ID, env.Value = p.id, value
	signer := h.phone(device)
	if h.rng.IntN(10) == 0 && len(h.presses) > 0 { // another press under an id that may have been seen
		p.id = h.presses[h.rng.IntN(len(h.presses))].id
		env.ID = p.id
	}
	if action == "annas" {
		pin := "1234"
		if h.rng.IntN(10) == 0 {
			pin, p.honest = "0000", false
		}
		h.seal(&env, pin)
	}
	forge := h.rng.IntN(12)
	switch forge {
	case 0:
		signer, p.honest = h.phone("eve"), false
	case 1:
		env.Home, p.honest = h.phoneID(device), false
	}
	s := h.world.sign(signer, env)
	switch forge {
	case 2:
		s.Body[h.rng.IntN(len(s.Body))] ^= 1 << h.rng.IntN(8)
		p.honest = false
	case 3:
		s.Signature[h.rng.IntN(len(s.Signature))] ^= 1 << h.rng.IntN(8)
		p.honest = false
	case 4:
		s.Key, p.honest = h.phoneID("eve"), false
	}
	p.signed = s
	h.presses = append(h.presses, p)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.byValue[action+"/setp"+value[1:]] = p
	return p
}

func (h *homeUnderTest) phoneID(name string) string {
	id, err := mqttbridge.KeyID(h.phone(name).spki)
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}

// deliver hands a command over, now and then under another device's name or
// several times.
func (h *homeUnderTest) deliver(p *press) {
	device := p.device
	if h.rng.IntN(15) == 0 {
		device = []string{"anna", "bob", "eve"}[h.rng.IntN(3)]
	}
	for range 1 + h.rng.IntN(3)/2 {
		h.command(device, p.signed)
	}
}

// settle lets everything end, and asks what became of every id.
func (h *homeUnderTest) settle(total *tally) {
	time.Sleep(30 * time.Second) // virtual
	synctest.Wait()
	h.broker.setAway(false)
	h.fullSeen.Store(false)
	h.fullLog.Store(false)
	h.e.pins.unlock("anna")
	for _, device := range []string{"anna", "bob"} {
		h.setTrusted(device, true)
		h.trust(device)
	}
	synctest.Wait()
	h.mu.Lock()
	ran := maps.Clone(h.byID)
	clear(h.byID)
	h.mu.Unlock()
	for _, n := range ran {
		total.published += n
	}
	for _, p := range h.presses {
		s := h.relay.query(p.id)
		n := ran[p.id]
		if total.finals == nil {
			total.finals = make(map[mqttbridge.State]int)
		}
		total.finals[s.State]++
		good := s.Final
		switch s.State {
		case mqttbridge.Delivered, mqttbridge.Done, mqttbridge.Unconfirmed:
			good = good && n == 1
		case mqttbridge.Refused, mqttbridge.Expired:
			good = good && n == 0
		case mqttbridge.Unknown:
			good = good && n <= 1
		default:
			good = false
		}
		if !good {
			h.t.Errorf("%s (%s) was published %d times and ended as %+v", p.id, p.action, n, s)
		}
	}
}
