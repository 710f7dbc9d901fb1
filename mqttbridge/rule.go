package mqttbridge

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// A Direction is which way a rule carries messages, seen from home.
type Direction string

// Directions of a rule.
const (
	Out  Direction = "out"  // from the home broker to the hub
	In   Direction = "in"   // from the hub to the home broker
	Both Direction = "both" // a rule of each, see CheckRules for when that is refused
)

// A Rule says which topics the bridge carries, in Mosquitto's vocabulary. The
// topic at home is Local and what Pattern matches; the topic at the hub is
// home/<agent>/, Remote, and the same. Prefixes are put in front as they are
// written, so that most end with a slash.
type Rule struct {
	Pattern   string // topic filter behind the prefixes; "" when a rule carries one topic and renames it: both prefixes then are the whole names
	Direction Direction
	QoS       byte   // 0 or 1, at most; messages keep a lower one of their own
	Local     string // prefix at home, without wildcards
	Remote    string // prefix at the hub, without wildcards

	DropOldest bool          // when the queue is full, the oldest messages of this rule make room; otherwise the sender waits or is refused
	MaxAge     time.Duration // messages that are older are dropped and counted; 0: never
}

// maxRemote is the longest relative topic: home/<agent>/ comes in front of it at
// the hub, and no topic there is longer than MaxTopic.
const maxRemote = MaxTopic - 96

// HubReserved is the filter, relative to home/<agent>/, of what the hub itself
// says about an agent's bridge; rules do not write there.
const HubReserved = "bridge/#"

// HomeReserved is the filter of what Sallyport itself says at the home broker;
// rules do not write there.
const HomeReserved = "sallyport/#"

// Check says what is wrong with the rule by itself; CheckRules looks at several.
func (r Rule) Check() error {
	switch {
	case r.Direction != Out && r.Direction != In && r.Direction != Both:
		return fmt.Errorf("the direction is out, in or both, not %q", r.Direction)
	case r.QoS == 2:
		return errors.New("the bridge carries QoS 0 and 1: write 1, a message may then come twice after a crash but is not lost")
	case r.QoS > 2:
		return fmt.Errorf("the QoS is 0 or 1, not %d", r.QoS)
	case r.MaxAge < 0:
		return fmt.Errorf("the greatest age is %s; write 0 for none", r.MaxAge)
	case strings.ContainsAny(r.Local+r.Remote, "+#"):
		return errors.New("prefixes hold no + or #; they belong to the pattern")
	case strings.Contains(r.Pattern+r.Local+r.Remote, `"`):
		return errors.New("topics with quotation marks cannot be bridged")
	case r.Pattern == "" && (r.Local == "" || r.Remote == ""):
		return errors.New("the pattern is empty: then both prefixes are needed, the whole topic at home and the whole topic at the hub")
	}
	for _, side := range []struct{ where, filter string }{{"at home", r.LocalFilter()}, {"at the hub", r.RemoteFilter()}} {
		if err := CheckFilter(side.filter); err != nil {
			return fmt.Errorf("%s: %w", side.where, err)
		}
		if side.filter[0] == '$' {
			return fmt.Errorf("%s it is %q: topics that start with $ are the broker's own and are not bridged", side.where, side.filter)
		}
	}
	if len(r.RemoteFilter()) > maxRemote {
		return fmt.Errorf("at the hub the filter has %d bytes; at most %d are allowed", len(r.RemoteFilter()), maxRemote)
	}
	return nil
}

// GoesOut reports whether the rule carries messages to the hub.
func (r Rule) GoesOut() bool { return r.Direction == Out || r.Direction == Both }

// ComesIn reports whether the rule carries messages to the home broker.
func (r Rule) ComesIn() bool { return r.Direction == In || r.Direction == Both }

// LocalFilter returns what to subscribe to at home.
func (r Rule) LocalFilter() string { return r.Local + r.Pattern }

// RemoteFilter returns what to subscribe to at the hub, without home/<agent>/.
func (r Rule) RemoteFilter() string { return r.Remote + r.Pattern }

// ToRemote returns the topic at the hub, without home/<agent>/, of one at home,
// whatever the direction. It is false when the rule does not carry the topic:
// it does not match, it would land in HubReserved or become too long, or it is
// the parent level that a filter such as "a/#" matches too although it lies
// outside the prefix "a/".
func (r Rule) ToRemote(localTopic string) (string, bool) {
	topic, ok := r.swap(localTopic, r.Local, r.Remote)
	if !ok || len(topic) > maxRemote || Match(HubReserved, topic) {
		return "", false
	}
	return topic, true
}

// ToLocal is the way back: remoteTopic comes without home/<agent>/.
func (r Rule) ToLocal(remoteTopic string) (string, bool) {
	return r.swap(remoteTopic, r.Remote, r.Local)
}

func (r Rule) swap(topic, from, to string) (string, bool) {
	rest, ok := strings.CutPrefix(topic, from)
	if !ok || !matchBehind(from, r.Pattern, topic) {
		return "", false
	}
	if from == to {
		return topic, CheckTopic(topic) == nil
	}
	topic = to + rest
	return topic, CheckTopic(topic) == nil
}

// matchBehind is Match(prefix+pattern, topic) without making that text for
// each message. The topic starts with prefix.
func matchBehind(prefix, pattern, topic string) bool {
	// Levels that the prefix closes are equal. What follows its last slash is
	// matched together with the pattern; when there is nothing between, the
	// first level behind it is not the topic's first, where "$" is special.
	slash := strings.LastIndexByte(prefix, '/')
	if slash < 0 || slash != len(prefix)-1 || pattern == "" {
		return Match(prefix+pattern, topic)
	}
	rest := topic[slash+1:]
	if pattern == "#" || pattern == "+" && !strings.Contains(rest, "/") {
		return true
	}
	if rest == "" || rest[0] == '$' {
		return Match(prefix+pattern, topic)
	}
	return Match(pattern, rest)
}
