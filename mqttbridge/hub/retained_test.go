package hub

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// What is retained has bounds: of all, and of one device, so that it cannot
// take the others' room.
func TestRetainedLimits(t *testing.T) {
	s := newRetainedSet()
	put := func(device, topic, payload string) error {
		m := &message{topic: topic, payload: []byte(payload), retain: true, sender: sender{device: device}}
		if err := s.room(m); err != nil {
			return err
		}
		s.set(m)
		return nil
	}
	for i := range maxRetainedOfOne {
		if err := put("anna", fmt.Sprint("a/", i), "x"); err != nil {
			t.Fatal(i, err)
		}
	}
	if put("anna", "a/more", "x") == nil {
		t.Error("a device has no limit")
	}
	if err := put("anna", "a/1", "changed"); err != nil {
		t.Errorf("what is there cannot change: %v", err)
	}
	if err := put("bob", "b", "x"); err != nil {
		t.Errorf("another device: %v", err)
	}
	if put("anna", "b", "x") == nil {
		t.Error("a device at its limit takes another's topic over")
	}
	big := strings.Repeat("x", 64<<10)
	n := 0
	for put("bob", fmt.Sprint("b/", n), big) == nil {
		n++
	}
	if n < 100 || n > 130 {
		t.Errorf("a device may retain %d messages of 64 KiB", n)
	}
	s.purge(func(m *message) bool { return m.sender.device == "bob" })
	put("anna", "a/1", "")
	if err := put("anna", "a/more", "x"); err != nil {
		t.Errorf("after one was cleared: %v", err)
	}
	n = 0
	for ; put(fmt.Sprint("d", n%50), fmt.Sprint("big/", n), big) == nil; n++ {
	}
	if n < 900 || s.bytes > maxRetainedBytes {
		t.Errorf("%d large messages, %d bytes", n, s.bytes)
	}
	s.purge(func(m *message) bool { return true })
	if s.bytes != 0 || len(s.topics) != 0 || len(s.shares) != 0 {
		t.Errorf("%d bytes, %d topics, %d senders are left", s.bytes, len(s.topics), len(s.shares))
	}
	for i := range maxRetained {
		if err := put(fmt.Sprint("d", i%10), fmt.Sprint("t/", i), "x"); err != nil {
			t.Fatal(i, err)
		}
	}
	if put("d11", "one more", "x") == nil {
		t.Error("there is no limit of topics")
	}
}

// A device that may retain no more is told, and its message does not go out.
func TestRetainedFull(t *testing.T) {
	virtual(t, func(w *world) {
		reader := w.connect("reader", 5)
		reader.subscribe(filter("home/a/#", 1))
		for i := range maxRetainedOfOne {
			w.hub.retained.set(&message{topic: fmt.Sprint("home/b/", i), payload: []byte("x"), sender: sender{device: "anna"}})
		}
		c := w.connect("anna", 5)
		if code := c.publish("home/a/x", "1", 1, retained); code != packets.ErrQuotaExceeded.Code {
			t.Errorf("MQTT 5 hears %#x", code)
		}
		reader.quiet()
		c.publish("home/a/x", "2", 1)
		reader.want("home/a/x=2")
		// A home is not stopped by it: its message goes out and is not retained.
		for i := range maxRetained {
			w.hub.retained.set(&message{topic: fmt.Sprint("home/c/", i), payload: []byte("x")})
		}
		home := w.agent("a")
		reader.next() // the home's state
		home.publish("x", "3", true)
		reader.want("home/a/x=3")
		synctest.Wait()
		if got := w.hub.retained.match("home/a/x", 0, time.Now()); len(got) != 0 {
			t.Error("it is retained beyond the limit")
		}
	})
}

// A subscription and a change of state at the same moment never leave the
// subscriber with the older state, nor with two of the newer.
func TestRetainedRace(t *testing.T) {
	for _, opts := range [][]connectOption{nil, {persistent}} {
		virtual(t, func(w *world) { raceRetained(w, opts...) })
	}
}

func raceRetained(w *world, opts ...connectOption) {
	keeper := w.connect("keeper", 5, persistent) // so that the disk is in the way
	keeper.subscribe(filter("home/a/x", 1))
	sender := w.connect("sender", 5)
	reader := w.connect("reader", 5, opts...)
	for i := range 120 {
		value := fmt.Sprint(i)
		done := make(chan struct{})
		go func() {
			sender.publish("home/a/x", value, 1, retained)
			close(done)
		}()
		reader.subscribe(filter("home/a/x", 1))
		<-done
		synctest.Wait()
		var got []string
		for len(reader.inbox) > 0 {
			got = append(got, string((<-reader.inbox).Payload))
		}
		if n := len(got); n == 0 || got[n-1] != value || n > 1 && got[0] == value {
			w.t.Fatalf("the state is %s, and the subscriber got %q", value, got)
		}
		reader.unsubscribe("home/a/x")
		if i%60 == 59 {
			elapse(10 * time.Second) // not too fast
		}
	}
}
