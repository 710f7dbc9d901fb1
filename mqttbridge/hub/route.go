package hub

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// lanes keep retained publications of one home in order, from the mailboxes to
// what is retained, and apart from new subscriptions: a subscriber gets what is
// retained, then what comes, and never the older of two at last.
type lanes [64]chan struct{}

var laneSeed = maphash.MakeSeed()

func newLanes() *lanes {
	l := new(lanes)
	for i := range l {
		l[i] = make(chan struct{}, 1)
	}
	return l
}

// enter waits for the lane of a topic or filter, which is that of its first two
// levels, or for all of them where these are wildcards, and returns what leaves
// them again.
func (l *lanes) enter(filter string) (leave func()) {
	first, rest, _ := strings.Cut(filter, "/")
	second, _, _ := strings.Cut(rest, "/")
	mine := l[:]
	if !strings.ContainsAny(first+second, "+#") {
		i := maphash.String(laneSeed, first+"/"+second) % uint64(len(l))
		mine = l[i : i+1]
	}
	for _, c := range mine { // always in this order
		c <- struct{}{}
	}
	return func() {
		for _, c := range mine {
			<-c
		}
	}
}

// A plan is a message with the readers that it goes to.
type plan struct {
	m       *message
	mail    []mailing
	readers []reader   // that get it from memory …
	now     []delivery // … and how
}

// A mailing is a message for one mailbox.
type mailing struct {
	reader reader
	item   queue.Item
}

// route brings messages of one home to all readers. Those of QoS 1 and 2 that
// belong into mailboxes are on disk when it returns nil, with set in the same
// commit; set is not written when no mailbox is concerned. After an error
// nothing of it has happened.
func (h *Hub) route(ctx context.Context, msgs []*message, set map[string][]byte) error {
	if i := slices.IndexFunc(msgs, func(m *message) bool { return m.retain }); i >= 0 {
		defer h.lanes.enter(msgs[i].topic)()
		for _, m := range msgs {
			if m.retain {
				if err := h.retained.room(m); err != nil {
					return err
				}
			}
		}
	}
	var plans []plan
	for try := 0; ; try++ {
		plans = h.plan(msgs)
		err := h.post(ctx, plans, set)
		if errors.Is(err, queue.ErrNoQueue) && try < 3 {
			continue // a session ended at this moment
		}
		if err != nil {
			return err
		}
		break
	}
	for i := range plans {
		p := &plans[i]
		h.stats.published.Add(1)
		if p.m.retain {
			h.retained.set(p.m)
		}
		for i, r := range p.readers {
			switch r := r.(type) {
			case *session:
				r.push(p.now[i])
			case *home:
				r.push(p.now[i])
			}
		}
		for _, ml := range p.mail {
			switch r := ml.reader.(type) {
			case *session:
				r.mailed()
			case *home:
				r.mailed()
			}
		}
	}
	return nil
}

// post puts what is planned into the mailboxes, in one commit.
func (h *Hub) post(ctx context.Context, plans []plan, set map[string][]byte) error {
	var items []queue.Item
	for _, p := range plans {
		for _, ml := range p.mail {
			if hm, ok := ml.reader.(*home); ok && !ml.item.Droppable {
				if err := hm.quota(p.m, len(ml.item.Data)); err != nil {
					return err
				}
			}
			items = append(items, ml.item)
		}
	}
	if len(items) == 0 {
		return nil
	}
	dropped, err := h.cfg.Queue.Append(ctx, items, set)
	if err != nil {
		return err
	}
	if dropped > 0 {
		h.overflowed(dropped)
	}
	n := 0
	for _, p := range plans {
		for _, ml := range p.mail {
			if hm, ok := ml.reader.(*home); ok {
				hm.posted(p.m, items[n].Seq, len(ml.item.Data))
			}
			n++
		}
	}
	return nil
}

// plan finds the readers of messages.
func (h *Hub) plan(msgs []*message) []plan {
	plans := make([]plan, len(msgs))
	for i, m := range msgs {
		p := &plans[i]
		p.m = m
		for _, hit := range h.index.match(m.topic) {
			d := delivery{m: m, qos: min(m.qos, hit.qos), retain: m.retain && hit.asRetained, ids: hit.ids}
			mailbox, expires := "", m.expires
			switch r := hit.reader.(type) {
			case *session:
				if hit.localOnly && m.sender.client == r.key() {
					continue
				}
				mailbox = r.mailbox
			case *home:
				if m.sender.agent == r.id {
					continue // a rule in both directions would go round for ever
				}
				mailbox, d.retain = r.mailbox, m.retain
				if hit.maxAge > 0 {
					if end := h.cfg.Now().Add(hit.maxAge); expires.IsZero() || end.Before(expires) {
						expires = end
					}
				}
			}
			if d.qos == 0 || mailbox == "" || hit.shared {
				p.readers, p.now = append(p.readers, hit.reader), append(p.now, d)
				continue
			}
			// Towards a home nothing makes room unless a rule says so: the
			// sender is refused instead. A device that does not come back must
			// not stop everybody else.
			_, isHome := hit.reader.(*home)
			p.mail = append(p.mail, mailing{hit.reader, queue.Item{Queue: mailbox, Data: d.encode(), Expires: expires, Droppable: !isHome || hit.dropOldest}})
		}
	}
	return plans
}

// overflowed notes that older messages made room for newer ones.
func (h *Hub) overflowed(n int) {
	h.stats.madeRoom.Add(uint64(n))
	h.mu.Lock()
	now := h.cfg.Now()
	say := now.Sub(h.saidFull).Abs() >= overflowEvery
	if say {
		h.saidFull = now
	}
	h.mu.Unlock()
	if say {
		h.log.Warn("a mailbox is full: its oldest messages make room; see the status for whose", "dropped", n)
		h.audit("mqtt.overflow", slog.Int("dropped", n))
	}
}
