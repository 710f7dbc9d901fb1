package executor

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const buzzer = "buzzer/set"

func TestPulse(t *testing.T) {
	bubble(t, func(w *world) {
		wantState(t, w.press("bob", "buzzer"), mqttbridge.Delivered, "")
		w.published(buzzer, "ON")
		wantState(t, w.press("bob", "buzzer"), mqttbridge.Refused, mqttbridge.CodeBusy)
		time.Sleep(2 * time.Second) // virtual
		w.published(buzzer, "ON", "OFF")
		took := w.broker.at(buzzer)
		if d := took[1].at.Sub(took[0].at); d != time.Second {
			t.Errorf("released after %v", d)
		}
		wantState(t, w.press("bob", "buzzer"), mqttbridge.Delivered, "")
		time.Sleep(2 * time.Second) // virtual
		w.published(buzzer, "ON", "OFF", "ON", "OFF")
	})
}

// Without a broker in between the release is tried as soon as there is one, and
// somebody is told.
func TestPulseWithoutBroker(t *testing.T) {
	bubble(t, func(w *world) {
		w.press("bob", "buzzer")
		w.broker.setAway(true)
		time.Sleep(5 * time.Minute) // virtual
		if alert := w.relay.home().Alert; !strings.Contains(alert, "buzzer") {
			t.Errorf("alert %q", alert)
		}
		w.broker.setAway(false)
		time.Sleep(time.Second) // virtual
		w.published(buzzer, "ON", "OFF")
		if alert := w.relay.home().Alert; alert != "" {
			t.Errorf("alert %q", alert)
		}

		// Nobody knows whether it came: it is sent once more.
		var tries atomic.Int32
		w.broker.decide(func(topic, payload string) error {
			if payload == "OFF" && tries.Add(1) == 1 {
				return errUncertain
			}
			return nil
		})
		w.press("bob", "buzzer")
		time.Sleep(3 * time.Second) // virtual
		w.published(buzzer, "ON", "OFF", "ON", "OFF", "OFF")
		w.broker.decide(nil)

		// And given up at some time.
		w.press("bob", "buzzer")
		w.broker.setAway(true)
		time.Sleep(pulseBound + time.Minute) // virtual
		w.broker.setAway(false)
		time.Sleep(time.Minute) // virtual
		w.published(buzzer, "ON", "OFF", "ON", "OFF", "OFF", "ON")
		if alert := w.relay.home().Alert; !strings.Contains(alert, "by hand") {
			t.Errorf("alert %q", alert)
		}
		wantState(t, w.press("bob", "buzzer"), mqttbridge.Delivered, "")
		time.Sleep(25 * time.Hour) // virtual
		if alert := w.relay.home().Alert; alert != "" {
			t.Errorf("an alert of yesterday: %q", alert)
		}
	})
}

// The end of the program makes a press shorter, not endless.
func TestPulseAtTheEnd(t *testing.T) {
	bubble(t, func(w *world) {
		w.press("bob", "buzzer")
		w.restart()
		w.published(buzzer, "ON", "OFF")
		time.Sleep(2 * time.Second) // virtual
		w.published(buzzer, "ON", "OFF")

		// No broker at the end: the next process does it.
		w.press("bob", "buzzer")
		w.broker.setAway(true)
		w.restart()
		wantState(t, w.press("bob", "garage"), mqttbridge.Refused, mqttbridge.CodeBroker)
		w.broker.setAway(false)
		time.Sleep(2 * time.Second) // virtual
		w.published(buzzer, "ON", "OFF", "ON", "OFF")
		wantState(t, w.press("bob", "buzzer"), mqttbridge.Delivered, "")
	})
}

func TestPulseAfterACrash(t *testing.T) {
	for _, test := range []struct {
		name string
		jump time.Duration // of the wall clock, while no process runs
		want []string
	}{
		{"at once", 0, []string{"ON", "OFF"}},
		{"the clock is behind", -365 * 24 * time.Hour, []string{"ON", "OFF"}},
		{"soon", 5 * time.Minute, []string{"ON", "OFF"}},
		{"late by a clock that nobody can trust", pulseBound + 2*time.Second, []string{"ON", "OFF"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				jump := time.Duration(0)
				w.wall = func() time.Time { return time.Now().Add(jump) }
				w.start()
				w.trust("bob")
				w.press("bob", "buzzer")
				w.broker.setAway(true) // the dying process sends nothing more
				w.crash()
				old, stop := w.relay, w.stop
				jump = test.jump
				w.start()
				defer func() { w.end() }()
				stop()
				old.close()
				w.broker.setAway(false)
				time.Sleep(maxPulse + time.Minute) // virtual
				w.published(buzzer, test.want...)
				if alert := w.relay.home().Alert; alert != "" {
					t.Errorf("alert %q", alert)
				}
				w.restart() // owed no more
				time.Sleep(time.Minute)
				w.published(buzzer, test.want...)
			})
		})
	}
}

// A press that did not run owes no release.
func TestNoPulseWithoutPress(t *testing.T) {
	bubble(t, func(w *world) {
		w.broker.decide(func(string, string) error { return errOffline })
		wantState(t, w.press("bob", "buzzer"), mqttbridge.Refused, mqttbridge.CodeBroker)
		w.broker.decide(nil)
		time.Sleep(time.Minute) // virtual
		w.restart()
		time.Sleep(time.Minute) // virtual
		w.published(buzzer)
		// One that may have run does.
		w.broker.decide(func(_, payload string) error {
			if payload == "ON" {
				return errUncertain
			}
			return nil
		})
		wantState(t, w.press("bob", "buzzer"), mqttbridge.Unknown, "")
		time.Sleep(time.Minute) // virtual
		w.published(buzzer, "ON", "OFF")
		synctest.Wait()
	})
}
