package dispatch

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

var cellar = Agent{ID: "key-of-cellar", Name: "cellar"}

// knowing answers as a home does that knows what a revocation is.
func knowing(f mqttbridge.Frame) []mqttbridge.Frame {
	if f.Type == mqttbridge.FrameRevoked {
		return []mqttbridge.Frame{f}
	}
	return obedient(f)
}

func (w *world) revoke(device string) {
	w.revoked.Store(device, true)
	w.d.EndDevice(device)
}

// owed returns who has to hear of a device's revocation, as it is on disk.
func (w *world) owed(device string) []string {
	w.t.Helper()
	synctest.Wait()
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	value := w.ledger.values[revokedKey(device)]
	if value == nil {
		return nil
	}
	var r revocationRecord
	if err := json.Unmarshal(value, &r); err != nil || r.Device != device {
		w.t.Fatal(err, r)
	}
	return r.Agents
}

func wantTold(t *testing.T, a *fakeAgent, devices ...string) (frames []mqttbridge.Frame) {
	t.Helper()
	frames = a.got(mqttbridge.FrameRevoked)
	var got []string
	for _, f := range frames {
		if len(f.IDs) != 1 || mqttbridge.CheckID(f.IDs[0]) != nil {
			t.Errorf("a revocation without a name: %+v", f)
		}
		got = append(got, f.Device)
	}
	if !slices.Equal(got, devices) {
		t.Errorf("the home was told of %q; want %q", got, devices)
	}
	return frames
}

// Homes that are there hear of it at once, others when they return, also when
// the relay was restarted in between; each until it says that it knows.
func TestHomesHearOfRevocations(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		there := w.agent(kitchen, aHome(), knowing)
		away := w.agent(cellar, aHome(), knowing)
		away.leave()
		began := time.Now()
		w.revoke("anna-phone")
		wantTold(t, there, "anna-phone")
		if time.Since(began) != 0 {
			t.Errorf("it took %v", time.Since(began))
		}
		if got := w.owed("anna-phone"); !slices.Equal(got, []string{cellar.ID}) {
			t.Errorf("on disk %q are owed the news", got)
		}
		if n := strings.Count(w.audits.String(), "home.device-revoked"); n != 1 {
			t.Errorf("%d lines in the audit log", n)
		}
		w.restart(Limits{})
		if s := w.d.Status(); s.Untold != 1 {
			t.Errorf("Status = %+v", s)
		}
		there = w.agent(kitchen, aHome(), knowing)
		wantTold(t, there)
		time.Sleep(time.Hour) // virtual
		away = w.agent(cellar, aHome(), knowing)
		wantTold(t, away, "anna-phone")
		if got := w.owed("anna-phone"); got != nil {
			t.Errorf("%q are still owed the news", got)
		}
		if s := w.d.Status(); s.Untold != 0 {
			t.Errorf("Status = %+v", s)
		}
		away.leave()
		away = w.agent(cellar, aHome(), knowing)
		wantTold(t, away)
	})
}

// A stream that ends before the answer, and a home that does not know the frame:
// told once on each stream, kept for as long as it takes.
func TestRevocationIsKept(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		old := w.agent(kitchen, aHome(), obedient)
		w.revoke("anna-phone")
		first := wantTold(t, old, "anna-phone")
		time.Sleep(time.Hour) // virtual
		wantTold(t, old)
		s := w.send("ben-phone", press("ben-phone", "door"))
		w.is("ben-phone", s.ID, mqttbridge.Done)
		old.leave()
		again := w.agent(kitchen, aHome(), obedient)
		second := wantTold(t, again, "anna-phone")
		if first[0].IDs[0] != second[0].IDs[0] {
			t.Error("the same revocation has two names")
		}
		w.restart(Limits{})
		again = w.agent(kitchen, aHome(), nil)
		third := wantTold(t, again, "anna-phone")
		if first[0].IDs[0] != third[0].IDs[0] {
			t.Error("after a restart it has another name")
		}
		// Revoked a second time: the answer to the first one is none.
		w.revoked.Delete("anna-phone")
		w.revoke("anna-phone")
		fourth := wantTold(t, again, "anna-phone")
		again.say(third[0])
		if got := w.owed("anna-phone"); len(got) != 1 {
			t.Errorf("owed %q", got)
		}
		again.say(fourth[0])
		if got := w.owed("anna-phone"); got != nil {
			t.Errorf("owed %q", got)
		}
	})
}

// A home whose disk is full says so, and is told again.
func TestHomeCannotKeepIt(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		var full atomic.Bool
		full.Store(true)
		ag := w.agent(kitchen, aHome(), func(f mqttbridge.Frame) []mqttbridge.Frame {
			if f.Type == mqttbridge.FrameRevoked && full.Load() {
				f.Status = &mqttbridge.Status{State: mqttbridge.Refused, Final: true, Code: mqttbridge.CodeDisk, Reason: "disk"}
			}
			return []mqttbridge.Frame{f}
		})
		w.revoke("anna-phone")
		wantTold(t, ag, "anna-phone")
		time.Sleep(tellAgain - 2*time.Second) // virtual
		wantTold(t, ag)
		time.Sleep(4 * time.Second) // virtual
		wantTold(t, ag, "anna-phone")
		full.Store(false)
		time.Sleep(tellAgain + 2*time.Second) // virtual
		wantTold(t, ag, "anna-phone")
		if got := w.owed("anna-phone"); got != nil {
			t.Errorf("owed %q", got)
		}
	})
}

// A home speaks for itself, and only of what it was told.
func TestNobodyAnswersForAnotherHome(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		there, other := w.agent(kitchen, aHome(), nil), w.agent(cellar, aHome(), nil)
		w.revoke("anna-phone")
		told := wantTold(t, there, "anna-phone")
		wantTold(t, other, "anna-phone")
		stranger := w.agent(Agent{ID: "key-of-attic", Name: "attic"}, aHome(), nil)
		for _, f := range []mqttbridge.Frame{
			told[0],
			{Type: mqttbridge.FrameRevoked, Device: "anna-phone"},
			{Type: mqttbridge.FrameRevoked, Device: "ben-phone", IDs: told[0].IDs},
			{Type: mqttbridge.FrameRevoked},
		} {
			stranger.say(f)
		}
		there.say(mqttbridge.Frame{Type: mqttbridge.FrameRevoked, Device: "anna-phone", IDs: []string{"another"}})
		if got := w.owed("anna-phone"); len(got) != 2 {
			t.Errorf("owed %q", got)
		}
		there.say(told[0])
		if got := w.owed("anna-phone"); !slices.Equal(got, []string{cellar.ID}) {
			t.Errorf("owed %q", got)
		}
		w.d.ForgetAgent(cellar.ID) // it will never come to hear it
		if got := w.owed("anna-phone"); got != nil {
			t.Errorf("owed %q", got)
		}
	})
}

// A device that lost some rights, or an old certificate, keeps the trust that
// homes put in it.
func TestLostRightsAreNoRevocation(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), knowing)
		w.d.EndDevice("anna-phone") // Allowed says yes: it was renewed
		w.d.EndDevice("")
		wantTold(t, ag)
		w.d.cfg.Revoked = func(string) bool { return false }
		w.revoke("anna-phone") // may not come in, and is not revoked
		wantTold(t, ag)
		if s := w.d.Status(); s.Untold != 0 {
			t.Errorf("Status = %+v", s)
		}
	})
}

// Somebody enrolls a new device under the old name while the home is away. The
// home hears of the revocation before it hears of the new device's key.
func TestNewsComesBeforeTheNewKey(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), knowing).leave()
		w.revoke("anna-phone")
		w.revoked.Delete("anna-phone")
		var kinds []string
		w.dial(kitchen, func(f mqttbridge.Frame) []mqttbridge.Frame {
			kinds = append(kinds, f.Type)
			return knowing(f)
		}).offer(aHome())
		if _, err := w.d.OfferKey(t.Context(), "anna-phone", "kitchen", deviceKey().spki); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !slices.Equal(kinds, []string{mqttbridge.FrameRevoked, mqttbridge.FrameKey}) {
			t.Errorf("the home heard %q", kinds)
		}
	})
}

// Many at once leave room for commands, and all arrive. A command that was not
// sent before does not arrive after.
func TestManyRevocations(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), knowing).leave()
		var all []string
		for i := range 3*queueLength + 7 {
			all = append(all, fmt.Sprintf("phone-%03d", i))
			w.revoke(all[i])
		}
		ag := w.agent(kitchen, aHome(), knowing)
		time.Sleep(time.Minute) // virtual
		wantTold(t, ag, all...)
		if s := w.d.Status(); s.Untold != 0 {
			t.Errorf("Status = %+v", s)
		}
		ag.leave()
		for _, device := range all {
			w.revoke(device)
		}
		old := w.agent(kitchen, aHome(), obedient) // never answers
		s := w.send("ben-phone", press("ben-phone", "door"))
		w.is("ben-phone", s.ID, mqttbridge.Done)
		time.Sleep(time.Minute) // virtual
		wantTold(t, old, all[:tellingMax]...)
	})
}

// The ledger fails: what homes have to hear is written once it works again.
func TestRevocationAndTheDisk(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), knowing).leave()
		synctest.Wait()
		w.ledger.fail(func(string, string) error { return errFull })
		w.revoke("anna-phone")
		synctest.Wait()
		if s := w.d.Status(); s.Unsaved != 1 || s.Untold != 1 {
			t.Errorf("Status = %+v", s)
		}
		w.ledger.fail(nil)
		time.Sleep(time.Minute) // virtual
		if got := w.owed("anna-phone"); len(got) != 1 {
			t.Errorf("owed %q", got)
		}
		// What cannot be read is left alone, and said.
		w.stop()
		for key, value := range map[string]string{"x": "{", "y": "null", "z": `{"device":"y"}`} {
			w.ledger.values[revokedKey(key)] = []byte(value)
		}
		w.start(Limits{})
		if n := strings.Count(w.log.String(), "the record cannot be read"); n != 3 {
			t.Errorf("%d lines in the log:\n%s", n, w.log.String())
		}
		ag := w.agent(kitchen, aHome(), knowing)
		wantTold(t, ag, "anna-phone")
		if w.ledger.values[revokedKey("x")] == nil {
			t.Error("a record that cannot be read was removed")
		}
	})
}

// During a move the newest stream is told; when it ends first, the older one.
func TestRevokedDuringAMove(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		older, newer := w.agent(kitchen, aHome(), knowing), w.agent(kitchen, aHome(), nil)
		w.revoke("anna-phone")
		wantTold(t, newer, "anna-phone")
		wantTold(t, older)
		newer.leave()
		wantTold(t, older, "anna-phone")
		if got := w.owed("anna-phone"); got != nil {
			t.Errorf("owed %q", got)
		}
	})
}

func FuzzDecodeRevocation(f *testing.F) {
	f.Add("revoked/anna", []byte(`{"device":"anna","id":"aaaaaaaaaaaaaaaaaaaa","at":"2026-01-01T00:00:00Z","agents":["a"]}`))
	f.Add("revoked/anna", []byte("null"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		device, r, err := decodeRevocation(key, value)
		if err != nil {
			return
		}
		if revokedKey(device) != key || len(r.homes) == 0 {
			t.Fatalf("%q: %q, %+v", key, device, r)
		}
		d := &Dispatcher{revoked: map[string]*revocation{device: r}}
		_, again := d.revocationValue(device)
		if _, second, err := decodeRevocation(key, again); err != nil || second.id != r.id || len(second.homes) != len(r.homes) {
			t.Fatalf("%s: %v", again, err)
		}
	})
}
