package tunneltest

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

const firstWindow = 256 << 10

func testThousandStreams(t *testing.T, a, b tunnel.Session) {
	go echo(b)
	var wg sync.WaitGroup
	ready := make(chan struct{})
	for range 1000 {
		wg.Go(func() {
			st, err := a.OpenStream(t.Context())
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			defer st.Close()
			<-ready // all are open at once
			exchange(t, st, 1000)
		})
	}
	synctest.Wait()
	close(ready)
	wg.Wait()
}

func testLargeTransfer(t *testing.T, a, b tunnel.Session) {
	go echo(a)
	go echo(b)
	var wg sync.WaitGroup
	wg.Go(func() { roundTrip(t, a, 3<<20) })
	wg.Go(func() { roundTrip(t, b, 3<<20+1) })
	wg.Wait()
}

func testStalledReader(t *testing.T, a, b tunnel.Session) {
	x, y := open(t, a, b)
	if n := fill(t, x); n < firstWindow/2 || n > 2*firstWindow {
		t.Errorf("a reader that never reads was sent %d bytes", n)
	}
	go echo(b)
	for range 10 {
		roundTrip(t, a, 100_000)
	}
	x.Close()
	y.Close()
}

func testFiftyStalled(t *testing.T, a, b tunnel.Session) {
	var stalled []tunnel.Stream
	for range 50 {
		x, y := open(t, a, b)
		stalled = append(stalled, x, y)
		fill(t, x)
	}
	go echo(b)
	roundTrip(t, a, 1<<20)
	if n := b.Stats().Unread; n < 50*firstWindow/2 {
		t.Errorf("the streams are not stalled: %d bytes unread", n)
	}
	for _, st := range stalled {
		st.Reset(protocol.CodeAborted)
	}
}

// testWindowGrows stalls a stream after it was read fast.
func testWindowGrows(t *testing.T, a, b tunnel.Session) {
	x, y := open(t, a, b)
	const size = 8 << 20
	go func() {
		x.Write(make([]byte, size))
	}()
	if _, err := io.CopyN(io.Discard, y, size); err != nil {
		t.Fatal(err)
	}
	if n := fill(t, x); n < 4*firstWindow {
		t.Errorf("the window grew to %d bytes only", n)
	}
	x.Reset(protocol.CodeAborted)
	y.Reset(protocol.CodeAborted)
}

func testReadDeadline(t *testing.T, a, b tunnel.Session) {
	x, y := open(t, a, b)
	buf := make([]byte, 10)
	timesOut := func(what string) {
		t.Helper()
		if _, err := x.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", what, err)
		}
	}
	start := time.Now()
	x.SetReadDeadline(start.Add(3 * time.Second))
	timesOut("deadline ahead")
	if d := time.Since(start); d != 3*time.Second {
		t.Errorf("timed out after %v", d)
	}
	timesOut("still expired")
	x.SetDeadline(time.Now().Add(-time.Second))
	timesOut("deadline past")

	x.SetDeadline(time.Time{})
	go func() {
		time.Sleep(time.Second)
		x.SetReadDeadline(time.Unix(1, 0)) // interrupts
	}()
	timesOut("set during the read")

	x.SetReadDeadline(time.Time{})
	write(t, y, "intact")
	y.CloseWrite()
	readAll(t, x, "intact")
	x.Close()
	y.Close()
}

func testWriteDeadline(t *testing.T, a, b tunnel.Session) {
	x, y := open(t, a, b)
	data := randomBytes(4 * firstWindow)
	start := time.Now()
	x.SetWriteDeadline(start.Add(3 * time.Second))
	n, err := x.Write(data)
	if !errors.Is(err, os.ErrDeadlineExceeded) || n < firstWindow/2 || n >= len(data) {
		t.Fatalf("write: %d, %v", n, err)
	}
	if d := time.Since(start); d != 3*time.Second {
		t.Errorf("timed out after %v", d)
	}
	x.SetWriteDeadline(time.Time{})
	go func() {
		time.Sleep(time.Second)
		x.SetWriteDeadline(time.Unix(1, 0)) // interrupts
	}()
	m, err := x.Write(data[n:])
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("write: %d, %v", m, err)
	}
	n += m

	// What the writes said was taken is what arrives, and the rest can follow.
	x.SetDeadline(time.Time{})
	go func() {
		if _, err := x.Write(data[n:]); err != nil {
			t.Errorf("the rest: %v", err)
		}
		x.CloseWrite()
	}()
	readAll(t, y, string(data))
	x.Close()
	y.Close()
}

func testContexts(t *testing.T, a, b tunnel.Session) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := b.AcceptStream(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("accept: %v", err)
	}
	if _, err := a.OpenStream(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("open: %v", err)
	}
	x, y := open(t, a, b) // the stream of the failed OpenStream is not in the way
	x.Close()
	y.Close()
}

func testStats(t *testing.T, a, b tunnel.Session) {
	for _, s := range []tunnel.Session{a, b} {
		p := s.Peer()
		if p.ID == "" || p.Cert == nil || p.Addr == nil || p.Transport == "" {
			t.Errorf("peer: %+v", p)
		}
	}
	x, y := open(t, a, b)
	write(t, x, "twelve bytes")
	time.Sleep(time.Second)
	if s := b.Stats(); s.Unread != 12 || s.BytesIn != 13 || s.Streams != 1 || !s.BlockedAt.IsZero() {
		t.Errorf("receiver: %+v", s)
	}
	fill(t, x)
	go x.Write([]byte("waits for the reader"))
	synctest.Wait()
	if s := a.Stats(); s.BytesOut < firstWindow/2 || s.RTT <= 0 || s.Streams != 1 || !s.BlockedAt.IsZero() {
		t.Errorf("sender: %+v (a stalled reader is not a stalled path)", s)
	}
	x.Reset(protocol.CodeAborted)
	y.Close()
}

// TestBudget checks that unread bytes stay within the budget of a session.
// pair returns sessions whose configuration sets it; a few MiB suffice.
func TestBudget(t *testing.T, budget int64, pair func(t *testing.T) (a, b tunnel.Session)) {
	Bubble(t, func(t *testing.T) {
		a, b := pair(t)
		var streams []tunnel.Stream
		for range 2 * budget / firstWindow {
			x, y := open(t, a, b)
			streams = append(streams, x, y)
			x.SetWriteDeadline(time.Now().Add(time.Second))
			x.Write(make([]byte, firstWindow))
			if n := b.Stats().Unread; n > budget {
				t.Errorf("%d bytes unread, the budget is %d", n, budget)
			}
		}
		// The oldest paid, the newest still holds what came.
		_, err := streams[0].Write([]byte("x"))
		wantReset(t, "write to the longest-stalled", err, protocol.CodeOverload, true)
		_, err = streams[1].Read(make([]byte, 1))
		wantReset(t, "read from the longest-stalled", err, protocol.CodeOverload, false)
		if _, err := streams[len(streams)-1].Read(make([]byte, 1)); err != nil {
			t.Errorf("read from the newest: %v", err)
		}
		go echo(b)
		roundTrip(t, a, 1<<20)
		for _, st := range streams {
			st.Close()
		}
	})
}
