package dispatch

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

func TestPressToDone(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), obedient)
		eyes := w.look("anna-phone")
		if evs := eyes.seen(); len(evs) != 1 || evs[0].Home == nil || evs[0].Home.Name != "kitchen" || !evs[0].Home.Online {
			t.Fatalf("a new watch saw %+v; want the home", evs)
		}
		ch, err := w.d.Challenge(t.Context(), "anna-phone", "kitchen", "door")
		if err != nil || ch.Value != "challenge-1" || ch.Life != 10*time.Second {
			t.Fatalf("Challenge = %+v, %v", ch, err)
		}
		if trust, err := w.d.OfferKey(t.Context(), "anna-phone", "kitchen", deviceKey().spki); err != nil || trust != mqttbridge.TrustPending {
			t.Fatalf("OfferKey = %q, %v", trust, err)
		}
		if asked := ag.got(mqttbridge.FrameKey); len(asked) != 1 || asked[0].Device != "anna-phone" {
			t.Errorf("the home was asked about keys: %+v", asked)
		}
		signed := press("anna-phone", "door")
		s := w.send("anna-phone", signed)
		if s.State != mqttbridge.Accepted || s.Final || s.Home != "kitchen" || s.Action != "door" || s.Device != "anna-phone" {
			t.Errorf("Send = %+v", s)
		}
		synctest.Wait()
		s = w.is("anna-phone", s.ID, mqttbridge.Done)
		if !s.Final || s.At.Before(s.Created) {
			t.Errorf("done as %+v", s)
		}
		evs := eyes.seen()
		if n := len(evs); n == 0 || evs[n-1].Status == nil || evs[n-1].Status.State != mqttbridge.Done {
			t.Errorf("the watch saw %+v; want done last", evs)
		}
		sent := ag.got(mqttbridge.FrameCommand)
		if len(sent) != 1 || sent[0].Device != "anna-phone" || string(sent[0].Command.Body) != string(signed.Body) {
			t.Fatalf("the home got %+v", sent)
		}
		if got := w.ledger.state(t, s.ID); got != mqttbridge.Done {
			t.Errorf("the ledger says %q", got)
		}
		for _, line := range []string{"command.accepted", "command.finished"} {
			if !strings.Contains(w.audits.String(), line) {
				t.Errorf("the audit log has no %s:\n%s", line, w.audits.String())
			}
		}
	})
}

// The record comes first: while the ledger is at work, and when it fails, the
// home sees nothing.
func TestNothingIsSentBeforeItIsOnDisk(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), obedient)
		slow := make(chan error)
		w.ledger.fail(func(op, _ string) error {
			if op == "create" {
				return <-slow
			}
			return nil
		})
		signed := press("anna-phone", "door")
		var wg sync.WaitGroup
		wg.Go(func() { w.send("anna-phone", signed) })
		synctest.Wait()
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 0 {
			t.Fatalf("the home got %d commands that are not on disk", len(got))
		}
		if _, ok := w.d.Command("anna-phone", idOf(signed)); ok {
			t.Error("a command is told of that is not on disk")
		}
		slow <- nil
		wg.Wait()
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 1 {
			t.Fatalf("the home got %d commands, want 1", len(got))
		}
	})
}

func TestFullDisk(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), obedient)
		w.ledger.fail(func(string, string) error { return errFull })
		signed := press("anna-phone", "door")
		w.sendRefused("anna-phone", "kitchen", signed, mqttbridge.CodeDisk)
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 0 {
			t.Fatalf("the home got %d commands that are not on disk", len(got))
		}
		if w.d.Status().Problem == "" {
			t.Error("Status does not tell of the trouble")
		}
		w.ledger.fail(nil)
		// The person was told that it did not run; it does not run behind her back.
		w.sendRefused("anna-phone", "kitchen", signed, mqttbridge.CodeDisk)
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Done)
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 1 || idOf(*got[0].Command) != s.ID {
			t.Errorf("after the disk had room again the home got %+v", got)
		}
		if p := w.d.Status().Problem; p != "" {
			t.Errorf("Status still tells of %q", p)
		}
		if n := strings.Count(w.log.String(), "cannot write the ledger"); n != 1 {
			t.Errorf("said %d times:\n%s", n, w.log.String())
		}
	})
}

// A ledger that hangs answers in time, and what it may have written is never
// sent.
func TestHangingDisk(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), obedient)
		w.ledger.mu.Lock()
		w.ledger.hangs = true
		w.ledger.mu.Unlock()
		began := time.Now()
		w.sendRefused("anna-phone", "kitchen", press("anna-phone", "door"), mqttbridge.CodeDisk)
		if took := time.Since(began); took > ledgerTime {
			t.Errorf("it took %v", took)
		}
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 0 {
			t.Errorf("the home got %d commands", len(got))
		}
	})
}

// A ledger that takes longer than the challenge lives: recorded, and not sent.
func TestSlowDisk(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		h := aHome()
		h.Actions[0].Life = 2000
		ag := w.agent(kitchen, h, obedient)
		eyes := w.look("anna-phone")
		eyes.seen()
		w.ledger.fail(func(op, _ string) error {
			if op == "create" {
				time.Sleep(4 * time.Second) // virtual
				if evs := eyes.seen(); len(evs) != 0 {
					t.Errorf("told before it is on disk: %+v", evs)
				}
			}
			return nil
		})
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Expired)
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 0 {
			t.Errorf("the home got %d commands that are too late", len(got))
		}
		if got := w.ledger.state(t, s.ID); got != mqttbridge.Expired {
			t.Errorf("the ledger says %q", got)
		}
	})
}

// The end of a command is told at once and reaches the disk when that works.
func TestEndIsWrittenLater(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), obedient)
		w.ledger.fail(func(op, key string) error {
			if op == "put" && strings.HasPrefix(key, commandPrefix) {
				return errFull
			}
			return nil
		})
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Done)
		if got := w.ledger.state(t, s.ID); got != mqttbridge.Accepted {
			t.Fatalf("the ledger says %q", got)
		}
		w.ledger.fail(nil)
		time.Sleep(slowest) // virtual
		synctest.Wait()
		if got := w.ledger.state(t, s.ID); got != mqttbridge.Done {
			t.Errorf("the ledger says %q", got)
		}
		if s := w.d.Status(); s.Unsaved != 0 || s.Problem != "" {
			t.Errorf("Status = %+v", s)
		}
	})
}

// What is left to write is written when Run ends.
func TestLastWrites(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), obedient)
		var failing sync.Map
		failing.Store("now", true)
		w.ledger.fail(func(op, _ string) error {
			if _, on := failing.Load("now"); on && op == "put" {
				return errFull
			}
			return nil
		})
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Done)
		failing.Clear()
		w.stop()
		if got := w.ledger.state(t, s.ID); got != mqttbridge.Done {
			t.Errorf("the ledger says %q", got)
		}
	})
}

func TestOffline(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), obedient)
		eyes := w.look("anna-phone")
		if err := ag.leave(); err != nil {
			t.Errorf("ServeAgent = %v after a clean end", err)
		}
		evs := eyes.seen()
		if n := len(evs); n == 0 || evs[n-1].Home == nil || evs[n-1].Home.Online || evs[n-1].Home.Broker || len(evs[n-1].Home.Actions) != 1 {
			t.Fatalf("the watch saw %+v; want the home with its door, away", evs)
		}
		began := time.Now()
		signed := press("anna-phone", "door")
		w.sendRefused("anna-phone", "kitchen", signed, mqttbridge.CodeOffline)
		_, err := w.d.Challenge(t.Context(), "anna-phone", "kitchen", "door")
		w.isRefusal(err, mqttbridge.CodeOffline)
		if took := time.Since(began); took != 0 {
			t.Errorf("refused after %v, not at once", took)
		}
		w.is("anna-phone", idOf(signed), mqttbridge.Refused)
		if n := w.ledger.counted("create"); n != 0 {
			t.Errorf("%d records of a command that could not run", n)
		}
		// It is never queued: neither the return of the home nor a repetition on
		// the way makes it run.
		ag = w.agent(kitchen, aHome(), obedient)
		w.sendRefused("anna-phone", "kitchen", signed, mqttbridge.CodeOffline)
		time.Sleep(time.Minute) // virtual
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 0 {
			t.Errorf("the home got %d commands that were refused", len(got))
		}
	})
}

// A home that goes while the ledger is at work: refused, on the record.
func TestGoneWhileRecording(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), obedient)
		w.ledger.fail(func(op, _ string) error {
			if op == "create" {
				return ag.leave()
			}
			return nil
		})
		s := w.send("anna-phone", press("anna-phone", "door"))
		if s.State != mqttbridge.Refused || s.Code != mqttbridge.CodeOffline || !s.Final {
			t.Errorf("Send = %+v", s)
		}
		synctest.Wait()
		if got := w.ledger.state(t, s.ID); got != mqttbridge.Refused {
			t.Errorf("the ledger says %q", got)
		}
	})
}

func TestIdempotent(t *testing.T) {
	inWorld(t, Limits{Burst: 1000}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		w.ledger.fail(func(op, _ string) error {
			if op == "create" {
				time.Sleep(10 * time.Millisecond) // virtual: so that the others meet it at work
			}
			return nil
		})
		signed := press("anna-phone", "door")
		id := idOf(signed)
		other := pressID(id, "anna-phone", "door") // another signature under the same id
		stranger := pressID(id, "ben-phone", "door")
		var wg sync.WaitGroup
		wg.Go(func() { w.send("anna-phone", signed) })
		synctest.Wait()
		for range 50 {
			wg.Go(func() {
				if s := w.send("anna-phone", signed); s.ID != id || s.State == mqttbridge.Refused {
					t.Errorf("the same again: %+v", s)
				}
			})
			wg.Go(func() { w.sendRefused("anna-phone", "kitchen", other, mqttbridge.CodeDuplicate) })
			wg.Go(func() { w.sendRefused("ben-phone", "kitchen", stranger, mqttbridge.CodeDuplicate) })
		}
		wg.Wait()
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 1 {
			t.Fatalf("the home got the command %d times", len(got))
		}
		if n := w.ledger.counted("create"); n != 1 {
			t.Errorf("recorded %d times", n)
		}
		ag.status(mqttbridge.Status{ID: id, State: mqttbridge.Done})
		if s := w.send("anna-phone", signed); s.State != mqttbridge.Done {
			t.Errorf("after its end the same again: %+v", s)
		}
		if _, ok := w.d.Command("ben-phone", id); ok {
			t.Error("ben reads anna's command")
		}
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 0 {
			t.Errorf("the home got the command again %d times", len(got))
		}
	})
}

// Those who wait for the same command's record hear the same no.
func TestIdempotentRefusal(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), obedient)
		w.ledger.fail(func(string, string) error {
			time.Sleep(time.Second) // virtual
			return errFull
		})
		signed := press("anna-phone", "door")
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { w.sendRefused("anna-phone", "kitchen", signed, mqttbridge.CodeDisk) })
		}
		wg.Wait()
	})
}

// The ledger may know more than the memory: another relay wrote there, or an
// earlier write failed after it was made.
func TestLedgerKnowsIt(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		signed := press("anna-phone", "door")
		lost := true
		w.ledger.fail(func(op, key string) error {
			if op == "create" && lost {
				lost = false
				c := &command{status: mqttbridge.Status{ID: idOf(signed), Home: "kitchen", Action: "door", Device: "anna-phone", State: mqttbridge.Accepted}, agent: kitchen.ID, digest: digestOf("kitchen", signed)}
				w.ledger.values[key] = encodeCommand(c)
			}
			return nil
		})
		if s := w.send("anna-phone", signed); s.State != mqttbridge.Sent {
			t.Errorf("Send = %+v", s)
		}
		time.Sleep(2 * time.Second) // virtual
		if got := ag.got(mqttbridge.FrameQuery); len(got) != 1 || got[0].IDs[0] != idOf(signed) {
			t.Errorf("the home was asked %+v", got)
		}
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 0 {
			t.Errorf("a command that may have been sent before was sent %d times", len(got))
		}
		ag.status(mqttbridge.Status{ID: idOf(signed), State: mqttbridge.Expired})
		w.is("anna-phone", idOf(signed), mqttbridge.Expired)
	})
}

// Somebody else's record under the same id is not shown to the device.
func TestLedgerHoldsAnothersID(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		w.agent(Agent{ID: "x", Name: "attic"}, aHome(), nil)
		id := mqttbridge.NewID()
		for _, value := range []string{
			string(encodeCommand(&command{status: mqttbridge.Status{ID: id, Device: "ben-phone", State: mqttbridge.Done, Final: true}})),
			"{", "",
		} {
			w.ledger.values[commandPrefix+id] = []byte(value)
			if value == "" {
				w.ledger.values[commandPrefix+id] = []byte{}
			}
			w.sendRefused("anna-phone", "kitchen", pressID(id, "anna-phone", "door"), mqttbridge.CodeDuplicate)
			if _, ok := w.d.Command("anna-phone", id); ok {
				t.Error("anna sees a command under the id")
			}
		}
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 0 {
			t.Errorf("the home got %d commands", len(got))
		}
	})
}

func TestNewWantsALedger(t *testing.T) {
	if _, err := New(t.Context(), Config{}); err == nil {
		t.Error("New without a ledger works")
	}
	if _, err := New(t.Context(), Config{Ledger: brokenList{newLedger()}}); !errors.Is(err, errFull) {
		t.Errorf("New with a ledger that cannot be read: %v", err)
	}
}
