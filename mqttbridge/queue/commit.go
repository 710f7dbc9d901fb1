package queue

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	flushDelay = 50 * time.Millisecond // how long acks wait for an append to share its commit
	flushRetry = time.Second           // and when the disk did not take them

	// A batch is bounded: its transaction is in memory until it is written.
	maxBatch      = 1024
	maxBatchBytes = 8 << 20
)

// A request is one caller's part of a commit.
type request struct {
	apply func(*batch) error // an error refuses this request alone; nothing of it was done then
	size  int                // bytes, roughly
	err   error              // read after done
	done  chan struct{}
}

func newRequest(size int, apply func(*batch) error) *request {
	return &request{apply: apply, size: size, done: make(chan struct{})}
}

func (r *request) end(err error) {
	r.err = err
	close(r.done)
}

// do waits for r's commit, or until ctx ends before that has begun.
func (s *Store) do(ctx context.Context, r *request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	s.waiting = append(s.waiting, r)
	s.mu.Unlock()
	s.poke()
	select {
	case <-r.done:
	case <-ctx.Done():
		if s.withdraw(r) {
			return ctx.Err()
		}
		<-r.done
	}
	return r.err
}

// withdraw takes r back; false: the committer has it.
func (s *Store) withdraw(r *request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.waiting, r)
	if i < 0 {
		return false
	}
	s.waiting = slices.Delete(s.waiting, i, i+1)
	return true
}

func (s *Store) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// committer is the only one that writes. It ends after Close, with a last
// commit for what was acknowledged.
func (s *Store) committer() {
	defer close(s.done)
	group := 0 // how many shared the last commit
	for {
		// Those that the last commit has just let go come again at once, if they
		// come again. Without this the first of them would commit alone, and all
		// others wait for two.
		for range 2 * group {
			s.mu.Lock()
			enough := len(s.waiting) >= group
			s.mu.Unlock()
			if enough {
				break
			}
			runtime.Gosched()
		}
		s.mu.Lock()
		reqs := s.take()
		dirty, closing := len(s.dirty) > 0, s.closing
		s.mu.Unlock()
		if dirty && s.flushAt.IsZero() {
			s.flushAt = time.Now().Add(flushDelay)
		}
		switch wait := time.Until(s.flushAt); {
		case len(reqs) > 0:
			group = min(len(reqs), 256)
			s.commit(reqs)
		case closing:
			if dirty {
				s.closed = s.commit(nil)
			}
			return
		case dirty && wait <= 0:
			s.commit(nil)
		case dirty:
			group = 0
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-s.wake:
				timer.Stop()
			}
		default:
			group = 0
			<-s.wake
		}
	}
}

// take returns the next callers to serve; the lock is held.
func (s *Store) take() []*request {
	n, size := 0, 0
	for n < len(s.waiting) && n < maxBatch && (n == 0 || size+s.waiting[n].size <= maxBatchBytes) {
		size += s.waiting[n].size
		n++
	}
	reqs := slices.Clone(s.waiting[:n])
	s.waiting = slices.Delete(s.waiting, 0, n)
	return reqs
}

// commit carries out what callers want and what was acknowledged, in one
// transaction when that can be, and tells them.
func (s *Store) commit(reqs []*request) error {
	acks := s.pending()
	results, err := s.try(reqs, acks)
	if err != nil && s.suspect == nil && len(acks) > 0 {
		if drained := s.drain(acks); drained == nil {
			acks = nil
			results, err = s.try(reqs, nil) // they may have room now
		}
	}
	s.tell(err, len(acks) > 0)
	for i, r := range reqs {
		if err != nil {
			r.end(err)
		} else {
			r.end(results[i])
		}
	}
	if err == nil {
		s.refill()
		s.shrink()
	}
	return err
}

// try makes one transaction. The results are of the requests, which may be
// tried again when it failed.
func (s *Store) try(reqs []*request, acks map[string]ackSet) (results []error, err error) {
	results = make([]error, len(reqs))
	var b *batch
	err = s.transact(func(tx *bbolt.Tx) (bool, error) {
		var err error
		if b, err = s.newBatch(tx); err != nil {
			return false, err
		}
		for name, a := range acks {
			b.forget(name, a.expired) // first: what a reader was not given counts as expired
			b.ack(name, a.upTo)
		}
		for i, r := range reqs {
			results[i] = r.apply(b)
		}
		b.finish()
		return b.worth, b.fatal
	})
	if err != nil {
		clear(s.hints)
		return nil, err
	}
	s.settle(b, acks)
	return results, nil
}

// tell sees to what no caller hears of: acks that could not be written.
func (s *Store) tell(err error, acks bool) {
	switch {
	case err == nil:
		s.flushAt = time.Time{}
		if s.failing {
			s.failing = false
			s.opts.Logger.Info("delivered messages are removed from the queue again", "file", s.path)
		}
	case acks:
		s.flushAt = time.Now().Add(flushRetry)
		if !s.failing {
			s.failing = true
			s.opts.Logger.Error("cannot remove delivered messages from the queue; after a crash they are delivered again. Is the disk full?", "file", s.path, "err", err)
		}
	}
}

// An ackSet is what waits to be removed from one queue.
type ackSet struct {
	upTo    uint64
	expired map[uint64]struct{}
}

// pending copies what waits to be removed.
func (s *Store) pending() map[string]ackSet {
	s.mu.Lock()
	defer s.mu.Unlock()
	acks := make(map[string]ackSet, len(s.dirty))
	for name := range s.dirty {
		q := s.queues[name]
		a := ackSet{upTo: q.ackTo, expired: make(map[uint64]struct{}, len(q.expired))}
		for seq := range q.expired {
			a.expired[seq] = struct{}{}
		}
		acks[name] = a
	}
	return acks
}

// settle brings memory to what is on disk now, and wakes the readers.
func (s *Store) settle(b *batch, acks map[string]ackSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, a := range acks {
		q := s.queues[name]
		q.ackDone = a.upTo
		for seq := range a.expired {
			delete(q.expired, seq)
		}
		if q.ackDone >= q.ackTo && len(q.expired) == 0 {
			delete(s.dirty, name)
		}
	}
	for name, t := range b.queues {
		q := s.queues[name]
		switch {
		case t == nil && q != nil: // removed
			delete(s.queues, name)
			delete(s.dirty, name)
			signal(q.changed)
		case t == nil:
		case q == nil:
			s.queues[name] = newQueue(t.last)
		default:
			q.last = t.last
		}
		if t != nil && t.appended {
			signal(s.queues[name].changed)
		}
	}
}

func newQueue(last uint64) *queue {
	return &queue{last: last, changed: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// transact runs one write transaction; change says whether it is worth a
// commit. An error means that nothing was kept, unless it is ErrUncertain.
func (s *Store) transact(change func(*bbolt.Tx) (bool, error)) error {
	if err := s.heal(); err != nil {
		return s.diskError(err)
	}
	var tx *bbolt.Tx
	_, err := guard(func() (_ struct{}, err error) {
		if tx, err = s.db.Begin(true); err != nil {
			return
		}
		defer func() {
			if tx.DB() != nil {
				tx.Rollback()
			}
		}()
		id := tx.ID()
		worth, err := change(tx)
		if err != nil || !worth {
			return
		}
		if err = s.commitTx(tx); err != nil && s.visible(id) {
			err = fmt.Errorf("%w: %w", ErrUncertain, err)
		}
		return
	})
	if err == nil {
		return nil
	}
	if tx != nil && tx.DB() != nil {
		s.dbmu.Lock()
		s.stuck = true
		s.dbmu.Unlock()
	}
	if errors.Is(err, ErrUncertain) || errors.Is(err, errDamaged) || errors.Is(err, bolterrors.ErrInvalidMapping) {
		s.suspect = err
	}
	return s.diskError(err)
}

// visible says whether transaction id is the newest one in the file: its last
// page was written, though perhaps not to the disk itself.
func (s *Store) visible(id int) bool {
	tx, err := s.db.Begin(false)
	if err != nil {
		return false // not mapped: bbolt got no further than making room
	}
	defer tx.Rollback()
	return tx.ID() >= id
}

func (s *Store) diskError(err error) error {
	return fmt.Errorf("%w: %s: %w", ErrDisk, s.path, err)
}
