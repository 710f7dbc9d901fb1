package bridge

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// TestOut: what devices publish at home reaches the hub, in order for each
// topic, at the lower QoS, with the rule's prefixes, and nothing else does.
func TestOut(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "# out 1 tele/ up/", "hall/lamp out 0"), DialRelay: h.dial})
	b.up(t)
	d := m.join("sensor")
	const n = 200
	for i := range n {
		d.publish(fmt.Sprintf("tele/t%d", i%3), 1, false, numbered("m", i/3))
	}
	d.publish("hall/lamp", 1, false, []byte("on"))
	d.publish("hall/other", 1, false, []byte("no"))
	d.publish("tele", 1, false, []byte("no")) // the parent level lies outside of the prefix
	d.publish("tele/last", 0, false, nil)
	eventually(t, "all came", func() bool { return h.count() == n+2 })
	for k := range 3 {
		expectSeries(t, "topic", h.on(fmt.Sprintf("up/t%d", k)), "m", (n-k+2)/3)
	}
	h.with(func() {
		for _, msg := range h.got {
			want := byte(1)
			if msg.Topic == "hall/lamp" || msg.Topic == "up/last" {
				want = 0
			}
			if msg.QoS != want || (msg.Seq != 0) != (want == 1) || msg.Retain || msg.Dup {
				t.Errorf("%s came with QoS %d, seq %d, retain %v, dup %v", msg.Topic, msg.QoS, msg.Seq, msg.Retain, msg.Dup)
			}
		}
	})
	eventually(t, "the queue is empty", func() bool { return b.Status().Queue.Messages == 0 })
	s := b.Status()
	if s.Out.Messages != n+2 || s.Ignored != 1 || s.Out.Duplicates != 0 || s.Rules != 2 {
		t.Errorf("status: %+v", s)
	}
}

// TestIn: what the mailbox at the hub holds reaches devices in order, and is
// acknowledged after the home broker has it; topics without a rule are
// refused whatever the hub sends.
func TestIn(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	d := m.join("lamp", "#")
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "# in 1 set/ do/"), DialRelay: h.dial})
	b.up(t)
	const n = 300
	for i := range n {
		h.give(mqttbridge.LinkMessage{Topic: "do/lamp", Payload: numbered("m", i), QoS: 1})
		if i%100 == 50 {
			h.give(mqttbridge.LinkMessage{Topic: "open/door", Payload: []byte("now"), QoS: 1})
			h.give(mqttbridge.LinkMessage{Topic: "do/$x", Payload: []byte("now"), QoS: 0})
		}
	}
	eventually(t, "the mailbox is empty", func() bool { return h.left() == 0 })
	eventually(t, "all came", func() bool { return len(d.on("set/lamp")) == n })
	expectSeries(t, "lamp", d.on("set/lamp"), "m", n)
	for _, got := range d.heard() {
		if got.topic != "set/lamp" && got.topic != "set/$x" && got.topic != stateTopic {
			t.Errorf("%s reached home", got.topic)
		}
	}
	if s := b.Status(); s.In.Refused != 3 || s.In.Messages < n || s.In.Duplicates != 0 {
		t.Errorf("status: %+v", s.In)
	}
}

// TestInReserved: the hub cannot write what Sallyport itself says at home,
// even with a rule that would let it.
func TestInReserved(t *testing.T) {
	t.Parallel()
	set := &ruleSet{in: []mqttbridge.Rule{{Pattern: "#", Direction: mqttbridge.In, QoS: 1}}}
	if topic, _, ok := set.local("sallyport/bridge/state"); ok {
		t.Errorf("lets the hub write %s", topic)
	}
	if _, _, ok := set.local("lamp"); !ok {
		t.Error("does not let a lamp in")
	}
	out := &ruleSet{out: []mqttbridge.Rule{{Pattern: "#", Direction: mqttbridge.Out, QoS: 1}}}
	if topic, _, ok := out.remote("sallyport/alert"); ok {
		t.Errorf("sends %s out", topic)
	}
}

// TestInWhileBrokerAway: at QoS 1 messages wait, at QoS 0 they are dropped and
// counted, and those whose life is over are not published.
func TestInWhileBrokerAway(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	d := m.join("lamp", "lamp")
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "lamp in"), DialRelay: h.dial})
	b.up(t)
	m.stop()
	eventually(t, "the broker is gone", func() bool { return !b.Status().Broker.Connected })
	h.give(mqttbridge.LinkMessage{Topic: "lamp", Payload: []byte("old"), QoS: 1, TTL: time.Millisecond})
	h.give(mqttbridge.LinkMessage{Topic: "lamp", Payload: []byte("loose"), QoS: 0})
	h.give(mqttbridge.LinkMessage{Topic: "lamp", Payload: []byte("kept"), QoS: 1, TTL: time.Hour})
	eventually(t, "they came to the bridge", func() bool { return b.Status().In.Seen == 3 })
	if h.left() != 2 {
		t.Errorf("acknowledged without the home broker: %d left", h.left())
	}
	m.start()
	eventually(t, "the kept one came", func() bool { return slices.Contains(d.on("lamp"), "kept") })
	eventually(t, "acknowledged", func() bool { return h.left() == 0 })
	if got := d.on("lamp"); len(got) != 1 {
		t.Errorf("came: %v", got)
	}
	if s := b.Status(); s.In.Expired != 1 || s.In.Dropped != 1 {
		t.Errorf("status: %+v", s.In)
	}
}

// TestLooseOut: without a link QoS 0 messages are dropped and counted, and
// QoS 1 messages wait.
func TestLooseOut(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "t/#"), DialRelay: h.dial})
	b.up(t)
	h.setDown(true)
	eventually(t, "the link is gone", func() bool { return !b.Status().Relay.Connected })
	d := m.join("sensor")
	d.publish("t/loose", 0, false, []byte("x"))
	d.publish("t/kept", 1, false, []byte("x"))
	eventually(t, "the queue has it", func() bool { return b.Status().Queue.Messages == 1 })
	if s := b.Status(); s.Out.Dropped != 1 {
		t.Errorf("status: %+v", s.Out)
	}
	h.setDown(false)
	eventually(t, "it came", func() bool { return h.count() == 1 })
	if got := h.on("t/kept"); len(got) != 1 {
		t.Errorf("came: %v", got)
	}
}

// TestTooLarge: a message over 64 KiB is dropped and counted, not sent again
// for ever, and costs no memory of its size; those behind it come.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "t/#"), DialRelay: h.dial})
	b.up(t)
	d := m.join("camera")
	d.publish("t/image", 1, false, make([]byte, 3<<20))
	d.publish("t/image", 1, false, make([]byte, mqttbridge.MaxPayload+1))
	d.publish("t/fits", 1, false, make([]byte, mqttbridge.MaxPayload))
	d.publish("t/small", 1, false, []byte("x"))
	eventually(t, "the others came", func() bool { return h.count() == 2 })
	h.with(func() {
		if len(h.got[0].Payload) != mqttbridge.MaxPayload {
			t.Errorf("the largest one came with %d bytes", len(h.got[0].Payload))
		}
	})
	if s := b.Status(); s.Out.Refused != 2 || !s.Broker.Connected {
		t.Errorf("status: %+v", s)
	}
}

// TestLoopGuard: with a rule for both directions nothing goes round, though
// the home broker gives us back what we publish; what devices publish at home
// goes out, also when it is the same.
func TestLoopGuard(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	d := m.join("lamp", "here/#")
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "# both 1 here/ there/"), DialRelay: h.dial})
	b.up(t)
	for i := range 20 {
		h.give(mqttbridge.LinkMessage{Topic: "there/lamp", Payload: numbered("m", i%4), QoS: 1, Retain: i%2 == 0})
	}
	eventually(t, "all came", func() bool { return len(d.on("here/lamp")) == 20 })
	eventually(t, "all came back", func() bool { return b.Status().Echoes == 20 })
	d.publish("here/lamp", 1, false, []byte("m1"))
	eventually(t, "the device's own goes out", func() bool { return h.count() == 1 })
	during(t, 200*time.Millisecond, "an echo goes out", func() bool { return h.count() > 1 })
}

// TestState: at home a retained topic says whether the bridge works.
func TestState(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	d := m.join("watch", stateTopic)
	last := func() string {
		list := d.on(stateTopic)
		if len(list) == 0 {
			return ""
		}
		return list[len(list)-1]
	}
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "t/#"), DialRelay: h.dial})
	eventually(t, "up", func() bool { return last() == "1" })
	h.setDown(true)
	eventually(t, "link down", func() bool { return last() == "0" })
	h.setDown(false)
	eventually(t, "up again", func() bool { return last() == "1" })
	_, g := b.current()
	before := len(d.on(stateTopic))
	g.target.kill(errors.New("cut")) // no DISCONNECT: the broker speaks the last will
	eventually(t, "last will, and up again", func() bool {
		list := d.on(stateTopic)[before:]
		return slices.Contains(list, "0") && last() == "1"
	})
	b.stop()
	eventually(t, "goodbye", func() bool { return last() == "0" })
	late := m.join("late", stateTopic)
	eventually(t, "it is retained", func() bool {
		list := late.heard()
		return len(list) == 1 && list[0].retained && list[0].payload == "0"
	})
}

// TestReload: rules change without dropping a connection; the hub is told;
// bad rules change nothing.
func TestReload(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	d := m.join("lamp", "#")
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "a/# out", "x/# in"), DialRelay: h.dial})
	b.up(t)
	d.publish("a/1", 1, false, []byte("x"))
	eventually(t, "a", func() bool { return h.count() == 1 })
	before := b.Status()
	if err := b.SetRules(append(rules(t, "b/#"), mqttbridge.Rule{Pattern: "#/x", Direction: mqttbridge.Out})); err == nil {
		t.Error("takes a rule that cannot be")
	}
	if err := b.SetRules(rules(t, "b/# out", "y/# in")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the hub is told", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		last := h.hellos[len(h.hellos)-1]
		return len(h.hellos) == 2 && last.Out[0] == "b/#" && last.In[0].Filter == "y/#" && last.Stream == h.hellos[0].Stream
	})
	eventually(t, "b", func() bool {
		d.publish("b/1", 1, false, []byte("x"))
		return len(h.on("b/1")) > 0
	})
	d.publish("a/1", 1, false, []byte("x"))
	h.give(mqttbridge.LinkMessage{Topic: "x/1", Payload: []byte("x"), QoS: 1})
	h.give(mqttbridge.LinkMessage{Topic: "y/1", Payload: []byte("x"), QoS: 1})
	eventually(t, "y", func() bool { return len(d.on("y/1")) == 1 })
	if len(d.on("x/1")) != 0 || len(h.on("a/1")) != 1 {
		t.Error("the old rules count still")
	}
	after := b.Status()
	if after.Relay.Since != before.Relay.Since || after.Broker.Since != before.Broker.Since {
		t.Error("a connection was dropped")
	}
	// The broker must not keep messages for the old filter.
	b.stop()
	d.publish("a/1", 1, false, []byte("late"))
	d.publish("b/late", 1, false, []byte("late"))
	start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "#"), Queue: b.store, DialRelay: h.dial})
	eventually(t, "b, which was subscribed to", func() bool { return len(h.on("b/late")) == 1 })
	if got := h.on("a/1"); len(got) != 1 {
		t.Errorf("the broker kept for a filter that was removed: %v", got)
	}
}
