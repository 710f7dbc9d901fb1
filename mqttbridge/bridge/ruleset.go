package bridge

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A ruleSet is what the rules say, ready for use. It never changes.
type ruleSet struct {
	out, in []mqttbridge.Rule
	written int // how many rules there are
	// filters are what to subscribe to at home, with QoS: those of out without
	// the ones that another one covers, since brokers may deliver a message once
	// for each of overlapping subscriptions.
	filters map[string]byte
}

// newRuleSet refuses rules that CheckRules finds fault with.
func newRuleSet(rules []mqttbridge.Rule) (*ruleSet, error) {
	if faults := mqttbridge.CheckRules(rules, nil); len(faults) > 0 {
		lines := make([]string, len(faults))
		for i, f := range faults {
			lines[i] = f.Message
		}
		return nil, errors.New(strings.Join(lines, "\n"))
	}
	s := &ruleSet{filters: map[string]byte{}, written: len(rules)}
	for _, r := range rules {
		if r.GoesOut() {
			s.out = append(s.out, r)
		}
		if r.ComesIn() {
			s.in = append(s.in, r)
		}
	}
	for _, r := range s.out {
		f := r.LocalFilter()
		s.filters[f] = max(s.filters[f], r.QoS)
	}
	for _, inner := range slices.Sorted(maps.Keys(s.filters)) {
		for _, outer := range slices.Sorted(maps.Keys(s.filters)) {
			if inner != outer && mqttbridge.Covers(outer, inner) {
				s.filters[outer] = max(s.filters[outer], s.filters[inner])
				delete(s.filters, inner)
				break
			}
		}
	}
	return s, nil
}

// remote maps a topic at home to the one at the hub by the first rule that
// carries it out. What Sallyport itself says at home stays there.
func (s *ruleSet) remote(local string) (topic string, r mqttbridge.Rule, ok bool) {
	if mqttbridge.Match(mqttbridge.HomeReserved, local) {
		return "", r, false
	}
	for _, r := range s.out {
		if topic, ok := r.ToRemote(local); ok {
			return topic, r, true
		}
	}
	return "", r, false
}

// local maps a topic at the hub to the one at home by the first rule that lets
// it in. Everything else is refused, whatever the hub sends.
func (s *ruleSet) local(remote string) (topic string, r mqttbridge.Rule, ok bool) {
	for _, r := range s.in {
		if topic, ok := r.ToLocal(remote); ok && !mqttbridge.Match(mqttbridge.HomeReserved, topic) {
			return topic, r, true
		}
	}
	return "", r, false
}

// comesBack says whether what we publish at home on this topic reaches our own
// subscriptions there.
func (s *ruleSet) comesBack(local string) bool {
	for f := range s.filters {
		if mqttbridge.Match(f, local) {
			return true
		}
	}
	return false
}

// hello fills the fields of a hello that the rules say.
func (s *ruleSet) hello(h *mqttbridge.LinkHello) {
	for _, r := range s.in {
		h.In = append(h.In, mqttbridge.LinkFilter{Filter: r.RemoteFilter(), QoS: r.QoS, DropOldest: r.DropOldest, MaxAge: r.MaxAge})
	}
	for _, r := range s.out {
		h.Out = append(h.Out, r.RemoteFilter())
	}
}
