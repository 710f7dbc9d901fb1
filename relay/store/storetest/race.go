package storetest

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sallyport/sallyport/relay/store"
)

const (
	racers = 8
	rounds = 10
)

// race runs f in several goroutines that begin together.
func race(f func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range racers {
		wg.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	wg.Wait()
}

// testCreateRace: of many that create one key exactly one wins, and its value
// stays. Single-use codes and unique names stand on it.
func testCreateRace(t *testing.T, kv store.KV) {
	for round := range rounds {
		key := "race/" + number(round)
		var wins atomic.Int32
		var winner atomic.Int64
		race(func(i int) {
			_, err := kv.Create(t.Context(), key, []byte(strconv.Itoa(i)))
			switch {
			case err == nil:
				wins.Add(1)
				winner.Store(int64(i))
			case !errors.Is(err, store.ErrExists):
				t.Errorf("Create: %v", err)
			}
		})
		if wins.Load() != 1 {
			t.Fatalf("%d of %d creators of one key won", wins.Load(), racers)
		}
		if v := get(t, kv, key).Value; string(v) != strconv.FormatInt(winner.Load(), 10) {
			t.Fatalf("the value is %q, not the winner's %d", v, winner.Load())
		}
	}
}

// testUpdateRace: counters moved by read, add one, compare-and-set lose no
// step.
func testUpdateRace(t *testing.T, kv store.KV) {
	create(t, kv, "counter", "0")
	race(func(int) {
		for done := 0; done < rounds; {
			e, err := kv.Get(t.Context(), "counter")
			if err != nil {
				t.Errorf("Get: %v", err)
				return
			}
			n, _ := strconv.Atoi(string(e.Value))
			_, err = kv.Update(t.Context(), "counter", []byte(strconv.Itoa(n+1)), e.Revision)
			switch {
			case err == nil:
				done++
			case !errors.Is(err, store.ErrConflict):
				t.Errorf("Update: %v", err)
				return
			}
		}
	})
	if v := get(t, kv, "counter").Value; string(v) != strconv.Itoa(racers*rounds) {
		t.Errorf("the counter is %s after %d steps", v, racers*rounds)
	}
}

// testDeleteRace: of many that delete one revision exactly one wins.
func testDeleteRace(t *testing.T, kv store.KV) {
	for round := range rounds {
		key := "race/" + number(round)
		rev := create(t, kv, key, "x")
		var wins atomic.Int32
		race(func(int) {
			err := kv.Delete(t.Context(), key, rev)
			switch {
			case err == nil:
				wins.Add(1)
			case !errors.Is(err, store.ErrConflict):
				t.Errorf("Delete: %v", err)
			}
		})
		if wins.Load() != 1 {
			t.Fatalf("%d of %d deleters of one revision won", wins.Load(), racers)
		}
	}
}
