package executor

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

func TestPresets(t *testing.T) {
	for _, test := range []struct {
		preset, target string
		payload        string // as configured
		value          string // "" = no values
		topic, sent    string
		state, path    string
		ack            string   // topic
		yes, no        []string // payloads of the ack
	}{
		{preset: "tasmota", target: "garage", topic: "cmnd/garage/POWER", sent: "TOGGLE", state: "stat/garage/POWER", ack: "stat/garage/POWER", yes: []string{"ON", "OFF"}, no: []string{"x"}},
		{preset: "tasmota", target: "garage:2", payload: "on", topic: "cmnd/garage/POWER2", sent: "ON", state: "stat/garage/POWER2", ack: "stat/garage/POWER2", yes: []string{"ON"}, no: []string{"OFF"}},
		{preset: "tasmota", target: "garage", value: "off", topic: "cmnd/garage/POWER", sent: "OFF", state: "stat/garage/POWER", ack: "stat/garage/POWER", yes: []string{"OFF"}, no: []string{"ON"}},
		{preset: "tasmota", target: "garage", payload: "Blink", topic: "cmnd/garage/POWER", sent: "Blink", state: "stat/garage/POWER"},
		{preset: "espurna", target: "garage", payload: "ON", topic: "garage/relay/0/set", sent: "1", state: "garage/relay/0", ack: "garage/relay/0", yes: []string{"1", "on", "ON"}, no: []string{"0", "10"}},
		{preset: "espurna", target: "home/garage:1", value: "toggle", topic: "home/garage/relay/1/set", sent: "2", state: "home/garage/relay/1", ack: "home/garage/relay/1", yes: []string{"0", "1"}},
		{preset: "zigbee2mqtt", target: "front door", payload: "unlock", topic: "zigbee2mqtt/front door/set", sent: `{"state":"UNLOCK"}`, state: "zigbee2mqtt/front door", path: "state", ack: "zigbee2mqtt/front door", yes: []string{`{"state":"UNLOCK","battery":3}`}, no: []string{`{"state":"LOCK"}`, "UNLOCK"}},
		{preset: "zigbee2mqtt", target: "plug:l2", value: "on", topic: "zigbee2mqtt/plug/set", sent: `{"state_l2":"ON"}`, state: "zigbee2mqtt/plug", path: "state_l2", ack: "zigbee2mqtt/plug", yes: []string{`{"state_l2":"ON"}`}, no: []string{`{"state":"ON"}`}},
		{preset: "shelly1", target: "shelly1-AABBCC", payload: "on", topic: "shellies/shelly1-AABBCC/relay/0/command", sent: "on", state: "shellies/shelly1-AABBCC/relay/0", ack: "shellies/shelly1-AABBCC/relay/0", yes: []string{"on"}, no: []string{"off"}},
		{preset: "shelly1", target: "shellyswitch25-AABBCC/roller:0", value: "open", topic: "shellies/shellyswitch25-AABBCC/roller/0/command", sent: "open", state: "shellies/shellyswitch25-AABBCC/roller/0", ack: "shellies/shellyswitch25-AABBCC/roller/0", yes: []string{"open"}, no: []string{"stop"}},
		{preset: "shelly2", target: "shellyplus1-aabb", payload: "on", topic: "shellyplus1-aabb/rpc", sent: `{"id":1,"src":"sallyport/act","method":"Switch.Set","params":{"id":0,"on":true}}`, state: "shellyplus1-aabb/status/switch:0", path: "output", ack: "sallyport/act/rpc", yes: []string{`{"id":1,"src":"shellyplus1-aabb","dst":"sallyport/act","result":{"was_on":false}}`}, no: []string{`{"id":1,"error":{"code":-103}}`}},
		{preset: "shelly2", target: "shellyplus2pm-aabb:1", topic: "shellyplus2pm-aabb/rpc", sent: `{"id":1,"src":"sallyport/act","method":"Switch.Toggle","params":{"id":1}}`, state: "shellyplus2pm-aabb/status/switch:1", path: "output", ack: "sallyport/act/rpc", yes: []string{`{"result":{}}`}},
		{preset: "shelly2", target: "shellyplus2pm-aabb/cover:0", value: "stop", topic: "shellyplus2pm-aabb/rpc", sent: `{"id":1,"src":"sallyport/act","method":"Cover.Stop","params":{"id":0}}`, state: "shellyplus2pm-aabb/status/cover:0", path: "state", ack: "sallyport/act/rpc", yes: []string{`{"result":null}`}},
		{preset: "esphome", target: "garage/switch/relay", topic: "garage/switch/relay/command", sent: "TOGGLE", state: "garage/switch/relay/state", ack: "garage/switch/relay/state", yes: []string{"ON"}},
		{preset: "esphome", target: "home/node/cover/door", value: "open", topic: "home/node/cover/door/command", sent: "OPEN", state: "home/node/cover/door/state", ack: "home/node/cover/door/state", yes: []string{"open", "opening"}, no: []string{"closed"}},
		{preset: "esphome", target: "node/light/porch", payload: "on", topic: "node/light/porch/command", sent: `{"state":"ON"}`, state: "node/light/porch/state", path: "state", ack: "node/light/porch/state", yes: []string{`{"state":"ON"}`}, no: []string{`{"state":"OFF"}`}},
		{preset: "esphome", target: "node/lock/front", payload: "UNLOCK", topic: "node/lock/front/command", sent: "UNLOCK", state: "node/lock/front/state", ack: "node/lock/front/state", yes: []string{"UNLOCKED"}, no: []string{"LOCKED"}},
		{preset: "esphome", target: "node/button/bell", topic: "node/button/bell/command", sent: "PRESS"},
		{preset: "homeassistant", target: "cover.garage", payload: "open", topic: "sallyport/homeassistant/cover/garage/set", sent: "open_cover", state: "homeassistant/cover/garage/state", ack: "homeassistant/cover/garage/state", yes: []string{"open", "opening"}, no: []string{"closed"}},
		{preset: "homeassistant", target: "lock.front", value: "unlock", topic: "sallyport/homeassistant/lock/front/set", sent: "unlock", state: "homeassistant/lock/front/state", ack: "homeassistant/lock/front/state", yes: []string{"unlocked"}, no: []string{"locked"}},
		{preset: "homeassistant", target: "scene.evening", topic: "sallyport/homeassistant/scene/evening/set", sent: "turn_on", state: "homeassistant/scene/evening/state", ack: "homeassistant/scene/evening/state", yes: []string{"2026-05-01T10:00:00+00:00"}},
		{preset: "homeassistant", target: "switch.pump", topic: "sallyport/homeassistant/switch/pump/set", sent: "toggle", state: "homeassistant/switch/pump/state", ack: "homeassistant/switch/pump/state", yes: []string{"on"}, no: []string{"unavailable"}},
	} {
		t.Run(test.preset+" "+test.target+" "+test.payload+test.value, func(t *testing.T) {
			conf := Action{Name: "act", Preset: test.preset, Target: test.target, Payload: test.payload}
			if test.value != "" {
				conf.Values = map[string]string{test.value: ""}
			}
			set, faults := compileAll([]Action{conf})
			if len(faults) > 0 {
				t.Fatal(faults)
			}
			a := set.list[0]
			if a.Topic != test.topic || string(a.payload(test.value)) != test.sent || a.State != test.state || a.StatePath != test.path {
				t.Errorf("%+v", a.Action)
			}
			if strings.HasPrefix(test.sent, "{") && !json.Valid(a.payload(test.value)) {
				t.Errorf("%s is no JSON", a.payload(test.value))
			}
			m := a.ack(test.value)
			if (m != nil) != (test.ack != "") || m != nil && a.Ack.Topic != test.ack {
				t.Fatalf("ack %+v", a.Ack)
			}
			for _, p := range test.yes {
				if !m.match([]byte(p)) {
					t.Errorf("%q is no ack", p)
				}
			}
			for _, p := range test.no {
				if m.match([]byte(p)) {
					t.Errorf("%q is an ack", p)
				}
			}
			if len(conf.Values) > 0 && conf.Values[test.value] != "" {
				t.Error("the caller's map was changed")
			}
			if r, err := conf.Resolved(); err != nil || r.Topic != test.topic || r.Life != defaultLife || r.QoS != 1 || r.Label != "act" || r.Confirm != mqttbridge.ConfirmHold {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

func TestPresetGivesWay(t *testing.T) {
	a, err := Action{
		Name: "gate", Preset: "tasmota", Target: "gate", Topic: "my/topic", State: "my/state",
		Pulse: &Pulse{After: time.Second}, Ack: &Ack{Match: "ON", Timeout: 2 * time.Second},
	}.Resolved()
	if err != nil {
		t.Fatal(err)
	}
	if a.Topic != "my/topic" || a.State != "my/state" || a.Payload != "ON" || a.Pulse.Payload != "OFF" || a.Ack.Topic != "stat/gate/POWER" || a.Ack.Match != "ON" || a.Ack.Timeout != 2*time.Second {
		t.Errorf("%+v, ack %+v, pulse %+v", a, a.Ack, a.Pulse)
	}
	a, err = Action{Name: "blind", Preset: "esphome", Target: "n/cover/b", Values: map[string]string{"open": "", "up": "OPEN", "half": `{"position":50}`}, Ack: &Ack{Topic: "else/where"}}.Resolved()
	if err != nil || a.Values["open"] != "OPEN" || a.Values["up"] != "OPEN" || a.Values["half"] != `{"position":50}` || a.Ack.Topic != "else/where" || a.Ack.Match != "" || a.Ack.Values != nil {
		t.Errorf("%+v, %+v, %v", a, a.Ack, err)
	}
}

func TestCheck(t *testing.T) {
	good := Action{Name: "a", Topic: "t", Payload: "1"}
	edit := func(f func(*Action)) Action {
		a := good
		f(&a)
		return a
	}
	for key, actions := range map[string][]Action{
		"name": {
			edit(func(a *Action) { a.Name = "" }), edit(func(a *Action) { a.Name = "a b" }), edit(func(a *Action) { a.Name = strings.Repeat("a", 65) }),
		},
		"label": {edit(func(a *Action) { a.Label = strings.Repeat("é", 41) }), edit(func(a *Action) { a.Label = "a\nb" })},
		"icon":  {edit(func(a *Action) { a.Icon = strings.Repeat("x", 33) })},
		"topic": {
			edit(func(a *Action) { a.Topic = "" }), edit(func(a *Action) { a.Topic = "a/#" }), edit(func(a *Action) { a.Topic = "$SYS/x" }),
		},
		"payload": {
			edit(func(a *Action) { a.Payload = strings.Repeat("x", maxPayload+1) }), edit(func(a *Action) { a.Values = map[string]string{"on": "1"} }),
			{Name: "a", Preset: "esphome", Target: "n/lock/x"},
			{Name: "a", Topic: "t"},
			{Name: "a", Topic: "t", Values: map[string]string{}},
		},
		"qos":           {edit(func(a *Action) { a.QoS = 3 })},
		"preset":        {{Name: "a", Preset: "tasmoto", Target: "x"}},
		"target":        {{Name: "a", Preset: "tasmota"}, {Name: "a", Preset: "tasmota", Target: "x:y"}, {Name: "a", Preset: "shelly2", Target: "x:01"}, {Name: "a", Preset: "tasmota", Target: "a/#"}, {Name: "a", Preset: "esphome", Target: "relay"}, {Name: "a", Preset: "esphome", Target: "n/sensor/x"}, {Name: "a", Preset: "homeassistant", Target: "garage"}, edit(func(a *Action) { a.Target = "x" })},
		"confirm":       {edit(func(a *Action) { a.Confirm = "maybe" })},
		"ack.topic":     {edit(func(a *Action) { a.Ack = &Ack{} }), edit(func(a *Action) { a.Ack = &Ack{Topic: "+"} }), edit(func(a *Action) { a.Ack = &Ack{Topic: "t"} })},
		"ack.match":     {edit(func(a *Action) { a.Ack = &Ack{Topic: "s", Match: "/(/"} })},
		"ack.values":    {edit(func(a *Action) { a.Ack = &Ack{Topic: "s", Values: map[string]string{"x": "y"}} })},
		"ack.timeout":   {edit(func(a *Action) { a.Ack = &Ack{Topic: "s", Timeout: time.Hour} })},
		"state":         {edit(func(a *Action) { a.State = "#" })},
		"state_path":    {edit(func(a *Action) { a.StatePath = "a" }), edit(func(a *Action) { a.State, a.StatePath = "s", "a..b" })},
		"values":        {{Name: "a", Topic: "t", Values: map[string]string{"": "x"}}, {Name: "a", Preset: "tasmota", Target: "x", Values: map[string]string{"open": ""}}},
		"who":           {edit(func(a *Action) { a.Who = []string{"["} }), edit(func(a *Action) { a.Who = []string{""} })},
		"hours":         {edit(func(a *Action) { a.Hours = "always" })},
		"rate":          {edit(func(a *Action) { a.Rate = "often" })},
		"pulse":         {{Name: "a", Topic: "t", Values: map[string]string{"x": "y"}, Pulse: &Pulse{After: time.Second}}},
		"pulse.after":   {edit(func(a *Action) { a.Pulse = &Pulse{} })},
		"pulse.payload": {edit(func(a *Action) { a.Pulse = &Pulse{After: time.Second, Payload: strings.Repeat("x", maxPayload+1)} })},
		"life":          {edit(func(a *Action) { a.Life = time.Second }), edit(func(a *Action) { a.Life = time.Hour })},
	} {
		for _, a := range actions {
			faults := Check([]Action{{Name: "good", Topic: "t", Payload: "1"}, a})
			found := false
			for _, f := range faults {
				found = found || f.Key == key && f.Index == 1 && f.Message != ""
			}
			if !found {
				t.Errorf("%s: %+v: faults %+v", key, a, faults)
			}
			if _, err := New(Config{Dir: t.TempDir(), Actions: []Action{a}, Broker: &fakeBroker{}}); err == nil {
				t.Errorf("%s: New took %+v", key, a)
			}
		}
	}
	if f := Check([]Action{good, good}); len(f) != 1 || f[0].Index != 1 || f[0].Key != "name" {
		t.Errorf("twice the same name: %+v", f)
	}
	if f := Check(append(make([]Action, maxActions), good)); len(f) == 0 {
		t.Error("too many actions were taken")
	}
	if f := Check(testActions()); len(f) != 0 {
		t.Errorf("%+v", f)
	}
	if f := Check([]Action{{Name: "a", Topic: "t", Empty: true}, {Name: "b", Topic: "t", Values: map[string]string{"none": ""}}}); len(f) != 0 {
		t.Errorf("an empty message that is meant: %+v", f)
	}
	big := make([]Action, maxActions) // each is within its limits
	for i := range big {
		big[i] = Action{Name: fmt.Sprint("a", i), Topic: "t", Values: make(map[string]string)}
		for v := range maxValues {
			big[i].Values[fmt.Sprint(v, strings.Repeat("é", 30))] = "x"
		}
	}
	if f := Check(big); len(f) != 1 || f[0].Index < 30 {
		t.Errorf("more than a frame can hold: %+v", f)
	} else if f := Check(big[:f[0].Index]); len(f) != 0 {
		t.Errorf("%+v", f)
	}
	topics := Topics([]Action{
		good, good,
		{Name: "z", Preset: "zigbee2mqtt", Target: "plug"},
		{Name: "broken"},
		{Name: "own", Topic: "o", State: "o/state", Ack: &Ack{Topic: "o/ack", Match: "x"}},
		{Name: "g", Preset: "tasmota", Target: "gate"},
	})
	if strings.Join(topics, " ") != "cmnd/gate/# cmnd/gate/POWER o o/ack o/state stat/gate/POWER t zigbee2mqtt/plug zigbee2mqtt/plug/set zigbee2mqtt/plug/set/#" {
		t.Errorf("topics %q", topics)
	}
}
