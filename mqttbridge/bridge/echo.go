package bridge

import (
	"hash/maphash"
	"sync"
	"time"
)

// Limits of what the loop guard remembers.
const (
	echoLife = time.Minute
	echoMax  = 4096
)

// echoes is the loop guard: what we publish at home on a topic that we also
// subscribe to comes back once, and must not go out again. The bridge bit does
// not help: a broker that honours it keeps from a client what that same client
// published, and we publish and subscribe with two.
//
// An echo that comes later than echoLife, or after a restart, goes out; the
// hub gives nothing back to the agent that it came from, so that it makes one
// round and no loop.
type echoes struct {
	seed maphash.Seed
	now  func() time.Time

	mu    sync.Mutex // guards what follows
	until map[uint64][]time.Time
	order []uint64 // keys of until, the oldest first; one for each time
}

func newEchoes() *echoes {
	return &echoes{seed: maphash.MakeSeed(), now: time.Now, until: map[uint64][]time.Time{}}
}

func (e *echoes) key(topic string, payload []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(e.seed)
	h.WriteString(topic)
	h.WriteByte(0)
	h.Write(payload)
	return h.Sum64()
}

// expect says that this will come back.
func (e *echoes) expect(topic string, payload []byte) {
	k := e.key(topic, payload)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forget()
	e.until[k] = append(e.until[k], e.now().Add(echoLife))
	e.order = append(e.order, k)
}

// take says whether this is an expected one, which it then is no longer.
func (e *echoes) take(topic string, payload []byte) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forget()
	if len(e.until) == 0 {
		return false
	}
	k := e.key(topic, payload)
	times := e.until[k]
	if len(times) == 0 {
		return false
	}
	e.drop(k)
	for i, o := range e.order {
		if o == k {
			e.order = append(e.order[:i], e.order[i+1:]...)
			break
		}
	}
	return true
}

// drop removes the oldest time of k.
func (e *echoes) drop(k uint64) {
	if rest := e.until[k][1:]; len(rest) > 0 {
		e.until[k] = rest
	} else {
		delete(e.until, k)
	}
}

// forget removes what is too old or too much; mu is held.
func (e *echoes) forget() {
	n, now := 0, e.now()
	for n < len(e.order) && (len(e.order)-n >= echoMax || now.After(e.until[e.order[n]][0])) {
		e.drop(e.order[n])
		n++
	}
	e.order = e.order[n:]
}
