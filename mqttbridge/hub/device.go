package hub

import (
	"sync"
	"time"
)

// maxLeaving times its limit is how many connections of a device there are at
// once, together with those that are about to close.
const maxLeaving = 5

// A device is what all connections of one device share.
type device struct {
	name string

	// Hub.mu guards these three.
	conns    map[*conn]struct{} // also those that have not said CONNECT yet
	admitted int                // of these, past CONNECT
	leaving  int                // of these, with nothing left but their last words

	bucket bucket
}

// A bucket limits how fast packets are taken: rate a second, burst at once.
type bucket struct {
	mu     sync.Mutex // guards everything below
	tokens float64
	at     time.Time
}

// take returns how long the caller has to wait before it goes on. Callers that
// come together wait one behind the other.
func (b *bucket) take(n, rate, burst int, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.at.IsZero() {
		b.tokens = float64(burst)
	} else if d := now.Sub(b.at); d > 0 {
		b.tokens = min(float64(burst), b.tokens+d.Seconds()*float64(rate))
	}
	b.at = now
	b.tokens -= float64(n)
	if b.tokens >= 0 {
		return 0
	}
	return time.Duration(-b.tokens / float64(rate) * float64(time.Second))
}

// full says whether nothing of the bucket would be forgotten with it.
func (b *bucket) full(rate, burst int, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at.IsZero() || b.tokens+now.Sub(b.at).Seconds()*float64(rate) >= float64(burst)
}

// enter notes a new connection; false: the hub has stopped, or, with a word of
// why, the device has too many that do not even say CONNECT.
func (h *Hub) enter(c *conn) (ok bool, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return false, ""
	}
	d := h.devices[c.id.Name]
	if d == nil {
		d = &device{name: c.id.Name, conns: make(map[*conn]struct{})}
		h.devices[c.id.Name] = d
	}
	limit := h.cfg.Limits.Connections
	if len(d.conns)-d.admitted-d.leaving >= limit || len(d.conns) >= maxLeaving*limit {
		return false, "the device has too many connections that say nothing or come and go; look which of its programs does that"
	}
	d.conns[c] = struct{}{}
	h.running.Add(1)
	return true, ""
}

// leave forgets a connection.
func (h *Hub) leave(c *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.devices[c.id.Name]
	delete(d.conns, c)
	d.leaving--
	h.running.Done()
}

// admit counts a connection that said CONNECT; false: the device has as many as
// it may have.
func (h *Hub) admit(c *conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.devices[c.id.Name]
	if d.admitted >= h.cfg.Limits.Connections {
		return false
	}
	d.admitted++
	c.admitted = true
	return true
}

// dismiss gives a connection's place back, before its last words: whoever takes
// it does not wait for them. h.mu is held.
func (h *Hub) dismiss(c *conn) {
	d := h.devices[c.id.Name]
	if c.admitted {
		d.admitted--
	}
	d.leaving++
}

// throttle stops reading while the device sends faster than it may; false: the
// connection ends.
func (c *conn) throttle(packets int) bool {
	h := c.hub
	h.mu.Lock()
	d := h.devices[c.id.Name]
	h.mu.Unlock()
	// Monotonic time, not Config.Now: a clock that is set must stop nobody.
	wait := d.bucket.take(packets, h.cfg.Limits.Rate, h.cfg.Limits.Burst, time.Now())
	if wait <= 0 {
		return true
	}
	h.stats.throttled.Add(1)
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.gone:
		return false
	}
}

// sweepDevices forgets devices that have nothing here any more; h.mu is held.
func (h *Hub) sweepDevices(now time.Time) {
	for name, d := range h.devices {
		if len(d.conns) == 0 && d.bucket.full(h.cfg.Limits.Rate, h.cfg.Limits.Burst, now) {
			delete(h.devices, name)
		}
	}
}
