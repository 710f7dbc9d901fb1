package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// An Agent is a home's end of a link.
type Agent struct {
	ID   string // hash of its key: its mailbox stays when its name changes
	Name string // one level of a topic
}

const (
	homeQueues     = "home/" // queues of homes: home/ID
	maxHomeFilters = 500     // each way
)

// A home is what the hub knows of one agent, connected or not: the rules that
// bring messages in, its mailbox, and how far its own messages came.
type home struct {
	hub     *Hub
	id      string
	mailbox string
	epoch   string // of what is retained of it here

	waiting quotas

	configuring sync.Mutex // one hello at a time

	mu     sync.Mutex // guards everything below
	name   string
	in     []mqttbridge.LinkFilter // relative
	out    []string                // relative
	stream string
	last   uint64 // newest number of stream that was carried out
	sent   uint64 // newest number of the mailbox that a link was given
	link   *link
	since  time.Time // of the link, or since when there is none
	seen   map[string]struct{}
	// seenRetained is how new the retained messages are that the last link knew.
	seenRetained uint64
	gone         bool // the agent was forgotten
}

// homeRecord is a home on disk: a relay that starts knows what to keep for
// homes that are not back yet.
type homeRecord struct {
	Name string                  `json:"name"`
	In   []mqttbridge.LinkFilter `json:"in"`
}

// lastRecord is how far a home's messages came. It is written with the
// messages.
type lastRecord struct {
	Stream string `json:"stream"`
	Last   uint64 `json:"last"`
}

func homeMailbox(id string) string { return homeQueues + id }

func lastKey(id string) string { return recordPrefix + "last/" + id }

func (hm *home) owner() string { return hm.id }

func (hm *home) awake() bool {
	hm.mu.Lock()
	defer hm.mu.Unlock()
	return hm.link != nil
}

func (hm *home) push(d delivery) {
	hm.mu.Lock()
	l := hm.link
	hm.mu.Unlock()
	if l != nil {
		l.push(d)
	}
}

func (hm *home) mailed() {
	hm.mu.Lock()
	l := hm.link
	hm.mu.Unlock()
	if l != nil {
		signal(l.wake)
	}
}

// cut ends the link, if there is one.
func (hm *home) cut(cause error) {
	hm.mu.Lock()
	l := hm.link
	hm.mu.Unlock()
	if l != nil {
		l.close(cause)
	}
}

func prefixOf(name string) string { return "home/" + name + "/" }

// restoreHomes reads what an earlier process knew.
func (h *Hub) restoreHomes() error {
	for _, name := range h.cfg.Queue.Queues() {
		id, ok := strings.CutPrefix(name, homeQueues)
		if !ok {
			continue
		}
		raw, found := h.cfg.Queue.Get(recordPrefix + name)
		var r homeRecord
		if !found || json.Unmarshal(raw, &r) != nil {
			if err := h.cfg.Queue.Remove(name); err != nil { // made, and never used
				return err
			}
			continue
		}
		hm := h.newHome(id, r.Name)
		hm.in = r.In
		for _, s := range hm.subscriptions(r.Name, r.In) {
			h.index.add(hm, s)
		}
		h.homes[id] = hm
		h.retained.set(h.stateMessage(hm, r.Name, "not connected since the relay started"))
	}
	return nil
}

func (h *Hub) newHome(id, name string) *home {
	hm := &home{hub: h, id: id, mailbox: homeMailbox(id), epoch: randomName(), name: name, since: h.cfg.Now()}
	if raw, ok := h.cfg.Queue.Get(lastKey(id)); ok {
		var r lastRecord
		if json.Unmarshal(raw, &r) == nil {
			hm.stream, hm.last = r.Stream, r.Last
		}
	}
	return hm
}

// subscriptions turns a home's rules into filters from the root.
func (hm *home) subscriptions(name string, in []mqttbridge.LinkFilter) []subscription {
	subs := make([]subscription, len(in))
	for i, f := range in {
		subs[i] = subscription{Filter: prefixOf(name) + f.Filter, QoS: f.QoS, DropOldest: f.DropOldest, MaxAge: f.MaxAge}
	}
	return subs
}

// homeOf returns the home of an agent, new if it was never here.
func (h *Hub) homeOf(a Agent) (*home, error) {
	h.mu.Lock()
	hm := h.homes[a.ID]
	var namesakes []*home
	for _, other := range h.homes {
		if other != hm && other.named(a.Name) {
			namesakes = append(namesakes, other)
		}
	}
	h.mu.Unlock()
	for _, other := range namesakes {
		if other.awake() {
			return nil, fmt.Errorf("another agent is connected under the name %q", a.Name)
		}
		// The name was given to another key. A mailbox that nobody reads any
		// more would fill up and refuse everybody.
		h.log.Info("mailbox removed: its agent's name belongs to another key now", "agent", a.Name, "id", other.id)
		h.ForgetAgent(other.id)
	}
	if hm != nil {
		return hm, nil
	}
	if err := h.cfg.Queue.Create(homeMailbox(a.ID), h.cfg.Limits.Mailbox); err != nil {
		return nil, fmt.Errorf("make the mailbox: %w", err)
	}
	hm = h.newHome(a.ID, a.Name)
	h.mu.Lock()
	defer h.mu.Unlock()
	if other := h.homes[a.ID]; other != nil { // two links came at once
		return other, nil
	}
	h.homes[a.ID] = hm
	return hm, nil
}

func (hm *home) named(name string) bool {
	hm.mu.Lock()
	defer hm.mu.Unlock()
	return hm.name == name
}

// checkHello says what is wrong with an agent's rules.
func checkHello(hello *mqttbridge.LinkHello) error {
	if hello.Version != mqttbridge.LinkVersion {
		return fmt.Errorf("the agent speaks version %d of the link, the relay %d: update the older one", hello.Version, mqttbridge.LinkVersion)
	}
	if !isToken(hello.Stream) || hello.Epoch != "" && !isToken(hello.Epoch) {
		return errors.New("the names of stream and epoch are 1 to 64 letters, digits, - and _")
	}
	if len(hello.In) > maxHomeFilters || len(hello.Out) > maxHomeFilters {
		return fmt.Errorf("more than %d rules in one direction", maxHomeFilters)
	}
	for _, f := range hello.In {
		if err := mqttbridge.CheckFilter(f.Filter); err != nil {
			return err
		}
		if f.QoS > 2 || f.MaxAge < 0 {
			return fmt.Errorf("filter %q: QoS %d, age %v", f.Filter, f.QoS, f.MaxAge)
		}
	}
	for _, f := range hello.Out {
		if err := mqttbridge.CheckFilter(f); err != nil {
			return err
		}
	}
	return nil
}

func isToken(s string) bool {
	return s != "" && len(s) <= 64 && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	}) < 0
}

// configure takes an agent's rules over and returns how far its stream came.
// Retained messages on topics that a rule brings in for the first time go into
// the mailbox.
func (hm *home) configure(name string, hello *mqttbridge.LinkHello) (last uint64, err error) {
	h := hm.hub
	hm.configuring.Lock()
	defer hm.configuring.Unlock()
	hm.mu.Lock()
	old, oldIn, gone := hm.name, hm.in, hm.gone
	hm.mu.Unlock()
	if gone {
		return 0, errForgotten
	}
	if old != name || !slices.Equal(oldIn, hello.In) {
		raw, err := json.Marshal(homeRecord{Name: name, In: hello.In})
		if err != nil {
			return 0, err
		}
		if err := h.cfg.Queue.Set(recordPrefix+hm.mailbox, raw); err != nil {
			return 0, fmt.Errorf("keep the rules: %w", err)
		}
	} else if _, ok := h.cfg.Queue.Get(recordPrefix + hm.mailbox); !ok {
		raw, _ := json.Marshal(homeRecord{Name: name})
		if err := h.cfg.Queue.Set(recordPrefix+hm.mailbox, raw); err != nil {
			return 0, fmt.Errorf("keep the rules: %w", err)
		}
	}
	before, after := hm.subscriptions(old, oldIn), hm.subscriptions(name, hello.In)
	leave := h.lanes.enter(prefixOf(name))
	for _, s := range after {
		h.index.add(hm, s)
	}
	hm.catchUp(before, after)
	leave()
	for _, s := range before {
		if !slices.ContainsFunc(after, func(t subscription) bool { return t.Filter == s.Filter }) {
			h.index.remove(hm, s.Filter)
		}
	}
	hm.mu.Lock()
	hm.name, hm.in, hm.out = name, slices.Clone(hello.In), slices.Clone(hello.Out)
	if hello.Stream != hm.stream {
		hm.stream, hm.last = hello.Stream, 0
	}
	last = hm.last
	hm.mu.Unlock()
	if old != name {
		h.retained.purge(func(m *message) bool { return m.topic == stateTopic(old) && m.sender.agent == hm.id })
	}
	return last, nil
}

// catchUp puts what is retained on topics that are new to the home into its
// mailbox, as far as there is room: a full one must not keep the home away,
// which alone can empty it.
func (hm *home) catchUp(before, after []subscription) {
	h := hm.hub
	var items []queue.Item
	for _, s := range after {
		if s.QoS == 0 || slices.ContainsFunc(before, func(t subscription) bool { return t.QoS > 0 && mqttbridge.Covers(t.Filter, s.Filter) }) {
			continue
		}
		for _, m := range h.retained.match(s.Filter, 0, h.cfg.Now()) {
			if m.sender.agent == hm.id || m.qos == 0 {
				continue
			}
			d := delivery{m: m, qos: min(m.qos, s.QoS), retain: true}
			items = append(items, queue.Item{Queue: hm.mailbox, Data: d.encode(), Expires: m.expires, Droppable: s.DropOldest})
		}
	}
	for len(items) > 0 {
		n := min(len(items), maxAppend)
		for {
			_, err := h.cfg.Queue.Append(context.Background(), items[:n], nil)
			if err == nil {
				break
			}
			if n == 1 {
				h.log.Warn("retained messages do not reach a home whose rules have changed", "agent", hm.id, "missing", len(items), "err", err)
				return
			}
			n /= 2 // a part of them is better than none
		}
		items = items[n:]
	}
}

// takes says whether one of the home's rules still brings a topic in.
func (hm *home) takes(topic string) bool {
	hm.mu.Lock()
	defer hm.mu.Unlock()
	rel, ok := strings.CutPrefix(topic, prefixOf(hm.name))
	return ok && slices.ContainsFunc(hm.in, func(f mqttbridge.LinkFilter) bool { return mqttbridge.Match(f.Filter, rel) })
}

func stateTopic(name string) string { return prefixOf(name) + "bridge/state" }

// stateMessage says whether the home is connected; reason is why not.
func (h *Hub) stateMessage(hm *home, name, reason string) *message {
	payload, _ := json.Marshal(struct {
		Online bool      `json:"online"`
		At     time.Time `json:"at"`
		Reason string    `json:"reason,omitempty"`
	}{reason == "", h.cfg.Now().UTC().Truncate(time.Second), reason})
	return &message{topic: stateTopic(name), payload: payload, qos: 1, retain: true, sender: sender{agent: hm.id}}
}

// announce publishes the home's state.
func (hm *home) announce(reason string) {
	hm.mu.Lock()
	name, gone := hm.name, hm.gone
	hm.mu.Unlock()
	if gone {
		return
	}
	h := hm.hub
	m := h.stateMessage(hm, name, reason)
	err := h.route(context.Background(), []*message{m}, nil)
	if err != nil && !errors.Is(err, queue.ErrClosed) {
		h.log.Warn("cannot publish a home's state, only retain it", "agent", name, "err", err)
		h.retained.set(m)
	}
}
