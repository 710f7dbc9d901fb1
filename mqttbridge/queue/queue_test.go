package queue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		writeUntilKilled(path)
	}
	if path := os.Getenv(limitedEnv); path != "" {
		writeUntilFull(path)
	}
	goleak.VerifyTestMain(m)
}

func mustOpen(t testing.TB, path string, o Options) *Store {
	t.Helper()
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// fresh opens a store of its own with one queue.
func fresh(t testing.TB, queue string, l Limits) *Store {
	t.Helper()
	s := mustOpen(t, filepath.Join(t.TempDir(), "mqtt.db"), Options{NoSync: true})
	if err := s.Create(queue, l); err != nil {
		t.Fatal(err)
	}
	return s
}

func texts(queue string, data ...string) []Item {
	items := make([]Item, len(data))
	for i, d := range data {
		items[i] = Item{Queue: queue, Data: []byte(d)}
	}
	return items
}

func mustAppend(t testing.TB, s *Store, items ...Item) (dropped int) {
	t.Helper()
	dropped, err := s.Append(t.Context(), items, nil)
	if err != nil {
		t.Fatal(err)
	}
	return dropped
}

func read(t testing.TB, s *Store, queue string, after uint64) (data []string, seqs []uint64) {
	t.Helper()
	items, err := s.Read(queue, after, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range items {
		data, seqs = append(data, string(it.Data)), append(seqs, it.Seq)
	}
	return data, seqs
}

func wantRead(t testing.TB, s *Store, queue string, want ...string) {
	t.Helper()
	if got, _ := read(t, s, queue, 0); !slices.Equal(got, want) {
		t.Errorf("queue %s holds %q, want %q", queue, got, want)
	}
}

func TestAppendReadAck(t *testing.T) {
	s := fresh(t, "out", Limits{})
	at := time.Now().Add(-time.Hour).Round(0)
	items := texts("out", "a", "b", "c")
	items[1].At, items[1].Droppable = at, true
	items[2].Expires = at.Add(2 * time.Hour)
	mustAppend(t, s, items...)
	if items[0].Seq != 1 || items[2].Seq != 3 {
		t.Errorf("Append gave numbers %d…%d, want 1…3", items[0].Seq, items[2].Seq)
	}
	got, err := s.Read("out", 0, 10)
	if err != nil || len(got) != 3 {
		t.Fatalf("Read: %d, %v", len(got), err)
	}
	if b := got[1]; b.Queue != "out" || b.Seq != 2 || !b.At.Equal(at) || !b.Droppable || !b.Expires.IsZero() {
		t.Errorf("b came back as %+v", b)
	}
	if c := got[2]; !c.Expires.Equal(at.Add(2*time.Hour)) || c.Droppable {
		t.Errorf("c came back as %+v", c)
	}
	if some, _ := s.Read("out", 1, 1); len(some) != 1 || some[0].Seq != 2 {
		t.Errorf("Read(after 1, 1) = %+v", some)
	}
	if none, err := s.Read("out", 3, 10); err != nil || len(none) != 0 {
		t.Errorf("Read at the end: %v, %v", none, err)
	}
	if err := s.Ack("out", 2); err != nil {
		t.Fatal(err)
	}
	wantRead(t, s, "out", "c")
	st := s.Stats("out")
	if st.Messages != 1 || st.Bytes != 1 || st.Acked != 2 || st.Last != 3 || st.Oldest.IsZero() || st.Limits.Messages != DefaultMessages {
		t.Errorf("Stats: %+v", st)
	}
}

func TestSetWithAppend(t *testing.T) {
	s := fresh(t, "out", Limits{Messages: 1})
	if _, err := s.Append(t.Context(), texts("out", "a"), map[string][]byte{"last": []byte("1"), "empty": {}}); err != nil {
		t.Fatal(err)
	}
	if v, ok := s.Get("last"); !ok || string(v) != "1" {
		t.Errorf("last = %q, %v", v, ok)
	}
	if v, ok := s.Get("empty"); !ok || len(v) != 0 {
		t.Errorf("empty = %q, %v", v, ok)
	}
	_, err := s.Append(t.Context(), texts("out", "b"), map[string][]byte{"last": []byte("2")})
	if !errors.Is(err, ErrFull) {
		t.Fatalf("Append over the limit: %v", err)
	}
	if v, _ := s.Get("last"); string(v) != "1" {
		t.Errorf("a refused append has set last to %q", v)
	}
	if err := s.Set("last/more", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if got := s.Keys("last"); !slices.Equal(got, []string{"last", "last/more"}) {
		t.Errorf("Keys: %q", got)
	}
	if err := s.Set("last", nil); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Get("last"); ok {
		t.Error("a deleted key is still there")
	}
}

// TestAllOrNothing: an append to several queues of which one is full, unknown
// or too small leaves no trace in the others.
func TestAllOrNothing(t *testing.T) {
	s := fresh(t, "full", Limits{Messages: 2})
	if err := s.Create("free", Limits{Messages: 2}); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, s, texts("full", "1", "2")...)
	mustAppend(t, s, Item{Queue: "free", Data: []byte("old"), Droppable: true})
	for _, c := range []struct {
		items []Item
		want  error
	}{
		{append(texts("free", "x"), texts("full", "y")...), ErrFull},
		{append(texts("free", "x", "x"), texts("full", "y")...), ErrFull}, // would drop in free
		{append(texts("free", "x"), texts("nowhere", "y")...), ErrNoQueue},
		{texts("free", "x", "x", "x"), ErrTooLarge},
		{[]Item{{Queue: "free", Data: make([]byte, MaxData+1)}}, ErrTooLarge},
		{texts("", "x"), ErrTooLarge},
	} {
		if n, err := s.Append(t.Context(), c.items, nil); !errors.Is(err, c.want) || n != 0 {
			t.Errorf("Append: dropped %d, %v, want %v", n, err, c.want)
		}
	}
	wantRead(t, s, "free", "old")
	wantRead(t, s, "full", "1", "2")
	if st := s.Stats("free"); st.DroppedFull != 0 || st.Last != 1 {
		t.Errorf("a refused append left traces: %+v", st)
	}
}

func TestBytesLimit(t *testing.T) {
	s := fresh(t, "q", Limits{Bytes: 100})
	mustAppend(t, s, Item{Queue: "q", Data: make([]byte, 60)})
	if _, err := s.Append(t.Context(), []Item{{Queue: "q", Data: make([]byte, 41)}}, nil); !errors.Is(err, ErrFull) {
		t.Errorf("61 + 41 bytes of 100: %v", err)
	}
	mustAppend(t, s, Item{Queue: "q", Data: make([]byte, 40)})
	if err := s.Ack("q", 1); err != nil {
		t.Fatal(err)
	}
	// An ack makes room at once, not when it is written.
	mustAppend(t, s, Item{Queue: "q", Data: make([]byte, 60)})
	if _, err := s.Append(t.Context(), []Item{{Queue: "q", Data: make([]byte, 101)}}, nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("101 bytes of 100: %v", err)
	}
}

// TestDropOldest: only droppable ones go, the oldest first, no more than
// needed, and all are counted.
func TestDropOldest(t *testing.T) {
	s := fresh(t, "q", Limits{Messages: 4})
	put := func(data string, droppable bool) int {
		t.Helper()
		n, err := s.Append(t.Context(), []Item{{Queue: "q", Data: []byte(data), Droppable: droppable}}, nil)
		if err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		return n
	}
	put("k1", false)
	put("d2", true)
	put("k3", false)
	put("d4", true)
	if n := put("k5", false); n != 1 {
		t.Errorf("k5 dropped %d", n)
	}
	wantRead(t, s, "q", "k1", "k3", "d4", "k5")
	if n := put("d6", true); n != 1 {
		t.Errorf("d6 dropped %d", n)
	}
	wantRead(t, s, "q", "k1", "k3", "k5", "d6")
	if n := put("k7", false); n != 1 {
		t.Errorf("k7 dropped %d", n)
	}
	wantRead(t, s, "q", "k1", "k3", "k5", "k7")
	if _, err := s.Append(t.Context(), []Item{{Queue: "q", Droppable: true}}, nil); !errors.Is(err, ErrFull) {
		t.Errorf("nothing droppable is left: %v", err)
	}
	if st := s.Stats("q"); st.DroppedFull != 3 || st.Messages != 4 || st.Bytes != 8 {
		t.Errorf("Stats: %+v", st)
	}
	// By bytes too: one large newcomer drops several.
	if err := s.Create("b", Limits{Bytes: 10}); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		mustAppend(t, s, Item{Queue: "b", Data: []byte("12"), Droppable: true})
	}
	if n := mustAppend(t, s, Item{Queue: "b", Data: []byte("12345")}); n != 3 {
		t.Errorf("5 bytes dropped %d of 2", n)
	}
	wantRead(t, s, "b", "12", "12", "12345")
}

// TestDropOldestLong: dropping stays right, and quick, over many appends with
// messages in front that must stay.
func TestDropOldestLong(t *testing.T) {
	s := fresh(t, "q", Limits{Messages: 600})
	items := make([]Item, 400)
	for i := range items {
		items[i] = Item{Queue: "q", Data: []byte("keep")}
	}
	mustAppend(t, s, items...)
	dropped := 0
	for i := range 700 {
		dropped += mustAppend(t, s, Item{Queue: "q", Data: fmt.Append(nil, i), Droppable: true})
	}
	data, seqs := read(t, s, "q", 400)
	if dropped != 500 || len(data) != 200 || data[0] != "500" || data[199] != "699" || !slices.IsSorted(seqs) {
		t.Errorf("dropped %d, left %d from %s", dropped, len(data), data[0])
	}
}

func TestSequenceIsNeverUsedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mqtt.db")
	s := mustOpen(t, path, Options{})
	last := uint64(0)
	add := func(queue string) {
		t.Helper()
		it := texts(queue, "x")
		mustAppend(t, s, it...)
		if it[0].Seq <= last {
			t.Errorf("number %d after %d", it[0].Seq, last)
		}
		last = it[0].Seq
	}
	reopen := func() {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, path, Options{})
	}
	if err := s.Create("q", Limits{}); err != nil {
		t.Fatal(err)
	}
	add("q")
	add("q")
	if err := s.Ack("q", 2); err != nil {
		t.Fatal(err)
	}
	reopen() // all acknowledged, the queue is empty
	if st := s.Stats("q"); st.Messages != 0 || st.Last != 2 || st.Acked != 2 {
		t.Errorf("after the restart: %+v", st)
	}
	add("q")
	if err := s.Remove("q"); err != nil {
		t.Fatal(err)
	}
	reopen()
	if got := s.Queues(); len(got) != 0 {
		t.Errorf("removed, and still there: %q", got)
	}
	if err := s.Create("q", Limits{}); err != nil {
		t.Fatal(err)
	}
	add("q") // removed and made anew
}

func TestAckBeyondTheEnd(t *testing.T) {
	s := fresh(t, "q", Limits{})
	mustAppend(t, s, texts("q", "a")...)
	if err := s.Ack("q", 1<<62); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, s, texts("q", "b")...)
	wantRead(t, s, "q", "b") // not lost because somebody acknowledged what he cannot have had
}

func TestCreateRemove(t *testing.T) {
	s := fresh(t, "b", Limits{Messages: 2})
	for _, name := range []string{"a", "c"} {
		if err := s.Create(name, Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Queues(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("Queues: %q", got)
	}
	mustAppend(t, s, texts("b", "1", "2")...)
	if err := s.Create("b", Limits{Messages: 1}); err != nil { // smaller: what is there stays
		t.Fatal(err)
	}
	wantRead(t, s, "b", "1", "2")
	if _, err := s.Append(t.Context(), texts("b", "3"), nil); !errors.Is(err, ErrFull) {
		t.Errorf("over the new limit: %v", err)
	}
	changed := s.Changed("b")
	select {
	case <-changed: // of the append
	default:
		t.Error("the append was not told")
	}
	if err := errors.Join(s.Remove("b"), s.Remove("b")); err != nil {
		t.Fatal(err)
	}
	<-changed // told of the removal
	if _, err := s.Read("b", 0, 1); !errors.Is(err, ErrNoQueue) {
		t.Errorf("Read: %v", err)
	}
	if err := s.Ack("b", 1); !errors.Is(err, ErrNoQueue) {
		t.Errorf("Ack: %v", err)
	}
	if s.Changed("b") != nil || s.Stats("b") != (Stats{}) {
		t.Error("a removed queue has a channel or figures")
	}
	for _, name := range []string{"", string(make([]byte, MaxName+1))} {
		if err := s.Create(name, Limits{}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("Create(%d bytes): %v", len(name), err)
		}
	}
}

func TestClosed(t *testing.T) {
	s := fresh(t, "q", Limits{})
	mustAppend(t, s, texts("q", "a")...)
	changed := s.Changed("q")
	<-changed
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	<-changed
	_, appendErr := s.Append(context.Background(), texts("q", "a"), nil)
	_, readErr := s.Read("q", 0, 1)
	for _, err := range []error{appendErr, readErr, s.Ack("q", 1), s.Set("k", nil), s.Create("x", Limits{}), s.Remove("q")} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
	if _, ok := s.Get("k"); ok || s.Keys("") != nil || s.Stats("q") != (Stats{}) {
		t.Error("a closed store gives answers")
	}
}
