package hub

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// take carries out what the home published, as one commit, and acknowledges it.
func (l *link) take(batch []mqttbridge.LinkMessage) error {
	hm := l.home
	hm.mu.Lock()
	name, stream, last := hm.name, hm.stream, hm.last
	hm.mu.Unlock()
	newest := last
	msgs := make([]*message, 0, len(batch))
	for i := range batch {
		lm := &batch[i]
		if lm.Seq > 0 {
			if lm.Seq <= newest { // came before; the acknowledgement was lost
				continue
			}
			newest = lm.Seq
		}
		if m := l.message(name, lm); m != nil {
			msgs = append(msgs, m)
		}
	}
	var set map[string][]byte
	if newest > last {
		set = map[string][]byte{lastKey(hm.id): fmt.Appendf(nil, `{"stream":%q,"last":%d}`, stream, newest)}
	}
	if len(msgs) > 0 {
		if err := l.carry(msgs, set); err != nil {
			return err
		}
	}
	hm.mu.Lock()
	hm.last = newest
	hm.mu.Unlock()
	l.mu.Lock()
	l.ack = newest
	// Told again when all of it had come before.
	if newest == last && batch[len(batch)-1].Seq > 0 {
		l.acked = 0
	}
	l.mu.Unlock()
	signal(l.wake)
	return nil
}

// carry routes messages, and again and again while the disk does not take them.
func (l *link) carry(msgs []*message, set map[string][]byte) error {
	const first, most = 100 * time.Millisecond, 5 * time.Second
	wait, said := first, false
	for {
		err := l.hub.route(context.Background(), msgs, set)
		switch {
		case err == nil:
			if said {
				l.log.Info("messages of the home are kept again")
			}
			return nil
		case errors.Is(err, errRetainedFull):
			// For ever, for this one. The message itself goes through.
			l.log.Warn("too much is retained: a message of the home is not", "agent", l.home.id)
			for i, m := range msgs {
				if m.retain && l.hub.retained.room(m) != nil {
					plain := *m
					plain.retain = false
					msgs[i] = &plain
				}
			}
			continue
		case errors.Is(err, queue.ErrTooLarge) && len(msgs) > 1:
			// All together do not fit into a small mailbox.
			for i := range msgs {
				var last map[string][]byte
				if i == len(msgs)-1 {
					last = set
				}
				if err := l.carry(msgs[i:i+1], last); err != nil {
					return err
				}
			}
			return nil
		case errors.Is(err, queue.ErrTooLarge):
			l.log.Warn("a message of the home fits into no mailbox and is dropped", "topic", msgs[0].topic)
			return nil
		case errors.Is(err, queue.ErrClosed):
			return errStopped
		}
		if !said {
			l.log.Error("messages of the home cannot be kept; trying again until they can", "err", err)
			said = true
		}
		t := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-t.C:
		case <-l.gone:
			t.Stop()
			return errStopped
		}
		wait = min(2*wait, most)
	}
}

// message turns what the home sent into a publication; nil: it changes nothing,
// or is not the home's to say.
func (l *link) message(name string, lm *mqttbridge.LinkMessage) *message {
	h, hm := l.hub, l.home
	if mqttbridge.Match(mqttbridge.HubReserved, lm.Topic) || !l.announced(lm.Topic) {
		h.stats.denied.Add(1)
		return nil
	}
	m := &message{
		topic: prefixOf(name) + lm.Topic, payload: lm.Payload, qos: lm.QoS, retain: lm.Retain,
		sender: sender{agent: hm.id},
	}
	if lm.TTL > 0 {
		m.expires = h.cfg.Now().Add(lm.TTL)
	}
	if mqttbridge.CheckTopic(m.topic) != nil { // too long with the prefix
		h.stats.denied.Add(1)
		return nil
	}
	hm.mu.Lock()
	if lm.Sync && hm.seen == nil {
		hm.seen = make(map[string]struct{})
	}
	if m.retain && hm.seen != nil && len(hm.seen) <= maxRetained {
		hm.seen[m.topic] = struct{}{}
	}
	hm.mu.Unlock()
	if lm.Sync && h.retained.same(m, h.cfg.Now()) {
		return nil // everybody has it
	}
	return m
}

// announced says whether the home's rules bring a topic out.
func (l *link) announced(topic string) bool {
	l.home.mu.Lock()
	defer l.home.mu.Unlock()
	return matchAny(l.home.out, topic)
}

// synced ends a snapshot: what the home retained and did not name is gone.
func (l *link) synced() {
	h, hm := l.hub, l.home
	hm.mu.Lock()
	seen, prefix, out := hm.seen, prefixOf(hm.name), hm.out
	hm.seen = nil
	hm.mu.Unlock()
	stale := h.retained.list(func(m *message) bool {
		rel, ok := strings.CutPrefix(m.topic, prefix)
		_, named := seen[m.topic]
		return ok && !named && m.sender.agent == hm.id && !mqttbridge.Match(mqttbridge.HubReserved, rel) && matchAny(out, rel)
	})
	for _, topic := range stale {
		m := &message{topic: topic, qos: 1, retain: true, sender: sender{agent: hm.id}}
		if err := l.carry([]*message{m}, nil); err != nil {
			return
		}
	}
	l.log.Debug("retained state of a home is complete", "topics", len(seen), "cleared", len(stale))
}
