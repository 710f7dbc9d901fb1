package dispatch

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

func TestKeepsForAWhile(t *testing.T) {
	c := Config{Ledger: newLedger()}
	if err := c.fill(); err != nil || c.Limits.Keep != 7*24*time.Hour || c.Limits.KeepCount != 10_000 {
		t.Errorf("without a word the limits are %+v, %v", c.Limits, err)
	}
	inWorld(t, Limits{Keep: time.Hour}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), obedient)
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Done)
		time.Sleep(time.Hour - 2*time.Minute) // virtual
		w.is("anna-phone", s.ID, mqttbridge.Done)
		time.Sleep(4 * time.Minute) // virtual
		if _, ok := w.d.Command("anna-phone", s.ID); ok {
			t.Error("kept for too long")
		}
		if got := w.ledger.state(t, s.ID); got != "" {
			t.Errorf("the ledger still says %q", got)
		}
	})
}

// Above the limit the device with the most loses its oldest: a flood washes
// away what the flooding device did.
func TestKeepsSoMany(t *testing.T) {
	const keep = 100
	inWorld(t, Limits{KeepCount: keep, Burst: 10_000}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), obedient)
		bens := w.send("ben-phone", press("ben-phone", "door"))
		synctest.Wait()
		var annas []string
		for range 3 * keep {
			time.Sleep(time.Millisecond) // virtual
			annas = append(annas, w.send("anna-phone", press("anna-phone", "door")).ID)
			synctest.Wait()
		}
		time.Sleep(2 * time.Second) // virtual: far too many are not waited with
		if n := w.d.Status().Commands; n != keep {
			t.Errorf("%d commands are kept", n)
		}
		w.is("ben-phone", bens.ID, mqttbridge.Done)
		w.is("anna-phone", annas[len(annas)-1], mqttbridge.Done)
		if _, ok := w.d.Command("anna-phone", annas[0]); ok {
			t.Error("the oldest is still there")
		}
		synctest.Wait()
		if got, _ := w.ledger.List(t.Context(), commandPrefix); len(got) != keep {
			t.Errorf("%d are in the ledger", len(got))
		}
	})
}

// Open commands are never forgotten, and what cannot be read is left alone.
func TestRecordsOfAllKinds(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.stop()
		id := func(i int) string { return fmt.Sprintf("id-of-a-command-%02d", i) }
		put := func(i int, s mqttbridge.Status) {
			s.ID = id(i)
			w.ledger.values[commandPrefix+s.ID] = encodeCommand(&command{status: s, agent: kitchen.ID})
		}
		long := time.Now().Add(-30 * 24 * time.Hour)
		put(1, mqttbridge.Status{Device: "anna-phone", State: mqttbridge.Accepted, Created: long})
		put(2, mqttbridge.Status{Device: "anna-phone", State: mqttbridge.Done, Final: true, Created: long})
		put(3, mqttbridge.Status{Device: "anna-phone", State: "odd", Created: long})
		w.ledger.values[commandPrefix+id(4)] = []byte("{")
		put(6, mqttbridge.Status{Device: "anna-phone", State: mqttbridge.Accepted})
		w.ledger.values[commandPrefix+id(5)] = w.ledger.values[commandPrefix+id(6)]
		delete(w.ledger.values, commandPrefix+id(6))
		w.ledger.values[homePrefix+"kitchen"] = []byte("null")
		w.ledger.values[homePrefix+"attic"] = encodeHome(&home{shot: newSnapshot(mqttbridge.Home{Name: "cellar", ID: homeKey1().id, Key: homeKey1().spki}, nil)})
		w.start(Limits{})
		synctest.Wait()
		w.is("anna-phone", id(1), mqttbridge.Sent)
		if s := w.d.Status(); s.Commands != 1 || s.Homes != 0 || s.Open != 1 {
			t.Errorf("Status = %+v", s)
		}
		if got := w.ledger.state(t, id(2)); got != "" {
			t.Errorf("a command of last month is kept as %q", got)
		}
		if w.ledger.values[commandPrefix+id(4)] == nil {
			t.Error("a record that cannot be read was removed")
		}
	})
}

// Devices that went leave nothing behind.
func TestGuestsGo(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		for i := range 100 {
			device := fmt.Sprint("phone-", i)
			w.sendRefused(device, "kitchen", press(device, "door"), mqttbridge.CodeNoAction)
			w.d.Challenge(t.Context(), device, "kitchen", "door")
		}
		time.Sleep(5 * time.Minute) // virtual
		w.d.mu.Lock()
		defer w.d.mu.Unlock()
		if n := len(w.d.guests); n != 0 {
			t.Errorf("%d devices are remembered", n)
		}
	})
}

// A clock that is set back gives nothing and takes nothing for long.
func TestLimiter(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l := newLimiter(2, time.Second)
	for i, c := range []struct {
		after time.Duration
		want  bool
	}{
		{0, true},
		{0, true},
		{0, false},
		{time.Second, true},
		{0, false},
		{-time.Hour, false},
		{time.Second, true},
		{1000 * time.Hour, true},
		{0, true},
		{0, false},
	} {
		now = now.Add(c.after)
		if got := l.take(now); got != c.want {
			t.Errorf("step %d: take = %v", i, got)
		}
	}
}
