package executor

import (
	"fmt"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// What Zigbee2MQTT announces is told apart by an address alone.
func TestFoundNames(t *testing.T) {
	bubble(t, func(w *world) {
		for topic, payload := range map[string]string{
			"homeassistant/switch/0x00158d01/switch/config":      `{"name":null,"object_id":"0x00158d01_switch","device":{"name":"Küche Lampe"},"cmd_t":"z/1/set"}`,
			"homeassistant/switch/0x00158d02/switch/config":      `{"name":null,"device":{"name":"Küche Lampe"},"cmd_t":"z/2/set"}`,
			"homeassistant/switch/0x00158d03/switch_left/config": `{"name":"Left","device":{"name":"Hall"},"cmd_t":"z/3/set"}`,
			"homeassistant/light/0x00158d04/light/config":        `{"name":null,"device":{"name":"Porch light"},"cmd_t":"z/4/set","schema":"json"}`,
			"homeassistant/switch/0x00158d05/switch/config":      `{"cmd_t":"z/5/set"}`,
			"homeassistant/switch/0x00158d06/switch/config":      `{"object_id":"boiler","cmd_t":"z/6/set"}`,
			"homeassistant/switch/0x00158d07/switch/config":      `{"name":"` + strings.Repeat("long ", 30) + `","cmd_t":"z/7/set"}`,
			"homeassistant/switch/0x00158d08/switch/config":      `{"name":"` + strings.Repeat("long ", 30) + `","cmd_t":"z/8/set"}`,
			"homeassistant/select/0x00158d01/mode/config":        `{"cmd_t":"z/1/set","options":["a"]}`,
			"homeassistant/climate/0x00158d09/climate/config":    `{"temp_cmd_t":"z/9/set"}`,
			"homeassistant/select/0x00158d00/mode/config":        `{"cmd_t":"z/0/set"}`,
			"homeassistant/light/t/config":                       `{"cmd_t":"t","schema":"template"}`,
			"homeassistant/sensor/t/config":                      `{"stat_t":"t"}`,
		} {
			w.broker.say(topic, payload, true)
		}
		var names, skipped []string
		for _, s := range w.e.Found() {
			if s.Name == "" {
				skipped = append(skipped, s.YAML)
				continue
			}
			names = append(names, s.Name)
			if !strings.Contains(s.YAML, fmt.Sprintf("- name: %q\n", s.Name)) {
				t.Errorf("%s has another name in\n%s", s.Name, s.YAML)
			}
		}
		long := strings.TrimSuffix(strings.Repeat("long-", 12), "-")
		want := "0x00158d05-switch boiler hall-left-switch kueche-lampe-switch kueche-lampe-switch-2 " +
			"porch-light " + shorten(slug(strings.Repeat("long ", 30)), 57) + "-switch"
		got := strings.Join(names, " ")
		for _, name := range strings.Fields(want) {
			if !strings.Contains(" "+got+" ", " "+name+" ") {
				t.Errorf("%s is not among %s (%s)", name, got, long)
			}
		}
		const left = " is not one of button, cover, light, lock, scene, siren, switch "
		if got, want := strings.Join(skipped, ""), "# skipped 1: climate"+left+"(homeassistant/climate/0x00158d09/climate/config)\n"+
			"# skipped 1: light with the schema template (homeassistant/light/t/config)\n"+
			"# skipped 2: select"+left+"(homeassistant/select/0x00158d00/mode/config)\n"; got != want {
			t.Errorf("skipped\n%swant\n%s", got, want)
		}
	})
}

// All of it together can be pasted, however much there is.
func TestFoundIsAValidList(t *testing.T) {
	bubble(t, func(w *world) {
		for i := range maxActions + 10 {
			w.broker.say(fmt.Sprintf("homeassistant/switch/0x%08d/switch/config", i), fmt.Sprintf(`{"name":"Lamp","cmd_t":"z/%d/set","cmd_tpl":"x"}`, i), true)
		}
		var whole strings.Builder
		for _, s := range w.e.Found() {
			whole.WriteString(s.YAML)
		}
		var list []struct {
			Name, Topic string
			Values      map[string]string
		}
		if err := yaml.Unmarshal([]byte(whole.String()), &list); err != nil || len(list) != maxActions {
			t.Fatalf("%d actions, %v\n%s", len(list), err, whole.String())
		}
		var actions []Action
		for _, a := range list {
			actions = append(actions, Action{Name: a.Name, Topic: a.Topic, Values: a.Values})
		}
		if faults := Check(actions); len(faults) > 0 {
			t.Error(faults)
		}
		if !strings.Contains(whole.String(), "# more than a home may have") || !strings.Contains(whole.String(), `# - name: "lamp-switch-74"`) {
			t.Errorf("what is too much is not commented out:\n%s", whole.String())
		}
	})
}

func TestFoundAck(t *testing.T) {
	for payload, want := range map[string]string{
		`{"cmd_t":"a/set","stat_t":"a","stat_open":"OPEN","stat_clsd":"CLOSED"}`:                     "a 2m0s map[close:CLOSED open:OPEN stop:stopped]",
		`{"cmd_t":"a/set","stat_t":"a","state_open":"o","val_tpl":"{{ value_json.state }}"}`:         "a 2m0s map[close:.state=closed open:.state=o stop:.state=stopped]",
		`{"cmd_t":"a/set","stat_t":"a","state_open":"o","val_tpl":"{{ value_json.state | upper }}"}`: "",
		`{"cmd_t":"a/set","stat_t":"a"}`:                                                                "",
		`{"cmd_t":"a","stat_t":"a","state_open":"o"}`:                                                   "",
		`{"cmd_t":"a/set","stat_t":"a","state_open":"/.*/"}`:                                            "",
		`{"cmd_t":"a/set","stat_t":"a","state_open":".a"}`:                                              "",
		`{"cmd_t":"a/set","stat_t":"a","state_open":"o","val_tpl":"{{ value_json['x=/./'] }}"}`:         "",
		`{"p":"switch","cmd_t":"a/set","stat_t":"a","pl_on":"1","pl_off":"0","stat_on":"ON"}`:           "a 0s map[off:0 on:ON]",
		`{"p":"lock","cmd_t":"a/set","stat_t":"a","stat_locked":"L","val_tpl":"{{ value_json['s'] }}"}`: "a 0s map[lock:.s=L unlock:.s=UNLOCKED]",
		`{"p":"button","cmd_t":"a/set","stat_t":"a","stat_on":"ON"}`:                                    "",
	} {
		component := "cover"
		for _, other := range []string{"switch", "lock", "button"} {
			if strings.Contains(payload, `"p":"`+other+`"`) {
				component = other
			}
		}
		list := suggestions("homeassistant/"+component+"/door/config", []byte(payload))
		if len(list) != 1 || list[0].skipped != "" {
			t.Errorf("%s: %+v", payload, list)
			continue
		}
		got, s := "", list[0]
		if a := s.Action.Ack; a != nil {
			got = fmt.Sprint(a.Topic, " ", a.Timeout, " ", a.Values)
			var y []struct {
				Ack struct {
					Topic, Timeout string
					Values         map[string]string
				}
			}
			if err := yaml.Unmarshal([]byte(s.YAML), &y); err != nil || len(y) != 1 || y[0].Ack.Topic != a.Topic || fmt.Sprint(y[0].Ack.Values) != fmt.Sprint(a.Values) || (a.Timeout != 0) != (y[0].Ack.Timeout != "") {
				t.Errorf("%v\n%s", err, s.YAML)
			}
		}
		if got != want {
			t.Errorf("%s: ack %q, want %q", payload, got, want)
		}
	}
}
