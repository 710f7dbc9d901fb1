package admin

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// written makes a log of four lines and returns its path.
func written(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), AuditName)
	l := opened(t, path)
	l.Event("agent.joined", slog.String("agent", "pi"), slog.Any("hosts", []string{"*.a.example.org"}))
	l.Event("device.revoked", slog.String("device", "anna-phone"), slog.Duration("after", time.Minute), slog.Any("err", errors.New("x")))
	l.Event("group", slog.Group("g", slog.Int("n", 7), slog.Time("t", time.Now())))
	l.Event("last")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func opened(t *testing.T, path string) *Log {
	t.Helper()
	l, err := OpenLog(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func verified(t *testing.T, path string) Report {
	t.Helper()
	rep, err := Verify(path)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestLogGoesOn(t *testing.T) {
	path := written(t)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	before := read(t, path)
	l := opened(t, path)
	l.Event("after the restart")
	if after := read(t, path); !bytes.HasPrefix(after, before) || bytes.Count(after, []byte("\n")) != 5 {
		t.Errorf("log is now %s", after)
	}
	rep := verified(t, path)
	if n, head := l.Head(); n != 5 || rep.Lines != 5 || rep.Head != head || rep.Torn != 0 {
		t.Errorf("report %+v, log %d %s", rep, n, head)
	}
	for _, want := range []string{`"hosts":["*.a.example.org"]`, `"after":"1m0s"`, `"err":"x"`, `"g":{"n":7`} {
		if !bytes.Contains(before, []byte(want)) {
			t.Errorf("no %s in %s", want, before)
		}
	}
}

func TestTamperingShows(t *testing.T) {
	for what, edit := range map[string]func(lines [][]byte) [][]byte{
		"changed":     func(l [][]byte) [][]byte { l[1] = bytes.Replace(l[1], []byte("anna"), []byte("eves"), 1); return l },
		"first":       func(l [][]byte) [][]byte { l[0] = bytes.Replace(l[0], []byte("pi"), []byte("po"), 1); return l },
		"white space": func(l [][]byte) [][]byte { l[1] = bytes.Replace(l[1], []byte(":"), []byte(": "), 1); return l },
		"removed":     func(l [][]byte) [][]byte { return append(l[:1], l[2:]...) },
		"head cut":    func(l [][]byte) [][]byte { return l[1:] },
		"swapped":     func(l [][]byte) [][]byte { l[1], l[2] = l[2], l[1]; return l },
		"inserted":    func(l [][]byte) [][]byte { return append([][]byte{l[0], l[0]}, l[1:]...) },
		"renumbered": func(l [][]byte) [][]byte {
			l[3] = bytes.Replace(l[3], []byte(`"seq":4`), []byte(`"seq":5`), 1)
			return l
		},
		"garbage":    func(l [][]byte) [][]byte { l[2] = []byte("garbage\n"); return l },
		"empty line": func(l [][]byte) [][]byte { return append([][]byte{[]byte("\n")}, l...) },
		"huge line":  func(l [][]byte) [][]byte { l[2] = append(bytes.Repeat([]byte("x"), maxLine+9), '\n'); return l },
	} {
		t.Run(what, func(t *testing.T) {
			path := written(t)
			lines := bytes.SplitAfter(read(t, path), []byte("\n"))
			bad := bytes.Join(edit(lines[:4]), nil)
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			var chain *ChainError
			if _, err := Verify(path); !errors.As(err, &chain) || chain.Hint() == "" {
				t.Errorf("verify: %v", err)
			}
			if _, err := OpenLog(path, nil); !errors.As(err, &chain) {
				t.Errorf("open: %v", err)
			}
			if !bytes.Equal(read(t, path), bad) {
				t.Error("the evidence was changed")
			}
		})
	}
}

func TestTornLine(t *testing.T) {
	whole := read(t, written(t))
	last := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	for cut := last + 1; cut < len(whole); cut += 19 {
		for _, tail := range []string{"", "\x00\x00\x00"} {
			path := filepath.Join(t.TempDir(), AuditName)
			if err := os.WriteFile(path, append(bytes.Clone(whole[:cut]), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			if rep := verified(t, path); rep.Lines != 3 || rep.Torn != int64(cut-last+len(tail)) {
				t.Fatalf("report %+v", rep)
			}
			opened(t, path).Event("next")
			if rep := verified(t, path); rep.Lines != 5 || rep.Torn != 0 {
				t.Fatalf("after the repair %+v", rep)
			}
			if !bytes.Contains(read(t, path), []byte(`"event":"audit.torn"`)) {
				t.Fatal("the repair left no trace")
			}
		}
	}
}

func TestFailedWriteLeavesNoPiece(t *testing.T) {
	path := filepath.Join(t.TempDir(), AuditName)
	l := opened(t, path)
	l.Event("one")
	// What a write that the disk cut short leaves behind.
	if _, err := l.file.WriteString(`{"seq":2,"ti`); err != nil {
		t.Fatal(err)
	}
	l.rep.Torn = 12
	l.Event("two")
	if rep := verified(t, path); rep.Lines != 2 || rep.Torn != 0 {
		t.Errorf("report %+v", rep)
	}
}

func TestEventsAreBoundedAndOrdered(t *testing.T) {
	path := filepath.Join(t.TempDir(), AuditName)
	l := opened(t, path)
	var many []slog.Attr
	for i := range 100 {
		many = append(many, slog.String(strings.Repeat("k", i+1), strings.Repeat("\x01", 5000)))
	}
	l.Event("big", many...)
	l.Event("newline", slog.String("s", "a\nb"))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				l.Event("parallel")
			}
		})
	}
	wg.Wait()
	if rep := verified(t, path); rep.Lines != 42 {
		t.Errorf("report %+v", rep)
	}
	if n := len(read(t, path)); n > maxLine+20<<10 {
		t.Errorf("%d bytes", n)
	}
	l.Close()
	l.Close()
	l.Event("after the end") // neither panics nor writes
	if rep := verified(t, path); rep.Lines != 42 {
		t.Errorf("report %+v", rep)
	}
}

func TestOpenLogRefuses(t *testing.T) {
	if _, err := OpenLog(filepath.Join(t.TempDir(), "no", "such", "dir"), nil); err == nil {
		t.Error("opened a log in a directory that does not exist")
	}
	if _, err := Verify(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("verified a log that does not exist")
	}
}
