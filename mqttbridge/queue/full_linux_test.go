package queue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// limitedEnv makes the test binary a child with a file system of its own, on
// the named directory, that is soon full.
const limitedEnv = "QUEUE_TEST_LIMITED"

// TestFullDisk: on a full disk an append is refused with the reason and leaves
// nothing behind, what was confirmed stays, delivered messages make room, and
// so does whoever frees some.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may mount")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), limitedEnv+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, syscall.EPERM), strings.Contains(string(out), "cannot mount"):
		if os.Getenv("CI") == "true" && !strings.Contains(string(out), "operation not permitted") {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Skipf("no file system of its own here: %v %s", err, out)
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func writeUntilFull(dir string) {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		fmt.Println("cannot mount:", err)
		os.Exit(1)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		fmt.Println("cannot mount:", err)
		os.Exit(1)
	}
	if err := fillUp(dir); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func fillUp(dir string) error {
	path := filepath.Join(dir, "mqtt.db")
	s, err := Open(path, Options{})
	if err == nil {
		err = s.Create("q", Limits{})
	}
	if err != nil {
		return err
	}
	ctx := context.Background()
	put := func(n int) error {
		text := fmt.Sprintf("%d ", n)
		_, err := s.Append(ctx, texts("q", text+strings.Repeat("x", 3000)), map[string][]byte{"last": []byte(text)})
		return err
	}
	confirmed, delivered := 0, 0
	fill := func() error {
		for {
			err := put(confirmed + 1)
			if errors.Is(err, ErrDisk) && errors.Is(err, syscall.ENOSPC) && !errors.Is(err, ErrUncertain) {
				return nil
			} else if err != nil {
				return fmt.Errorf("a full disk: %w", err)
			}
			if confirmed++; confirmed > 5000 {
				return errors.New("the disk is never full")
			}
		}
	}
	check := func() error {
		items, err := s.Read("q", 0, 10_000)
		if err != nil {
			return err
		}
		if len(items) != confirmed-delivered || s.Stats("q").Messages != len(items) {
			return fmt.Errorf("%d messages, %d counted; %d were confirmed and %d of these delivered", len(items), s.Stats("q").Messages, confirmed, delivered)
		}
		for i, it := range items {
			if want := fmt.Sprintf("%d ", delivered+i+1); !strings.HasPrefix(string(it.Data), want) {
				return fmt.Errorf("%.10s in the place of %s", it.Data, want)
			}
		}
		if v, _ := s.Get("last"); string(v) != fmt.Sprintf("%d ", confirmed) {
			return fmt.Errorf("the key says %q, %d were confirmed", v, confirmed)
		}
		return nil
	}
	step := func(name string, f func() error) {
		if err == nil {
			if err = f(); err == nil {
				err = check()
			}
			if err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			}
			fmt.Printf("%s: confirmed %d, delivered %d\n", name, confirmed, delivered)
		}
	}
	reopen := func() (err error) {
		if err = s.Close(); err == nil {
			s, err = Open(path, Options{})
		}
		return err
	}
	ballast := filepath.Join(dir, "ballast")
	step("until nothing fits any more", fill)
	step("a restart on a full disk", reopen)
	step("messages are delivered", func() error {
		delivered += confirmed / 2
		return s.Ack("q", uint64(delivered))
	})
	step("which makes room", func() error {
		before := confirmed
		if err := fill(); err != nil || confirmed-before < 100 {
			return fmt.Errorf("only %d more (%v)", confirmed-before, err)
		}
		return nil
	})
	step("all are delivered", func() error {
		delivered = confirmed
		return s.Ack("q", uint64(delivered))
	})
	step("again, in a small file beside somebody else's large one", func() error {
		if err := s.Close(); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		var err error
		if s, err = Open(path, Options{}); err != nil {
			return err
		}
		confirmed, delivered = 1, 0
		return errors.Join(s.Create("q", Limits{}), put(1))
	})
	step("the ballast", func() error {
		err := os.WriteFile(ballast, make([]byte, 4<<20), 0o600)
		if !errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("the ballast fits: %w", err)
		}
		return fill()
	})
	step("it goes", func() error {
		before := confirmed
		if err := errors.Join(os.Remove(ballast), fill()); err != nil || confirmed-before < 100 {
			return fmt.Errorf("only %d more (%v)", confirmed-before, err)
		}
		return nil
	})
	if err == nil {
		err = s.Close()
	}
	return err
}
