package executor

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A rate is how often something may happen: n times in any stretch of that
// length. The zero rate is no limit.
type rate struct {
	n   int
	per time.Duration
}

const (
	maxRate = 1000
	maxPer  = 24 * time.Hour
)

func parseRate(text string) (rate, error) {
	if text == "" {
		return rate{}, nil
	}
	bad := fmt.Errorf("%q is no rate; write how often in a second, minute, hour or day (2/s, 6/m, 20/h, 50/d), or in any time (3/10m), at most %d", text, maxRate)
	count, unit, _ := strings.Cut(text, "/")
	n, err := strconv.Atoi(count)
	if err != nil || n < 1 || n > maxRate {
		return rate{}, bad
	}
	switch unit {
	case "s", "m", "h":
		unit = "1" + unit
	case "d":
		unit = "24h"
	}
	per, err := time.ParseDuration(unit)
	if err != nil || per < time.Second || per > maxPer {
		return rate{}, bad
	}
	return rate{n, per}, nil
}

// limits counts what each action did, by the monotonic clock. A restart forgets
// it: restarts are the owner's.
type limits struct {
	mu   sync.Mutex // guards past
	past map[string][]*time.Time
}

// take counts one press of the action, unless the rate is used up; then it says
// how long to wait. undo takes it back: what did not run does not count.
func (l *limits) take(name string, r rate) (wait time.Duration, undo func()) {
	if r.n == 0 {
		return 0, func() {}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	past := l.past[name]
	for len(past) > 0 && now.Sub(*past[0]) >= r.per {
		past = past[1:]
	}
	if len(past) >= r.n {
		l.past[name] = past
		// After a reload that lowered the rate more than n may be there.
		return r.per - now.Sub(*past[len(past)-r.n]), nil
	}
	if l.past == nil {
		l.past = make(map[string][]*time.Time)
	}
	mark := &now
	l.past[name] = append(past, mark)
	return 0, func() { l.untake(name, mark) }
}

func (l *limits) untake(name string, mark *time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, t := range l.past[name] {
		if t == mark {
			// A new slice: past shares its array with what take cut off.
			kept := append([]*time.Time{}, l.past[name][:i]...)
			l.past[name] = append(kept, l.past[name][i+1:]...)
			return
		}
	}
}

// forget drops what actions did that are no more.
func (l *limits) forget(keep map[string]*action) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.past {
		if keep[name] == nil {
			delete(l.past, name)
		}
	}
}
