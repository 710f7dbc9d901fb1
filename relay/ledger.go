package relay

import (
	"context"
	"errors"

	"github.com/sallyport/sallyport/relay/store"
)

// ledgerPrefix is where the commands stand in the store.
const ledgerPrefix = "commands/"

// A ledger is the part of the store that holds commands.
type ledger struct{ kv store.KV }

// Put writes a key, whatever was there.
func (l ledger) Put(ctx context.Context, key string, value []byte) error {
	return putKey(ctx, l.kv, ledgerPrefix+key, value)
}

func putKey(ctx context.Context, kv store.KV, key string, value []byte) error {
	for {
		e, err := kv.Get(ctx, key)
		switch {
		case errors.Is(err, store.ErrNotFound):
			_, err = kv.Create(ctx, key, value)
		case err == nil:
			_, err = kv.Update(ctx, key, value, e.Revision)
		}
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrExists) {
			return err
		}
	}
}

// Get returns nil for a key that is not there.
func (l ledger) Get(ctx context.Context, key string) ([]byte, error) {
	e, err := l.kv.Get(ctx, ledgerPrefix+key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return e.Value, err
}

// Create writes a key that is not there yet.
func (l ledger) Create(ctx context.Context, key string, value []byte) (created bool, err error) {
	_, err = l.kv.Create(ctx, ledgerPrefix+key, value)
	if errors.Is(err, store.ErrExists) {
		return false, nil
	}
	return err == nil, err
}

func (l ledger) Delete(ctx context.Context, key string) error {
	return l.kv.Delete(ctx, ledgerPrefix+key, 0)
}

func (l ledger) List(ctx context.Context, prefix string) (map[string][]byte, error) {
	entries, err := l.kv.List(ctx, ledgerPrefix+prefix)
	if err != nil {
		return nil, err
	}
	m := make(map[string][]byte, len(entries))
	for _, e := range entries {
		m[e.Key[len(ledgerPrefix):]] = e.Value
	}
	return m, nil
}
