package admin

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"
)

const (
	maxStreams = 64               // event streams of one dashboard
	streamLife = 30 * time.Minute // then the browser asks again, and is authorised again
	tickEvery  = 20 * time.Second // keeps middleboxes awake, and ages and byte counts fresh
	settle     = 200 * time.Millisecond
	// streamBudget is for one write to a browser that does not read. It is longer
	// than tickEvery: over HTTP/2 a deadline that passes resets the stream, also
	// when there was nothing to write.
	streamBudget = tickEvery + 10*time.Second
)

// events tells the page that it is out of date; the page then fetches itself.
// So there is one way only to make a page, and the stream holds nothing that
// somebody could read.
func (d *dashboard) events(w http.ResponseWriter, r *http.Request) {
	select {
	case d.streams <- struct{}{}:
		defer func() { <-d.streams }()
	default:
		http.Error(w, "too many pages are open", http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), streamLife)
	defer cancel()
	var changes <-chan struct{}
	if d.cfg.Changes != nil {
		changes = d.cfg.Changes(ctx)
	}
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	send := func(text string) bool {
		// A recorder has no deadline to set, a real connection has.
		_ = out.SetWriteDeadline(time.Now().Add(streamBudget))
		_, err := io.WriteString(w, text)
		return err == nil && out.Flush() == nil
	}
	ok := send("retry: 3000\n\n")
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for ok {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			ok = send("event: tick\ndata:\n\n")
		case _, more := <-changes:
			if !more {
				changes = nil // only ticks from here on
				continue
			}
			rest(ctx, changes)
			ok = send("event: change\ndata:\n\n")
		}
	}
}

// rest waits until a burst of changes is probably over, so that it costs one
// page and not ten.
func rest(ctx context.Context, changes <-chan struct{}) {
	timer := time.NewTimer(settle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case _, more := <-changes:
			if !more {
				return
			}
		}
	}
}

// A Bell tells any number of listeners that something changed. Its zero value
// is ready. Ring never blocks, so that it may be called under locks.
type Bell struct {
	mu        sync.Mutex // guards listeners
	listeners map[chan struct{}]struct{}
}

// Ring wakes all listeners.
func (b *Bell) Ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.listeners {
		select {
		case c <- struct{}{}:
		default: // it has not yet looked at the last one
		}
	}
}

// Listen returns a channel that gets a value after one or more rings, until
// ctx ends. It fits DashboardConfig.Changes.
func (b *Bell) Listen(ctx context.Context) <-chan struct{} {
	c := make(chan struct{}, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.listeners == nil {
		b.listeners = map[chan struct{}]struct{}{}
	}
	b.listeners[c] = struct{}{}
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.listeners, c)
	})
	return c
}
