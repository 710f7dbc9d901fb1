package hub

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// Rules may change on a live link and over a restart; what waits for a rule
// that has gone is dropped.
func TestRulesChange(t *testing.T) {
	virtual(t, func(w *world) {
		c := w.connect("anna", 5)
		c.publish("home/kitchen/new/r", "retained before", 1, retained)
		c.publish("home/kitchen/new/zero", "retained at QoS 0", 0, retained)
		home := w.agent("kitchen", inFilter("old/#", 1))
		c.publish("home/kitchen/old/x", "1", 1)
		home.want("old/x=1")
		home.hello2(inFilter("new/#", 1))
		synctest.Wait()
		home.want("new/r=retained before")
		c.publish("home/kitchen/old/x", "2", 1)
		c.publish("home/kitchen/new/x", "3", 1)
		home.want("new/x=3")
		home.quiet() // no second welcome either
		home.cut()
		w.restart()
		c = w.connect("anna", 5)
		c.publish("home/kitchen/new/x", "4", 1)
		c.publish("home/kitchen/old/x", "5", 1)
		home = w.agent("kitchen", inFilter("other/#", 1))
		home.quiet()
		synctest.Wait()
		if n := w.hub.Status().Agents[0].Mailbox.Messages; n != 0 {
			t.Errorf("%d messages without a rule are kept", n)
		}
		home.cut()
		// A home renamed: its topics move, its mailbox stays.
		e := w.agentEnd(Agent{ID: "id-kitchen", Name: "cellar"})
		e.hello(inFilter("other/#", 1))
		if p, _ := e.next(); p.Welcome == nil || p.Welcome.Prefix != "home/cellar/" {
			t.Fatalf("%+v", p)
		}
		c.publish("home/kitchen/other/x", "6", 1)
		c.publish("home/cellar/other/x", "7", 1)
		e.want("other/x=7")
	})
}

func (e *agentEnd) hello2(opts ...helloOption) {
	hello := &mqttbridge.LinkHello{Version: mqttbridge.LinkVersion, Stream: "s", Out: []string{"#"}}
	for _, o := range opts {
		o(hello)
	}
	e.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkHelloKind, Hello: hello})
}

// A home whose mailbox has no room for what its new rules bring comes in all the
// same.
func TestRulesChangeWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Limits.Mailbox.Messages = 3 })
		c := w.connect("anna", 5)
		for i := range 5 {
			c.publish(fmt.Sprintf("home/kitchen/set/%d", i), "x", 1, retained)
		}
		home := w.agent("kitchen", inFilter("set/#", 1))
		home.want("set/0=x", "set/1=x", "set/2=x")
		home.quiet()
		synctest.Wait()
		elapse(2 * time.Second)
		c.publish("home/kitchen/set/live", "x", 1)
		home.want("set/live=x")
	})
}

// Retained messages of QoS 0 that changed while the home was away reach it when
// it is back, the others do not come again.
func TestRetainedForHome(t *testing.T) {
	virtual(t, func(w *world) {
		c := w.connect("anna", 5)
		home := w.agent("kitchen", inFilter("set/#", 0))
		c.publish("home/kitchen/set/a", "1", 0, retained)
		c.publish("home/kitchen/set/b", "1", 0, retained)
		home.want("set/a=1", "set/b=1")
		home.cut()
		c.publish("home/kitchen/set/b", "2", 0, retained)
		synctest.Wait()
		home = w.agent("kitchen", inFilter("set/#", 0))
		if got := home.want("set/b=2"); !got[0].Retain {
			t.Error("it does not say that it is retained")
		}
		home.quiet()
	})
}

// A message's life and the greatest age of a rule hold on the way to the home.
func TestHomeExpiry(t *testing.T) {
	virtual(t, func(w *world) {
		aged := func(h *mqttbridge.LinkHello) {
			h.In = []mqttbridge.LinkFilter{{Filter: "set/#", QoS: 1, MaxAge: time.Minute}}
		}
		w.agent("kitchen", aged).cut()
		c := w.connect("anna", 5)
		c.publish("home/kitchen/set/x", "short", 1, expiry(10))
		c.publish("home/kitchen/set/x", "long", 1, expiry(1000))
		c.publish("home/kitchen/set/x", "no end", 1)
		elapse(20 * time.Second)
		w.restart()
		home := w.agentEnd(Agent{ID: "id-kitchen", Name: "kitchen"})
		home.hold = true
		home.hello(aged)
		home.next()
		for _, lm := range home.want("set/x=long", "set/x=no end") {
			if lm.TTL < 39*time.Second || lm.TTL > 40*time.Second {
				t.Errorf("%s has %v left of a minute after 20 s", lm.Payload, lm.TTL)
			}
		}
		home.cut()
		elapse(time.Minute)
		home = w.agent("kitchen", aged)
		home.quiet()
		// The other way.
		c = w.connect("anna", 5)
		c.subscribe(filter("home/kitchen/state", 1))
		home.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: mqttbridge.LinkMessage{Seq: 1, Topic: "state", Payload: []byte("x"), QoS: 1, TTL: 5 * time.Second}})
		if got := c.want("home/kitchen/state=x"); got[0].Properties.MessageExpiryInterval != 5 {
			t.Errorf("%d s", got[0].Properties.MessageExpiryInterval)
		}
	})
}

// A device that lost the right to publish, or its sender, is not obeyed hours
// later.
func TestRightsAtTheDoor(t *testing.T) {
	virtual(t, func(w *world) {
		w.agent("kitchen", inFilter("set/#", 1)).cut()
		guest, anna := w.connect("guest", 5), w.connect("anna", 5)
		guest.publish("home/kitchen/set/door", "open", 1)
		anna.publish("home/kitchen/set/lamp", "on", 1)
		w.grant("guest", nil, nil) // the guest's time is over
		home := w.agent("kitchen", inFilter("set/#", 1))
		home.want("set/lamp=on")
		home.quiet()
	})
}

// Agents that say nonsense are told, or cut.
func TestBadAgents(t *testing.T) {
	virtual(t, func(w *world) {
		refused := func(a Agent, opts ...helloOption) string {
			e := w.agentEnd(a)
			e.hello(opts...)
			p, ok := e.next()
			if !ok || p.Welcome == nil {
				return ""
			}
			<-e.served
			return p.Welcome.Problem
		}
		good := Agent{ID: "id", Name: "kitchen"}
		for name, problem := range map[string]string{
			"version": refused(good, func(h *mqttbridge.LinkHello) { h.Version = 99 }),
			"filter":  refused(good, inFilter("a/#/b", 1)),
			"qos":     refused(good, inFilter("a", 3)),
			"many": refused(good, func(h *mqttbridge.LinkHello) {
				for i := range maxHomeFilters + 1 {
					h.Out = append(h.Out, fmt.Sprint(i))
				}
			}),
			"stream":   refused(good, stream("a b")),
			"no name":  refused(good, stream("")),
			"epoch":    refused(good, func(h *mqttbridge.LinkHello) { h.Epoch = strings.Repeat("x", 65) }),
			"slash":    refused(Agent{ID: "id", Name: "a/b"}),
			"wildcard": refused(Agent{ID: "id", Name: "+"}),
			"dollar":   refused(Agent{ID: "id", Name: "$SYS"}),
			"nameless": refused(Agent{ID: "id"}),
		} {
			if problem == "" {
				t.Errorf("%s: no problem was named", name)
			}
		}
		if n := len(w.hub.Status().Agents); n != 0 {
			t.Errorf("%d homes", n)
		}
		w.agent("kitchen")
		if p := refused(Agent{ID: "another", Name: "kitchen"}); !strings.Contains(p, "another agent") {
			t.Errorf("two agents under one name: %q", p)
		}
		// No hello, no link.
		e := w.agentEnd(good)
		start := time.Now()
		<-e.served
		if d := time.Since(start); d > helloTimeout+time.Second {
			t.Errorf("silent for %v", d)
		}
		// Acknowledging what was never sent ends the link before it does harm.
		home := w.agentEnd(Agent{ID: "id-cellar", Name: "cellar"})
		home.hold = true
		home.hello(inFilter("set/#", 1))
		home.next()
		c := w.connect("anna", 5)
		c.publish("home/cellar/set/x", "1", 1)
		home.want("set/x=1")
		home.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkAck, Seq: 99})
		<-home.served
		w.agent("cellar", inFilter("set/#", 1)).want("set/x=1")
	})
}

// Topics that no rule brings out are not published, and count as carried out.
func TestUnannouncedTopics(t *testing.T) {
	virtual(t, func(w *world) {
		c := w.connect("anna", 5)
		c.subscribe(filter("home/kitchen/state/#", 1))
		c.subscribe(filter("home/kitchen/secret", 1))
		home := w.agent("kitchen", func(h *mqttbridge.LinkHello) { h.Out = []string{"state/#"} })
		home.publish("secret", "x", true)
		home.publish("state/x", "1", false)
		c.want("home/kitchen/state/x=1")
		c.quiet()
	})
}
