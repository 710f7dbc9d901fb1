package hub

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

func TestClientIDs(t *testing.T) {
	virtual(t, func(w *world) {
		for id, good := range map[string]bool{
			"anna": true, "anna-phone": true, "anna/1": true, "anna:x": true, "anna.y": true, "anna-": true,
			"anna2": false, "ann": false, "bob": false, "Anna": false, "anna_x": false, " anna": false,
			"anna-" + strings.Repeat("x", maxClientID): false,
		} {
			for version, no := range map[byte]byte{4: 2, 5: packets.ErrClientIdentifierNotValid.Code} {
				c := w.device("anna", version)
				ack := c.hello(id)
				if good != (ack.ReasonCode == 0) || !good && ack.ReasonCode != no {
					t.Errorf("MQTT %d: client id %.20q: CONNACK %#x", version, id, ack.ReasonCode)
				}
				if good {
					c.leave()
				} else {
					c.ended()
				}
			}
		}
		if !w.audited("mqtt.refused") {
			t.Error("foreign client ids were not audited")
		}
	})
}

func TestAssignedClientID(t *testing.T) {
	virtual(t, func(w *world) {
		five := w.device("anna", 5)
		ack := five.hello("", persistent)
		if id := ack.Properties.AssignedClientID; ack.ReasonCode != 0 || !strings.HasPrefix(id, "anna-") || len(id) < len("anna-")+16 {
			t.Fatalf("CONNACK %#x, client id %q", ack.ReasonCode, ack.Properties.AssignedClientID)
		}
		five.leave()
		again := w.device("anna", 5)
		if ack := again.hello(ack.Properties.AssignedClientID, persistent); !ack.SessionPresent {
			t.Error("the assigned name does not lead back to the session")
		}
		three := w.device("anna", 4)
		if ack := three.hello(""); ack.ReasonCode != 0 {
			t.Errorf("3.1.1, clean: CONNACK %#x", ack.ReasonCode)
		}
		three = w.device("anna", 4)
		if ack := three.hello("", persistent); ack.ReasonCode != 2 {
			t.Errorf("3.1.1, a session without a name: CONNACK %#x", ack.ReasonCode)
		}
	})
}

func TestTakeover(t *testing.T) {
	virtual(t, func(w *world) {
		reader := w.connect("reader", 5)
		reader.subscribe(filter("home/+/#", 1))
		for version, code := range map[byte]byte{4: 0xFF, 5: packets.ErrSessionTakenOver.Code} {
			first := w.connect("anna", version, persistent, lastWill("home/a/will", "gone", 1, false))
			first.subscribe(filter("home/a/x", 1))
			second := w.device("anna", version)
			if ack := second.hello("anna", persistent); ack.ReasonCode != 0 || !ack.SessionPresent {
				t.Errorf("MQTT %d: CONNACK %#x, session %v", version, ack.ReasonCode, ack.SessionPresent)
			}
			if got := first.ended(); got != code {
				t.Errorf("MQTT %d: the older connection hears %#x", version, got)
			}
			reader.want("home/a/will=gone")
			second.publish("home/a/x", "1", 1)
			second.want("home/a/x=1")
			reader.want("home/a/x=1")
			second.leave()
			w.connect("anna", version).leave()
		}
	})
}

// A client that connects again and again, many at once, ends with one
// connection and one session.
func TestTakeoverCrowd(t *testing.T) {
	virtual(t, func(w *world) {
		var crowd []*client
		for range 8 {
			c := w.device("anna", 5)
			crowd = append(crowd, c)
			go c.hello("anna", persistent)
		}
		synctest.Wait()
		alive := 0
		for _, c := range crowd {
			select {
			case <-c.served:
			default:
				alive++
			}
		}
		if st := w.hub.Status(); alive != 1 || st.Connections != 1 || len(st.Mailboxes) != 1 {
			t.Errorf("%d connections are open, the hub counts %d with %d mailboxes", alive, st.Connections, len(st.Mailboxes))
		}
	})
}

// Two devices never meet in one client id, even when one's name begins with
// the other's.
func TestForeignSessionsAreApart(t *testing.T) {
	virtual(t, func(w *world) {
		phone := w.connect("anna-phone", 5, persistent)
		phone.subscribe(filter("home/a/x", 1))
		thief := w.device("anna", 5)
		if ack := thief.hello("anna-phone", persistent); ack.ReasonCode != 0 || ack.SessionPresent {
			t.Errorf("CONNACK %#x, session %v", ack.ReasonCode, ack.SessionPresent)
		}
		if code := phone.publish("home/a/x", "1", 1); code != 0 {
			t.Errorf("the other device's connection was ended: %#x", code)
		}
		phone.want("home/a/x=1")
		thief.quiet()
		phone.leave()
		thief.leave()
		if ack := w.device("anna-phone", 5).hello("anna-phone", persistent); !ack.SessionPresent {
			t.Error("the session was taken")
		}
	})
}

func TestUserNameProvesNothing(t *testing.T) {
	virtual(t, func(w *world) {
		as := func(user, password string) connectOption {
			return func(pk *packets.Packet) {
				p := &pk.Connect
				p.UsernameFlag, p.Username = true, []byte(user)
				p.PasswordFlag, p.Password = true, []byte(password)
			}
		}
		for _, version := range []byte{4, 5} {
			c := w.device("anna", version)
			if ack := c.hello("anna", as("anybody", "")); ack.ReasonCode != 0 {
				t.Errorf("an empty password: %#x", ack.ReasonCode)
			}
			c.leave()
			c = w.device("anna", version)
			if ack := c.hello("bob", as("bob", "secret")); ack.ReasonCode == 0 {
				t.Error("a user name opened another's client id")
			}
		}
		c := w.device("anna", 5)
		if ack := c.hello("anna", func(pk *packets.Packet) { pk.Properties.AuthenticationMethod = "SCRAM" }); ack.ReasonCode != packets.ErrBadAuthenticationMethod.Code {
			t.Errorf("an authentication method that nobody knows: %#x", ack.ReasonCode)
		}
		c = w.connect("anna", 5)
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Auth}, ReasonCode: 0x18})
		if code := c.ended(); code != packets.ErrProtocolViolation.Code {
			t.Errorf("AUTH: %#x", code)
		}
	})
}

func TestConnectionLimits(t *testing.T) {
	virtual(t, func(w *world) {
		var open []*client
		for i := range w.hub.cfg.Limits.Connections {
			open = append(open, w.connect("anna", 5, clientID("anna-"+string(rune('a'+i)))))
		}
		for version, no := range map[byte]byte{4: 3, 5: packets.ErrQuotaExceeded.Code} {
			c := w.device("anna", version)
			if ack := c.hello("anna-one-too-many"); ack.ReasonCode != no {
				t.Errorf("MQTT %d: CONNACK %#x", version, ack.ReasonCode)
			}
			c.ended()
		}
		if c := w.device("bob", 5); c.hello("bob").ReasonCode != 0 {
			t.Error("another device pays for it")
		}
		// A client that lost its connection without noticing comes back in.
		c := w.device("anna", 5)
		if ack := c.hello("anna-a"); ack.ReasonCode != 0 {
			t.Errorf("CONNACK %#x for one that takes its own place", ack.ReasonCode)
		}
		open[0].ended()
		// Connections that say nothing have a limit of their own, and a time.
		silent := make([]*client, 0, 20)
		for range 20 {
			silent = append(silent, w.device("carl", 5))
		}
		synctest.Wait()
		closed := 0
		for _, s := range silent {
			select {
			case <-s.served:
				closed++
			default:
			}
		}
		if closed != 10 {
			t.Errorf("%d of 20 silent connections were closed at once, want 10", closed)
		}
		start := time.Now()
		for _, s := range silent {
			<-s.served
		}
		if d := time.Since(start); d > connectTimeout+time.Second {
			t.Errorf("a connection may be silent for %v", d)
		}
	})
}

func TestRevocation(t *testing.T) {
	virtual(t, func(w *world) {
		reader := w.connect("reader", 5)
		reader.subscribe(filter("home/+/#", 1))
		away := w.connect("anna", 5, clientID("anna-away"), persistent, lastWill("home/a/will", "away", 1, true),
			func(pk *packets.Packet) { pk.Connect.WillProperties.WillDelayInterval = 300 })
		away.subscribe(filter("home/a/#", 1))
		away.vanish()
		five := w.connect("anna", 5, clientID("anna-5"), persistent, lastWill("home/a/will", "5", 1, true))
		five.subscribe(filter("home/a/#", 1))
		three := w.connect("anna", 4, clientID("anna-3"), lastWill("home/a/will", "3", 0, false))
		silent := w.device("anna", 5)
		five.publish("home/a/keep", "retained", 1, retained)
		reader.want("home/a/keep=retained")
		bob := w.connect("bob", 4, lastWill("home/a/will", "bob", 0, false))
		synctest.Wait()

		start := time.Now()
		w.hub.Forget("anna")
		if code := five.ended(); code != packets.ErrAdministrativeAction.Code {
			t.Errorf("DISCONNECT %#x", code)
		}
		three.ended()
		<-silent.served
		if d := time.Since(start); d > time.Second {
			t.Errorf("it took %v until the connections were ended", d)
		}
		if code := five.publish("home/a/x", "late", 1); code != 0xFF {
			t.Errorf("%#x", code)
		}
		if code := bob.publish("home/a/x", "bob", 1); code != 0 {
			t.Errorf("another device pays for it: %#x", code)
		}
		reader.want("home/a/x=bob")
		elapse(10 * time.Minute)
		reader.quiet() // no will, not even the delayed one
		st := w.hub.Status()
		if len(st.Mailboxes) != 0 || st.Retained != 0 {
			t.Errorf("left behind: %+v", st)
		}
		for _, name := range w.store.Queues() {
			if strings.Contains(name, "anna") {
				t.Errorf("queue %s is left behind", name)
			}
		}
		if keys := w.store.Keys(recordPrefix + deviceQueues); len(keys) != 0 {
			t.Errorf("keys %v are left behind", keys)
		}
		if !w.audited("mqtt.forgotten") {
			t.Error("not audited")
		}
	})
}

// What a revoked device published before, and nobody has got yet, is dropped:
// in every mailbox, also after a restart. Whoever gets the name next is heard.
func TestRevokedMessagesAreDropped(t *testing.T) {
	for _, by := range []string{"anna", "key-anna"} {
		for _, restart := range []bool{false, true} {
			virtual(t, func(w *world) {
				home := w.agent("kitchen", inFilter("set/#", 1))
				home.cut()
				bob := w.connect("bob", 5, persistent)
				bob.subscribe(filter("home/+/set/#", 1))
				bob.leave()
				anna := w.connect("anna", 5)
				anna.publish("home/kitchen/set/door", "open", 1)
				carl := w.connect("carl", 5)
				carl.publish("home/kitchen/set/lamp", "on", 1)
				w.hub.Forget(by)
				anna.ended()
				carl.leave()
				if restart {
					w.restart()
				}
				next := w.device("anna", 5) // the name was given to another key
				if ack := next.hello("anna"); ack.ReasonCode != 0 {
					t.Fatalf("CONNACK %#x", ack.ReasonCode)
				}
				next.publish("home/kitchen/set/heat", "21", 1)
				home = w.agent("kitchen", inFilter("set/#", 1))
				home.want("set/lamp=on", "set/heat=21")
				home.quiet()
				bob = w.connect("bob", 5, persistent)
				bob.want("home/kitchen/set/lamp=on", "home/kitchen/set/heat=21")
				bob.quiet()
			})
		}
	}
}

// halfOpen is a connection whose other end may still be read after CloseWrite,
// as TCP's.
type halfOpen struct{ net.Conn }

func (halfOpen) CloseWrite() error { return nil }

func pipeHalf() (near, far net.Conn) {
	near, far = net.Pipe()
	return near, halfOpen{far}
}

// A device with all its connections takes the place of one of them, also while
// that one's end, which nobody answers, takes its time.
func TestTakeoverAtTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Limits.Connections = 1 })
		for range 3 {
			near, far := pipeHalf()
			lost := newClient(t, near, 5)
			go func() {
				defer close(lost.served)
				w.hub.ServeConn(t.Context(), far, Identity{Name: "anna", ID: "key-anna"})
			}()
			t.Cleanup(func() { near.Close(); <-lost.served })
			if ack := lost.hello("anna"); ack.ReasonCode != 0 {
				t.Errorf("CONNACK %#x for one that takes its own place", ack.ReasonCode)
			}
		}
		c := w.device("anna", 5)
		if ack := c.hello("anna-2"); ack.ReasonCode != packets.ErrQuotaExceeded.Code {
			t.Errorf("CONNACK %#x for a second connection", ack.ReasonCode)
		}
	})
}

// The end of the context is the relay's decision: no will.
func TestContextEnds(t *testing.T) {
	virtual(t, func(w *world) {
		reader := w.connect("reader", 5)
		reader.subscribe(filter("home/+/#", 1))
		near, far := net.Pipe()
		ctx, cancel := context.WithCancel(w.t.Context())
		c := newClient(t, near, 5)
		go func() {
			defer close(c.served)
			w.hub.ServeConn(ctx, far, Identity{Name: "anna"})
		}()
		c.hello("anna", lastWill("home/a/will", "gone", 1, false))
		cancel()
		if code := c.ended(); code != packets.ErrAdministrativeAction.Code {
			t.Errorf("DISCONNECT %#x", code)
		}
		reader.quiet()

		c = w.connect("anna", 5, lastWill("home/a/will", "gone", 1, false))
		w.stop()
		if code := c.ended(); code != packets.ErrServerShuttingDown.Code {
			t.Errorf("DISCONNECT %#x", code)
		}
		if code := reader.ended(); code != packets.ErrServerShuttingDown.Code {
			t.Errorf("a message came before the end, or the code is %#x", code)
		}
		late := w.device("anna", 5)
		<-late.served
	})
}
