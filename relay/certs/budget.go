package certs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

const (
	budgetFile    = "new-names.json" // in ACMEConfig.Dir
	budgetSpan    = 24 * time.Hour
	defaultBudget = 100 // per budgetSpan
)

// A budget bounds for how many new names the CA is asked in a day. The CA
// counts them over all hosts of a domain: without a bound one home that may
// register many hosts could spend what the others need. A name counts once in
// a day however often it is tried, for ACME.retries bounds that.
type budget struct {
	path  string
	limit int // below zero: none

	mu    sync.Mutex           // guards spent; held while the small file is written, so that the last write is the newest
	spent map[string]time.Time // when names were counted; at most limit of them are younger than budgetSpan
}

// openBudget reads what was spent before, or a restart would be a new budget.
func openBudget(dir string, limit int, logger *slog.Logger) *budget {
	b := &budget{path: filepath.Join(dir, budgetFile), limit: limit, spent: make(map[string]time.Time)}
	data, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return b
	}
	var spent map[string]time.Time
	if err == nil {
		err = json.Unmarshal(data, &spent)
	}
	if err != nil { // a bound that fails open for a day is better than no certificates
		logger.Warn("what was spent of the budget for new names is not known", "err", err)
		return b
	}
	maps.Copy(b.spent, spent)
	return b
}

// full returns when there will be room for name; zero: there is now.
func (b *budget) full(name string, now time.Time) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.room(name, now)
}

// take counts name, or returns when there will be room for it. An error says
// that it is counted until the next restart only.
func (b *budget) take(name string, now time.Time) (until time.Time, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if until = b.room(name, now); !until.IsZero() {
		return until, nil
	}
	if _, ok := b.spent[name]; ok || b.limit < 0 {
		return time.Time{}, nil
	}
	b.spent[name] = now
	data, err := json.Marshal(b.spent)
	if err == nil {
		err = pki.WriteFile(b.path, data, 0o600)
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("keep the budget for new names: %w", err)
	}
	return time.Time{}, nil
}

// room is full; mu is held.
func (b *budget) room(name string, now time.Time) time.Time {
	var oldest time.Time
	for other, at := range b.spent {
		if now.Sub(at) >= budgetSpan || at.After(now) { // or of a clock that was wrong
			delete(b.spent, other)
		} else if oldest.IsZero() || at.Before(oldest) {
			oldest = at
		}
	}
	if _, ok := b.spent[name]; ok || b.limit < 0 || len(b.spent) < b.limit {
		return time.Time{}
	}
	return oldest.Add(budgetSpan)
}

// spentFailure says that name waits for room until then.
func (b *budget) spentFailure(name string, until time.Time) *failure {
	return &failure{
		held: true, until: until,
		problem: fmt.Sprintf("%s waits: the CA was asked for %d new names within a day, and that is the relay's own limit", name, b.limit),
		fix:     "wait: it is tried at " + until.UTC().Format(clockFormat) + " by itself; see which home registers that many hosts",
	}
}
