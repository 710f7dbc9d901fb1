package tunneltest

import (
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/packets"
)

// BenchmarkPackets measures packets of one size from a to b, one an operation,
// with 32 on their way. It reports what was lost, and the processor time of both
// ends together.
func BenchmarkPackets(tb *testing.B, a, b tunnel.Session, size int) {
	x, err := a.OpenStream(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := x.Write([]byte{'!'}); err != nil {
		tb.Fatal(err)
	}
	y, err := b.AcceptStream(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := io.ReadFull(y, make([]byte, 1)); err != nil {
		tb.Fatal(err)
	}
	from, to := packets.New(x), packets.New(y)
	defer from.Close()
	defer to.Close()
	benchPackets(tb, size, from.WritePacket, to.ReadPacket, to.SetReadDeadline)
}

// BenchmarkUDP is BenchmarkPackets without a tunnel: two sockets on loopback.
func BenchmarkUDP(tb *testing.B, size int) {
	to, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	defer to.Close()
	from, err := net.DialUDP("udp4", nil, to.LocalAddr().(*net.UDPAddr))
	if err != nil {
		tb.Fatal(err)
	}
	defer from.Close()
	write := func(p []byte) error {
		_, err := from.Write(p)
		return err
	}
	benchPackets(tb, size, write, to.Read, to.SetReadDeadline)
}

func benchPackets(tb *testing.B, size int, write func([]byte) error, read func([]byte) (int, error), deadline func(time.Time) error) {
	onTheWay := make(chan struct{}, 32)
	done := make(chan int)
	go func() {
		buf, lost := make([]byte, packets.MaxPacket), 0
		for {
			deadline(time.Now().Add(200 * time.Millisecond))
			_, err := read(buf)
			switch {
			case err == nil:
				if _, more := <-onTheWay; !more {
					done <- lost
					return
				}
			case os.IsTimeout(err):
				for range len(onTheWay) {
					<-onTheWay
					lost++
				}
				select {
				case _, more := <-onTheWay:
					if !more {
						done <- lost
						return
					}
					lost++
				default:
				}
			default:
				tb.Error(err)
				return
			}
		}
	}()
	p := make([]byte, size)
	tb.SetBytes(int64(size))
	tb.ReportAllocs()
	cpu, count := cpuTime(), 0
	for tb.Loop() {
		onTheWay <- struct{}{}
		if err := write(p); err != nil {
			tb.Fatal(err)
		}
		count++
	}
	close(onTheWay)
	lost := <-done
	cpu = cpuTime() - cpu
	tb.ReportMetric(float64(count)/tb.Elapsed().Seconds(), "packets/s")
	tb.ReportMetric(100*float64(lost)/float64(count), "%lost")
	if cpu > 0 {
		tb.ReportMetric(cpu.Seconds()/(float64(count)*float64(size)/1e9), "cpu-s/GB")
	}
}
