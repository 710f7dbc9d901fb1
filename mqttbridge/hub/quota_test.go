package hub

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// A mailbox that is full refuses the senders, and takes them back when there is
// room.
func TestFullHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Limits.Mailbox = queue.Limits{Messages: 5} })
		home := w.agent("kitchen", inFilter("set/#", 1))
		home.cut()
		for i := range 5 {
			if code := w.connect(fmt.Sprint("d", i), 5).publish("home/kitchen/set/x", fmt.Sprint(i), 1); code != 0 {
				t.Fatalf("%#x", code)
			}
		}
		five, three := w.connect("five", 5), w.connect("three", 4)
		for qos := byte(1); qos <= 2; qos++ {
			if code := five.publish("home/kitchen/set/x", "full", qos); code != packets.ErrQuotaExceeded.Code {
				t.Errorf("QoS %d: MQTT 5 hears %#x", qos, code)
			}
		}
		if code := three.publish("home/kitchen/set/x", "full", 1); code != 0xFF {
			t.Errorf("3.1.1 hears %#x", code)
		}
		three.ended()
		home = w.agent("kitchen", inFilter("set/#", 1))
		home.want("set/x=0", "set/x=1", "set/x=2", "set/x=3", "set/x=4")
		synctest.Wait()
		if code := five.publish("home/kitchen/set/x", "room", 1); code != 0 {
			t.Errorf("%#x", code)
		}
		home.want("set/x=room")
		home.quiet()
		// A rule may say that the oldest make room.
		home.cut()
		home = w.agent("kitchen", func(h *mqttbridge.LinkHello) {
			h.In = []mqttbridge.LinkFilter{{Filter: "set/#", QoS: 1, DropOldest: true}}
		})
		home.cut()
		for i := range 30 {
			if code := five.publish("home/kitchen/set/x", fmt.Sprint(i), 1); code != 0 {
				t.Fatalf("%#x", code)
			}
		}
		w.hub.mu.Lock()
		n := len(w.hub.homes["id-kitchen"].waiting.entries)
		w.hub.mu.Unlock()
		if n > 11 {
			t.Errorf("%d messages are counted, where 5 wait", n)
		}
		home = w.agent("kitchen", inFilter("set/#", 1))
		home.want("set/x=25", "set/x=26", "set/x=27", "set/x=28", "set/x=29")
	})
}

// One device has a quarter of a home's mailbox, in messages and bytes, also
// after a restart; what the home took does not count, nor what expired.
func TestQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Limits.Mailbox = queue.Limits{Messages: 40, Bytes: 1 << 20} })
		w.agent("kitchen", inFilter("set/#", 1)).cut()
		no := packets.ErrQuotaExceeded.Code
		fill := func(opts ...publishOption) (n int) {
			t.Helper()
			c := w.connect("flood", 5)
			defer c.leave()
			for ; n < 100; n++ {
				if code := c.publish("home/kitchen/set/x", "x", 1, opts...); code == no {
					return n
				} else if code != 0 {
					t.Fatalf("%#x", code)
				}
			}
			return n
		}
		if n := fill(expiry(600)); n != 10 {
			t.Errorf("%d messages of 40 were taken from one device", n)
		}
		bob := w.connect("bob", 5)
		if code := bob.publish("home/kitchen/set/y", "bob", 1); code != 0 {
			t.Errorf("another device: %#x", code)
		}
		w.restart()
		if n := fill(); n != 0 {
			t.Errorf("after a restart %d more", n)
		}
		elapse(11 * time.Minute)
		if n := fill(); n != 10 {
			t.Errorf("%d after the others had expired", n)
		}
		home := w.agent("kitchen", inFilter("set/#", 1))
		home.want(append([]string{"set/y=bob"}, slices.Repeat([]string{"set/x=x"}, 10)...)...)
		synctest.Wait()
		home.cut()
		elapse(2 * time.Second)
		if n := fill(); n != 10 {
			t.Errorf("%d after the home had taken the others", n)
		}
		big := string(make([]byte, 60<<10))
		carl := w.connect("carl", 5)
		n := 0
		for carl.publish("home/kitchen/set/z", big, 1) == 0 {
			n++
		}
		if n != 4 {
			t.Errorf("%d messages of 60 KiB in a quarter of 1 MiB", n)
		}
	})
}

// Audit lines that a device can cause are bounded, also over new connections.
func TestAuditLimit(t *testing.T) {
	virtual(t, func(w *world) {
		count := func() int {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.events)
		}
		for range 3 * auditsAnHour {
			c := w.device("anna", 5)
			c.hello("bob")
			c.ended()
			c = w.connect("anna", 5)
			c.publish("elsewhere", "x", 1)
			c.publish("elsewhere", "x", 0)
			c.leave()
		}
		if n := count(); n != 2*auditsAnHour {
			t.Errorf("%d lines for two reasons", n)
		}
		w.connect("carl", 5).publish("elsewhere", "x", 1)
		if n := count(); n != 2*auditsAnHour+1 {
			t.Error("another device is not heard")
		}
		elapse(time.Hour)
		w.connect("anna", 5).publish("elsewhere", "x", 1)
		if n := count(); n != 2*auditsAnHour+2 {
			t.Error("an hour later it is not heard")
		}
	})
}

// A home that sends too fast is read more slowly, and so are its hellos.
func TestLinkPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Limits.LinkRate, c.Limits.LinkBytes = 100, 10_000 })
		home := w.agent("kitchen")
		start := time.Now()
		home.flood(1500, "x", func(int) string { return "x" })
		home.acknowledged(1500)
		if d := time.Since(start); d < 9*time.Second || d > 11*time.Second {
			t.Errorf("1,500 packets at 100 a second took %v", d)
		}
		elapse(30 * time.Second)
		start = time.Now()
		for i := range uint64(12) {
			home.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: mqttbridge.LinkMessage{Seq: 1501 + i, Topic: "x", Payload: make([]byte, 10_000), QoS: 1}})
		}
		home.acknowledged(1512)
		if d := time.Since(start); d < 9*time.Second || d > 11*time.Second {
			t.Errorf("120 kB at 10 a second took %v", d)
		}
		elapse(30 * time.Second)
		start = time.Now()
		for i := range 20 {
			home.hello2(inFilter(fmt.Sprint("set/", i), 1))
		}
		home.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkPing, Seq: 1})
		for {
			p, ok := home.next()
			if !ok {
				t.Fatal("no answer")
			}
			if p.Kind == mqttbridge.LinkPong {
				break
			}
		}
		if d := time.Since(start); d < 9*time.Second || d > 11*time.Second {
			t.Errorf("20 hellos took %v", d)
		}
	})
}
