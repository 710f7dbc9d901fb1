package executor

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/mqttbridge"
)

// What devices announce to Home Assistant says how they are commanded. It is
// read to help the owner write actions, and for nothing else: whoever can
// publish at the home broker can announce what he likes.
var discoveryFilters = []string{"homeassistant/+/+/config", "homeassistant/+/+/+/config"}

const (
	maxFound     = 256      // announcements that are kept
	maxParts     = 32       // of one device announcement
	maxAnnounced = 32 << 10 // bytes of one
	maxFoundText = 200      // bytes of one text out of it
)

// A Suggestion is a thing at home that could become an action. Nobody can press
// it before the owner writes it into the configuration.
type Suggestion struct {
	Name   string // for the action
	Label  string // what the device calls itself
	Action Action // how it is commanded
	Note   string // what to look at before using it; "" = nothing
	YAML   string // the entry below actions: of the agent's configuration

	skipped string // why it cannot become an action; "" = it can
	names   naming
}

// Found returns what devices announced to Home Assistant: switches, buttons,
// covers, locks, lights, sirens and scenes, at most 256, by label. Their names
// differ, and all YAML together is a valid list of actions: what is more than a
// home may have is commented out. Behind them stands, for each reason why some
// of what can be commanded is left out, one Suggestion without a name, whose YAML
// is a comment.
func (e *Executor) Found() []Suggestion {
	e.mu.Lock()
	var list, skipped []Suggestion
	for _, some := range e.found {
		for _, s := range some {
			if s.skipped != "" {
				skipped = append(skipped, s)
			} else {
				list = append(list, s)
			}
		}
	}
	e.mu.Unlock()
	slices.SortFunc(list, func(a, b Suggestion) int {
		return cmp.Or(strings.Compare(a.Label, b.Label), strings.Compare(a.Name, b.Name), strings.Compare(a.Action.Topic, b.Action.Topic))
	})
	list = list[:min(len(list), maxFound)]
	unique(list)
	return append(fitting(list), skips(skipped)...)
}

// discovered takes one announcement.
func (e *Executor) discovered(topic string, payload []byte, _ bool) {
	some := suggestions(topic, payload)
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.found, topic)
	if len(some) == 0 {
		return // taken back, or nothing that takes commands
	}
	if len(e.found) >= maxFound && some[0].skipped == "" {
		for old, had := range e.found { // what can be used goes before what cannot
			if had[0].skipped != "" {
				delete(e.found, old)
				break
			}
		}
	}
	if len(e.found) < maxFound {
		e.found[topic] = some
	}
}

// announcement is what counts of a discovery payload, with the short keys that
// most devices use put in full.
type announcement map[string]any

var longKeys = map[string]string{
	"cmd_t": "command_topic", "cmd_tpl": "command_template", "stat_t": "state_topic", "val_tpl": "value_template",
	"stat_val_tpl": "state_value_template", "pl_on": "payload_on", "pl_off": "payload_off", "pl_prs": "payload_press",
	"pl_open": "payload_open", "pl_cls": "payload_close", "pl_stop": "payload_stop", "pl_lock": "payload_lock",
	"pl_unlk": "payload_unlock", "dev": "device", "cmps": "components", "p": "platform", "schema": "schema",
	"uniq_id": "unique_id", "obj_id": "object_id",
	"stat_on": "state_on", "stat_off": "state_off", "stat_open": "state_open", "stat_clsd": "state_closed",
	"stat_stopped": "state_stopped", "stat_locked": "state_locked", "stat_unlocked": "state_unlocked",
}

func long(m map[string]any) announcement {
	a := make(announcement, len(m))
	for key, v := range m {
		a[cmp.Or(longKeys[key], key)] = v
	}
	return a
}

func (a announcement) text(key string) string {
	s, _ := a[key].(string)
	if len(s) > maxFoundText {
		return ""
	}
	return s
}

// topic returns a topic with "~" replaced, or "".
func (a announcement) topic(key string) string {
	t, base := a.text(key), a.text("~")
	if base != "" && strings.HasPrefix(t, "~") {
		t = base + t[1:]
	} else if base != "" && strings.HasSuffix(t, "~") {
		t = t[:len(t)-1] + base
	}
	if mqttbridge.CheckTopic(t) != nil {
		return ""
	}
	return t
}

// suggestions reads one announcement: of one thing, or of a device with several
// components. What can be used comes first.
func suggestions(topic string, payload []byte) (list []Suggestion) {
	parts := strings.Split(topic, "/")
	if len(payload) == 0 || len(parts) < 4 {
		return nil
	}
	skip := func(reason string) []Suggestion {
		return []Suggestion{{Label: clean(topic, maxFoundText), skipped: reason}}
	}
	if len(payload) > maxAnnounced {
		return skip(fmt.Sprintf("announced with more than %d KiB", maxAnnounced>>10))
	}
	var raw map[string]any
	if json.Unmarshal(payload, &raw) != nil {
		return skip("announced with something that is no JSON object")
	}
	whole, object := long(raw), parts[len(parts)-2]
	node := strings.Join(parts[2:len(parts)-2], "_")
	if parts[1] != "device" {
		s, reason := suggest(parts[1], object, node, whole, whole)
		switch {
		case reason != "":
			return skip(reason)
		case s.Name == "":
			return nil
		}
		return append(list, s)
	}
	components, _ := whole["components"].(map[string]any)
	var left []Suggestion
	for _, key := range slices.Sorted(maps.Keys(components)) {
		one, ok := components[key].(map[string]any)
		if !ok || len(list)+len(left) >= maxParts {
			continue
		}
		part := long(one)
		if _, own := part["~"]; !own && whole["~"] != nil {
			part["~"] = whole["~"]
		}
		s, reason := suggest(part.text("platform"), object+"_"+key, node, part, whole)
		if reason != "" {
			left = append(left, skip(reason)...)
		} else if s.Name != "" {
			list = append(list, s)
		}
	}
	return append(list, left...)
}

// kinds says which payloads a component takes, by value: their key and what
// Home Assistant takes when it is not given.
var kinds = map[string]map[string][2]string{
	"switch": {"on": {"payload_on", "ON"}, "off": {"payload_off", "OFF"}},
	"light":  {"on": {"payload_on", "ON"}, "off": {"payload_off", "OFF"}},
	"siren":  {"on": {"payload_on", "ON"}, "off": {"payload_off", "OFF"}},
	"button": {"press": {"payload_press", "PRESS"}},
	"scene":  {"on": {"payload_on", "ON"}},
	"cover":  {"open": {"payload_open", "OPEN"}, "close": {"payload_close", "CLOSE"}, "stop": {"payload_stop", "STOP"}},
	"lock":   {"lock": {"payload_lock", "LOCK"}, "unlock": {"payload_unlock", "UNLOCK"}},
}

var simpleTemplate = regexp.MustCompile(`^\{\{\s*value_json(?:\.([A-Za-z0-9_]+)|\[['"]([^'"\]]+)['"]\])\s*\}\}$`)

// suggest makes an action of one component, or says why it cannot; of what takes
// no commands there is neither.
func suggest(component, object, node string, a, device announcement) (s Suggestion, reason string) {
	kind, topic := kinds[component], a.topic("command_topic")
	switch {
	case kind == nil && a.commanded():
		return s, component + " is not one of " + strings.Join(slices.Sorted(maps.Keys(kinds)), ", ")
	case kind == nil:
		return s, ""
	case topic == "":
		return s, component + " without a command_topic that can be published to"
	case a.text("schema") != "" && a.text("schema") != "json" && a.text("schema") != "basic" && a.text("schema") != "default":
		return s, component + " with the schema " + clean(a.text("schema"), 20)
	}
	s.Label = foundLabel(a, device, object)
	s.names = naming{object: cmp.Or(a.text("object_id"), object), topic: object, node: node, owner: device.owner(), own: a.text("name"), component: component}
	s.Name = s.names.name()
	s.Action = Action{Name: s.Name, Label: clean(s.Label, maxLabel), Topic: topic, State: a.topic("state_topic"), Values: make(map[string]string)}
	asJSON := component == "light" && a.text("schema") == "json"
	for value, how := range kind {
		payload := cmp.Or(a.text(how[0]), how[1])
		if asJSON {
			payload = fmt.Sprintf(`{"state":"%s"}`, strings.ToUpper(value))
			s.Action.StatePath = "state"
		}
		s.Action.Values[value] = payload
	}
	if len(kind) == 1 {
		for _, payload := range s.Action.Values {
			s.Action.Payload = payload
		}
		s.Action.Values = nil
	}
	if s.Action.State == topic {
		s.Action.State = "" // it would show what was asked for, not what is
	}
	template := cmp.Or(a.text("value_template"), a.text("state_value_template"))
	m := simpleTemplate.FindStringSubmatch(template)
	if m != nil {
		s.Action.StatePath = cmp.Or(m[1], m[2])
	}
	if s.Action.State == "" {
		s.Action.StatePath = ""
	}
	if template == "" || m != nil {
		s.Action.Ack = foundAck(component, s.Action, a)
	}
	if a.text("command_template") != "" {
		s.Note = "the device wants its payload in a form of its own (command_template): check what is published"
	}
	if _, err := s.Action.Resolved(); err != nil {
		return Suggestion{}, component + " with texts that no action can have"
	}
	if _, faults := compileAll([]Action{s.Action}); len(faults) > 0 {
		return Suggestion{}, component + " with texts that no action can have"
	}
	s.YAML = s.yaml()
	return s, ""
}

// owner is the name of the device that announces.
func (a announcement) owner() string {
	if d, ok := a["device"].(map[string]any); ok {
		return long(d).text("name")
	}
	return ""
}

// commanded reports whether it takes commands of any kind.
func (a announcement) commanded() bool {
	for key := range a {
		if strings.HasSuffix(key, "command_topic") || strings.HasSuffix(key, "cmd_t") {
			return true
		}
	}
	return false
}

func foundLabel(a, device announcement, object string) string {
	label := strings.TrimSpace(clean(device.owner()+" "+a.text("name"), maxLabel))
	return cmp.Or(label, clean(object, maxLabel))
}

// yaml writes the action as the owner would. A JSON text is YAML, too.
func (s Suggestion) yaml() string {
	var b strings.Builder
	a := s.Action
	quote := func(text string) string {
		q, _ := json.Marshal(text)
		return string(q)
	}
	if s.Note != "" {
		fmt.Fprintf(&b, "# %s\n", s.Note)
	}
	fmt.Fprintf(&b, "- name: %s\n  label: %s\n  topic: %s\n", quote(a.Name), quote(a.Label), quote(a.Topic))
	if a.Payload != "" {
		fmt.Fprintf(&b, "  payload: %s\n", quote(a.Payload))
	}
	if len(a.Values) > 0 {
		b.WriteString("  values:\n")
		for _, value := range slices.Sorted(maps.Keys(a.Values)) {
			fmt.Fprintf(&b, "    %s: %s\n", quote(value), quote(a.Values[value]))
		}
	}
	if ack := a.Ack; ack != nil {
		fmt.Fprintf(&b, "  ack:\n    topic: %s\n", quote(ack.Topic))
		if ack.Timeout != 0 {
			fmt.Fprintf(&b, "    timeout: %s\n", quote(ack.Timeout.String()))
		}
		b.WriteString("    values:\n")
		for _, value := range slices.Sorted(maps.Keys(ack.Values)) {
			fmt.Fprintf(&b, "      %s: %s\n", quote(value), quote(ack.Values[value]))
		}
	}
	if a.State != "" {
		fmt.Fprintf(&b, "  state: %s\n", quote(a.State))
	}
	if a.StatePath != "" {
		fmt.Fprintf(&b, "  state_path: %s\n", quote(a.StatePath))
	}
	return b.String()
}
