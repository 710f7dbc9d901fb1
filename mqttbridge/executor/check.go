package executor

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport/mqttbridge"
)

// An action is an Action that was checked, with its texts parsed.
type action struct {
	Action
	hours     hours
	rate      rate
	matchers  map[string]*matcher // by value; only those of Ack.Values
	matcher   *matcher            // nil without Ack
	statePath []string
}

// ack returns what proves that the action happened with this value, or nil.
func (a *action) ack(value string) *matcher {
	if m, ok := a.matchers[value]; ok {
		return m
	}
	return a.matcher
}

// payload returns what is published for a value.
func (a *action) payload(value string) []byte {
	if len(a.Values) > 0 {
		return []byte(a.Values[value])
	}
	return []byte(a.Payload)
}

// allows reports whether a device may use the action.
func (a *action) allows(device string) bool {
	return len(a.Who) == 0 || slices.ContainsFunc(a.Who, func(pattern string) bool {
		ok, err := path.Match(pattern, device)
		return ok && err == nil
	})
}

// An actionSet is an immutable list of actions.
type actionSet struct {
	list   []*action
	byName map[string]*action
}

// filters returns the topics that the set listens to.
func (s *actionSet) filters() []string {
	var topics []string
	for _, a := range s.list {
		if a.State != "" {
			topics = append(topics, a.State)
		}
		if a.Ack != nil {
			topics = append(topics, a.Ack.Topic)
		}
	}
	slices.Sort(topics)
	return slices.Compact(topics)
}

// changing is room for what changes in an action as it is told to the relay:
// state, last, problem; and once for the home around all of them.
const changing = 1 << 10

func compileAll(actions []Action) (*actionSet, []Fault) {
	set, size := &actionSet{byName: make(map[string]*action)}, changing
	var faults []Fault
	if len(actions) > maxActions {
		faults = append(faults, Fault{maxActions, "name", fmt.Sprintf("there are %d actions; at most %d are allowed", len(actions), maxActions)})
	}
	for i, conf := range actions {
		resolved, own := conf.resolve()
		a := &action{Action: resolved}
		own = append(own, a.compile()...)
		if _, twice := set.byName[a.Name]; twice {
			own = append(own, Fault{Key: "name", Message: fmt.Sprintf("another action is called %q too; give each a name of its own", a.Name)})
		}
		for _, f := range own {
			f.Index = i
			faults = append(faults, f)
		}
		set.list = append(set.list, a)
		set.byName[a.Name] = a
		text, err := json.Marshal(a.shown())
		if size += len(text) + changing; err == nil && size > mqttbridge.MaxHomeFrame && size-len(text)-changing <= mqttbridge.MaxHomeFrame {
			faults = append(faults, Fault{i, "name", "up to here the actions are more than one message to the relay can hold; take fewer of them, or shorter values and who"})
		}
	}
	return set, faults
}

// compile parses the texts of a resolved action.
func (a *action) compile() (faults []Fault) {
	fault := func(key string, err error) {
		if err != nil {
			faults = append(faults, Fault{Key: key, Message: err.Error()})
		}
	}
	var err error
	a.hours, err = parseHours(a.Hours)
	fault("hours", err)
	a.rate, err = parseRate(a.Rate)
	fault("rate", err)
	a.statePath, err = parsePath(a.StatePath)
	fault("state_path", err)
	if a.Ack == nil {
		return faults
	}
	a.matcher, err = parseMatch(a.Ack.Match)
	fault("ack.match", err)
	a.matchers = make(map[string]*matcher, len(a.Ack.Values))
	for _, name := range slices.Sorted(maps.Keys(a.Ack.Values)) {
		if _, ok := a.Values[name]; !ok {
			fault("ack.values", fmt.Errorf("%q is none of the action's values", name))
		}
		a.matchers[name], err = parseMatch(a.Ack.Values[name])
		fault("ack.values", err)
	}
	return faults
}

// check says what is wrong with an action after its preset and its defaults
// were filled in.
func (a *Action) check() (faults []Fault) {
	fault := func(key, format string, args ...any) {
		faults = append(faults, Fault{Key: key, Message: fmt.Sprintf(format, args...)})
	}
	if !validName(a.Name) {
		fault("name", "%q is no name: it has 1 to 64 letters, digits, \"-\" and \"_\"", a.Name)
	}
	if !printable(a.Label, maxLabel) {
		fault("label", "a label has at most %d bytes and no control characters", maxLabel)
	}
	if !printable(a.Icon, maxIcon) {
		fault("icon", "an icon has at most %d bytes and no control characters", maxIcon)
	}
	if err := mqttbridge.CheckTopic(a.Topic); err != nil && (a.Topic != "" || a.Preset == "") {
		fault("topic", "%v; write the topic that the device listens to, or a preset with its target", err)
	}
	if a.Payload == "" && len(a.Values) == 0 && a.Preset == "" && !a.Empty {
		fault("payload", "it says nothing to publish; write payload, values, or a preset with its target. If the device wants an empty message, write that: payload: \"\"")
	}
	if len(a.Payload) > maxPayload {
		fault("payload", "a payload has at most %d bytes", maxPayload)
	}
	if a.QoS > 1 {
		fault("qos", "%d is not used here: a command is published once, at QoS 1, and never again; leave it out", a.QoS)
	}
	switch a.Confirm {
	case mqttbridge.ConfirmNone, mqttbridge.ConfirmHold, mqttbridge.ConfirmPIN:
	default:
		fault("confirm", "%q is none of none, hold and pin", a.Confirm)
	}
	if a.State != "" {
		if err := mqttbridge.CheckTopic(a.State); err != nil {
			fault("state", "%v", err)
		}
	} else if a.StatePath != "" {
		fault("state_path", "there is no state topic that it could lead into; write state, too")
	}
	if a.Life < minLife || a.Life > maxLife {
		fault("life", "%v is out of range; write %v to %v", a.Life, minLife, maxLife)
	}
	faults = append(faults, a.checkValues()...)
	faults = append(faults, a.checkWho()...)
	faults = append(faults, a.checkAck()...)
	return append(faults, a.checkPulse()...)
}

func (a *Action) checkValues() (faults []Fault) {
	fault := func(format string, args ...any) {
		faults = append(faults, Fault{Key: "values", Message: fmt.Sprintf(format, args...)})
	}
	if len(a.Values) > maxValues {
		fault("there are %d values; at most %d are allowed", len(a.Values), maxValues)
	}
	for _, name := range slices.Sorted(maps.Keys(a.Values)) {
		if name == "" || !printable(name, maxValue) {
			fault("the value %q has no name of 1 to %d bytes without control characters", name, maxValue)
		}
		if len(a.Values[name]) > maxPayload {
			fault("the payload of %q has more than %d bytes", name, maxPayload)
		}
	}
	if len(a.Values) > 0 && a.Payload != "" {
		faults = append(faults, Fault{Key: "payload", Message: "each value has its own payload; remove this one"})
	}
	return faults
}

func (a *Action) checkWho() (faults []Fault) {
	fault := func(format string, args ...any) {
		faults = append(faults, Fault{Key: "who", Message: fmt.Sprintf(format, args...)})
	}
	if len(a.Who) > maxWho {
		fault("there are %d patterns; at most %d are allowed", len(a.Who), maxWho)
	}
	for _, pattern := range a.Who {
		// A pattern that matches nobody by mistake is safe, but the owner wants
		// to know.
		if _, err := path.Match(pattern, "x"); err != nil || pattern == "" || !printable(pattern, maxPattern) {
			fault("%q is no pattern of device names; write a name, or * for any part of it: anna-*", pattern)
		}
	}
	return faults
}

func (a *Action) checkAck() (faults []Fault) {
	if a.Ack == nil {
		return nil
	}
	fault := func(key, format string, args ...any) {
		faults = append(faults, Fault{Key: key, Message: fmt.Sprintf(format, args...)})
	}
	if err := mqttbridge.CheckTopic(a.Ack.Topic); err != nil {
		fault("ack.topic", "%v; write the one topic where the answer comes", err)
	} else if a.Ack.Topic == a.Topic {
		fault("ack.topic", "this is the topic that the command goes to, so every command would confirm itself; write the topic where the device answers")
	}
	if a.Ack.Timeout < minAck || a.Ack.Timeout > maxAck {
		fault("ack.timeout", "%v is out of range; write %v to %v", a.Ack.Timeout, minAck, maxAck)
	}
	return faults
}

func (a *Action) checkPulse() (faults []Fault) {
	if a.Pulse == nil {
		return nil
	}
	if a.Pulse.After < minPulse || a.Pulse.After > maxPulse {
		faults = append(faults, Fault{Key: "pulse.after", Message: fmt.Sprintf("%v is out of range; write %v to %v", a.Pulse.After, minPulse, maxPulse)})
	}
	if len(a.Pulse.Payload) > maxPayload {
		faults = append(faults, Fault{Key: "pulse.payload", Message: fmt.Sprintf("a payload has at most %d bytes", maxPayload)})
	}
	if len(a.Values) > 0 {
		faults = append(faults, Fault{Key: "pulse", Message: "an action with values has no pulse; make an action of its own for each"})
	}
	return faults
}

func validName(s string) bool {
	return s != "" && len(s) <= 64 &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}

// validDevice is what mqttbridge.Envelope allows.
func validDevice(s string) bool { return validName(strings.ReplaceAll(s, ".", "-")) }

func printable(s string, most int) bool {
	return len(s) <= most && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
