package bridge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// both runs messages in both directions while trouble makes trouble, and
// expects all of them, in order, where only repetitions do not count. It
// returns how many came more than once at the hub.
func both(t *testing.T, m *mosquitto, h *fakeHub, b *running, n int, trouble func(round int)) int {
	t.Helper()
	b.up(t)
	lamp := m.join("lamp", "set/#")
	sensor := m.join("sensor")
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		for i := range n {
			sensor.publish(fmt.Sprintf("tele/%d", i%3), 1, false, numbered("m", i/3))
		}
	})
	wg.Go(func() {
		for i := range n {
			h.give(mqttbridge.LinkMessage{Topic: fmt.Sprintf("set/%d", i%3), Payload: numbered("m", i/3), QoS: 1})
		}
	})
	go func() {
		defer close(done)
		wg.Wait()
	}()
	for round := 0; ; round++ {
		trouble(round)
		select {
		case <-done:
		case <-time.After(time.Duration(rand.IntN(100)) * time.Millisecond):
			continue
		}
		break
	}
	eventually(t, "all came in", func() bool { return h.left() == 0 })
	for k := range 3 {
		topic := fmt.Sprintf("tele/%d", k)
		eventually(t, "out", func() bool { return len(firsts(h.on(topic))) == (n-k+2)/3 })
		expectSeries(t, "out", h.on(fmt.Sprintf("tele/%d", k)), "m", (n-k+2)/3)
		topic = fmt.Sprintf("set/%d", k)
		eventually(t, "in", func() bool { return len(firsts(lamp.on(topic))) == (n-k+2)/3 })
		expectSeries(t, "in", lamp.on(topic), "m", (n-k+2)/3)
	}
	lamp.mu.Lock()
	repeats := -lamp.again // between broker and lamp, which is not our business
	lamp.mu.Unlock()
	for k := range 3 {
		list := lamp.on(fmt.Sprintf("set/%d", k))
		repeats += len(list) - len(firsts(list))
	}
	s := b.Status()
	t.Logf("%d messages each way: came twice at the hub %d, at the lamp %d; counted out %d, in %d (absorbed %d)",
		n, h.count()-n, repeats, s.Out.Duplicates, s.In.Duplicates, b.count.inAbsorbed.Load())
	if repeats > int(s.In.Duplicates) {
		t.Errorf("%d messages came twice at the lamp, %d were counted", repeats, s.In.Duplicates)
	}
	return h.count() - n
}

// TestLinkCuts: the link is cut again and again, in the middle of everything.
func TestLinkCuts(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "tele/#", "set/# in"), DialRelay: h.dial})
	if n := both(t, m, h, b, 600, func(int) { h.cut() }); n != 0 {
		t.Errorf("%d messages came twice at the hub, whose number says what it has", n)
	}
	if s := b.Status(); s.In.Duplicates != 0 {
		t.Errorf("%d messages were published at home again, though the broker had them", s.In.Duplicates)
	}
}

// TestBrokerRestarts: the home broker stops and starts again, with its
// persistence.
func TestBrokerRestarts(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow", "max_queued_messages 0"), newHub(t)
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "tele/#", "set/# in"), DialRelay: h.dial})
	both(t, m, h, b, 600, func(round int) {
		if round > 0 && round <= 5 {
			m.stop()
			m.start()
		}
	})
}

// TestBrokerKilled: kill -9. Mosquitto loses some of what it acknowledged (it
// saves after the fact), so that the sensor publishes again what did not reach
// the hub; the bridge itself loses nothing of what it acknowledged, and the
// link's direction loses nothing at all.
func TestBrokerKilled(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow", "autosave_interval 1", "autosave_on_changes true"), newHub(t)
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "tele/#", "set/# in"), DialRelay: h.dial})
	b.up(t)
	sensor := m.join("sensor")
	const rounds, n = 4, 40
	for round := range rounds {
		for i := range n {
			h.give(mqttbridge.LinkMessage{Topic: "set/x", Payload: numbered("m", round*n+i), QoS: 1})
			sensor.publish("tele/x", 1, false, numbered("m", round*n+i))
		}
		m.kill()
		m.start()
		b.up(t)
		b.syncDone(t)
		for i := range (round + 1) * n {
			if p := numbered("m", i); !slices.Contains(h.on("tele/x"), string(p)) {
				sensor.publish("tele/x", 1, false, p)
			}
		}
		eventually(t, "all came out", func() bool { return len(firsts(h.on("tele/x"))) == (round+1)*n })
		eventually(t, "all came in", func() bool { return h.left() == 0 })
	}
	if s := b.Status(); s.In.Messages < rounds*n || s.In.Seen < rounds*n {
		t.Errorf("status: %+v", s.In)
	}
}

// TestAgentRestarts: the bridge ends and starts again with the same store, in
// the middle of everything; the hub hears of one stream.
func TestAgentRestarts(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	cfg := Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "tele/#", "set/# in"), DialRelay: h.dial, Queue: openStore(t, filepath.Join(t.TempDir(), "q.db"))}
	b := start(t, cfg)
	b.up(t)
	lamp, sensor := m.join("lamp", "set/#"), m.join("sensor")
	const rounds, n = 6, 100
	for round := range rounds {
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range n {
				sensor.publish("tele/x", 1, false, numbered("m", round*n+i))
			}
		})
		wg.Go(func() {
			for i := range n {
				h.give(mqttbridge.LinkMessage{Topic: "set/x", Payload: numbered("m", round*n+i), QoS: 1})
			}
		})
		b.stop()
		b = start(t, cfg)
		wg.Wait()
	}
	eventually(t, "all came out", func() bool { return len(firsts(h.on("tele/x"))) == rounds*n })
	eventually(t, "all came in", func() bool { return h.left() == 0 && len(firsts(lamp.on("set/x"))) == rounds*n })
	expectSeries(t, "out", h.on("tele/x"), "m", rounds*n)
	expectSeries(t, "in", lamp.on("set/x"), "m", rounds*n)
	h.with(func() {
		if len(h.last) != 1 {
			t.Errorf("the hub saw %d streams", len(h.last))
		}
	})
}

// TestRestoredStore: a queue that is a copy from earlier gets a new name, or
// the hub would take its new messages for ones that it has.
func TestRestoredStore(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	store := openStore(t, filepath.Join(t.TempDir(), "q.db"))
	if err := store.Set(streamKey, []byte("old")); err != nil {
		t.Fatal(err)
	}
	h.last["old"] = 5000
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "t/#"), DialRelay: h.dial, Queue: store})
	b.up(t)
	m.join("sensor").publish("t/x", 1, false, []byte("x"))
	eventually(t, "it came", func() bool { return h.count() == 1 })
}

// TestGiveUp: Run ends at once when its context does, whatever is missing.
func TestGiveUp(t *testing.T) {
	t.Parallel()
	m := startMosquitto(t, "allow")
	for _, url := range []string{m.url(), "tcp://127.0.0.1:1"} {
		b := start(t, Config{Broker: Broker{URL: url}, Rules: rules(t, "t/#"), DialRelay: failDial})
		eventually(t, "it tries", func() bool { s := b.Status(); return s.Broker.Connected || s.Broker.LastError != "" })
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		b.cancel()
		select {
		case <-b.done:
		case <-ctx.Done():
			t.Fatal("Run does not end")
		}
	}
}
