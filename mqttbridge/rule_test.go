package mqttbridge_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

func ExampleParseRule() {
	rule, err := mqttbridge.ParseRule("topic sensors/# out 1 zigbee2mqtt/ cloud/")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(rule.LocalFilter(), "→", "home/<agent>/"+rule.RemoteFilter())
	fmt.Println(rule.ToRemote("zigbee2mqtt/sensors/attic"))
	fmt.Println(rule.ToRemote("zigbee2mqtt/lamp"))
	// Output:
	// zigbee2mqtt/sensors/# → home/<agent>/cloud/sensors/#
	// cloud/sensors/attic true
	//  false
}

func TestParseRule(t *testing.T) {
	rule := func(pattern string, d mqttbridge.Direction, qos byte, local, remote string) mqttbridge.Rule {
		return mqttbridge.Rule{Pattern: pattern, Direction: d, QoS: qos, Local: local, Remote: remote}
	}
	for _, c := range []struct {
		line string
		want mqttbridge.Rule
		back string // String, when it is not line
	}{
		{"#", rule("#", "out", 1, "", ""), "# out"},
		{"topic #", rule("#", "out", 1, "", ""), "# out"},
		{"  topic\t# \t out ", rule("#", "out", 1, "", ""), "# out"},
		{"a/+ in", rule("a/+", "in", 1, "", ""), ""},
		{"a both 0 x/ y/", rule("a", "both", 0, "x/", "y/"), ""},
		{`a in 1 "" y/`, rule("a", "in", 1, "", "y/"), ""},
		{`"" out 1 one/topic another/topic`, rule("", "out", 1, "one/topic", "another/topic"), ""},
		{`"my lamp/#" out 1 "the house/"`, rule("my lamp/#", "out", 1, "the house/", ""), ""},
		{"topic topic", rule("topic", "out", 1, "", ""), `"topic" out`},
		{`"topic"`, rule("topic", "out", 1, "", ""), `"topic" out`},
		{"topic out out", rule("out", "out", 1, "", ""), "out out"},
		{"a in 0", rule("a", "in", 0, "", ""), ""},
	} {
		got, err := mqttbridge.ParseRule(c.line)
		if err != nil || got != c.want {
			t.Errorf("ParseRule(%q) = %+v, %v, want %+v", c.line, got, err, c.want)
			continue
		}
		if c.back == "" {
			c.back = c.line
		}
		if got.String() != c.back {
			t.Errorf("%+v.String() = %q, want %q", got, got.String(), c.back)
		}
	}
	for _, line := range []string{
		"", "topic", "a sideways", "a out 2", "a out 3", "a out x", "a out -1", "a out 256", "a out 1 b c d", "a out 1 + b", "a out 1 b/# c",
		"a# out", "#/a", `"a`, `"a"b`, `a"b`, `""`, `"" out 1 a`, `"" out 1 "" b`, "# out 1 a b", "# out 1 $SYS/", "$SYS/# out",
		"a out 1 $x/ b/", "a\x00b", "a out 1 \xff", strings.Repeat("a", 1000), `a out "" b`,
	} {
		if got, err := mqttbridge.ParseRule(line); err == nil {
			t.Errorf("ParseRule(%q) = %+v, want an error", line, got)
		} else if !strings.HasPrefix(err.Error(), "rule ") {
			t.Errorf("ParseRule(%q): the error does not name the rule: %v", line, err)
		}
	}
}

func TestRuleMaps(t *testing.T) {
	for _, c := range []struct{ line, local, remote string }{ // "" = not carried
		{"# out", "a/b", "a/b"},
		{"# out 1 a/", "a/b", "b"},
		{"# out 1 a/", "a", ""},       // the parent lies outside of the prefix
		{"# out 1 a/", "a/", ""},      // nothing would be left
		{"# out 1 a/", "a/$x", ""},    // it would be the broker's own
		{`# out 1 "" b/`, "$x", ""},   // # does not match it
		{"# out 1 a/ b/", "a/", "b/"}, // the empty level is one
		{"# out 1 a/ b/", "a/$x", "b/$x"},
		{"+/s out 1 a/ b/", "a/x/s", "b/x/s"},
		{"+/s out 1 a/ b/", "a/x/y/s", ""},
		{"+/s out 1 a/ b/", "a/$x/s", "b/$x/s"}, // $ is special in the first level only
		{"+/# out 1 a/ b/", "a/", "b/"},
		{"b/# out 1 a", "ab/c", "b/c"}, // prefixes are texts
		{"x out 1 a/b", "a/bx", "x"},
		{`"" out 1 one two/three`, "one", "two/three"},
		{`"" out 1 one two/three`, "one/more", ""},
		{"# out", "bridge/state", ""}, // HubReserved
		{"# out", "bridge", ""},
		{"# out", "my/bridge/state", "my/bridge/state"},
		{"# out", strings.Repeat("a", 1000), ""}, // no room for home/<agent>/
	} {
		rule, err := mqttbridge.ParseRule(c.line)
		if err != nil {
			t.Fatal(err)
		}
		remote, ok := rule.ToRemote(c.local)
		if remote != c.remote && (ok || c.remote != "") || ok != (c.remote != "") {
			t.Errorf("%q: ToRemote(%q) = %q, %v, want %q", c.line, c.local, remote, ok, c.remote)
		}
		if c.remote == "" {
			continue
		}
		if local, ok := rule.ToLocal(c.remote); !ok || local != c.local {
			t.Errorf("%q: ToLocal(%q) = %q, %v, want %q", c.line, c.remote, local, ok, c.local)
		}
	}
}

func FuzzParseRule(f *testing.F) {
	for _, s := range []string{"topic # out", "a/+ both 1 x/ y/", `"" in 0 a b`, `"topic"`, `"a b" out 1 "" "c d/"`, "a out 1 b/a"} {
		f.Add(s, "a/b")
	}
	f.Fuzz(func(t *testing.T, line, topic string) {
		rule, err := mqttbridge.ParseRule(line)
		if err != nil {
			return
		}
		again, err := mqttbridge.ParseRule(rule.String())
		if err != nil || again != rule {
			t.Fatalf("%q is read as %+v, said as %q, and read again as %+v, %v", line, rule, rule.String(), again, err)
		}
		remote, ok := rule.ToRemote(topic)
		rest, inside := strings.CutPrefix(topic, rule.Local)
		plain := rule.Remote + rest
		want := inside && mqttbridge.CheckTopic(topic) == nil && mqttbridge.Match(rule.LocalFilter(), topic) &&
			mqttbridge.CheckTopic(plain) == nil && !mqttbridge.Match(mqttbridge.HubReserved, plain) && len(plain) <= 900
		if ok != want || ok && remote != plain {
			t.Fatalf("%q carries %q to %q, %v; want %q, %v", line, topic, remote, ok, plain, want)
		}
		if !ok {
			return
		}
		if !mqttbridge.Match(rule.RemoteFilter(), remote) {
			t.Fatalf("%q carries %q to %q, which its other filter does not match", line, topic, remote)
		}
		if back, ok := rule.ToLocal(remote); !ok || back != topic {
			t.Fatalf("%q carries %q to %q and that to %q, %v", line, topic, remote, back, ok)
		}
	})
}

func TestRuleCheckLimits(t *testing.T) {
	good := mqttbridge.Rule{Pattern: "a", Direction: mqttbridge.Out, MaxAge: time.Hour}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	bad := good
	bad.MaxAge = -1
	if bad.Check() == nil {
		t.Error("a negative age is taken")
	}
	if (mqttbridge.Rule{}).Check() == nil {
		t.Error("the zero rule is taken")
	}
}

func BenchmarkToRemote(b *testing.B) {
	rule := mqttbridge.Rule{Pattern: "sensors/#", Direction: mqttbridge.Out, QoS: 1, Local: "zigbee2mqtt/", Remote: "z/"}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := rule.ToRemote("zigbee2mqtt/sensors/attic/temperature"); !ok {
			b.Fatal("not carried")
		}
	}
}
