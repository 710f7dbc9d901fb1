package flow

import (
	"sync"
	"time"
)

// A deadline is a channel that closes when its time has come, and is new
// again after set. Like the one in net.Pipe. The zero value has no time set.
type deadline struct {
	mu      sync.Mutex // guards the fields below
	timer   *time.Timer
	expired chan struct{} // made on first use
}

// set arms the deadline anew; the zero time disarms it.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disarm()
	if d.expired == nil {
		d.expired = make(chan struct{})
	}
	closed := isClosed(d.expired)
	if t.IsZero() {
		if closed {
			d.expired = make(chan struct{})
		}
		return
	}
	if wait := time.Until(t); wait > 0 {
		if closed {
			d.expired = make(chan struct{})
		}
		ch := d.expired
		d.timer = time.AfterFunc(wait, func() { close(ch) })
		return
	}
	if !closed {
		close(d.expired)
	}
}

// wait returns the channel to select on.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.expired == nil {
		d.expired = make(chan struct{})
	}
	return d.expired
}

// stop releases the timer.
func (d *deadline) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disarm()
}

func (d *deadline) disarm() {
	if d.timer != nil && !d.timer.Stop() {
		<-d.expired // it fired: wait until its function has closed the channel
	}
	d.timer = nil
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// wake puts a token into a channel of capacity one.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// A gate is a lock that waits on a channel: unlike a sync.Mutex it may be held
// while something blocks, also in a synctest bubble, where time stands still as
// long as somebody waits for a mutex.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) lock()   { g <- struct{}{} }
func (g gate) unlock() { <-g }
