package flow

import "time"

// Datagrams and streams take turns when there are more datagrams than the path
// takes. quic-go does not see to it: it packs what waits in its queue of 32
// datagrams first and gives streams what is left of a packet, which a visitor
// who chooses the size of his datagrams makes nothing. Pings would find no place,
// and the session would end.
//
// So whoever sends datagrams counts how long the queue kept him waiting. When that
// was most of the time, he pauses until the queue is empty and the streams that
// wait have sent as much as the datagrams did.
const (
	turnTime    = 100 * time.Millisecond
	queueLength = 32                    // quic-go's
	blocked     = 10 * time.Microsecond // a send that takes longer has waited for the queue
	minQuiet    = 2 * time.Millisecond
	maxQuiet    = 250 * time.Millisecond

	frameOverhead  = 8 // of a DATAGRAM frame, number of the stream included
	packetOverhead = 40
	packetPayload  = 1100
)

// turns is the account of the datagrams that were sent; its zero value is ready.
// The gate of the post guards it.
type turns struct {
	began  time.Time
	waited time.Duration // of the sends that waited
	waits  int
	bytes  int              // sent in this turn
	last   [queueLength]int // sizes of the last ones: what the queue holds at most
	next   int
}

// over counts a datagram that was sent between start and now. It reports whether
// the turn is over because the queue is full.
func (t *turns) over(size int, start, now time.Time) bool {
	if start.Sub(t.began) > 2*turnTime { // a pause
		t.begin(start)
	}
	t.last[t.next] = size + frameOverhead
	t.next = (t.next + 1) % len(t.last)
	t.bytes += size
	took := now.Sub(start)
	if took < blocked {
		return false
	}
	t.waited += took
	t.waits++
	if now.Sub(t.began) < turnTime {
		return false
	}
	if t.waited < now.Sub(t.began)/2 {
		t.begin(now)
		return false
	}
	return true
}

func (t *turns) begin(now time.Time) {
	t.began, t.waited, t.waits, t.bytes = now, 0, 0, 0
}

// queued is how many bytes leave until a full queue is empty; rather too many.
func (t *turns) queued() uint64 {
	sum := 0
	for _, size := range t.last {
		sum += size
	}
	return uint64(sum + (sum/packetPayload+1)*packetOverhead + packetPayload)
}

// quiet is how long the path may send nothing until we take it that nothing
// waits: a few times as long as it took for one datagram.
func (t *turns) quiet() time.Duration {
	return min(max(minQuiet, 4*t.waited/time.Duration(max(t.waits, 1))), maxQuiet)
}

// rest pauses, and begins the next turn. before is BytesSent from when the queue
// was full.
func (s *Session) rest(link DatagramLink, before uint64) {
	t := &s.post.turns
	quiet := t.quiet()
	empty := before + t.queued()
	enough := empty + uint64(t.bytes)
	tick := time.NewTicker(max(quiet/4, time.Millisecond))
	defer tick.Stop()
	sent, moved := link.BytesSent(), time.Now()
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
		}
		now := time.Now()
		if n := link.BytesSent(); n != sent {
			sent, moved = n, now
		}
		if now.Sub(moved) > quiet || sent >= empty && (sent >= enough || !s.sending.waits()) {
			t.begin(now)
			return
		}
	}
}

// waits tells whether a stream waits for the link.
func (p *progress) waits() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting > 0
}
