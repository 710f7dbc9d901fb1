package names

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ValidPattern returns the canonical form of a pattern: a name, or "*."
// before a name. A star anywhere else is refused.
func ValidPattern(p string) (string, error) {
	base, wild := strings.CutPrefix(p, "*.")
	name, err := Canonical(base)
	switch {
	case err != nil && strings.Contains(base, "*"):
		return "", bad(p, "has a star elsewhere than in a leading \"*.\"")
	case err != nil:
		return "", err
	case !wild:
		return name, nil
	case len(name)+2 > maxName:
		return "", bad(p, "is longer than 253 bytes")
	}
	return "*." + name, nil
}

// Match reports whether a canonical pattern covers a canonical name. "*.x"
// covers names with exactly one label before x: not x, not a.b.x.
func Match(pattern, name string) bool {
	base, wild := strings.CutPrefix(pattern, "*.")
	if !wild {
		return name != "" && name == pattern
	}
	parent, ok := wildcardParent(name)
	return ok && parent == base
}

// wildcardParent returns what a wildcard that covers name has after its "*.".
// A first label that is not canonical is covered by nothing: a caller that
// forgot Canonical must not miss the exact entry of DOOR.test and then get
// the looser one of *.test.
func wildcardParent(name string) (string, bool) {
	label, parent, ok := strings.Cut(name, ".")
	if !ok || label == "" || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return "", false
	}
	return parent, parent != ""
}

// A Table maps patterns to values. It never changes and may be shared. The
// zero Table and a nil one are empty.
type Table[T any] struct {
	exact map[string]T
	wild  map[string]T // by the pattern without "*."
}

// NewTable makes a Table whose keys are patterns in any spelling that
// ValidPattern accepts. It reports every invalid key, and keys that are the
// same once canonical: which of the two should win is not ours to guess.
func NewTable[T any](entries map[string]T) (*Table[T], error) {
	t := &Table[T]{exact: make(map[string]T), wild: make(map[string]T)}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		p, err := ValidPattern(key)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		m := t.exact
		base, wild := strings.CutPrefix(p, "*.")
		if wild {
			m = t.wild
		}
		if _, dup := m[base]; dup {
			errs = append(errs, fmt.Errorf("host name %q is there twice, in different spellings", p))
			continue
		}
		m[base] = entries[key]
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return t, nil
}

// Lookup returns the value for a canonical name: that of the exact entry,
// otherwise that of the wildcard one label up.
func (t *Table[T]) Lookup(name string) (T, bool) {
	var none T
	if t == nil {
		return none, false
	}
	if v, ok := t.exact[name]; ok {
		return v, true
	}
	if parent, ok := wildcardParent(name); ok {
		v, ok := t.wild[parent]
		return v, ok
	}
	return none, false
}

// Len returns the number of entries.
func (t *Table[T]) Len() int {
	if t == nil {
		return 0
	}
	return len(t.exact) + len(t.wild)
}
