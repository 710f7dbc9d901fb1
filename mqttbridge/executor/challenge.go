package executor

import (
	"crypto/rand"
	"encoding/base64"
	"sync"
	"time"
)

const (
	maxChallenges       = 1000
	maxDeviceChallenges = 16
	// keepChallenge is how long a dead challenge is remembered, to say "too
	// late" or "used before" rather than "not ours".
	keepChallenge = 10 * time.Minute
	// maxSleep is how much the machine may have slept since a challenge was
	// made. The monotonic clock may stand still meanwhile (on Linux it does),
	// and a command that waited that long must not look young.
	maxSleep = 500 * time.Millisecond
)

// challenges are what this process handed out, in memory alone: a restart voids
// all of them, and with them every command that was signed before it.
type challenges struct {
	asleep func() time.Duration // how long the machine slept since it was started, on any clock that the wall cannot move

	mu  sync.Mutex // guards what follows
	all map[string]*challenge
	seq uint64
}

type challenge struct {
	device, action string
	seq            uint64
	made           time.Time // its monotonic reading is what counts
	asleep         time.Duration
	spent          bool
}

// An answer says what became of a challenge that came back.
type answer int

const (
	fresh answer = iota
	foreign
	used
	stale
)

func newChallenges() *challenges {
	return &challenges{asleep: asleep, all: make(map[string]*challenge)}
}

// issue makes a challenge for one press. A device that asks for many loses its
// oldest, as does everybody when there are too many: whoever is pressing now
// has the newest.
func (s *challenges) issue(device, action string) string {
	var raw [24]byte
	rand.Read(raw[:]) // never fails
	value := base64.RawURLEncoding.EncodeToString(raw[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.makeRoom(device)
	s.seq++
	s.all[value] = &challenge{device: device, action: action, seq: s.seq, made: time.Now(), asleep: s.asleep()}
	return value
}

func (s *challenges) makeRoom(device string) {
	own, oldest, oldestOwn := 0, "", ""
	for value, c := range s.all {
		if time.Since(c.made) > keepChallenge {
			delete(s.all, value)
			continue
		}
		if oldest == "" || c.seq < s.all[oldest].seq {
			oldest = value
		}
		if c.device == device {
			own++
			if oldestOwn == "" || c.seq < s.all[oldestOwn].seq {
				oldestOwn = value
			}
		}
	}
	switch {
	case own >= maxDeviceChallenges:
		delete(s.all, oldestOwn)
	case len(s.all) >= maxChallenges:
		delete(s.all, oldest)
	}
}

// take spends a challenge. Only the first call for one of ours, of this device
// and action, gets fresh or stale.
func (s *challenges) take(value, device, action string, life time.Duration) (answer, *challenge) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.all[value]
	if c == nil || c.device != device || c.action != action {
		return foreign, nil
	}
	if c.spent {
		return used, nil
	}
	c.spent = true
	if !s.young(c, life) {
		return stale, c
	}
	return fresh, c
}

// young reports whether a challenge is not older than life now.
func (s *challenges) young(c *challenge, life time.Duration) bool {
	return time.Since(c.made) <= life && s.asleep()-c.asleep <= maxSleep
}

// left returns how much of life a challenge still has.
func (c *challenge) left(life time.Duration) time.Duration { return life - time.Since(c.made) }

// void ends all challenges of a device, or with "" of everybody.
func (s *challenges) void(device string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for value, c := range s.all {
		if device == "" || c.device == device {
			delete(s.all, value)
		}
	}
}
