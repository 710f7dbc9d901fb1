package tunneltcp_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/packets"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltcp"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// A narrowConn takes bytes at some rate, as a full socket does. What was written
// at once arrives at once: yamux holds a mutex while it reads a frame.
type narrowConn struct {
	net.Conn
	bytesPerSecond *atomic.Int64 // 0: at once
}

func (c *narrowConn) Write(p []byte) (int, error) {
	if rate := c.bytesPerSecond.Load(); rate > 0 {
		time.Sleep(time.Duration(len(p)) * time.Second / time.Duration(rate)) // virtual
	}
	return c.Conn.Write(p)
}

func TestPackets(t *testing.T) {
	tunneltest.TestPackets(t, func(t *testing.T) (a, b tunnel.Session) { return tunneltest.Pair(t) })
}

func TestPacketsReversed(t *testing.T) {
	tunneltest.TestPackets(t, func(t *testing.T) (a, b tunnel.Session) {
		b, a = tunneltest.Pair(t)
		return a, b
	})
}

// TestLatePackets: on a path that is too slow, packets are lost and not late.
func TestLatePackets(t *testing.T) {
	for _, rate := range []int64{20_000, 125_000, 1_250_000} {
		t.Run(fmt.Sprint(rate), func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) { testLatePackets(t, rate) })
		})
	}
}

func testLatePackets(t *testing.T, rate int64) {
	const size, length = 1000, 10 * time.Second
	var narrow atomic.Int64
	a, b := wrappedPair(t, tunneltcp.Config{}, func(c net.Conn) net.Conn {
		if c.LocalAddr().(*net.TCPAddr).Port == 443 { // the relay's end
			return &narrowConn{c, &narrow}
		}
		return c
	})
	x, err := b.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	flood := packets.New(x)
	start := time.Now()
	narrow.Store(rate)
	go func() {
		p := make([]byte, size)
		for time.Since(start) < length {
			binary.BigEndian.PutUint64(p, uint64(time.Since(start)))
			flood.WritePacket(p)
			time.Sleep(size * time.Second / time.Duration(4*rate)) // virtual: four times the rate
		}
		narrow.Store(0)
		flood.Close()
	}()

	y, err := a.AcceptStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sink := packets.New(y)
	defer sink.Close()
	buf := make([]byte, size)
	var worst time.Duration
	for {
		_, err := sink.ReadPacket(buf)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		worst = max(worst, time.Since(start)-time.Duration(binary.BigEndian.Uint64(buf)))
	}
	received := sink.Stats().Received
	t.Logf("%d packets, the slowest took %v, %+v", received, worst, flood.Stats())
	if worst > time.Second {
		t.Errorf("a packet took %v", worst)
	}
	if line := uint64(rate) * uint64(length/time.Second) / size; received < line*3/4 {
		t.Errorf("%d packets came through, the line carries %d", received, line)
	}
}

func BenchmarkPackets(b *testing.B) {
	for _, size := range []int{148, 1280, 1452} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			l, d, addr := listen(b)
			x, err := d.Dial(b.Context(), addr)
			if err != nil {
				b.Fatal(err)
			}
			y, err := l.Accept(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			tunneltest.BenchmarkPackets(b, x, y, size)
		})
	}
}
