package hub

import (
	"log/slog"
	"sync"
	"time"
)

const (
	auditsAnHour = 10     // of one device and one reason
	maxAudited   = 10_000 // of these at once
)

// An auditLimit keeps a device that is refused again and again, also over new
// connections, from filling the audit log.
type auditLimit struct {
	mu   sync.Mutex // guards seen
	seen map[[2]string]*auditCount
}

type auditCount struct {
	since time.Time
	n     int
}

// allow counts one event; last says that the next ones are not allowed.
func (l *auditLimit) allow(device, reason string, now time.Time) (ok, last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := [2]string{device, reason}
	c := l.seen[key]
	if c == nil || now.Sub(c.since) >= time.Hour {
		if c == nil && len(l.seen) >= maxAudited {
			return false, false
		}
		if l.seen == nil {
			l.seen = make(map[[2]string]*auditCount)
		}
		c = &auditCount{since: now}
		l.seen[key] = c
	}
	c.n++
	return c.n <= auditsAnHour, c.n == auditsAnHour
}

// sweep forgets what is older than an hour.
func (l *auditLimit) sweep(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, c := range l.seen {
		if now.Sub(c.since) >= time.Hour {
			delete(l.seen, key)
		}
	}
}

// audit records an event.
func (h *Hub) audit(event string, attrs ...slog.Attr) {
	if h.cfg.Audit != nil {
		h.cfg.Audit(event, attrs...)
	}
}

// auditOften records an event that a device can cause at will.
func (h *Hub) auditOften(event, device, reason string, attrs ...slog.Attr) {
	ok, last := h.audited.allow(device, event+" "+reason, time.Now())
	if !ok {
		return
	}
	attrs = append([]slog.Attr{slog.String("device", device)}, attrs...)
	if last {
		attrs = append(attrs, slog.String("more", "not recorded within this hour"))
	}
	h.audit(event, attrs...)
}

// auditDenied records that a client has not the right to do something.
func (c *conn) auditDenied(what, topic string) {
	c.hub.stats.denied.Add(1)
	c.hub.auditOften("mqtt.denied", c.id.Name, what, slog.String("what", what), slog.String("topic", said(topic)))
}
