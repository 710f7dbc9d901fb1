package queue

import (
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func expiring(queue, data string, in time.Duration) Item {
	return Item{Queue: queue, Data: []byte(data), Expires: time.Now().Add(in)}
}

// TestExpiry: what has expired is not read, is counted and goes from the disk;
// over a restart too.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "mqtt.db")
		s := mustOpen(t, path, Options{NoSync: true})
		if err := s.Create("q", Limits{}); err != nil {
			t.Fatal(err)
		}
		mustAppend(t, s, expiring("q", "short", time.Second), texts("q", "stays")[0], expiring("q", "long", time.Hour), expiring("q", "dead", -time.Second))
		wantRead(t, s, "q", "short", "stays", "long")
		time.Sleep(time.Second)
		wantRead(t, s, "q", "stays", "long")
		st := s.Stats("q") // before and after the disk knows
		time.Sleep(flushDelay)
		synctest.Wait()
		if after := s.Stats("q"); st != after || st.Messages != 2 || st.Bytes != 9 || st.DroppedOld != 2 || st.Acked != 0 {
			t.Errorf("Stats: %+v, then %+v", st, after)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		s = mustOpen(t, path, Options{NoSync: true})
		wantRead(t, s, "q", "stays")
		if st := s.Stats("q"); st.DroppedOld != 3 || st.Messages != 1 {
			t.Errorf("after the restart: %+v", st)
		}
		if err := s.Ack("q", s.Stats("q").Last); err != nil {
			t.Fatal(err)
		}
		if st := s.Stats("q"); st.DroppedOld != 3 || st.Acked != 1 || st.Messages != 0 || !st.Oldest.IsZero() {
			t.Errorf("all acknowledged: %+v", st)
		}
		if err := s.Close(); err != nil { // expired and acknowledged at once is counted once
			t.Fatal(err)
		}
		s = mustOpen(t, path, Options{NoSync: true})
		if st := s.Stats("q"); st.DroppedOld != 3 || st.Acked != 1 || st.Messages != 0 {
			t.Errorf("on disk: %+v", st)
		}
	})
}

// TestExpiredMakeRoom: a full queue drops what has expired before it drops
// what may make room, and before it refuses.
func TestExpiredMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fresh(t, "q", Limits{Messages: 3})
		droppable := texts("q", "droppable")[0]
		droppable.Droppable = true
		mustAppend(t, s, droppable, expiring("q", "minute", time.Minute), expiring("q", "hour", time.Hour))
		time.Sleep(time.Minute)
		if n := mustAppend(t, s, texts("q", "new")...); n != 0 {
			t.Errorf("dropped %d though one had expired", n)
		}
		wantRead(t, s, "q", "droppable", "hour", "new")
		if n := mustAppend(t, s, texts("q", "newer")...); n != 1 {
			t.Errorf("dropped %d, want 1", n)
		}
		if _, err := s.Append(t.Context(), texts("q", "newest"), nil); !errors.Is(err, ErrFull) {
			t.Errorf("full: %v", err)
		}
		time.Sleep(time.Hour)
		mustAppend(t, s, expiring("q", "second", time.Second))
		time.Sleep(time.Second) // sooner than what was known when it was full
		mustAppend(t, s, texts("q", "newest")...)
		wantRead(t, s, "q", "new", "newer", "newest")
		if st := s.Stats("q"); st.DroppedOld != 3 || st.DroppedFull != 1 {
			t.Errorf("Stats: %+v", st)
		}
	})
}

// TestClockJumps: the wall clock is set while messages wait.
func TestClockJumps(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	boot := time.Date(1970, 1, 1, 0, 0, 9, 0, time.UTC)
	at := func(wall time.Time, elapsed time.Duration, run uint64) moment {
		return moment{wall: wall, elapsed: elapsed, run: run}
	}
	hour := func(m moment) life { return m.begin(m.wall.Add(time.Hour)) }
	for _, c := range []struct {
		name string
		life life
		then moment
		want time.Duration // left
	}{
		{"no jump", hour(at(now, 5, 1)), at(now.Add(10*time.Minute), 5+10*time.Minute, 1), 50 * time.Minute},
		{"set back a year", hour(at(now, 0, 1)), at(now.AddDate(-1, 0, 0), 10*time.Minute, 1), 50 * time.Minute},
		{"set back a year, its time over", hour(at(now, 0, 1)), at(now.AddDate(-1, 0, 0), time.Hour, 1), 0},
		{"the machine slept two hours", hour(at(now, 0, 1)), at(now.Add(2*time.Hour), time.Minute, 1), -time.Hour},
		{"1970, then NTP", hour(at(boot, 0, 1)), at(now, time.Minute, 1), 59 * time.Minute},
		{"1970, then NTP, its time over", hour(at(boot, 0, 1)), at(now, time.Hour, 1), 0},
		{"restart, then NTP", hour(at(boot, 0, 1)), at(now, time.Minute, 2), 59 * time.Minute},
		{"restart with the same clock", hour(at(now, 7*time.Hour, 1)), at(now.Add(time.Minute), 0, 2), 59 * time.Minute},
		{"restart two hours later", hour(at(now, 0, 1)), at(now.Add(2*time.Hour), 0, 2), -time.Hour},
		{"restart in 1970", hour(at(now, 0, 1)), at(boot, 10*time.Minute, 2), 50 * time.Minute},
	} {
		if got := c.then.left(c.life); got != c.want {
			t.Errorf("%s: %v left, want %v", c.name, got, c.want)
		}
		if got, want := c.then.expires(c.life), c.then.wall.Add(c.want); !got.Equal(want) {
			t.Errorf("%s: expires at %v, want %v", c.name, got, want)
		}
	}
}

// TestClockJumpRead: the same through the store: a message of an hour stays an
// hour, whatever the clock on the wall does, and its end is told by that clock.
func TestClockJumpRead(t *testing.T) {
	s := fresh(t, "q", Limits{})
	wall, elapsed := time.Unix(20, 0), time.Duration(0)
	s.clock.now = func() time.Time { return wall }
	s.clock.elapsed = func() time.Duration { return elapsed }
	mustAppend(t, s, Item{Queue: "q", Expires: wall.Add(time.Hour)})
	wall, elapsed = time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC), 20*time.Minute
	items, err := s.Read("q", 0, 1)
	if err != nil || len(items) != 1 || !items[0].Expires.Equal(wall.Add(40*time.Minute)) {
		t.Fatalf("after the jump: %+v, %v", items, err)
	}
	elapsed = time.Hour
	wantRead(t, s, "q")
}

// TestFarTimes: times that do not fit into the file are no danger.
func TestFarTimes(t *testing.T) {
	s := fresh(t, "q", Limits{})
	mustAppend(t, s,
		Item{Queue: "q", Data: []byte("a"), Expires: time.Unix(1<<50, 0)},
		Item{Queue: "q", Data: []byte("2300"), Expires: time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)},
		Item{Queue: "q", Data: []byte("b"), At: time.Unix(1<<50, 0)},
		Item{Queue: "q", Data: []byte("c"), At: time.Unix(-1<<50, 0), Expires: time.Unix(-1<<50, 0)})
	wantRead(t, s, "q", "a", "2300", "b")
}
