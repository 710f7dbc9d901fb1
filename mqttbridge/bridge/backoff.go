package bridge

import (
	"context"
	"math/rand/v2"
	"time"
)

// Times of trying again.
const (
	backoffFirst = time.Second
	backoffCap   = 30 * time.Second
	stableAfter  = time.Minute // a connection that held so long was a good one
)

// A backoff counts failures. Waits have full jitter (0 to the whole), so that
// what was cut off together does not come back together.
type backoff struct {
	fails int
	rand  func() float64 // nil = math/rand/v2
}

// next returns the wait after one more failure of something that had worked
// for up.
func (b *backoff) next(up time.Duration) time.Duration {
	if up >= stableAfter {
		b.fails = 0
	}
	limit := min(backoffFirst<<min(b.fails, 10), backoffCap)
	b.fails++
	r := rand.Float64
	if b.rand != nil {
		r = b.rand
	}
	return time.Duration(r() * float64(limit))
}

// pause waits for d or until ctx ends or wake receives; it says whether to go on.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}
