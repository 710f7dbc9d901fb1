package executor

import (
	"fmt"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

func TestFound(t *testing.T) {
	bubble(t, func(w *world) {
		for topic, payload := range map[string]string{
			"homeassistant/switch/0x0017/switch/config": `{"name":null,"device":{"name":"Heater"},"command_topic":"zigbee2mqtt/Heater/set","state_topic":"zigbee2mqtt/Heater","payload_on":"ON","payload_off":"OFF","value_template":"{{ value_json.state }}"}`,
			"homeassistant/button/bell/config":          `{"name":"Bell","~":"bell","cmd_t":"~/press","pl_prs":"RING"}`,
			"homeassistant/cover/n/door/config":         `{"name":"Door","cmd_t":"n/cover/door/command","stat_t":"n/cover/door/state","dev":{"name":"Garage"}}`,
			"homeassistant/lock/front/config":           `{"name":"Front","cmd_t":"front/set","cmd_tpl":"{}","stat_t":"front/set"}`,
			"homeassistant/light/porch/config":          `{"name":"Porch","schema":"json","cmd_t":"porch/set","stat_t":"porch"}`,
			"homeassistant/siren/s/config":              `{"cmd_t":"s/set"}`,
			"homeassistant/scene/evening/config":        `{"name":"Evening","cmd_t":"scene/set","pl_on":"evening"}`,
			"homeassistant/device/board/config":         `{"dev":{"name":"Board"},"~":"board","cmps":{"r1":{"p":"switch","name":"Relay 1","cmd_t":"~/1/set","stat_t":"~/1"},"t":{"p":"sensor","stat_t":"~/t"},"x":7}}`,
			"homeassistant/sensor/t/config":             `{"name":"T","stat_t":"t"}`,
			"homeassistant/switch/bad1/config":          `{"cmd_t":"a/#"}`,
			"homeassistant/switch/bad2/config":          `{"cmd_t":7}`,
			"homeassistant/switch/bad3/config":          `[]`,
			"homeassistant/switch/bad4/config":          `{"cmd_t":"x","pl_on":"` + strings.Repeat("x", maxAnnounced) + `"}`,
			"homeassistant/switch/bad5/config":          ``,
		} {
			w.broker.say(topic, payload, true)
		}
		var got []string
		var skipped []string
		for _, s := range w.e.Found() {
			if s.Name == "" {
				skipped = append(skipped, s.YAML)
				continue
			}
			a := s.Action
			got = append(got, fmt.Sprintf("%s|%s|%s|%s|%v|%s|%s|%v", s.Name, s.Label, a.Topic, a.Payload, a.Values, a.State, a.StatePath, s.Note != ""))
			var list []struct {
				Name, Label, Topic, Payload, State string
				StatePath                          string `yaml:"state_path"`
				Values                             map[string]string
			}
			if err := yaml.Unmarshal([]byte(s.YAML), &list); err != nil || len(list) != 1 {
				t.Errorf("%v\n%s", err, s.YAML)
				continue
			}
			if y := list[0]; y.Name != a.Name || y.Topic != a.Topic || y.Payload != a.Payload || y.State != a.State || y.StatePath != a.StatePath || fmt.Sprint(y.Values) != fmt.Sprint(a.Values) {
				t.Errorf("%+v\n%s", y, s.YAML)
			}
		}
		want := []string{
			"bell|Bell|bell/press|RING|map[]|||false",
			"board_r1|Board Relay 1|board/1/set||map[off:OFF on:ON]|board/1||false",
			"evening|Evening|scene/set|evening|map[]|||false",
			"front|Front|front/set||map[lock:LOCK unlock:UNLOCK]|||true",
			"door|Garage Door|n/cover/door/command||map[close:CLOSE open:OPEN stop:STOP]|n/cover/door/state||false",
			"heater-switch|Heater|zigbee2mqtt/Heater/set||map[off:OFF on:ON]|zigbee2mqtt/Heater|state|false",
			`porch|Porch|porch/set||map[off:{"state":"OFF"} on:{"state":"ON"}]|porch|state|false`,
			"s|s|s/set||map[off:OFF on:ON]|||false",
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if got := strings.Join(skipped, ""); got != `# skipped 1: announced with more than 32 KiB (homeassistant/switch/bad4/config)
# skipped 1: announced with something that is no JSON object (homeassistant/switch/bad3/config)
# skipped 2: switch without a command_topic that can be published to (homeassistant/switch/bad1/config)
` {
			t.Error(got)
		}
		// Taken back.
		w.broker.say("homeassistant/button/bell/config", "", false)
		if n := len(w.e.Found()); n != len(want)-1+len(skipped) {
			t.Errorf("%d suggestions", n)
		}
		// Nothing of it can be pressed, and nobody at the relay hears of it.
		if n := len(w.relay.home().Actions); n != len(w.acts) {
			t.Errorf("%d actions", n)
		}
		for i := range 3 * maxFound {
			w.broker.say(fmt.Sprintf("homeassistant/button/b%d/config", i), `{"cmd_t":"x"}`, true)
		}
		if n := len(w.e.Found()); n != maxFound {
			t.Errorf("%d suggestions", n)
		}
		w.e.mu.Lock()
		n := len(w.e.found)
		w.e.mu.Unlock()
		if n > maxFound {
			t.Errorf("%d announcements are kept", n)
		}
	})
}

func FuzzDiscovery(f *testing.F) {
	f.Add("homeassistant/switch/x/config", []byte(`{"~":"a","cmd_t":"~/set","dev":{"name":"x"},"val_tpl":"{{ value_json['a'] }}","stat_t":"a"}`))
	f.Add("homeassistant/device/x/config", []byte(`{"cmps":{"a":{"p":"light","schema":"json","cmd_t":"a"}}}`))
	f.Add("homeassistant/a/b/c/config", []byte(`{"cmd_t":"\u0000"}`))
	f.Fuzz(func(t *testing.T, topic string, payload []byte) {
		for _, s := range suggestions(topic, payload) {
			if s.skipped != "" {
				if text := skips([]Suggestion{s})[0].YAML; strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "# ") || strings.ContainsAny(text, "\r\u0085\u2028\u2029") {
					t.Errorf("no comment of one line: %q", text)
				}
				continue
			}
			if f := Check([]Action{s.Action}); len(f) > 0 {
				t.Errorf("suggested something that cannot be used: %+v", f)
			}
			var v []map[string]any
			if err := yaml.Unmarshal([]byte(s.YAML), &v); err != nil || len(v) != 1 || v[0]["topic"] != s.Action.Topic {
				t.Errorf("%v\n%s", err, s.YAML)
			}
		}
	})
}
