package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// runClient runs a client until the returned function is called, or the test
// ends.
func runClient(t *testing.T, cfg ClientConfig) (*Client, func()) {
	t.Helper()
	cfg.Agent = "kitchen"
	cfg.Logger, _ = newLog(t)
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.rand = func() float64 { return 0.002 }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return c, stop
}

// TestClientPublish: nil only after PUBACK, ErrOffline when nothing left,
// ErrUncertain when it may have.
func TestClientPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answer atomic.Int32
		answer.Store('a')
		f := &fakeBroker{t: t, publish: func(*packets.PublishPacket) byte { return byte(answer.Load()) }}
		c, stop := runClient(t, ClientConfig{Broker: Broker{URL: "tcp://home"}, DialBroker: f.dial})
		publish := func(limit time.Duration, qos byte) error {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			return c.Publish(ctx, "cmnd/door", []byte("ON"), qos, false)
		}
		gone := func(t *testing.T, otherwise string) {
			t.Helper()
			synctest.Wait()
			if c.Connected() {
				t.Error("still connected:", otherwise)
			}
		}
		synctest.Wait()
		if err := publish(time.Second, 1); err != nil {
			t.Errorf("acknowledged: %v", err)
		}
		if err := publish(time.Second, 0); err != nil {
			t.Errorf("QoS 0: %v", err)
		}
		answer.Store('s')
		if err := publish(time.Second, 1); !errors.Is(err, ErrUncertain) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the caller's time is up: %v", err)
		}
		gone(t, "the message may arrive later")
		time.Sleep(time.Second)
		synctest.Wait()
		began := time.Now()
		if err := publish(time.Hour, 1); !errors.Is(err, ErrUncertain) || time.Since(began) != ackLimit {
			t.Errorf("silence: %v after %v", err, time.Since(began))
		}
		gone(t, "a broker that does not acknowledge is taken for good")
		if err := publish(time.Second, 1); !errors.Is(err, ErrOffline) {
			t.Errorf("offline: %v", err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		answer.Store('h')
		if err := publish(time.Second, 1); !errors.Is(err, ErrUncertain) || errors.Is(err, ErrOffline) {
			t.Errorf("hangs up: %v", err)
		}
		answer.Store('a')
		time.Sleep(time.Second)
		synctest.Wait()
		if err := publish(time.Second, 1); err != nil {
			t.Errorf("back again: %v", err)
		}
		if n := len(f.topics()); n != 6 {
			t.Errorf("the broker got %d messages, not 6: one was sent twice, or although it was offline", n)
		}
		for _, bad := range []struct {
			topic   string
			qos     byte
			payload int
		}{{"a/#", 1, 1}, {"", 1, 1}, {"a", 2, 1}, {"a", 1, 70000}} {
			err := c.Publish(t.Context(), bad.topic, make([]byte, bad.payload), bad.qos, false)
			if err == nil || errors.Is(err, ErrOffline) || errors.Is(err, ErrUncertain) {
				t.Errorf("%v: %v", bad, err)
			}
		}
		stop()
		if err := publish(time.Second, 1); !errors.Is(err, ErrOffline) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// TestClientPublishCertain: a connection that is lost before the message was
// begun is ErrOffline, not ErrUncertain: the command may be tried again.
func TestClientPublishCertain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeBroker{t: t}
		c, _ := runClient(t, ClientConfig{Broker: Broker{URL: "tcp://home"}, DialBroker: f.dial})
		synctest.Wait()
		c.mu.Lock()
		s := c.session
		c.mu.Unlock()
		s.guard.kill() // nobody has noticed yet
		if !c.Connected() {
			t.Fatal("noticed too early for this test")
		}
		if err := c.Publish(t.Context(), "cmnd/door", []byte("ON"), 1, false); !errors.Is(err, ErrOffline) {
			t.Errorf("nothing was written: %v", err)
		}
		if len(f.topics()) != 0 {
			t.Error("the broker got it")
		}
	})
}

// TestClientSubscribe: subscriptions outlive connections, are made before what
// is published after them, and their functions are called in order.
func TestClientSubscribe(t *testing.T) {
	t.Parallel()
	m := startMosquitto(t, "allow")
	d := m.join("lamp")
	d.publish("stat/lamp", 1, true, []byte("old"))
	c, _ := runClient(t, ClientConfig{Broker: Broker{URL: m.url()}})
	var mu sync.Mutex
	var got, second []string
	changes := []bool{}
	c.OnChange(func(up bool) {
		mu.Lock()
		defer mu.Unlock()
		changes = append(changes, up)
	})
	cancel := c.Subscribe("stat/#", func(topic string, payload []byte, retained bool) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, fmt.Sprintf("%s=%s %v", topic, payload, retained))
	})
	has := func(list *[]string, want string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return slices.Contains(*list, want)
		}
	}
	eventually(t, "retained", has(&got, "stat/lamp=old true"))
	c.Subscribe("stat/lamp", func(_ string, payload []byte, retained bool) {
		mu.Lock()
		defer mu.Unlock()
		second = append(second, fmt.Sprintf("%s %v", payload, retained))
	})
	if err := c.Publish(t.Context(), "stat/lamp", []byte("now"), 1, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second one sees what was published after it", has(&second, "now false"))
	mu.Lock()
	if second[0] != "old true" {
		t.Errorf("the second one got %v", second)
	}
	got = nil
	mu.Unlock()
	for i := range 100 {
		d.publish("stat/n", 1, false, numbered("m", i))
	}
	eventually(t, "all", has(&got, "stat/n=m99 false"))
	mu.Lock()
	for i := range got {
		if want := fmt.Sprintf("stat/n=m%d false", i); got[i] != want {
			t.Fatalf("call %d is for %s, not %s", i, got[i], want)
		}
	}
	mu.Unlock()
	m.stop()
	eventually(t, "lost", func() bool { return !c.Connected() })
	if err := c.Publish(t.Context(), "a", nil, 1, false); !errors.Is(err, ErrOffline) {
		t.Errorf("offline: %v", err)
	}
	m.start()
	eventually(t, "connected again", c.Connected)
	// A subscription stands before what is published on the new connection.
	if err := c.Publish(t.Context(), "stat/again", []byte("x"), 1, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "subscribed again", has(&got, "stat/again=x false"))
	cancel()
	if err := c.Publish(t.Context(), "stat/late", []byte("x"), 1, false); err != nil {
		t.Fatal(err)
	}
	d2 := m.join("other", "stat/#")
	d2.publish("stat/lamp", 1, false, []byte("end"))
	eventually(t, "the other one goes on", has(&second, "end false"))
	if has(&got, "stat/late=x false")() || has(&got, "stat/lamp=end false")() {
		t.Error("called after cancel")
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(changes[:3], []bool{true, false, true}) {
		t.Errorf("changes: %v", changes)
	}
}

// TestClientRefusedFilter: a subscription that the broker refuses does not
// stop the others, nor publishing.
func TestClientRefusedFilter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeBroker{t: t, suback: func(filter string) byte {
			if filter == "secret/#" {
				return 0x80
			}
			return 1
		}}
		c, _ := runClient(t, ClientConfig{Broker: Broker{URL: "tcp://home"}, DialBroker: f.dial})
		c.Subscribe("secret/#", func(string, []byte, bool) {})
		c.Subscribe("wrong/#/filter", func(string, []byte, bool) {})
		got := make(chan string, 10)
		c.Subscribe("a/+", func(topic string, _ []byte, _ bool) { got <- topic })
		synctest.Wait()
		if err := c.Publish(t.Context(), "x", nil, 1, false); err != nil {
			t.Error(err)
		}
		conn := f.live("sallyport-kitchen-commands")
		conn.deliver("b/1", nil, 0, 0)
		conn.deliver("a/1", nil, 1, 7)
		if topic := <-got; topic != "a/1" {
			t.Errorf("called for %s", topic)
		}
		if !conn.opened.CleanSession || conn.opened.ProtocolVersion != 4 {
			t.Errorf("CONNECT: %v", conn.opened)
		}
	})
}

// TestBackoff: attempts come after 0 to 1 s, 2 s, 4 s … 30 s, at random, and
// from the beginning after a minute of connection.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		away.Store(true)
		f := &fakeBroker{t: t, noDial: func() error {
			if away.Load() {
				return errors.New("nobody is there")
			}
			return nil
		}}
		c, err := NewClient(ClientConfig{Agent: "kitchen", Broker: Broker{URL: "tcp://home"}, DialBroker: f.dial})
		if err != nil {
			t.Fatal(err)
		}
		var percent atomic.Int64
		percent.Store(100)
		c.rand = func() float64 { return float64(percent.Load()) / 100 }
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { c.Run(ctx) })
		waits := func() (list []time.Duration) {
			at := f.dialed()
			for i := 1; i < len(at); i++ {
				list = append(list, at[i].Sub(at[i-1]))
			}
			return list
		}
		time.Sleep(150 * time.Second)
		synctest.Wait()
		want := []time.Duration{1, 2, 4, 8, 16, 30, 30, 30}
		got := waits()
		for i, w := range want {
			if i >= len(got) || got[i] != w*time.Second {
				t.Fatalf("waits: %v, not %v s", got, want)
			}
		}
		percent.Store(50)
		n := len(f.dialed())
		time.Sleep(31 * time.Second)
		time.Sleep(14 * time.Second)
		if d := f.dialed(); len(d) < n+2 || d[n+1].Sub(d[n]) != 15*time.Second {
			t.Errorf("half the jitter: %v", waits())
		}
		// A connection of 59 s is no good one, one of 60 s is.
		for _, held := range []time.Duration{59 * time.Second, 60 * time.Second} {
			percent.Store(100)
			away.Store(false)
			time.Sleep(31 * time.Second)
			synctest.Wait()
			if !c.Connected() {
				t.Fatal("not connected")
			}
			since := f.dialed()
			time.Sleep(held - time.Since(since[len(since)-1]))
			away.Store(true)
			n := len(f.dialed())
			f.live("sallyport-kitchen-commands").Close()
			time.Sleep(40 * time.Second)
			if d := f.dialed(); held < stableAfter && len(d) != n+1 {
				t.Errorf("after %v: %d attempts in 40 s", held, len(d)-n)
			} else if held >= stableAfter && (len(d) < n+5 || d[n].Sub(since[len(since)-1])-held != time.Second) {
				t.Errorf("after %v: %d attempts in 40 s, the first one %v after the loss", held, len(d)-n, d[n].Sub(since[len(since)-1])-held)
			}
		}
		cancel()
		wg.Wait()
		if p := c.Status(); p.Connected || !strings.Contains(p.LastError, "nobody is there") {
			t.Errorf("status: %+v", p)
		}
	})
}
