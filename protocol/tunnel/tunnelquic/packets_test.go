package tunnelquic_test

import (
	"encoding/binary"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/packets"
	"github.com/sallyport/sallyport/protocol/tunnel/tunnelquic"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

func TestPackets(t *testing.T) {
	tunneltest.TestPackets(t, func(t *testing.T) (a, b tunnel.Session) {
		return simPair(t, tunnelquic.Config{})
	})
}

func TestPacketsReversed(t *testing.T) {
	tunneltest.TestPackets(t, func(t *testing.T) (a, b tunnel.Session) {
		b, a = simPair(t, tunnelquic.Config{})
		return a, b
	})
}

// TestLostPackets: packets that the path loses are lost, and hold up none of
// those behind them: nobody sends them again.
func TestLostPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoad(t)
		a, b := r.pair(t, newEnds(t))
		x, y := streamPair(t, a, b)
		from, to := packets.New(x), packets.New(y)
		defer from.Close()
		defer to.Close()
		start := time.Now()
		go func() {
			for i := range 100 {
				r.dead.Store(i >= 40 && i < 60)
				p := make([]byte, 1000)
				binary.BigEndian.PutUint64(p, uint64(i))
				from.WritePacket(p)
				time.Sleep(10 * time.Millisecond) // virtual
			}
		}()
		buf := make([]byte, packets.MaxPacket)
		count := 0
		for to.SetReadDeadline(start.Add(5 * time.Second)); ; count++ {
			if _, err := to.ReadPacket(buf); err != nil {
				break
			}
			i := int(binary.BigEndian.Uint64(buf))
			if late := time.Since(start) - time.Duration(i)*10*time.Millisecond; late > 2*latency {
				t.Errorf("packet %d took %v", i, late)
			}
			if i >= 40 && i < 60 {
				t.Errorf("packet %d was sent again", i)
			}
		}
		if count != 80 {
			t.Errorf("%d packets came", count)
		}
	})
}

// TestPacketsLoopback is once over real sockets: there the kernel's largest
// packets fit into datagrams once the path's size is known.
func TestPacketsLoopback(t *testing.T) {
	a, b := loopback(t, "127.0.0.1", nil)
	x, y := streamPair(t, a, b)
	from, to := packets.New(x), packets.New(y)
	defer from.Close()
	defer to.Close()
	buf := make([]byte, packets.MaxPacket)
	for round := range 100 {
		for _, size := range []int{148, 1280, 1452, 9000} {
			for try := 0; ; try++ {
				if err := from.WritePacket(make([]byte, size)); err != nil {
					t.Fatal(err)
				}
				to.SetReadDeadline(time.Now().Add(time.Second))
				n, err := to.ReadPacket(buf)
				if err == nil && n == size {
					break
				}
				if try == 3 {
					t.Fatalf("round %d: %d bytes of %d, %v", round, n, size, err)
				}
			}
		}
	}
	fits := 0
	for size := 1000; size <= 1452; size++ {
		if sent, _ := x.(interface {
			SendDatagram(p []byte) (bool, error)
		}).SendDatagram(make([]byte, size)); sent {
			fits = size
		}
	}
	t.Logf("the largest datagram is %d bytes", fits)
	if fits < 1163 {
		t.Error("not even what fits into the first packets")
	}
}

// BenchmarkPackets: the sizes are a handshake of WireGuard, what fits into a
// datagram, and what goes over the stream.
func BenchmarkPackets(b *testing.B) {
	for _, size := range []int{148, 1280, 1452} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			x, y := loopback(b, "127.0.0.1", nil)
			tunneltest.BenchmarkPackets(b, x, y, size)
		})
	}
}

func BenchmarkUDP(b *testing.B) {
	for _, size := range []int{148, 1280, 1452} {
		b.Run(fmt.Sprint(size), func(b *testing.B) { tunneltest.BenchmarkUDP(b, size) })
	}
}
