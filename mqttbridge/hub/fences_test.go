package hub

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A subscriber that stops reading delays nobody, not even once: with the
// engine's own way of writing everybody waits for it (D5). It is cut, and what
// its session keeps comes when it reads again.
func TestStalledSubscriber(t *testing.T) {
	virtual(t, func(w *world) {
		stall := func(c *client, opts ...connectOption) {
			pk := packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: c.version,
				Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, Keepalive: 600},
			}
			for _, o := range opts {
				o(&pk)
			}
			c.send(pk)
			r := bufio.NewReaderSize(c.conn, 16)
			if ack, err := readPacket(r, c.version); err != nil || ack.ReasonCode != 0 {
				t.Fatalf("%v %#x", err, ack.ReasonCode)
			}
			c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: 1, Filters: packets.Subscriptions{filter("home/kitchen/#", 1)}})
			if _, err := readPacket(r, c.version); err != nil {
				t.Fatal(err)
			}
		}
		clean, kept := w.device("clean", 4), w.device("kept", 5)
		stall(clean, clientID("clean"))
		stall(kept, clientID("kept"), persistent)
		good := w.connect("good", 5)
		good.subscribe(filter("home/kitchen/#", 1))
		sender := w.connect("sender", 5)
		home := w.agent("kitchen")
		good.next() // the home's state
		start := time.Now()
		const n = 1000
		var want []string
		payload := strings.Repeat("x", 1000)
		home.flood(n, "x", func(seq int) string { return fmt.Sprintf("%d%s", seq, payload) })
		for seq := 1; seq <= n; seq++ {
			want = append(want, fmt.Sprintf("home/kitchen/x=%d%s", seq, payload))
		}
		home.acknowledged(n)
		good.want(want...)
		for range 20 {
			if code := sender.publish("home/kitchen/y", payload, 1); code != 0 {
				t.Errorf("%#x", code)
			}
			good.want("home/kitchen/y=" + payload)
		}
		if d := time.Since(start); d > 0 {
			t.Errorf("a client that does not read delayed the others by %v", d)
		}
		<-clean.served
		<-kept.served
		if d := time.Since(start); d < 9*time.Second || d > 12*time.Second {
			t.Errorf("the stalled clients were cut after %v", d)
		}
		if n := w.hub.Status().Stalled; n != 2 {
			t.Errorf("%d stalled clients were counted", n)
		}
		back := w.connect("kept", 5, persistent)
		if got := back.want(append([]string{stateNow(back)}, want...)...); !got[1].FixedHeader.Dup {
			t.Error("the first message may have come before and does not say so")
		}
	})
}

// stateNow peeks at the home's state, whose text depends on the time.
func stateNow(c *client) string {
	pk := <-c.inbox
	rest := make([]*packets.Packet, 0, len(c.inbox))
	synctest.Wait()
	for len(c.inbox) > 0 {
		rest = append(rest, <-c.inbox)
	}
	c.inbox <- pk
	for _, r := range rest {
		c.inbox <- r
	}
	return pk.TopicName + "=" + string(pk.Payload)
}

// A client that reads, and never acknowledges, loses nothing silently: a clean
// one is cut off when too much waits.
func TestNeverAcknowledges(t *testing.T) {
	virtual(t, func(w *world) {
		c := w.connect("anna", 5)
		c.subscribe(filter("home/kitchen/x", 1))
		c.hold = true
		good := w.connect("good", 4)
		good.subscribe(filter("home/kitchen/x", 1))
		home := w.agent("kitchen")
		const n = maxWaiting + maxWindow + 1
		home.flood(n, "x", func(int) string { return "x" })
		home.acknowledged(n)
		if code := c.ended(); code != packets.ErrQuotaExceeded.Code {
			t.Errorf("DISCONNECT %#x", code)
		}
		for range n {
			good.want("home/kitchen/x=x")
		}
	})
}

// Messages of QoS 0 to a slow client are dropped and counted, and it stays.
func TestSlowAtQoS0(t *testing.T) {
	virtual(t, func(w *world) {
		c := w.device("anna", 4)
		pk := packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 4,
			Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, Keepalive: 600, ClientIdentifier: "anna"},
		}
		c.send(pk)
		r := bufio.NewReader(c.conn)
		readPacket(r, 4)
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: 1, Filters: packets.Subscriptions{filter("home/kitchen/#", 0)}})
		readPacket(r, 4)
		home := w.agent("kitchen")
		const n = 5000
		for i := range n {
			home.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: mqttbridge.LinkMessage{Topic: "x", Payload: fmt.Appendf(nil, "%d %s", i, strings.Repeat("x", 200))}})
		}
		home.publish("last", "x", true) // everything before it was carried out
		go c.read()
		synctest.Wait()
		got := len(c.inbox)
		if st := w.hub.Status(); got >= n || st.Dropped == 0 || st.Stalled != 0 {
			t.Errorf("%d of %d came, %d are counted as dropped", got, n, st.Dropped)
		}
		select {
		case <-c.served:
			t.Error("the client was cut")
		default:
		}
	})
}

// A device that sends faster than it may is read more slowly; others are not.
func TestFlood(t *testing.T) {
	virtual(t, func(w *world) {
		reader := w.connect("reader", 5)
		reader.subscribe(filter("home/a/flood", 0))
		good := w.connect("good", 5)
		flood := w.connect("flood", 5)
		flood2 := w.connect("flood", 5, clientID("flood-2"))
		start := time.Now()
		rate, burst := w.hub.cfg.Limits.Rate, w.hub.cfg.Limits.Burst
		n := burst + 10*rate
		done := make(chan struct{})
		for _, c := range []*client{flood, flood2} { // its connections share what it may
			go func() {
				for range n / 2 {
					c.publish("home/a/flood", "x", 0)
				}
				done <- struct{}{}
			}()
		}
		for range 100 {
			good.publish("home/a/x", "x", 1)
		}
		if d := time.Since(start); d > 0 {
			t.Errorf("somebody else's flood delayed a device by %v", d)
		}
		<-done
		<-done
		synctest.Wait()
		if d := time.Since(start); d < 9*time.Second || d > 11*time.Second {
			t.Errorf("%d packets were taken within %v", n, d)
		}
		if st := w.hub.Status(); st.Throttled == 0 {
			t.Error("the status says nothing of it")
		}
		// So do acknowledgements of nothing.
		start = time.Now()
		for range 10 * rate {
			flood.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: 9})
		}
		if d := time.Since(start); d < 8*time.Second {
			t.Errorf("%d stray acknowledgements within %v", 10*rate, d)
		}
		// Filters of a SUBSCRIBE count one by one.
		many := make([]packets.Subscription, 50)
		for i := range many {
			many[i] = filter(fmt.Sprintf("nowhere/%d", i), 0)
		}
		start = time.Now()
		for range 40 {
			flood.subscribe(many...)
		}
		if d := time.Since(start); d < 8*time.Second {
			t.Errorf("2,000 filters within %v", d)
		}
		// Reconnecting does not help.
		flood.leave()
		start = time.Now()
		for range 400 {
			w.connect("flood", 5).leave()
		}
		if d := time.Since(start); d < time.Second {
			t.Errorf("400 connections within %v", d)
		}
	})
}

// Answers that a client provokes and does not read have an end: in time, and in
// memory if it may send that fast.
func TestUnreadAnswers(t *testing.T) {
	for rate, most := range map[int]time.Duration{200: 12 * time.Second, 1e9: time.Second} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Limits.Rate, c.Limits.Burst = rate, rate })
			c := w.device("anna", 5)
			c.send(packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 5,
				Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, Keepalive: 600, ClientIdentifier: "anna"},
			})
			start := time.Now()
			go func() {
				pings := bytes.Repeat([]byte{0xC0, 0}, 500)
				for {
					if _, err := c.conn.Write(pings); err != nil {
						return
					}
				}
			}()
			<-c.served
			if d := time.Since(start); d > most {
				t.Errorf("%d a second: it was cut after %v", rate, d)
			}
		})
	}
}

func TestHalfOpen(t *testing.T) {
	virtual(t, func(w *world) {
		reader := w.connect("reader", 5)
		reader.subscribe(filter("home/a/will", 1))
		for _, version := range []byte{4, 5} {
			for asked, most := range map[uint16]time.Duration{10: 15 * time.Second, 60: 90 * time.Second, 0: 30 * time.Minute, 65535: 30 * time.Minute} {
				c := w.device("anna", version)
				ack := c.hello("anna", lastWill("home/a/will", "lost", 1, false), func(pk *packets.Packet) { pk.Connect.Keepalive = asked })
				told := ack.Properties.ServerKeepAlive
				if version == 5 && (asked == 0 || asked > 1200) != (told == 1200) {
					t.Errorf("keep-alive %d: the client was told %d", asked, told)
				}
				start := time.Now()
				go func() { // others are alive
					for time.Since(start) < 31*time.Minute {
						elapse(time.Minute)
						reader.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
					}
				}()
				<-c.served
				if d := time.Since(start); d < most-time.Second || d > most+2*time.Second {
					t.Errorf("MQTT %d, keep-alive %d: cut after %v, want %v", version, asked, d, most)
				}
				if code := c.ended(); version == 5 && code != packets.ErrKeepAliveTimeout.Code {
					t.Errorf("DISCONNECT %#x", code)
				}
				for {
					pk, ok := reader.next()
					if !ok {
						t.Fatal("no will")
					}
					if pk.FixedHeader.Type == packets.Publish {
						break
					}
				}
				elapse(time.Hour)
				synctest.Wait()
				for len(reader.inbox) > 0 {
					<-reader.inbox
				}
				reader.leave()
				reader = w.connect("reader", 5)
				reader.subscribe(filter("home/a/will", 1))
			}
		}
	})
}

func TestPacketLimits(t *testing.T) {
	virtual(t, func(w *world) {
		reader := w.connect("reader", 5)
		reader.subscribe(filter("home/a/#", 1))
		largest := strings.Repeat("x", mqttbridge.MaxPayload)
		for _, version := range []byte{4, 5} {
			c := w.device("anna", version)
			ack := c.hello("anna")
			if limit := ack.Properties.MaximumPacketSize; version == 5 && int(limit) != w.hub.cfg.Limits.Packet {
				t.Errorf("the client was told %d", limit)
			}
			if code := c.publish("home/a/x", largest, 1); code != 0 {
				t.Errorf("64 KiB: %#x", code)
			}
			reader.want("home/a/x=" + largest)
			no := byte(0xFF)
			if version == 5 {
				no = packets.ErrQuotaExceeded.Code
			}
			if code := c.publish("home/a/x", largest+"x", 1); code != no {
				t.Errorf("MQTT %d: a byte more: %#x", version, code)
			}
			c.conn.Close()
			<-c.served
			c = w.connect("anna", version)
			// Only the head of a large packet comes; the hub does not wait for more.
			c.sendRaw([]byte{0x32, 0xFF, 0xFF, 0xFF, 0x7F})
			if code := c.ended(); version == 5 && code != packets.ErrPacketTooLarge.Code || version == 4 && code != 0xFF {
				t.Errorf("MQTT %d: 256 MB: DISCONNECT %#x", version, code)
			}
		}
		// A client may want small packets only.
		c := w.connect("anna", 5, func(pk *packets.Packet) { pk.Properties.MaximumPacketSize = 60; pk.Properties.TopicAliasMaximum = 10 })
		c.subscribe(filter("home/a/#", 1))
		sender := w.connect("sender", 5)
		sender.publish("home/a/x", strings.Repeat("x", 100), 1)
		sender.publish("home/a/x", "small", 1)
		c.want("home/a/x=small") // with its topic: the alias was not told before
	})
}

func TestProtocolErrors(t *testing.T) {
	virtual(t, func(w *world) {
		for name, tc := range map[string]struct {
			raw  []byte
			code byte // of MQTT 5; 0xFF: none
		}{
			"second CONNECT":           {mustEncode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 5, Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: "anna"}}), 0x82},
			"SUBSCRIBE without an end": {[]byte{0x82, 8, 0, 1, 0, 0, 3, 'a', '/', 'b'}, 0x81},
			"SUBSCRIBE of nothing":     {[]byte{0x82, 3, 0, 1, 0}, 0x82},
			"QoS 3":                    {[]byte{0x36, 7, 0, 1, 'a', 0, 1, 0, 'x'}, 0x82},
			"wildcard":                 {[]byte{0x30, 4, 0, 1, '#', 0}, 0x82},
			"alias":                    {[]byte{0x30, 7, 0, 1, 'a', 3, 35, 0, 1}, 0x94},
			"alias without a topic":    {[]byte{0x30, 6, 0, 0, 3, 35, 0, 1}, 0x94},
			"no topic":                 {[]byte{0x30, 3, 0, 0, 0}, 0x82},
			"reserved flags":           {[]byte{0xC1, 0}, 0x81},
			"UTF-8":                    {[]byte{0x30, 4, 0, 1, 0xFF, 0}, 0x81},
			"type 0":                   {[]byte{0x00, 0}, 0xFF},
			"the hub's own CONNACK":    {[]byte{0x20, 3, 0, 0, 0}, 0xFF},
		} {
			c := w.connect("anna", 5)
			c.sendRaw(tc.raw)
			if code := c.ended(); code != tc.code {
				t.Errorf("%s: DISCONNECT %#x, want %#x", name, code, tc.code)
			}
		}
		// The hub lives.
		c := w.connect("anna", 5)
		c.subscribe(filter("home/a/x", 1))
		c.publish("home/a/x", "1", 1)
		c.want("home/a/x=1")

		first := w.device("bob", 5)
		go first.read()
		first.sendRaw([]byte{0xC0, 0})
		if _, ok := first.next(); ok {
			t.Error("an answer before CONNECT")
		}
		<-first.served
		for level, want := range map[byte]byte{3: 1, 6: 1, 0: 1} {
			odd := w.device("bob", 4)
			if ack := odd.hello("bob", func(pk *packets.Packet) { pk.ProtocolVersion = level }); ack.ReasonCode != want {
				t.Errorf("level %d: CONNACK %#x", level, ack.ReasonCode)
			}
		}
		old := w.device("bob", 3)
		if ack := old.hello("bob", func(pk *packets.Packet) { pk.Connect.ProtocolName = []byte("MQIsdp") }); ack.ReasonCode != 0 {
			t.Errorf("MQTT 3.1: CONNACK %#x", ack.ReasonCode)
		}
	})
}

func mustEncode(pk packets.Packet) []byte {
	b, err := encodePacket(pk)
	if err != nil {
		panic(err)
	}
	return b
}

// A packet that came in one go with a refused one is not carried out: the engine
// would go on with what is in its buffer.
func TestNothingAfterTheEnd(t *testing.T) {
	virtual(t, func(w *world) {
		reader := w.connect("reader", 5)
		reader.subscribe(filter("home/+/#", 1))
		w.grant("anna", []string{"home/a/good"}, nil)
		c := w.connect("anna", 4)
		bad := mustEncode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: 1, ProtocolVersion: 4, TopicName: "home/a/bad"})
		good := mustEncode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: 2, ProtocolVersion: 4, TopicName: "home/a/good"})
		c.sendRaw(append(slices.Clone(bad), good...))
		c.ended()
		reader.quiet()
		// Neither is a farewell, which would take the will along.
		w.grant("anna", []string{"home/a/will"}, nil)
		c = w.connect("anna", 4, lastWill("home/a/will", "cut off", 1, false))
		c.sendRaw(append(slices.Clone(bad), 0xE0, 0))
		c.ended()
		reader.want("home/a/will=cut off")
	})
}

// Mosquitto's bridges set a bit in the protocol level: they want no echo, and
// the retain flag as it was published.
func TestBridgeBit(t *testing.T) {
	virtual(t, func(w *world) {
		c := w.device("anna", 4)
		if ack := c.hello("anna", func(pk *packets.Packet) { pk.ProtocolVersion = 4 | bridgeBit }); ack.ReasonCode != 0 {
			t.Fatalf("CONNACK %#x", ack.ReasonCode)
		}
		c.subscribe(filter("home/a/#", 1))
		c.publish("home/a/x", "mine", 1, retained)
		c.quiet()
		sender := w.connect("sender", 5)
		sender.publish("home/a/x", "theirs", 1, retained)
		if got := c.want("home/a/x=theirs"); !got[0].FixedHeader.Retain {
			t.Error("the retain flag is lost")
		}
	})
}

// The queue's disk is full: nothing is acknowledged, MQTT 5 hears why, and the
// home's messages are tried again until they are kept.
func TestBrokenQueue(t *testing.T) {
	virtual(t, func(w *world) {
		home := w.agent("kitchen", inFilter("set/#", 1))
		keeper := w.connect("keeper", 5, persistent)
		keeper.subscribe(filter("home/kitchen/state", 1))
		five, three := w.connect("five", 5), w.connect("three", 4)
		w.store.Close()
		if code := five.publish("home/kitchen/set/x", "1", 1); code != packets.ErrImplementationSpecificError.Code {
			t.Errorf("MQTT 5 hears %#x", code)
		}
		if code := three.publish("home/kitchen/set/x", "1", 1); code != 0xFF {
			t.Errorf("3.1.1 hears %#x", code)
		}
		if codes := keeper.subscribe(filter("home/kitchen/other", 1)); codes[0] < 0x80 {
			t.Errorf("a subscription that was not kept: %#x", codes[0])
		}
		home.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: mqttbridge.LinkMessage{Seq: 1, Topic: "state", QoS: 1}})
		<-home.served
		if !errors.Is(home.err, errStopped) {
			t.Errorf("%v", home.err)
		}
		for len(home.inbox) > 0 {
			if p := <-home.inbox; p.Kind == mqttbridge.LinkAck {
				t.Error("acknowledged without being kept")
			}
		}
		// Memory is another matter.
		if code := five.publish("home/garage/x", "1", 1); code != 0 {
			t.Errorf("%#x", code)
		}
	})
}

// Over real sockets: the median time of a message beside subscribers that do not
// read, and silent connections, is at most twice the one beside as many that do.
func TestStalledRatio(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Limits.Rate, c.Limits.Burst = 1e6, 1e6 })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	names := make(chan string, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go w.hub.ServeConn(context.Background(), conn, Identity{Name: <-names})
		}
	}()
	dial := func(name string) *client {
		names <- name
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return newClient(t, conn, 5)
	}
	greet := func(name string, opts ...connectOption) *client {
		c := dial(name)
		if ack := c.hello(name, opts...); ack.ReasonCode != 0 {
			t.Fatalf("%s: %#x", name, ack.ReasonCode)
		}
		return c
	}
	reader, sender := greet("reader"), greet("sender")
	reader.subscribe(filter("home/a/x", 1))
	payload := strings.Repeat("x", 1000)
	median := func() time.Duration {
		ds := make([]time.Duration, 300)
		for i := range ds {
			start := time.Now()
			if code := sender.publish("home/a/x", payload, 1); code != 0 {
				t.Fatalf("%#x", code)
			}
			reader.want("home/a/x=" + payload)
			ds[i] = time.Since(start)
		}
		slices.Sort(ds)
		return ds[len(ds)/2]
	}
	median() // warm
	// As many that read: what is compared is reading, not their number.
	var healthy []*client
	for i := range 5 {
		c := greet(fmt.Sprint("healthy", i))
		c.subscribe(filter("home/+/#", 1))
		healthy = append(healthy, c)
	}
	alone := median()
	for _, c := range healthy {
		c.conn.Close()
	}
	for i := range 5 {
		c := dial(fmt.Sprint("stalled", i))
		pk := packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 5,
			Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, Keepalive: 600, ClientIdentifier: fmt.Sprint("stalled", i)},
		}
		c.send(pk)
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: 1, Filters: packets.Subscriptions{filter("home/+/#", 1)}})
	}
	for i := range 100 {
		greet(fmt.Sprint("silent", i))
	}
	var with time.Duration
	for range 5 { // other tests use the processor, too
		if with = median(); with <= 2*alone {
			t.Logf("median %v beside 5 that read, %v beside 5 stalled and 100 silent clients", alone, with)
			return
		}
	}
	t.Errorf("median %v beside 5 that read, %v beside 5 stalled and 100 silent clients", alone, with)
}
