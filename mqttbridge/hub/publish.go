package hub

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"slices"
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// publish carries a client's publication out. When it returns success, the
// message is on disk in every mailbox that it belongs to.
func (c *conn) publish(pk packets.Packet) packets.Code {
	h := c.hub
	c.publishing.Lock()
	defer c.publishing.Unlock()
	switch {
	case c.ending():
		return packets.ErrServerShuttingDown
	case mqttbridge.CheckTopic(pk.TopicName) != nil:
		c.auditDenied("publish", pk.TopicName)
		return packets.ErrTopicNameInvalid
	case len(pk.Payload) > mqttbridge.MaxPayload:
		return packets.ErrQuotaExceeded
	case !h.mayPublish(c.id.Name, pk.TopicName):
		c.auditDenied("publish", pk.TopicName)
		return packets.ErrNotAuthorized
	}
	m := c.newMessage(pk)
	err := h.route(context.Background(), []*message{m}, nil)
	switch {
	case err == nil:
		return packets.CodeSuccess
	case errors.Is(err, queue.ErrFull), errors.Is(err, queue.ErrTooLarge), errors.Is(err, errRetainedFull):
		return packets.ErrQuotaExceeded
	}
	c.logger().Warn("publication refused: it cannot be kept", "topic", m.topic, "err", err)
	return packets.ErrImplementationSpecificError
}

// subscribe carries out a SUBSCRIBE and returns the codes of SUBACK, and the
// subscriptions whose retained messages are due after it.
func (c *conn) subscribe(subs []subscription) (codes []byte, replay []subscription) {
	h, s := c.hub, c.session
	codes = make([]byte, len(subs))
	changed := false
	for i, sub := range subs {
		filter, group := sub.split()
		if c.bridge {
			sub.NoLocal, sub.RetainAsPublished = true, true
		}
		switch {
		case checkFilter(sub.Filter) != nil, group != "" && sub.NoLocal && !c.bridge:
			codes[i] = packets.ErrTopicFilterInvalid.Code
			continue
		case !h.maySubscribe(c.id.Name, sub.Filter):
			c.auditDenied("subscribe", sub.Filter)
			codes[i] = packets.ErrNotAuthorized.Code
			continue
		}
		sub.Filter = strings.Clone(sub.Filter)
		s.mu.Lock()
		at := s.find(sub.Filter)
		existed, full := at >= 0, at < 0 && len(s.subs) >= h.cfg.Limits.Subscriptions
		switch {
		case existed:
			changed = changed || s.subs[at] != sub
			s.subs[at] = sub
		case !full:
			changed = true
			s.subs = append(s.subs, sub)
		}
		s.mu.Unlock()
		if full {
			codes[i] = packets.ErrQuotaExceeded.Code
			continue
		}
		h.index.add(s, sub)
		if s.discarded() { // meanwhile, without this one
			h.index.remove(s, sub.Filter)
		}
		codes[i] = sub.QoS
		if group == "" && (sub.RetainHandling == 0 || sub.RetainHandling == 1 && !existed) {
			sub.Filter = filter
			replay = append(replay, sub)
		}
	}
	if changed {
		// Before SUBACK: what is acknowledged from now on may have to reach
		// this session after a crash.
		if err := s.save(); err != nil {
			c.logger().Warn("subscription refused: it cannot be kept", "err", err)
			for i, sub := range subs {
				if codes[i] < 0x80 {
					s.drop(sub.Filter)
					codes[i] = packets.ErrImplementationSpecificError.Code
				}
			}
			replay = nil
		}
	}
	if c.version < 5 {
		for i := range codes {
			if codes[i] > 2 {
				codes[i] = 0x80
			}
		}
	}
	return codes, replay
}

// unsubscribe carries out an UNSUBSCRIBE and returns the codes of UNSUBACK.
func (c *conn) unsubscribe(filters []string) []byte {
	codes := make([]byte, len(filters))
	changed := false
	for i, f := range filters {
		if c.session.drop(f) {
			changed = true
		} else {
			codes[i] = packets.CodeNoSubscriptionExisted.Code
		}
	}
	if changed {
		if err := c.session.save(); err != nil {
			c.logger().Warn("cannot note that a subscription ended: after a restart it is back", "err", err)
		}
	}
	return codes
}

// drop ends one subscription.
func (s *session) drop(filter string) bool {
	s.mu.Lock()
	at := s.find(filter)
	if at >= 0 {
		s.subs = slices.Delete(s.subs, at, at+1)
	}
	s.mu.Unlock()
	if at >= 0 {
		s.hub.index.remove(s, filter)
	}
	return at >= 0
}

// replay sends what is retained on the topics of new subscriptions. With a
// mailbox it goes there, since the client may leave before it has acknowledged
// it.
func (s *session) replay(subs []subscription) {
	h := s.hub
	var items []queue.Item
	for _, sub := range subs {
		for _, m := range h.retained.match(sub.Filter, 0, h.cfg.Now()) {
			if sub.NoLocal && m.sender.client == s.key() {
				continue
			}
			d := delivery{m: m, qos: min(sub.QoS, m.qos), retain: true, retained: true}
			if sub.ID != 0 {
				d.ids = []uint32{sub.ID}
			}
			if d.qos > 0 && s.mailbox != "" {
				items = append(items, queue.Item{Queue: s.mailbox, Data: d.encode(), Expires: m.expires, Droppable: true})
			} else {
				s.push(d)
			}
		}
	}
	for part := range slices.Chunk(items, maxAppend) {
		if _, err := h.cfg.Queue.Append(context.Background(), part, nil); err != nil {
			h.log.Warn("retained messages are not delivered: they cannot be kept", "device", s.device, "client", s.client, "err", err)
			break
		}
		s.mailed()
	}
}

const maxAppend = 256 // items in one go, below the size of a mailbox

// lanes keep the publications of one home in order where the last one counts:
// what is retained must be what the mailboxes hold last.
type lanes [64]chan struct{}

var laneSeed = maphash.MakeSeed()

func newLanes() *lanes {
	l := new(lanes)
	for i := range l {
		l[i] = make(chan struct{}, 1)
	}
	return l
}

// of returns the lane of a topic: of its first two levels.
func (l *lanes) of(topic string) chan struct{} {
	end := strings.IndexByte(topic, '/')
	if end >= 0 {
		if i := strings.IndexByte(topic[end+1:], '/'); i >= 0 {
			end += 1 + i
		} else {
			end = len(topic)
		}
	} else {
		end = len(topic)
	}
	return l[maphash.String(laneSeed, topic[:end])%uint64(len(l))]
}

// A plan is a message with the readers that it goes to.
type plan struct {
	m       *message
	asleep  []reader   // that find it in their mailbox
	now     []delivery // that get it from memory …
	readers []reader   // … and who they are
}

// route brings messages of one home to all readers. Those of QoS 1 and 2 that
// belong into mailboxes are on disk when it returns nil, with set in the same
// commit; set is not written when no mailbox is concerned. After an error
// nothing of it has happened.
func (h *Hub) route(ctx context.Context, msgs []*message, set map[string][]byte) error {
	if i := slices.IndexFunc(msgs, func(m *message) bool { return m.retain }); i >= 0 {
		lane := h.lanes.of(msgs[i].topic)
		lane <- struct{}{}
		defer func() { <-lane }()
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
		var items []queue.Item
		plans, items = h.plan(msgs)
		if len(items) == 0 {
			break
		}
		dropped, err := h.cfg.Queue.Append(ctx, items, set)
		if errors.Is(err, queue.ErrNoQueue) && try < 3 {
			continue // a session ended at this moment
		}
		if err != nil {
			return err
		}
		if dropped > 0 {
			h.overflowed(dropped)
		}
		break
	}
	for _, p := range plans {
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
		for _, r := range p.asleep {
			switch r := r.(type) {
			case *session:
				r.mailed()
			case *home:
				r.mailed()
			}
		}
	}
	return nil
}

// plan finds the readers of messages.
func (h *Hub) plan(msgs []*message) ([]plan, []queue.Item) {
	plans := make([]plan, len(msgs))
	var items []queue.Item
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
			_, isHome := hit.reader.(*home)
			p.asleep = append(p.asleep, hit.reader)
			// Towards a home nothing makes room unless a rule says so: the
			// sender is refused instead. A device that does not come back must
			// not stop everybody else.
			items = append(items, queue.Item{Queue: mailbox, Data: d.encode(), Expires: expires, Droppable: !isHome || hit.dropOldest})
		}
	}
	return plans, items
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
