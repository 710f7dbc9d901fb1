package executor

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

func TestPress(t *testing.T) {
	bubble(t, func(w *world) {
		s := w.press("anna-phone", "garage")
		wantState(t, s, mqttbridge.Delivered, "")
		if s.Device != "anna-phone" || s.Action != "garage" || s.Home != "kitchen" || !s.Final {
			t.Errorf("status %+v", s)
		}
		w.published(garage, "ON")
		last := w.relay.action("garage").Last
		if last == nil || last.By != "anna-phone" || last.State != mqttbridge.Delivered {
			t.Errorf("last %+v", last)
		}
		if open, err := w.e.seen.unfinished(); err != nil || len(open) > 0 {
			t.Errorf("%q is still open, %v", open, err)
		}
		w.restart()
		if again := w.relay.action("garage").Last; again == nil || again.By != last.By || !again.At.Equal(last.At) {
			t.Errorf("last after a restart %+v, before %+v", again, last)
		}
		if got := w.relay.query(s.ID); got.State != mqttbridge.Delivered || !got.Final {
			t.Errorf("after a restart %+v", got)
		}
	})
}

func TestValuesAndWho(t *testing.T) {
	bubble(t, func(w *world) {
		wantState(t, w.press("anna-phone", "lamp", withValue("on")), mqttbridge.Delivered, "")
		wantState(t, w.press("bob", "lamp", withValue("off")), mqttbridge.Delivered, "")
		w.published("lamp/set", "1", "0")
		for _, v := range []string{"", "1", "ON", "open"} {
			wantState(t, w.press("bob", "lamp", withValue(v)), mqttbridge.Refused, mqttbridge.CodeMalformed)
		}
		wantState(t, w.press("bob", "garage", withValue("on")), mqttbridge.Refused, mqttbridge.CodeMalformed)

		w.trust("carl")
		f := w.relay.ask(mqttbridge.Frame{Type: mqttbridge.FrameChallenge, Device: "carl", Action: "lamp"})
		if f.Challenge != "" || f.Status == nil || f.Status.Code != mqttbridge.CodeNoAction {
			t.Errorf("carl's challenge for the lamp: %+v", f)
		}
		// The relay hands carl a challenge that it has from elsewhere.
		env := w.envelope("carl", "lamp", w.challenge("carl", "garage"))
		env.Value = "on"
		s := w.relay.final(w.command("carl", w.sign(w.phone("carl"), env)))
		wantState(t, s, mqttbridge.Refused, mqttbridge.CodeNoAction)
		w.published("lamp/set", "1", "0")
		w.published(garage)
	})
}

func TestAck(t *testing.T) {
	bubble(t, func(w *world) {
		w.broker.say("blind/state", "open", false) // before: does not count
		env := w.envelope("bob", "blind", w.challenge("bob", "blind"))
		seq := w.command("bob", w.sign(w.phone("bob"), env))
		synctest.Wait()
		w.published("blind/set", "OPEN")
		if got := w.relay.query(env.ID); got.State != mqttbridge.Delivered || got.Final {
			t.Errorf("before the ack: %+v", got)
		}
		w.broker.say("blind/state", "open", true)     // retained
		w.broker.say("blind/state", "opening", false) // another text
		w.broker.say("lamp/state", "open", false)     // another topic
		if got := w.relay.states(env.ID); slices.Contains(got, mqttbridge.Done) {
			t.Fatalf("done without an ack: %v", got)
		}
		w.broker.say("blind/state", "open", false)
		s := w.relay.final(seq)
		wantState(t, s, mqttbridge.Done, "")
		if got := w.relay.action("blind").State; got == nil || got.Value != "open" {
			t.Errorf("live %+v", got)
		}

		// A device that answers while the broker still owes its PUBACK.
		w.broker.decide(func(topic, _ string) error {
			w.broker.say("blind/state", "open", false)
			return nil
		})
		wantState(t, w.press("bob", "blind"), mqttbridge.Done, "")

		w.broker.decide(nil)
		began := time.Now()
		wantState(t, w.press("bob", "blind"), mqttbridge.Unconfirmed, "")
		if took := time.Since(began); took < 20*time.Second || took > 21*time.Second {
			t.Errorf("unconfirmed after %v", took)
		}
	})
}

func TestUncertainAndOffline(t *testing.T) {
	bubble(t, func(w *world) {
		w.broker.decide(func(string, string) error { return errUncertain })
		s := w.press("bob", "garage")
		wantState(t, s, mqttbridge.Unknown, "")
		w.broker.decide(func(string, string) error { return errOffline })
		s2 := w.press("bob", "garage")
		wantState(t, s2, mqttbridge.Refused, mqttbridge.CodeBroker)
		w.broker.setAway(true)
		s3 := w.press("bob", "garage")
		wantState(t, s3, mqttbridge.Refused, mqttbridge.CodeBroker)
		if _, found, _ := w.e.seen.get(s3.ID); found {
			t.Error("a command that was refused without a broker was recorded as running")
		}
		if w.relay.home().Broker {
			t.Error("the home says that its broker is there")
		}
		w.broker.setAway(false)
		w.broker.decide(nil)
		time.Sleep(2 * time.Second) // virtual
		if !w.relay.home().Broker {
			t.Error("the home says that its broker is away")
		}
		w.published(garage, "ON") // the uncertain one
		w.restart()
		for s, want := range map[mqttbridge.Status]mqttbridge.State{s: mqttbridge.Unknown, s2: mqttbridge.Refused, s3: mqttbridge.Expired} {
			if got := w.relay.query(s.ID); got.State != want {
				t.Errorf("after a restart: %+v, want %s", got, want)
			}
		}
		if last := w.relay.action("garage").Last; last == nil || last.State != mqttbridge.Unknown {
			t.Errorf("last %+v", last)
		}
	})
}

// The broker's answer is waited for as long as the challenge lives, not longer.
func TestPublishIsBounded(t *testing.T) {
	bubble(t, func(w *world) {
		env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
		time.Sleep(7 * time.Second) // virtual
		var left time.Duration
		w.broker.mu.Lock()
		w.broker.hang = func(d time.Duration) { left = d }
		w.broker.mu.Unlock()
		wantState(t, w.relay.final(w.command("bob", w.sign(w.phone("bob"), env))), mqttbridge.Unknown, "")
		if left != 3*time.Second {
			t.Errorf("published with %v to go, want 3 s", left)
		}
	})
}

func TestSetActions(t *testing.T) {
	bubble(t, func(w *world) {
		w.broker.say("blind/state", "open", false)
		before := w.challenge("bob", "garage")
		if err := w.e.SetActions([]Action{{Name: "x", Topic: "+"}}); err == nil {
			t.Fatal("a wildcard as topic was taken")
		}
		acts := w.acts[1:]
		acts = append(slices.Clone(acts), Action{Name: "new", Topic: "new/set", Payload: "1", Ack: &Ack{Topic: "new/state"}})
		if err := w.e.SetActions(acts); err != nil {
			t.Fatal(err)
		}
		home := w.relay.home()
		if len(home.Actions) != len(acts) || home.Actions[0].Name != "gate" {
			t.Errorf("actions %+v", home.Actions)
		}
		env := w.envelope("bob", "garage", before)
		wantState(t, w.relay.final(w.command("bob", w.sign(w.phone("bob"), env))), mqttbridge.Refused, mqttbridge.CodeNoAction)
		w.broker.decide(func(topic, _ string) error { w.broker.say("new/state", "x", false); return nil })
		wantState(t, w.press("bob", "new"), mqttbridge.Done, "")
		if live := w.relay.action("blind").State; live == nil || live.Value != "open" {
			t.Errorf("an action that stayed lost its state: %+v", live)
		}
		w.broker.mu.Lock()
		n := len(w.broker.subs)
		w.broker.mu.Unlock()
		if want := len(w.e.set.Load().filters()) + len(discoveryFilters); n != want {
			t.Errorf("%d subscriptions, want %d", n, want)
		}
	})
}

func TestRunOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		if err := w.e.Run(t.Context()); err == nil {
			t.Error("a second Run began")
		}
		w.stop()
		if err := w.e.ServeRelay(t.Context(), nopConn{}); err == nil {
			t.Error("a stream was served after the end")
		}
		w.end()
		if err := w.e.Close(); err != nil {
			t.Error("second Close:", err)
		}
	})
}
