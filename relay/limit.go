package relay

import (
	"sync"
	"time"
)

// A limiter is a token bucket.
type limiter struct {
	burst float64
	every time.Duration

	mu   sync.Mutex // guards the fields below
	left float64
	at   time.Time
}

func newLimiter(burst int, every time.Duration) *limiter {
	return &limiter{burst: float64(burst), every: every, left: float64(burst)}
}

func (l *limiter) take(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.at.IsZero() {
		l.left = min(l.burst, l.left+float64(now.Sub(l.at))/float64(l.every))
	}
	l.at = now
	if l.left < 1 {
		return false
	}
	l.left--
	return true
}
