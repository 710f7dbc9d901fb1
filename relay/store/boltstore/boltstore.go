// Package boltstore is the [store.KV] of a relay that works alone: one bbolt
// file. Every write is one transaction with fsync, so what was acknowledged
// survives kill -9 and power loss.
//
//	kv, err := boltstore.Open("/var/lib/sallyport/relay/relay.db")
//
// Format: one bucket "kv"; the value of a key is its revision (8 bytes, big
// endian) and then the caller's bytes. Revisions are the bucket's sequence:
// they grow over the whole store, so that a key that was deleted and made
// again never shows an old revision.
package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/sallyport/sallyport/relay/store"
)

var bucketName = []byte("kv")

const revisionLen = 8

// A Store is one open file. Only one process can hold it.
type Store struct {
	db   *bbolt.DB
	feed store.Feed

	// order keeps commit and publication of one write together: bbolt lets
	// one writer in at a time anyway, but lets go before the event is out.
	order sync.Mutex
}

var _ store.KV = (*Store)(nil)

// errNothing rolls a transaction back that has nothing to write: a commit
// would cost an fsync.
var errNothing = errors.New("nothing to write")

func check(ctx context.Context, key string, value []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := store.CheckKey(key); err != nil {
		return err
	}
	return store.CheckValue(value)
}

// Get implements store.KV.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	if err := check(ctx, key, nil); err != nil {
		return store.Entry{}, err
	}
	e := store.Entry{Key: key}
	err := s.db.View(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(bucketName).Get([]byte(key))
		if raw == nil {
			return store.ErrNotFound
		}
		var err error
		e.Revision, e.Value, err = decode(raw)
		return err
	})
	if err != nil {
		return store.Entry{}, explain("read "+key, err)
	}
	return e, nil
}

// Create implements store.KV.
func (s *Store) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	return s.put(ctx, key, value, func(current uint64) error {
		if current != 0 {
			return store.ErrExists
		}
		return nil
	})
}

// Update implements store.KV.
func (s *Store) Update(ctx context.Context, key string, value []byte, rev uint64) (uint64, error) {
	return s.put(ctx, key, value, func(current uint64) error {
		if current == 0 || current != rev {
			return store.ErrConflict
		}
		return nil
	})
}

// put writes key when allow agrees with its current revision (0: absent).
func (s *Store) put(ctx context.Context, key string, value []byte, allow func(current uint64) error) (uint64, error) {
	if err := check(ctx, key, value); err != nil {
		return 0, err
	}
	var rev uint64
	err := s.write(func(b *bbolt.Bucket) (store.Event, error) {
		current, err := revisionOf(b, key)
		if err == nil {
			err = allow(current)
		}
		if err != nil {
			return store.Event{}, err
		}
		if rev, err = b.NextSequence(); err != nil {
			return store.Event{}, err
		}
		ev := store.Event{Entry: store.Entry{Key: key, Value: value, Revision: rev}}
		return ev, b.Put([]byte(key), encode(rev, value))
	})
	if err != nil {
		return 0, explain("write "+key, err)
	}
	return rev, nil
}

// Delete implements store.KV.
func (s *Store) Delete(ctx context.Context, key string, rev uint64) error {
	if err := check(ctx, key, nil); err != nil {
		return err
	}
	err := s.write(func(b *bbolt.Bucket) (store.Event, error) {
		current, err := revisionOf(b, key)
		if err != nil {
			return store.Event{}, err
		}
		if rev != 0 && current != rev {
			return store.Event{}, store.ErrConflict
		}
		if current == 0 {
			return store.Event{}, errNothing
		}
		next, err := b.NextSequence()
		if err != nil {
			return store.Event{}, err
		}
		return store.Event{Entry: store.Entry{Key: key, Revision: next}, Deleted: true}, b.Delete([]byte(key))
	})
	if errors.Is(err, errNothing) {
		return nil
	}
	return explain("delete "+key, err)
}

// write runs one transaction, and tells the watchers once it is on disk.
func (s *Store) write(change func(*bbolt.Bucket) (store.Event, error)) error {
	s.order.Lock()
	defer s.order.Unlock()
	var ev store.Event
	err := s.db.Update(func(tx *bbolt.Tx) (err error) {
		ev, err = change(tx.Bucket(bucketName))
		return err
	})
	if err == nil {
		s.feed.Publish(ev)
	}
	return err
}

// List implements store.KV.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := store.CheckPrefix(prefix); err != nil {
		return nil, err
	}
	var list []store.Entry
	err := s.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketName).Cursor()
		for k, v := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
			rev, value, err := decode(v)
			if err != nil {
				return fmt.Errorf("key %s: %w", k, err)
			}
			list = append(list, store.Entry{Key: string(k), Value: value, Revision: rev})
		}
		return nil
	})
	if err != nil {
		return nil, explain("list "+prefix, err)
	}
	return list, nil
}

// Watch implements store.KV. The file has one owner, so every change passes
// through this process.
func (s *Store) Watch(ctx context.Context, prefix string) (<-chan store.Event, error) {
	return s.feed.Watch(ctx, prefix)
}

// Close implements store.KV. It waits for running transactions.
func (s *Store) Close() error {
	s.feed.Close()
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close the state: %w", err)
	}
	return nil
}

func encode(rev uint64, value []byte) []byte {
	raw := make([]byte, revisionLen, revisionLen+len(value))
	binary.BigEndian.PutUint64(raw, rev)
	return append(raw, value...)
}

// decode copies the value: bbolt's memory is gone after the transaction.
func decode(raw []byte) (rev uint64, value []byte, err error) {
	if len(raw) < revisionLen {
		return 0, nil, errors.New("the record is too short")
	}
	rev = binary.BigEndian.Uint64(raw)
	if rev == 0 {
		return 0, nil, errors.New("the record has no revision")
	}
	return rev, append([]byte{}, raw[revisionLen:]...), nil
}

func revisionOf(b *bbolt.Bucket, key string) (uint64, error) {
	raw := b.Get([]byte(key))
	if raw == nil {
		return 0, nil
	}
	rev, _, err := decode(raw)
	return rev, err
}

// explain adds what was being done to errors that callers do not decide by.
func explain(doing string, err error) error {
	switch {
	case err == nil, errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrExists), errors.Is(err, store.ErrConflict):
		return err
	case errors.Is(err, bolterrors.ErrDatabaseNotOpen):
		return store.ErrClosed
	}
	return fmt.Errorf("store: %s: %w", doing, err)
}
