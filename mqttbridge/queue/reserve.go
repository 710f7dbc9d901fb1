package queue

import (
	"time"

	"go.etcd.io/bbolt"
)

// bbolt needs room to delete: it writes changed pages to new places. On a full
// disk delivered messages could then not be removed, though they are what
// would make room. So the file holds a reserve that is given up in this case;
// giving it up needs two pages, and every commit leaves more than that free.
var (
	reserveBucket = []byte("reserve")
	reserveKey    = []byte("zeros")
)

const (
	reserveSize = 128 << 10
	reserveRest = 10 * time.Second // between tries to have it again
)

func putReserve(tx *bbolt.Tx) error {
	b, err := tx.CreateBucketIfNotExists(reserveBucket)
	if err != nil {
		return err
	}
	return b.Put(reserveKey, make([]byte, reserveSize))
}

// drain writes acks after a commit has failed that had them: alone, and if
// that is still too much, with the reserve and one queue at a time.
func (s *Store) drain(acks map[string]ackSet) error {
	_, err := s.try(nil, acks)
	if err == nil || s.suspect != nil {
		return err
	}
	if !s.spent {
		if err := s.transact(func(tx *bbolt.Tx) (bool, error) { return true, tx.DeleteBucket(reserveBucket) }); err != nil {
			return err
		}
		s.spent, s.refillAt = true, time.Now().Add(reserveRest)
	}
	for name, a := range acks {
		if _, err := s.try(nil, map[string]ackSet{name: a}); err != nil {
			return err
		}
	}
	return nil
}

// refill makes the reserve again when there is room.
func (s *Store) refill() {
	if !s.spent || time.Now().Before(s.refillAt) {
		return
	}
	s.refillAt = time.Now().Add(reserveRest)
	if s.transact(func(tx *bbolt.Tx) (bool, error) { return true, putReserve(tx) }) == nil {
		s.spent = false
	}
}
