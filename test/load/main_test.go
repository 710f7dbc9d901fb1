//go:build linux

package load

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// lab is what all benchmarks share: made by TestMain, filled when first needed.
type lab struct {
	dir       string
	table     *table
	mu        sync.Mutex // guards started
	began     []*process
	home      func() (*home, error)
	binary    func() (string, error)
	peers     func() (*peers, error) // for all but the memory benchmarks
	crossings map[way]*crossing      // of the MQTT benchmarks, made when first needed
}

var theLab *lab

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		if err := play(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(runInLab(m))
}

func runInLab(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sp-load-") // short: unix sockets live in it
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	l := &lab{dir: dir, table: &table{}, crossings: map[way]*crossing{}}
	l.home = sync.OnceValues(l.openHome)
	l.binary = sync.OnceValues(l.build)
	l.peers = sync.OnceValues(func() (*peers, error) { return l.startPeers(everyPeer...) })
	theLab = l
	code := m.Run()
	l.stopAll()
	l.table.print(os.Stdout)
	return code
}

// build makes the program under test.
func (l *lab) build() (string, error) {
	file := filepath.Join(l.dir, "sallyport")
	out, err := exec.Command("go", "build", "-o", file, "github.com/sallyport/sallyport/cmd/sallyport").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the program under test: %w\n%s", err, out)
	}
	return file, nil
}

func inCI() bool { return os.Getenv("CI") == "true" }
