package hub

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// warnings collects a hub's log from Warn on, a line each without its time.
type warnings struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

func (l *warnings) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns the lines since the last call.
func (l *warnings) take() []string {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return strings.FieldsFunc(l.b.String(), func(r rune) bool { return r == '\n' })
}

func (l *warnings) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{
		Level: slog.LevelWarn,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

// Whoever is refused something finds in the log what it was and what to do.
func TestRefusalWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log warnings
		w := newWorld(t, func(c *Config) {
			c.Logger = log.logger()
			c.Limits.Connections, c.Limits.Subscriptions, c.Limits.Sessions = 1, 2, 1
			c.Limits.Mailbox = queue.Limits{Messages: 4}
		})
		w.agent("kitchen", inFilter("set/#", 1)).cut()
		w.grant("narrow", []string{"home/a/#", "home/b/x"}, []string{"home/a/#"})
		w.grant("none", nil, nil)
		w.grant("many", []string{"1", "2", "3", "4", "5", "6", "7"}, everyHome)
		long := strings.Repeat("ä", 300)
		join := func(id string, opts ...connectOption) func(string, byte) {
			return func(device string, version byte) {
				c := w.device(device, version)
				if c.hello(id, opts...).ReasonCode == 0 {
					t.Errorf("%s came in as %.20q", device, id)
				}
				c.ended()
			}
		}
		send := func(qos byte, topic string) func(string, byte) {
			return func(device string, version byte) {
				c := w.connect(device, version)
				defer c.vanish()
				for range 3 {
					c.publish(topic, "x", qos)
				}
			}
		}
		read := func(filters ...string) func(string, byte) {
			return func(device string, version byte) {
				c := w.connect(device, version)
				defer c.vanish()
				for _, f := range filters {
					c.subscribe(filter(f, 1))
				}
			}
		}
		for name, c := range map[string]struct {
			device string
			do     func(device string, version byte)
			want   []string
			ends   bool // of a 3.1.1 client
		}{
			"foreign client id":    {"anna", join("bob"), []string{`msg="MQTT client refused"`, "device=anna", "client=bob", `"anna\"`, `anna-1\"`, "change it in the client's settings"}, false},
			"endless client id":    {"anna", join("anna-" + long), []string{`client=anna-ää`, "more than 200 bytes"}, false},
			"will":                 {"narrow", join("narrow-1", lastWill("home/c/x", "x", 0, false)), []string{"client=narrow-1", "last will", "home/c/x", "may publish below home/a/#, home/b/x; use a topic there"}, false},
			"will with a wildcard": {"anna", join("anna", lastWill("home/+/x", "x", 0, false)), []string{"last will", "which stand for other topics"}, false},
			"publish":              {"narrow", send(1, "home/c/"+long), []string{`msg="publication refused"`, "client=narrow", "topic=home/c/ää", "…", "may publish below home/a/#, home/b/x; use a topic there"}, true},
			"publish, no rights":   {"none", send(0, "home/c/x"), []string{"may publish nothing", "owner"}, false},
			"publish, many rights": {"many", send(2, "home/c/x"), []string{"below 1, 2, 3, 4, 5 and 2 more;"}, true},
			"the hub's own topic":  {"anna", send(1, "home/c/bridge/state"), []string{"topic=home/c/bridge/state", "the hub itself"}, true},
			"the broker's own":     {"anna", send(1, "$SYS/x"), []string{"topic=$SYS/x", "starts with $"}, false},
			"no topic":             {"anna", send(1, "home/\x01/x"), []string{"control character"}, true},
			"a filled part":        {"anna", send(1, "home/kitchen/set/x"), []string{"its part of the home's mailbox"}, true},
			"subscribe":            {"narrow", read("#"), []string{`msg="subscription refused"`, "client=narrow", "filter=#", "may read home/a/#; subscribe to these, or to less"}, false},
			"subscribe, no rights": {"none", read("home/c/x"), []string{"may read nothing"}, false},
			"no filter":            {"anna", read("home/#/x"), []string{"filter=home/#/x", "# comes last"}, false},
			"many filters":         {"anna", read("home/a", "home/b", "home/c"), []string{"filter=home/c", "has 2 subscriptions"}, false},
		} {
			for _, version := range []byte{4, 5} {
				elapse(3 * sweepEvery) // and nothing is left of the last one
				log.take()
				c.do(c.device, version)
				lines := log.take()
				if len(lines) != 1 {
					t.Errorf("%s, MQTT %d: %d lines: %q", name, version, len(lines), lines)
					continue
				}
				for _, part := range append(c.want, "level=WARN", "device="+c.device, "remote=192.0.2.1:1", "reason=") {
					if !strings.Contains(lines[0], part) {
						t.Errorf("%s, MQTT %d: %q is not in %s", name, version, part, lines[0])
					}
				}
				if version == 4 && c.ends != strings.Contains(lines[0], "the client is disconnected") {
					t.Errorf("%s: %s", name, lines[0])
				}
				if len(lines[0]) > 1500 || strings.Contains(lines[0], strings.Repeat("ä", maxSaid)) {
					t.Errorf("%s: a line of %d bytes", name, len(lines[0]))
				}
			}
		}
		for name, c := range map[string]struct {
			do   func()
			want string
		}{
			"3.1.1 without a client id": {func() { join("", persistent)("anna", 4) }, `give it the client id \"anna\"`},
			"an authentication method": {func() {
				join("anna", func(pk *packets.Packet) { pk.Properties.AuthenticationMethod = "SCRAM" })("anna", 5)
			}, "take the authentication method out"},
			"an unknown version": {func() { join("anna", func(pk *packets.Packet) { pk.ProtocolVersion = 7 })("anna", 5) }, "protocol version"},
			"a second connection": {func() {
				first := w.connect("anna", 5)
				join("anna-2")("anna", 5)
				first.leave()
			}, "1 connections, more are not allowed"},
			"what is no MQTT": {func() {
				c := w.device("anna", 5)
				go c.read()
				c.sendRaw([]byte("GET / HTTP/1.1\r\n\r\n"))
				c.ended()
			}, "not what MQTT 3.1.1 or 5 asks for"},
		} {
			elapse(3 * sweepEvery)
			log.take()
			c.do()
			if lines := log.take(); len(lines) != 1 || !strings.Contains(lines[0], c.want) {
				t.Errorf("%s: %q", name, lines)
			}
		}
		// What is no refusal of the client's wishes is not one in the log.
		elapse(3 * sweepEvery)
		log.take()
		silent := w.device("anna", 5)
		<-silent.served
		c := w.connect("anna", 5)
		c.subscribe(filter("home/a/#", 1))
		c.publish("home/a/x", "x", 1)
		w.connect("anna", 5).leave() // takes its place
		c = w.connect("anna", 5)
		c.sendRaw([]byte{0x15, 0}) // nobody's CONNECT
		c.ended()
		waits := w.device("anna", 5)
		w.hub.mu.Lock()
		w.hub.devices["anna"].bucket.take(1e6, w.hub.cfg.Limits.Rate, w.hub.cfg.Limits.Burst, time.Now())
		w.hub.mu.Unlock()
		go waits.hello("anna")
		synctest.Wait()
		w.stop()
		<-waits.served
		if lines := log.take(); len(lines) != 0 {
			t.Errorf("%q", lines)
		}
	})
}

// A device's refusals are logged once in 30 seconds, with a count of the others;
// another device's are apart.
func TestRefusalLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log warnings
		w := newWorld(t, func(c *Config) { c.Logger = log.logger() })
		anna := w.connect("anna", 5)
		try := func(n int) {
			for i := range n {
				switch i % 3 {
				case 0:
					anna.publish("elsewhere", "x", 1)
				case 1:
					anna.subscribe(filter("elsewhere", 1))
				case 2:
					c := w.device("anna", 5)
					c.hello("bob")
					c.ended()
				}
			}
		}
		want := func(when string, parts ...string) {
			t.Helper()
			lines := log.take()
			if len(lines) != len(parts) {
				t.Errorf("%s: %q", when, lines)
				return
			}
			for i, part := range parts {
				if !strings.Contains(lines[i], part) || strings.Contains(part, "msg=") == strings.Contains(lines[i], "unlogged") {
					t.Errorf("%s: %q, want %q", when, lines[i], part)
				}
			}
		}
		start := time.Now()
		try(30)
		want("at once", `msg="publication refused" device=anna`)
		elapse(refusalRest - time.Since(start) - time.Millisecond)
		try(3)
		want("before the time")
		bob := w.connect("bob", 5)
		bob.publish("elsewhere", "x", 0)
		want("another device", `msg="publication refused" device=bob`)
		elapse(time.Second)
		try(1)
		want("after it", "unlogged=32")
		try(5)
		elapse(2 * sweepEvery)
		want("the end", "unlogged=5")
		elapse(3 * sweepEvery)
		want("later")
		w.hub.refused.mu.Lock()
		n := len(w.hub.refused.seen)
		w.hub.refused.mu.Unlock()
		if n != 0 {
			t.Errorf("%d devices are remembered for ever", n)
		}
		try(1)
		want("much later", `msg="publication refused" device=anna`)
	})
}

// Connections that are about to close have a bound too.
func TestLeavingLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log warnings
		w := newWorld(t, func(c *Config) { c.Limits.Connections, c.Logger = 2, log.logger() })
		open := 0
		for range 20 {
			near, far := pipeHalf()
			c := newClient(t, near, 5)
			go func() {
				defer close(c.served)
				w.hub.ServeConn(t.Context(), far, Identity{Name: "anna"})
			}()
			t.Cleanup(func() { near.Close(); <-c.served })
			go c.read()
			c.sendRaw([]byte("nonsense"))
			synctest.Wait()
			select {
			case <-c.served:
			default:
				open++
			}
		}
		if open != 2*maxLeaving {
			t.Errorf("%d connections are about to close, want %d", open, 2*maxLeaving)
		}
		elapse(refusalRest)
		for range 3 {
			c := w.device("anna", 5)
			t.Cleanup(func() { c.conn.Close() })
		}
		if lines := log.take(); !strings.Contains(fmt.Sprint(lines), "too many connections that say nothing") {
			t.Errorf("%q", lines)
		}
	})
}
