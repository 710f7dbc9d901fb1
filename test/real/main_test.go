package real

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// binary is the program under test, built once by TestMain.
var binary string

func TestMain(m *testing.M) {
	if addr := os.Getenv(helperEnv); addr != "" {
		// This process is a home app in a namespace of its own.
		if err := serveHelper(addr); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sallyport-real-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "sallyport")
	args := []string{"build", "-o", binary}
	if raceEnabled {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "github.com/sallyport/sallyport/cmd/sallyport")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the program under test: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// inCI: everything runs, and what is missing is a failure.
func inCI() bool { return os.Getenv("CI") == "true" }

// everything: the slow tests too.
func everything() bool { return inCI() || os.Getenv("SALLYPORT_REAL") == "1" }

// large: 2 GB in the memory test.
func large() bool { return inCI() || os.Getenv("SALLYPORT_LARGE") == "1" }

// needTools skips the test when a tool is absent; in CI it fails.
func needTools(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			lack(t, "%s is not installed", tool)
		}
	}
}

// needRoot skips the test without root; in CI it fails.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		lack(t, "network namespaces need root")
	}
}

func lack(t *testing.T, format string, args ...any) {
	t.Helper()
	if inCI() {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// slow skips the test in a quick run, and under the race detector, where it
// would be slower still and shows nothing that the quick part does not.
func slow(t *testing.T) {
	t.Helper()
	if !everything() || raceEnabled {
		t.Skip("slow: runs with CI=true or SALLYPORT_REAL=1, without -race")
	}
}
