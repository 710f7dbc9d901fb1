package e2e_test

import (
	"context"
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/agent"
	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/bridge"
	"github.com/sallyport/sallyport/mqttbridge/executor"
	"github.com/sallyport/sallyport/test/world"
)

const pin = "2580"

// A house is a home with a broker, a garage door that does what it is told,
// and a phone whose signing key is trusted.
type house struct {
	*world.World
	relay  *world.Relay
	home   *world.Home
	broker *world.Broker
	remote *world.Remote
	opened func() []world.Message // what the door was told
}

// garage is the door: it answers on its state topic.
func garage() executor.Action {
	return executor.Action{
		Name: "garage", Label: "Garage door", Topic: "cmnd/garage", Payload: "open", Confirm: mqttbridge.ConfirmPIN,
		Ack: &executor.Ack{Topic: "stat/garage", Match: "open", Timeout: 5 * time.Second}, State: "stat/garage",
	}
}

func newHouse(w *world.World, actions ...executor.Action) *house {
	w.T.Helper()
	h := &house{World: w, relay: w.Relay(domain)}
	h.home = h.relay.NewHome("kitchen", world.Web("web"))
	var addr string
	h.broker, addr = h.home.Broker()
	h.opened = door(h.broker, "garage")
	h.home.MQTT = &agent.MQTT{Broker: bridge.Broker{URL: addr}}
	h.home.Actions = actions
	h.home.Start()
	h.home.AwaitOnline(time.Minute)
	h.remote = h.relay.Phone("anna").Remote()
	h.awaitHome()
	h.trust(h.remote)
	if err := h.home.Control().SetPIN(context.Background(), "", pin); err != nil {
		w.T.Fatal(err)
	}
	return h
}

// door answers commands of one name on the broker and lists them.
func door(b *world.Broker, name string) (told func() []world.Message) {
	var list messages
	b.Watch("cmnd/"+name, func(m world.Message) {
		list.add(m)
		go b.Publish("stat/"+name, m.Payload, true)
	})
	return list.all
}

// awaitHome waits until the page shows a home that can do something.
func (h *house) awaitHome() {
	h.T.Helper()
	h.Until(2*time.Minute, "the home takes commands", func() bool {
		home, err := h.remote.Home("kitchen")
		if err != nil || !home.Online || !home.Broker {
			return false
		}
		// After a kill the relay may not have noticed yet: only an answer is one.
		_, err = h.remote.Challenge("kitchen", h.home.Actions[0].Name)
		return err == nil
	})
}

// trust offers a remote's key and confirms it at home.
func (h *house) trust(r *world.Remote) {
	h.T.Helper()
	if got, err := r.Offer("kitchen"); err != nil || got != mqttbridge.TrustPending {
		h.T.Fatalf("a new key: %s, %v", got, err)
	}
	keys, err := h.home.Control().Keys(context.Background())
	if err != nil {
		h.T.Fatal(err)
	}
	home, err := r.Home("kitchen")
	if err != nil {
		h.T.Fatal(err)
	}
	words, err := mqttbridge.TrustWords(home.Key, r.SPKI())
	if err != nil {
		h.T.Fatal(err)
	}
	for _, k := range keys {
		if k.Device == r.Phone.Name && k.Words == words {
			if err := h.home.Control().Trust(context.Background(), k.Device, k.ID); err != nil {
				h.T.Fatal(err)
			}
			return
		}
	}
	h.T.Fatalf("no key with the phone's words among %+v", keys)
}

// want checks how a command ended and how often the door moved for it.
func (h *house) want(st mqttbridge.Status, state mqttbridge.State, code mqttbridge.Code, moved int) {
	h.T.Helper()
	if st.State != state || st.Code != code || !st.Final {
		h.T.Errorf("the command ended as %+v; want %s %s", st, state, code)
	}
	if n := len(h.opened()); n != moved {
		h.T.Errorf("the door was moved %d times, want %d", n, moved)
	}
}

// prepare fetches a challenge and signs.
func (h *house) prepare(action, pin string) mqttbridge.Signed {
	h.T.Helper()
	home, err := h.remote.Home("kitchen")
	if err != nil {
		h.T.Fatal(err)
	}
	challenge, err := h.remote.Challenge("kitchen", action)
	if err != nil {
		h.T.Fatal(err)
	}
	return h.remote.Sign(home, action, "", challenge, pin)
}

func (h *house) send(s mqttbridge.Signed) mqttbridge.Status {
	h.T.Helper()
	st, err := h.remote.Send("kitchen", "garage", s)
	if err != nil {
		h.T.Fatal(err)
	}
	return h.remote.Await(st)
}

// The whole way: press, and the door opens once. The same bytes again are
// answered with what became of them; a challenge that was used or is too old
// opens nothing, whatever the clocks say.
func TestCommand(t *testing.T) {
	world.Run(t, func(w *world.World) {
		h := newHouse(w, garage())
		began := time.Now()
		s := h.prepare("garage", pin)
		h.want(h.send(s), mqttbridge.Done, "", 1)
		if took := time.Since(began); took > 20*world.Latency {
			t.Errorf("press to done took %v", took)
		}
		if m := h.opened()[0]; m.Payload != "open" || m.Retained {
			t.Errorf("the door got %+v", m)
		}
		h.want(h.send(s), mqttbridge.Done, "", 1)

		late := h.prepare("garage", pin)
		w.Sleep(11 * time.Second)
		h.want(h.send(late), mqttbridge.Expired, "", 1)
		h.want(h.remote.Press("kitchen", "garage", pin), mqttbridge.Done, "", 2)
	})
}

// A key that nobody at home has confirmed moves nothing, and one whose trust was
// taken back no more.
func TestCommandNeedsTrust(t *testing.T) {
	world.Run(t, func(w *world.World) {
		h := newHouse(w, garage())
		trusted := h.remote
		h.remote = h.relay.Phone("eve").Remote()
		if _, err := h.remote.Offer("kitchen"); err != nil {
			t.Fatal(err)
		}
		h.want(h.remote.Press("kitchen", "garage", pin), mqttbridge.Refused, mqttbridge.CodeUntrusted, 0)
		// Another phone in anna's name: her key is known.
		h.remote = trusted
		thief := *trusted
		thief.Key = trusted.Phone.Remote().Key
		if got, err := thief.Offer("kitchen"); err != nil || got == mqttbridge.TrustYes {
			t.Errorf("a second key for anna: %s, %v", got, err)
		}
		h.remote = &thief
		h.want(h.remote.Press("kitchen", "garage", pin), mqttbridge.Refused, mqttbridge.CodeUntrusted, 0)
		h.remote = trusted
		h.want(h.remote.Press("kitchen", "garage", pin), mqttbridge.Done, "", 1)
		if err := h.home.Control().Untrust(context.Background(), "anna"); err != nil {
			t.Fatal(err)
		}
		h.want(h.remote.Press("kitchen", "garage", pin), mqttbridge.Refused, mqttbridge.CodeUntrusted, 1)
	})
}

// Five wrong PINs lock the device out, over restarts of relay and agent, and
// say so.
func TestWrongPINs(t *testing.T) {
	world.Run(t, func(w *world.World) {
		h := newHouse(w, garage())
		for left := 4; left > 0; left-- {
			st := h.remote.Press("kitchen", "garage", "0000")
			h.want(st, mqttbridge.Refused, mqttbridge.CodePINWrong, 0)
			if st.AttemptsLeft != left {
				t.Errorf("%d attempts left, want %d", st.AttemptsLeft, left)
			}
		}
		h.home.Kill()
		h.home.Start()
		h.awaitHome()
		h.remote.Press("kitchen", "garage", "0000")
		st := h.remote.Press("kitchen", "garage", pin)
		h.want(st, mqttbridge.Refused, mqttbridge.CodeLocked, 0)
		if home, err := h.remote.Home("kitchen"); err != nil || home.Alert == "" {
			t.Errorf("no alert: %+v, %v", home, err)
		}
		h.home.Kill()
		h.relay.Kill()
		h.relay.Start()
		h.home.Start()
		h.awaitHome()
		h.want(h.remote.Press("kitchen", "garage", pin), mqttbridge.Refused, mqttbridge.CodeLocked, 0)
		w.Sleep(16 * time.Minute)
		h.want(h.remote.Press("kitchen", "garage", pin), mqttbridge.Done, "", 1)
	})
}

// While the home is away a command is refused at once, and never comes true
// later.
func TestCommandWhileOffline(t *testing.T) {
	world.Run(t, func(w *world.World) {
		h := newHouse(w, garage())
		s := h.prepare("garage", pin)
		h.home.Stop()
		h.Until(time.Minute, "the relay notices", func() bool {
			home, err := h.remote.Home("kitchen")
			return err == nil && !home.Online
		})
		began := time.Now()
		h.want(h.send(s), mqttbridge.Refused, mqttbridge.CodeOffline, 0)
		if took := time.Since(began); took > time.Second {
			t.Errorf("that took %v", took)
		}
		h.home.Start()
		h.awaitHome()
		w.Sleep(time.Minute)
		h.want(h.remote.Press("kitchen", "garage", pin), mqttbridge.Done, "", 1)
		h.broker.Kill()
		w.Sleep(time.Second)
		h.want(h.remote.Press("kitchen", "garage", pin), mqttbridge.Refused, mqttbridge.CodeBroker, 1)
		h.broker.Start()
		h.awaitHome()
		h.want(h.remote.Press("kitchen", "garage", pin), mqttbridge.Done, "", 2)
	})
}

// The relay is killed between the press and the answer: nothing runs twice, and
// the command has an end.
func TestRelayDiesWithCommand(t *testing.T) {
	world.Run(t, func(w *world.World) {
		h := newHouse(w, garage())
		for i := range 12 {
			s := h.prepare("garage", pin)
			go h.remote.Send("kitchen", "garage", s)
			w.Sleep(time.Duration(i) * world.Latency / 2)
			h.relay.Kill()
			h.relay.Start()
			h.awaitHome()
			e, err := s.Envelope()
			if err != nil {
				t.Fatal(err)
			}
			before := len(h.opened())
			st, err := h.remote.Status(e.ID)
			if err == nil {
				st = h.remote.Await(st)
			}
			// Pressed again with the same bytes, as a phone does that heard nothing.
			again, err := h.remote.Send("kitchen", "garage", s)
			if err != nil {
				t.Fatal(err)
			}
			again = h.remote.Await(again)
			if st.ID != "" && again.State != st.State {
				t.Errorf("round %d: first %+v, then %+v", i, st, again)
			}
			if n := len(h.opened()); n != before && (again.State != mqttbridge.Done || n != before+1) {
				t.Errorf("round %d: the door moved %d times: %+v", i, n-before, again)
			}
		}
		if n := len(h.opened()); n > 12 {
			t.Errorf("12 commands moved the door %d times", n)
		}
	})
}

// Revoking a device ends its page and its commands within a second.
func TestRevokedWithPageOpen(t *testing.T) {
	world.Run(t, func(w *world.World) {
		h := newHouse(w, garage())
		s := h.prepare("garage", pin)
		res, err := h.remote.Phone.Open("https://home."+domain+"/api/events", true)
		if err != nil {
			t.Fatal(err)
		}
		events := w.Watch("events", res.Body)
		w.Sleep(time.Second)
		if events.Ended() != nil || events.Bytes() == 0 {
			t.Fatalf("events: %d bytes, %v", events.Bytes(), events.Ended())
		}
		revoked := time.Now()
		h.relay.Revoke("anna")
		if err := events.Cut(revoked, time.Second); err != nil {
			t.Error(err)
		}
		if st, err := h.remote.Send("kitchen", "garage", s); err == nil {
			t.Errorf("a revoked device got %+v", st)
		}
		w.Sleep(time.Minute)
		if n := len(h.opened()); n != 0 {
			t.Errorf("the door moved %d times", n)
		}
	})
}

// A device sees neither the actions nor the commands of others.
func TestCommandsOfOthers(t *testing.T) {
	world.Run(t, func(w *world.World) {
		a := garage()
		a.Who = []string{"anna"}
		h := newHouse(w, a)
		st := h.remote.Press("kitchen", "garage", pin)
		ben := h.relay.Phone("ben").Remote()
		if homes, err := ben.Homes(); err != nil || len(homes) != 0 {
			t.Errorf("ben sees %+v, %v", homes, err)
		}
		if got, err := ben.Status(st.ID); err == nil {
			t.Errorf("ben sees %+v", got)
		}
		if c, err := ben.Challenge("kitchen", "garage"); err == nil {
			t.Errorf("ben got the challenge %s", c)
		}
		if homes, err := h.relay.Stranger().Remote().Homes(); err == nil {
			t.Errorf("a stranger sees %+v", homes)
		}
		body, _ := base64.StdEncoding.DecodeString("e30=")
		got, err := h.remote.Send("kitchen", "garage", mqttbridge.Signed{Body: body})
		if err == nil && (got.State != mqttbridge.Refused || got.Code != mqttbridge.CodeMalformed) {
			t.Errorf("an empty command: %+v", got)
		}
		if err != nil && !strings.Contains(err.Error(), "malformed") {
			t.Errorf("an empty command: %v", err)
		}
	})
}

// A damaged file of MQTT, at home or at the relay, shuts MQTT and commands and
// nothing else; the owner is told.
func TestDamagedMailbox(t *testing.T) {
	damaged := func(t *testing.T, dir string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "mqtt.db"), []byte("not a mailbox"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	told := func(warnings []string) bool {
		return slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, "MQTT and commands do not run") })
	}
	world.Run(t, func(w *world.World) {
		h := newHouse(w, garage())
		h.home.Stop()
		damaged(t, h.home.Dir())
		h.home.Start()
		h.home.AwaitOnline(time.Minute)
		visit(w, h.remote.Phone, homeURL+"/")
		if s := h.home.Status(); !told(s.Warnings) {
			t.Errorf("the agent says %q", s.Warnings)
		}
		if _, err := h.remote.Challenge("kitchen", "garage"); err == nil {
			t.Error("a home without its memory takes commands")
		}
		h.relay.Stop()
		damaged(t, h.relay.Dir())
		h.relay.Start()
		h.Until(time.Minute, "a visit succeeds", func() bool { return h.remote.Phone.Visits(homeURL + "/") })
		if s := h.relay.Status(); !told(s.Warnings) || s.MQTT != nil {
			t.Errorf("the relay says %q, %+v", s.Warnings, s.MQTT)
		}
		if _, err := h.remote.Homes(); err == nil {
			t.Error("there is a command page")
		}
	})
}

// A revoked device is trusted at no home any more: not at one that is connected,
// nor at one that was away and whose relay was started again meanwhile. What only
// loses a right stays trusted.
func TestRevokedIsTrustedNowhere(t *testing.T) {
	world.Run(t, func(w *world.World) {
		h := newHouse(w, garage())
		withdrawn := func(name string) bool {
			keys, err := h.home.Control().Keys(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range keys {
				if k.Device == name && !k.Trusted && !k.Withdrawn.IsZero() {
					return true
				}
			}
			return false
		}
		h.want(h.remote.Press("kitchen", "garage", pin), mqttbridge.Done, "", 1)
		other := h.relay.Phone("ben").Remote()
		h.trust(other)
		h.relay.Revoke("anna")
		w.Until(10*time.Second, "the home takes back its trust", func() bool { return withdrawn("anna") })
		if withdrawn("ben") {
			t.Error("another device lost its trust, too")
		}
		h.home.Stop()
		h.relay.Revoke("ben")
		w.Sleep(time.Second)
		h.relay.Stop()
		h.relay.Start()
		h.home.Start()
		h.home.AwaitOnline(2 * time.Minute)
		w.Until(2*time.Minute, "the home hears of it when it is back", func() bool { return withdrawn("ben") })
	})
}
