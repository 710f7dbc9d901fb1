package real

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// transcript collects a process's output; it can be read while it grows.
type transcript struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *transcript) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *transcript) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// process is a program in the background.
type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	out  *transcript // stdout and stderr
	done chan struct{}
	err  error // after done
}

// start runs a program until the test ends; then it gets SIGTERM and, when it
// does not obey within 15 s, SIGKILL and the test fails.
func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	return startCmd(t, name, nil, exec.Command(args[0], args[1:]...))
}

// startCmd is start for a prepared command; stdout may go elsewhere.
func startCmd(t *testing.T, name string, stdout io.Writer, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, name: name, cmd: cmd, out: &transcript{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.out, p.out
	if stdout != nil {
		cmd.Stdout = stdout
	}
	cmd.SysProcAttr = dieWithParent()
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop()
		out := p.out.String()
		if strings.Contains(out, "DATA RACE") || strings.Contains(out, "panic:") {
			t.Errorf("%s raced or panicked", name)
		}
		if t.Failed() {
			t.Logf("---- %s said:\n%s", name, tail(out, 6000))
		}
	})
	return p
}

func tail(s string, n int) string {
	if len(s) > n {
		return "[…]" + s[len(s)-n:]
	}
	return s
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("signal %v to %s: %v", sig, p.name, err)
	}
}

// kill is kill -9.
func (p *process) kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	p.wait(10 * time.Second)
}

// stop is an orderly end, if the process runs still.
func (p *process) stop() {
	p.t.Helper()
	if !p.running() {
		return
	}
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(15 * time.Second):
		p.t.Errorf("%s does not end within 15 s of SIGTERM", p.name)
		p.signal(syscall.SIGQUIT) // a Go program shows its goroutines
		select {
		case <-p.done:
		case <-time.After(5 * time.Second):
			p.kill()
		}
	}
}

// wait waits for the end and returns the exit code, -1 after a signal.
func (p *process) wait(limit time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		p.t.Fatalf("%s still runs after %v", p.name, limit)
		return 0
	}
}

// waitFor waits until the output contains text, and returns the output.
func (p *process) waitFor(text string, limit time.Duration) string {
	p.t.Helper()
	var out string
	eventually(p.t, limit, p.name+" says "+text, func() bool {
		running := p.running() // before the output is read: its last words count
		out = p.out.String()
		if !strings.Contains(out, text) && !running {
			p.t.Fatalf("%s ended (%v) before it said %q", p.name, p.err, text)
		}
		return strings.Contains(out, text)
	})
	return out
}

// eventually polls until good, and returns how long that took.
func eventually(t *testing.T, limit time.Duration, what string, good func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !good() {
		if time.Since(began) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(began)
}

// result is what a program that ended left.
type result struct {
	stdout, stderr string
	code           int
	took           time.Duration
}

func (r result) String() string {
	return "exit code " + itoa(r.code) + "\nstdout: " + tail(r.stdout, 3000) + "\nstderr: " + tail(r.stderr, 3000)
}

// run runs a program to its end, at most a minute.
func run(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	return runFor(t, time.Minute, stdin, args...)
}

func runFor(t *testing.T, limit time.Duration, stdin string, args ...string) result {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.SysProcAttr = dieWithParent()
	cmd.WaitDelay = 2 * time.Second
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %q: %v", args, err)
	}
	timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	_ = cmd.Wait() // the exit code says it
	r := result{out.String(), errOut.String(), cmd.ProcessState.ExitCode(), time.Since(began)}
	if r.took >= limit {
		t.Fatalf("%q took longer than %v\n%s", args, limit, r)
	}
	return r
}

// mustRun is run for what has to succeed; it returns stdout.
func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	r := run(t, "", args...)
	if r.code != 0 {
		t.Fatalf("%q: %s", args, r)
	}
	return r.stdout
}

// commandWith is a command with this stdin.
func commandWith(stdin *os.File, args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = stdin
	return cmd
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
