package queue

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// maxExpired bounds what one queue remembers of expired messages that it has
// met; more are met again.
const maxExpired = 4096

// Read returns up to limit messages newer than seq after, in order; none is no
// error. What was acknowledged is left out. What has expired is left out too,
// dropped and counted. Errors: ErrNoQueue, ErrClosed, or that the file cannot
// be read.
func (s *Store) Read(name string, after uint64, limit int) ([]Item, error) {
	s.mu.Lock()
	q := s.queues[name]
	if q == nil || s.closing {
		defer s.mu.Unlock()
		return nil, s.absent(name)
	}
	last := q.last
	after = max(after, q.ackTo)
	s.mu.Unlock()
	if limit <= 0 || after >= last {
		return nil, nil
	}
	var items []Item
	var expired []uint64
	now := s.clock.read()
	err := s.view(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(queuesBucket).Bucket([]byte(name))
		if bucket == nil {
			return fmt.Errorf("%w: %q", ErrNoQueue, name)
		}
		c := bucket.Cursor()
		for k, v := c.Seek(seqKey(after + 1)); k != nil && len(items) < limit; k, v = c.Next() {
			seq, ok := keySeq(k)
			if !ok || seq > last {
				break
			}
			h, data, err := decodeItem(v)
			if err != nil {
				return fmt.Errorf("queue %q, message %d: %w", name, seq, err)
			}
			it := Item{Queue: name, Seq: seq, At: h.at, Droppable: h.droppable}
			if h.life != nil {
				if now.left(*h.life) <= 0 {
					expired = append(expired, seq)
					continue
				}
				it.Expires = now.expires(*h.life)
			}
			it.Data = bytes.Clone(data)
			items = append(items, it)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.remember(name, q, expired)
	return items, nil
}

// remember has the committer drop what has expired.
func (s *Store) remember(name string, q *queue, expired []uint64) {
	if len(expired) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queues[name] != q {
		return // removed meanwhile
	}
	if q.expired == nil {
		q.expired = map[uint64]struct{}{}
	}
	for _, seq := range expired {
		if len(q.expired) >= maxExpired {
			break
		}
		if seq > q.ackTo {
			q.expired[seq] = struct{}{}
		}
	}
	if len(q.expired) > 0 {
		s.markDirty(name)
	}
}

// markDirty tells the committer of something to remove; the lock is held.
func (s *Store) markDirty(name string) {
	if len(s.dirty) == 0 {
		s.poke()
	}
	s.dirty[name] = struct{}{}
}

// Ack removes all messages up to upTo. They are not read again by this
// process; on disk they go with the next commit or within 50 ms, so that a
// crash delivers them again. Numbers that were not given yet are not
// acknowledged by it. Errors: ErrNoQueue, ErrClosed.
func (s *Store) Ack(name string, upTo uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[name]
	if q == nil || s.closing {
		return s.absent(name)
	}
	if upTo = min(upTo, q.last); upTo > q.ackTo {
		q.ackTo = upTo
		s.markDirty(name)
	}
	return nil
}

// absent says why there is no queue; the lock is held.
func (s *Store) absent(name string) error {
	if s.closing {
		return ErrClosed
	}
	return fmt.Errorf("%w: %q", ErrNoQueue, name)
}

// Changed returns the queue's channel, always the same one, with room for one
// token: it receives after appends, when the queue is removed and when the
// store is closed. It is for one reader, who reads first and then waits. It is
// nil, so that nothing ever comes, when there is no such queue.
func (s *Store) Changed(name string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.queues[name]; q != nil {
		return q.changed
	}
	return nil
}

// Queues returns the names of all queues, sorted.
func (s *Store) Queues() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.queues))
}

// Stats returns what a queue holds and has dropped; all zero when there is no
// such queue or the file cannot be read.
func (s *Store) Stats(name string) Stats {
	s.mu.Lock()
	q := s.queues[name]
	if q == nil || s.closing {
		s.mu.Unlock()
		return Stats{}
	}
	last, ackTo, expired := q.last, q.ackTo, maps.Clone(q.expired)
	s.mu.Unlock()
	var st Stats
	err := s.view(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(queuesBucket).Bucket([]byte(name))
		if bucket == nil {
			return ErrNoQueue
		}
		m, err := decodeMeta(bucket.Get(metaKey))
		if err != nil {
			return err
		}
		// What waits to be removed is taken off here: nobody can read it any more.
		c := bucket.Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			seq, ok := keySeq(k)
			if !ok {
				break
			}
			_, old := expired[seq]
			h, _, err := decodeItem(v)
			switch {
			case err != nil:
				return err
			case old:
				m.droppedOld++
				delete(expired, seq)
			case seq <= ackTo:
				m.acked++
			default:
				if st.Oldest.IsZero() {
					st.Oldest = h.at
				}
				if len(expired) == 0 {
					return fill(&st, m, last)
				}
				continue
			}
			m.add(h, -1)
		}
		return fill(&st, m, last)
	})
	if err != nil {
		return Stats{}
	}
	return st
}

func fill(st *Stats, m meta, last uint64) error {
	st.Messages, st.Bytes, st.Limits, st.Last = int(m.messages), m.bytes, m.limits, last
	st.DroppedFull, st.DroppedOld, st.Acked = m.droppedFull, m.droppedOld, m.acked
	return nil
}

// Get returns a key's value; false: there is none, or the store is closed or
// cannot be read.
func (s *Store) Get(key string) (value []byte, ok bool) {
	err := s.view(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(keysBucket).Get([]byte(key))
		if ok = raw != nil; ok {
			value = append([]byte{}, raw...)
		}
		return nil
	})
	return value, ok && err == nil
}

// Keys returns all keys that begin with prefix, sorted; none when the store is
// closed or cannot be read.
func (s *Store) Keys(prefix string) []string {
	var keys []string
	err := s.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(keysBucket).Cursor()
		for k, _ := c.Seek([]byte(prefix)); k != nil && strings.HasPrefix(string(k), prefix); k, _ = c.Next() {
			keys = append(keys, string(k))
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return keys
}

// view runs a short read transaction. What it reads may be a commit ahead of
// what is certainly on disk.
func (s *Store) view(f func(*bbolt.Tx) error) error {
	s.dbmu.RLock()
	defer s.dbmu.RUnlock()
	if s.db == nil {
		select {
		case <-s.done:
			return ErrClosed
		default:
			return fmt.Errorf("queue: cannot read %s: it is closed because of an error", s.path)
		}
	}
	_, err := guard(func() (struct{}, error) { return struct{}{}, s.db.View(f) })
	switch {
	case err == nil, errors.Is(err, ErrNoQueue):
		return err
	case errors.Is(err, bolterrors.ErrDatabaseNotOpen):
		return ErrClosed
	}
	return fmt.Errorf("queue: cannot read %s: %w", s.path, err)
}
