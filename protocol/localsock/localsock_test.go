package localsock

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// answer greets one caller.
func answer(t *testing.T, dir string) {
	t.Helper()
	l, err := Listen(dir, "x.sock")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello")
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		l.Close()
		if _, err := os.Lstat(filepath.Join(dir, "x.sock")); !os.IsNotExist(err) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
}

func call(t *testing.T, dir string) {
	t.Helper()
	c, err := Dial(t.Context(), dir, "x.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestSocketIsPrivateAndReplacesADeadOne(t *testing.T) {
	dir := t.TempDir()
	dead, err := Listen(dir, "x.sock")
	if err != nil {
		t.Fatal(err)
	}
	dead.(*listener).UnixListener.Close() // as kill -9 leaves it
	answer(t, dir)
	info, err := os.Lstat(filepath.Join(dir, "x.sock"))
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	call(t, dir)
}

func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "linux" {
		if _, err := Listen(dir, "x.sock"); err == nil {
			t.Error("a path that does not fit was accepted")
		}
		return
	}
	answer(t, dir)
	call(t, dir)
}
