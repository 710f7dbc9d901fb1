package real

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// deployDir holds what operators copy.
var deployDir = filepath.Join("..", "..", "deploy")

func TestExamplesValidate(t *testing.T) {
	examples, err := filepath.Glob(filepath.Join(deployDir, "*.example.yaml"))
	if err != nil || len(examples) < 2 {
		t.Fatalf("examples %q, %v", examples, err)
	}
	for _, file := range examples {
		out := mustRun(t, binary, "validate", file)
		kind := strings.TrimSuffix(filepath.Base(file), ".example.yaml")
		if !strings.Contains(out, "fine ("+kind+")") {
			t.Errorf("%s is taken for another's: %s", file, out)
		}
	}
}

// TestUnitsHardened: an exposure of 1.5 or less ("OK"), of 10.
func TestUnitsHardened(t *testing.T) {
	needTools(t, "systemd-analyze")
	units, err := filepath.Glob(filepath.Join(deployDir, "systemd", "*.service"))
	if err != nil || len(units) < 2 {
		t.Fatalf("units %q, %v", units, err)
	}
	for _, unit := range units {
		r := run(t, "", "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=15", unit)
		if strings.Contains(r.stderr, "unrecognized option") {
			lack(t, "this systemd-analyze has no --offline")
		}
		if r.code != 0 {
			t.Errorf("%s: %s", unit, r)
		}
		if i := strings.Index(r.stdout, "Overall exposure"); i >= 0 {
			t.Log(strings.TrimSpace(r.stdout[i:]))
		}
	}
}

// TestShellHelp: the shells and the manual's reader take what we print.
func TestShellHelp(t *testing.T) {
	t.Run("bash completion", func(t *testing.T) {
		needTools(t, "bash")
		script := mustRun(t, binary, "completion", "bash")
		if r := run(t, script, "bash", "-n"); r.code != 0 || r.stderr != "" {
			t.Error(r)
		}
		// It completes: what bash would offer after "sallyport dev".
		r := run(t, script+`
COMP_WORDS=(`+binary+` dev); COMP_CWORD=1
_sallyport; echo "${COMPREPLY[@]}"`, "bash")
		if strings.TrimSpace(r.stdout) != "device" {
			t.Errorf("after \"sallyport dev\" bash offers %s", r)
		}
		r = run(t, script+`
COMP_WORDS=(`+binary+` relay ""); COMP_CWORD=2
_sallyport; echo "${COMPREPLY[@]}"`, "bash")
		for _, want := range []string{"up", "token", "ca"} {
			if !strings.Contains(" "+r.stdout, " "+want) {
				t.Errorf("after \"sallyport relay \" bash does not offer %s: %s", want, r)
			}
		}
	})
	for shell, check := range map[string][]string{"zsh": {"zsh", "-n"}, "fish": {"fish", "-n"}} {
		t.Run(shell+" completion", func(t *testing.T) {
			script := mustRun(t, binary, "completion", shell)
			if _, err := exec.LookPath(shell); err != nil {
				t.Skipf("%s is not installed", shell) // in CI too: bash is the one that must be there
			}
			file := filepath.Join(t.TempDir(), "completion")
			writeFile(t, file, script)
			if r := run(t, "", append(check, file)...); r.code != 0 {
				t.Error(r)
			}
		})
	}
	t.Run("manual", func(t *testing.T) {
		needTools(t, "groff")
		page := mustRun(t, binary, "man")
		r := run(t, page, "groff", "-man", "-Tutf8", "-ww", "-P-c")
		if r.code != 0 || strings.Contains(r.stderr, "error") {
			t.Error(r)
		}
		for _, want := range []string{"sallyport", "relay", "agent", "device", "connect"} {
			if !strings.Contains(strings.ToLower(r.stdout), want) {
				t.Errorf("the manual does not say %q", want)
			}
		}
	})
}

// TestDemo is README's first command.
func TestDemo(t *testing.T) {
	slow(t)
	out := mustRun(t, binary, "demo", "--once")
	if !strings.Contains(out, "steps held") {
		t.Error(out)
	}
}
