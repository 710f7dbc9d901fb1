package mqttbridge

import "strings"

// A topicSet is the topics that a filter matches, as CheckRules follows them
// from rule to rule. Such sets are closed under what it does with them: what two
// filters both match is one filter again, and so is a filter with another
// prefix.
type topicSet struct {
	levels []string // without "#"
	open   bool     // "#" follows
	deep   bool     // "#" stands for one level at least: the parent lies outside of a prefix
}

func topicsOf(filter string) topicSet {
	levels := strings.Split(filter, "/")
	if last := len(levels) - 1; levels[last] == "#" {
		return topicSet{levels: levels[:last], open: true}
	}
	return topicSet{levels: levels}
}

// and returns the topics in both sets, false when there are none.
func (s topicSet) and(t topicSet) (topicSet, bool) {
	if len(s.levels) > len(t.levels) {
		s, t = t, s
	}
	both := topicSet{levels: make([]string, len(t.levels)), open: t.open, deep: t.deep}
	for i, b := range t.levels {
		a := "+" // what "#" says of each level
		if i < len(s.levels) {
			a = s.levels[i]
		} else if !s.open {
			return topicSet{}, false
		}
		if a == "+" {
			a, b = b, a
		}
		if b != "+" && a != b || i == 0 && b == "+" && strings.HasPrefix(a, "$") {
			return topicSet{}, false
		}
		both.levels[i] = a
	}
	if len(s.levels) < len(t.levels) {
		return both, true
	}
	both.open = s.open && t.open
	both.deep = both.open && (s.deep || t.deep)
	return both, both.open || (!s.open || !s.deep) && (!t.open || !t.deep)
}

// swap gives the topics another prefix; false when none has the old one.
func (s topicSet) swap(from, to string) (topicSet, bool) {
	rest, ok := strings.CutPrefix(s.filter(), from)
	if !ok || to+rest == "" {
		return topicSet{}, false
	}
	t := topicsOf(to + rest)
	t.deep = t.open && (s.deep || rest == "#")
	return t, true
}

func (s topicSet) filter() string {
	if s.open {
		return strings.Join(append(s.levels[:len(s.levels):len(s.levels)], "#"), "/")
	}
	return strings.Join(s.levels, "/")
}

// example returns one of the topics, "x" wherever there is a choice.
func (s topicSet) example() string {
	levels := strings.Split(s.filter(), "/")
	for i, l := range levels {
		if l == "+" || l == "#" {
			levels[i] = "x"
		}
	}
	return strings.Join(levels, "/")
}
