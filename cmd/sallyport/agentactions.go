package main

import (
	"fmt"
	"time"

	"github.com/sallyport/sallyport/cmd/sallyport/configfile"
	"github.com/sallyport/sallyport/mqttbridge/executor"
)

// actionEntry is one action of agent.yaml; agent.schema.json describes it.
type actionEntry struct {
	Name      string            `yaml:"name"`
	Label     string            `yaml:"label"`
	Icon      string            `yaml:"icon"`
	Topic     string            `yaml:"topic"`
	Payload   string            `yaml:"payload"`
	QoS       byte              `yaml:"qos"`
	Preset    string            `yaml:"preset"`
	Target    string            `yaml:"target"`
	Confirm   string            `yaml:"confirm"`
	Ack       ackEntry          `yaml:"ack"`
	State     string            `yaml:"state"`
	StatePath string            `yaml:"state_path"`
	Values    map[string]string `yaml:"values"`
	Who       []string          `yaml:"who"`
	Hours     string            `yaml:"hours"`
	Rate      string            `yaml:"rate"`
	Pulse     pulseEntry        `yaml:"pulse"`
	Life      string            `yaml:"life"`
}

// ackEntry is how the home says that it happened.
type ackEntry struct {
	Topic   string            `yaml:"topic"`
	Match   string            `yaml:"match"`
	Values  map[string]string `yaml:"values"`
	Timeout string            `yaml:"timeout"`
}

// pulseEntry is what is sent a moment later, such as "off".
type pulseEntry struct {
	After   string `yaml:"after"`
	Payload string `yaml:"payload"`
}

// readActions turns the entries into what the agent runs, and reports what is
// wrong with each of them at its key.
func readActions(file *configfile.File, list []actionEntry) []executor.Action {
	actions := make([]executor.Action, 0, len(list))
	for i, e := range list {
		actions = append(actions, e.action(file, fmt.Sprintf("$.actions[%d]", i)))
	}
	for _, f := range executor.Check(actions) {
		path := fmt.Sprintf("$.actions[%d]", f.Index)
		if f.Key != "" {
			path += "." + f.Key
		}
		file.Fault(path, "%s", f.Message)
	}
	return actions
}

func (e actionEntry) action(file *configfile.File, path string) executor.Action {
	span := func(key, text string) time.Duration {
		if text == "" {
			return 0
		}
		return readSpan(file, path+"."+key, text)
	}
	a := executor.Action{
		Name: e.Name, Label: e.Label, Icon: e.Icon, Topic: e.Topic, Payload: e.Payload, QoS: e.QoS,
		Preset: e.Preset, Target: e.Target, Confirm: e.Confirm, State: e.State, StatePath: e.StatePath,
		Values: e.Values, Who: e.Who, Hours: e.Hours, Rate: e.Rate, Life: span("life", e.Life),
		Empty: e.Payload == "" && file.Has(path+".payload"),
	}
	if ack := e.Ack; ack.Topic+ack.Match+ack.Timeout != "" || len(ack.Values) > 0 {
		a.Ack = &executor.Ack{Topic: ack.Topic, Match: ack.Match, Values: ack.Values, Timeout: span("ack.timeout", ack.Timeout)}
	}
	if e.Pulse != (pulseEntry{}) {
		a.Pulse = &executor.Pulse{After: span("pulse.after", e.Pulse.After), Payload: e.Pulse.Payload}
	}
	return a
}
