package storetest

import (
	"context"
	"testing"

	"github.com/sallyport/sallyport/relay/store"
)

func watch(t *testing.T, kv store.KV, prefix string) <-chan store.Event {
	t.Helper()
	events, err := kv.Watch(t.Context(), prefix)
	must(t, err)
	return events
}

func expect(t *testing.T, events <-chan store.Event, key, value string, rev uint64) {
	t.Helper()
	ev, open := <-events
	if !open || ev.Deleted || ev.Key != key || string(ev.Value) != value || ev.Revision != rev {
		t.Fatalf("event %+v (open %v), want %s = %q at %d", ev, open, key, value, rev)
	}
}

func testWatch(t *testing.T, kv store.KV) {
	events := watch(t, kv, "")
	rev := create(t, kv, "a", "one")
	expect(t, events, "a", "one", rev)
	next := update(t, kv, "a", "two", rev)
	expect(t, events, "a", "two", next)
	must(t, kv.Delete(t.Context(), "a", next))
	if ev := <-events; !ev.Deleted || ev.Key != "a" || len(ev.Value) != 0 || ev.Revision <= next {
		t.Fatalf("event %+v, want the deletion of a, later than %d", ev, next)
	}
	// What failed is not told, and deleting nothing is no change.
	kv.Update(t.Context(), "a", []byte("x"), next)
	must(t, kv.Delete(t.Context(), "a", 0))
	expect(t, events, "b", "end", create(t, kv, "b", "end"))
}

func testWatchPrefix(t *testing.T, kv store.KV) {
	events := watch(t, kv, "in/")
	other := watch(t, kv, "out/")
	create(t, kv, "in", "x")
	rev := create(t, kv, "in/1", "one")
	out := create(t, kv, "out/1", "two")
	expect(t, events, "in/1", "one", rev)
	expect(t, other, "out/1", "two", out)
}

// testWatchOnlyLater: what was there before Watch is not told; callers list.
func testWatchOnlyLater(t *testing.T, kv store.KV) {
	create(t, kv, "before", "x")
	events := watch(t, kv, "")
	expect(t, events, "later", "y", create(t, kv, "later", "y"))
}

// testWatchSlow: nobody reads while many writes pass. They are not held up,
// another watcher gets them, and the slow one still gets the last of each key.
func testWatchSlow(t *testing.T, kv store.KV) {
	slow := watch(t, kv, "")
	quick := watch(t, kv, "")
	last := map[string]uint64{}
	keys := []string{"a", "b", "c"}
	for _, key := range keys {
		last[key] = create(t, kv, key, "0")
		expect(t, quick, key, "0", last[key])
	}
	for i := range 50 {
		for _, key := range keys {
			last[key] = update(t, kv, key, number(i), last[key])
			expect(t, quick, key, number(i), last[key])
		}
	}
	seen := map[string]uint64{}
	for seen["a"] != last["a"] || seen["b"] != last["b"] || seen["c"] != last["c"] {
		ev := <-slow
		if ev.Revision <= seen[ev.Key] {
			t.Fatalf("%s went back from revision %d to %d", ev.Key, seen[ev.Key], ev.Revision)
		}
		seen[ev.Key] = ev.Revision
	}
}

// testWatchOrder: with writers racing for one key, a watcher's last event is
// the value that stayed.
func testWatchOrder(t *testing.T, kv store.KV) {
	create(t, kv, "a", "start")
	events := watch(t, kv, "a")
	race(func(i int) {
		for range rounds {
			if e, err := kv.Get(t.Context(), "a"); err == nil {
				kv.Update(t.Context(), "a", []byte(number(i)), e.Revision)
			}
		}
	})
	end := get(t, kv, "a")
	for at := uint64(0); at != end.Revision; {
		ev := <-events
		if ev.Revision <= at {
			t.Fatalf("revision %d came after %d", ev.Revision, at)
		}
		at = ev.Revision
		if at == end.Revision && string(ev.Value) != string(end.Value) {
			t.Fatalf("the last event says %q, the store %q", ev.Value, end.Value)
		}
	}
}

// testWatchEnds: the channel closes with the context, also when nobody read
// what was waiting, and the others go on.
func testWatchEnds(t *testing.T, kv store.KV) {
	ctx, cancel := context.WithCancel(t.Context())
	ending, err := kv.Watch(ctx, "")
	must(t, err)
	staying := watch(t, kv, "")
	rev := create(t, kv, "a", "one")
	cancel()
	for range ending { // at most what had waited, then the end
	}
	expect(t, staying, "a", "one", rev)
	expect(t, staying, "b", "two", create(t, kv, "b", "two"))
}
