package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
)

// gate makes every commit wait until it is let through, and counts them.
type gate struct {
	arrived chan struct{} // one token a commit
	pass    chan error    // nil: commit
}

func gated(s *Store) *gate {
	g := &gate{arrived: make(chan struct{}), pass: make(chan error)}
	s.commitTx = func(tx *bbolt.Tx) error {
		g.arrived <- struct{}{}
		if err := <-g.pass; err != nil {
			return err
		}
		return tx.Commit()
	}
	return g
}

func (g *gate) open(s *Store) { // between commits
	s.commitTx = (*bbolt.Tx).Commit
}

// copied opens a copy of the file as it is now: what a kill at this moment
// would leave.
func copied(t *testing.T, s *Store) *Store {
	t.Helper()
	data, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return mustOpen(t, path, Options{NoSync: true})
}

// TestGroupCommit: those that wait while a commit runs share the next one, in
// the order of their calls.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fresh(t, "q", Limits{})
		g := gated(s)
		var group sync.WaitGroup
		put := func(data string) {
			group.Go(func() { mustAppend(t, s, texts("q", data)...) })
			synctest.Wait()
		}
		put("00")
		<-g.arrived
		want := []string{"00"}
		for i := 1; i < 50; i++ {
			want = append(want, fmt.Sprintf("%02d", i))
			put(want[i])
		}
		wantRead(t, s, "q")
		g.pass <- nil
		<-g.arrived
		wantRead(t, s, "q", "00")
		g.pass <- nil // and no third
		group.Wait()
		wantRead(t, s, "q", want...)
		g.open(s)
	})
}

// TestContext: a call whose context ends while it waits keeps nothing; one
// whose commit has begun waits for the truth.
func TestContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fresh(t, "q", Limits{})
		g := gated(s)
		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := s.Append(ctx, texts("q", "first"), nil)
			first <- err
		}()
		<-g.arrived
		go func() {
			_, err := s.Append(ctx, texts("q", "second"), map[string][]byte{"second": {1}})
			second <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-second; !errors.Is(err, context.Canceled) {
			t.Errorf("queued: %v", err)
		}
		synctest.Wait()
		select {
		case err := <-first:
			t.Errorf("an answer before the commit was over: %v", err)
		default:
		}
		g.pass <- nil
		if err := <-first; err != nil {
			t.Errorf("committed, and yet: %v", err)
		}
		wantRead(t, s, "q", "first")
		if _, ok := s.Get("second"); ok {
			t.Error("a call that gave up left a key")
		}
		if _, err := s.Append(ctx, texts("q", "third"), nil); !errors.Is(err, context.Canceled) {
			t.Errorf("already ended: %v", err)
		}
		g.open(s)
	})
}

// TestNothingUnconfirmedIsRead: a message whose commit is written but not yet
// flushed could vanish with the power, and its number be given again.
func TestNothingUnconfirmedIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fresh(t, "q", Limits{})
		written, flushed := make(chan struct{}), make(chan struct{})
		s.commitTx = func(tx *bbolt.Tx) error {
			err := tx.Commit()
			close(written)
			<-flushed
			return err
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			mustAppend(t, s, texts("q", "a")...)
		}()
		<-written
		wantRead(t, s, "q")
		if err := s.Ack("q", 1); err != nil {
			t.Fatal(err)
		}
		s.commitTx = (*bbolt.Tx).Commit
		close(flushed)
		<-done
		wantRead(t, s, "q", "a")
	})
}

// TestAckIsWrittenSoon: without an append an ack is on disk after 50 ms, and
// with one at once.
func TestAckIsWrittenSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fresh(t, "q", Limits{})
		mustAppend(t, s, texts("q", "a", "b", "c")...)
		if err := s.Ack("q", 1); err != nil {
			t.Fatal(err)
		}
		wantRead(t, s, "q", "b", "c")
		time.Sleep(flushDelay - time.Millisecond)
		synctest.Wait()
		wantRead(t, copied(t, s), "q", "a", "b", "c")
		time.Sleep(time.Millisecond)
		synctest.Wait()
		wantRead(t, copied(t, s), "q", "b", "c")
		if err := s.Ack("q", 2); err != nil {
			t.Fatal(err)
		}
		mustAppend(t, s, texts("q", "d")...)
		wantRead(t, copied(t, s), "q", "c", "d")
		if err := s.Ack("q", 3); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		wantRead(t, copied(t, s), "q", "d") // Close writes what is left
	})
}

// TestDiskFails: a commit that fails keeps nothing, says so to everybody who
// shared it, and the next one works.
func TestDiskFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fresh(t, "q", Limits{Messages: 3})
		mustAppend(t, s, Item{Queue: "q", Data: []byte("old"), Droppable: true}, Item{Queue: "q", Data: []byte("older"), Droppable: true})
		g := gated(s)
		errs := make(chan error, 3)
		for range 3 {
			go func() {
				_, err := s.Append(t.Context(), texts("q", "x"), map[string][]byte{"k": {1}})
				errs <- err
			}()
			synctest.Wait()
		}
		for range 2 {
			<-g.arrived
			g.pass <- syscall.ENOSPC
		}
		for range 3 {
			if err := <-errs; !errors.Is(err, ErrDisk) || errors.Is(err, ErrUncertain) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), s.path) {
				t.Errorf("a full disk: %v", err)
			}
		}
		g.open(s)
		wantRead(t, s, "q", "old", "older")
		if _, ok := s.Get("k"); ok {
			t.Error("a failed commit left a key")
		}
		if n := mustAppend(t, s, texts("q", "y", "z")...); n != 1 {
			t.Errorf("dropped %d, want 1: the failed commits dropped none", n)
		}
		got, seqs := read(t, s, "q", 0)
		if !slices.Equal(got, []string{"older", "y", "z"}) || !slices.Equal(seqs, []uint64{2, 3, 4}) {
			t.Errorf("the queue holds %q, %v", got, seqs)
		}
	})
}

// TestAckOnAFullDisk: acks that cannot be written are said once, tried again,
// and tried alone when an append wants to share their commit.
func TestAckOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := mustOpen(t, filepath.Join(t.TempDir(), "mqtt.db"), Options{NoSync: true, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err := s.Create("q", Limits{}); err != nil {
			t.Fatal(err)
		}
		mustAppend(t, s, texts("q", "a", "b")...)
		commits := 0
		s.commitTx = func(*bbolt.Tx) error { commits++; return syscall.ENOSPC }
		if err := s.Ack("q", 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if commits < 4*3 || commits > 6*3 { // all, alone, without the reserve
			t.Errorf("%d tries in 5 seconds", commits)
		}
		wantRead(t, s, "q", "b")
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 || !strings.Contains(log.String(), "disk") {
			t.Errorf("the log:\n%s", &log)
		}
		// Room for the ack alone, and for the append after it.
		sizes := []int{}
		s.commitTx = func(tx *bbolt.Tx) error {
			sizes = append(sizes, tx.Bucket(queuesBucket).Bucket([]byte("q")).Stats().KeyN)
			if len(sizes) == 1 {
				return syscall.ENOSPC
			}
			return tx.Commit()
		}
		mustAppend(t, s, texts("q", "c")...)
		wantRead(t, copied(t, s), "q", "b", "c")
		if len(sizes) != 3 {
			t.Errorf("%d commits, want three: both, the ack, the append", len(sizes))
		}
		if !strings.Contains(log.String(), "again\"") {
			t.Errorf("the log does not say that it works again:\n%s", &log)
		}
	})
}

// TestUncertain: when the very last flush fails, the error says that it may
// have been kept. The file is made anew before it is written again; no number
// is given twice.
func TestUncertain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fresh(t, "q", Limits{})
		mustAppend(t, s, texts("q", "a")...)
		changed := s.Changed("q")
		<-changed
		s.commitTx = func(tx *bbolt.Tx) error {
			if err := tx.Commit(); err != nil {
				return err
			}
			return syscall.EIO
		}
		before := inode(t, s.path)
		if _, err := s.Append(t.Context(), texts("q", "b"), nil); !errors.Is(err, ErrUncertain) || !errors.Is(err, ErrDisk) {
			t.Fatalf("the last flush failed: %v", err)
		}
		s.commitTx = (*bbolt.Tx).Commit
		wantRead(t, s, "q", "a")
		more := texts("q", "c")
		mustAppend(t, s, more...)
		if more[0].Seq != 3 {
			t.Errorf("number %d, want 3", more[0].Seq)
		}
		wantRead(t, s, "q", "a", "b", "c")
		if os.SameFile(before, inode(t, s.path)) {
			t.Error("the file was not made anew")
		}
		if s.Changed("q") != changed {
			t.Error("the reader waits for a channel of the past")
		}
		<-changed
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		wantRead(t, copied(t, s), "q", "a", "b", "c")
	})
}

func inode(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// TestPanicInCommit: bbolt panics when it meets damage. The process lives, the
// file is read anew, and is refused for good if it is really damaged.
func TestPanicInCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fresh(t, "q", Limits{})
		mustAppend(t, s, texts("q", "a")...)
		fails := func(data string) {
			t.Helper()
			if _, err := s.Append(t.Context(), texts("q", data), nil); !errors.Is(err, ErrDisk) || errors.Is(err, ErrUncertain) {
				t.Errorf("%s: %v", data, err)
			}
		}
		s.commitTx = func(*bbolt.Tx) error { panic("page 7 already freed") }
		fails("b")
		s.commitTx = (*bbolt.Tx).Commit
		mustAppend(t, s, texts("q", "c")...)
		wantRead(t, s, "q", "a", "c")

		s.commitTx = func(*bbolt.Tx) error { panic("page 7 already freed") }
		fails("d")
		s.commitTx = (*bbolt.Tx).Commit
		whole, err := os.ReadFile(s.path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path, make([]byte, len(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(healEvery)
		fails("e")
		if _, err := s.Read("q", 0, 1); err == nil || errors.Is(err, ErrClosed) {
			t.Errorf("Read of a damaged file: %v", err)
		}
		fails("f") // not read again at every call
		if err := os.WriteFile(s.path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(healEvery)
		mustAppend(t, s, texts("q", "g")...)
		wantRead(t, s, "q", "a", "c", "g")
	})
}

// TestCloseWhileWaiting: the commit that runs is finished, the others are told.
func TestCloseWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fresh(t, "q", Limits{})
		g := gated(s)
		errs := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := s.Append(t.Context(), texts("q", "x"), nil)
				errs <- err
			}()
			synctest.Wait()
		}
		<-g.arrived
		closed := make(chan error)
		go func() { closed <- s.Close() }()
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("waiting: %v", err)
		}
		g.pass <- nil
		if err := <-errs; err != nil {
			t.Errorf("running: %v", err)
		}
		if err := <-closed; err != nil {
			t.Error(err)
		}
		wantRead(t, copied(t, s), "q", "x")
	})
}

// TestRefusedCostsNothing: an append that is refused does not spoil those that
// share its commit, and alone costs no fsync.
func TestRefusedCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fresh(t, "q", Limits{Messages: 2})
		commits := 0
		s.commitTx = func(tx *bbolt.Tx) error { commits++; return tx.Commit() }
		mustAppend(t, s, texts("q", "a", "b")...)
		if _, err := s.Append(t.Context(), texts("q", "c"), nil); !errors.Is(err, ErrFull) {
			t.Errorf("full: %v", err)
		}
		if err := errors.Join(s.Create("q", Limits{Messages: 2}), s.Remove("no"), s.Set("no", nil)); err != nil {
			t.Error(err)
		}
		if commits != 1 {
			t.Errorf("%d commits, want 1", commits)
		}
	})
}

// TestMany: everything at once, for the race detector; each queue ends with
// exactly what was confirmed, in order.
func TestMany(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "mqtt.db"), Options{NoSync: true, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	const queues, writers, each = 3, 4, 100
	var group sync.WaitGroup
	for q := range queues {
		name := fmt.Sprint("q", q)
		if err := s.Create(name, Limits{}); err != nil {
			t.Fatal(err)
		}
		for w := range writers {
			group.Go(func() {
				for i := range each {
					mustAppend(t, s, texts(name, fmt.Sprintf("%d/%03d", w, i))...)
				}
			})
		}
		group.Go(func() {
			next := make([]int, writers)
			after := uint64(0)
			for got := 0; got < writers*each; {
				items, err := s.Read(name, after, 7)
				if err != nil {
					t.Error(err)
					return
				}
				for _, it := range items {
					var w, i int
					fmt.Sscanf(string(it.Data), "%d/%d", &w, &i)
					if it.Seq <= after || i != next[w] {
						t.Errorf("%s: %s as number %d after %d, want %d", name, it.Data, it.Seq, after, next[w])
					}
					after = it.Seq
					next[w] = i + 1
					got++
				}
				if len(items) == 0 {
					<-s.Changed(name)
				} else if err := s.Ack(name, after); err != nil {
					t.Error(err)
				}
			}
		})
	}
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			name := fmt.Sprint("x", i%2)
			if err := errors.Join(s.Create(name, Limits{}), s.Set(name, []byte{1}), s.Remove(name)); err != nil {
				t.Error(err)
			}
			s.Stats("q0")
			s.Get(name)
			s.Keys("x")
			s.Queues()
		}
	})
	group.Wait()
	close(stop)
	others.Wait()
	for q := range queues {
		if st := s.Stats(fmt.Sprint("q", q)); st.Messages != 0 || st.Bytes != 0 || st.Acked != writers*each || st.Last != writers*each {
			t.Errorf("q%d: %+v", q, st)
		}
	}
}
