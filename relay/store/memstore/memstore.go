// Package memstore is a [store.KV] in memory, for tests and for whatever may
// be forgotten at exit.
//
//	kv := memstore.New()
//	rev, err := kv.Create(ctx, "devices/anna-phone", value)
package memstore

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/sallyport/sallyport/relay/store"
)

// A Store keeps everything in a map.
type Store struct {
	feed store.Feed

	mu       sync.Mutex // guards the fields below, and the order of feed.Publish
	entries  map[string]store.Entry
	revision uint64
	closed   bool
}

var _ store.KV = (*Store)(nil)

// New returns an empty store.
func New() store.KV { return &Store{entries: map[string]store.Entry{}} }

// begin checks the arguments and takes the lock, which the caller releases
// when there was no error.
func (s *Store) begin(ctx context.Context, key string, value []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := store.CheckKey(key); err != nil {
		return err
	}
	if err := store.CheckValue(value); err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return store.ErrClosed
	}
	return nil
}

// Get implements store.KV.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	if err := s.begin(ctx, key, nil); err != nil {
		return store.Entry{}, err
	}
	defer s.mu.Unlock()
	e, ok := s.entries[key]
	if !ok {
		return store.Entry{}, store.ErrNotFound
	}
	e.Value = bytes.Clone(e.Value)
	return e, nil
}

// Create implements store.KV.
func (s *Store) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	if err := s.begin(ctx, key, value); err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	if _, ok := s.entries[key]; ok {
		return 0, store.ErrExists
	}
	return s.put(key, value), nil
}

// Update implements store.KV.
func (s *Store) Update(ctx context.Context, key string, value []byte, rev uint64) (uint64, error) {
	if err := s.begin(ctx, key, value); err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	if e, ok := s.entries[key]; !ok || e.Revision != rev {
		return 0, store.ErrConflict
	}
	return s.put(key, value), nil
}

func (s *Store) put(key string, value []byte) uint64 {
	s.revision++
	e := store.Entry{Key: key, Value: append([]byte{}, value...), Revision: s.revision}
	s.entries[key] = e
	s.feed.Publish(store.Event{Entry: e})
	return e.Revision
}

// Delete implements store.KV.
func (s *Store) Delete(ctx context.Context, key string, rev uint64) error {
	if err := s.begin(ctx, key, nil); err != nil {
		return err
	}
	defer s.mu.Unlock()
	e, ok := s.entries[key]
	if rev != 0 && (!ok || e.Revision != rev) {
		return store.ErrConflict
	}
	if !ok {
		return nil
	}
	delete(s.entries, key)
	s.revision++
	s.feed.Publish(store.Event{Entry: store.Entry{Key: key, Revision: s.revision}, Deleted: true})
	return nil
}

// List implements store.KV.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := store.CheckPrefix(prefix); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, store.ErrClosed
	}
	var list []store.Entry
	for key, e := range s.entries {
		if strings.HasPrefix(key, prefix) {
			e.Value = bytes.Clone(e.Value)
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b store.Entry) int { return strings.Compare(a.Key, b.Key) })
	return list, nil
}

// Watch implements store.KV.
func (s *Store) Watch(ctx context.Context, prefix string) (<-chan store.Event, error) {
	return s.feed.Watch(ctx, prefix)
}

// Close implements store.KV.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.feed.Close()
	return nil
}
