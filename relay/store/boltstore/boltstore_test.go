package boltstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/sallyport/sallyport/relay/store"
	"github.com/sallyport/sallyport/relay/store/storetest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		writeUntilKilled(path)
	}
	goleak.VerifyTestMain(m)
}

func TestKV(t *testing.T) {
	storetest.TestKV(t, func(t *testing.T) store.KV { return mustOpen(t, t.TempDir()) })
}

func TestDurable(t *testing.T) { storetest.TestDurable(t, mustOpen) }

func mustOpen(t *testing.T, dir string) store.KV {
	t.Helper()
	kv, err := Open(filepath.Join(dir, "relay.db"))
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

func TestSyncIsOn(t *testing.T) {
	kv := mustOpen(t, t.TempDir())
	defer kv.Close()
	if db := kv.(*Store).db; db.NoSync || db.NoGrowSync {
		t.Error("fsync is off: an acknowledged write could be lost with the power")
	}
}

func TestFileIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "relay.db")
	for range 2 { // made so, and repaired when somebody loosened it
		kv, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		kv.Close()
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("mode %v (%v), want 0600", info.Mode(), err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFailedTransactionChangesNothing(t *testing.T) {
	kv := mustOpen(t, t.TempDir())
	defer kv.Close()
	events, err := kv.Watch(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	s := kv.(*Store)
	err = s.write(func(b *bbolt.Bucket) (store.Event, error) {
		if err := b.Put([]byte("a"), encode(1, []byte("half"))); err != nil {
			return store.Event{}, err
		}
		return store.Event{Entry: store.Entry{Key: "a"}}, boom
	})
	if !errors.Is(err, boom) {
		t.Fatalf("write: %v", err)
	}
	if _, err := kv.Get(t.Context(), "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a failed transaction left something behind: %v", err)
	}
	if _, err := kv.Create(t.Context(), "b", nil); err != nil {
		t.Fatal(err)
	}
	if ev := <-events; ev.Key != "b" {
		t.Errorf("the failed write was told to watchers: %+v", ev)
	}
}

// TestEventsInOrderOfCommits: writers race, and no event overtakes another.
func TestEventsInOrderOfCommits(t *testing.T) {
	kv := mustOpen(t, t.TempDir())
	defer kv.Close()
	kv.(*Store).db.NoSync = true // faster, so that they race
	if _, err := kv.Create(t.Context(), "a", nil); err != nil {
		t.Fatal(err)
	}
	events, err := kv.Watch(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	const writers, writes = 8, 100
	for range writers {
		go func() {
			for range writes {
				s := kv.(*Store)
				s.write(func(b *bbolt.Bucket) (store.Event, error) {
					rev, err := b.NextSequence()
					if err != nil {
						return store.Event{}, err
					}
					return store.Event{Entry: store.Entry{Key: "a", Revision: rev}}, b.Put([]byte("a"), encode(rev, nil))
				})
			}
		}()
	}
	for at := uint64(0); at < 1+writers*writes; {
		ev := <-events
		if ev.Revision <= at {
			t.Fatalf("revision %d was told after %d", ev.Revision, at)
		}
		at = ev.Revision
	}
}

// TestOpenRefuses: each message names the file and what to do.
func TestOpenRefuses(t *testing.T) {
	good := func(t *testing.T, path string) []byte {
		kv, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"a", "b", "c"} {
			if _, err := kv.Create(context.Background(), key, bytes.Repeat([]byte{0x5a}, 100_000)); err != nil {
				t.Fatal(err)
			}
		}
		kv.Close()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	tests := []struct {
		name  string
		setup func(t *testing.T, dir, path string) string // returns the path to open
		want  []string
	}{
		{
			"no directory", func(t *testing.T, dir, _ string) string { return filepath.Join(dir, "nowhere", "relay.db") },
			[]string{"does not exist", "mkdir", "--data"},
		},
		{"garbage", func(t *testing.T, _, path string) string {
			return write(t, path, []byte(strings.Repeat("this is no database ", 2000)))
		}, []string{"damaged", "backup"}},
		{"truncated", func(t *testing.T, _, path string) string {
			return write(t, path, good(t, path)[:20_000])
		}, []string{"damaged", "backup"}},
		{"truncated in a value", func(t *testing.T, _, path string) string {
			data := good(t, path)
			return write(t, path, data[:bytes.LastIndexByte(data, 0x5a)-50_000])
		}, []string{"damaged", "backup"}},
		{"empty", func(t *testing.T, _, path string) string {
			good(t, path)
			return write(t, path, nil)
		}, []string{"empty", "backup", "rm "}},
		{"zeroed pages", func(t *testing.T, _, path string) string {
			data := good(t, path)
			clear(data[2*os.Getpagesize():])
			return write(t, path, data)
		}, []string{"damaged", "backup"}},
		{"directory in its place", func(t *testing.T, dir, _ string) string { return dir }, []string{"cannot open"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := test.setup(t, dir, filepath.Join(dir, "relay.db"))
			kv, err := Open(path)
			if err == nil {
				kv.Close()
				t.Fatal("Open succeeded")
			}
			if again, err := Open(path); err == nil { // the first try must not repair it by emptying it
				again.Close()
				t.Error("the second Open succeeded")
			}
			for _, want := range append(test.want, path) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q:\n%v", want, err)
				}
			}
		})
	}
}

func TestOpenUnwritable(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may write everywhere")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(dir, "relay.db")); err == nil || !strings.Contains(err.Error(), "chown") {
		t.Errorf("Open in a read-only directory: %v", err)
	}
}

// TestOpenErrorWords covers what cannot be provoked on every machine.
func TestOpenErrorWords(t *testing.T) {
	for want, err := range map[string]error{"chown": os.ErrPermission, "mkdir": os.ErrNotExist} {
		if got := openError("/x/relay.db", err).Error(); !strings.Contains(got, want) {
			t.Errorf("for %v the error says %q, without %q", err, got, want)
		}
	}
}

func write(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(1, []byte("value")))
	f.Add([]byte{})
	f.Add(make([]byte, revisionLen))
	f.Fuzz(func(t *testing.T, raw []byte) {
		rev, value, err := decode(raw)
		if err == nil && string(encode(rev, value)) != string(raw) {
			t.Errorf("decode(%x) = %d, %x, which encodes differently", raw, rev, value)
		}
	})
}
