package store

import (
	"errors"
	"fmt"
)

// ErrClosed is what every method of a closed store returns, except Close.
var ErrClosed = errors.New("store: closed")

// Limits of a KV.
const (
	MaxKey   = 512
	MaxValue = 1 << 20
)

// CheckKey says why a string is not a key. Implementations call it before
// every access.
func CheckKey(key string) error {
	if key == "" {
		return errors.New("store: a key is not empty")
	}
	return CheckPrefix(key)
}

// CheckPrefix is CheckKey for prefixes, which may be empty.
func CheckPrefix(prefix string) error {
	if len(prefix) > MaxKey {
		return fmt.Errorf("store: a key of %d bytes is too long, at most %d are allowed", len(prefix), MaxKey)
	}
	for i := range len(prefix) {
		if prefix[i] <= ' ' || prefix[i] >= 0x7f {
			return fmt.Errorf("store: the key %q holds more than printable ASCII without spaces", prefix)
		}
	}
	return nil
}

// CheckValue says why a value cannot be stored.
func CheckValue(value []byte) error {
	if len(value) > MaxValue {
		return fmt.Errorf("store: a value of %d bytes is too long, at most %d are allowed", len(value), MaxValue)
	}
	return nil
}
