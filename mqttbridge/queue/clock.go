package queue

import (
	"math/rand/v2"
	"time"
)

// Clocks at home jump: a Pi without a battery starts in 1970, or where it was
// switched off, and leaps when NTP answers. So an item has expired when either
// of two clocks says so: the wall clock, or the time that this process has
// run. The wall clock's word counts only for items that were stored with a
// credible one; an item from 1970 does not expire because the year turns out
// to be another.

// credible is when wall clocks begin to mean something.
var credible = time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC)

type clock struct {
	now     func() time.Time
	elapsed func() time.Duration // since this process opened the store; does not jump
	run     uint64               // random, tells this process from earlier ones
}

func newClock(now func() time.Time) clock {
	if now == nil {
		now = time.Now
	}
	began := now() // with a monotonic reading, unless a test's clock has none
	return clock{
		now:     now,
		elapsed: func() time.Duration { return now().Sub(began) },
		run:     rand.Uint64(),
	}
}

// A life is what an item with an end carries.
type life struct {
	expires time.Time     // as the sender said, by the wall clock of stored
	stored  time.Time     // wall clock
	run     uint64        // clock.run
	elapsed time.Duration // clock.elapsed at stored
}

// A moment is one reading of both clocks.
type moment struct {
	wall    time.Time
	elapsed time.Duration
	run     uint64
}

func (c clock) read() moment {
	return moment{wall: c.now(), elapsed: c.elapsed(), run: c.run}
}

func (m moment) begin(expires time.Time) life {
	return life{expires: expires.Round(0), stored: m.wall.Round(0), run: m.run, elapsed: m.elapsed}
}

// left is how long l has still to live; zero or less: it has expired.
func (m moment) left(l life) time.Duration {
	age := m.elapsed // of an item from an earlier process at least that
	if l.run == m.run {
		age -= l.elapsed
	}
	left := l.expires.Sub(l.stored) - age
	if l.stored.After(credible) {
		left = min(left, l.expires.Sub(m.wall))
	}
	return left
}

// expires is the end of l by the wall clock of now.
func (m moment) expires(l life) time.Time {
	now := m.wall.Add(m.left(l)).Round(0)
	if d := now.Sub(l.expires); -time.Second < d && d < time.Second {
		return l.expires // the clock was not set: as it was said, to the nanosecond
	}
	return now
}
