package authdns

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// TXT is a Source of texts that come and go: the answers to ACME's DNS-01. They
// live in memory only; an order that spans a restart of the relay is made again.
type TXT struct {
	now func() time.Time

	mu      sync.RWMutex // guards all below
	texts   map[string]texts
	tree    tree
	version uint64
}

type texts struct {
	values []string
	until  time.Time
}

const (
	txtLife  = time.Hour
	txtTTL   = time.Second // a CA asks more than once, and the value may be a new one
	maxTXT   = 10_000      // names
	maxTexts = 16          // values of a name
)

// NewTXT returns a TXT that knows nothing yet. now is the clock; nil: time.Now.
func NewTXT(now func() time.Time) *TXT {
	if now == nil {
		now = time.Now
	}
	return &TXT{now: now, texts: map[string]texts{}, tree: tree{}}
}

// SetTXT replaces all values of a canonical name; none: the name goes. They go
// by themselves after ttl, 0: an hour. Whose names they are the caller has
// checked.
func (t *TXT) SetTXT(name string, values []string, ttl time.Duration) error {
	if len(values) > maxTexts {
		return fmt.Errorf("%d values for the TXT record %s: at most %d", len(values), name, maxTexts)
	}
	for _, v := range values {
		if len(v) > 255 {
			return fmt.Errorf("a value for the TXT record %s has %d bytes: at most 255", name, len(v))
		}
	}
	if ttl <= 0 {
		ttl = txtLife
	}
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep(now)
	old, had := t.texts[name]
	if !had && len(values) > 0 && len(t.texts) >= maxTXT {
		return fmt.Errorf("the TXT record %s cannot be set: there are %d already; try again in an hour", name, maxTXT)
	}
	if len(values) == 0 {
		t.remove(name)
		return nil
	}
	if !had {
		t.tree.add(name, 1)
	}
	t.texts[name] = texts{values: slices.Clone(values), until: now.Add(ttl)}
	if !slices.Equal(old.values, values) {
		t.version++
	}
	return nil
}

// sweep removes what has gone by itself; mu is held.
func (t *TXT) sweep(now time.Time) {
	for name, x := range t.texts {
		if !now.Before(x.until) {
			t.remove(name)
		}
	}
}

// remove removes a name, if it is there; mu is held.
func (t *TXT) remove(name string) {
	if _, ok := t.texts[name]; !ok {
		return
	}
	delete(t.texts, name)
	t.tree.add(name, -1)
	t.version++
}

// Lookup is Source.
func (t *TXT) Lookup(name string, _ netip.Addr) (Answer, bool) {
	t.mu.RLock()
	x, ok := t.texts[name]
	t.mu.RUnlock()
	if !ok || !t.now().Before(x.until) {
		return Answer{}, false
	}
	return Answer{TXT: x.values, TTL: txtTTL}, true
}

// Below reports whether there is a text below a name.
func (t *TXT) Below(name string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.tree[name] > 0
}

// Version rises with every change.
func (t *TXT) Version() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.version
}
