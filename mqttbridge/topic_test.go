package mqttbridge_test

import (
	"strings"
	"testing"

	"github.com/sallyport/sallyport/mqttbridge"
)

func TestCheckTopic(t *testing.T) {
	for _, topic := range []string{"a", "a/b", "/", "//", "a//b", "/a", "a/", "ü/日本", "a b/c", "a/$x", "a\ufeff", strings.Repeat("t", mqttbridge.MaxTopic), strings.Repeat("/", mqttbridge.MaxLevels-1)} {
		if err := mqttbridge.CheckTopic(topic); err != nil {
			t.Errorf("CheckTopic(%q) = %v, want nil", topic, err)
		}
	}
	for _, topic := range []string{
		"", "a/+", "#", "a#", "a+b", "$SYS/x", "$", "$share/g/t", "a\x00b", "a\nb", "a\x7f", "a\u0085", "\xff", "a/\xc0\x80",
		"\xed\xa0\x80", strings.Repeat("t", mqttbridge.MaxTopic+1),
		"a/\ufdd0", "a/\ufffe", "a/\U0001ffff", strings.Repeat("/", mqttbridge.MaxLevels), "ü" + strings.Repeat("/a", 200),
	} {
		if mqttbridge.CheckTopic(topic) == nil {
			t.Errorf("CheckTopic(%q) takes it", topic)
		}
	}
}

func TestCheckFilter(t *testing.T) {
	for _, filter := range []string{"a", "#", "+", "/", "+/+", "a/#", "+/#", "a/+/b", "$SYS/#", "a//#", strings.Repeat("+/", mqttbridge.MaxLevels-1) + "#"} {
		if err := mqttbridge.CheckFilter(filter); err != nil {
			t.Errorf("CheckFilter(%q) = %v, want nil", filter, err)
		}
	}
	for _, filter := range []string{"", "a#", "#/a", "a/#/b", "a/#/", "+a", "a+", "a/b+/c", "##", "++", "+#", "a\x00", "\xff", strings.Repeat("+/", mqttbridge.MaxLevels) + "#"} {
		if mqttbridge.CheckFilter(filter) == nil {
			t.Errorf("CheckFilter(%q) takes it", filter)
		}
	}
}

// TestMatch holds the examples of MQTT 4.7 and what brokers got wrong.
func TestMatch(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"sport/tennis/player1/#", "sport/tennis/player1", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/ranking", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true},
		{"sport/#", "sport", true},
		{"sport/#", "sports", false},
		{"#", "a/b/c", true},
		{"sport/tennis/+", "sport/tennis/player1", true},
		{"sport/tennis/+", "sport/tennis/player1/ranking", false},
		{"sport/+", "sport", false},
		{"sport/+", "sport/", true},
		{"+/+", "/finance", true},
		{"/+", "/finance", true},
		{"+", "/finance", false},
		{"#", "$SYS/x", false},
		{"+/monitor/Clients", "$SYS/monitor/Clients", false},
		{"$SYS/#", "$SYS/x", true},
		{"$SYS/monitor/+", "$SYS/monitor/Clients", true},
		{"a/#", "a/$x", true},
		{"a/+", "a/$x", true},
		{"a", "a/", false},
		{"a/", "a", false},
		{"+/#", "a", true},
		{"a/+/#", "a", false},
		{"a/+/#", "a/b", true},
		{"ACCOUNTS", "Accounts", false},
		{"", "a", false},
		{"#", "", false},
		{"a/#/b", "a/x/b", false},
	} {
		if got := mqttbridge.Match(c.filter, c.topic); got != c.want {
			t.Errorf("Match(%q, %q) = %v, want %v", c.filter, c.topic, got, c.want)
		}
	}
}

func TestCoversAndOverlap(t *testing.T) {
	for _, c := range []struct {
		outer, inner    string
		covers, overlap bool
	}{
		{"#", "a/b", true, true},
		{"#", "+/#", true, true},
		{"+/#", "#", true, true},
		{"a/+/#", "a/#", false, true},
		{"a/#", "a/+/#", true, true},
		{"a/#", "a", true, true},
		{"a", "a/#", false, true},
		{"a/+", "a", false, false},
		{"+", "+", true, true},
		{"+", "#", false, true},
		{"+/b", "a/+", false, true},
		{"a/b/#", "a/c/#", false, false},
		{"#", "$SYS/#", false, false},
		{"+/x", "$SYS/x", false, false},
		{"$SYS/#", "$SYS/+", true, true},
		{"$SYS/#", "#", false, false},
		{"home/+/#", "home/a/#", true, true},
		{"home/a/#", "home/+/x", false, true},
		{"a/+/c/#", "+/b", false, false},
		{"a/+/#", "+/b", false, true},
		{"", "a", false, false},
	} {
		if got := mqttbridge.Covers(c.outer, c.inner); got != c.covers {
			t.Errorf("Covers(%q, %q) = %v, want %v", c.outer, c.inner, got, c.covers)
		}
		if got := mqttbridge.Overlap(c.outer, c.inner); got != c.overlap {
			t.Errorf("Overlap(%q, %q) = %v, want %v", c.outer, c.inner, got, c.overlap)
		}
		if got := mqttbridge.Overlap(c.inner, c.outer); got != c.overlap {
			t.Errorf("Overlap(%q, %q) = %v, want %v", c.inner, c.outer, got, c.overlap)
		}
	}
}

// slowMatch is MQTT 4.7 said in another way, by recursion over levels.
// The empty topic is none, but "/#" would match it.
func slowMatch(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && (filter[0] == '+' && (len(filter) == 1 || filter[1] == '/') || filter == "#") {
		return false
	}
	var levels func(f, t []string) bool
	levels = func(f, t []string) bool {
		switch {
		case len(f) == 1 && f[0] == "#":
			return true
		case len(f) == 0 || len(t) == 0:
			return len(f) == len(t)
		}
		return (f[0] == "+" || f[0] == t[0]) && levels(f[1:], t[1:])
	}
	return levels(strings.Split(filter, "/"), strings.Split(topic, "/"))
}

func FuzzMatch(f *testing.F) {
	for _, s := range [][2]string{{"a/+/#", "a/b"}, {"#", "$x"}, {"+/#", "/"}, {"$a/+", "$a/"}, {"a/#/b", "a/#"}, {"", ""}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, filter, topic string) {
		if len(filter)+len(topic) > 200 {
			return
		}
		got := mqttbridge.Match(filter, topic)
		if mqttbridge.CheckFilter(filter) != nil || mqttbridge.CheckTopic(topic) != nil {
			return // some answer, and no panic
		}
		if want := slowMatch(filter, topic); got != want {
			t.Errorf("Match(%q, %q) = %v, the reference says %v", filter, topic, got, want)
		}
		// One topic is a filter too.
		if mqttbridge.Covers(filter, topic) != got || mqttbridge.Overlap(filter, topic) != got {
			t.Errorf("%q and %q: Covers %v, Overlap %v, Match %v", filter, topic, mqttbridge.Covers(filter, topic), mqttbridge.Overlap(filter, topic), got)
		}
	})
}

// smallTopics are all topics of up to four levels of a few names: more names
// and levels than a small filter can tell apart.
func smallTopics() []string {
	names := []string{"a", "b", "", "$s", "z"}
	var all, last []string
	last = []string{""}
	for depth := range 4 {
		var nextLevel []string
		for _, l := range last {
			for _, n := range names {
				topic := l + "/" + n
				if depth == 0 {
					topic = n
				}
				nextLevel = append(nextLevel, topic)
			}
		}
		all, last = append(all, nextLevel...), nextLevel
	}
	return all
}

// smallFilter builds a filter of up to three levels from a number.
func smallFilter(n uint16) string {
	names := []string{"a", "b", "", "$s", "+", "#"}
	var levels []string
	for range 1 + n%3 {
		levels = append(levels, names[(n>>2)%6])
		n /= 6
	}
	return strings.Join(levels, "/")
}

// FuzzCoversOverlap compares with what the words mean, over all small topics.
func FuzzCoversOverlap(f *testing.F) {
	topics := smallTopics()
	for i := range uint16(40) {
		f.Add(i*37, i*101)
	}
	f.Fuzz(func(t *testing.T, m, n uint16) {
		a, b := smallFilter(m), smallFilter(n)
		if mqttbridge.CheckFilter(a) == nil && mqttbridge.CheckFilter(b) == nil {
			checkPair(t, a, b, matched(a, topics), matched(b, topics))
		}
	})
}

// TestCoversOverlapAll goes through every pair of small filters once.
func TestCoversOverlapAll(t *testing.T) {
	topics := smallTopics()
	sets := make(map[string][]bool)
	var build func(levels []string)
	build = func(levels []string) {
		if filter := strings.Join(levels, "/"); mqttbridge.CheckFilter(filter) == nil {
			sets[filter] = matched(filter, topics)
		}
		if len(levels) < 3 && (len(levels) == 0 || levels[len(levels)-1] != "#") {
			for _, n := range []string{"a", "", "$s", "+", "#"} {
				build(append(levels[:len(levels):len(levels)], n))
			}
		}
	}
	build(nil)
	if len(sets) < 100 {
		t.Fatalf("%d filters", len(sets))
	}
	for a, inA := range sets {
		for b, inB := range sets {
			checkPair(t, a, b, inA, inB)
		}
	}
}

func matched(filter string, topics []string) []bool {
	set := make([]bool, len(topics))
	for i, topic := range topics {
		set[i] = slowMatch(filter, topic)
	}
	return set
}

func checkPair(t *testing.T, a, b string, inA, inB []bool) {
	t.Helper()
	covers, overlap := true, false
	for i := range inA {
		covers = covers && (inA[i] || !inB[i])
		overlap = overlap || inA[i] && inB[i]
	}
	if got := mqttbridge.Covers(a, b); got != covers {
		t.Errorf("Covers(%q, %q) = %v, want %v", a, b, got, covers)
	}
	if got := mqttbridge.Overlap(a, b); got != overlap {
		t.Errorf("Overlap(%q, %q) = %v, want %v", a, b, got, overlap)
	}
}

func BenchmarkMatch(b *testing.B) {
	for b.Loop() {
		if !mqttbridge.Match("home/+/zigbee2mqtt/+/state", "home/kitchen/zigbee2mqtt/lamp/state") {
			b.Fatal("no match")
		}
	}
}

func BenchmarkCheckTopic(b *testing.B) {
	for b.Loop() {
		if mqttbridge.CheckTopic("home/kitchen/zigbee2mqtt/lamp/state") != nil {
			b.Fatal("refused")
		}
	}
}
