package executor

import (
	"slices"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A waiter waits for an ack. What is heard before it stands does not count.
type waiter struct {
	topic string
	match *matcher
	heard chan struct{} // closed by the first match
	done  bool
}

// await begins to wait, right before the command is published.
func (e *Executor) await(topic string, m *matcher) *waiter {
	w := &waiter{topic: topic, match: m, heard: make(chan struct{})}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.waiters[w] = struct{}{}
	return w
}

func (e *Executor) forget(w *waiter) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.waiters, w)
}

// listen subscribes to the topics of all actions, long before a command needs
// them: a subscription that is made with the command might miss its ack.
func (e *Executor) listen() {
	e.setting.Lock()
	defer e.setting.Unlock()
	e.listening = true
	for _, filter := range discoveryFilters {
		e.watches[filter] = e.broker.Subscribe(filter, e.discovered)
	}
	e.subscribe(e.set.Load())
}

// subscribe adds what a set needs. The caller holds e.setting.
func (e *Executor) subscribe(set *actionSet) {
	for _, filter := range set.filters() {
		if e.watches[filter] == nil {
			e.watches[filter] = e.broker.Subscribe(filter, e.heard)
		}
	}
}

// unsubscribe ends what a set does not need. The caller holds e.setting.
func (e *Executor) unsubscribe(set *actionSet) {
	want := append(set.filters(), discoveryFilters...)
	for filter, cancel := range e.watches {
		if !slices.Contains(want, filter) {
			cancel()
			delete(e.watches, filter)
		}
	}
}

func (e *Executor) unlisten() {
	e.setting.Lock()
	defer e.setting.Unlock()
	e.listening = false
	for filter, cancel := range e.watches {
		cancel()
		delete(e.watches, filter)
	}
}

// heard takes a message of a state or ack topic.
func (e *Executor) heard(topic string, payload []byte, retained bool) {
	if len(payload) > mqttbridge.MaxPayload {
		return
	}
	if !retained { // a retained message is from before, whenever it comes
		e.confirmWaiters(topic, payload)
	}
	for _, a := range e.set.Load().list {
		if a.State == topic {
			if value, ok := liveValue(payload, a.statePath); ok {
				e.showLive(a.Name, value)
			}
		}
	}
}

func (e *Executor) confirmWaiters(topic string, payload []byte) {
	e.mu.Lock()
	var ask []*waiter
	for w := range e.waiters {
		if w.topic == topic && !w.done {
			ask = append(ask, w)
		}
	}
	e.mu.Unlock()
	for _, w := range ask {
		if !w.match.match(payload) {
			continue
		}
		e.mu.Lock()
		if !w.done {
			w.done = true
			close(w.heard)
		}
		e.mu.Unlock()
	}
}

func (e *Executor) showLive(name, value string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	was, ok := e.live[name]
	e.live[name] = mqttbridge.Live{Value: value, At: e.now().UTC()}
	// The same value again is news only as far as its age is shown.
	if !ok || was.Value != value || e.live[name].At.Sub(was.At).Abs() > time.Minute {
		e.changedLocked()
	}
}
