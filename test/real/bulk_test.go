package real

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

const memoryLimit = 100 << 20

// peakMemory is the process's largest resident set so far, in bytes.
func peakMemory(t *testing.T, p *process) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// TestBulk: bodies of any size pass both ways with flat memory.
func TestBulk(t *testing.T) {
	needTools(t, "curl")
	if runtime.GOOS != "linux" || raceEnabled {
		t.Skip("peak memory is read from /proc, and means nothing under the race detector")
	}
	size := int64(200 << 20)
	if large() {
		size = 2 << 30
	}
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			w := newWorld(t)
			agent := w.home("first", "--transport", transport, "--expose", "ha="+startHomeApp(t))
			phone := w.device("phone")
			for _, c := range []struct {
				what  string
				quick string // the transport with which it is part of the quick run
				size  int64
				up    bool
				want  string
				args  []string
			}{
				{"download over h2", "quic", size, false, "%d 200 2", []string{"--http2", "-o", os.DevNull, "-w", "%{size_download} %{http_code} %{http_version}"}},
				{"upload over h2", "tcp", size, true, "%d <nil>\n", []string{"--http2"}},
				{"upload over HTTP/1.1", "", 200 << 20, true, "%d <nil>\n", []string{"--http1.1", "-H", "Expect:"}},
			} {
				if c.quick != transport && !everything() {
					continue
				}
				url := w.url("ha", "/bytes?n="+strconv.FormatInt(c.size, 10))
				if c.up {
					url = w.url("ha", "/upload")
					c.args = append(c.args, "-T", sparseFile(t, w.file("body"), c.size))
				}
				args := w.curlArgs(&phone, append(c.args, "--max-time", "280", url)...)
				r := runFor(t, 5*time.Minute, "", args...)
				if want := fmt.Sprintf(c.want, c.size); r.code != 0 || r.stdout != want {
					t.Errorf("%s: want %q: %s", c.what, want, r)
				}
				t.Logf("%s: %d MB in %v, %.0f MB/s; peak memory relay %d MB, agent %d MB", c.what, c.size>>20, r.took.Round(time.Millisecond),
					float64(c.size)/1e6/r.took.Seconds(), peakMemory(t, w.relay)>>20, peakMemory(t, agent)>>20)
			}
			for who, p := range map[string]*process{"relay": w.relay, "agent": agent} {
				if peak := peakMemory(t, p); peak > memoryLimit {
					t.Errorf("the %s took %d MB, want less than %d", who, peak>>20, memoryLimit>>20)
				}
			}
		})
	}
}

// sparseFile is a file of that size that takes no room.
func sparseFile(t *testing.T, name string, size int64) string {
	t.Helper()
	writeFile(t, name, "")
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	return name
}
