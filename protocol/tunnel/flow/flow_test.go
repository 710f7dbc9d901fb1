package flow

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

func TestBuffer(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var b buffer
	var want, got bytes.Buffer
	next := byte(0)
	for range 20_000 {
		switch r.IntN(5) {
		case 0, 1: // fill, with a read in between as the pump allows it
			space := b.space()
			n := r.IntN(min(len(space), 1+r.IntN(40_000))) + 1
			p := make([]byte, r.IntN(3000))
			got.Write(p[:b.read(p)])
			for i := range n {
				space[i] = next
				next++
			}
			want.Write(space[:n])
			b.filled(n)
		case 2, 3:
			p := make([]byte, r.IntN(50_000))
			got.Write(p[:b.read(p)])
		case 4:
			if r.IntN(200) == 0 {
				if n := b.drop(); n != want.Len()-got.Len() {
					t.Fatalf("dropped %d, %d were in it", n, want.Len()-got.Len())
				}
				want.Reset()
				got.Reset()
			}
		}
		if b.len != want.Len()-got.Len() {
			t.Fatalf("length %d, want %d", b.len, want.Len()-got.Len())
		}
	}
	p := make([]byte, b.len)
	got.Write(p[:b.read(p)])
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Error("what came out is not what went in")
	}
	if b.head != nil || b.tail != nil {
		t.Error("an empty buffer holds on to chunks")
	}
}

func TestWindow(t *testing.T) {
	const rtt = 100 * time.Millisecond
	start := time.Unix(1000, 0)
	// read consumes ten windows evenly, one each pause, and returns the last size.
	read := func(pause time.Duration) int64 {
		w := window{size: InitialWindow, granted: InitialWindow, at: start}
		now := start
		for range 10 {
			for range 16 {
				now = now.Add(pause / 16)
				if due, want := w.consume(int(w.size/16), now, rtt); due {
					if w.granted-w.consumed > w.size/8*7 {
						t.Fatalf("grant with %d of %d left", w.granted-w.consumed, w.size)
					}
					w.grant(want)
				}
			}
			if w.granted < w.consumed {
				t.Fatal("consumed more than granted")
			}
		}
		return w.size
	}
	if got := read(rtt); got != MaxWindow {
		t.Errorf("a fast reader got a window of %d", got)
	}
	if got := read(5 * rtt); got != InitialWindow {
		t.Errorf("a slow reader got a window of %d", got)
	}
}

func TestLedger(t *testing.T) {
	l := ledger{budget: 16 << 20}
	if got := l.grow(8 << 20); got != 8<<20 {
		t.Errorf("got %d", got)
	}
	if got := l.grow(8 << 20); got != 4<<20 {
		t.Errorf("got %d, want what is left of three quarters", got)
	}
	if got := l.grow(1); got != 0 {
		t.Errorf("got %d, nothing is left", got)
	}
	l.giveBack(12 << 20)
	if l.growth != 0 {
		t.Errorf("growth is %d", l.growth)
	}
}

// TestReclaim: a stream that rests gives its growth back to one that moves.
func TestReclaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Session{ledger: ledger{budget: 16 << 20}, streams: map[uint64]*Stream{}}
		add := func(id uint64) *Stream {
			st := &Stream{s: s, id: id}
			st.in.window = window{size: InitialWindow, granted: InitialWindow}
			st.in.stalled = time.Now()
			s.streams[id] = st
			return st
		}
		rests, moves := add(1), add(2)
		rests.in.window.grant(s.ledger.grow(12 << 20))
		time.Sleep(restTime / 2)
		moves.in.stalled = time.Now()
		moves.grant(1<<20, time.Now())
		if moves.in.window.size != InitialWindow {
			t.Errorf("grew to %d while the other stream was active", moves.in.window.size)
		}
		time.Sleep(restTime)
		moves.in.stalled = time.Now()
		moves.grant(1<<20, time.Now())
		if moves.in.window.size != InitialWindow+1<<20 || rests.in.window.size != InitialWindow {
			t.Errorf("sizes %d and %d", moves.in.window.size, rests.in.window.size)
		}
	})
}

func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d deadline
		expired := func() bool { synctest.Wait(); return isClosed(d.wait()) }
		if expired() {
			t.Error("expired before it was set")
		}
		d.set(time.Now().Add(time.Second))
		ch := d.wait()
		d.set(time.Now().Add(2 * time.Second))
		time.Sleep(time.Second)
		if expired() {
			t.Error("the replaced time counted")
		}
		time.Sleep(time.Second)
		if !expired() || !isClosed(ch) {
			t.Error("not expired, or who waited before was not told")
		}
		d.set(time.Time{})
		if expired() {
			t.Error("expired after it was cleared")
		}
		d.set(time.Now().Add(-time.Second))
		d.set(time.Now().Add(-time.Second))
		if !expired() {
			t.Error("the past is not expired")
		}
		d.set(time.Now().Add(time.Hour))
		d.stop()
		d.set(time.Now().Add(time.Second))
		time.Sleep(time.Second)
		if !expired() {
			t.Error("set after stop did nothing")
		}
	})
}
