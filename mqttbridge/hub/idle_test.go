package hub

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

const idleConnections = 5000

// BenchmarkIdle says how much memory (RSS) a connection costs that has one
// subscription and nothing to do: over pipes, where both ends are counted, and
// over TCP and TLS 1.3 with client certificates and clients in another process. Run it with
// -benchtime 1x.
func BenchmarkIdle(b *testing.B) {
	b.Run("pipe", func(b *testing.B) {
		for b.Loop() {
			w := newBenchWorld(b)
			before := residentKB(b)
			for i := range idleConnections {
				near, far := net.Pipe()
				go w.hub.ServeConn(context.Background(), far, Identity{Name: fmt.Sprint("device", i)})
				greetIdle(b, near, bufio.NewReaderSize(near, 16), i)
				b.Cleanup(func() { near.Close() })
			}
			b.ReportMetric(float64(residentKB(b)-before)/idleConnections, "KB/conn")
			w.stop()
		}
	})
	b.Run("tls", func(b *testing.B) {
		for b.Loop() {
			w := newBenchWorld(b)
			h := &tlsHub{world: w, dir: b.TempDir()}
			h.authority()
			h.certificate("anna")
			l, err := tls.Listen("tcp", "127.0.0.1:0", h.serverTLS())
			if err != nil {
				b.Fatal(err)
			}
			go func() {
				for i := 0; ; i++ {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					go w.hub.ServeConn(context.Background(), conn, Identity{Name: fmt.Sprint("device", i)})
				}
			}()
			before := residentKB(b)
			cmd := exec.Command(os.Args[0], "-test.run=^TestIdleClients$")
			cmd.Env = append(os.Environ(), "HUB_IDLE="+l.Addr().String(), "HUB_IDLE_CERT="+filepath.Join(h.dir, "anna"))
			cmd.Stderr = os.Stderr
			in, _ := cmd.StdinPipe()
			out, _ := cmd.StdoutPipe()
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil || strings.TrimSpace(line) != "ready" {
				b.Fatalf("%q %v", line, err)
			}
			b.ReportMetric(float64(residentKB(b)-before)/idleConnections, "KB/conn")
			if n := w.hub.Status().Connections; n != idleConnections {
				b.Errorf("%d connections", n)
			}
			in.Close()
			l.Close()
			cmd.Wait()
			w.stop()
		}
	})
}

// TestIdleClients is the other process of BenchmarkIdle.
func TestIdleClients(t *testing.T) {
	addr := os.Getenv("HUB_IDLE")
	if addr == "" {
		t.Skip("for BenchmarkIdle")
	}
	path := os.Getenv("HUB_IDLE_CERT")
	cert, err := tls.LoadX509KeyPair(path+".pem", path+".key")
	if err != nil {
		t.Fatal(err)
	}
	for range idleConnections {
		conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		greetIdle(t, conn, bufio.NewReaderSize(conn, 16), -1)
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
}

func newBenchWorld(b *testing.B) *world {
	b.Helper()
	w := &world{path: filepath.Join(b.TempDir(), "mqtt.db"), grants: map[string]Grants{}}
	w.tb = b
	w.start()
	b.Cleanup(func() { w.stop() })
	return w
}

// greetIdle connects and subscribes; the client id is assigned when i is < 0.
func greetIdle(tb testing.TB, conn net.Conn, r *bufio.Reader, i int) {
	tb.Helper()
	id := ""
	if i >= 0 {
		id = fmt.Sprint("device", i)
	}
	for _, pk := range []packets.Packet{
		{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 5, Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, Keepalive: 600, ClientIdentifier: id}},
		{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, ProtocolVersion: 5, PacketID: 1, Filters: packets.Subscriptions{filter("home/kitchen/#", 1)}},
	} {
		if _, err := conn.Write(mustEncode(pk)); err != nil {
			tb.Fatal(err)
		}
		if ack, err := readPacket(r, 5); err != nil || ack.ReasonCode != 0 {
			tb.Fatalf("%v %#x", err, ack.ReasonCode)
		}
	}
}

// residentKB is what this process has in memory, after giving back what it can.
func residentKB(tb testing.TB) int {
	tb.Helper()
	for range 3 {
		debug.FreeOSMemory()
		<-time.After(100 * time.Millisecond)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		tb.Skip("no /proc here")
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	fields := strings.Fields(rest)
	kb, err := strconv.Atoi(fields[0])
	if err != nil {
		tb.Fatal(err)
	}
	return kb
}
