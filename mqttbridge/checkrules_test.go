package mqttbridge_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/mqttbridge"
)

func ExampleCheckRules() {
	var rules []mqttbridge.Rule
	for _, line := range []string{"topic zigbee2mqtt/# out", "topic zigbee2mqtt/+/set in"} {
		rule, err := mqttbridge.ParseRule(line)
		if err != nil {
			fmt.Println(err)
			return
		}
		rules = append(rules, rule)
	}
	for _, f := range mqttbridge.CheckRules(rules, []string{"zigbee2mqtt/garage/set"}) {
		fmt.Println(f.Message)
	}
	// Output:
	// rule 2 (zigbee2mqtt/+/set in) would carry messages from the hub to zigbee2mqtt/garage/set, a topic of an action: past its PIN, its hours and its record. Narrow the pattern so that it leaves out this topic; the action is the way in
	// this is a loop: zigbee2mqtt/x/set at home goes out by rule 1 (zigbee2mqtt/# out) as home/<agent>/zigbee2mqtt/x/set, comes in by rule 2 (zigbee2mqtt/+/set in) as zigbee2mqtt/x/set, and goes out by rule 1 again. Narrow the patterns so that what comes in is not among what goes out, such as zigbee2mqtt/+ out
}

func TestCheckRules(t *testing.T) {
	for _, c := range []struct {
		name    string
		rules   string // separated by ";"
		actions []string
		want    []string // for each fault: its index and what its message holds, "1: text, text"
	}{
		{name: "none"},
		{name: "what most write", rules: "zigbee2mqtt/+ out; zigbee2mqtt/+/set in; homeassistant/# out"},
		{name: "in and out apart by prefixes", rules: "# out 1 stat/ stat/; # in 1 cmnd/"},
		{name: "in under other names at home", rules: `stat/# out; # in 1 from-hub/`},
		{name: "same names at the hub, other names at home, and no way on", rules: `a/# out; a/# in 1 from-hub/ ""`},
		{name: "goes out twice, ends", rules: `a/# out; a/# in 1 b/; b/# out`},

		{name: "both, no prefix", rules: "a/# both", want: []string{"0: a/x at home goes out as home/<agent>/a/x, two rules|Write one rule out, a/# both 1 \"\" shared/"}},
		{name: "both, the same prefix", rules: "# both 1 a/ a/", want: []string{"0: loop"}},
		{name: "both, names overlap", rules: `# both 1 a/ ""`, want: []string{"0: a/bridge/, # both 1 a/ my/", "0: a/a/x at home goes out as home/<agent>/a/x, carries it home as a/x"}},
		{name: "both of one topic under two names", rules: `"" both 1 a/b c/d`},
		{name: "both, other names on each side", rules: `lamp/# both 1 shared/ hub/`},
		{name: "both, a remote prefix alone", rules: `lamp/# both 1 "" hub/`},

		{name: "the same topic out and in", rules: "a out; a in", want: []string{"1: a at home goes out by rule 1, comes in by rule 2, give it names of its own at home: a in 1 relay/"}},
		{name: "wildcards that share a topic", rules: "+/b out; a/+ in", want: []string{"1: a/b at home"}},
		{name: "wildcards that share none", rules: "+/b out; a/+/# in 1 c/"},
		{name: "only the parent is shared", rules: "# out 1 a/ b/; \"\" in 1 a/x b"},
		{name: "the parent is shared", rules: "a/# out; a in", want: []string{"1: a at home goes out"}},
		{name: "over prefixes", rules: "x/# out 1 a/ b/; # in 1 a/x/y/ b/x/y/", want: []string{"1: a/x/y/x at home goes out by rule 1, as home/<agent>/b/x/y/x"}},
		{name: "longer with each turn", rules: `a/# out 1 "" b/; # in 1 a/`, want: []string{"1: a/x at home goes out, as home/<agent>/b/a/x, as a/b/a/x"}},
		{name: "shorter with each turn", rules: `# out 1 a/ q/; # in 1 "" q/`, want: []string{"1: sallyport/#", "1: a/a/x at home goes out, as home/<agent>/q/a/x, as a/x"}},
		{name: "prefixes without a slash", rules: "b/# out 1 a; b/# in 1 a", want: []string{"1: ab/x at home"}},
		{
			name: "over four rules", rules: "a/# out 1 \"\" p/; a/# in 1 b/ p/; a/# out 1 b/ q/; # in 1 \"\" q/",
			want: []string{"3: sallyport", "3: goes out by rule 1, comes in by rule 2, goes out by rule 3, comes in by rule 4, out by rule 1 again"},
		},
		{name: "two of both directions, crossed", rules: `x/# both 1 a/ b/; x/y/# both 1 a/ b/`, want: []string{"1: adds nothing to rule 1"}},
		{name: "two of both directions, crossed, other care", rules: `x/# both 1 a/ b/; x/y/# both 0 a/ b/`, want: []string{"1: a/x/y/x at home"}},

		{name: "twice", rules: "a/# out; b out; a/# out", want: []string{"2: rule 3 (a/# out) adds nothing to rule 1 (a/# out)"}},
		{name: "twice, split otherwise", rules: "b/# out 1 a/ c/; # out 1 a/b/ c/b/", want: []string{"1: adds nothing"}},
		{name: "twice, another QoS", rules: "a/# out; a/# out 0", want: []string{"1: adds nothing"}},
		{name: "within another", rules: "a/# out; a/b out", want: []string{"1: adds nothing"}},
		{name: "within another, with other care", rules: "a/# out; a/b out 0"},
		{name: "to two places", rules: "a/# out; a/# out 1 \"\" copy/"},
		{name: "half of both", rules: `a/# both 1 "" r/; a/# in 1 "" r/`, want: []string{"1: adds nothing"}},
		{name: "other way", rules: `a/# out 1 "" r/; a/# in 1 b/ s/`},

		{name: "an action's topic", rules: "cmnd/# in", actions: []string{"other", "cmnd/garage/POWER"}, want: []string{"0: cmnd/garage/POWER, past its PIN"}},
		{name: "an action's topic, by a prefix", rules: "# in 1 cmnd/", actions: []string{"cmnd/garage/POWER"}, want: []string{"0: cmnd/garage/POWER"}},
		{name: "an action's topic, by a parent", rules: "garage/# in", actions: []string{"garage"}, want: []string{"0: past its PIN"}},
		{name: "an action's topic, both", rules: `+/+/POWER both 1 "" r/`, actions: []string{"cmnd/garage/POWER"}, want: []string{"0: past its PIN"}},
		{name: "an action's topic out is fine", rules: "cmnd/# out", actions: []string{"cmnd/garage/POWER"}},
		{name: "beside an action's topic", rules: "cmnd/lamp/+ in", actions: []string{"cmnd/garage/POWER"}},
		{name: "all comes in", rules: "# in", want: []string{"0: sallyport/#, # in 1 relay/"}},
		{name: "the tree of Sallyport", rules: `"" in 1 sallyport/bridge/state x`, want: []string{"0: sallyport/#"}},

		{name: "the hub's words", rules: "bridge/state out", want: []string{"0: home/<agent>/bridge/#, bridge/state out 1 \"\" my/"}},
		{name: "the hub's words under a prefix", rules: "# out 1 zigbee2mqtt/", want: []string{"0: zigbee2mqtt/bridge/, # out 1 zigbee2mqtt/ zigbee2mqtt/"}},
		{name: "all goes out", rules: "# out"},
		{name: "the hub's words may come in", rules: "bridge/# in 1 hub/"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var rules []mqttbridge.Rule
			for line := range strings.SplitSeq(c.rules, ";") {
				if line == "" {
					continue
				}
				rule, err := mqttbridge.ParseRule(line)
				if err != nil {
					t.Fatal(err)
				}
				rules = append(rules, rule)
			}
			faults := mqttbridge.CheckRules(rules, c.actions)
			for _, f := range faults {
				t.Logf("%d: %s", f.Index, f.Message)
			}
			if len(faults) != len(c.want) {
				t.Fatalf("%d faults, want %d", len(faults), len(c.want))
			}
			for i, want := range c.want {
				index, texts, _ := strings.Cut(want, ": ")
				if fmt.Sprint(faults[i].Index) != index {
					t.Errorf("fault %d is of rule index %d, want %s", i, faults[i].Index, index)
				}
				for text := range strings.SplitSeq(texts, ", ") {
					oneOf := strings.Split(text, "|")
					found := false
					for _, o := range oneOf {
						found = found || strings.Contains(faults[i].Message, o)
					}
					if !found {
						t.Errorf("fault %d does not say %q", i, text)
					}
				}
			}
		})
	}
}

func TestCheckRulesRefusesWrongAndMany(t *testing.T) {
	faults := mqttbridge.CheckRules([]mqttbridge.Rule{{Pattern: "a#", Direction: "out"}, {Pattern: "b", Direction: "out", QoS: 2}, {Pattern: "c", Direction: "out"}}, nil)
	if len(faults) != 2 || faults[0].Index != 0 || faults[1].Index != 1 || !strings.Contains(faults[1].Message, "write 1") {
		t.Errorf("%+v", faults)
	}
	many := make([]mqttbridge.Rule, mqttbridge.MaxRules+1)
	for i := range many {
		many[i] = mqttbridge.Rule{Pattern: fmt.Sprint(i), Direction: mqttbridge.Out, QoS: 1}
	}
	if faults := mqttbridge.CheckRules(many[:mqttbridge.MaxRules], nil); len(faults) != 0 {
		t.Errorf("%+v", faults[0])
	}
	if faults := mqttbridge.CheckRules(many, nil); len(faults) != 1 {
		t.Errorf("%d faults", len(faults))
	}
}
