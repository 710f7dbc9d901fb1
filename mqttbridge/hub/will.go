package hub

import (
	"context"
	"time"
)

// A will is what a client wants published when it is lost. The engine never
// sees it: it would publish it without asking anybody.
type will struct {
	m     message
	life  time.Duration // MQTT 5 message expiry, from when it is published; 0: none
	delay time.Duration
	timer *time.Timer // of a delayed one; Hub.mu guards it
}

// willEnds decides about the will of a connection that has ended. keep is how
// long its session lives on.
func (h *Hub) willEnds(c *conn, keep time.Duration) {
	w := c.will
	if w == nil || c.farewell || c.end.noWill {
		return
	}
	wait := min(w.delay, keep)
	if wait <= 0 {
		h.publishWill(c.id, w)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return
	}
	if old := h.wills[c.key]; old != nil {
		old.timer.Stop()
	}
	h.wills[c.key] = w
	w.timer = time.AfterFunc(wait, func() { h.willDue(c.key, c.id, w) })
}

// willDue publishes a delayed will unless its client came back.
func (h *Hub) willDue(key string, id Identity, w *will) {
	h.mu.Lock()
	if h.wills[key] != w || h.stopped {
		h.mu.Unlock()
		return
	}
	delete(h.wills, key)
	h.running.Add(1)
	h.mu.Unlock()
	defer h.running.Done()
	h.publishWill(id, w)
}

// takeWill cancels a delayed will and returns it, nil when there is none.
func (h *Hub) takeWill(key string) *will {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.wills[key]
	if w != nil {
		w.timer.Stop()
		delete(h.wills, key)
	}
	return w
}

// publishWill asks for the right once more: it may have ended since CONNECT,
// and of a revoked device nothing is published.
func (h *Hub) publishWill(id Identity, w *will) {
	m := w.m
	if !h.stillWelcome(m.sender) || !h.mayPublish(id.Name, m.topic) {
		h.log.Info("last will not published: the device may not any more", "device", id.Name, "topic", m.topic)
		return
	}
	if w.life > 0 {
		m.expires = h.cfg.Now().Add(w.life)
	}
	if err := h.route(context.Background(), []*message{&m}, nil); err != nil {
		h.log.Warn("last will not published", "device", id.Name, "topic", m.topic, "err", err)
	}
}
