package hub

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

const (
	refusalRest = 30 * time.Second // from one logged refusal of a device to the next
	maxSaid     = 200              // bytes of what a client said, in the log and in an audit line
	maxNamed    = 5                // filters of a right that are named
)

const tooLarge = "a message has at most 64 KiB; send a smaller one"

// A refusalLimit keeps a client that tries again and again what it may not do
// from filling the log. All that is refused to one device counts together. Its
// size is that of the devices that were refused something lately, all of which
// have a certificate.
type refusalLimit struct {
	mu   sync.Mutex // guards seen
	seen map[string]*refusals
}

type refusals struct {
	told     time.Time // when the last one was logged
	unlogged int       // since
}

// allow says whether a refusal is logged, and how many before it were not.
func (l *refusalLimit) allow(device string, now time.Time) (unlogged int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.seen[device]
	switch {
	case r == nil:
		if l.seen == nil {
			l.seen = make(map[string]*refusals)
		}
		l.seen[device] = &refusals{told: now}
		return 0, true
	case now.Sub(r.told) < refusalRest:
		r.unlogged++
		return 0, false
	}
	unlogged = r.unlogged
	*r = refusals{told: now}
	return unlogged, true
}

// sweep forgets the devices that were refused nothing lately. It returns how
// many were not logged, by device, where no later one says so.
func (l *refusalLimit) sweep(now time.Time) (left map[string]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for device, r := range l.seen {
		switch {
		case now.Sub(r.told) < refusalRest:
		case r.unlogged > 0:
			if left == nil {
				left = make(map[string]int)
			}
			left[device] = r.unlogged
			*r = refusals{told: now}
		default:
			delete(l.seen, device)
		}
	}
	return left
}

// sweepRefusals logs what no later refusal has told.
func (h *Hub) sweepRefusals(now time.Time) {
	for device, n := range h.refused.sweep(now) {
		h.log.Warn("more was refused to a device than was logged", "device", device, "unlogged", n)
	}
}

// warnRefused logs that a client does not get what it asked for. why says also
// what to do: the client mostly shows nothing of it.
func (c *conn) warnRefused(what, why string, attrs ...any) {
	unlogged, ok := c.hub.refused.allow(c.id.Name, time.Now())
	if !ok {
		return
	}
	if c.session == nil && c.cl != nil {
		attrs = append([]any{"client", said(c.client)}, attrs...)
	}
	attrs = append(attrs, "reason", why)
	if unlogged > 0 {
		attrs = append(attrs, "unlogged", unlogged)
	}
	c.logger().Warn(what, attrs...)
}

// warnConnect logs that a connection did not come in.
func (c *conn) warnConnect(code byte, reason string) {
	c.mu.Lock()
	in, ended := c.established, c.closing
	c.mu.Unlock()
	// Who says nothing has not asked for anything.
	if in || ended || code < 0x80 || code == packets.ErrKeepAliveTimeout.Code {
		return
	}
	switch {
	case c.why != "":
		reason = c.why
	case c.cl != nil && c.client == "" && code == packets.ErrUnspecifiedError.Code:
		reason = fmt.Sprintf("a client without a client id has no session to come back to; give it the client id %q, or let it ask for a clean session", c.id.Name)
	default:
		reason = "this is not what MQTT 3.1.1 or 5 asks for: " + reason + "; look at the client's protocol version and its program"
	}
	c.warnRefused("MQTT client refused", reason)
}

// said is what a client said, short enough for a log.
func said(s string) string {
	if len(s) <= maxSaid {
		return s
	}
	n := maxSaid
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// wantClientID says which client ids are a device's.
func wantClientID(device string) string {
	return fmt.Sprintf("the client id must be the device's name, or begin with it and one of - / : . as %q and %q do; change it in the client's settings", device, device+"-1")
}

// whyNotPublish says why mayPublish says no.
func (h *Hub) whyNotPublish(device, topic string) string {
	if mqttbridge.Match(stateTopics, topic) {
		return "the hub itself says on this topic whether the home is connected; use another one"
	}
	return wantGrant(h.grants(device).Publish, "publish below %s; use a topic there", "publish")
}

// whyNotSubscribe says why maySubscribe says no.
func (h *Hub) whyNotSubscribe(device string) string {
	return wantGrant(h.grants(device).Subscribe, "read %s; subscribe to these, or to less", "read")
}

func wantGrant(filters []string, may, verb string) string {
	if len(filters) == 0 {
		return "the device may " + verb + " nothing; the relay's owner gives it rights (mqtt.allow)"
	}
	list := strings.Join(filters[:min(len(filters), maxNamed)], ", ")
	if n := len(filters) - maxNamed; n > 0 {
		list += fmt.Sprintf(" and %d more", n)
	}
	return "the device may " + fmt.Sprintf(may, said(list)) + ", or let the relay's owner give it more rights (mqtt.allow)"
}

// whyNotKept says why a publication was not kept; code is what an MQTT 5 client
// hears.
func whyNotKept(err error) (code packets.Code, why string) {
	code = packets.ErrQuotaExceeded
	switch {
	case errors.Is(err, errQuota):
		return code, "the device has filled its part of the home's mailbox; send less until the home is connected again"
	case errors.Is(err, queue.ErrFull):
		return code, "the home's mailbox is full; look why the home is not connected, or takes so slowly"
	case errors.Is(err, queue.ErrTooLarge):
		return code, "the message is larger than the home's mailbox; send smaller ones"
	case errors.Is(err, errRetainedFull):
		return code, fmt.Sprintf("%v; remove some with an empty retained message, or publish without retain", err)
	}
	return packets.ErrImplementationSpecificError, fmt.Sprintf("the relay cannot keep it: %v; look at the relay's disk", err)
}
