package hub

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// counters count since the start.
type counters struct {
	published, delivered, dropped, denied, madeRoom, stalled, throttled atomic.Uint64
}

// A Status is a moment's picture for people and programs.
type Status struct {
	Connections   int             `json:"connections"`
	Devices       int             `json:"devices"` // with a connection
	Subscriptions int             `json:"subscriptions"`
	Retained      int             `json:"retained"` // topics
	Agents        []AgentStatus   `json:"agents"`
	Mailboxes     []MailboxStatus `json:"mailboxes"` // of devices' persistent sessions

	// Since the start.
	Published uint64 `json:"published"` // messages taken
	Delivered uint64 `json:"delivered"` // to devices
	Dropped   uint64 `json:"dropped"`   // deliveries to devices that were not made: QoS 0 to a slow client, expired, not allowed any more
	MadeRoom  uint64 `json:"made_room"` // messages that a full mailbox dropped for newer ones
	Denied    uint64 `json:"denied"`    // publications, subscriptions and wills without the right
	Stalled   uint64 `json:"stalled"`   // connections cut because the client did not read
	Throttled uint64 `json:"throttled"` // times that reading paused
}

// An AgentStatus is about one home.
type AgentStatus struct {
	ID      string        `json:"id"`
	Name    string        `json:"name"`
	Online  bool          `json:"online"`
	Since   time.Time     `json:"since"` // of Online or its opposite
	In      []string      `json:"in"`    // filters of its rules, below home/NAME/
	Out     []string      `json:"out"`
	Mailbox MailboxStatus `json:"mailbox"`
}

// A MailboxStatus is about one mailbox.
type MailboxStatus struct {
	Device      string    `json:"device,omitempty"` // of a home: empty
	Client      string    `json:"client,omitempty"` // client id
	Online      bool      `json:"online"`
	Messages    int       `json:"messages"`
	Bytes       int64     `json:"bytes"`
	Oldest      time.Time `json:"oldest,omitzero"`
	DroppedFull uint64    `json:"dropped_full"` // made room for newer ones
	DroppedOld  uint64    `json:"dropped_old"`  // expired
}

func mailboxStatus(st queue.Stats) MailboxStatus {
	return MailboxStatus{Messages: st.Messages, Bytes: st.Bytes, Oldest: st.Oldest, DroppedFull: st.DroppedFull, DroppedOld: st.DroppedOld}
}

// Status returns how things are.
func (h *Hub) Status() Status {
	_, retained := h.retained.now()
	st := Status{
		Subscriptions: h.index.count(), Retained: retained,
		Published: h.stats.published.Load(), Delivered: h.stats.delivered.Load(), Dropped: h.stats.dropped.Load(),
		MadeRoom: h.stats.madeRoom.Load(), Denied: h.stats.denied.Load(), Stalled: h.stats.stalled.Load(), Throttled: h.stats.throttled.Load(),
		Agents: []AgentStatus{}, Mailboxes: []MailboxStatus{},
	}
	h.mu.Lock()
	for _, d := range h.devices {
		st.Connections += d.admitted
		if d.admitted > 0 {
			st.Devices++
		}
	}
	var sessions []*session
	for _, s := range h.sessions {
		if s.mailbox != "" {
			sessions = append(sessions, s)
		}
	}
	homes := make([]*home, 0, len(h.homes))
	for _, hm := range h.homes {
		homes = append(homes, hm)
	}
	h.mu.Unlock()
	for _, s := range sessions {
		m := mailboxStatus(h.cfg.Queue.Stats(s.mailbox))
		m.Device, m.Client, m.Online = s.device, s.client, s.awake()
		st.Mailboxes = append(st.Mailboxes, m)
	}
	for _, hm := range homes {
		hm.mu.Lock()
		a := AgentStatus{ID: hm.id, Name: hm.name, Online: hm.link != nil, Since: hm.since, In: []string{}, Out: append([]string{}, hm.out...)}
		for _, f := range hm.in {
			a.In = append(a.In, f.Filter)
		}
		hm.mu.Unlock()
		a.Mailbox = mailboxStatus(h.cfg.Queue.Stats(hm.mailbox))
		a.Mailbox.Online = a.Online
		st.Agents = append(st.Agents, a)
	}
	slices.SortFunc(st.Mailboxes, func(a, b MailboxStatus) int {
		return cmp.Or(cmp.Compare(a.Device, b.Device), cmp.Compare(a.Client, b.Client))
	})
	slices.SortFunc(st.Agents, func(a, b AgentStatus) int { return cmp.Compare(a.Name, b.Name) })
	return st
}
