package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// virtual runs a bridge in a bubble with a fake broker; call it inside of one.
func virtual(t *testing.T, f *fakeBroker, h *fakeHub, lines ...string) *running {
	t.Helper()
	store, err := queue.Open(filepath.Join(t.TempDir(), "q.db"), queue.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	b := start(t, Config{
		Broker: Broker{URL: "tcp://home"}, Rules: rules(t, lines...), DialRelay: h.dial, DialBroker: f.dial, Queue: store,
	})
	return b
}

// TestRefusedFilter: a SUBACK that says no is seen, though paho's token has no
// error; the other subscriptions work, and it is asked for again on the next
// connection.
func TestRefusedFilter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lenient atomic.Bool
		f := &fakeBroker{t: t, suback: func(filter string) byte {
			if filter == "secret/#" && !lenient.Load() {
				return 0x80
			}
			return 1
		}}
		h := newHub(t)
		b := virtual(t, f, h, "secret/#", "open/#")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		s := b.Status()
		if !s.Broker.Connected || !s.Relay.Connected || len(s.Refused) != 1 || s.Refused[0].Filter != "secret/#" {
			t.Fatalf("status: %+v", s)
		}
		if c := strings.Count(b.log.String(), "refuses a subscription"); c != 1 {
			t.Errorf("said %d times", c)
		}
		f.live("sallyport-kitchen").deliver("open/x", []byte("1"), 1, 1)
		synctest.Wait()
		if len(h.on("open/x")) != 1 {
			t.Error("the other subscription does not work")
		}
		lenient.Store(true)
		f.live("sallyport-kitchen").Close()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if s := b.Status(); !s.Broker.Connected || len(s.Refused) != 0 || !slices.Contains(f.live("sallyport-kitchen").filters(), "secret/#") {
			t.Errorf("not asked for again: %+v", s)
		}
	})
}

// TestBridgeBit: it is tried first; a broker that refuses it is asked without
// it from then on, and one that hangs up for this time only. Then whether new
// messages are retained is taken from the last snapshot.
func TestBridgeBit(t *testing.T) {
	for _, code := range []byte{1, 0x82, 0x84, 3, 255} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeBroker{t: t}
				levels := make(chan byte, 100)
				f.refuse = func(p *packets.ConnectPacket) byte {
					if p.ClientIdentifier != "sallyport-kitchen" {
						return 0
					}
					levels <- p.ProtocolVersion
					if p.CleanSession {
						t.Error("the source session is not persistent")
					}
					if p.ProtocolVersion != 4 {
						return code
					}
					return 0
				}
				h := newHub(t)
				b := virtual(t, f, h, "t/#")
				synctest.Wait() // at once
				if !b.Status().Broker.Connected {
					t.Fatalf("status: %+v", b.Status())
				}
				f.live("sallyport-kitchen").Close()
				time.Sleep(5 * time.Second)
				synctest.Wait()
				close(levels)
				var got []byte
				for l := range levels {
					got = append(got, l)
				}
				want := []byte{0x84, 4, 4}
				if code == 255 || code == 3 {
					want = []byte{0x84, 4, 0x84, 4}
				}
				if !slices.Equal(got, want) {
					t.Errorf("levels %x, not %x", got, want)
				}
				b.recent.learn([]mqttbridge.LinkMessage{syncMessage("t/known", []byte("1"))})
				c := f.live("sallyport-kitchen")
				c.deliver("t/known", []byte("2"), 1, 1)
				c.deliver("t/new", []byte("2"), 1, 2)
				synctest.Wait()
				if kept := h.kept(); kept["t/known"] != "2" || kept["t/new"] != "" {
					t.Errorf("retained: %v", kept)
				}
			})
		})
	}
}

// TestWrongLevelIsNoPassword: a refused password is not tried a second time
// without the bridge bit: brokers count wrong passwords.
func TestWrongLevelIsNoPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeBroker{t: t, refuse: func(p *packets.ConnectPacket) byte {
			if p.ClientIdentifier == "sallyport-kitchen" {
				return 5
			}
			return 0
		}}
		b := virtual(t, f, newHub(t), "t/#")
		eventuallyVirtual(t, func() bool { return b.Status().Broker.LastError != "" })
		first := f.live("sallyport-kitchen")
		if first == nil || first.opened.ProtocolVersion != 0x84 {
			t.Fatalf("last CONNECT: %v", first)
		}
	})
}

// eventuallyVirtual waits in virtual steps; for bubbles.
func eventuallyVirtual(t *testing.T, cond func() bool) {
	t.Helper()
	for range 10_000 {
		synctest.Wait()
		if cond() {
			return
		}
		time.Sleep(100 * time.Millisecond) // virtual
	}
	t.Fatal("did not happen")
}

// TestPoison: a message that the home broker hangs up on each time is dropped
// after some tries, and the ones behind it come; nothing else is dropped, also
// when the broker is away all the time.
func TestPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeBroker{t: t, publish: func(p *packets.PublishPacket) byte {
			if p.TopicName == "x/poison" {
				return 'h'
			}
			return 'a'
		}}
		h := newHub(t)
		b := virtual(t, f, h, "x/+ in")
		for i := range 5 {
			h.give(mqttbridge.LinkMessage{Topic: fmt.Sprintf("x/good%d", i), QoS: 1, Payload: []byte("x")})
		}
		h.give(mqttbridge.LinkMessage{Topic: "x/poison", QoS: 1, Payload: []byte("x")})
		h.give(mqttbridge.LinkMessage{Topic: "x/last", QoS: 1, Payload: []byte("x")})
		eventuallyVirtual(t, func() bool { return h.left() == 0 })
		got := f.topics()
		for _, topic := range []string{"x/good0", "x/good4", "x/last"} {
			if !slices.Contains(got, topic) {
				t.Errorf("%s did not come", topic)
			}
		}
		n := 0
		for _, topic := range got {
			if topic == "x/poison" {
				n++
			}
		}
		if n < suspectAfter+blameMax || n > 20 {
			t.Errorf("the poison was tried %d times", n)
		}
		if s := b.Status(); s.In.Refused != 1 {
			t.Errorf("status: %+v", s.In)
		}
	})
}

// TestNoPoison: a broker that comes and goes, whatever is published, loses no
// message.
func TestNoPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var well atomic.Bool
		f := &fakeBroker{t: t}
		f.refuse = func(*packets.ConnectPacket) byte {
			if well.Load() {
				return 0
			}
			return 255
		}
		h := newHub(t)
		b := virtual(t, f, h, "x/+ in")
		h.give(mqttbridge.LinkMessage{Topic: "x/one", QoS: 1, Payload: []byte("x")})
		for range 10 {
			time.Sleep(10 * time.Second)
			well.Store(true)
			eventuallyVirtual(t, func() bool { return b.Status().Broker.Connected })
			well.Store(false)
			f.live("sallyport-kitchen-in").Close()
			f.live("sallyport-kitchen").Close()
			h.give(mqttbridge.LinkMessage{Topic: "x/more", QoS: 1, Payload: []byte("x")})
			synctest.Wait()
		}
		well.Store(true)
		eventuallyVirtual(t, func() bool { return h.left() == 0 })
		if s := b.Status(); s.In.Refused != 0 || s.In.Messages < 11 {
			t.Errorf("status: %+v", s.In)
		}
	})
}

// TestSilence: a link that says nothing is given up after a minute, a broker
// that says nothing after its keep-alive; both are dialled again.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeBroker{t: t}
		dials := make(chan time.Time, 100)
		silent := func(ctx context.Context) (net.Conn, error) {
			dials <- time.Now()
			a, c := net.Pipe()
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				c.Read(buf)
				w := bufio.NewWriter(c)
				mqttbridge.WriteLink(w, mqttbridge.LinkPacket{Kind: mqttbridge.LinkWelcomeKind, Welcome: &mqttbridge.LinkWelcome{Version: 1, Epoch: "x"}})
				w.Flush()
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
				}
			}()
			return a, nil
		}
		store, err := queue.Open(filepath.Join(t.TempDir(), "q.db"), queue.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		b := start(t, Config{Broker: Broker{URL: "tcp://home"}, Rules: rules(t, "t/# in"), DialRelay: silent, DialBroker: f.dial, Queue: store})
		first := <-dials
		second := <-dials
		if d := second.Sub(first); d < linkSilence || d > linkSilence+2*time.Second {
			t.Errorf("a silent link was given up after %v", d)
		}
		if e := b.Status().Relay.LastError; !strings.Contains(e, "link to the relay ended") {
			t.Errorf("said %q", e)
		}
	})
}

// TestGreetings: what a hub may answer to a hello.
func TestGreetings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.greeting = func(w *mqttbridge.LinkWelcome) { w.Problem = "this agent has been revoked" }
		b := virtual(t, &fakeBroker{t: t}, h, "t/#")
		eventuallyVirtual(t, func() bool { return strings.Contains(b.Status().Relay.LastError, "revoked") })
		if b.Status().Relay.Connected {
			t.Error("takes a refusal for a welcome")
		}
		h.with(func() { h.greeting = nil })
		eventuallyVirtual(t, func() bool { return b.Status().Relay.Connected })
		// An acknowledgement of what was never sent must delete nothing.
		l, _ := b.current()
		if err := l.taken(7); err == nil {
			t.Error("believes an acknowledgement of what was not sent")
		}
	})
}

// TestTooManyAtOnce: a hub that does not wait for acknowledgements is cut off
// before it fills the memory.
func TestTooManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeBroker{t: t, noDial: func() error { return errors.New("away") }}
		h := newHub(t)
		b := virtual(t, f, h, "t/# in")
		eventuallyVirtual(t, func() bool { return b.Status().Relay.Connected })
		l, _ := b.current()
		ok := true
		for i := range inboxMax + 1 {
			ok = b.in.add(l, mqttbridge.LinkMessage{Topic: "t/x", Seq: uint64(i + 1), QoS: 1})
		}
		if ok {
			t.Errorf("takes %d", inboxMax+1)
		}
	})
}

// TestHandover: a message that is on its way to the broker when the link is
// cut is not published a second time for the new link, and is acknowledged
// there.
func TestHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		f := &fakeBroker{t: t}
		f.publish = func(p *packets.PublishPacket) byte {
			if p.TopicName == "x/slow" {
				<-hold
			}
			return 'a'
		}
		h := newHub(t)
		b := virtual(t, f, h, "x/+ in")
		eventuallyVirtual(t, func() bool { s := b.Status(); return s.Relay.Connected && s.Broker.Connected })
		h.give(mqttbridge.LinkMessage{Topic: "x/slow", QoS: 1})
		h.give(mqttbridge.LinkMessage{Topic: "x/next", QoS: 1})
		synctest.Wait()
		h.cut()
		eventuallyVirtual(t, func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.hellos) == 2 && h.sent == 2 })
		close(hold)
		eventuallyVirtual(t, func() bool { return h.left() == 0 })
		n := 0
		for _, topic := range f.topics() {
			if topic == "x/slow" || topic == "x/next" {
				n++
			}
		}
		if n != 2 || b.Status().In.Duplicates != 0 {
			t.Errorf("published %v", f.topics())
		}
	})
}

// TestUntrustedSession: when the process died while a session was being made,
// nobody knows what it is subscribed to: everything is subscribed to again.
func TestUntrustedSession(t *testing.T) {
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprint(open), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeBroker{t: t, present: true}
				store, err := queue.Open(filepath.Join(t.TempDir(), "q.db"), queue.Options{NoSync: true})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { store.Close() })
				text := fmt.Sprintf(`{"of":"tcp://home sallyport-kitchen","sure":{"t/#":1},"maybe":["t/#","old"],"open":%v}`, open)
				if err := store.Set(sourceKey, []byte(text)); err != nil {
					t.Fatal(err)
				}
				start(t, Config{Broker: Broker{URL: "tcp://home"}, Rules: rules(t, "t/#"), DialRelay: newHub(t).dial, DialBroker: f.dial, Queue: store})
				eventuallyVirtual(t, func() bool {
					s := (&Bridge{cfg: Config{Agent: "kitchen", Queue: store, Broker: Broker{URL: "tcp://home"}}}).readSubscribed()
					return len(s.Maybe) == 1 && !s.Open
				})
				if got := f.live("sallyport-kitchen").filters(); slices.Contains(got, "t/#") != open {
					t.Errorf("subscribed to %v", got)
				}
			})
		})
	}
}

// TestSpill: a broker without a window of its own sends more than there is
// room for while the queue is full. What is left to it is fetched again, from
// the first one on, once there is room; nothing behind it slips through.
func TestSpill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeBroker{t: t}
		h := newHub(t)
		h.setDown(true)
		store, err := queue.Open(filepath.Join(t.TempDir(), "q.db"), queue.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		b := start(t, Config{
			Broker: Broker{URL: "tcp://home"}, Rules: rules(t, "t/#"), DialRelay: h.dial, DialBroker: f.dial, Queue: store,
			Limits: queue.Limits{Messages: 5},
		})
		eventuallyVirtual(t, func() bool { return b.Status().Broker.Connected })
		first := f.live("sallyport-kitchen")
		const n = 1500
		for i := range n {
			first.deliver("t/x", numbered("m", i), 1, uint16(i+1))
		}
		first.deliver("t/x", []byte("loose"), 0, 0)
		synctest.Wait()
		if s := b.Status(); !s.Queue.Full || s.Out.Dropped != 1 {
			t.Errorf("status: %+v", s)
		}
		time.Sleep(10 * time.Minute)
		if !b.Status().Broker.Connected || f.live("sallyport-kitchen") != first {
			t.Error("the connection did not last")
		}
		h.setDown(false)
		eventuallyVirtual(t, func() bool { return f.live("sallyport-kitchen") != first })
		got := h.count()
		if got < intakeMax || got >= n {
			t.Errorf("%d came on the first connection", got)
		}
		for i := got; i < n; i++ {
			f.live("sallyport-kitchen").deliver("t/x", numbered("m", i), 1, uint16(i+1))
		}
		eventuallyVirtual(t, func() bool { return h.count() == n })
		expectSeries(t, "out", h.on("t/x"), "m", n)
	})
}

// TestBridgeBackoff: both sides are tried again after 0 to 1 s, 2 s, 4 s … 30 s.
func TestBridgeBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := queue.Open(filepath.Join(t.TempDir(), "q.db"), queue.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		var tries [2][]time.Duration
		began := time.Now()
		away := func(i int) (net.Conn, error) {
			tries[i] = append(tries[i], time.Since(began))
			return nil, errors.New("away")
		}
		b, err := New(Config{
			Agent: "kitchen", Broker: Broker{URL: "tcp://home"}, Queue: store,
			DialRelay:  func(context.Context) (net.Conn, error) { return away(0) },
			DialBroker: func(context.Context, string, string) (net.Conn, error) { return away(1) },
		})
		if err != nil {
			t.Fatal(err)
		}
		b.rand = func() float64 { return 1 }
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
		defer cancel()
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
		for i := range tries {
			want := []time.Duration{0, 1, 3, 7, 15, 31, 61, 91}
			if len(tries[i]) != len(want) {
				t.Fatalf("tried at %v", tries[i])
			}
			for k, at := range tries[i] {
				if at != want[k]*time.Second {
					t.Errorf("tried at %v, not %v s", tries[i], want)
					break
				}
			}
		}
	})
}
