package queue

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// writerEnv makes the test binary a child that writes into the named file.
const writerEnv = "QUEUE_TEST_WRITER"

// writeUntilKilled appends to two queues at once, with the number of each
// message in a key of the same commit, acknowledges some, and says each step
// on stdout after the store has confirmed it.
func writeUntilKilled(path string) {
	s, err := Open(path, Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var out sync.Mutex
	say := func(format string, args ...any) {
		out.Lock()
		defer out.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	var group sync.WaitGroup
	for _, name := range []string{"a", "b"} {
		group.Go(func() {
			err := s.Create(name, Limits{})
			for n := 0; err == nil; n++ {
				text := fmt.Sprintf("%s/%d/%d", name, os.Getpid(), n)
				items := texts(name, text)
				if _, err = s.Append(context.Background(), items, map[string][]byte{name: []byte(text)}); err != nil {
					break
				}
				say("put %d %s", items[0].Seq, text)
				if n%5 == 4 {
					say("ack %d %s", items[0].Seq-2, name) // said first: it may be on disk at any time from now
					err = s.Ack(name, items[0].Seq-2)
				}
			}
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		})
	}
	group.Wait()
}

// TestKill: a process is killed with SIGKILL in the middle of its writes,
// several times over the same file, also before the file is there. Nothing
// that it had confirmed is lost, no number is given twice, and a key is never
// behind or far ahead of the message that it came with.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	path := filepath.Join(t.TempDir(), "mqtt.db")
	confirmed := map[string]string{} // "queue seq" → text
	acked := map[string]uint64{}
	for round := range 6 {
		for _, line := range runUntil(t, path, 40*round) {
			var seq uint64
			var text string
			if _, err := fmt.Sscanf(line, "put %d %s", &seq, &text); err == nil {
				key := fmt.Sprintf("%c %d", text[0], seq)
				if before, twice := confirmed[key]; twice {
					t.Errorf("number %s was given to %s and to %s", key, before, text)
				}
				confirmed[key] = text
			} else if _, err := fmt.Sscanf(line, "ack %d %s", &seq, &text); err == nil {
				acked[text] = seq
			}
		}
		s, err := Open(path, Options{})
		if err != nil {
			t.Fatalf("open after the kill: %v", err)
		}
		onDisk := map[string]string{}
		for _, name := range s.Queues() {
			items, err := s.Read(name, 0, 10_000)
			if err != nil {
				t.Fatal(err)
			}
			for i, it := range items {
				onDisk[fmt.Sprintf("%s %d", name, it.Seq)] = string(it.Data)
				if i > 0 && it.Seq != items[i-1].Seq+1 {
					t.Errorf("queue %s: %d follows %d", name, it.Seq, items[i-1].Seq)
				}
			}
			if len(items) > 0 {
				newest := string(items[len(items)-1].Data)
				if v, _ := s.Get(name); string(v) != newest {
					t.Errorf("queue %s ends with %s, its key says %s", name, newest, v)
				}
			}
			if st := s.Stats(name); st.Messages != len(items) {
				t.Errorf("queue %s counts %d of %d", name, st.Messages, len(items))
			}
		}
		for key, text := range confirmed {
			var name string
			var seq uint64
			fmt.Sscanf(key, "%s %d", &name, &seq)
			if got := onDisk[key]; got != text && (got != "" || seq > acked[name]) {
				t.Errorf("confirmed %s (%s) is lost: %q", key, text, got)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(confirmed) < 300 {
		t.Errorf("only %d messages were confirmed: the test proves little", len(confirmed))
	}
}

// runUntil starts a child, kills it after that many lines and returns all that
// it said, also what was on its way when the kill struck.
func runUntil(t *testing.T, path string, count int) (lines []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), writerEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if count == 0 {
		cmd.Process.Kill()
	}
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			break // a line cut by the kill was not said in full
		}
		lines = append(lines, strings.TrimSuffix(line, "\n"))
		if len(lines) == count {
			cmd.Process.Kill()
		}
	}
	cmd.Wait()
	if len(lines) < count {
		t.Fatalf("the writer ended after %d lines", len(lines))
	}
	return lines
}
