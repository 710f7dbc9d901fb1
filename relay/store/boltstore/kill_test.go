package boltstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/relay/store"
)

// writerEnv makes the test binary a child that writes into the named file.
const writerEnv = "BOLTSTORE_TEST_WRITER"

// writeUntilKilled creates keys and moves a counter, and says each on stdout
// after the store has acknowledged it.
func writeUntilKilled(path string) {
	ctx := context.Background()
	kv, err := Open(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for n := 0; ; n++ {
		key := fmt.Sprintf("run-%d/%06d", os.Getpid(), n)
		if _, err = kv.Create(ctx, key, []byte(key)); err != nil {
			break
		}
		fmt.Println(key)
		e, getErr := kv.Get(ctx, "counter")
		if errors.Is(getErr, store.ErrNotFound) {
			_, err = kv.Create(ctx, "counter", []byte(key))
		} else {
			_, err = kv.Update(ctx, "counter", []byte(key), e.Revision)
		}
		if err != nil {
			break
		}
		fmt.Println("counter " + key)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestKill: a process is killed with SIGKILL in the middle of its writes,
// several times over the same file. Nothing that it had acknowledged is lost,
// and the next process gets the lock at once.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	path := filepath.Join(t.TempDir(), "relay.db")
	acked := map[string]bool{}
	counter := ""
	for round := range 4 {
		for _, line := range runWriter(t, path, 25+40*round) {
			if key, ok := strings.CutPrefix(line, "counter "); ok {
				counter = key
			} else {
				acked[line] = true
			}
		}
		kv, err := Open(path)
		if err != nil {
			t.Fatalf("open after the kill: %v", err)
		}
		for key := range acked {
			if e, err := kv.Get(t.Context(), key); err != nil || string(e.Value) != key {
				t.Errorf("acknowledged %s is lost: %q, %v", key, e.Value, err)
			}
		}
		e, err := kv.Get(t.Context(), "counter")
		if err != nil || string(e.Value) < counter && strings.HasPrefix(string(e.Value), counter[:strings.Index(counter, "/")]) {
			t.Errorf("the counter fell back to %q from %q (%v)", e.Value, counter, err)
		}
		kv.Close()
	}
	if len(acked) < 100 {
		t.Errorf("only %d writes were acknowledged: the test proves little", len(acked))
	}
}

// runWriter starts a child, kills it after some acknowledgements and returns
// all that it gave, also those on their way when the kill struck.
func runWriter(t *testing.T, path string, acks int) (lines []string) {
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
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			break // a line cut by the kill was not acknowledged in full
		}
		lines = append(lines, strings.TrimSuffix(line, "\n"))
		if len(lines) == acks {
			cmd.Process.Kill()
		}
	}
	cmd.Wait()
	if len(lines) < acks {
		t.Fatalf("the writer ended after %d acknowledgements", len(lines))
	}
	return lines
}

// TestLocked: a second process is told who is in the way, within the time said.
func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "relay.db")
	kv, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer kv.Close()
	began := time.Now()
	_, err = Open(path) // flock counts per open file, so the same process will do
	if err == nil || !strings.Contains(err.Error(), "another process uses "+path) || !strings.Contains(err.Error(), "--data") {
		t.Errorf("second Open: %v", err)
	}
	if took := time.Since(began); took > 3*lockTimeout {
		t.Errorf("it took %v to say so", took)
	}
}
