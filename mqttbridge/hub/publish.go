package hub

import (
	"context"
	"fmt"
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
	if c.ending() {
		return packets.ErrServerShuttingDown
	}
	say := func(code packets.Code, why string) packets.Code {
		if c.version < 5 && pk.FixedHeader.Qos > 0 {
			why += "; the client is disconnected, since MQTT 3.1.1 has no other word for no"
		}
		c.warnRefused("publication refused", why, "topic", said(pk.TopicName))
		return code
	}
	if err := mqttbridge.CheckTopic(pk.TopicName); err != nil {
		c.auditDenied("publish", pk.TopicName)
		return say(packets.ErrTopicNameInvalid, err.Error())
	}
	if len(pk.Payload) > mqttbridge.MaxPayload {
		return say(packets.ErrQuotaExceeded, tooLarge)
	}
	if !h.mayPublish(c.id.Name, pk.TopicName) {
		c.auditDenied("publish", pk.TopicName)
		return say(packets.ErrNotAuthorized, h.whyNotPublish(c.id.Name, pk.TopicName))
	}
	if err := h.route(context.Background(), []*message{c.newMessage(pk)}, nil); err != nil {
		return say(whyNotKept(err))
	}
	return packets.CodeSuccess
}

// subscribe carries out a SUBSCRIBE and returns the codes of SUBACK. What is
// retained waits in the session, which the engine lets go on after SUBACK.
func (c *conn) subscribe(subs []subscription) (codes []byte) {
	h, s := c.hub, c.session
	codes = make([]byte, len(subs))
	changed := false
	for i, sub := range subs {
		filter, group := sub.split()
		if c.bridge {
			sub.NoLocal, sub.RetainAsPublished = true, true
		}
		if code, why := c.checkSubscription(sub, group); why != "" {
			c.warnRefused("subscription refused", why, "filter", said(sub.Filter))
			codes[i] = code.Code
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
			c.warnRefused("subscription refused", fmt.Sprintf("the client has %d subscriptions, more are not allowed; use one with wildcards instead of many", h.cfg.Limits.Subscriptions), "filter", said(sub.Filter))
			codes[i] = packets.ErrQuotaExceeded.Code
			continue
		}
		replay := group == "" && (sub.RetainHandling == 0 || sub.RetainHandling == 1 && !existed)
		s.listen(c, filter, sub, replay)
		codes[i] = sub.QoS
	}
	if changed {
		// Before SUBACK: what is acknowledged from now on may have to reach
		// this session after a crash.
		if err := s.save(); err != nil {
			_, why := whyNotKept(err)
			c.warnRefused("subscription refused", why, "filter", said(subs[0].Filter))
			for i, sub := range subs {
				if codes[i] < 0x80 {
					s.drop(sub.Filter)
					codes[i] = packets.ErrImplementationSpecificError.Code
				}
			}
		}
	}
	if c.version < 5 {
		for i := range codes {
			if codes[i] > 2 {
				codes[i] = 0x80
			}
		}
	}
	return codes
}

// checkSubscription says why a subscription is refused; "": it is not.
func (c *conn) checkSubscription(sub subscription, group string) (code packets.Code, why string) {
	if err := checkFilter(sub.Filter); err != nil {
		return packets.ErrTopicFilterInvalid, err.Error()
	}
	if group != "" && sub.NoLocal && !c.bridge {
		return packets.ErrTopicFilterInvalid, "a shared subscription has no option No Local; take it out of the client's settings"
	}
	if !c.hub.maySubscribe(c.id.Name, sub.Filter) {
		c.auditDenied("subscribe", sub.Filter)
		return packets.ErrNotAuthorized, c.hub.whyNotSubscribe(c.id.Name)
	}
	return packets.CodeSuccess, ""
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

// listen puts a subscription into the index, and what is retained on its topics
// into the session, at one moment.
func (s *session) listen(c *conn, filter string, sub subscription, replay bool) {
	h := s.hub
	leave := h.lanes.enter(filter)
	h.index.add(s, sub)
	stored := 0
	if replay {
		stored = s.replay(filter, sub)
	}
	leave()
	if s.discarded() { // meanwhile, without this one
		h.index.remove(s, sub.Filter)
	}
	// A client could have them written to disk again and again.
	c.throttle(stored / replaysAToken)
}

// replay hands over what is retained on the topics of a filter. With a mailbox
// it goes there, behind what waits for the client, and since the client may
// leave before it has acknowledged it; stored is how much.
func (s *session) replay(filter string, sub subscription) (stored int) {
	h := s.hub
	var items []queue.Item
	for _, m := range h.retained.match(filter, 0, h.cfg.Now()) {
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
	for part := range slices.Chunk(items, maxAppend) {
		if _, err := h.cfg.Queue.Append(context.Background(), part, nil); err != nil {
			h.log.Warn("retained messages are not delivered: they cannot be kept", "device", s.device, "client", s.client, "err", err)
			break
		}
		s.mailed()
	}
	return len(items)
}

const replaysAToken = 4 // retained messages that count as one packet of the client

const maxAppend = 256 // items in one go, below the size of a mailbox
