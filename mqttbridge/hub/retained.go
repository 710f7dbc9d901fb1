package hub

import (
	"bytes"
	"cmp"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// Bounds of what is retained. It is in memory only: homes bring theirs again
// after a restart.
const (
	maxRetained      = 50_000   // topics
	maxRetainedBytes = 64 << 20 // of topics and payloads
	// One device or home has an eighth of it, so that nobody can take all.
	maxRetainedOfOne      = maxRetained / 8
	maxRetainedBytesOfOne = maxRetainedBytes / 8
)

var errRetainedFull = errors.New("too many topics have a retained message")

// A retainedSet holds the newest retained message of each topic.
type retainedSet struct {
	mu      sync.RWMutex // guards everything below
	topics  map[string]retainedItem
	bytes   int
	shares  map[string]share // by who set them
	version uint64           // of the newest change
}

type retainedItem struct {
	m       *message
	version uint64
}

// A share is what one sender takes of something that all share.
type share struct{ messages, bytes int }

func (s share) plus(m *message, n int) share { return share{s.messages + n, s.bytes + n*weight(m)} }

// who names a sender among all.
func (s sender) who() string {
	if s.agent != "" {
		return "agent " + s.agent
	}
	return "device " + s.device
}

func newRetainedSet() *retainedSet {
	return &retainedSet{topics: make(map[string]retainedItem), shares: make(map[string]share)}
}

// room says whether m would fit. The homes' states, which nobody else may
// publish, always do.
func (s *retainedSet) room(m *message) error {
	if len(m.payload) == 0 || mqttbridge.Match(stateTopics, m.topic) {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	old, replaces := s.topics[m.topic]
	size := s.bytes + weight(m)
	if replaces {
		size -= weight(old.m)
	}
	mine := s.shares[m.sender.who()].plus(m, 1)
	if replaces && old.m.sender.who() == m.sender.who() {
		mine = mine.plus(old.m, -1)
	}
	if size > maxRetainedBytes || !replaces && len(s.topics) >= maxRetained ||
		mine.messages > maxRetainedOfOne || mine.bytes > maxRetainedBytesOfOne {
		return errRetainedFull
	}
	return nil
}

func weight(m *message) int { return len(m.topic) + len(m.payload) }

// set keeps m, or forgets its topic when the payload is empty.
func (s *retainedSet) set(m *message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	s.drop(m.topic)
	if len(m.payload) > 0 {
		s.topics[m.topic] = retainedItem{m, s.version}
		s.bytes += weight(m)
		s.shares[m.sender.who()] = s.shares[m.sender.who()].plus(m, 1)
	}
}

// drop forgets a topic; the lock is held.
func (s *retainedSet) drop(topic string) {
	old, ok := s.topics[topic]
	if !ok {
		return
	}
	delete(s.topics, topic)
	s.bytes -= weight(old.m)
	who := old.m.sender.who()
	if left := s.shares[who].plus(old.m, -1); left.messages > 0 {
		s.shares[who] = left
	} else {
		delete(s.shares, who)
	}
}

// match returns what is retained on the topics of a filter and was set after
// version, oldest first.
func (s *retainedSet) match(filter string, version uint64, now time.Time) []*message {
	s.mu.RLock()
	var found []retainedItem
	if !strings.ContainsAny(filter, "+#") {
		if it, ok := s.topics[filter]; ok {
			found = append(found, it)
		}
	} else {
		for topic, it := range s.topics {
			if mqttbridge.Match(filter, topic) {
				found = append(found, it)
			}
		}
	}
	s.mu.RUnlock()
	found = slices.DeleteFunc(found, func(it retainedItem) bool { return it.version <= version || it.m.expired(now) })
	slices.SortFunc(found, func(a, b retainedItem) int { return cmp.Compare(a.version, b.version) })
	ms := make([]*message, len(found))
	for i, it := range found {
		ms[i] = it.m
	}
	return ms
}

// same says whether a home's m is what is retained already.
func (s *retainedSet) same(m *message, now time.Time) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	it, ok := s.topics[m.topic]
	return ok && it.m.sender.agent == m.sender.agent && it.m.qos == m.qos && !it.m.expired(now) && bytes.Equal(it.m.payload, m.payload)
}

// purge forgets the messages that gone names, and returns their topics.
func (s *retainedSet) purge(gone func(*message) bool) (topics []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for topic, it := range s.topics {
		if gone(it.m) {
			topics = append(topics, topic)
			s.drop(topic)
		}
	}
	return topics
}

// list returns the topics whose messages want names, in order.
func (s *retainedSet) list(want func(*message) bool) (topics []string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for topic, it := range s.topics {
		if want(it.m) {
			topics = append(topics, topic)
		}
	}
	slices.Sort(topics)
	return topics
}

// now returns the version of the newest change and the number of topics.
func (s *retainedSet) now() (version uint64, topics int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.version, len(s.topics)
}
