package queue

import (
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// A batch is one write transaction: what several callers want, carried out in
// their order. What a caller wants that cannot be is refused before anything
// of it is done, so that one's refusal is nobody else's.
type batch struct {
	store  *Store
	now    moment
	root   *bbolt.Bucket // "queues"
	keys   *bbolt.Bucket
	queues map[string]*touched // nil: it does not exist
	worth  bool                // there is something to commit
	fatal  error               // bbolt failed: the whole batch is off
}

// touched is a queue in the transaction.
type touched struct {
	bucket   *bbolt.Bucket
	meta     meta
	last     uint64
	hint     *hint
	appended bool
	written  bool // meta or last are not what is on disk
}

// A hint spares the committer looking at the same messages again and again. It
// is thrown away with a transaction that failed.
type hint struct {
	dropFrom uint64        // nothing below can make room
	scanAt   time.Duration // clock.elapsed before which nothing expires
}

// rescan: hints about expiry are not believed for longer, since clocks jump.
const rescan = time.Minute

func (s *Store) newBatch(tx *bbolt.Tx) (*batch, error) {
	b := &batch{
		store: s, now: s.clock.read(), queues: map[string]*touched{},
		root: tx.Bucket(queuesBucket), keys: tx.Bucket(keysBucket),
	}
	if b.root == nil || b.keys == nil {
		return nil, fmt.Errorf("%w: a bucket is gone", errRecord)
	}
	return b, nil
}

func (b *batch) fail(err error) {
	if err != nil && b.fatal == nil {
		b.fatal = err
	}
}

// open returns nil when there is no such queue.
func (b *batch) open(name string) *touched {
	if q, ok := b.queues[name]; ok {
		return q
	}
	b.queues[name] = nil
	bucket := b.root.Bucket([]byte(name))
	if bucket == nil {
		return nil
	}
	m, err := decodeMeta(bucket.Get(metaKey))
	if err != nil {
		b.fail(fmt.Errorf("queue %q: %w", name, err))
		return nil
	}
	bucket.FillPercent = 0.9 // messages are only ever added at the end
	h := b.store.hints[name]
	if h == nil {
		h = &hint{}
		b.store.hints[name] = h
	}
	q := &touched{bucket: bucket, meta: m, last: bucket.Sequence(), hint: h}
	b.queues[name] = q
	return q
}

func (b *batch) create(name string, l Limits) error {
	q := b.open(name)
	switch {
	case b.fatal != nil:
		return nil
	case q == nil:
		bucket, err := b.root.CreateBucket([]byte(name))
		if err != nil {
			b.fail(err)
			return nil
		}
		q = &touched{bucket: bucket, last: b.root.Sequence(), hint: &hint{}}
		b.store.hints[name] = q.hint
		b.queues[name] = q
	case q.meta.limits == l:
		return nil
	}
	q.meta.limits = l
	q.written, b.worth = true, true
	return nil
}

func (b *batch) remove(name string) error {
	q := b.open(name)
	if q == nil || b.fatal != nil {
		return nil
	}
	if q.last > b.root.Sequence() {
		b.fail(b.root.SetSequence(q.last))
	}
	b.fail(b.root.DeleteBucket([]byte(name)))
	b.queues[name] = nil
	delete(b.store.hints, name)
	b.worth = true
	return nil
}

func (b *batch) set(set map[string][]byte) {
	for key, value := range set {
		if value == nil {
			if b.keys.Get([]byte(key)) == nil {
				continue
			}
			b.fail(b.keys.Delete([]byte(key)))
		} else {
			b.fail(b.keys.Put([]byte(key), value))
		}
		b.worth = true
	}
}

// append puts all items into their queues, or refuses and does nothing.
func (b *batch) append(puts []put) (dropped int, err error) {
	need := map[string]*tally{}
	for i := range puts {
		t := need[puts[i].queue]
		if t == nil {
			t = &tally{}
			need[puts[i].queue] = t
		}
		t.add(puts[i].head, 1)
	}
	for name, t := range need {
		if err := b.check(name, t); err != nil {
			return 0, err
		}
	}
	for name, t := range need {
		dropped += b.makeRoom(b.queues[name], t)
	}
	for i := range puts {
		p, q := &puts[i], b.queues[puts[i].queue]
		q.last++
		p.seq = q.last
		b.fail(q.bucket.Put(seqKey(p.seq), p.record))
		q.meta.add(p.head, 1)
		if p.head.life != nil {
			q.hint.scanAt = min(q.hint.scanAt, b.now.elapsed+b.now.left(*p.head.life))
		}
		q.appended, q.written, b.worth = true, true, true
	}
	return dropped, nil
}

// check says why t cannot be put into the queue. It drops nothing but what has
// expired.
func (b *batch) check(name string, t *tally) error {
	q := b.open(name)
	if b.fatal != nil {
		return b.fatal
	}
	if q == nil {
		return fmt.Errorf("%w: %q", ErrNoQueue, name)
	}
	l := q.meta.limits
	if t.messages > int64(l.Messages) || t.bytes > l.Bytes {
		return fmt.Errorf("%w: %d messages, %d bytes for queue %q, which holds at most %d and %d", ErrTooLarge, t.messages, t.bytes, name, l.Messages, l.Bytes)
	}
	if q.short(t, tally{}) && q.meta.expiring > 0 && b.now.elapsed >= q.hint.scanAt {
		b.expire(q)
	}
	if q.short(t, tally{messages: q.meta.droppable, bytes: q.meta.droppableBytes}) {
		return fmt.Errorf("%w: queue %q holds %d messages, %d bytes", ErrFull, name, q.meta.messages, q.meta.bytes)
	}
	return nil
}

// short says whether t does not fit, once less is gone.
func (q *touched) short(t *tally, less tally) bool {
	return q.meta.messages-less.messages+t.messages > int64(q.meta.limits.Messages) ||
		q.meta.bytes-less.bytes+t.bytes > q.meta.limits.Bytes
}

// makeRoom drops what may be dropped, the oldest first, until t fits.
func (b *batch) makeRoom(q *touched, t *tally) (dropped int) {
	if !q.short(t, tally{}) {
		return 0
	}
	less := tally{}
	b.sweep(q, q.hint.dropFrom, func(seq uint64, h head) (verdict, bool) {
		q.hint.dropFrom = seq
		if !q.short(t, less) {
			return keep, false
		}
		if !h.droppable {
			return keep, true
		}
		less.add(h, 1)
		dropped++
		return drop, true
	})
	q.meta.droppedFull += uint64(dropped)
	return dropped
}

// expire drops everything that has expired, and notes when it is worth
// looking again.
func (b *batch) expire(q *touched) {
	next := rescan
	n := b.sweep(q, 0, func(_ uint64, h head) (verdict, bool) {
		if h.life == nil {
			return keep, true
		}
		left := b.now.left(*h.life)
		if left <= 0 {
			return drop, true
		}
		next = min(next, left)
		return keep, true
	})
	q.hint.scanAt = b.now.elapsed + next
	q.meta.droppedOld += uint64(n)
}

// ack removes everything up to seq.
func (b *batch) ack(name string, upTo uint64) {
	q := b.open(name)
	if q == nil {
		return
	}
	n := b.sweep(q, 0, func(seq uint64, _ head) (verdict, bool) {
		if seq > upTo {
			return keep, false
		}
		return drop, true
	})
	q.meta.acked += uint64(n)
}

// forget removes messages that a reader has found expired.
func (b *batch) forget(name string, seqs map[uint64]struct{}) {
	q := b.open(name)
	if q == nil {
		return
	}
	for seq := range seqs {
		raw := q.bucket.Get(seqKey(seq))
		if raw == nil {
			continue // acknowledged or dropped meanwhile
		}
		h, _, err := decodeItem(raw)
		b.fail(err)
		b.fail(q.bucket.Delete(seqKey(seq)))
		q.meta.add(h, -1)
		q.meta.droppedOld++
		q.written, b.worth = true, true
	}
}

type verdict bool

const (
	keep verdict = false
	drop verdict = true
)

// sweep shows judge the messages from seq on, in order, until it says no more,
// and removes those that it wants dropped. It returns how many these were.
func (b *batch) sweep(q *touched, from uint64, judge func(seq uint64, h head) (v verdict, more bool)) int {
	type found struct {
		seq uint64
		h   head
	}
	var drops []found // a bbolt cursor loses its way when it deletes
	c := q.bucket.Cursor()
	for k, v := c.Seek(seqKey(from)); k != nil; k, v = c.Next() {
		seq, ok := keySeq(k)
		if !ok {
			break
		}
		h, _, err := decodeItem(v)
		if err != nil {
			b.fail(err)
			return 0
		}
		v, more := judge(seq, h)
		if v == drop {
			drops = append(drops, found{seq, h})
		}
		if !more {
			break
		}
	}
	for _, d := range drops {
		b.fail(q.bucket.Delete(seqKey(d.seq)))
		q.meta.add(d.h, -1)
	}
	if len(drops) > 0 {
		q.written, b.worth = true, true
	}
	return len(drops)
}

// finish writes what the queues know of themselves.
func (b *batch) finish() {
	for _, q := range b.queues {
		if q == nil || !q.written {
			continue
		}
		if q.bucket.Sequence() != q.last {
			b.fail(q.bucket.SetSequence(q.last))
		}
		b.fail(q.bucket.Put(metaKey, q.meta.encode()))
	}
}
