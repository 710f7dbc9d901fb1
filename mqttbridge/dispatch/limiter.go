package dispatch

import "time"

// A limiter is a token bucket. The owner guards it.
type limiter struct {
	burst float64
	every time.Duration
	left  float64
	at    time.Time
}

func newLimiter(burst int, every time.Duration) limiter {
	return limiter{burst: float64(burst), every: every, left: float64(burst)}
}

func (l *limiter) fill(now time.Time) {
	// A clock that was set back gives nothing and takes nothing.
	if passed := now.Sub(l.at); !l.at.IsZero() && passed > 0 {
		l.left = min(l.burst, l.left+float64(passed)/float64(l.every))
	}
	l.at = now
}

func (l *limiter) take(now time.Time) bool {
	l.fill(now)
	if l.left < 1 {
		return false
	}
	l.left--
	return true
}

// wait returns how long it is until take says yes, after it said no.
func (l *limiter) wait() time.Duration {
	return max(0, time.Duration((1-l.left)*float64(l.every)))
}

func (l *limiter) full(now time.Time) bool {
	l.fill(now)
	return l.left >= l.burst
}
