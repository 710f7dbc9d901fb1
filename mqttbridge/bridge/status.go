package bridge

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Peer is one side of the bridge.
type Peer struct {
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since,omitzero"`       // of Connected or its opposite
	LastError string    `json:"last_error,omitempty"` // to people; stays when it is connected again
	ErrorAt   time.Time `json:"error_at,omitzero"`
}

// A Flow is one direction. The numbers are of this process.
type Flow struct {
	Seen       uint64 `json:"seen"`       // that came to the bridge
	Messages   uint64 `json:"messages"`   // that the other side acknowledged, or QoS 0 and sent
	Duplicates uint64 `json:"duplicates"` // that came or went again after a cut
	Dropped    uint64 `json:"dropped"`    // at QoS 0, because the other side was away or slow
	Refused    uint64 `json:"refused"`    // too large, no valid topic, no rule, or the broker hung up on it
	Expired    uint64 `json:"expired"`    // older than its rule or its sender allows
}

// A Queue is what waits for the hub. The numbers of dropped messages survive
// restarts.
type Queue struct {
	Messages    int       `json:"messages"`
	Bytes       int64     `json:"bytes"`
	MaxMessages int       `json:"max_messages"`
	MaxBytes    int64     `json:"max_bytes"`
	Oldest      time.Time `json:"oldest,omitzero"`
	DroppedFull uint64    `json:"dropped_full"`      // to make room, where a rule says so
	DroppedOld  uint64    `json:"dropped_old"`       // older than their rule allows
	Full        bool      `json:"full,omitempty"`    // the home broker has to keep messages
	Problem     string    `json:"problem,omitempty"` // why it cannot be written
}

// A Refusal is a subscription that the home broker did not grant.
type Refusal struct {
	Filter string `json:"filter"`
	Reason string `json:"reason"`
}

// A Status is a moment's picture for people.
type Status struct {
	Relay  Peer  `json:"relay"` // the link
	Broker Peer  `json:"broker"`
	Out    Flow  `json:"out"` // from the home broker to the hub
	In     Flow  `json:"in"`
	Queue  Queue `json:"queue"`
	Rules  int   `json:"rules"`
	// Refused are subscriptions that the home broker did not grant: nothing of
	// them goes out.
	Refused []Refusal `json:"refused,omitempty"`
	// Echoes are messages from the hub that came back from the home broker and
	// were not sent out again.
	Echoes uint64 `json:"echoes"`
	// Ignored are messages from the home broker that no rule carries, and
	// repeated retained ones that the hub has.
	Ignored uint64 `json:"ignored"`
	// SessionsLost counts how often the home broker forgot the bridge, and with
	// it what came meanwhile.
	SessionsLost uint64 `json:"sessions_lost"`
	// Retained is why the retained messages at the hub may not be those at home;
	// "" = they are, or soon will be.
	Retained string `json:"retained,omitempty"`
}

// counters are what Status counts.
type counters struct {
	outSeen, outLoose, outDuplicates, outDropped, outRefused, outIgnored atomic.Uint64
	inSeen, inMessages, inDuplicates, inDropped, inRefused, inExpired    atomic.Uint64
	inAbsorbed, echoes, sessionsLost, synced                             atomic.Uint64
}

// A peerState is where a Peer comes from.
type peerState struct {
	mu   sync.Mutex
	peer Peer
}

func (p *peerState) up(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.peer.Connected, p.peer.Since = true, now
}

// down is called without an error when the end was wanted.
func (p *peerState) down(now time.Time, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.peer.Connected || p.peer.Since.IsZero() {
		p.peer.Connected, p.peer.Since = false, now
	}
	if err != nil {
		p.peer.LastError, p.peer.ErrorAt = err.Error(), now
	}
}

func (p *peerState) get() Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peer
}

// Status returns the current picture.
func (b *Bridge) Status() Status {
	c := &b.count
	rules := b.rules.Load()
	q := b.cfg.Queue.Stats(outQueue)
	s := Status{
		Relay: b.relay.get(), Broker: b.broker.get(),
		Out: Flow{
			Seen: c.outSeen.Load(), Messages: c.outLoose.Load() + q.Acked - min(q.Acked, b.ackedBefore), Duplicates: c.outDuplicates.Load(),
			Dropped: c.outDropped.Load(), Refused: c.outRefused.Load(), Expired: q.DroppedOld,
		},
		In: Flow{
			Seen: c.inSeen.Load(), Messages: c.inMessages.Load(), Duplicates: c.inDuplicates.Load(),
			Dropped: c.inDropped.Load(), Refused: c.inRefused.Load(), Expired: c.inExpired.Load(),
		},
		Queue: Queue{
			Messages: q.Messages, Bytes: q.Bytes, MaxMessages: q.Limits.Messages, MaxBytes: q.Limits.Bytes,
			Oldest: q.Oldest, DroppedFull: q.DroppedFull, DroppedOld: q.DroppedOld, Full: b.out.full.Load(),
		},
		Rules: rules.written, Echoes: c.echoes.Load(), Ignored: c.outIgnored.Load(), SessionsLost: c.sessionsLost.Load(),
		Retained: b.synced.problem(),
	}
	if p := b.out.disk.Load(); p != nil {
		s.Queue.Problem = *p
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range slices.Sorted(maps.Keys(b.refused)) {
		s.Refused = append(s.Refused, Refusal{f, b.refused[f]})
	}
	return s
}
