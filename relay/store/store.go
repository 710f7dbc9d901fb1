// Package store declares the key-value store in which the relay keeps what
// must survive a restart: agents, claims, devices. One relay uses boltstore;
// several will share one behind the same interface. memstore serves tests,
// storetest is the suite that every implementation passes.
package store

import (
	"context"
	"errors"
)

// Errors that callers decide by.
var (
	ErrNotFound = errors.New("store: key not found")
	ErrExists   = errors.New("store: key exists")
	ErrConflict = errors.New("store: revision is not the current one")
)

// An Entry is one key with its value. Revision changes at every write of the
// key and is never zero; Value belongs to the caller.
type Entry struct {
	Key      string
	Value    []byte
	Revision uint64
}

// An Event tells one change under a watched prefix.
type Event struct {
	Entry
	Deleted bool
}

// KV is safe for concurrent use. Keys are paths of printable ASCII without
// spaces ("devices/anna-phone"), at most 512 bytes; values at most 1 MiB.
// A write that returned nil is on disk.
type KV interface {
	// Get returns the entry, or ErrNotFound.
	Get(ctx context.Context, key string) (Entry, error)
	// Create writes a key that must not exist, or ErrExists.
	Create(ctx context.Context, key string, value []byte) (revision uint64, err error)
	// Update replaces a key whose current revision is rev, or ErrConflict
	// (also when the key is gone).
	Update(ctx context.Context, key string, value []byte, rev uint64) (revision uint64, err error)
	// Delete removes a key whose current revision is rev, or ErrConflict;
	// rev 0 deletes whatever is there and does not mind absence.
	Delete(ctx context.Context, key string, rev uint64) error
	// List returns all entries under a prefix, in order of key.
	List(ctx context.Context, prefix string) ([]Entry, error)
	// Watch sends every change under prefix made after the call until ctx
	// ends, then closes the channel. A slow reader delays nobody; it may miss
	// intermediate values of a key but never its last.
	Watch(ctx context.Context, prefix string) (<-chan Event, error)
	// Close releases the store. The second call does nothing.
	Close() error
}
