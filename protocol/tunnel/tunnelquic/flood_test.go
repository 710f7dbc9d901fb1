package tunnelquic_test

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/packets"
)

// A bottleneck delays packets as a line of some rate does, and drops those that
// find a full queue.
type bottleneck struct {
	bytesPerSecond int
	queue          time.Duration

	mu   sync.Mutex           // guards busy
	busy map[string]time.Time // by destination: when its line is free
}

// wait returns how long a packet queues. Full: it is lost.
func (b *bottleneck) wait(p simnet.Packet) (wait time.Duration, full bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now, to := time.Now(), p.To.String()
	if b.busy[to].Before(now) {
		b.busy[to] = now
	}
	wait = b.busy[to].Sub(now)
	if wait > b.queue {
		return 0, true
	}
	b.busy[to] = b.busy[to].Add(time.Duration(len(p.Data)) * time.Second / time.Duration(b.bytesPerSecond))
	return wait, false
}

// narrowRoad is newRoad with a bottleneck in each direction.
func narrowRoad(t *testing.T, b *bottleneck) *road {
	t.Helper()
	b.busy = map[string]time.Time{}
	r := &road{}
	n := &simnet.Simnet{Router: r}
	line := simnet.LinkSettings{MTU: 1500}
	settings := simnet.NodeBiDiLinkSettings{Downlink: line, Uplink: line, LatencyFunc: func(p simnet.Packet) time.Duration {
		wait, full := b.wait(p)
		if full {
			return time.Hour // lost
		}
		return latency + wait
	}}
	r.home = n.NewEndpoint(net.UDPAddrFromAddrPort(homeAddr), settings)
	r.relay = n.NewEndpoint(net.UDPAddrFromAddrPort(relayAddr), settings)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.home.Close()
		r.relay.Close()
		n.Close()
	})
	return r
}

// streamPair returns both ends of a new stream, over which one byte has gone.
func streamPair(t testing.TB, a, b tunnel.Session) (x, y tunnel.Stream) {
	t.Helper()
	x, err := a.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Write([]byte{'!'}); err != nil {
		t.Fatal(err)
	}
	if y, err = b.AcceptStream(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(y, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return x, y
}

// TestFlood: more datagrams than the path takes, of whatever size, leave the
// streams their share, and get theirs.
func TestFlood(t *testing.T) {
	for _, c := range []struct {
		rate, size int
		bulk       bool
	}{
		{250_000, 30, true},
		{250_000, 120, true},
		{250_000, 380, true},
		{250_000, 580, true},
		{250_000, 1000, true},
		{250_000, 1100, true},
		{250_000, 1161, true},
		{250_000, 380, false},
		{250_000, 1161, false},
		{32_000, 570, false},
		{1_000_000, 1161, true},
	} {
		t.Run(fmt.Sprintf("%d B/s, %d bytes, bulk %v", c.rate, c.size, c.bulk), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testFlood(t, c.rate, c.size, c.bulk) })
		})
	}
}

func testFlood(t *testing.T, rate, size int, bulk bool) {
	const length = 6 * time.Second
	a, b := narrowRoad(t, &bottleneck{bytesPerSecond: rate, queue: 100 * time.Millisecond}).pair(t, newEnds(t))
	var all sync.WaitGroup

	near, far := streamPair(t, b, a)
	flood, sink := packets.New(near), packets.New(far)
	all.Go(func() {
		for flood.WritePacket(make([]byte, size)) == nil {
			time.Sleep(time.Duration(size) * time.Second / time.Duration(4*rate)) // virtual: four times the rate
		}
	})
	all.Go(func() {
		buf := make([]byte, packets.MaxPacket)
		for {
			if _, err := sink.ReadPacket(buf); err != nil {
				return
			}
		}
	})

	from, to := streamPair(t, b, a)
	var carried int64
	if bulk {
		all.Go(func() { io.Copy(from, zeros{}) })
		all.Go(func() { carried, _ = io.Copy(io.Discard, struct{ io.Reader }{to}) })
	}

	ping, pong := streamPair(t, b, a)
	all.Go(func() { io.Copy(pong, struct{ io.Reader }{pong}) })
	var worst time.Duration
	for start := time.Now(); time.Since(start) < length; {
		asked := time.Now()
		ping.SetDeadline(asked.Add(5 * time.Second)) // what the control stream allows
		ping.Write(make([]byte, 64))
		if _, err := io.ReadFull(ping, make([]byte, 64)); err != nil {
			t.Errorf("ping: %v", err)
			break
		}
		worst = max(worst, time.Since(asked))
		time.Sleep(100 * time.Millisecond) // virtual
	}

	received := int64(sink.Stats().Received) * int64(size)
	for _, s := range []tunnel.Stream{near, far, from, to, ping, pong} {
		s.Reset(protocol.CodeAborted)
	}
	all.Wait()
	t.Logf("worst ping %v, datagrams %d bytes, bulk %d bytes, %+v", worst, received, carried, flood.Stats())
	total := int64(rate) * int64(length/time.Second)
	if received < total/4 {
		t.Errorf("the flow got %d bytes of %d", received, total)
	}
	if bulk && carried < total/4 {
		t.Errorf("bulk got %d bytes of %d", carried, total)
	}
}

// zeros is an endless transfer.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
