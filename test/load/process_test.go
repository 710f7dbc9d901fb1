//go:build linux

package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one of the programs under load.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string // file with what it said
	done chan struct{}
}

// start runs a program until stop or the end of the run. files become its
// descriptors 3 and up.
func (l *lab) start(name string, files []*os.File, env []string, args ...string) (*process, error) {
	log, err := os.CreateTemp(l.dir, name+"-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: log.Name(), done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // whoever needs it alive finds out
		close(p.done)
	}()
	l.mu.Lock()
	l.began = append(l.began, p)
	l.mu.Unlock()
	return p, nil
}

// startSelf runs this test binary in one of the roles of roles_test.go.
func (l *lab) startSelf(name, role string, files []*os.File, env ...string) (*process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return l.start(name, files, append(env, roleEnv+"="+role), exe)
}

// stop asks the process to end, and after five seconds makes it.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

func (l *lab) stopAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.began) - 1; i >= 0; i-- {
		l.began[i].stop()
	}
	l.began = nil
}

// said returns the end of what the process wrote.
func (p *process) said() string {
	b, _ := os.ReadFile(p.log)
	return string(b[max(0, len(b)-2000):])
}

// cpu returns the CPU time used so far: user and system, all threads, those
// that have ended too.
func (p *process) cpu() (time.Duration, error) {
	const cpuClockSched = 2 // CPUCLOCK_SCHED, kernel: include/linux/posix-timers.h
	var ts unix.Timespec
	clock := ^int32(p.cmd.Process.Pid)<<3 | cpuClockSched
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("CPU clock of %s: %w\n%s", p.name, err, p.said())
	}
	return time.Duration(ts.Nano()), nil
}

// rss returns the resident memory in bytes.
func (p *process) rss() (int64, error) {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), "statm"))
	if err != nil {
		return 0, fmt.Errorf("memory of %s: %w\n%s", p.name, err, p.said())
	}
	fields := strings.Fields(string(raw))
	if len(fields) < 2 {
		return 0, fmt.Errorf("memory of %s: %q", p.name, raw)
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize()), err
}

// total adds a measure over processes.
func total[N time.Duration | int64](ps []*process, measure func(*process) (N, error)) (sum N, err error) {
	for _, p := range ps {
		n, e := measure(p)
		sum, err = sum+n, errors.Join(err, e)
	}
	return sum, err
}

// until polls until good returns nil, at most twenty seconds. what is what it
// waits for, as a sentence.
func until(what string, good func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var last error // of a look that was not cut short
	for {
		err := good(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s, but not within 20 s: %w", what, cmp.Or(last, err))
		}
		last = err
		time.Sleep(10 * time.Millisecond)
	}
}
