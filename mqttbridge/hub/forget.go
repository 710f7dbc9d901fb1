package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/sallyport/sallyport/mqttbridge/queue"
)

const (
	forgottenKey = recordPrefix + "forgotten"
	maxForgotten = 2000
)

// forgotten are the revoked devices whose messages may still lie in mailboxes.
// A message is not delivered when it was published in an era before its
// sender's revocation; a device that comes back under the name is heard again.
type forgotten struct {
	Era uint64            `json:"era"`
	Who map[string]uint64 `json:"who"` // device name or id → era that its revocation began
}

func (f *forgotten) covers(s sender) bool {
	return s.device != "" && (s.since < f.Who[s.device] || s.id != "" && s.since < f.Who[s.id])
}

func (h *Hub) restoreForgotten() error {
	raw, ok := h.cfg.Queue.Get(forgottenKey)
	if !ok {
		return nil
	}
	f := new(forgotten)
	if err := json.Unmarshal(raw, f); err != nil {
		return fmt.Errorf("key %s: %w", forgottenKey, err)
	}
	h.era.Store(f.Era)
	h.forgotten.Store(f)
	return nil
}

// Forget is called when a device was revoked, with its name or its key's id.
// Its connections end without their wills, its sessions and mailboxes are
// removed, what it retained is forgotten, and what it published and was not
// delivered yet is dropped, also after a restart. Publications that are under
// way have ended when it returns. It is not called from Grants or Audit.
func (h *Hub) Forget(device string) {
	if device == "" {
		return
	}
	// First the mark, so that nothing passes behind it.
	h.mu.Lock()
	era := h.era.Add(1)
	f := &forgotten{Era: era, Who: map[string]uint64{device: era}}
	if old := h.forgotten.Load(); old != nil {
		for who, e := range old.Who {
			if who != device && era-e < maxForgotten {
				f.Who[who] = e
			}
		}
	}
	h.forgotten.Store(f)
	var conns []*conn
	for _, d := range h.devices {
		for c := range d.conns {
			if c.id.Name == device || c.id.ID == device {
				conns = append(conns, c)
			}
		}
	}
	h.mu.Unlock()
	for _, c := range conns {
		c.shut(endRevoked)
	}
	for _, c := range conns {
		c.settle()
	}
	raw, err := json.Marshal(f)
	if err == nil {
		err = h.cfg.Queue.Set(forgottenKey, raw)
	}
	if err != nil && !errors.Is(err, queue.ErrClosed) {
		h.log.Error("cannot note that a device was revoked: after a restart what it published before may still be delivered", "device", device, "err", err)
	}
	h.mu.Lock()
	var sessions []*session
	for key, s := range h.sessions {
		if s.device == device || s.keyID() == device {
			sessions = append(sessions, s)
			if w := h.wills[key]; w != nil {
				w.timer.Stop()
				delete(h.wills, key)
			}
		}
	}
	h.mu.Unlock()
	for _, s := range sessions {
		h.discard(s)
	}
	h.retained.purge(func(m *message) bool { return f.covers(m.sender) })
	h.log.Info("device forgotten", "device", device, "connections", len(conns), "sessions", len(sessions))
	h.audit("mqtt.forgotten", slog.String("device", device), slog.Int("connections", len(conns)), slog.Int("sessions", len(sessions)))
}

// settle waits for the publication that is being carried out. The connection
// ends: there will be no other.
func (c *conn) settle() {
	c.publishing.Lock()
	defer c.publishing.Unlock()
}

func (s *session) keyID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deviceID
}

// ForgetAgent is called when an agent was revoked: its link ends, its mailbox
// is removed, and nothing of it is retained any more.
func (h *Hub) ForgetAgent(id string) {
	h.mu.Lock()
	hm := h.homes[id]
	delete(h.homes, id)
	h.mu.Unlock()
	if hm == nil {
		return
	}
	hm.mu.Lock()
	hm.gone = true
	l := hm.link
	hm.mu.Unlock()
	if l != nil {
		l.close(errForgotten)
		<-l.done
	}
	hm.configuring.Lock() // wait for a hello that is under way
	hm.mu.Lock()
	subs := hm.subscriptions(hm.name, hm.in)
	hm.mu.Unlock()
	hm.configuring.Unlock()
	for _, s := range subs {
		h.index.remove(hm, s.Filter)
	}
	err := h.cfg.Queue.Set(recordPrefix+hm.mailbox, nil)
	if err == nil {
		err = h.cfg.Queue.Set(lastKey(id), nil)
	}
	if err == nil {
		err = h.cfg.Queue.Remove(hm.mailbox)
	}
	if err != nil && !errors.Is(err, queue.ErrClosed) {
		h.log.Error("cannot remove the mailbox of an agent", "agent", id, "err", err)
	}
	h.retained.purge(func(m *message) bool { return m.sender.agent == id })
}

// Recheck is called when grants have changed. A session with a subscription
// that is not allowed any more ends, and so does its connection: the client
// learns on its next one that it has to subscribe anew. What is merely waiting
// in other sessions is checked when it is delivered.
func (h *Hub) Recheck() {
	h.mu.Lock()
	sessions := make([]*session, 0, len(h.sessions))
	for _, s := range h.sessions {
		sessions = append(sessions, s)
	}
	h.mu.Unlock()
	for _, s := range sessions {
		if s.entitled() {
			continue
		}
		s.mu.Lock()
		c := s.conn
		s.mu.Unlock()
		h.log.Info("session ended: a subscription is not allowed any more", "device", s.device, "client", s.client)
		h.discard(s)
		if c != nil {
			c.shut(endRights)
		}
	}
}
