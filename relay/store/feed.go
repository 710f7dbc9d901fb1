package store

import (
	"bytes"
	"context"
	"strings"
	"sync"
)

// A Feed is the Watch half of a KV, for implementations that learn of every
// change in their own process. The zero value is ready.
//
// Each watcher has a queue that holds the last event of each key that changed
// since the watcher looked: a slow one costs memory by the number of keys, not
// by the number of writes, and delays nobody.
type Feed struct {
	mu       sync.Mutex // guards the fields below
	watchers map[*watcher]struct{}
	closed   bool
	pumps    sync.WaitGroup
}

// Watch implements KV.Watch: events published after it returns arrive.
func (f *Feed) Watch(ctx context.Context, prefix string) (<-chan Event, error) {
	if err := CheckPrefix(prefix); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w := &watcher{prefix: prefix, pending: map[string]Event{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, ErrClosed
	}
	if f.watchers == nil {
		f.watchers = map[*watcher]struct{}{}
	}
	f.watchers[w] = struct{}{}
	out := make(chan Event)
	f.pumps.Go(func() {
		w.pump(ctx, out)
		f.mu.Lock()
		delete(f.watchers, w)
		f.mu.Unlock()
	})
	return out, nil
}

// Publish queues an event for everyone whom it concerns. Callers publish in
// the order of their writes. It never blocks on a reader.
func (f *Feed) Publish(ev Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.watchers {
		if strings.HasPrefix(ev.Key, w.prefix) {
			w.add(ev)
		}
	}
}

// Close closes all channels and waits for that.
func (f *Feed) Close() {
	f.mu.Lock()
	if !f.closed {
		f.closed = true
		for w := range f.watchers {
			close(w.done)
		}
	}
	f.mu.Unlock()
	f.pumps.Wait()
}

type watcher struct {
	prefix string
	wake   chan struct{} // one token: there is something in the queue
	done   chan struct{} // closed with the feed

	mu      sync.Mutex // guards pending and order
	pending map[string]Event
	order   []string // keys of pending, the longest waiting first
}

func (w *watcher) add(ev Event) {
	ev.Value = bytes.Clone(ev.Value)
	w.mu.Lock()
	if _, waits := w.pending[ev.Key]; !waits {
		w.order = append(w.order, ev.Key)
	}
	w.pending[ev.Key] = ev
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) next() (Event, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.order) == 0 {
		return Event{}, false
	}
	key := w.order[0]
	w.order = w.order[1:]
	ev := w.pending[key]
	delete(w.pending, key)
	return ev, true
}

func (w *watcher) pump(ctx context.Context, out chan<- Event) {
	defer close(out)
	for {
		ev, ok := w.next()
		if !ok {
			select {
			case <-w.wake:
				continue
			case <-ctx.Done():
				return
			case <-w.done:
				return
			}
		}
		select {
		case out <- ev:
		case <-ctx.Done():
			return
		case <-w.done:
			return
		}
	}
}
