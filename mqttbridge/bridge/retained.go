package bridge

import (
	"hash/maphash"
	"sync"

	"github.com/sallyport/sallyport/mqttbridge"
)

// Limits of what a snapshot of retained messages may take in memory.
const (
	snapshotTopics = 20_000
	snapshotBytes  = 16 << 20
)

// recent remembers the newest retained message of each topic that came while a
// snapshot is on its way. The two come over different connections: without it
// the snapshot's older value could reach the hub last and stay there.
type recent struct {
	mu     sync.Mutex // guards what follows
	on     bool
	full   bool
	bytes  int
	latest map[string][]byte // topic at the hub → payload; empty: cleared

	// known are the retained messages that the hub was told of, by their hash.
	// Where the broker does not say whether a message was published as
	// retained, one on such a topic is taken for it.
	known map[string]uint64
	seed  maphash.Seed
}

func newRecent() *recent {
	return &recent{known: map[string]uint64{}, seed: maphash.MakeSeed()}
}

func (r *recent) start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.on, r.full, r.bytes, r.latest = true, false, 0, map[string][]byte{}
}

func (r *recent) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.on, r.latest = false, nil
}

// note is called for every retained message before it is queued.
func (r *recent) note(topic string, payload []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.know(topic, payload)
	if !r.on || r.full {
		return
	}
	r.bytes += len(topic) + len(payload) - len(r.latest[topic])
	r.latest[topic] = payload
	if len(r.latest) > snapshotTopics || r.bytes > snapshotBytes {
		r.full, r.latest = true, nil
	}
}

// newest returns the value of a topic that came since start; ok is false when
// none did.
func (r *recent) newest(topic string) (payload []byte, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	payload, ok = r.latest[topic]
	return payload, ok
}

// rest returns what came since start on topics that are not in named, as sync
// messages; ok is false when there was too much to remember.
func (r *recent) rest(named map[string]struct{}) (list []mqttbridge.LinkMessage, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for topic, payload := range r.latest {
		if _, done := named[topic]; !done && len(payload) > 0 {
			list = append(list, syncMessage(topic, payload))
		}
	}
	return list, !r.full
}

// know remembers what the hub is told; mu is held.
func (r *recent) know(topic string, payload []byte) {
	if len(payload) == 0 {
		delete(r.known, topic)
	} else if _, ok := r.known[topic]; ok || len(r.known) < snapshotTopics {
		r.known[topic] = maphash.Bytes(r.seed, payload)
	}
}

// learn is for what a snapshot tells the hub.
func (r *recent) learn(list []mqttbridge.LinkMessage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range list {
		r.know(m.Topic, m.Payload)
	}
}

// knows says whether the topic is one that is retained.
func (r *recent) knows(topic string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.known[topic]
	return ok
}

// same says whether the hub was told of just this value.
func (r *recent) same(topic string, payload []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.known[topic]
	return ok && h == maphash.Bytes(r.seed, payload)
}

func syncMessage(topic string, payload []byte) mqttbridge.LinkMessage {
	return mqttbridge.LinkMessage{Topic: topic, Payload: payload, Retain: true, Sync: true}
}
