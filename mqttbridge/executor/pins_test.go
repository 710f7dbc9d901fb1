package executor

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const gate = "cmnd/gate/POWER"

func TestPIN(t *testing.T) {
	bubble(t, func(w *world) {
		if p := w.relay.action("gate").Problem; !strings.Contains(p, "agent pin gate") {
			t.Errorf("problem %q", p)
		}
		wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Refused, mqttbridge.CodePINNeeded)
		w.published(gate)
		for _, bad := range []string{"123", "1234567890123", "12a4", "١٢٣٤"} {
			if err := w.e.SetPIN("gate", bad); err == nil {
				t.Errorf("PIN %q was taken", bad)
			}
		}
		if err := w.e.SetPIN("garage", "1234"); err == nil {
			t.Error("an action that asks for no PIN got one")
		}
		if err := w.e.SetPIN("gate", "1234"); err != nil {
			t.Fatal(err)
		}
		if p := w.relay.action("gate").Problem; p != "" {
			t.Errorf("problem %q", p)
		}
		wantState(t, w.press("bob", "gate"), mqttbridge.Refused, mqttbridge.CodePINNeeded)
		wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Delivered, "")
		wantState(t, w.press("bob", "door", w.withPIN("1234")), mqttbridge.Refused, mqttbridge.CodePINNeeded)
		if err := w.e.SetPIN("", "9999"); err != nil {
			t.Fatal(err)
		}
		w.restart()
		wantState(t, w.press("bob", "door", w.withPIN("9999")), mqttbridge.Delivered, "")
		wantState(t, w.press("bob", "gate", w.withPIN("9999")), mqttbridge.Refused, mqttbridge.CodePINWrong)
		wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Delivered, "")
		w.published(gate, "ON", "ON")
		if err := w.e.SetPIN("gate", ""); err != nil {
			t.Fatal(err)
		}
		wantState(t, w.press("bob", "gate", w.withPIN("9999")), mqttbridge.Delivered, "")
		if err := w.e.SetPIN("gate", ""); err == nil {
			t.Error("removed a PIN that is not there")
		}
		info, err := os.Stat(w.dir + "/" + pinsFile)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		data, _ := os.ReadFile(w.dir + "/" + pinsFile)
		if strings.Contains(string(data), "9999") {
			t.Error("the PIN is in the file")
		}
	})
}

// A sealed PIN is good for its own press alone, and what cannot be opened is no
// guess.
func TestPINOfAnotherPress(t *testing.T) {
	bubble(t, func(w *world) {
		if err := w.e.SetPIN("", "1234"); err != nil {
			t.Fatal(err)
		}
		first := w.envelope("bob", "gate", w.challenge("bob", "gate"))
		w.seal(&first, "1234")
		for range 2 * maxWrong {
			s := w.press("bob", "gate", func(env *mqttbridge.Envelope) { env.PIN = first.PIN })
			wantState(t, s, mqttbridge.Refused, mqttbridge.CodeMalformed)
		}
		wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Delivered, "")
		w.published(gate, "ON")
	})
}

func TestLockout(t *testing.T) {
	bubble(t, func(w *world) {
		w.e.SetPIN("gate", "1234")
		w.e.SetPIN("door", "7777")
		wrong := func(left int) {
			t.Helper()
			s := w.press("bob", "gate", w.withPIN("0000"))
			wantState(t, s, mqttbridge.Refused, mqttbridge.CodePINWrong)
			if s.AttemptsLeft != left {
				t.Errorf("%d attempts left, want %d", s.AttemptsLeft, left)
			}
		}
		for lock := firstLock; lock < 3*lastLock; lock *= 2 {
			lock := min(lock, lastLock)
			for left := maxWrong - 1; left > 0; left-- {
				wrong(left)
				// Whoever knows another PIN cannot start over with it.
				wantState(t, w.press("bob", "door", w.withPIN("7777")), mqttbridge.Delivered, "")
			}
			s := w.press("bob", "gate", w.withPIN("0000"))
			wantState(t, s, mqttbridge.Refused, mqttbridge.CodeLocked)
			if d := time.Until(s.Until); d < lock-time.Second || d > lock {
				t.Errorf("locked for %v, want %v", d, lock)
			}
			wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Refused, mqttbridge.CodeLocked)
			wantState(t, w.press("bob", "gate"), mqttbridge.Refused, mqttbridge.CodeLocked) // before the PIN is asked for
			wantState(t, w.press("bob", "door", w.withPIN("7777")), mqttbridge.Refused, mqttbridge.CodeLocked)
			wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "") // asks for no PIN
			if alert := w.relay.home().Alert; !strings.Contains(alert, "wrong PINs") || strings.Contains(alert, "bob") {
				t.Errorf("alert to every page: %q", alert)
			}
			if alert := w.e.Status().Alert; !strings.Contains(alert, "bob") {
				t.Errorf("alert at home: %q", alert)
			}
			time.Sleep(lock - time.Minute) // virtual
			w.restart()                    // what is left is on disk, to the minute
			wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Refused, mqttbridge.CodeLocked)
			time.Sleep(time.Minute + time.Second) // virtual
		}
		if alerts := w.broker.at(AlertTopic); len(alerts) == 0 || alerts[0].retain || !strings.Contains(alerts[0].payload, `"device":"bob"`) {
			t.Errorf("alerts at home: %+v", alerts)
		}
		w.published(gate)
		wrong(maxWrong - 1)
		wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Delivered, "")
		wrong(maxWrong - 1) // and the next lock is a short one again
		for range maxWrong - 1 {
			w.press("bob", "gate", w.withPIN("0000"))
		}
		if left := w.e.pins.left("bob"); left > firstLock || left == 0 {
			t.Errorf("locked for %v after a right PIN in between", left)
		}
		// Somebody at home lifts it.
		if err := w.e.Trust("bob", ""); err != nil {
			t.Fatal(err)
		}
		wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Delivered, "")
		wantState(t, w.press("anna-phone", "gate", w.withPIN("1234")), mqttbridge.Delivered, "")
		if alert := w.relay.home().Alert; alert != "" {
			t.Errorf("alert %q", alert)
		}
	})
}

// No wall clock makes a lock shorter, whatever it says before or after a
// restart.
func TestLockAndTheWallClock(t *testing.T) {
	for _, jump := range []time.Duration{-50 * 365 * 24 * time.Hour, 50 * 365 * 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			now := time.Duration(0)
			w.wall = func() time.Time { return time.Now().Add(now) }
			w.start()
			defer func() { w.end() }()
			w.trust("bob")
			w.e.SetPIN("", "1234")
			for range maxWrong {
				w.press("bob", "gate", w.withPIN("0000"))
			}
			now = jump
			wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Refused, mqttbridge.CodeLocked)
			w.restart()
			wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Refused, mqttbridge.CodeLocked)
			time.Sleep(firstLock + time.Second) // virtual
			wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Delivered, "")
		})
	}
}

// Restarts and pulled plugs buy no guesses.
func TestBruteForceOverRestarts(t *testing.T) {
	for _, test := range []struct {
		name  string
		crash func(write int) (before, after bool) // around the nth write of a try: its count, then its lock
	}{
		{"restart", func(int) (bool, bool) { return false, false }},
		{"crash before the count is written", func(n int) (bool, bool) { return n == 1, false }},
		{"crash after the count is written", func(n int) (bool, bool) { return false, n == 1 }},
		{"crash before the lock is written", func(n int) (bool, bool) { return n == 2, false }},
		{"crash after the lock is written", func(n int) (bool, bool) { return false, n == 2 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir, err := openFolder(tempDir(t))
				if err != nil {
					t.Fatal(err)
				}
				open := func() *pins {
					p, err := openPINs(dir)
					if err != nil {
						t.Fatal(err)
					}
					p.cost = 2
					return p
				}
				p := open()
				if err := p.set("", "1234"); err != nil {
					t.Fatal(err)
				}
				compared := 0
				for range 10 * maxWrong {
					p := open()
					writes := 0
					p.dir.write = func(path string, data []byte, perm os.FileMode) error {
						writes++
						before, after := test.crash(writes)
						if before {
							panic("crash")
						}
						err := dir.write(path, data, perm)
						if after {
							panic("crash")
						}
						return err
					}
					func() {
						defer func() { recover() }()
						v, err := p.check("bob", "gate", "0000")
						if err == nil && (v.left > 0 || v.newly) {
							compared++
						}
					}()
				}
				if compared > maxWrong {
					t.Errorf("%d PINs were compared", compared)
				}
				if strings.HasPrefix(test.name, "crash before the count") {
					if left := open().left("bob"); left != 0 {
						t.Errorf("locked for %v though nothing was ever tried", left)
					}
					return
				}
				if v, err := open().check("bob", "gate", "1234"); v.ok || err != nil {
					t.Errorf("a right PIN after %d wrong ones: %+v, %v", 10*maxWrong, v, err)
				}
				time.Sleep(lastLock) // virtual
			})
		})
	}
}

func TestBruteForceAtOnce(t *testing.T) {
	bubble(t, func(w *world) {
		w.e.SetPIN("gate", "1234")
		real := w.e.pins.dir.write
		w.writePINs(func(path string, data []byte, perm os.FileMode) error {
			time.Sleep(time.Millisecond) // virtual: all the others come meanwhile
			return real(path, data, perm)
		})
		var results []pinVerdict
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				v, err := w.e.pins.check("bob", "gate", "0000")
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				results = append(results, v)
			})
		}
		wg.Wait()
		wrong, newly := 0, 0
		for _, v := range results {
			if v.ok {
				t.Error("a wrong PIN was right")
			}
			if v.left > 0 {
				wrong++
			}
			if v.newly {
				newly++
			}
		}
		if wrong != maxWrong-1 || newly != 1 {
			t.Errorf("%d wrong ones and %d locks out of 50", wrong, newly)
		}
		if left := w.e.pins.left("bob"); left < firstLock-time.Second || left > firstLock {
			t.Errorf("locked for %v", left)
		}
	})
}

func TestPINsAndTheDisk(t *testing.T) {
	bubble(t, func(w *world) {
		w.e.SetPIN("gate", "1234")
		real := w.e.pins.dir.write
		full := errors.New("no space left on device")
		w.writePINs(func(string, []byte, os.FileMode) error { return full })
		for range 3 * maxWrong {
			wantState(t, w.press("bob", "gate", w.withPIN("0000")), mqttbridge.Refused, mqttbridge.CodeDisk)
			wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Refused, mqttbridge.CodeDisk)
		}
		if err := w.e.SetPIN("gate", "5555"); !errors.Is(err, full) {
			t.Errorf("SetPIN: %v", err)
		}
		if err := w.e.SetPIN("gate", ""); !errors.Is(err, full) {
			t.Errorf("SetPIN: %v", err)
		}
		w.published(gate)
		w.writePINs(real)
		// Nothing was compared, so nothing was a try; and the old PIN counts.
		s := w.press("bob", "gate", w.withPIN("0000"))
		wantState(t, s, mqttbridge.Refused, mqttbridge.CodePINWrong)
		if s.AttemptsLeft != maxWrong-1 {
			t.Errorf("%d attempts left", s.AttemptsLeft)
		}
		wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Delivered, "")
		w.published(gate, "ON")

		// The disk fills up between the try and its end.
		writes := 0
		w.writePINs(func(path string, data []byte, perm os.FileMode) error {
			if writes++; writes == 2 {
				return full
			}
			return real(path, data, perm)
		})
		wantState(t, w.press("bob", "gate", w.withPIN("1234")), mqttbridge.Refused, mqttbridge.CodeDisk)
		w.published(gate, "ON")
	})
}

// A crash does not begin a lock anew: what is left is written down every
// minute.
func TestLockAfterACrash(t *testing.T) {
	bubble(t, func(w *world) {
		w.e.SetPIN("", "1234")
		for range maxWrong {
			w.press("bob", "gate", w.withPIN("0000"))
		}
		time.Sleep(10 * time.Minute) // virtual
		w.crash()
		old, stop := w.relay, w.stop
		w.start()
		stop()
		old.close()
		if left := w.e.pins.left("bob"); left < 4*time.Minute || left > 7*time.Minute {
			t.Errorf("locked for %v more, of %v ten minutes ago", left, firstLock)
		}
	})
}
