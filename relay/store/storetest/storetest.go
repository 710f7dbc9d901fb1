// Package storetest is the suite that every [store.KV] passes.
//
//	func TestKV(t *testing.T) {
//		storetest.TestKV(t, func(t *testing.T) store.KV { return memstore.New() })
//	}
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/relay/store"
)

// TestKV runs the whole suite. open returns a new, empty store; the suite
// closes it.
func TestKV(t *testing.T, open func(t *testing.T) store.KV) {
	tests := []struct {
		name string
		run  func(t *testing.T, kv store.KV)
	}{
		{"Get", testGet},
		{"Create", testCreate},
		{"Update", testUpdate},
		{"Delete", testDelete},
		{"List", testList},
		{"RevisionsGrow", testRevisionsGrow},
		{"Limits", testLimits},
		{"ValuesAreCopies", testCopies},
		{"CanceledContext", testCanceled},
		{"CreateRace", testCreateRace},
		{"UpdateRace", testUpdateRace},
		{"DeleteRace", testDeleteRace},
		{"Watch", testWatch},
		{"WatchPrefix", testWatchPrefix},
		{"WatchOnlyLater", testWatchOnlyLater},
		{"WatchSlow", testWatchSlow},
		{"WatchOrder", testWatchOrder},
		{"WatchEnds", testWatchEnds},
		{"Close", testClose},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			kv := open(t)
			t.Cleanup(func() {
				if err := kv.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			test.run(t, kv)
		})
	}
}

// TestDurable checks that a store holds after Close and reopening what was
// written before: values, revisions, and that revisions go on growing.
func TestDurable(t *testing.T, open func(t *testing.T, dir string) store.KV) {
	ctx, dir := t.Context(), t.TempDir()
	kv := open(t, dir)
	create(t, kv, "a", "one")
	gone := create(t, kv, "gone", "x")
	kept := update(t, kv, "a", "two", get(t, kv, "a").Revision)
	must(t, kv.Delete(ctx, "gone", gone))
	must(t, kv.Close())

	kv = open(t, dir)
	defer kv.Close()
	e := get(t, kv, "a")
	if string(e.Value) != "two" || e.Revision != kept {
		t.Errorf("after reopening a is %q at revision %d, want \"two\" at %d", e.Value, e.Revision, kept)
	}
	if _, err := kv.Get(ctx, "gone"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("after reopening a deleted key gives %v, want ErrNotFound", err)
	}
	if rev := create(t, kv, "gone", "y"); rev <= kept {
		t.Errorf("after reopening a new revision is %d, not above %d", rev, kept)
	}
}

func testGet(t *testing.T, kv store.KV) {
	if _, err := kv.Get(t.Context(), "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get of an absent key: %v, want ErrNotFound", err)
	}
	rev := create(t, kv, "a", "one")
	e := get(t, kv, "a")
	if e.Key != "a" || string(e.Value) != "one" || e.Revision != rev {
		t.Errorf("Get = %q %q %d, want a, one, %d", e.Key, e.Value, e.Revision, rev)
	}
	create(t, kv, "empty", "")
	if e := get(t, kv, "empty"); len(e.Value) != 0 {
		t.Errorf("an empty value came back as %q", e.Value)
	}
}

func testCreate(t *testing.T, kv store.KV) {
	rev := create(t, kv, "a", "one")
	if _, err := kv.Create(t.Context(), "a", []byte("two")); !errors.Is(err, store.ErrExists) {
		t.Errorf("second Create: %v, want ErrExists", err)
	}
	if e := get(t, kv, "a"); string(e.Value) != "one" || e.Revision != rev {
		t.Errorf("a failed Create left %q at %d", e.Value, e.Revision)
	}
}

func testUpdate(t *testing.T, kv store.KV) {
	ctx := t.Context()
	rev := create(t, kv, "a", "one")
	next := update(t, kv, "a", "two", rev)
	for _, stale := range []uint64{rev, 0, next + 1} {
		if _, err := kv.Update(ctx, "a", []byte("three"), stale); !errors.Is(err, store.ErrConflict) {
			t.Errorf("Update with revision %d: %v, want ErrConflict", stale, err)
		}
	}
	for _, any := range []uint64{0, 1, next} {
		if _, err := kv.Update(ctx, "absent", []byte("x"), any); !errors.Is(err, store.ErrConflict) {
			t.Errorf("Update of an absent key with revision %d: %v, want ErrConflict", any, err)
		}
	}
	if e := get(t, kv, "a"); string(e.Value) != "two" || e.Revision != next {
		t.Errorf("failed updates left %q at %d, want \"two\" at %d", e.Value, e.Revision, next)
	}
}

func testDelete(t *testing.T, kv store.KV) {
	ctx := t.Context()
	rev := create(t, kv, "a", "one")
	next := update(t, kv, "a", "two", rev)
	if err := kv.Delete(ctx, "a", rev); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Delete with an old revision: %v, want ErrConflict", err)
	}
	get(t, kv, "a")
	must(t, kv.Delete(ctx, "a", next))
	if _, err := kv.Get(ctx, "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get after Delete: %v, want ErrNotFound", err)
	}
	if err := kv.Delete(ctx, "a", next); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Delete of an absent key with a revision: %v, want ErrConflict", err)
	}
	must(t, kv.Delete(ctx, "a", 0)) // does not mind absence
	create(t, kv, "a", "three")
	must(t, kv.Delete(ctx, "a", 0)) // whatever is there
	if _, err := kv.Get(ctx, "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get after an unconditional Delete: %v, want ErrNotFound", err)
	}
}

func testList(t *testing.T, kv store.KV) {
	for _, key := range []string{"b/2", "a", "b/1", "b", "b0", "b/10", "c/1"} {
		create(t, kv, key, "value of "+key)
	}
	for prefix, want := range map[string]string{
		"":     "a b b/1 b/10 b/2 b0 c/1",
		"b/":   "b/1 b/10 b/2",
		"b/1":  "b/1 b/10",
		"zzz":  "",
		"b/10": "b/10",
	} {
		list, err := kv.List(t.Context(), prefix)
		must(t, err)
		var keys []string
		for _, e := range list {
			keys = append(keys, e.Key)
			if string(e.Value) != "value of "+e.Key || e.Revision == 0 {
				t.Errorf("List(%q): %s is %q at %d", prefix, e.Key, e.Value, e.Revision)
			}
		}
		if got := strings.Join(keys, " "); got != want {
			t.Errorf("List(%q) = %q, want %q", prefix, got, want)
		}
	}
}

func testRevisionsGrow(t *testing.T, kv store.KV) {
	var revs []uint64
	revs = append(revs, create(t, kv, "a", "1"))
	revs = append(revs, update(t, kv, "a", "1", revs[0])) // the same value is a write too
	must(t, kv.Delete(t.Context(), "a", 0))
	revs = append(revs, create(t, kv, "a", "1")) // no old revision fits the new key
	if revs[0] == 0 || !slices.IsSorted(revs) || len(slices.Compact(revs)) != 3 {
		t.Errorf("the revisions of one key were %v, want growing ones", revs)
	}
}

func testLimits(t *testing.T, kv store.KV) {
	ctx := t.Context()
	for _, key := range []string{"", "a b", "a\n", "a\x00", "ä", "\x7f", strings.Repeat("k", store.MaxKey+1)} {
		if _, err := kv.Create(ctx, key, nil); err == nil {
			t.Errorf("Create took the key %q", key)
		}
		if _, err := kv.Get(ctx, key); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Get of the key %q: %v, want an error that says what is wrong with it", key, err)
		}
		if err := kv.Delete(ctx, key, 0); err == nil {
			t.Errorf("Delete took the key %q", key)
		}
	}
	if _, err := kv.Create(ctx, "big", make([]byte, store.MaxValue+1)); err == nil {
		t.Error("Create took a value above the limit")
	}
	long := strings.Repeat("k", store.MaxKey)
	big := bytes.Repeat([]byte{0xa5}, store.MaxValue)
	_, err := kv.Create(ctx, long, big)
	must(t, err)
	if !bytes.Equal(get(t, kv, long).Value, big) {
		t.Error("the largest value came back changed")
	}
}

func testCopies(t *testing.T, kv store.KV) {
	value := []byte("one")
	_, err := kv.Create(t.Context(), "a", value)
	must(t, err)
	value[0] = 'X'
	got := get(t, kv, "a")
	list, err := kv.List(t.Context(), "")
	must(t, err)
	if string(got.Value) != "one" {
		t.Errorf("the store kept the caller's slice: %q", got.Value)
	}
	got.Value[0], list[0].Value[0] = 'Y', 'Z'
	if v := get(t, kv, "a").Value; string(v) != "one" {
		t.Errorf("the store gave away its own slice: %q", v)
	}
}

func testCanceled(t *testing.T, kv store.KV) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := kv.Create(ctx, "a", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Create: %v, want context.Canceled", err)
	}
	if _, err := kv.Watch(ctx, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v, want context.Canceled", err)
	}
	if _, err := kv.Get(t.Context(), "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the canceled Create left %v", err)
	}
}

func testClose(t *testing.T, kv store.KV) {
	create(t, kv, "a", "one")
	events, err := kv.Watch(t.Context(), "")
	must(t, err)
	must(t, kv.Close())
	must(t, kv.Close())
	if ev, open := <-events; open {
		t.Errorf("after Close the watcher got %+v, want a closed channel", ev)
	}
	_, getErr := kv.Get(t.Context(), "a")
	_, createErr := kv.Create(t.Context(), "b", nil)
	_, listErr := kv.List(t.Context(), "")
	_, watchErr := kv.Watch(t.Context(), "")
	for i, err := range []error{getErr, createErr, listErr, watchErr, kv.Delete(t.Context(), "a", 0)} {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("call %d after Close: %v, want ErrClosed", i, err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t testing.TB, kv store.KV, key, value string) uint64 {
	t.Helper()
	rev, err := kv.Create(t.Context(), key, []byte(value))
	if err != nil {
		t.Fatalf("Create(%q): %v", key, err)
	}
	return rev
}

func update(t testing.TB, kv store.KV, key, value string, rev uint64) uint64 {
	t.Helper()
	next, err := kv.Update(t.Context(), key, []byte(value), rev)
	if err != nil {
		t.Fatalf("Update(%q, %d): %v", key, rev, err)
	}
	return next
}

func get(t testing.TB, kv store.KV, key string) store.Entry {
	t.Helper()
	e, err := kv.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("Get(%q): %v", key, err)
	}
	return e
}

func number(i int) string { return fmt.Sprintf("%04d", i) }
