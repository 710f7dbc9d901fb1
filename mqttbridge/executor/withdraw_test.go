package executor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// revoke tells the home that a device was revoked, and returns its answer. An
// empty id makes a new one.
func (r *relay) revoke(device, id string) mqttbridge.Frame {
	r.w.t.Helper()
	if id == "" {
		id = mqttbridge.NewID()
	}
	return r.ask(mqttbridge.Frame{Type: mqttbridge.FrameRevoked, Device: device, IDs: []string{id}})
}

func (r *relay) offer(p *phone, device string) mqttbridge.Trust {
	r.w.t.Helper()
	return r.ask(mqttbridge.Frame{Type: mqttbridge.FrameKey, Device: device, Key: p.spki}).Trust
}

// logged counts the lines of an event in the log.
func (w *world) logged(event string) int {
	w.t.Helper()
	data, err := os.ReadFile(filepath.Join(w.dir, logName))
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.Count(string(data), `"`+event+`"`)
}

func (w *world) keyOf(p *phone) (Key, bool) {
	for _, k := range w.e.Keys() {
		if string(k.SPKI) == string(p.spki) {
			return k, true
		}
	}
	return Key{}, false
}

// A device that the relay revoked commands nothing at home, also after a
// restart, until somebody at home says so.
func TestRevokedAtTheRelay(t *testing.T) {
	bubble(t, func(w *world) {
		bob, id := w.phone("bob"), mqttbridge.NewID()
		early := w.envelope("bob", "garage", w.challenge("bob", "garage"))
		answer := w.relay.revoke("bob", id)
		if answer.Type != mqttbridge.FrameRevoked || answer.Status != nil || answer.Device != "bob" || len(answer.IDs) != 1 || answer.IDs[0] != id {
			t.Errorf("answer %+v", answer)
		}
		refused := func(env mqttbridge.Envelope) {
			t.Helper()
			s := w.relay.final(w.command("bob", w.sign(bob, env)))
			wantState(t, s, mqttbridge.Refused, mqttbridge.CodeUntrusted)
			if !strings.Contains(s.Reason, "revoked at the relay") || !strings.Contains(s.Reason, "agent trust bob") {
				t.Errorf("reason %q", s.Reason)
			}
		}
		refused(early)
		refused(w.envelope("bob", "garage", w.challenge("bob", "garage")))
		k, ok := w.keyOf(bob)
		if !ok || k.Trusted || k.Withdrawn.IsZero() || k.Words == "" {
			t.Errorf("Keys() shows %+v", k)
		}
		if s := w.e.Status(); s.Trusted != 1 || s.Pending != 0 || s.Revoked != 1 {
			t.Errorf("%+v", s)
		}
		if n := w.logged("key.withdrawn"); n != 1 {
			t.Errorf("%d lines in the log", n)
		}
		wantState(t, w.press("anna-phone", "garage"), mqttbridge.Delivered, "")
		w.published(garage, "ON")
		w.restart()
		refused(w.envelope("bob", "garage", w.challenge("bob", "garage")))
		if again, _ := w.keyOf(bob); again.Trusted || !again.Withdrawn.Equal(k.Withdrawn) {
			t.Errorf("after a restart %+v, before %+v", again, k)
		}
		// Trusted again, by its id: nobody takes the lost device for the new one.
		if err := w.e.Trust("bob", ""); err == nil || !strings.Contains(err.Error(), k.ID) || !strings.Contains(err.Error(), k.Words) {
			t.Errorf("trust without a word which: %v", err)
		}
		if err := w.e.Trust("bob", k.ID); err != nil {
			t.Fatal(err)
		}
		wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")
		if len(w.e.Keys()) != 2 {
			t.Errorf("keys %+v", w.e.Keys())
		}
		// The same news once more, its acknowledgement was lost: the owner's
		// word is newer. Another revocation counts.
		w.relay.revoke("bob", id)
		wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")
		w.restart()
		w.relay.revoke("bob", id)
		wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")
		w.relay.revoke("bob", "")
		refused(w.envelope("bob", "garage", w.challenge("bob", "garage")))
	})
}

// What was signed before the revocation does not run after the device is
// trusted again.
func TestWithdrawnPressesAreVoid(t *testing.T) {
	bubble(t, func(w *world) {
		bob := w.phone("bob")
		early := w.envelope("bob", "garage", w.challenge("bob", "garage"))
		w.relay.revoke("bob", "")
		k, _ := w.keyOf(bob)
		if err := w.e.Trust("bob", k.ID); err != nil {
			t.Fatal(err)
		}
		wantState(t, w.relay.final(w.command("bob", w.sign(bob, early))), mqttbridge.Refused, mqttbridge.CodeChallenge)
		w.published(garage)
	})
}

// Whatever the relay says afterwards, the key stays untrusted.
func TestRelayCannotGiveTrustBack(t *testing.T) {
	bubble(t, func(w *world) {
		bob := w.phone("bob")
		w.relay.revoke("bob", "")
		if got := w.relay.offer(bob, "bob"); got != mqttbridge.TrustPending {
			t.Errorf("offered again it is %s", got)
		}
		for _, f := range []mqttbridge.Frame{
			{Type: mqttbridge.FrameKey, Device: "bob", Key: bob.spki, Trust: mqttbridge.TrustYes},
			{Type: mqttbridge.FrameRevoked, Device: "bob", Trust: mqttbridge.TrustYes, Key: bob.spki},
			{Type: mqttbridge.FrameRevoked, Device: "bob", IDs: []string{""}},
			{Type: mqttbridge.FrameRevoked, Device: "bob", IDs: []string{"a", "b"}},
			{Type: mqttbridge.FrameRevoked},
			{Type: mqttbridge.FrameRevoked, Device: strings.Repeat("x", 2000), IDs: []string{strings.Repeat("y", 2000)}},
			{Type: mqttbridge.FrameStatus, Device: "bob", Trust: mqttbridge.TrustYes},
			{Type: "trusted", Device: "bob", Key: bob.spki, Trust: mqttbridge.TrustYes},
			{Type: "restored", Device: "bob", Trust: mqttbridge.TrustYes},
		} {
			w.relay.send(f)
			env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
			wantState(t, w.relay.final(w.command("bob", w.sign(bob, env))), mqttbridge.Refused, mqttbridge.CodeUntrusted)
		}
		if got := w.relay.offer(bob, "carl"); got != mqttbridge.TrustPending { // waits for a person, as any key
			t.Errorf("under another name it is %s", got)
		}
		env := w.envelope("carl", "garage", w.challenge("carl", "garage"))
		wantState(t, w.relay.final(w.command("carl", w.sign(bob, env))), mqttbridge.Refused, mqttbridge.CodeUntrusted)
		w.published(garage)
		// And a flood of it costs no disk: there is nothing left to take.
		before := w.e.Status().Lines
		writes := 0
		w.e.keys.mu.Lock()
		w.e.keys.dir.write = func(string, []byte, os.FileMode) error { writes++; return nil }
		w.e.keys.mu.Unlock()
		for i := range 1000 {
			w.relay.revoke(fmt.Sprint("d", i%7), "")
			w.relay.revoke("bob", "")
		}
		if now := w.e.Status().Lines; now != before || writes != 0 {
			t.Errorf("%d lines, %d writes", now-before, writes)
		}
	})
}

// The name is enrolled again, with another device behind it: the old key stays
// untrusted, and the new one waits for a person.
func TestEnrolledAgainUnderItsName(t *testing.T) {
	bubble(t, func(w *world) {
		old := w.phone("bob")
		oldID, _ := mqttbridge.KeyID(old.spki)
		waiting := newPhone("carl")
		w.relay.offer(waiting, "carl")
		w.relay.revoke("carl", "") // only waited: forgotten
		if _, ok := w.keyOf(waiting); ok {
			t.Error("a revoked device still waits")
		}
		w.relay.revoke("bob", "")
		young := newPhone("bob")
		youngID, _ := mqttbridge.KeyID(young.spki)
		if got := w.relay.offer(young, "bob"); got != mqttbridge.TrustPending {
			t.Fatalf("the new key is %s", got)
		}
		env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
		wantState(t, w.relay.final(w.command("bob", w.sign(young, env))), mqttbridge.Refused, mqttbridge.CodeUntrusted)
		if err := w.e.Trust("bob", ""); err != nil { // the one that waits
			t.Fatal(err)
		}
		env = w.envelope("bob", "garage", w.challenge("bob", "garage"))
		wantState(t, w.relay.final(w.command("bob", w.sign(young, env))), mqttbridge.Delivered, "")
		env = w.envelope("bob", "garage", w.challenge("bob", "garage"))
		wantState(t, w.relay.final(w.command("bob", w.sign(old, env))), mqttbridge.Refused, mqttbridge.CodeUntrusted)
		if err := w.e.Trust("bob", oldID); err == nil {
			t.Error("two keys of one device are trusted")
		}
		w.restart()
		env = w.envelope("bob", "garage", w.challenge("bob", "garage"))
		wantState(t, w.relay.final(w.command("bob", w.sign(old, env))), mqttbridge.Refused, mqttbridge.CodeUntrusted)
		if k, _ := w.keyOf(young); !k.Trusted || k.ID != youngID {
			t.Errorf("%+v", k)
		}
		if err := w.e.Untrust("bob"); err != nil { // all of them
			t.Fatal(err)
		}
		if keys := w.e.Keys(); len(keys) != 1 {
			t.Errorf("%+v", keys)
		}
		w.published(garage, "ON")
	})
}

// With a full disk the key loses its trust at once, and the relay hears that
// this is not written down yet.
func TestWithdrawnWithoutDisk(t *testing.T) {
	bubble(t, func(w *world) {
		bob, id := w.phone("bob"), mqttbridge.NewID()
		real := w.e.keys.dir.write
		setWrite := func(f func(string, []byte, os.FileMode) error) {
			w.e.keys.mu.Lock()
			defer w.e.keys.mu.Unlock()
			w.e.keys.dir.write = f
		}
		setWrite(func(string, []byte, os.FileMode) error { return errFull })
		for range 2 {
			if f := w.relay.revoke("bob", id); f.Status == nil || f.Status.Code != mqttbridge.CodeDisk || f.IDs[0] != id {
				t.Errorf("answer %+v", f)
			}
			env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
			wantState(t, w.relay.final(w.command("bob", w.sign(bob, env))), mqttbridge.Refused, mqttbridge.CodeUntrusted)
		}
		setWrite(real)
		if f := w.relay.revoke("bob", id); f.Status != nil {
			t.Errorf("answer %+v", f)
		}
		w.restart()
		env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
		wantState(t, w.relay.final(w.command("bob", w.sign(bob, env))), mqttbridge.Refused, mqttbridge.CodeUntrusted)
		w.published(garage)
	})
}

// Withdrawn keys do not pile up.
func TestWithdrawnKeysAreBounded(t *testing.T) {
	bubble(t, func(w *world) {
		for i := range maxWithdrawn + 5 {
			name := fmt.Sprint("d", i)
			w.trust(name)
			time.Sleep(time.Second) // virtual
			w.relay.revoke(name, "")
		}
		if s := w.e.Status(); s.Revoked != maxWithdrawn || s.Trusted != 2 {
			t.Errorf("%+v", s)
		}
		if _, ok := w.keyOf(w.phone("d0")); ok {
			t.Error("the oldest is still there")
		}
		w.restart()
		if s := w.e.Status(); s.Revoked != maxWithdrawn || s.Trusted != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// Several write trust.json at once: one at a time, and the last one on disk is
// what is in force. Without the lock around both, a slow writer would put an
// older list over a newer one, and a revoked device were back after a restart.
func TestTrustIsWrittenInOrder(t *testing.T) {
	dir, err := openFolder(tempDir(t))
	if err != nil {
		t.Fatal(err)
	}
	_, home, err := dir.homeKey()
	if err != nil {
		t.Fatal(err)
	}
	k, err := openKeyring(dir, home, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	var writing, writes atomic.Int32
	slow := make(chan struct{})
	real := k.dir.write
	k.dir.write = func(path string, data []byte, perm os.FileMode) error {
		if writing.Add(1) != 1 {
			t.Error("two write at once")
		}
		defer writing.Add(-1)
		if writes.Add(1) == 1 {
			<-slow // while the others want to write, too
		}
		return real(path, data, perm)
	}
	const n = 8
	var all, begun sync.WaitGroup
	for i := range n {
		name := fmt.Sprint("d", i)
		if _, _, err := k.offer(name, newPhone(name).spki); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		name := fmt.Sprint("d", i)
		begun.Add(1)
		all.Go(func() {
			begun.Done()
			if _, err := k.trust(name, ""); err != nil {
				t.Error(err)
			}
			var err error
			switch i % 3 {
			case 0:
				_, err = k.withdraw(name, mqttbridge.NewID())
			case 1:
				_, err = k.untrust(name)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	begun.Wait()
	close(slow)
	all.Wait()
	again, err := openKeyring(dir, home, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		name := fmt.Sprint("d", i)
		if got, want := again.deviceKey(name) != "", i%3 == 2; got != want || got != (k.deviceKey(name) != "") {
			t.Errorf("%s is trusted on disk: %v; want %v", name, got, want)
		}
		if got := len(again.withdrawnOf(name)) == 1; got != (i%3 == 0) {
			t.Errorf("%s is withdrawn on disk: %v", name, got)
		}
	}
	if _, err := k.untrust("nobody"); !errors.Is(err, errNoKey) {
		t.Error(err)
	}
}
