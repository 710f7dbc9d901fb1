package hub

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"
)

// errQuota: the sender has its part of a home's mailbox.
var errQuota = errors.New("the sender has too many messages waiting for this home")

const (
	// One device may fill a quarter of a home's mailbox, so that nobody can
	// keep the others' messages out while the home is away. It does not hold
	// where a rule says that the oldest make room.
	quotaPart  = 4
	rescanRest = time.Second
)

// quotas counts what waits in a home's mailbox, by sender.
type quotas struct {
	mu      sync.Mutex // guards everything below
	shares  map[string]share
	entries []quotaEntry // in the order of the mailbox
	newest  uint64       // that was removed
	scanned time.Time
	known   bool // it was counted since the start
}

type quotaEntry struct {
	seq  uint64
	who  string
	size int
}

// quota says whether a sender may put one more message in.
func (hm *home) quota(m *message, size int) error {
	if m.sender.device == "" {
		return nil
	}
	limits := hm.hub.cfg.Limits.Mailbox
	full := func() bool {
		s := hm.waiting.of(m.sender.who())
		return s.messages+1 > max(1, limits.Messages/quotaPart) || s.bytes+size > max(size, int(limits.Bytes/quotaPart))
	}
	// What expired or made room is still counted: look before saying no.
	if hm.waiting.unknown() || full() && hm.waiting.stale(time.Now()) {
		if err := hm.recount(); err != nil {
			return err
		}
	}
	if full() {
		return errQuota
	}
	return nil
}

// posted counts a message that went in.
func (hm *home) posted(m *message, seq uint64, size int) {
	// What made room or expired is not told. It must not add up for ever.
	if hm.waiting.add(quotaEntry{seq, m.sender.who(), size}) > 2*hm.hub.cfg.Limits.Mailbox.Messages {
		_ = hm.recount() // the next one tries again
	}
}

// recount reads the mailbox.
func (hm *home) recount() error {
	var all []quotaEntry
	for after := uint64(0); ; {
		items, err := hm.hub.cfg.Queue.Read(hm.mailbox, after, 256)
		if err != nil {
			return err
		}
		for _, it := range items {
			after = it.Seq
			if d, err := decodeDelivery(it.Data, it.Expires); err == nil {
				all = append(all, quotaEntry{it.Seq, d.m.sender.who(), len(it.Data)})
			}
		}
		if len(items) == 0 {
			break
		}
	}
	hm.waiting.reset(all, time.Now())
	return nil
}

func (q *quotas) of(who string) share {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.shares[who]
}

func (q *quotas) unknown() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.known
}

func (q *quotas) stale(now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return now.Sub(q.scanned) >= rescanRest
}

func (q *quotas) add(e quotaEntry) (entries int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	// It may be known already, or gone, or come behind a newer one.
	i, found := slices.BinarySearchFunc(q.entries, e.seq, func(e quotaEntry, seq uint64) int { return cmp.Compare(e.seq, seq) })
	if !found && e.seq > q.newest {
		q.entries = slices.Insert(q.entries, i, e)
		q.count(e, 1)
	}
	return len(q.entries)
}

// count is called with the lock held.
func (q *quotas) count(e quotaEntry, n int) {
	if q.shares == nil {
		q.shares = make(map[string]share)
	}
	s := q.shares[e.who]
	s.messages += n
	s.bytes += n * e.size
	if s.messages > 0 {
		q.shares[e.who] = s
	} else {
		delete(q.shares, e.who)
	}
}

// removed forgets everything up to seq.
func (q *quotas) removed(seq uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.newest = max(q.newest, seq)
	n := 0
	for n < len(q.entries) && q.entries[n].seq <= seq {
		q.count(q.entries[n], -1)
		n++
	}
	q.entries = append(q.entries[:0], q.entries[n:]...)
}

// reset replaces the count by what was read, and keeps what came meanwhile.
func (q *quotas) reset(all []quotaEntry, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	last := uint64(0)
	if n := len(all); n > 0 {
		last = all[n-1].seq
	}
	for _, e := range q.entries {
		if e.seq > last {
			all = append(all, e)
		}
	}
	q.entries, q.shares, q.scanned, q.known = all, nil, now, true
	for _, e := range all {
		q.count(e, 1)
	}
}
