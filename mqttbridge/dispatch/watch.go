package dispatch

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	// watchStatuses bounds the commands that wait for a slow reader; more push
	// out the oldest, which Command still knows.
	watchStatuses = 128
	// justFinished is how far back a new watch is told of ends, so that a page
	// that lost its stream for a moment misses none.
	justFinished = time.Minute
)

// A watch is one reader of Watch. What it has not read yet is kept once for
// each home and command, the newest; so it delays nobody and stays small.
type watch struct {
	device string
	wake   chan struct{} // one token: there is something to tell
	ended  chan struct{} // closed by end
	end    func()

	mu       sync.Mutex // guards the fields below; taken while Dispatcher.mu is held, never the other way round
	homes    []string
	statuses []mqttbridge.Status

	shown map[string]*mqttbridge.Home // what the reader has; of the goroutine in tell alone
}

// Watch tells a device what changes: first the homes as they are, then its
// commands that have no end or came to one within the last minute, then every
// change. A reader that is slow misses values in between, never the last one of
// a home; of commands the last 128 wait for it. The channel closes when ctx
// ends, when the device is revoked or not allowed, and when the same device
// opened Limits.Watches newer ones. What events point to is shared: do not
// change it.
func (d *Dispatcher) Watch(ctx context.Context, device string) <-chan mqttbridge.Event {
	out := make(chan mqttbridge.Event)
	w := &watch{
		device: device, wake: make(chan struct{}, 1), ended: make(chan struct{}),
		shown: map[string]*mqttbridge.Home{},
	}
	w.end = sync.OnceFunc(func() { close(w.ended) })
	d.mu.Lock()
	g := d.guest(device)
	g.watches = append(g.watches, w)
	if len(g.watches) > d.cfg.Limits.Watches {
		g.watches[0].end() // most likely a phone that changed its network
		g.watches = slices.Delete(g.watches, 0, 1)
	}
	for _, name := range slices.Sorted(maps.Keys(d.homes)) {
		w.home(name)
	}
	d.firstStatuses(w)
	d.unlock()
	// Asked after the watch is known: whoever is revoked from here on is ended
	// by EndDevice.
	if !d.cfg.Allowed(device) {
		w.end()
	}
	go d.tell(ctx, w, out)
	return out
}

// firstStatuses queues the device's commands that a new reader wants to know.
// It wants d.mu.
func (d *Dispatcher) firstStatuses(w *watch) {
	var list []mqttbridge.Status
	now := d.now()
	for _, c := range d.commands.byDevice[w.device] {
		if c.recorded == nil && (!c.status.Final || now.Sub(c.status.At) < justFinished) {
			list = append(list, c.status)
		}
	}
	slices.SortFunc(list, func(a, b mqttbridge.Status) int { return a.Created.Compare(b.Created) })
	for _, s := range list {
		w.status(s)
	}
}

// tell passes on what the watch learns until it ends.
func (d *Dispatcher) tell(ctx context.Context, w *watch, out chan<- mqttbridge.Event) {
	defer close(out)
	defer d.unwatch(w)
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.ended:
			return
		default:
		}
		ev, ok := d.next(w)
		if !ok {
			select {
			case <-ctx.Done():
			case <-w.ended:
			case <-w.wake:
			}
			continue
		}
		select {
		case <-ctx.Done():
		case <-w.ended:
		case out <- ev:
		}
	}
}

// next returns what the reader does not know yet.
func (d *Dispatcher) next(w *watch) (mqttbridge.Event, bool) {
	for {
		name, status, ok := w.take()
		switch {
		case !ok:
			return mqttbridge.Event{}, false
		case name == "":
			return mqttbridge.Event{Status: &status}, true
		}
		var view *mqttbridge.Home
		if s := d.shotOf(name); s != nil {
			view = s.view(w.device)
		}
		if view == w.shown[name] {
			continue
		}
		if view == nil {
			delete(w.shown, name)
			return mqttbridge.Event{HomeGone: name}, true
		}
		w.shown[name] = view
		return mqttbridge.Event{Home: view}, true
	}
}

// take returns the name of a home that changed, or a status.
func (w *watch) take() (home string, status mqttbridge.Status, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case len(w.homes) > 0:
		home = w.homes[0]
		w.homes = slices.Delete(w.homes, 0, 1)
	case len(w.statuses) > 0:
		status = w.statuses[0]
		w.statuses = slices.Delete(w.statuses, 0, 1)
	default:
		return "", status, false
	}
	return home, status, true
}

// home queues a home; the value is looked up when the reader takes it.
func (w *watch) home(name string) {
	w.mu.Lock()
	if !slices.Contains(w.homes, name) {
		w.homes = append(w.homes, name)
	}
	w.mu.Unlock()
	w.ring()
}

// status queues a command in place of an older state of it.
func (w *watch) status(s mqttbridge.Status) {
	w.mu.Lock()
	if i := slices.IndexFunc(w.statuses, func(o mqttbridge.Status) bool { return o.ID == s.ID }); i >= 0 {
		w.statuses[i] = s
	} else {
		if len(w.statuses) >= watchStatuses {
			w.statuses = slices.Delete(w.statuses, 0, 1)
		}
		w.statuses = append(w.statuses, s)
	}
	w.mu.Unlock()
	w.ring()
}

func (w *watch) ring() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (d *Dispatcher) unwatch(w *watch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g := d.guests[w.device]; g != nil {
		g.watches = slices.DeleteFunc(g.watches, func(o *watch) bool { return o == w })
	}
}

// tellHome tells every watch that a home changed. It wants d.mu.
func (d *Dispatcher) tellHome(name string) {
	for _, g := range d.guests {
		for _, w := range g.watches {
			w.home(name)
		}
	}
}

// tellStatus tells the watches of a command's device. It wants d.mu.
func (d *Dispatcher) tellStatus(s mqttbridge.Status) {
	if g := d.guests[s.Device]; g != nil {
		for _, w := range g.watches {
			w.status(s)
		}
	}
}
