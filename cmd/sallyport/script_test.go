package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sallyport": main, "echod": echod, "brokerd": brokerd})
}

// brokerd is the demo's home broker with its garage door, and things that
// announce themselves to Home Assistant: it prints its address and stays.
func brokerd() {
	b, err := startHomeBroker()
	if err != nil {
		panic(err)
	}
	for _, said := range [][2]string{
		{"select/mode", `{"name":"Mode","cmd_t":"mode/set"}`},
		{"switch/switch", `{"name":null,"dev":{"name":"Gate"},"cmd_t":"gate/set","stat_t":"gate/state","stat_on":"1","stat_off":"0"}`},
		{"switch/0x00158d/switch", `{"name":"Plug","cmd_t":"plug/set","stat_t":"plug/state"}`},
		{"switch/fan", `{"name":"Fan","cmd_t":"fan/set","stat_t":"fan/state","uniq_id":"f1"}`},
	} {
		if err := b.server.Publish("homeassistant/"+said[0]+"/config", []byte(said[1]), true, 1); err != nil {
			panic(err)
		}
	}
	fmt.Println(b.addr)
	select {}
}

// echod is a service at home: it prints its address and says back what it
// hears, but only once all is said.
func echod() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if all, err := io.ReadAll(c); err == nil {
				c.Write(all)
			}
		}()
	}
}

// patience is how long a story waits for what must come.
const patience = 15 * time.Second

func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"freeport": cmdFreeport, "exits": cmdExits, "start": cmdStart, "signal": cmdSignal, "ended": cmdEnded,
			"await": cmdAwait, "until": cmdUntil, "typed": cmdTyped, "keep": cmdKeep, "mode": cmdMode,
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Setup: func(e *testscript.Env) error {
			e.Values[processes{}] = map[string]*process{}
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("TMPDIR", e.WorkDir)
			return nil
		},
	})
}

type processes struct{} // key of the processes in a script's Env

type process struct {
	cmd  *exec.Cmd
	done chan error
}

func running(ts *testscript.TestScript, name string) *process {
	p := ts.Value(processes{}).(map[string]*process)[name]
	if p == nil {
		ts.Fatalf("nothing was started as %q", name)
	}
	return p
}

// freeport VAR… sets each variable to a loopback address nobody listens on, and
// VAR_port to its port.
func cmdFreeport(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		ts.Setenv(name, l.Addr().String())
		ts.Setenv(name+"_port", strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
		defer l.Close() // not before all are found
	}
}

func exitCode(err error) int {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// exits CODE COMMAND… runs a command that must end with that code.
func cmdExits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	if got := exitCode(err); strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s (%v)", got, args[0], err)
	}
}

// start NAME COMMAND… runs in the background, output to NAME.out and NAME.err.
func cmdStart(ts *testscript.TestScript, _ bool, args []string) {
	out, err := os.Create(ts.MkAbs(args[0] + ".out"))
	ts.Check(err)
	defer out.Close()
	errs, err := os.Create(ts.MkAbs(args[0] + ".err"))
	ts.Check(err)
	defer errs.Close()
	p := &process{cmd: exec.Command(program(ts, args[1]), args[2:]...), done: make(chan error, 1)}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = out, errs, ts.MkAbs(".")
	p.cmd.Env = environment(ts)
	if in := ts.Getenv("stdin"); in != "" {
		f, err := os.Open(ts.MkAbs(in))
		ts.Check(err)
		defer f.Close()
		p.cmd.Stdin = f
	}
	ts.Check(p.cmd.Start())
	go func() { p.done <- p.cmd.Wait() }()
	ts.Value(processes{}).(map[string]*process)[args[0]] = p
	ts.Defer(func() {
		p.cmd.Process.Kill()
		p.done <- <-p.done
		if ts.Getenv("show") != "" {
			ts.Logf("%s", ts.ReadFile(args[0]+".err"))
		}
	})
}

// program finds a command that TestMain offers.
func program(ts *testscript.TestScript, name string) string {
	return filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], name)
}

// environment is the script's, as far as stories use it.
func environment(ts *testscript.TestScript) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "NOTIFY_SOCKET", "GOCOVERDIR", "SALLYPORT_DATA", "SALLYPORT_DOMAIN", "SALLYPORT_LISTEN", "SALLYPORT_HTTP"} {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// signal NAME HUP|INT|TERM|KILL
func cmdSignal(ts *testscript.TestScript, _ bool, args []string) {
	sig := map[string]os.Signal{"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}[args[1]]
	ts.Check(running(ts, args[0]).cmd.Process.Signal(sig))
}

// ended NAME CODE waits for the end of a started command.
func cmdEnded(ts *testscript.TestScript, _ bool, args []string) {
	p := running(ts, args[0])
	select {
	case err := <-p.done:
		p.done <- err
		if got := exitCode(err); strconv.Itoa(got) != args[1] {
			ts.Fatalf("%s: exit code %d, want %s\n%s", args[0], got, args[1], ts.ReadFile(args[0]+".err"))
		}
	case <-time.After(patience):
		ts.Fatalf("%s still runs\n%s", args[0], ts.ReadFile(args[0]+".err"))
	}
}

// poll calls f until it is content.
func poll(ts *testscript.TestScript, what func() string, f func() bool) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			ts.Fatalf("did not come: %s", what())
		}
	}
}

// await FILE PATTERN waits until a file that grows holds the pattern.
func cmdAwait(ts *testscript.TestScript, _ bool, args []string) {
	re := regexp.MustCompile("(?m)" + args[1])
	var text string
	poll(ts, func() string { return args[1] + " in\n" + text }, func() bool {
		raw, _ := os.ReadFile(ts.MkAbs(args[0]))
		text = string(raw)
		return re.MatchString(text)
	})
}

// until PATTERN COMMAND… repeats a command until it succeeds with the pattern
// in what it prints.
func cmdUntil(ts *testscript.TestScript, _ bool, args []string) {
	re := regexp.MustCompile("(?m)" + args[0])
	path := program(ts, args[1])
	var text string
	poll(ts, func() string { return strings.Join(args, " ") + "\n" + text }, func() bool {
		cmd := exec.Command(path, args[2:]...)
		cmd.Env, cmd.Dir = environment(ts), ts.MkAbs(".")
		out, err := cmd.CombinedOutput()
		text = fmt.Sprintf("%s(%v)", out, err)
		return err == nil && re.Match(out)
	})
}

// typed FILE PATTERN types the first line of FILE that has the pattern into a
// shell, as a person would. With ! it must fail.
func cmdTyped(ts *testscript.TestScript, neg bool, args []string) {
	re := regexp.MustCompile(args[1])
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		if line = strings.TrimSpace(line); re.MatchString(line) {
			if err := ts.Exec("sh", "-c", line); (err == nil) == neg {
				ts.Fatalf("%s: %v", line, err)
			}
			return
		}
	}
	ts.Fatalf("%s has no line with %s", args[0], args[1])
}

// keep VAR FILE keeps the last word of a file's first line in a variable.
func cmdKeep(ts *testscript.TestScript, _ bool, args []string) {
	line, _, _ := strings.Cut(ts.ReadFile(args[1]), "\n")
	words := strings.Fields(line)
	if len(words) == 0 {
		ts.Fatalf("%s is empty", args[1])
	}
	ts.Setenv(args[0], words[len(words)-1])
}

// mode PERM FILE… checks permissions.
func cmdMode(ts *testscript.TestScript, _ bool, args []string) {
	for _, f := range args[1:] {
		st, err := os.Stat(ts.MkAbs(f))
		ts.Check(err)
		if got := fmt.Sprintf("%04o", st.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s, want %s", f, got, args[0])
		}
	}
}
