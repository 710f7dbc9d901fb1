package hub

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// push hands over a message that is kept nowhere.
func (l *link) push(d delivery) {
	l.mu.Lock()
	full := len(l.live) >= maxLinkLive && !d.retained
	if !full {
		l.live = append(l.live, d)
	}
	l.mu.Unlock()
	if full {
		l.hub.stats.dropped.Add(1)
		return
	}
	signal(l.wake)
}

// next returns the next packet for the agent; false: there is none now. After
// is how far the mailbox was read, seenBefore what earlier links were given.
func (l *link) next(after *uint64, seenBefore uint64) (mqttbridge.LinkPacket, bool, error) {
	for {
		select {
		case <-l.gone:
			return mqttbridge.LinkPacket{}, false, nil
		default:
		}
		l.mu.Lock()
		if p, ok := l.control(); ok {
			l.mu.Unlock()
			return p, true, nil
		}
		if len(l.live) > 0 {
			d := l.live[0]
			l.live[0] = delivery{}
			if l.live = l.live[1:]; len(l.live) == 0 {
				l.live = nil
			}
			l.mu.Unlock()
			if p, ok := l.packet(d); ok {
				return p, true, nil
			}
			continue
		}
		room := len(l.flying) < linkWindow
		l.mu.Unlock()
		if !room {
			return mqttbridge.LinkPacket{}, false, nil
		}
		// One at a time: the store reads from memory, and nothing has to be
		// given back when the link ends.
		items, err := l.hub.cfg.Queue.Read(l.home.mailbox, *after, 1)
		if errors.Is(err, queue.ErrNoQueue) || errors.Is(err, queue.ErrClosed) {
			return mqttbridge.LinkPacket{}, false, errForgotten
		}
		if err != nil || len(items) == 0 {
			return mqttbridge.LinkPacket{}, false, err
		}
		it := items[0]
		*after = it.Seq
		d, err := decodeDelivery(it.Data, it.Expires)
		if err != nil {
			l.log.Error("a stored message is damaged and dropped", "seq", it.Seq)
			l.skip(it.Seq)
			continue
		}
		p, ok := l.packet(d)
		if !ok {
			l.skip(it.Seq)
			continue
		}
		p.Message.Seq, p.Message.QoS, p.Message.Dup = it.Seq, d.qos, it.Seq <= seenBefore
		l.mu.Lock()
		l.flying = append(l.flying, flying{seq: it.Seq})
		l.mu.Unlock()
		l.home.mu.Lock()
		l.home.sent = max(l.home.sent, it.Seq)
		l.home.mu.Unlock()
		return p, true, nil
	}
}

// control returns what goes before all messages; the lock is held.
func (l *link) control() (mqttbridge.LinkPacket, bool) {
	switch {
	case l.welcome != nil:
		p := mqttbridge.LinkPacket{Kind: mqttbridge.LinkWelcomeKind, Welcome: l.welcome}
		l.welcome = nil
		return p, true
	case len(l.pongs) > 0:
		p := mqttbridge.LinkPacket{Kind: mqttbridge.LinkPong, Seq: l.pongs[0]}
		l.pongs = l.pongs[1:]
		return p, true
	case l.ack > l.acked:
		l.acked = l.ack
		return mqttbridge.LinkPacket{Kind: mqttbridge.LinkAck, Seq: l.ack}, true
	}
	return mqttbridge.LinkPacket{}, false
}

// packet makes a message for the home, if it is still to have it: rules and
// rights may have changed since it was stored.
func (l *link) packet(d delivery) (mqttbridge.LinkPacket, bool) {
	h, m := l.hub, d.m
	now := h.cfg.Now()
	if m.expired(now) || !l.home.takes(m.topic) || !h.mayReachHome(m) {
		h.stats.dropped.Add(1)
		return mqttbridge.LinkPacket{}, false
	}
	l.home.mu.Lock()
	prefix := prefixOf(l.home.name)
	l.home.mu.Unlock()
	lm := mqttbridge.LinkMessage{Topic: strings.TrimPrefix(m.topic, prefix), Payload: m.payload, Retain: d.retain}
	if !m.expires.IsZero() {
		lm.TTL = m.expires.Sub(now)
	}
	return mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: lm}, true
}

// skip takes a message out that is not to be sent.
func (l *link) skip(seq uint64) {
	if seq == 0 {
		return
	}
	l.mu.Lock()
	found := false
	for i := range l.flying {
		if l.flying[i].seq == seq {
			l.flying[i].skipped, found = true, true
		}
	}
	if !found {
		l.flying = append(l.flying, flying{seq: seq, skipped: true})
	}
	upTo := l.trim(0)
	l.mu.Unlock()
	l.remove(upTo)
}

// landed takes the agent's acknowledgement: everything up to seq is at home.
func (l *link) landed(seq uint64) error {
	l.mu.Lock()
	sent := uint64(0)
	if n := len(l.flying); n > 0 {
		sent = l.flying[n-1].seq
	}
	if len(l.flying) > 0 && seq > sent {
		l.mu.Unlock()
		return fmt.Errorf("the agent acknowledges number %d, and %d is the newest that it was sent", seq, sent)
	}
	upTo := l.trim(seq)
	l.mu.Unlock()
	l.remove(upTo)
	signal(l.wake)
	return nil
}

// trim takes off what is at home up to seq and what is skipped behind it, and
// returns how far that goes; 0: nowhere. The lock is held.
func (l *link) trim(seq uint64) (upTo uint64) {
	n := 0
	for n < len(l.flying) && (l.flying[n].seq <= seq || l.flying[n].skipped) {
		upTo = l.flying[n].seq
		n++
	}
	l.flying = append(l.flying[:0], l.flying[n:]...)
	return upTo
}

func (l *link) remove(upTo uint64) {
	if upTo == 0 {
		return
	}
	l.home.waiting.removed(upTo)
	if err := l.hub.cfg.Queue.Ack(l.home.mailbox, upTo); err != nil && !errors.Is(err, queue.ErrNoQueue) && !errors.Is(err, queue.ErrClosed) {
		l.log.Error("cannot remove delivered messages", "err", err)
	}
}
