package panel

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A fakeHome is a home that judges as a real one does: signatures, challenges
// and PINs are checked with the code that homes use.
type fakeHome struct {
	mqttbridge.Home
	key        *ecdh.PrivateKey
	trusted    map[string][]byte // key ID → SPKI
	pending    map[string][]byte
	challenges map[string]granted
	pin        string
	tries      int
	hold       bool          // commands stay on their way
	life       time.Duration // of challenges
	ran        []mqttbridge.Envelope
	pins       []string
}

type granted struct {
	device, action string
	at             time.Time
}

// A fakeRelay is a Backend in front of fake homes.
type fakeRelay struct {
	mu         sync.Mutex // guards all below
	homes      map[string]*fakeHome
	watchers   map[chan mqttbridge.Event]string
	statuses   map[string]mqttbridge.Status
	bodies     map[string][]byte
	sends      int
	challenges int
	swallow    bool // takes commands and does not know of them later
	fail       error
	changed    chan struct{} // closed and made anew at each change
}

func newFake(t *testing.T) *fakeRelay {
	t.Helper()
	f := &fakeRelay{
		homes: map[string]*fakeHome{}, watchers: map[chan mqttbridge.Event]string{}, statuses: map[string]mqttbridge.Status{},
		bodies: map[string][]byte{}, changed: make(chan struct{}),
	}
	f.add(t, "kitchen",
		mqttbridge.Action{Name: "garage", Label: "Garage door", Icon: "garage", Confirm: mqttbridge.ConfirmPIN, Ack: true},
		mqttbridge.Action{Name: "gate", Label: "Gate", Icon: "gate", Confirm: mqttbridge.ConfirmHold, Ack: true},
		mqttbridge.Action{Name: "lamp", Label: "Hall light", Icon: "light", Confirm: mqttbridge.ConfirmNone},
	)
	return f
}

func (f *fakeRelay) add(t *testing.T, name string, actions ...mqttbridge.Action) *fakeHome {
	t.Helper()
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	id, err := mqttbridge.KeyID(spki)
	if err != nil {
		t.Fatal(err)
	}
	h := &fakeHome{
		Home: mqttbridge.Home{Name: name, ID: id, Key: spki, Online: true, Broker: true, Actions: actions}, key: key,
		trusted: map[string][]byte{}, pending: map[string][]byte{}, challenges: map[string]granted{}, pin: "2468", life: 10 * time.Second,
	}
	f.homes[name] = h
	return h
}

// do changes something and tells whoever watches.
func (f *fakeRelay) do(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	f.notify()
}

func (f *fakeRelay) notify() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// alter changes a home and tells the pages.
func (f *fakeRelay) alter(name string, change func(h *fakeHome)) {
	f.do(func() {
		h := f.homes[name]
		h.Actions = slices.Clone(h.Actions) // pages still read the old ones
		change(h)
		f.publish("", mqttbridge.Event{Home: new(h.Home)})
	})
}

// publish tells the pages of a device, or of all.
func (f *fakeRelay) publish(device string, ev mqttbridge.Event) {
	for c, of := range f.watchers {
		if device == "" || of == device {
			c <- ev
		}
	}
}

// until waits for a condition.
func (f *fakeRelay) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.After(20 * time.Second)
	for {
		f.mu.Lock()
		good, changed := ok(), f.changed
		f.mu.Unlock()
		if good {
			return
		}
		select {
		case <-changed:
		case <-end:
			t.Fatalf("never: %s", what)
		}
	}
}

func look[T any](f *fakeRelay, at func() T) T {
	f.mu.Lock()
	defer f.mu.Unlock()
	return at()
}

func (f *fakeRelay) Homes(string) []mqttbridge.Home {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []mqttbridge.Home
	for _, name := range slices.Sorted(maps.Keys(f.homes)) {
		out = append(out, f.homes[name].Home)
	}
	return out
}

func refusal(code mqttbridge.Code, reason string) error {
	return &mqttbridge.Refusal{Code: code, Reason: reason}
}

func (f *fakeRelay) online(home string) (*fakeHome, error) {
	if f.fail != nil {
		return nil, f.fail
	}
	h := f.homes[home]
	if h == nil {
		return nil, refusal(mqttbridge.CodeNoAction, "There is no such home.")
	}
	if !h.Online {
		return nil, refusal(mqttbridge.CodeOffline, "The home is not connected.")
	}
	return h, nil
}

func (f *fakeRelay) Challenge(_ context.Context, device, home, action string) (mqttbridge.Challenge, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h, err := f.online(home)
	if err != nil {
		return mqttbridge.Challenge{}, err
	}
	f.challenges++
	f.notify()
	c := rand.Text()
	h.challenges[c] = granted{device, action, time.Now()}
	return mqttbridge.Challenge{Value: c, Life: h.life}, nil
}

func (f *fakeRelay) OfferKey(_ context.Context, _, home string, spki []byte) (mqttbridge.Trust, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h, err := f.online(home)
	if err != nil {
		return "", err
	}
	id, err := mqttbridge.KeyID(spki)
	if err != nil {
		return "", err
	}
	defer f.notify()
	if h.trusted[id] != nil {
		return mqttbridge.TrustYes, nil
	}
	if len(h.trusted) > 0 {
		return mqttbridge.TrustNo, nil
	}
	h.pending[id] = bytes.Clone(spki)
	return mqttbridge.TrustPending, nil
}

// trust is what `sallyport agent trust` does.
func (h *fakeHome) trust() { maps.Copy(h.trusted, h.pending); clear(h.pending) }

func (f *fakeRelay) Send(_ context.Context, device, home string, s mqttbridge.Signed) (mqttbridge.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sends++
	defer f.notify()
	e, err := s.Envelope()
	if err != nil {
		return mqttbridge.Status{}, refusal(mqttbridge.CodeMalformed, err.Error())
	}
	if old, ok := f.bodies[e.ID]; ok {
		if !bytes.Equal(old, s.Body) {
			return mqttbridge.Status{}, refusal(mqttbridge.CodeDuplicate, "Another command had this id.")
		}
		return f.statuses[e.ID], nil
	}
	h, err := f.online(home)
	if err != nil {
		return mqttbridge.Status{}, err
	}
	st := mqttbridge.Status{ID: e.ID, Home: home, Action: e.Action, Device: device, State: mqttbridge.Sent, Created: time.Now(), At: time.Now()}
	if f.swallow {
		return st, nil
	}
	f.statuses[e.ID], f.bodies[e.ID] = st, s.Body
	if !h.hold {
		f.judge(h, e, s)
	}
	return st, nil
}

// judge is the home's part.
func (f *fakeRelay) judge(h *fakeHome, e mqttbridge.Envelope, s mqttbridge.Signed) {
	st := f.statuses[e.ID]
	refuse := func(code mqttbridge.Code, reason string) {
		st.State, st.Final, st.Code, st.Reason = mqttbridge.Refused, true, code, reason
	}
	g, known := h.challenges[e.Challenge]
	i := slices.IndexFunc(h.Actions, func(a mqttbridge.Action) bool { return a.Name == e.Action })
	spki := h.trusted[s.Key]
	switch {
	case spki == nil:
		refuse(mqttbridge.CodeUntrusted, "The home does not trust this browser yet.")
	case e.Home != h.ID || i < 0 || h.Actions[i].Values == nil && e.Value != "" || h.Actions[i].Values != nil && !slices.Contains(h.Actions[i].Values, e.Value):
		refuse(mqttbridge.CodeMalformed, "The command is not for this home.")
	case !known || g.device != e.Device || g.action != e.Action:
		refuse(mqttbridge.CodeChallenge, "The command was used before.")
	case time.Since(g.at) > h.life:
		st.State, st.Final = mqttbridge.Expired, true
	default:
		delete(h.challenges, e.Challenge)
		if _, err := s.Verify(spki); err != nil {
			refuse(mqttbridge.CodeSignature, "The signature does not fit.")
			break
		}
		f.run(h, h.Actions[i], e, &st, refuse)
	}
	f.statuses[e.ID] = st
	f.publish(st.Device, mqttbridge.Event{Status: new(st)})
}

func (f *fakeRelay) run(h *fakeHome, a mqttbridge.Action, e mqttbridge.Envelope, st *mqttbridge.Status, refuse func(mqttbridge.Code, string)) {
	if a.Confirm == mqttbridge.ConfirmPIN {
		pin, err := mqttbridge.OpenPIN(h.key, e)
		h.pins = append(h.pins, pin)
		switch {
		case err != nil:
			refuse(mqttbridge.CodePINNeeded, "No PIN came: "+err.Error())
			return
		case h.tries >= 5:
			refuse(mqttbridge.CodeLocked, "Too many wrong PINs. It is locked until 12:20.")
			return
		case pin != h.pin:
			h.tries++
			refuse(mqttbridge.CodePINWrong, "The PIN is wrong.")
			if st.AttemptsLeft = 5 - h.tries; st.AttemptsLeft == 0 {
				h.Alert = "5 wrong PINs from " + e.Device + ": PINs are locked until 12:20."
				f.publish("", mqttbridge.Event{Home: new(h.Home)})
			}
			return
		}
		h.tries = 0
	}
	h.ran = append(h.ran, e)
	st.State, st.Final = mqttbridge.Delivered, !a.Ack
	if a.Ack {
		f.publish(st.Device, mqttbridge.Event{Status: new(*st)})
		st.State, st.Final = mqttbridge.Done, true
	}
}

func (f *fakeRelay) Command(device, id string) (mqttbridge.Status, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st, ok := f.statuses[id]
	return st, ok && st.Device == device
}

func (f *fakeRelay) Watch(ctx context.Context, device string) <-chan mqttbridge.Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := make(chan mqttbridge.Event, 100)
	f.watchers[c] = device
	f.notify()
	context.AfterFunc(ctx, func() { f.end(c) })
	return c
}

func (f *fakeRelay) end(c chan mqttbridge.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.watchers[c]; ok {
		delete(f.watchers, c)
		close(c)
		f.notify()
	}
}

// endAll ends every stream, as after a removal.
func (f *fakeRelay) endAll() {
	for _, c := range look(f, func() []chan mqttbridge.Event { return slices.Collect(maps.Keys(f.watchers)) }) {
		f.end(c)
	}
}

// names are what ran, for short.
func (f *fakeRelay) names() string {
	return look(f, func() string {
		var out []string
		for _, h := range f.homes {
			for _, e := range h.ran {
				out = append(out, strings.TrimSuffix(e.Action+"="+e.Value, "="))
			}
		}
		return strings.Join(out, " ")
	})
}
