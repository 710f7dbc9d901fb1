package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// TestRetainedOut: retained messages are retained at the hub while they come,
// a cleared one is cleared there, and one that was not published as retained
// does not become so.
func TestRetainedOut(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "s/#"), DialRelay: h.dial})
	b.up(t)
	b.syncDone(t)
	d := m.join("sensor")
	for _, qos := range []byte{0, 1} {
		topic := fmt.Sprintf("s/%d", qos)
		d.publish(topic, qos, true, []byte("on"))
		d.publish(topic, qos, false, []byte("event"))
		d.publish(topic+"/event", qos, false, []byte("event"))
	}
	want := map[string]string{"s/0": "on", "s/1": "on"}
	eventually(t, "retained", func() bool { return h.count() == 6 && maps.Equal(h.kept(), want) })
	d.publish("s/1", 1, true, nil)
	eventually(t, "cleared", func() bool { return h.kept()["s/1"] == "" && len(h.on("s/1")) == 3 })
}

// TestRetainedIn: retained as published at home too, and cleared.
func TestRetainedIn(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "s/# in"), DialRelay: h.dial}).up(t)
	h.give(mqttbridge.LinkMessage{Topic: "s/a", Payload: []byte("1"), QoS: 1, Retain: true})
	h.give(mqttbridge.LinkMessage{Topic: "s/b", Payload: []byte("1"), QoS: 1, Retain: true})
	h.give(mqttbridge.LinkMessage{Topic: "s/c", Payload: []byte("1"), QoS: 1})
	h.give(mqttbridge.LinkMessage{Topic: "s/b", QoS: 1, Retain: true})
	eventually(t, "taken", func() bool { return h.left() == 0 })
	d := m.join("late", "s/#")
	eventually(t, "retained", func() bool { return len(d.heard()) > 0 })
	if got := d.heard(); len(got) != 1 || got[0] != (heard{"s/a", "1", true}) {
		t.Errorf("retained at home: %v", got)
	}
}

// TestSnapshot: after the hub has lost its retained state it gets a snapshot,
// and no message is sent as if it were new. After a link that was merely cut
// nothing is sent at all; after the home broker was away there is a snapshot
// again, since retained messages at QoS 0 may have been missed.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	d := m.join("sensor")
	want := map[string]string{}
	const n = 150
	for i := range n {
		topic := fmt.Sprintf("s/%d", i)
		want[topic] = "v"
		d.publish(topic, byte(i%2), true, []byte("v"))
	}
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "s/#"), DialRelay: h.dial})
	syncs := func() int {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.syncs)
	}
	expect := func(what string, n int) {
		t.Helper()
		b.up(t)
		b.syncDone(t)
		eventually(t, what, func() bool { return syncs() == n && maps.Equal(h.kept(), want) })
	}
	expect("the first snapshot", 1)
	eventually(t, "the first subscription's messages came", func() bool { s := b.Status(); return s.Out.Messages+s.Ignored >= n })
	first := h.count()

	h.with(func() { h.epoch, h.retained = "two", map[string]string{} })
	h.cut()
	expect("snapshot after a new epoch", 2)

	h.cut()
	eventually(t, "the link is back", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.hellos) == 3 && h.hellos[2].Epoch == "two" && h.hellos[0].Epoch == ""
	})
	during(t, 200*time.Millisecond, "a snapshot after a mere cut", func() bool { return syncs() != 2 })

	m.stop()
	eventually(t, "the broker is gone", func() bool { return !b.Status().Broker.Connected })
	m.start()
	expect("snapshot after the broker was away", 3)

	delete(want, "s/7")
	d.publish("s/7", 1, true, nil)
	eventually(t, "cleared", func() bool { return h.count() == first+1 })
	h.with(func() { h.epoch = "three"; h.retained["s/7"] = "ghost" })
	h.cut()
	expect("a snapshot clears what is not in it", 4)
	if got := h.count(); got != first+1 {
		t.Errorf("%d messages came as new after the beginning, not 1", got-first)
	}
}

// TestSessionLost: when the home broker has forgotten our session, its retained
// messages come again with the new subscription. They are not sent out as new
// ones, but those that changed meanwhile are.
func TestSessionLost(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	d := m.join("sensor")
	for i := range 10 {
		d.publish(fmt.Sprintf("s/%d", i), 1, true, []byte("v"))
	}
	var away atomic.Bool
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		if away.Load() {
			return nil, errors.New("away")
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "s/#"), DialRelay: h.dial, DialBroker: dial})
	b.up(t)
	b.syncDone(t)
	eventually(t, "all came", func() bool { s := b.Status(); return s.Out.Messages+s.Ignored >= 10 })
	before := h.count()
	away.Store(true)
	thief, err := (&dialer{broker: Broker{URL: m.url()}, dial: (&net.Dialer{}).DialContext}).connect(t.Context(), sessionOptions{id: "sallyport-kitchen", clean: true, level: level4})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "pushed out", func() bool { return !b.Status().Broker.Connected })
	thief.close()
	d.publish("s/3", 1, true, []byte("changed"))
	away.Store(false)
	eventually(t, "the changed one came", func() bool { return h.kept()["s/3"] == "changed" })
	b.up(t)
	b.syncDone(t)
	d.publish("s/new", 1, false, []byte("x"))
	eventually(t, "subscribed again", func() bool { return len(h.on("s/new")) == 1 })
	if got := h.count() - before; got > 2 {
		t.Errorf("%d messages came as new, not s/3 and s/new alone", got)
	}
	if s := b.Status(); s.SessionsLost != 1 {
		t.Errorf("nobody was told: %+v", s)
	}
}

// TestSnapshotOverLive: what is published while a snapshot is taken is newer
// than the snapshot, and is what the hub has in the end.
func TestSnapshotOverLive(t *testing.T) {
	t.Parallel()
	r := newRecent()
	r.start()
	r.note("a", []byte("2"))
	r.note("b", nil)
	r.note("new", []byte("1"))
	if v, ok := r.newest("a"); !ok || string(v) != "2" {
		t.Errorf("newest of a: %q, %v", v, ok)
	}
	if v, ok := r.newest("b"); !ok || len(v) != 0 {
		t.Errorf("newest of b: %q, %v", v, ok)
	}
	if _, ok := r.newest("c"); ok {
		t.Error("c was not published")
	}
	list, ok := r.rest(map[string]struct{}{"a": {}})
	if !ok || len(list) != 1 || list[0].Topic != "new" || !list[0].Sync {
		t.Errorf("rest: %v, %v", list, ok)
	}
	r.stop()
	r.note("a", []byte("3"))
	if _, ok := r.newest("a"); ok {
		t.Error("remembers after stop")
	}
	r.start()
	for i := range snapshotTopics + 1 {
		r.note(fmt.Sprint(i), []byte("x"))
	}
	if _, ok := r.rest(nil); ok {
		t.Error("says it is complete, though it is not")
	}
}

// TestSnapshotRace: values change all the time while snapshots are taken; the
// hub ends with the last ones.
func TestSnapshotRace(t *testing.T) {
	t.Parallel()
	m, h := startMosquitto(t, "allow"), newHub(t)
	d := m.join("sensor")
	b := start(t, Config{Broker: Broker{URL: m.url()}, Rules: rules(t, "s/#"), DialRelay: h.dial})
	b.up(t)
	want := map[string]string{}
	for i := range 600 {
		topic := fmt.Sprintf("s/%d", i%20)
		payload := string(numbered("v", i))
		if i%7 == 6 {
			payload = ""
		}
		d.publish(topic, byte(i%2), true, []byte(payload))
		if want[topic] = payload; payload == "" {
			delete(want, topic)
		}
		if i%150 == 75 {
			h.with(func() { h.epoch = fmt.Sprint(i) })
			h.cut()
		}
	}
	b.up(t)
	b.syncDone(t)
	eventually(t, "the hub has what home has", func() bool { return maps.Equal(h.kept(), want) })
}
