package tunneltcp

import (
	"sync"
	"time"
)

// readers are the streams in which somebody may wait in Read. When a session
// ends, yamux lets them run in circles until it has closed every stream, and takes
// the streams' locks for that between them: with some hundred streams both cores
// of a small machine were busy for up to a minute. So they are sent home before.
type readers struct {
	mu     sync.Mutex // guards the fields below
	open   map[yamuxStream]struct{}
	closed bool
}

func (r *readers) add(y yamuxStream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		y.SetReadDeadline(longAgo)
		return
	}
	if r.open == nil {
		r.open = map[yamuxStream]struct{}{}
	}
	r.open[y] = struct{}{}
}

func (r *readers) remove(y yamuxStream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, y)
}

// close ends every Read that finds nothing more to read.
func (r *readers) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for y := range r.open {
		y.SetReadDeadline(longAgo)
	}
	r.open = nil
}

var longAgo = time.Unix(1, 0)
