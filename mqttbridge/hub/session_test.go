package hub

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// A persistent session comes back with its subscriptions and everything that
// came meanwhile, in order, also over a restart of the relay.
func TestPersistentSession(t *testing.T) {
	for _, version := range []byte{4, 5} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("MQTT %d, restart %v", version, restart), func(t *testing.T) {
				virtual(t, func(w *world) {
					c := w.connect("anna", version, persistent)
					c.subscribe(filter("home/a/#", 1), filter("home/b/+", 2), filter("home/zero/#", 0))
					// On disk before SUBACK: the relay may be killed at any moment.
					if raw, _ := w.store.Get(recordPrefix + mailboxName("anna", "anna")); !strings.Contains(string(raw), "home/b/+") {
						t.Errorf("what was acknowledged is not on disk: %s", raw)
					}
					c.unsubscribe("home/b/+")
					c.leave()
					sender := w.connect("sender", 5)
					var want []string
					for i := range 150 { // more than two windows
						qos := byte(1 + i%2)
						sender.publish("home/a/x", fmt.Sprint(i), qos)
						want = append(want, fmt.Sprintf("home/a/x=%d", i))
					}
					sender.publish("home/b/x", "unsubscribed", 1)
					sender.publish("home/zero/x", "QoS 0 is not kept", 1)
					sender.publish("home/a/x", "QoS 0 is not kept", 0)
					sender.leave()
					if restart {
						w.restart()
					}
					c = w.device("anna", version)
					if ack := c.hello("anna", persistent); !ack.SessionPresent {
						t.Fatal("the session is gone")
					}
					c.want(want...)
					c.quiet()
					sender = w.connect("sender", 5)
					sender.publish("home/a/x", "live", 1)
					c.want("home/a/x=live")
					sender.publish("home/zero/x", "live", 1)
					c.want("home/zero/x=live")
					c.leave()
					synctest.Wait()
					if n := w.store.Stats(mailboxName("anna", "anna")).Messages; n != 0 {
						t.Errorf("%d acknowledged messages are kept", n)
					}
					c = w.device("anna", version)
					if ack := c.hello("anna"); ack.SessionPresent { // clean
						t.Error("a clean start found a session")
					}
					sender.publish("home/a/x", "again", 1)
					c.quiet()
				})
			})
		}
	}
}

// A client that publishes with the packet id of a delivery that it has not
// acknowledged gets both: the engine alone would lose the delivery (D7).
func TestPacketIDsDoNotCollide(t *testing.T) {
	virtual(t, func(w *world) {
		sender := w.connect("sender", 5)
		for _, version := range []byte{4, 5} {
			c := w.connect("anna", version, persistent)
			c.subscribe(filter("home/a/x", 1))
			c.hold = true
			sender.publish("home/a/x", "precious", 1)
			first := c.want("home/a/x=precious")[0]
			for qos := byte(1); qos <= 2; qos++ {
				pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, TopicName: "home/a/y", Payload: []byte("mine"), PacketID: first.PacketID}
				c.send(pk)
				kind := packets.Puback
				if qos == 2 {
					kind = packets.Pubrec
				}
				if ack := c.await(kind); ack.PacketID != first.PacketID || ack.ReasonCode != 0 {
					t.Errorf("QoS %d: %+v", qos, ack)
				}
			}
			c.vanish()
			start := time.Now()
			again := w.connect("anna", version, persistent)
			got := again.want("home/a/x=precious")[0]
			if got.PacketID != first.PacketID || !got.FixedHeader.Dup {
				t.Errorf("redelivered as %d, dup %v; it was %d", got.PacketID, got.FixedHeader.Dup, first.PacketID)
			}
			if d := time.Since(start); d > 0 {
				t.Errorf("redelivered after %v", d)
			}
			again.quiet()
			again.leave()
		}
	})
}

// Inside a connection nothing comes twice, however long its acknowledgement
// takes (D11).
func TestNoRedeliveryWithoutReconnect(t *testing.T) {
	virtual(t, func(w *world) {
		c := w.connect("anna", 4, persistent)
		c.subscribe(filter("home/a/x", 1))
		c.hold = true
		sender := w.connect("sender", 5)
		sender.publish("home/a/x", "1", 1)
		c.want("home/a/x=1")
		for range 5 {
			elapse(5 * time.Minute)
			c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
			c.await(packets.Pingresp)
		}
		c.quiet()
	})
}

// 10,000 messages for a client that is away come in order; what is beyond the
// limit pushes the oldest out, counted, and stops nobody (D12).
func TestTenThousandOffline(t *testing.T) {
	virtual(t, func(w *world) {
		for i, version := range []byte{4, 5} {
			c := w.connect("anna", version, persistent)
			c.subscribe(filter("home/kitchen/x", 1))
			c.leave()
			home := w.agent("kitchen", stream(fmt.Sprint("s", i)))
			const n, extra = 10_000, 25
			home.flood(n+extra, "x", func(seq int) string { return fmt.Sprint(seq) })
			home.acknowledged(n + extra)
			if st := w.hub.Status(); st.Mailboxes[0].DroppedFull != extra || st.Mailboxes[0].Messages != n {
				t.Errorf("mailbox %+v", st.Mailboxes[0])
			}
			w.restart()
			c = w.connect("anna", version, persistent)
			for seq := extra + 1; seq <= n+extra; seq++ {
				c.want(fmt.Sprintf("home/kitchen/x=%d", seq))
			}
			c.quiet()
			c.leave()
			w.connect("anna", version).leave()
		}
		if !w.audited("mqtt.overflow") {
			t.Error("the overflow was not audited")
		}
	})
}

// A message's life goes on while its reader is away and the relay restarts
// (D13).
func TestMessageExpiry(t *testing.T) {
	virtual(t, func(w *world) {
		for _, restart := range []bool{false, true} {
			c := w.connect("anna", 5, persistent)
			c.subscribe(filter("home/a/x", 1))
			c.leave()
			sender := w.connect("sender", 5)
			sender.publish("home/a/x", "short", 1, expiry(10))
			sender.publish("home/a/x", "long", 1, expiry(100))
			sender.publish("home/a/x", "for ever", 1)
			sender.publish("home/a/y", "short", 1, retained, expiry(10))
			sender.leave()
			elapse(5 * time.Second)
			if restart {
				w.restart()
			}
			elapse(6 * time.Second)
			c = w.connect("anna", 5, persistent)
			got := c.want("home/a/x=long", "home/a/x=for ever")
			if left := got[0].Properties.MessageExpiryInterval; left < 88 || left > 90 {
				t.Errorf("%d of 100 s are left after 11 s", left)
			}
			c.subscribe(filter("home/a/y", 1))
			c.quiet()
			c.leave()
			w.connect("anna", 5).leave()
		}
	})
}

func TestSessionLife(t *testing.T) {
	virtual(t, func(w *world) {
		life := func(seconds uint32) connectOption {
			return func(pk *packets.Packet) {
				pk.Connect.Clean = false
				pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = seconds, true
			}
		}
		for _, restart := range []bool{false, true} {
			present := func(seconds uint32, after time.Duration) bool {
				c := w.connect("anna", 5, life(seconds))
				c.subscribe(filter("home/a/x", 1))
				c.leave()
				elapse(after)
				if restart {
					w.restart()
				}
				c = w.device("anna", 5)
				ack := c.hello("anna", life(seconds))
				c.leave()
				w.connect("anna", 5).leave()
				return ack.SessionPresent
			}
			if !present(10, 9*time.Second) || present(10, 11*time.Second) {
				t.Error("a session of 10 s does not live for 10 s")
			}
			if present(0, 0) {
				t.Error("a session of 0 s lives on")
			}
			week := w.hub.cfg.Limits.SessionLife
			if !present(1<<32-1, week-time.Minute) || present(1<<32-1, week+time.Minute) {
				t.Error("a session without an end does not live for the longest time")
			}
		}
		// The client is told what it got, and may change it at the end.
		c := w.device("anna", 5)
		if ack := c.hello("anna", life(1<<32-1)); ack.Properties.SessionExpiryInterval != 7*24*3600 {
			t.Errorf("the client believes in %d s", ack.Properties.SessionExpiryInterval)
		}
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, Properties: packets.Properties{SessionExpiryIntervalFlag: true}})
		<-c.served
		if n := len(w.hub.Status().Mailboxes); n != 0 {
			t.Errorf("%d sessions after the client ended its own", n)
		}
		// What nobody asks for any more goes by itself.
		w.connect("anna", 5, life(30)).leave()
		elapse(3 * time.Minute)
		if q := w.store.Queues(); len(q) != 0 {
			t.Errorf("queues %q are left", q)
		}
	})
}

// A session whose rights shrank while its client was away, or the relay, begins
// anew, and the client hears so.
func TestSessionLosesRights(t *testing.T) {
	virtual(t, func(w *world) {
		for _, restart := range []bool{false, true} {
			w.grant("anna", nil, everyHome)
			c := w.connect("anna", 4, persistent)
			c.subscribe(filter("home/garage/#", 1), filter("home/kitchen/#", 1))
			c.leave()
			w.grant("anna", nil, []string{"home/kitchen/#"})
			if restart {
				w.restart()
			}
			c = w.device("anna", 4)
			if ack := c.hello("anna", persistent); ack.SessionPresent || ack.ReasonCode != 0 {
				t.Errorf("CONNACK %#x, session %v", ack.ReasonCode, ack.SessionPresent)
			}
			if n := w.hub.index.count(); n != 0 {
				t.Errorf("%d subscriptions live on", n)
			}
			c.leave()
		}
	})
}

func TestSessionsOfADevice(t *testing.T) {
	virtual(t, func(w *world) {
		limit := w.hub.cfg.Limits.Sessions
		for i := range limit + 3 {
			w.connect("anna", 4, persistent, clientID(fmt.Sprintf("anna-%02d", i))).leave()
			elapse(time.Second)
		}
		boxes := w.hub.Status().Mailboxes
		if len(boxes) != limit || boxes[0].Client != "anna-03" {
			t.Errorf("%d sessions, the first is %s", len(boxes), boxes[0].Client)
		}
		if n := len(w.store.Queues()); n != limit {
			t.Errorf("%d queues", n)
		}
	})
}

func TestReceiveMaximum(t *testing.T) {
	virtual(t, func(w *world) {
		sender := w.connect("sender", 5)
		for _, opts := range [][]connectOption{{persistent}, {}} {
			c := w.connect("anna", 5, append(opts, func(pk *packets.Packet) { pk.Properties.ReceiveMaximum = 2 })...)
			c.subscribe(filter("home/a/x", 2))
			c.hold = true
			for i := range 5 {
				sender.publish("home/a/x", fmt.Sprint(i), byte(1+i%2))
				sender.publish("home/a/x", "QoS 0", 0)
			}
			synctest.Wait()
			var unacked []packets.Packet
			for len(c.inbox) > 0 {
				if pk := <-c.inbox; pk.FixedHeader.Qos > 0 {
					unacked = append(unacked, *pk)
				}
			}
			if len(unacked) != 2 {
				t.Fatalf("%d are under way", len(unacked))
			}
			c.mu.Lock()
			c.hold = false
			c.mu.Unlock()
			for _, pk := range unacked {
				c.acknowledge(pk)
			}
			synctest.Wait()
			var rest []string
			for len(c.inbox) > 0 {
				if pk := <-c.inbox; pk.FixedHeader.Qos > 0 && pk.FixedHeader.Type == packets.Publish {
					rest = append(rest, string(pk.Payload))
				}
			}
			if !slices.Equal(rest, []string{"2", "3", "4"}) {
				t.Errorf("then came %v", rest)
			}
			c.leave()
			w.connect("anna", 5).leave()
		}
	})
}

// QoS 2 in both directions over reconnects: once each.
func TestExactlyOnce(t *testing.T) {
	virtual(t, func(w *world) {
		sender := w.connect("sender", 5)
		reader := w.connect("reader", 5)
		reader.subscribe(filter("home/b/#", 2))
		for _, version := range []byte{4, 5} {
			c := w.connect("anna", version, persistent)
			c.subscribe(filter("home/a/x", 2))
			c.hold = true
			sender.publish("home/a/x", "1", 2)
			got := c.want("home/a/x=1")[0]
			c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrec}, PacketID: got.PacketID})
			if rel := c.await(packets.Pubrel); rel.PacketID != got.PacketID {
				t.Errorf("PUBREL of %d", rel.PacketID)
			}
			// Its own publication is half way, too.
			pub := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 2}, TopicName: "home/b/x", Payload: []byte("2"), PacketID: 77}
			c.send(pub)
			c.await(packets.Pubrec)
			reader.want("home/b/x=2")
			c.vanish()

			c = w.connect("anna", version, persistent)
			rel := c.await(packets.Pubrel)
			if rel.PacketID != got.PacketID {
				t.Errorf("PUBREL of %d", rel.PacketID)
			}
			pub.FixedHeader.Dup = true
			c.send(pub)
			if rec := c.await(packets.Pubrec); rec.PacketID != 77 || rec.ReasonCode != 0 {
				t.Errorf("PUBREC %+v for what is known already", rec)
			}
			c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrel}, PacketID: 77})
			if comp := c.await(packets.Pubcomp); comp.ReasonCode != 0 {
				t.Errorf("PUBCOMP %#x", comp.ReasonCode)
			}
			reader.quiet()
			c.quiet()
			c.leave()
			c = w.connect("anna", version, persistent)
			c.quiet()
			c.leave()
			w.connect("anna", version).leave()
		}
	})
}

// Acknowledgements of nothing do nothing, and do not reach what is under way.
func TestStrayAcknowledgements(t *testing.T) {
	virtual(t, func(w *world) {
		sender := w.connect("sender", 5)
		c := w.connect("anna", 5, persistent)
		c.subscribe(filter("home/a/x", 1))
		c.hold = true
		sender.publish("home/a/x", "1", 1)
		pid := c.want("home/a/x=1")[0].PacketID
		for _, kind := range []byte{packets.Pubcomp, packets.Pubrec} {
			c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: kind}, PacketID: pid})
		}
		if rel := c.await(packets.Pubrel); rel.ReasonCode != packets.ErrPacketIdentifierNotFound.Code {
			t.Errorf("PUBREL %#x for a PUBREC of QoS 1", rel.ReasonCode)
		}
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pid + 1})
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: 40000})
		c.vanish()
		c = w.connect("anna", 5, persistent)
		c.want("home/a/x=1")
	})
}

// Properties of MQTT 5 arrive, live and from the mailbox; subscription
// identifiers, No Local, Retain As Published and Retain Handling do their work.
func TestVersionFive(t *testing.T) {
	virtual(t, func(w *world) {
		sender := w.connect("sender", 5)
		rich := func(pk *packets.Packet) {
			pk.Properties = packets.Properties{
				PayloadFormat: 1, PayloadFormatFlag: true, ContentType: "text/plain", ResponseTopic: "home/a/reply",
				CorrelationData: []byte{1, 2}, User: []packets.UserProperty{{Key: "a", Val: "1"}, {Key: "a", Val: "2"}},
			}
		}
		for _, opts := range [][]connectOption{nil, {persistent}} {
			c := w.connect("anna", 5, opts...)
			withID := filter("home/a/#", 1)
			withID.Identifier = 7
			c.subscribe(withID)
			withID.Filter, withID.Identifier = "home/+/x", 9
			c.subscribe(withID)
			sender.publish("home/a/x", "rich", 1, rich)
			p := c.want("home/a/x=rich")[0].Properties
			if p.ContentType != "text/plain" || p.ResponseTopic != "home/a/reply" || string(p.CorrelationData) != "\x01\x02" || len(p.User) != 2 || p.User[1].Val != "2" || !p.PayloadFormatFlag {
				t.Errorf("%+v", p)
			}
			if ids := p.SubscriptionIdentifier; len(ids) != 2 || ids[0]+ids[1] != 16 {
				t.Errorf("subscription identifiers %v", ids)
			}
			c.quiet() // once, for both filters
			c.leave()
			w.connect("anna", 5).leave()
		}
		// Who does not want to hear of problems still wants the messages whole.
		terse := w.connect("anna", 5, func(pk *packets.Packet) { pk.Properties.RequestProblemInfoFlag = true })
		terse.subscribe(filter("home/a/#", 1))
		sender.publish("home/a/x", "rich", 1, rich)
		if got := terse.want("home/a/x=rich"); len(got[0].Properties.User) != 2 {
			t.Errorf("%+v", got[0].Properties)
		}
		c := w.connect("anna", 5)
		own := filter("home/n/#", 1)
		own.NoLocal, own.RetainAsPublished = true, true
		c.subscribe(own)
		c.publish("home/n/x", "mine", 1)
		sender.publish("home/n/x", "theirs", 1, retained)
		if got := c.want("home/n/x=theirs"); !got[0].FixedHeader.Retain {
			t.Error("retain as published")
		}
		handling := filter("home/n/#", 1)
		handling.RetainHandling = 1 // only when it is new
		c.subscribe(handling)
		c.quiet()
		c.unsubscribe("home/n/#")
		c.subscribe(handling)
		c.want("home/n/x=theirs")
		handling.RetainHandling = 2
		c.unsubscribe("home/n/#")
		c.subscribe(handling)
		c.quiet()
		if codes := c.unsubscribe("home/n/#", "home/never"); codes[0] != 0 || codes[1] != packets.CodeNoSubscriptionExisted.Code {
			t.Errorf("UNSUBACK %v", codes)
		}
	})
}

// A shared subscription gives each message to one of a device's clients, to one
// that is there. Devices do not share with each other.
func TestSharedSubscription(t *testing.T) {
	virtual(t, func(w *world) {
		sender := w.connect("sender", 5)
		one := w.connect("anna", 5, persistent, clientID("anna-1"))
		two := w.connect("anna", 4, clientID("anna-2"))
		thief := w.connect("thief", 5)
		thief.subscribe(filter("$share/g/home/a/#", 1))
		one.subscribe(filter("$share/g/home/a/#", 1))
		two.subscribe(filter("$share/g/home/a/#", 1))
		for i := range 10 {
			sender.publish("home/a/x", fmt.Sprint(i), 1)
		}
		synctest.Wait()
		if a, b := len(one.inbox), len(two.inbox); a != 5 || b != 5 {
			t.Errorf("%d and %d of 10", a, b)
		}
		one.leave()
		for range 4 {
			sender.publish("home/a/x", "x", 1)
		}
		synctest.Wait()
		if n := len(two.inbox); n != 9 {
			t.Errorf("%d messages, want 9", n)
		}
		if n := len(thief.inbox); n != 14 {
			t.Errorf("another device got %d of 14", n)
		}
		nobody := filter("$share/g/home/a/#", 1)
		nobody.NoLocal = true
		if codes := w.connect("three", 5).subscribe(nobody); codes[0] < 0x80 {
			t.Errorf("No Local in a group: %#x", codes[0])
		}
	})
}

// Server topic aliases: as many as the client takes, and the topic only once.
func TestServerTopicAliases(t *testing.T) {
	virtual(t, func(w *world) {
		sender := w.connect("sender", 5)
		c := w.connect("anna", 5, func(pk *packets.Packet) { pk.Properties.TopicAliasMaximum = 1 })
		c.subscribe(filter("home/+/#", 1))
		sender.publish("home/a/x", "1", 1)
		sender.publish("home/a/x", "2", 1)
		sender.publish("home/a/y", "3", 1)
		got := c.want("home/a/x=1", "=2", "home/a/y=3")
		if a, b := got[0].Properties.TopicAlias, got[1].Properties.TopicAlias; a != 1 || b != 1 || got[2].Properties.TopicAlias != 0 {
			t.Errorf("aliases %d, %d and %d", a, b, got[2].Properties.TopicAlias)
		}
	})
}

func TestSubscriptionLimit(t *testing.T) {
	virtual(t, func(w *world) {
		c := w.connect("anna", 5)
		limit := w.hub.cfg.Limits.Subscriptions
		for i := range limit {
			if codes := c.subscribe(filter(fmt.Sprintf("home/a/%d", i), 0)); codes[0] != 0 {
				t.Fatalf("number %d: %#x", i, codes[0])
			}
		}
		if codes := c.subscribe(filter("home/a/x", 0), filter("home/a/1", 1)); codes[0] != packets.ErrQuotaExceeded.Code || codes[1] != 1 {
			t.Errorf("%v", codes)
		}
	})
}
