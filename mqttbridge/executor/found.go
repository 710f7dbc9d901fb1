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
}

// Found returns what devices announced to Home Assistant: switches, buttons,
// covers, locks, lights, sirens and scenes, at most 256, by label.
func (e *Executor) Found() []Suggestion {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []Suggestion
	for _, some := range e.found {
		list = append(list, some...)
	}
	slices.SortFunc(list, func(a, b Suggestion) int {
		return cmp.Or(strings.Compare(a.Label, b.Label), strings.Compare(a.Name, b.Name), strings.Compare(a.Action.Topic, b.Action.Topic))
	})
	return list[:min(len(list), maxFound)]
}

// discovered takes one announcement.
func (e *Executor) discovered(topic string, payload []byte, _ bool) {
	some := suggestions(topic, payload)
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(some) == 0 {
		delete(e.found, topic) // taken back
		return
	}
	if _, ok := e.found[topic]; ok || len(e.found) < maxFound {
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
// components.
func suggestions(topic string, payload []byte) (list []Suggestion) {
	parts := strings.Split(topic, "/")
	if len(payload) > maxAnnounced || len(parts) < 4 {
		return nil
	}
	var raw map[string]any
	if json.Unmarshal(payload, &raw) != nil {
		return nil
	}
	whole, object := long(raw), parts[len(parts)-2]
	if parts[1] != "device" {
		if s, ok := suggest(parts[1], object, whole, whole); ok {
			list = append(list, s)
		}
		return list
	}
	components, _ := whole["components"].(map[string]any)
	for _, key := range slices.Sorted(maps.Keys(components)) {
		one, ok := components[key].(map[string]any)
		if !ok || len(list) >= maxParts {
			continue
		}
		part := long(one)
		if _, own := part["~"]; !own && whole["~"] != nil {
			part["~"] = whole["~"]
		}
		if s, ok := suggest(part.text("platform"), object+"_"+key, part, whole); ok {
			list = append(list, s)
		}
	}
	return list
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

func suggest(component, object string, a, device announcement) (Suggestion, bool) {
	kind, topic := kinds[component], a.topic("command_topic")
	if kind == nil || topic == "" {
		return Suggestion{}, false
	}
	s := Suggestion{Name: actionName(object), Label: foundLabel(a, device, object)}
	s.Action = Action{Name: s.Name, Label: clean(s.Label, maxLabel), Topic: topic, State: a.topic("state_topic"), Values: make(map[string]string)}
	for value, how := range kind {
		payload := cmp.Or(a.text(how[0]), how[1])
		if component == "light" && a.text("schema") == "json" {
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
	if m := simpleTemplate.FindStringSubmatch(template); m != nil {
		s.Action.StatePath = cmp.Or(m[1], m[2])
	}
	if s.Action.State == "" {
		s.Action.StatePath = ""
	}
	if a.text("command_template") != "" {
		s.Note = "the device wants its payload in a form of its own (command_template): check what is published"
	}
	if _, err := s.Action.Resolved(); err != nil {
		return Suggestion{}, false
	}
	s.YAML = s.yaml()
	return s, true
}

func foundLabel(a, device announcement, object string) string {
	owner := ""
	if d, ok := device["device"].(map[string]any); ok {
		owner = long(d).text("name")
	}
	label := strings.TrimSpace(clean(owner+" "+a.text("name"), maxLabel))
	return cmp.Or(label, clean(object, maxLabel))
}

// actionName makes a name that an action may have.
func actionName(object string) string {
	name := strings.Map(func(r rune) rune {
		if validName(string(r)) {
			return r
		}
		return '-'
	}, clean(object, 64))
	return cmp.Or(strings.Trim(name, "-"), "found")
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
	if a.State != "" {
		fmt.Fprintf(&b, "  state: %s\n", quote(a.State))
	}
	if a.StatePath != "" {
		fmt.Fprintf(&b, "  state_path: %s\n", quote(a.StatePath))
	}
	return b.String()
}
