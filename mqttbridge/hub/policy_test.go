package hub

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/mqttbridge"
)

func TestPublishRights(t *testing.T) {
	virtual(t, func(w *world) {
		reader := w.connect("reader", 5)
		reader.subscribe(filter("home/+/#", 2))
		w.grant("anna", []string{"home/kitchen/set/#"}, everyHome)
		for _, topic := range []string{
			"home/garage/set/door", "home/kitchen/other", "home/kitchen/bridge/state", "elsewhere",
			"$SYS/broker/version", "$share/g/home/kitchen/set/x", "home/kitchen/set/" + strings.Repeat("x", mqttbridge.MaxTopic),
		} {
			want := packets.ErrNotAuthorized.Code
			if mqttbridge.CheckTopic(topic) != nil {
				want = packets.ErrTopicNameInvalid.Code
			}
			five := w.connect("anna", 5)
			for qos := byte(1); qos <= 2; qos++ {
				if code := five.publish(topic, "x", qos); code != want {
					t.Errorf("%.40s: QoS %d: MQTT 5 hears %#x, want %#x", topic, qos, code, want)
				}
			}
			five.publish(topic, "x", 0)
			five.publish(topic, "x", 0, retained)
			if code := five.publish("home/kitchen/set/lamp", "on", 1); code != 0 {
				t.Errorf("after %.40s: %#x", topic, code)
			}
			reader.want("home/kitchen/set/lamp=on")
			five.leave()

			three := w.connect("anna", 4)
			three.publish(topic, "x", 0)
			three.publish(topic, "x", 0, retained)
			if topic[0] == '$' {
				if code := three.publish(topic, "x", 1, retained); code != 0 {
					t.Errorf("%.40s: a 3.1.1 client hears %#x", topic, code)
				}
				three.leave()
				continue
			}
			if code := three.publish(topic, "x", 1); code != 0xFF {
				t.Errorf("%.40s: a 3.1.1 client hears %#x, want the end", topic, code)
			}
			if code := three.ended(); code != 0xFF {
				t.Errorf("%.40s: a 3.1.1 client got a DISCONNECT, which it does not know", topic)
			}
		}
		reader.quiet()
		if !w.audited("mqtt.denied") {
			t.Error("nothing was audited")
		}
		late := w.connect("late", 5)
		late.subscribe(filter("home/+/#", 0))
		late.quiet()
	})
}

// The agent's own words about its connection cannot be forged by anybody,
// whatever the grants say.
func TestStateTopicIsReserved(t *testing.T) {
	virtual(t, func(w *world) {
		w.grant("anna", []string{"#"}, []string{"#"})
		c := w.connect("anna", 5)
		if code := c.publish("home/kitchen/bridge/state", "1", 1, retained); code != packets.ErrNotAuthorized.Code {
			t.Errorf("%#x", code)
		}
	})
}

func TestSubscribeRights(t *testing.T) {
	virtual(t, func(w *world) {
		w.grant("anna", everyHome, []string{"home/kitchen/#", "home/+/bridge/state"})
		refused := []string{
			"#", "+/#", "home/#", "home/+/#", "home/+/lamp", "home/garage/x", "/home/kitchen/x", "$SYS/#", "$SYS/broker/clients",
			"$share/g/home/garage/x", "$share/g/#", "$share/g/$SYS/#", "$SHARE/g/home/kitchen/x", "$anything",
		}
		bad := []string{"home/kitchen/#/x", "home/kitchen/a+", "$share/home", "$share//home/kitchen/x", "$share/+/home/kitchen/x", "$share/g/"}
		good := []string{"home/kitchen/#", "home/kitchen/+/x", "home/kitchen", "home/+/bridge/state", "$share/g/home/kitchen/x"}
		for version, no := range map[byte]byte{4: 0x80, 5: packets.ErrNotAuthorized.Code} {
			c := w.connect("anna", version)
			for _, f := range refused {
				if codes := c.subscribe(filter(f, 1)); codes[0] != no {
					t.Errorf("MQTT %d: %s: %#x, want %#x", version, f, codes[0], no)
				}
			}
			for _, f := range bad {
				if codes := c.subscribe(filter(f, 1)); codes[0] < 0x80 {
					t.Errorf("MQTT %d: %s: %#x", version, f, codes[0])
				}
			}
			for _, f := range good {
				if codes := c.subscribe(filter(f, 1)); codes[0] != 1 {
					t.Errorf("MQTT %d: %s: %#x", version, f, codes[0])
				}
			}
			// One refused filter does not spoil its neighbours.
			codes := c.subscribe(filter("home/kitchen/a", 2), filter("home/garage/a", 2), filter("home/kitchen/b", 0))
			if string(codes) != string([]byte{2, no, 0}) {
				t.Errorf("MQTT %d: %v", version, codes)
			}
			c.leave()
		}
		if n := w.hub.index.count(); n != 0 {
			t.Errorf("%d subscriptions are left behind", n)
		}
		if n := w.hub.engine.Info.Subscriptions; n != 0 {
			t.Errorf("the engine remembers %d subscriptions", n)
		}
	})
}

// Wildcards never match topics of the broker's own, and there are none.
func TestNoSystemTopics(t *testing.T) {
	virtual(t, func(w *world) {
		w.grant("anna", []string{"#", "$SYS/#"}, []string{"#", "$SYS/#", "$x"}) // a mistake of the operator's
		c := w.connect("anna", 5)
		codes := c.subscribe(filter("#", 1), filter("$SYS/#", 1), filter("$x", 1), filter("$share/g/$x", 1))
		if codes[0] != 1 || codes[1] < 0x80 || codes[2] < 0x80 || codes[3] < 0x80 {
			t.Errorf("%v", codes)
		}
		if code := c.publish("$SYS/broker/version", "x", 1); code != packets.ErrTopicNameInvalid.Code {
			t.Errorf("%#x", code)
		}
		elapse(10 * time.Minute)
		c.quiet()
	})
}

// A right that ends stops deliveries at once, also of what waits in a mailbox,
// without any call.
func TestDeliveryRights(t *testing.T) {
	virtual(t, func(w *world) {
		sender := w.connect("sender", 5)
		for _, version := range []byte{4, 5} {
			w.grant("anna", nil, everyHome)
			live := w.connect("anna", version, clientID("anna-live"))
			live.subscribe(filter("home/kitchen/#", 1))
			stored := w.connect("anna", version, clientID("anna-stored"), persistent)
			stored.subscribe(filter("home/kitchen/#", 1))
			stored.hold = true
			for range maxWindow + 10 {
				sender.publish("home/kitchen/a", "1", 1)
				live.want("home/kitchen/a=1")
			}
			var unacked []packets.Packet
			for range maxWindow {
				unacked = append(unacked, stored.want("home/kitchen/a=1")...)
			}
			w.grant("anna", nil, []string{"home/kitchen/b"})
			sender.publish("home/kitchen/a", "2", 0)
			sender.publish("home/kitchen/a", "2", 1)
			sender.publish("home/kitchen/a", "2", 1, retained)
			sender.publish("home/kitchen/b", "3", 1)
			live.want("home/kitchen/b=3")
			live.quiet()
			for _, pk := range unacked {
				stored.acknowledge(pk)
			}
			got := stored.want("home/kitchen/b=3")
			stored.quiet()
			stored.acknowledge(got[0])
			synctest.Wait()
			if n := w.store.Stats(mailboxName("anna", "anna-stored")).Messages; n != 0 {
				t.Errorf("%d messages that nobody may read lie around", n)
			}
			// What is in flight does not come again either.
			w.grant("anna", nil, everyHome)
			sender.publish("home/kitchen/a", "4", 1)
			live.want("home/kitchen/a=4")
			stored.want("home/kitchen/a=4")
			stored.vanish()
			w.grant("anna", nil, []string{"home/kitchen/b"})
			again := w.connect("anna", version, clientID("anna-stored"), persistent)
			again.quiet()
			again.leave()
			live.leave()
			sender.publish("home/kitchen/a", "", 1, retained)
			w.connect("anna", version, clientID("anna-stored")).leave() // clean: the session ends
		}
	})
}

func TestRetainedRights(t *testing.T) {
	virtual(t, func(w *world) {
		sender := w.connect("sender", 5)
		sender.publish("home/kitchen/lamp", "on", 1, retained)
		sender.publish("home/garage/door", "shut", 1, retained)
		w.grant("anna", nil, []string{"home/kitchen/#"})
		c := w.connect("anna", 4)
		c.subscribe(filter("home/kitchen/#", 1))
		if got := c.want("home/kitchen/lamp=on"); !got[0].FixedHeader.Retain {
			t.Error("it does not say that it was retained")
		}
		c.subscribe(filter("home/garage/#", 1))
		c.quiet()
		// Grants that shrink hold for what is retained too.
		c.unsubscribe("home/kitchen/#")
		w.grant("anna", nil, []string{"home/kitchen/+"})
		sender.publish("home/kitchen/a/b", "deep", 1, retained)
		c.subscribe(filter("home/kitchen/+", 1))
		c.want("home/kitchen/lamp=on")
		c.quiet()
	})
}

func TestWillRights(t *testing.T) {
	virtual(t, func(w *world) {
		reader := w.connect("reader", 5)
		reader.subscribe(filter("home/+/#", 2))
		w.grant("anna", []string{"home/kitchen/set/#"}, nil)
		for _, topic := range []string{"home/garage/x", "home/kitchen/bridge/state", "$SYS/x", "home/kitchen/set/+"} {
			for _, version := range []byte{4, 5} {
				c := w.device("anna", version)
				if ack := c.hello("anna", lastWill(topic, "x", 1, true)); ack.ReasonCode == 0 {
					t.Errorf("MQTT %d: a will on %s was taken", version, topic)
				}
				c.ended()
			}
		}
		c := w.connect("anna", 4, lastWill("home/kitchen/set/lamp", "off", 1, false))
		c.vanish()
		reader.want("home/kitchen/set/lamp=off")

		c = w.connect("anna", 4, lastWill("home/kitchen/set/lamp", "off", 1, false))
		c.leave()
		reader.quiet()

		// The right ends between CONNECT and the end.
		c = w.connect("anna", 4, lastWill("home/kitchen/set/lamp", "off", 1, true))
		w.grant("anna", nil, nil)
		c.vanish()
		reader.quiet()
		if _, n := w.hub.retained.now(); n != 0 {
			t.Error("it is retained")
		}
	})
}

// Wills of MQTT 5 carry their properties, may be empty, and may be delayed.
func TestWillProperties(t *testing.T) {
	virtual(t, func(w *world) {
		reader := w.connect("reader", 5)
		reader.subscribe(filter("home/+/#", 1))
		delayed := func(pk *packets.Packet) {
			pk.Connect.WillProperties.WillDelayInterval = 60
			pk.Connect.WillProperties.ContentType = "text/plain"
			pk.Connect.WillProperties.User = []packets.UserProperty{{Key: "k", Val: "v"}}
		}
		start := time.Now()
		c := w.connect("anna", 5, persistent, lastWill("home/a/x", "", 1, false), delayed)
		c.vanish()
		reader.quiet()
		got := reader.want("home/a/x=")[0]
		if d := time.Since(start); d < 60*time.Second || d > 62*time.Second {
			t.Errorf("the will came after %v", d)
		}
		if got.Properties.ContentType != "text/plain" || len(got.Properties.User) != 1 {
			t.Errorf("properties %+v", got.Properties)
		}
		// Whoever comes back in time has no will.
		c = w.connect("anna", 5, persistent, lastWill("home/a/x", "lost", 1, false), delayed)
		c.vanish()
		elapse(30 * time.Second)
		c = w.connect("anna", 5, persistent)
		elapse(2 * time.Minute)
		reader.quiet()
		// The end of the session is the end of the delay.
		c.leave()
		c = w.connect("anna", 5, persistent, lastWill("home/a/x", "lost", 1, false), delayed)
		c.vanish()
		c = w.connect("anna", 5) // clean start
		reader.want("home/a/x=lost")
		// DISCONNECT with reason 4 asks for the will.
		c.leave()
		c = w.connect("anna", 5, lastWill("home/a/x", "asked", 1, false))
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ReasonCode: 4})
		<-c.served
		reader.want("home/a/x=asked")
	})
}

func TestRecheck(t *testing.T) {
	virtual(t, func(w *world) {
		w.grant("anna", everyHome, everyHome)
		five := w.connect("anna", 5, clientID("anna-5"), persistent)
		five.subscribe(filter("home/garage/#", 1))
		three := w.connect("anna", 4, clientID("anna-3"))
		three.subscribe(filter("home/garage/#", 1))
		other := w.connect("anna", 5, clientID("anna-other"))
		other.subscribe(filter("home/kitchen/#", 1))
		w.hub.Recheck()
		if code := other.publish("home/kitchen/x", "1", 1); code != 0 {
			t.Fatalf("%#x", code)
		}
		other.want("home/kitchen/x=1")
		w.grant("anna", everyHome, []string{"home/kitchen/#"})
		w.hub.Recheck()
		if code := five.ended(); code != packets.ErrNotAuthorized.Code {
			t.Errorf("DISCONNECT %#x", code)
		}
		three.ended()
		other.publish("home/kitchen/x", "2", 1)
		other.want("home/kitchen/x=2")
		c := w.device("anna", 5)
		if ack := c.hello("anna-5", persistent); ack.SessionPresent {
			t.Error("the session with the forbidden subscription lives on")
		}
	})
}
