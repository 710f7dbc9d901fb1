package authdns

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// A limiter is a token bucket for each network. Addresses on UDP packets are
// whatever the sender writes, millions a minute if he likes: so the table has a
// fixed size and networks that meet in one place share a bucket. Where they meet
// is secret, so nobody can aim at somebody else's except by using his address.
type limiter struct {
	rate, burst float64
	start       time.Time
	seed        maphash.Seed
	shards      [shards]shard
}

const shards = 64

type shard struct {
	mu      sync.Mutex // guards buckets
	buckets []bucket
}

type bucket struct {
	used float64       // tokens taken and not grown back
	at   time.Duration // since start
	over bool          // the last one over the limit was answered
}

// newLimiter makes a limiter with size buckets.
func newLimiter(limits Limits, start time.Time, size int) *limiter {
	l := &limiter{rate: float64(limits.Rate), burst: float64(limits.Burst), start: start, seed: maphash.MakeSeed()}
	for i := range l.shards {
		l.shards[i].buckets = make([]bucket, size/shards)
	}
	return l
}

// A verdict says what becomes of a question.
type verdict int

const (
	pass verdict = iota
	slip         // over the limit: only "come back by TCP"
	drop         // over the limit: nothing
)

// take judges one question. Over the limit every second one slips: a resolver
// whose address somebody else is using still gets its answers, by TCP.
func (l *limiter) take(from netip.Addr, now time.Time) verdict {
	h := maphash.Comparable(l.seed, networkOf(from))
	s := &l.shards[h%shards]
	at := now.Sub(l.start)
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &s.buckets[h/shards%uint64(len(s.buckets))]
	if since := at - b.at; since > 0 { // a clock that was set back grows nothing
		b.used = max(0, b.used-since.Seconds()*l.rate)
	}
	b.at = at
	if b.used+1 <= l.burst {
		b.used++
		return pass
	}
	b.over = !b.over
	if b.over {
		return slip
	}
	return drop
}
