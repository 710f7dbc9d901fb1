package ech

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// A stored file holds the keys, newest first.
type stored struct {
	Schema int         `json:"schema"`
	Keys   []storedKey `json:"keys"`
}

type storedKey struct {
	Made    time.Time `json:"made"`
	Config  []byte    `json:"config"`  // ECHConfig
	Private []byte    `json:"private"` // as crypto/hpke writes it
}

// maxFile bounds what is read: maxKeys keys are about 20 KiB.
const maxFile = 1 << 20

// load reads the keys; none when there is no file yet.
func load(path string) ([]*key, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read ECH keys: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("read ECH keys: %w", err)
	}
	keys, err := decodeKeys(data)
	if err != nil {
		return nil, fmt.Errorf("the ECH keys in %s are damaged: %w\n"+
			"Remove the file to start with new ones: visitors who have an old one are handed the new one at their next visit.", path, err)
	}
	return keys, nil
}

// decodeKeys reads the content of the file.
func decodeKeys(data []byte) ([]*key, error) {
	var s stored
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return nil, err
	}
	if d.More() || s.Schema != 1 || len(s.Keys) == 0 || len(s.Keys) > maxKeys {
		return nil, fmt.Errorf("schema %d with %d keys is nothing that this version wrote", s.Schema, len(s.Keys))
	}
	var keys []*key
	for i, sk := range s.Keys {
		k, err := readKey(sk.Config, sk.Private, sk.Made)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// save writes the keys, whole or not at all.
func save(path string, keys []*key) error {
	s := stored{Schema: 1}
	for _, k := range keys {
		private, err := k.private.Bytes()
		if err != nil {
			return fmt.Errorf("save ECH keys: %w", err)
		}
		s.Keys = append(s.Keys, storedKey{Made: k.made.UTC().Round(0), Config: k.config, Private: private})
	}
	data, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return fmt.Errorf("save ECH keys: %w", err)
	}
	if err := pki.WriteFile(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("save ECH keys: %w", err)
	}
	return nil
}
