package packets

import (
	"sync"
	"sync/atomic"
	"time"
)

// The bounds of what waits in one direction of one flow.
const (
	maxPackets = 128
	maxBytes   = 256 << 10
	// maxAge is how long a packet may wait to be sent.
	maxAge = 500 * time.Millisecond
)

// maxHeld bounds the memory of what waits in all flows of the process. Over it a
// flow keeps one packet: flows whose packets move do not notice, and those of a
// path that takes nothing give up what is late anyway.
const maxHeld = 64 << 20

var held atomic.Int64

// smallSize is what one buffer of the pool holds: packets of the internet.
const smallSize = 1536

var small = sync.Pool{New: func() any { return new([smallSize]byte) }}

// A packet waits in a queue.
type packet struct {
	data []byte
	pool *[smallSize]byte // where data comes from; nil: made for it
	at   time.Time        // when it began to wait
}

// size is the memory that p takes.
func (p packet) size() int {
	if p.pool != nil {
		return smallSize
	}
	return cap(p.data)
}

func newPacket(size int) packet {
	if size > smallSize {
		return packet{data: make([]byte, size)}
	}
	b := small.Get().(*[smallSize]byte)
	return packet{data: b[:size], pool: b}
}

// free gives the buffer back. The packet must not be used any more.
func (p packet) free() {
	if p.pool != nil {
		small.Put(p.pool)
	}
}

// A queue keeps the newest packets. The zero value is empty.
type queue struct {
	ring  []packet // its length is a power of two
	first int
	count int
	bytes int
}

// push adds a packet, for which the oldest make room. It returns how many did.
func (q *queue) push(p packet) (dropped int) {
	for q.count == maxPackets || q.count > 0 && q.bytes+len(p.data) > maxBytes {
		q.pop().free()
		dropped++
	}
	if q.count == len(q.ring) {
		q.grow()
	}
	q.ring[(q.first+q.count)&(len(q.ring)-1)] = p
	q.count++
	q.bytes += len(p.data)
	for over := held.Add(int64(p.size())) > maxHeld; over && q.count > 1; over = held.Load() > maxHeld {
		q.pop().free()
		dropped++
	}
	return dropped
}

// pop takes the oldest packet out. There must be one.
func (q *queue) pop() packet {
	p := q.ring[q.first]
	q.ring[q.first] = packet{}
	q.first = (q.first + 1) & (len(q.ring) - 1)
	q.count--
	q.bytes -= len(p.data)
	held.Add(-int64(p.size()))
	return p
}

// clear drops everything and returns how many packets that were.
func (q *queue) clear() (dropped int) {
	dropped = q.count
	for q.count > 0 {
		q.pop().free()
	}
	q.ring, q.first = nil, 0
	return dropped
}

// grow makes room for twice as many: most flows never hold more than a few.
func (q *queue) grow() {
	ring := make([]packet, max(4, 2*len(q.ring)))
	for i := range q.count {
		ring[i] = q.ring[(q.first+i)&(len(q.ring)-1)]
	}
	q.ring, q.first = ring, 0
}
