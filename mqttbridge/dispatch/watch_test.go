package dispatch

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A reader that does not read delays nobody, and then gets the newest of
// everything.
func TestSlowWatcher(t *testing.T) {
	inWorld(t, Limits{Burst: 10_000, Open: 10_000, PerHour: 10_000}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), obedient)
		ctx, cancel := context.WithCancel(w.ctx)
		slow := w.d.Watch(ctx, "anna-phone")
		began := time.Now()
		var last string
		for i := range 200 {
			time.Sleep(100 * time.Millisecond) // virtual: an agent's own pace is slower
			h := aHome()
			h.Actions[0].State = &mqttbridge.Live{Value: fmt.Sprint(i)}
			ag.offer(h)
			s := w.send("anna-phone", press("anna-phone", "door"))
			synctest.Wait()
			last = s.ID
		}
		if took := time.Since(began); took != 20*time.Second {
			t.Errorf("the slow reader delayed the others by %v", took-20*time.Second)
		}
		events, ids, value := 0, map[string]mqttbridge.State{}, ""
		for {
			synctest.Wait()
			select {
			case ev, open := <-slow:
				if events++; !open || ev.HomeGone != "" {
					t.Fatalf("after %d events: %+v, open %v, %v", events, ev, open, w.log.String())
				}
				if ev.Home != nil && ev.Home.Actions[0].State == nil {
					continue // as it was when the watch began
				}
				if ev.Home != nil {
					value = ev.Home.Actions[0].State.Value
				} else {
					ids[ev.Status.ID] = ev.Status.State
				}
				continue
			default:
			}
			break
		}
		if events > watchStatuses+3 {
			t.Errorf("%d events waited", events)
		}
		if value != "199" || ids[last] != mqttbridge.Done {
			t.Errorf("the last value was %q, the last command %q", value, ids[last])
		}
		cancel()
		if _, open := <-slow; open {
			t.Error("the channel is open after its context ended")
		}
		synctest.Wait()
		if n := w.d.Status().Watches; n != 0 {
			t.Errorf("%d watches are left", n)
		}
	})
}

// A page that lost its stream for a moment is told what ended meanwhile.
func TestWatchBeginsWithCommands(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		old := w.send("anna-phone", press("anna-phone", "door"))
		synctest.Wait()
		ag.status(mqttbridge.Status{ID: old.ID, State: mqttbridge.Done})
		time.Sleep(2 * time.Minute) // virtual
		recent := w.send("anna-phone", press("anna-phone", "door"))
		synctest.Wait()
		ag.status(mqttbridge.Status{ID: recent.ID, State: mqttbridge.Done})
		time.Sleep(time.Second) // virtual
		open := w.send("anna-phone", press("anna-phone", "door"))
		synctest.Wait()
		evs := w.look("anna-phone").seen()
		if len(evs) != 3 || evs[0].Home == nil || evs[1].Status.ID != recent.ID || evs[1].Status.State != mqttbridge.Done ||
			evs[2].Status.ID != open.ID || evs[2].Status.State != mqttbridge.Sent {
			t.Errorf("the watch began with %+v", evs)
		}
	})
}

// A device holds a number of watches; the oldest is most likely a connection
// that is dead already.
func TestTooManyWatches(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), nil)
		var all []*eyes
		for range 51 {
			all = append(all, w.look("anna-phone"))
		}
		bens := w.look("ben-phone")
		for i, e := range all {
			if e.ended() != (i == 0) {
				t.Errorf("watch %d: ended is %v", i, e.ended())
			}
		}
		if bens.ended() {
			t.Error("ben's watch ended")
		}
	})
}

// Equal offers are no news, and a home that does not change costs nothing.
func TestSameAgainIsNoEvent(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		eyes := w.look("anna-phone")
		eyes.seen()
		time.Sleep(time.Hour) // virtual
		puts := w.ledger.counted("put")
		for range 10 {
			ag.offer(aHome())
		}
		if evs := eyes.seen(); len(evs) != 0 {
			t.Errorf("told of %+v", evs)
		}
		time.Sleep(time.Minute) // virtual
		if n := w.ledger.counted("put") - puts; n != 0 {
			t.Errorf("%d writes", n)
		}
	})
}

// Lamps that blink are not written to disk; new buttons are, at leisure.
func TestHomesAreWrittenSeldom(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		time.Sleep(time.Minute) // virtual
		before := w.ledger.counted("put")
		for i := range 100 {
			h := aHome()
			h.Actions[0].State = &mqttbridge.Live{Value: fmt.Sprint(i)}
			h.Broker = i%2 == 0
			ag.offer(h)
			time.Sleep(200 * time.Millisecond) // virtual
		}
		if n := w.ledger.counted("put") - before; n != 0 {
			t.Errorf("%d writes for a lamp", n)
		}
		before = w.ledger.counted("put")
		for i := range 100 {
			h := aHome()
			h.Actions[0].Label = fmt.Sprint("Door ", i)
			ag.offer(h)
			time.Sleep(200 * time.Millisecond) // virtual
		}
		time.Sleep(homeEvery + time.Second) // virtual
		if n := w.ledger.counted("put") - before; n == 0 || n > 4 {
			t.Errorf("%d writes for buttons that changed for 20 s", n)
		}
		w.restart(Limits{})
		if homes := w.d.Homes("anna-phone"); homes[0].Actions[0].Label != "Door 99" || homes[0].Actions[0].State != nil {
			t.Errorf("after a restart: %+v", homes)
		}
	})
}
