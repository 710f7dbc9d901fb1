package hub

import (
	"errors"
	"strings"

	"github.com/sallyport/sallyport/mqttbridge"
)

// Grants are what a device may do, as filters that begin at the root
// ("home/kitchen/#").
type Grants struct {
	Publish   []string // topics that it may publish to, also as a will, also retained
	Subscribe []string // topics that it may read; a filter that it subscribes to must be covered by one of these
}

var everyHome = []string{"home/+/#"}

// stateTopics are the hub's own: whether a home is connected. Nobody else
// publishes there.
const stateTopics = "home/+/" + mqttbridge.HubReserved

func (h *Hub) grants(device string) Grants {
	if h.cfg.Grants == nil {
		return Grants{Publish: everyHome, Subscribe: everyHome}
	}
	return h.cfg.Grants(device)
}

// mayPublish also holds for wills and retained messages.
func (h *Hub) mayPublish(device, topic string) bool {
	if mqttbridge.Match(stateTopics, topic) {
		return false
	}
	return matchAny(h.grants(device).Publish, topic)
}

// mayRead is asked at every delivery: grants may have shrunk since the device
// subscribed.
func (h *Hub) mayRead(device, topic string) bool {
	return matchAny(h.grants(device).Subscribe, topic)
}

// maySubscribe says whether a device may read every topic of a filter. Of
// filters that start with "$" only shared ones are known, which are judged by
// what is inside.
func (h *Hub) maySubscribe(device, filter string) bool {
	inner, _ := splitShared(filter)
	if strings.HasPrefix(inner, "$") {
		return false
	}
	for _, g := range h.grants(device).Subscribe {
		if mqttbridge.Covers(g, inner) {
			return true
		}
	}
	return false
}

func matchAny(filters []string, topic string) bool {
	for _, f := range filters {
		if mqttbridge.Match(f, topic) {
			return true
		}
	}
	return false
}

var errShare = errors.New("a shared subscription is $share/GROUP/FILTER")

// checkFilter says why a filter is none. The group of a shared one is a level
// without wildcards.
func checkFilter(filter string) error {
	if err := mqttbridge.CheckFilter(filter); err != nil {
		return err
	}
	if rest, ok := strings.CutPrefix(filter, "$share/"); ok {
		group, inner, _ := strings.Cut(rest, "/")
		if group == "" || strings.ContainsAny(group, "+#") || inner == "" {
			return errShare
		}
		return mqttbridge.CheckFilter(inner)
	}
	return nil
}

// stillWelcome says whether a message may be delivered although its sender may
// have been revoked since.
func (h *Hub) stillWelcome(s sender) bool {
	f := h.forgotten.Load()
	return f == nil || !f.covers(s)
}

// mayReachHome is asked when a message leaves for a home, perhaps hours after it
// was published: its sender's rights may have ended meanwhile.
func (h *Hub) mayReachHome(m *message) bool {
	if !h.stillWelcome(m.sender) {
		return false
	}
	return m.sender.device == "" || h.mayPublish(m.sender.device, m.topic)
}

// ownsClientID says whether a client id belongs to a device: its name, or its
// name and one of "-/:." and anything.
func ownsClientID(device, client string) bool {
	rest, ok := strings.CutPrefix(client, device)
	return ok && device != "" && (rest == "" || strings.ContainsRune("-/:.", rune(rest[0])))
}
