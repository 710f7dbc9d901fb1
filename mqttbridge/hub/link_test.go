package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// What devices publish on a home's topics reaches it, and what it publishes
// reaches devices; each sees its own half of the topic.
func TestLinkBothWays(t *testing.T) {
	virtual(t, func(w *world) {
		home := w.agent("kitchen", inFilter("set/#", 1), inFilter("fast/#", 0))
		if home.welcome.Agent != "kitchen" || home.welcome.Prefix != "home/kitchen/" || home.welcome.Epoch == "" || home.welcome.Last != 0 {
			t.Errorf("welcome %+v", home.welcome)
		}
		c := w.connect("anna", 5)
		c.subscribe(filter("home/kitchen/state/#", 1))
		c.publish("home/kitchen/set/lamp", "on", 1)
		c.publish("home/kitchen/set/lamp", "off", 2)
		c.publish("home/kitchen/set/lamp", "zero", 0)
		c.publish("home/kitchen/fast/x", "1", 1)
		c.publish("home/garage/set/lamp", "not mine", 1)
		c.publish("home/kitchen/other", "no rule", 1)
		seen := map[string]mqttbridge.LinkMessage{}
		for range 4 {
			p, ok := home.next()
			if !ok {
				t.Fatal("a message is missing")
			}
			seen[p.Message.Topic+"="+string(p.Message.Payload)] = p.Message
		}
		for _, m := range []string{"set/lamp=on", "set/lamp=off"} {
			if lm := seen[m]; lm.Seq == 0 || lm.QoS != 1 || lm.Dup {
				t.Errorf("%s: %+v", m, lm)
			}
		}
		for _, m := range []string{"set/lamp=zero", "fast/x=1"} {
			if lm, ok := seen[m]; !ok || lm.Seq != 0 || lm.QoS != 0 {
				t.Errorf("%s: %+v", m, lm)
			}
		}
		home.quiet()
		home.publish("state/lamp", "on", true)
		if got := c.want("home/kitchen/state/lamp=on"); got[0].FixedHeader.Qos != 1 || got[0].FixedHeader.Retain {
			t.Errorf("%+v", got[0].FixedHeader)
		}
		late := w.connect("late", 4)
		late.subscribe(filter("home/kitchen/state/#", 1))
		if got := late.want("home/kitchen/state/lamp=on"); !got[0].FixedHeader.Retain {
			t.Error("it was not retained")
		}
		c.quiet()
	})
}

// What the home is not there for waits, in order, over links and restarts, and
// is told apart by Dup when it may have come before.
func TestHomeMailbox(t *testing.T) {
	virtual(t, func(w *world) {
		home := w.agent("kitchen", inFilter("set/#", 1))
		home.cut()
		c := w.connect("anna", 5)
		var want []string
		for i := range 100 {
			c.publish("home/kitchen/set/x", fmt.Sprint(i), 1)
			want = append(want, fmt.Sprintf("set/x=%d", i))
		}
		home = w.agentEnd(Agent{ID: "id-kitchen", Name: "kitchen"})
		home.hold = true
		home.hello(inFilter("set/#", 1))
		home.next() // welcome
		home.want(want[:linkWindow]...)
		home.quiet() // the window is full
		home.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkAck, Seq: 10})
		home.want(want[linkWindow : linkWindow+10]...)
		home.cut()

		home = w.agentEnd(Agent{ID: "id-kitchen", Name: "kitchen"})
		home.hold = true
		home.hello(inFilter("set/#", 1))
		home.next()
		got := home.want(want[10 : 10+linkWindow]...)
		if !got[0].Dup || !got[linkWindow-1].Dup {
			t.Error("what may have come before does not say so")
		}
		synctest.Wait()
		c.leave()
		w.restart()
		home = w.agent("kitchen", inFilter("set/#", 1))
		home.want(want[10:]...)
		home.quiet()
		synctest.Wait()
		if st := w.hub.Status(); len(st.Agents) != 1 || st.Agents[0].Mailbox.Messages != 0 {
			t.Errorf("%+v", st.Agents)
		}
	})
}

// Numbers that the hub has seen are acknowledged and not carried out again; a
// new stream begins from 1.
func TestLinkDuplicates(t *testing.T) {
	virtual(t, func(w *world) {
		c := w.connect("anna", 5, persistent)
		c.subscribe(filter("home/kitchen/#", 1))
		c.leave()
		home := w.agent("kitchen")
		for i := range 5 {
			home.publish("x", fmt.Sprint(i), false)
		}
		again := func(e *agentEnd, seq uint64, payload string) {
			e.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: mqttbridge.LinkMessage{Seq: seq, Topic: "x", Payload: []byte(payload), QoS: 1, Dup: true}})
		}
		again(home, 4, "dup")
		home.acknowledged(4)
		home.cut()
		for _, restart := range []bool{false, true} {
			if restart {
				w.restart()
			}
			home = w.agent("kitchen")
			if home.welcome.Last != 5 {
				t.Errorf("restart %v: Last is %d", restart, home.welcome.Last)
			}
			for seq := uint64(1); seq <= 5; seq++ {
				again(home, seq, "dup")
			}
			home.acknowledged(5)
			home.cut()
		}
		home = w.agent("kitchen", stream("new-disk"))
		if home.welcome.Last != 0 {
			t.Errorf("a new stream begins at %d", home.welcome.Last)
		}
		home.publish("x", "new", false)
		c = w.connect("anna", 5, persistent)
		var got []string
		for {
			synctest.Wait()
			if len(c.inbox) == 0 {
				break
			}
			pk := <-c.inbox
			if pk.TopicName == "home/kitchen/x" { // not the home's state
				got = append(got, string(pk.Payload))
			}
		}
		if s := strings.Join(got, " "); s != "0 1 2 3 4 new" {
			t.Errorf("the device got %s", s)
		}
	})
}

// The newest link of an agent has everything; the older one ends, and nobody
// hears that the home was away.
func TestLinkReplaced(t *testing.T) {
	virtual(t, func(w *world) {
		c := w.connect("anna", 5)
		c.subscribe(filter("home/kitchen/bridge/state", 1))
		first := w.agent("kitchen", inFilter("set/#", 1))
		state(t, c, true)
		c.publish("home/kitchen/set/a", "1", 1)
		first.want("set/a=1")
		synctest.Wait() // its acknowledgement has come
		second := w.agent("kitchen", inFilter("set/#", 1))
		<-first.served
		if !errors.Is(first.err, errReplaced) {
			t.Errorf("the older link ended with: %v", first.err)
		}
		c.publish("home/kitchen/set/a", "2", 1)
		second.want("set/a=2")
		c.quiet()
		second.cut()
		state(t, c, false)
		if st := w.hub.Status().Agents[0]; st.Online {
			t.Error("the status says that the home is there")
		}
		// Many at once: one stays.
		var crowd []*agentEnd
		for range 6 {
			e := w.agentEnd(Agent{ID: "id-kitchen", Name: "kitchen"})
			crowd = append(crowd, e)
			go e.hello(inFilter("set/#", 1))
		}
		synctest.Wait()
		alive := 0
		for _, e := range crowd {
			select {
			case <-e.served:
			default:
				alive++
			}
		}
		if alive != 1 {
			t.Errorf("%d links of one agent", alive)
		}
	})
}

// state reads the next state of a home and compares it.
func state(t *testing.T, c *client, online bool) (reason string) {
	t.Helper()
	pk, ok := c.next()
	var s struct {
		Online bool
		At     time.Time
		Reason string
	}
	if !ok || !strings.HasSuffix(pk.TopicName, "/bridge/state") || json.Unmarshal(pk.Payload, &s) != nil {
		t.Fatalf("no state: %s %s", pk.TopicName, pk.Payload)
	}
	if s.Online != online || s.At.IsZero() || online == (s.Reason != "") {
		t.Errorf("state %s", pk.Payload)
	}
	return s.Reason
}

// Whether a home is there is retained, also for homes that have not come back
// since the relay started.
func TestAvailability(t *testing.T) {
	virtual(t, func(w *world) {
		c := w.connect("anna", 4)
		c.subscribe(filter("home/+/bridge/state", 1))
		home := w.agent("kitchen", inFilter("set/#", 1))
		state(t, c, true)
		home.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: mqttbridge.LinkMessage{Seq: 1, Topic: "bridge/state", Payload: []byte("forged"), QoS: 1, Retain: true}})
		home.acknowledged(1)
		c.quiet()
		// Silence is the end, a ping is not.
		for range 5 {
			elapse(50 * time.Second)
			home.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkPing, Seq: 7})
			if p, ok := home.next(); !ok || p.Kind != mqttbridge.LinkPong || p.Seq != 7 {
				t.Fatalf("%+v", p)
			}
			c.publish("home/x/y", "alive", 1)
		}
		elapse(65 * time.Second)
		state(t, c, false)
		<-home.served
		if !errors.Is(home.err, errSilent) {
			t.Errorf("%v", home.err)
		}
		w.restart()
		c = w.connect("anna", 4)
		c.subscribe(filter("home/+/bridge/state", 1))
		if reason := state(t, c, false); !strings.Contains(reason, "since the relay started") {
			t.Errorf("reason %q", reason)
		}
		w.hub.ForgetAgent("id-kitchen")
		late := w.connect("late", 4)
		late.subscribe(filter("home/+/bridge/state", 1))
		late.quiet()
	})
}

// A snapshot of retained state brings what has changed, once, and clears what
// the home does not know any more.
func TestRetainedSnapshot(t *testing.T) {
	virtual(t, func(w *world) {
		sync := func(e *agentEnd, topic, payload string) {
			e.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: mqttbridge.LinkMessage{Topic: topic, Payload: []byte(payload), QoS: 1, Retain: true, Sync: true}})
		}
		synced := func(e *agentEnd) { e.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkSynced}); synctest.Wait() }
		home := w.agent("kitchen", inFilter("set/#", 1))
		for i := range 20 {
			sync(home, fmt.Sprintf("state/%d", i), "a")
		}
		synced(home)
		phone := w.connect("phone", 5)
		phone.publish("home/kitchen/state/wish", "device's own", 1, retained)
		c := w.connect("anna", 5)
		c.subscribe(filter("home/kitchen/state/#", 1))
		synctest.Wait()
		if n := len(c.inbox); n != 21 {
			t.Fatalf("%d retained messages", n)
		}
		for len(c.inbox) > 0 {
			<-c.inbox
		}
		home.cut()
		home = w.agent("kitchen", inFilter("set/#", 1))
		for i := range 20 {
			switch i {
			case 3: // cleared at home while there was no link
			case 4:
				sync(home, "state/4", "changed")
			default:
				sync(home, fmt.Sprintf("state/%d", i), "a")
			}
		}
		home.publish("state/live", "live", true) // in the middle of it
		synced(home)
		got := c.want("home/kitchen/state/4=changed", "home/kitchen/state/live=live", "home/kitchen/state/3=")
		if got[2].FixedHeader.Qos != 1 {
			t.Errorf("cleared at QoS %d", got[2].FixedHeader.Qos)
		}
		c.quiet()
		late := w.connect("late", 5)
		late.subscribe(filter("home/kitchen/state/#", 0))
		synctest.Wait()
		if n := len(late.inbox); n != 21 {
			t.Errorf("%d topics are retained, want 21", n)
		}
		// A link that ends in the middle clears nothing.
		home.cut()
		home = w.agent("kitchen", inFilter("set/#", 1))
		sync(home, "state/1", "a")
		synctest.Wait()
		home.cut()
		c.quiet()
		// Nothing retained at home any more: a sync of nothing. What the rules
		// do not bring out stays.
		home = w.agent("kitchen", func(h *mqttbridge.LinkHello) { h.Out = []string{"state/+"} })
		synced(home)
		synctest.Wait()
		if n := len(c.inbox); n != 20 {
			t.Errorf("%d topics were cleared", n)
		}
		if _, n := w.hub.retained.now(); n != 2 { // the device's and the state of the home
			t.Errorf("%d topics are still retained", n)
		}
	})
}

// The epoch is another one after a restart, so that the home brings its
// retained state again, and the same one over links.
func TestEpoch(t *testing.T) {
	virtual(t, func(w *world) {
		home := w.agent("kitchen")
		first := home.welcome.Epoch
		home.cut()
		home = w.agent("kitchen")
		if home.welcome.Epoch != first {
			t.Error("another epoch without reason")
		}
		home.cut()
		w.hub.ForgetAgent("id-kitchen")
		if home = w.agent("kitchen"); home.welcome.Epoch == first {
			t.Error("the hub has forgotten everything and does not say so")
		}
		home.cut()
		w.restart()
		if home = w.agent("kitchen"); home.welcome.Epoch == first {
			t.Error("the hub has forgotten everything and does not say so")
		}
	})
}

// What a home sent never comes back to it, whatever its rules are.
func TestNoEcho(t *testing.T) {
	virtual(t, func(w *world) {
		home := w.agent("kitchen", inFilter("#", 1))
		home.publish("x", "1", true)
		home.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: mqttbridge.LinkMessage{Topic: "x", Payload: []byte("0")}})
		home.quiet()
		home.cut()
		home = w.agent("kitchen", inFilter("#", 1), inFilter("x", 0))
		home.quiet()
	})
}
