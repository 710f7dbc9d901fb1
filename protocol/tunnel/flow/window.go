package flow

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

const (
	restTime = 10 * time.Second      // a stream that reads nothing for so long gives its growth back
	fastRead = 10 * time.Millisecond // half a window in less is fast, however short the round trip
)

// A window is the receiver's account of one stream's credit. Grants are made
// for every eighth of it: with larger steps the sender would wait for them,
// as the window less one step is what it can have on its way.
type window struct {
	received int64
	consumed int64
	granted  int64     // the peer may send up to here
	size     int64     // granted − consumed right after a grant
	epoch    int64     // consumed when the measuring of the reader's speed began
	at       time.Time // when that was
}

// consume counts n bytes as read. due: it is time for a grant; want: by how
// much the window should grow with it.
func (w *window) consume(n int, now time.Time, rtt time.Duration) (due bool, want int64) {
	w.consumed += int64(n)
	if w.granted-w.consumed > w.size/8*7 {
		return false, 0
	}
	if w.consumed-w.epoch >= w.size/2 {
		if now.Sub(w.at) < max(2*rtt, fastRead) {
			want = min(w.size, MaxWindow-w.size)
		}
		w.epoch, w.at = w.consumed, now
	}
	return true, want
}

// grant makes the next limit.
func (w *window) grant(grown int64) int64 {
	w.size += grown
	w.granted = max(w.granted, w.consumed+w.size)
	return w.granted
}

// shrink gives back what the window has grown. What is granted stays so.
func (w *window) shrink() (freed int64) {
	freed = w.size - InitialWindow
	w.size = InitialWindow
	return freed
}

// A ledger keeps the session's budget.
type ledger struct {
	budget int64
	unread atomic.Int64 // bytes
	held   atomic.Int64 // memory that they take: what the budget bounds

	mu     sync.Mutex // guards growth
	growth int64

	shedding sync.Mutex // one at a time sheds
}

// grow takes up to want out of the room for growth.
func (l *ledger) grow(want int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	got := max(min(want, l.budget/4*3-l.growth), 0)
	l.growth += got
	return got
}

func (l *ledger) giveBack(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.growth -= n
}

// reclaim takes the growth of streams that rest.
func (s *Session) reclaim(now time.Time) {
	for _, st := range s.list() {
		st.mu.Lock()
		if now.Sub(st.in.stalled) > restTime {
			s.ledger.giveBack(st.in.window.shrink())
		}
		st.mu.Unlock()
	}
}

// shed resets the longest-stalled streams until the budget holds again.
func (s *Session) shed() {
	s.ledger.shedding.Lock()
	defer s.ledger.shedding.Unlock()
	if s.ledger.held.Load() <= s.ledger.budget {
		return
	}
	type stalled struct {
		st    *Stream
		since time.Time
		held  int
	}
	var all []stalled
	for _, st := range s.list() {
		st.mu.Lock()
		if st.in.buf.len > 0 {
			all = append(all, stalled{st, st.in.stalled, st.in.buf.held})
		}
		st.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b stalled) int {
		return cmp.Or(a.since.Compare(b.since), cmp.Compare(b.held, a.held))
	})
	count := 0
	for _, v := range all {
		if s.ledger.held.Load() <= s.ledger.budget {
			break
		}
		v.st.overload()
		count++
	}
	s.log.Warn("over the budget of unread bytes: reset the longest-stalled streams", "streams", count, "budget", s.ledger.budget)
	if s.ledger.held.Load() > s.ledger.budget { // all in chunks that the peer began to fill and leaves so
		go s.fail(&tunnel.CloseError{Code: protocol.CodeOverload, Reason: "budget of unread bytes"}, true)
	}
}

// overload resets a stream even if its owner closed only one direction.
func (st *Stream) overload() { st.reset(protocol.CodeOverload, false) }
