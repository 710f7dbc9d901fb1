package mqttbridge

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// maxLoopSteps bounds the search; rules of any sense need some hundred.
const maxLoopSteps = 200_000

// A loopSearch follows the topics of one rule that goes out, over the hub and
// home, until they come to it again.
type loopSearch struct {
	rules []Rule
	good  []bool
	steps int
	start int
	path  []int // rules by turns out, in, out, …; path[0] is start
	found func(path []int, topic string)
}

// findLoops returns a fault for each set of rules that make a loop.
func findLoops(rules []Rule, good []bool) []RuleFault {
	var faults []RuleFault
	seen := make(map[string]bool)
	s := &loopSearch{rules: rules, good: good}
	for i, r := range rules {
		if !good[i] || !r.GoesOut() {
			continue
		}
		if r.Direction == Both && Overlap(r.LocalFilter(), r.RemoteFilter()) {
			faults = append(faults, RuleFault{Index: i, Message: bothFault(rules, i)})
			seen[fmt.Sprint([]int{i})] = true
		}
		s.start, s.path = i, nil
		s.found = func(path []int, topic string) {
			members := slices.Sorted(maps.Keys(setOf(path)))
			if key := fmt.Sprint(members); !seen[key] {
				seen[key] = true
				faults = append(faults, RuleFault{Index: members[len(members)-1], Message: loopFault(rules, path, topic)})
			}
		}
		s.out(i, topicsOf(r.LocalFilter()))
		if s.steps > maxLoopSteps {
			return append(faults, RuleFault{Index: i, Message: "the rules overlap in so many ways that loops cannot be ruled out. Let each topic be carried by one rule in each direction"})
		}
	}
	return faults
}

func setOf(list []int) map[int]bool {
	set := make(map[int]bool, len(list))
	for _, i := range list {
		set[i] = true
	}
	return set
}

// out sends topics at home out by rule i, and from there everywhere. It reports
// whether it found a loop.
func (s *loopSearch) out(i int, local topicSet) bool {
	remote, ok := local.swap(s.rules[i].Local, s.rules[i].Remote)
	if !ok {
		return false
	}
	s.path = append(s.path, i)
	found := false
	for j, r := range s.rules {
		if !s.good[j] || !r.ComesIn() || i == j {
			continue // back where it was: bothFault's, and no step of a longer road
		}
		if s.steps++; s.steps > maxLoopSteps {
			break
		}
		if topics, ok := remote.and(topicsOf(r.RemoteFilter())); ok {
			found = s.in(j, topics, found) || found
		}
	}
	s.path = s.path[:len(s.path)-1]
	return found
}

// in brings topics home by rule j. Roads over further rules matter only when
// there is no short one.
func (s *loopSearch) in(j int, remote topicSet, found bool) bool {
	local, ok := remote.swap(s.rules[j].Remote, s.rules[j].Local)
	if !ok {
		return false
	}
	s.path = append(s.path, j)
	defer func() { s.path = s.path[:len(s.path)-1] }()
	if topics, ok := local.and(topicsOf(s.rules[s.start].LocalFilter())); ok {
		if topic, ok := goesRound(s.rules, s.path, topics.example()); ok {
			s.found(s.path, topic)
			return true
		}
	}
	for k, r := range s.rules {
		if found || !s.good[k] || !r.GoesOut() || s.visited(k) {
			continue
		}
		if s.steps++; s.steps > maxLoopSteps {
			return found
		}
		if topics, ok := local.and(topicsOf(r.LocalFilter())); ok {
			found = s.out(k, topics)
		}
	}
	return found
}

// visited reports whether rule k went out already on this road.
func (s *loopSearch) visited(k int) bool {
	for i := 0; i < len(s.path); i += 2 {
		if s.path[i] == k {
			return true
		}
	}
	return false
}

// goesRound takes the topic at the end of a road back to its beginning, and
// returns that one if the rules themselves, which know more than sets do,
// carry it all the way and out again.
func goesRound(rules []Rule, path []int, last string) (topic string, ok bool) {
	topic = last
	for i, j := range slices.Backward(path) {
		from, to := rules[j].Remote, rules[j].Local // undo out
		if i%2 == 1 {
			from, to = to, from
		}
		topic = to + strings.TrimPrefix(topic, from)
	}
	at := topic
	for i, j := range path {
		if at, ok = carry(rules[j], i, at); !ok {
			return "", false
		}
	}
	_, ok = rules[path[0]].ToRemote(at)
	return topic, ok
}

func carry(r Rule, step int, topic string) (string, bool) {
	if step%2 == 0 {
		return r.ToRemote(topic)
	}
	return r.ToLocal(topic)
}

func loopFault(rules []Rule, path []int, topic string) string {
	var b strings.Builder
	b.WriteString("this is a loop: " + topic + " at home")
	at := topic
	for i, j := range path {
		at, _ = carry(rules[j], i, at)
		if i%2 == 0 {
			fmt.Fprintf(&b, " goes out by %s as home/<agent>/%s,", name(rules, j), at)
		} else {
			fmt.Fprintf(&b, " comes in by %s as %s,", name(rules, j), at)
		}
	}
	fmt.Fprintf(&b, " and goes out by rule %d again. ", path[0]+1)
	b.WriteString(loopAdvice(rules, path))
	return b.String()
}

// loopAdvice proposes a change of one rule, tried before it is said.
func loopAdvice(rules []Rule, path []int) string {
	out, in := path[0], path[len(path)-1]
	const general = "Narrow the patterns so that what comes in is not among what goes out"
	type change struct {
		rule int
		text string
		to   Rule
	}
	var changes []change
	if r := rules[out]; strings.HasSuffix(r.Pattern, "#") && r.Direction == Out {
		r.Pattern = strings.TrimSuffix(r.Pattern, "#") + "+"
		changes = append(changes, change{out, general + ", such as", r})
	}
	if r := rules[in]; r.Direction == In {
		r.Local = "relay/" + r.Local
		changes = append(changes, change{in, general + ", or give it names of its own at home:", r})
	}
	for _, c := range changes {
		if c.to.Check() != nil {
			continue
		}
		var tried []Rule
		for _, i := range slices.Sorted(maps.Keys(setOf(path))) {
			r := rules[i]
			if i == c.rule {
				r = c.to
			}
			tried = append(tried, r)
		}
		if !loops(tried) {
			return fmt.Sprintf("%s %s", c.text, c.to)
		}
	}
	return general
}

// loops reports whether rules that are good by themselves make a loop.
func loops(rules []Rule) bool {
	found := false
	s := &loopSearch{rules: rules, good: slices.Repeat([]bool{true}, len(rules)), found: func([]int, string) { found = true }}
	for i, r := range rules {
		if r.GoesOut() {
			s.start, s.path = i, nil
			s.out(i, topicsOf(r.LocalFilter()))
		}
	}
	return found || s.steps > maxLoopSteps
}

// bothFault explains a rule of both directions whose names overlap. Its example
// is a topic whose name at the hub is one at home too.
func bothFault(rules []Rule, i int) string {
	r := rules[i]
	shared, ok := topicsOf(r.LocalFilter()).and(topicsOf(r.RemoteFilter()))
	remote := shared.example()
	if !ok || !strings.HasPrefix(remote, r.Remote) {
		remote = topicsOf(r.RemoteFilter()).example()
	}
	local := r.Local + strings.TrimPrefix(remote, r.Remote)
	text := fmt.Sprintf("%s is a loop: %s at home goes out as home/<agent>/%s, ", name(rules, i), local, remote)
	if local == remote {
		text += "comes in under its name and goes out again. "
	} else {
		text += fmt.Sprintf("and when anything else carries it home as %s it goes out again. ", remote)
	}
	text += "Write one rule out for what home says and one in for what it is told, with no topic in both"
	apart := r
	apart.Remote = "shared/" + r.Remote
	if Overlap(apart.LocalFilter(), apart.RemoteFilter()) {
		apart.Local = "relay/" + r.Local
	}
	if apart.Check() == nil && !Overlap(apart.LocalFilter(), apart.RemoteFilter()) {
		text += fmt.Sprintf("; or let it have other names on each side: %s", apart)
	}
	return text
}
