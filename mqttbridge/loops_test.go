package mqttbridge

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// slowLoop follows one topic over all rules, and reports whether it goes out by
// rule start a second time. It is the definition that findLoops answers to.
func slowLoop(rules []Rule, start int, topic string) bool {
	var out func(i int, local string, visited map[int]bool) bool
	out = func(i int, local string, visited map[int]bool) bool {
		remote, ok := rules[i].ToRemote(local)
		if !ok {
			return false
		}
		for j, in := range rules {
			back, ok := in.ToLocal(remote)
			if !ok || !in.ComesIn() || i == j {
				continue
			}
			for k, r := range rules {
				if !r.GoesOut() {
					continue
				}
				if _, ok := r.ToRemote(back); ok && k == start {
					return true
				}
				if visited[k] {
					continue
				}
				visited[k] = true
				if out(k, back, visited) {
					return true
				}
				delete(visited, k)
			}
		}
		return false
	}
	return out(start, topic, map[int]bool{start: true})
}

func smallRule(r *rand.Rand) (Rule, bool) {
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	rule := Rule{
		Pattern:   pick("#", "+", "a", "a/#", "+/a", "a/+", "b", "x/#", "+/+/#", "", "/#", "$x/+"),
		Direction: Direction(pick("out", "out", "in", "in", "both")),
		Local:     pick("", "", "a/", "b/", "a/b/", "a", "a/x"),
		Remote:    pick("", "", "a/", "b/", "b/a/", "b", "/"),
		QoS:       1,
	}
	return rule, rule.Check() == nil
}

func smallLocalTopics() []string {
	var all []string
	last := []string{""}
	for depth := range 5 {
		var level []string
		for _, l := range last {
			for _, n := range []string{"a", "b", "x"} {
				topic := strings.TrimPrefix(l+"/"+n, "/")
				level = append(level, topic)
			}
		}
		all, last = append(all, level...), level
		if depth == 1 {
			all = append(all, "/", "a/", "b/", "/a", "/x")
		}
	}
	return all
}

// TestLoopsAgainstDefinition draws small sets of rules: the search on sets of
// topics must find a loop whenever following each topic does, and a loop that it
// finds must be one.
func TestLoopsAgainstDefinition(t *testing.T) {
	topics := smallLocalTopics()
	r := rand.New(rand.NewPCG(4, 7))
	loopy, clean := 0, 0
	for range 1200 {
		var rules []Rule
		for len(rules) < 2+r.IntN(3) {
			if rule, ok := smallRule(r); ok {
				rules = append(rules, rule)
			}
		}
		found := false
		s := &loopSearch{rules: rules, good: make([]bool, len(rules))}
		for i := range s.good {
			s.good[i] = true
		}
		s.found = func(path []int, topic string) {
			found = true
			if !slowLoop(rules, path[0], topic) {
				t.Errorf("%v: %q does not go round by %v", rules, topic, path)
			}
		}
		want := ""
		for i, rule := range rules {
			if !rule.GoesOut() {
				continue
			}
			s.start, s.path = i, nil
			s.out(i, topicsOf(rule.LocalFilter()))
			for _, topic := range topics {
				if want == "" && slowLoop(rules, i, topic) {
					want = topic
				}
			}
		}
		if want != "" && !found {
			t.Errorf("%v: %q goes round and was not found", rules, want)
		}
		if found {
			loopy++
		} else {
			clean++
		}
	}
	if loopy < 100 || clean < 100 {
		t.Errorf("%d sets with a loop and %d without: the test says little", loopy, clean)
	}
}

func TestTopicSetDeep(t *testing.T) {
	set, ok := topicsOf("a/#").swap("a/", "b/c/")
	if !ok || set.filter() != "b/c/#" || !set.deep {
		t.Fatalf("%+v %v", set, ok)
	}
	if _, ok := set.and(topicsOf("b/c")); ok {
		t.Error("the parent of a prefix is not carried")
	}
	if _, ok := set.and(topicsOf("b/c/+")); !ok {
		t.Error("a level below the prefix is carried")
	}
	same, ok := set.and(topicsOf("b/c/#"))
	if !ok || !same.deep {
		t.Errorf("%+v %v", same, ok)
	}
	if _, ok := topicsOf("#").and(topicsOf("$x")); ok {
		t.Error("# holds no topic that starts with $")
	}
}

// TestLoopSearchIsBounded: a million roads and no loop. Such rules are refused
// rather than followed to their end.
func TestLoopSearchIsBounded(t *testing.T) {
	var rules []Rule
	for i := range 21 {
		node, edge := fmt.Sprintf("n%d/", i), fmt.Sprintf("e%d/", i)
		rules = append(rules, Rule{Pattern: "#", Direction: Out, QoS: 1, Local: node, Remote: edge})
		for j := range i {
			rules = append(rules, Rule{Pattern: "#", Direction: In, QoS: 1, Local: node, Remote: fmt.Sprintf("e%d/", j)})
		}
	}
	faults := CheckRules(rules, nil)
	if len(faults) != 1 || !strings.Contains(faults[0].Message, "cannot be ruled out") {
		t.Errorf("%+v", faults)
	}
}
