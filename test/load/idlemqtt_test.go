//go:build linux

package load

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/relay/edge"
)

// BenchmarkIdleMQTT opens connections that then rest: memory of the relay for
// each, as it is and once garbage was collected.
//
//	mqtt        a device with one subscription at QoS 1 and a clean session
//	tcp         a visitor of a tcp:// service of an agent: TLS and a stream
//	door alone  TLS with a client certificate at the relay's edge and door, and nothing behind
func BenchmarkIdleMQTT(b *testing.B) {
	for _, kind := range []string{"door alone", "mqtt", "tcp"} {
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				idleMQTT(b, kind)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

const (
	connectionsPerDevice  = 10   // that the hub lets a device have
	connectionsPerAddress = 1500 // the relay takes 2,000
	streamsPerAgent       = 900  // it takes 1,000
)

func idleMQTT(b *testing.B, kind string) {
	n := size(5000, 300)
	if kind == "tcp" {
		n = min(n, streamsPerAgent)
	}
	moreFiles(b, uint64(n)+1000)
	dir, err := os.MkdirTemp(theLab.dir, "idle-")
	if err != nil {
		b.Fatal(err)
	}
	open, proc, stop := openIdle(b, kind, dir)
	defer stop()
	var mu sync.Mutex // guards conns
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	fill := func(from, to int) {
		const at = 32
		err := together(at, func(k int) error {
			for i := from + k; i < to; i += at {
				c, err := open(b.Context(), i)
				if err != nil {
					return fmt.Errorf("connection %d: %w", i, err)
				}
				mu.Lock()
				conns = append(conns, c)
				mu.Unlock()
			}
			return nil
		})
		if err != nil {
			b.Fatalf("%v\n%s", err, proc.said())
		}
	}
	fill(0, 16) // code and first buffers
	tidied := settled(b, proc, true)
	before := settled(b, proc, false)
	fill(16, 16+n)
	as := settled(b, proc, false)
	after := settled(b, proc, true)
	kib := func(from, to int64) float64 { return float64(to-from) / 1024 / float64(n) }
	b.ReportMetric(kib(before, as), "KiB/conn")
	b.ReportMetric(kib(tidied, after), "KiB/conn-tidied")
	theLab.table.add("Memory: KiB of the relay per idle connection (when garbage was collected)", fmt.Sprintf("%d connections", size(5000, 300)),
		&road{service: "TLS 1.3, client certificate", peer: kind}, kib(before, as), "(%.1f)", kib(tidied, after))
}

// openIdle starts what kind needs and returns how one connection is made.
func openIdle(b *testing.B, kind, dir string) (open func(context.Context, int) (net.Conn, error), proc *process, stop func()) {
	b.Helper()
	h, err := theLab.home()
	if err != nil {
		b.Fatal(err)
	}
	if kind == "door alone" {
		proc, addr, err := theLab.startDoor(h, dir)
		if err != nil {
			b.Fatal(err)
		}
		return func(ctx context.Context, i int) (net.Conn, error) {
			d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: fromAddress(i)}, Config: h.visitorTLS("mqtt." + domain)}
			return d.DialContext(ctx, "tcp", addr)
		}, proc, proc.stop
	}
	x := theLab.newCrossing(way{peer: "quic"})
	if err := x.startHub(dir, "", true); err != nil {
		b.Fatal(err)
	}
	proc = x.relay.relay
	if kind == "mqtt" {
		return func(ctx context.Context, i int) (net.Conn, error) {
			m, err := x.atHub(ctx, fromAddress(i).IP.String(), fmt.Sprintf("idle%d", i/connectionsPerDevice), fmt.Sprintf("-%d", i), false)
			if err != nil {
				return nil, err
			}
			return m.c, m.subscribe(fmt.Sprintf("%sidle/%d", prefix, i), 1)
		}, proc, proc.stop
	}
	p := &peers{procs: []*process{proc}}
	if err := x.relay.startAgent(p, h, "quic"); err != nil {
		b.Fatal(err)
	}
	r := p.road("raw", "quic")
	return func(ctx context.Context, _ int) (net.Conn, error) {
		c, err := r.dial(ctx)
		if err != nil {
			return nil, err
		}
		return c, (&rawVisitor{c: c, buf: make([]byte, 32)}).small()
	}, proc, p.stop
}

// fromAddress spreads connections over addresses of this machine.
func fromAddress(i int) *net.TCPAddr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i/connectionsPerAddress))}
}

// settled returns a process's memory when that has stopped to move. tidy has the
// garbage collected first, which only processes of the test binary know.
func settled(b *testing.B, p *process, tidy bool) int64 {
	b.Helper()
	if tidy {
		if err := p.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			b.Fatal(err)
		}
	}
	last := int64(0)
	for range 50 {
		time.Sleep(size(restTime, restTime/3))
		now, err := p.rss()
		if err != nil {
			b.Fatal(err)
		}
		if d := now - last; d < now/200 && -d < now/200 {
			return now
		}
		last = now
	}
	return last
}

// moreFiles lets this process, and those that it starts, open n files.
func moreFiles(b *testing.B, n uint64) {
	b.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	if limit.Cur >= n {
		return
	}
	limit.Cur, limit.Max = n, max(limit.Max, n)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Skipf("%d open files are needed (ulimit -n): %v", n, err)
	}
}

// startDoor runs playDoor.
func (l *lab) startDoor(h *home, dir string) (*process, string, error) {
	if err := h.writePEM(dir); err != nil {
		return nil, "", err
	}
	addr, file, err := inherit()
	if err != nil {
		return nil, "", err
	}
	defer file.Close()
	p, err := l.startSelf("door", "door", []*os.File{file}, dataEnv+"="+dir)
	return p, addr, err
}

// playDoor is the relay's edge and door, with a host that takes everything in
// and does nothing, on descriptor 3.
func playDoor(ctx context.Context, dir string) error {
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.pem"))
	if err != nil {
		return err
	}
	roots, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	site := &door.Site{
		Host: "mqtt." + domain, Policy: "idle", Mode: door.Require, RawALPN: "mqtt", Handler: http.NotFoundHandler(),
		Certificate: func(string) (*tls.Certificate, error) { return &cert, nil },
		Raw: func(_ context.Context, c tunnel.Conn, _ door.Visitor) {
			defer c.Close()
			for buf := make([]byte, 1); ; {
				if _, err := c.Read(buf); err != nil {
					return
				}
			}
		},
	}
	d, err := door.New(door.Config{
		Lookup: func(string) (*door.Site, bool) { return site, true }, ClientCAs: pool,
		Check: func(*x509.Certificate, string, time.Time) (door.Device, string) {
			return door.Device{ID: "idle", Name: "idle"}, ""
		},
	})
	if err != nil {
		return err
	}
	hosts, err := names.NewTable(map[string]edge.Target{
		site.Host: edge.TargetFunc(func(ctx context.Context, c *edge.Conn) { d.ServeConn(ctx, c) }),
	})
	if err != nil {
		return err
	}
	router := edge.NewRouter()
	router.Swap(&edge.Snapshot{Hosts: hosts, MQTTName: site.Host})
	return (&edge.Server{Router: router}).Serve(ctx, listener)
}
