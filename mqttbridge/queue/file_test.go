package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

func TestSyncIsOn(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "mqtt.db"), Options{})
	if s.db.NoSync || s.db.NoGrowSync {
		t.Error("fsync is off: a confirmed message could be lost with the power")
	}
	if err := s.renew(); err != nil {
		t.Fatal(err)
	}
	if s.db.NoSync || s.db.NoGrowSync {
		t.Error("fsync is off in the new file")
	}
}

func TestFileIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mqtt.db")
	for range 2 { // made so, and repaired when somebody loosened it
		s := mustOpen(t, path, Options{})
		s.Close()
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("mode %v (%v), want 0600", info.Mode(), err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLocked: a second process is told who is in the way, within the time said.
func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mqtt.db")
	mustOpen(t, path, Options{})
	began := time.Now()
	_, err := Open(path, Options{}) // flock counts per open file, so the same process will do
	if err == nil || !strings.Contains(err.Error(), "another process uses "+path) || !strings.Contains(err.Error(), "--data") {
		t.Errorf("second Open: %v", err)
	}
	if took := time.Since(began); took > 5*lockTimeout {
		t.Errorf("it took %v to say so", took)
	}
}

// filled writes a store with some of everything and returns its bytes.
func filled(t *testing.T, path string) []byte {
	t.Helper()
	s := mustOpen(t, path, Options{NoSync: true})
	for i := range 3 {
		name := fmt.Sprint("q", i)
		if err := errors.Join(s.Create(name, Limits{}), s.Set(name, bytes.Repeat([]byte{0x5a}, 100))); err != nil {
			t.Fatal(err)
		}
		for n := range 40 {
			mustAppend(t, s, Item{Queue: name, Data: bytes.Repeat([]byte{byte(n)}, 300), Droppable: n%2 == 0, Expires: time.Now().Add(time.Hour)})
		}
		mustAppend(t, s, Item{Queue: name, Data: bytes.Repeat([]byte{0x5a}, 100_000)})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestOpenRefuses: each message names the file and what to do.
func TestOpenRefuses(t *testing.T) {
	write := func(t *testing.T, path string, data []byte) string {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	foreign := func(t *testing.T, path string, change func(tx *bbolt.Tx) error) string {
		t.Helper()
		filled(t, path)
		db, err := bbolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.Update(change), db.Close()); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name  string
		setup func(t *testing.T, dir, path string) string // returns the path to open
		want  []string
	}{
		{
			"no directory", func(t *testing.T, dir, _ string) string { return filepath.Join(dir, "nowhere", "mqtt.db") },
			[]string{"does not exist", "mkdir", "--data"},
		},
		{"garbage", func(t *testing.T, _, path string) string {
			return write(t, path, []byte(strings.Repeat("this is no database ", 2000)))
		}, []string{"damaged", "mv "}},
		{"truncated", func(t *testing.T, _, path string) string {
			return write(t, path, filled(t, path)[:20_000])
		}, []string{"damaged", "mv "}},
		{"truncated in a value", func(t *testing.T, _, path string) string {
			data := filled(t, path)
			return write(t, path, data[:bytes.LastIndexByte(data, 0x5a)-50_000])
		}, []string{"damaged", "mv "}},
		{"empty", func(t *testing.T, _, path string) string {
			return write(t, path, nil)
		}, []string{"empty", "mv "}},
		{"zeroed pages", func(t *testing.T, _, path string) string {
			data := filled(t, path)
			clear(data[2*os.Getpagesize():])
			return write(t, path, data)
		}, []string{"damaged", "mv "}},
		{"directory in its place", func(t *testing.T, dir, _ string) string { return dir }, []string{"cannot open"}},
		{"a bucket too many", func(t *testing.T, _, path string) string {
			return foreign(t, path, func(tx *bbolt.Tx) error {
				_, err := tx.CreateBucket([]byte("kv"))
				return err
			})
		}, []string{"damaged", "\"kv\"", "mv "}},
		{"an item that is none", func(t *testing.T, _, path string) string {
			return foreign(t, path, func(tx *bbolt.Tx) error {
				return tx.Bucket(queuesBucket).Bucket([]byte("q1")).Put(seqKey(7), []byte("?"))
			})
		}, []string{"damaged", "\"q1\"", "message 7", "mv "}},
		{"a number that was never given", func(t *testing.T, _, path string) string {
			return foreign(t, path, func(tx *bbolt.Tx) error {
				return tx.Bucket(queuesBucket).Bucket([]byte("q1")).SetSequence(40)
			})
		}, []string{"damaged", "\"q1\"", "message 41", "mv "}},
		{"a later format", func(t *testing.T, _, path string) string {
			return foreign(t, path, func(tx *bbolt.Tx) error {
				return tx.Bucket(queuesBucket).Bucket([]byte("q1")).Put(metaKey, []byte{formatVersion + 1})
			})
		}, []string{"another version", "mv "}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := test.setup(t, dir, filepath.Join(dir, "mqtt.db"))
			before, _ := os.ReadFile(path)
			s, err := Open(path, Options{})
			if err == nil {
				s.Close()
				t.Fatal("Open succeeded")
			}
			if again, err := Open(path, Options{}); err == nil { // the first try must not repair it by emptying it
				again.Close()
				t.Error("the second Open succeeded")
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}
			for _, want := range append(test.want, path) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q:\n%v", want, err)
				}
			}
		})
	}
}

// TestOpenErrorWords covers what cannot be provoked on every machine.
func TestOpenErrorWords(t *testing.T) {
	for want, err := range map[string]error{"chown": os.ErrPermission, "mkdir": os.ErrNotExist} {
		if got := openError("/x/mqtt.db", err).Error(); !strings.Contains(got, want) {
			t.Errorf("for %v the error says %q, without %q", err, got, want)
		}
	}
}

// TestDamageIsNoDisaster: whatever byte or page of the file is wrong, Open
// answers: with an error, or with a store that can be read and closed. The
// process never dies of it, and nothing hangs.
func TestDamageIsNoDisaster(t *testing.T) {
	dir := t.TempDir()
	good := filled(t, filepath.Join(dir, "good.db"))
	path := filepath.Join(dir, "bad.db")
	page := os.Getpagesize()
	pages := inUse(t, filepath.Join(dir, "good.db"))
	rnd := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for i := range 60 {
		bad := bytes.Clone(good)
		switch i % 4 {
		case 0:
			bad[pages[rnd.IntN(len(pages))]+rnd.IntN(page)] ^= byte(1 + rnd.IntN(255))
		case 1: // in the heads of pages, where it hurts
			at := pages[rnd.IntN(len(pages))] + rnd.IntN(64)
			bad[at] ^= byte(1 + rnd.IntN(255))
		case 2: // a sector that was never written
			at := pages[rnd.IntN(len(pages))] + rnd.IntN(page/512)*512
			clear(bad[at : at+512])
		case 3: // a page in the place of another
			from, to := pages[rnd.IntN(len(pages))], pages[rnd.IntN(len(pages))]
			copy(bad[to:to+page], good[from:from+page])
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path, Options{NoSync: true})
		if err != nil {
			refused++
			continue
		}
		for _, name := range s.Queues() {
			s.Read(name, 0, 100)
			s.Stats(name)
			s.Ack(name, 10)
		}
		s.Close()
	}
	if refused < 10 {
		t.Errorf("only %d of 60 damaged files were refused", refused)
	}
}

// TestPageTooLong: a page that claims to be long is found at Open. bbolt would
// free what it claims one by one, until memory is full.
func TestPageTooLong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mqtt.db")
	data := filled(t, path)
	pages := inUse(t, path)
	at := pages[len(pages)-1]
	binary.NativeEndian.PutUint32(data[at+12:], 1<<24) // its overflow
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(path, Options{NoSync: true}); err == nil {
		s.Close()
		t.Error("Open succeeded")
	} else if !strings.Contains(err.Error(), "too long") {
		t.Error(err)
	}
}

// TestDamageKeepsNoLock: when bbolt gives up with a panic, the file can be
// opened again all the same, once it is whole.
func TestDamageKeepsNoLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mqtt.db")
	good := filled(t, path)
	bad := bytes.Clone(good)
	for _, at := range inUse(t, path) {
		if flags := bad[at+8 : at+10]; binary.NativeEndian.Uint16(flags) == 0x10 { // the list of free pages
			clear(flags)
		}
	}
	if bytes.Equal(bad, good) {
		t.Fatal("no list of free pages")
	}
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(path, Options{}); err == nil {
		s.Close()
		t.Fatal("Open succeeded")
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path, Options{})
}

// inUse returns where the pages are that damage would hurt: not the free ones
// and not the insides of long values.
func inUse(t *testing.T, path string) (offsets []int) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		for id := 0; ; id++ {
			p, err := tx.Page(id)
			if err != nil || p == nil {
				return err
			}
			if p.Type != "free" {
				offsets = append(offsets, id*os.Getpagesize())
			}
			id += p.OverflowCount
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return offsets
}

// TestFigures: what a queue says of itself is counted again at Open.
func TestFigures(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mqtt.db")
	filled(t, path)
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(queuesBucket).Bucket([]byte("q0"))
		return b.Delete(seqKey(1))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, path, Options{})
	st := s.Stats("q0")
	if st.Messages != 40 || st.Bytes != 39*300+100_000 || st.Last != 41 {
		t.Errorf("Stats: %+v", st)
	}
}

// TestFileIsUsedAgain: a queue that is filled and emptied over and over does
// not make the file grow.
func TestFileIsUsedAgain(t *testing.T) {
	s := fresh(t, "q", Limits{})
	items := make([]Item, 500)
	for i := range items {
		items[i] = Item{Queue: "q", Data: make([]byte, 2000)}
	}
	var sizes []int64
	for range 20 {
		mustAppend(t, s, items...)
		if err := s.Ack("q", s.Stats("q").Last); err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, inode(t, s.path).Size())
	}
	if sizes[19] > 2*sizes[3] || sizes[19] > 8<<20 {
		t.Errorf("a megabyte at a time made the file grow so: %d", sizes)
	}
}

// TestFileShrinks: after a long outage the file is large; the next Open makes
// it small, and loses nothing by it.
func TestFileShrinks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mqtt.db")
	s := mustOpen(t, path, Options{NoSync: true})
	if err := errors.Join(s.Create("q", Limits{Bytes: 1 << 30}), s.Create("empty", Limits{Messages: 7}), s.Set("k", []byte{})); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		items := make([]Item, 100)
		for i := range items {
			items[i] = Item{Queue: "q", Data: make([]byte, 10_000)}
		}
		mustAppend(t, s, items...)
	}
	mustAppend(t, s, texts("q", "a", "b")...)
	before := inode(t, path).Size()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+newSuffix, []byte("half of one"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, path, Options{NoSync: true})
	if _, err := os.Stat(path + newSuffix); err == nil {
		t.Error("the half file is still there")
	}
	s.waste = 1 << 20
	if err := s.Ack("q", 200); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, s, texts("empty", "x")...)
	for range 2 { // the first frees the pages, the second comes after the making anew
		if err := s.Set("k", []byte{}); err != nil {
			t.Fatal(err)
		}
	}
	if after := inode(t, path).Size(); before < 2<<20 || after > 1<<20 {
		t.Errorf("the file had %d bytes, and has %d", before, after)
	}
	if _, err := Open(path, Options{}); err == nil {
		t.Error("the new file is not locked")
	}
	wantRead(t, s, "q", "a", "b")
	more := texts("q", "c")
	mustAppend(t, s, more...)
	if st := s.Stats("empty"); more[0].Seq != 203 || st.Limits.Messages != 7 {
		t.Errorf("number %d; %+v", more[0].Seq, st)
	}
	if v, ok := s.Get("k"); !ok || len(v) != 0 {
		t.Errorf("k = %q, %v", v, ok)
	}
}

func FuzzDecodeItem(f *testing.F) {
	now := time.Unix(0, 1234567890)
	l := life{expires: now, stored: now, run: 7, elapsed: time.Second}
	f.Add(encodeItem(head{at: now, droppable: true}, []byte("data")))
	f.Add(encodeItem(head{at: now, life: &l}, nil))
	f.Add([]byte{})
	f.Add([]byte{0xff, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, data, err := decodeItem(raw)
		if err == nil && !bytes.Equal(encodeItem(h, data), raw) {
			t.Errorf("%x decodes to %+v, which encodes differently", raw, h)
		}
	})
}

func FuzzDecodeMeta(f *testing.F) {
	f.Add(meta{limits: Limits{1, 2}, tally: tally{3, 4, 5, 6, 7}, droppedFull: 8, droppedOld: 9, acked: 10}.encode())
	f.Add([]byte{})
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := decodeMeta(raw)
		if err == nil && !bytes.Equal(m.encode(), raw) {
			t.Errorf("%x decodes to %+v, which encodes differently", raw, m)
		}
	})
}
