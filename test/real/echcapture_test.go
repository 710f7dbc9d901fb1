package real

import (
	"bytes"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// A sniffer is what somebody on the way sees of the relay's port.
type sniffer struct {
	t    *testing.T
	file string
	p    *process
}

// tap begins to listen.
func (w *world) tap(t *testing.T, name string) *sniffer {
	t.Helper()
	needTools(t, "tshark")
	needRoot(t)
	c := &sniffer{t: t, file: w.file(name + ".pcapng")}
	c.p = start(t, "tshark", "tshark", "-Q", "-i", "lo", "-f", "port "+w.port(), "-w", c.file)
	// It captures when its own packets are in the file.
	eventually(t, 20*time.Second, "tshark captures", func() bool {
		if !c.p.running() {
			lack(t, "tshark cannot capture on loopback: %s", c.p.out)
		}
		if conn, err := net.Dial("tcp", w.listen); err == nil {
			conn.Close()
		}
		st, err := os.Stat(c.file)
		return err == nil && st.Size() > 1000
	})
	return c
}

// end returns the file and the server names in it that tshark can read.
func (c *sniffer) end() (raw []byte, names string) {
	c.t.Helper()
	time.Sleep(500 * time.Millisecond) // dumpcap writes what it has a few times a second
	c.p.stop()
	raw, err := os.ReadFile(c.file)
	if err != nil {
		c.t.Fatal(err)
	}
	_, port, _ := strings.Cut(c.p.cmd.Args[5], " ")
	return raw, mustRun(c.t, "tshark", "-Q", "-r", c.file, "-d", "tcp.port=="+port+",tls", "-Y", "tls.handshake.extensions_server_name",
		"-T", "fields", "-e", "tls.handshake.extensions_server_name")
}

// hides says whether the capture shows the public name and none of the others.
func (c *sniffer) hides(hidden ...string) {
	c.t.Helper()
	raw, seen := c.end()
	if !strings.Contains(seen, host(echPublic)) {
		c.t.Errorf("the capture does not hold the public name: %q", seen)
	}
	for _, name := range hidden {
		if strings.Contains(seen, name) || bytes.Contains(bytes.ToLower(raw), []byte(name)) {
			c.t.Errorf("the capture of %d bytes tells of %s; server names %q", len(raw), name, seen)
		}
	}
}
