package mqttbridge

import (
	"fmt"
	"slices"
	"strings"
)

// MaxRules is how many rules a bridge has at most.
const MaxRules = 256

// maxRuleBytes bounds what LinkHello carries: each filter twice, and up to six
// bytes for one of its own in JSON, stay below maxLinkHello.
const maxRuleBytes = 20 << 10

// A RuleFault is why a set of rules is refused.
type RuleFault struct {
	Index   int    // of the rule that is to be changed; the newest of several that do it together
	Message string // to people: which rules, an example, what to write instead; rules are counted from 1
}

// CheckRules says why a set of rules is refused; none: it is good. It refuses
//
//   - rules that are wrong by themselves (Rule.Check), and more than MaxRules;
//
//   - a rule that adds nothing to another one;
//
//   - loops: a topic that goes out by a rule, comes back in by a rule under a
//     name that goes out again, and so, perhaps over further rules, to the first
//     rule a second time. Rules are followed with their prefixes, so that each
//     fault names a topic that does go round. The hub gives no home its own
//     messages back and the bridge does not send out what it brought in itself,
//     so that such rules would turn once and not for ever; but a second bridge,
//     or an automation that repeats what it hears, turns them without end, and
//     a door's "open" is among what turns;
//
//   - "both" when its names at home and at the hub overlap, which is always so
//     without prefixes. A rule of both directions is a loop by itself: what comes
//     in goes to where it went out. With names that do not overlap whoever
//     carries a topic over unchanged, past the bridge, leaves it outside of the
//     rule, and the bridge's own echo is known and dropped; so that is allowed;
//
//   - "in" and "both" that reach a topic of an action (actionTopics, at home):
//     a command topic would be a door beside the one that asks for a signature, a
//     PIN and the hour, a state topic would say "done" of what was not. And those
//     that reach HomeReserved;
//
//   - "out" and "both" that would write HubReserved.
//
// Several homes, and what devices at the hub do, are not looked at.
func CheckRules(rules []Rule, actionTopics []string) []RuleFault {
	var faults []RuleFault
	fault := func(i int, format string, args ...any) {
		faults = append(faults, RuleFault{Index: i, Message: fmt.Sprintf(format, args...)})
	}
	if len(rules) > MaxRules {
		fault(MaxRules, "there are %d rules; at most %d are allowed. Let a pattern with + or # stand for several", len(rules), MaxRules)
		return faults
	}
	good := make([]bool, len(rules))
	size := 0
	for i, r := range rules {
		// The hub is told of all of them in one packet.
		if size += len(r.Pattern) + len(r.Remote); size > maxRuleBytes {
			fault(i, "the rules are longer than %d bytes together. Let a pattern with + or # stand for several", maxRuleBytes)
			return faults
		}
		if err := r.Check(); err != nil {
			fault(i, "rule %d (%s): %v", i+1, r, err)
			continue
		}
		good[i] = true
		if j := slices.IndexFunc(rules[:i], r.sameAs); j >= 0 && good[j] {
			fault(i, "%s adds nothing to %s. Leave one of the two out", name(rules, i), name(rules, j))
			good[i] = false // its loops are those of the other
			continue
		}
		if message := r.sideDoor(actionTopics); message != "" {
			fault(i, "%s %s", name(rules, i), message)
		}
		if message := r.overReserved(); message != "" {
			fault(i, "%s %s", name(rules, i), message)
		}
	}
	return append(faults, findLoops(rules, good)...)
}

// name is how faults call a rule.
func name(rules []Rule, i int) string { return fmt.Sprintf("rule %d (%s)", i+1, rules[i]) }

// sameAs reports whether the older rule carries all that r carries, with the
// same names and the same care. Of equal patterns the care does not matter:
// both cannot hold.
func (r Rule) sameAs(old Rule) bool {
	if r.GoesOut() && !old.GoesOut() || r.ComesIn() && !old.ComesIn() {
		equal := r.LocalFilter() == old.LocalFilter() && r.RemoteFilter() == old.RemoteFilter()
		return equal && (r.GoesOut() && old.GoesOut() || r.ComesIn() && old.ComesIn())
	}
	if r.LocalFilter() == old.LocalFilter() && r.RemoteFilter() == old.RemoteFilter() {
		return true
	}
	return r.Local == old.Local && r.Remote == old.Remote && Covers(old.LocalFilter(), r.LocalFilter()) &&
		r.QoS == old.QoS && r.DropOldest == old.DropOldest && r.MaxAge == old.MaxAge
}

func (r Rule) sideDoor(actionTopics []string) string {
	if !r.ComesIn() {
		return ""
	}
	for _, topic := range actionTopics {
		if Overlap(topic, r.LocalFilter()) {
			return fmt.Sprintf("would carry messages from the hub to %s, a topic of an action: past its PIN, its hours and its record. Narrow the pattern so that it leaves out this topic; the action is the way in",
				topic)
		}
	}
	if Overlap(HomeReserved, r.LocalFilter()) {
		return fmt.Sprintf("would let the hub write to %s at home, where Sallyport speaks itself. Name the topics that may come in, or put a prefix in front of them at home: %s",
			HomeReserved, Rule{Pattern: r.Pattern, Direction: In, QoS: r.QoS, Local: "relay/" + r.Local, Remote: r.Remote})
	}
	return ""
}

func (r Rule) overReserved() string {
	switch {
	case !r.GoesOut() || !Overlap(HubReserved, r.RemoteFilter()):
		return ""
	case Covers(HubReserved, r.RemoteFilter()):
		return fmt.Sprintf("would write to home/<agent>/%s, where the hub says how the bridge is: nothing of it is carried. Put a prefix in front of it at the hub: %s", HubReserved, r.withRemotePrefix())
	case r.Local == r.Remote:
		return "" // topics of that very name are rare; ToRemote leaves them out
	}
	// "# out 1 zigbee2mqtt/" would lose zigbee2mqtt/bridge/state without a word.
	return fmt.Sprintf("would write %sbridge/… to home/<agent>/bridge/…, where the hub says how the bridge is; these topics would be missing. Put a prefix in front at the hub: %s",
		r.Local, r.withRemotePrefix())
}

func (r Rule) withRemotePrefix() Rule {
	prefix := r.Local
	if prefix == "" || r.Direction == Both || Overlap(HubReserved, prefix+r.RemoteFilter()) {
		prefix = "my/"
	}
	if !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	r.Remote = prefix + r.Remote
	return r
}
