package executor

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A preset knows the topics of one firmware. Its targets and words:
//
//	tasmota        garage, garage:2 (second relay)                on off toggle
//	espurna        garage, garage:1 (counted from 0)              on off toggle
//	zigbee2mqtt    front door, plug:l1 (endpoint)                 on off toggle open close stop lock unlock
//	shelly1        shelly1-AABBCC, shelly1-AABBCC:1 (from 0)      on off toggle; …/roller:0: open close stop
//	shelly2        shellyplus1-aabbcc, shellyplus2pm-aabbcc:1     on off toggle; …/cover:0: open close stop
//	esphome        node/switch/relay, node/cover/door, …          on off toggle, open close stop, lock unlock, press
//	homeassistant  lock.front_door (see the package comment)      the same
//
// A preset turns a word into the payload and into what the device says when it
// has done it.
type preset struct {
	example string // of a target
	make    func(a *Action) (firmware, error)
}

// A firmware is what a preset makes of one target.
type firmware struct {
	topic     string
	state     string // "" = it tells no state
	statePath string
	ack       string // topic; "" = state
	words     map[string]word
	usual     string // the word that is meant when nothing is said; "" = there is none
}

// A word is one thing that a device can be told.
type word struct {
	payload string
	match   string // of the ack, see Ack.Match; "-" = the device does not answer
}

// presets by name.
var presets = map[string]preset{
	"tasmota":       {"garage", tasmota},
	"espurna":       {"garage", espurna},
	"zigbee2mqtt":   {"front door", zigbee2mqtt},
	"shelly1":       {"shelly1-AABBCC", shelly1},
	"shelly2":       {"shellyplus1-aabbccddeeff", shelly2},
	"esphome":       {"garage/switch/relay", esphome},
	"homeassistant": {"cover.garage", homeAssistant},
}

// noAnswer is the match of a word that nothing answers to.
const noAnswer = "-"

// applyPreset fills what is empty.
func (a *Action) applyPreset() []Fault {
	if a.Preset == "" {
		if a.Target != "" {
			return []Fault{{Key: "target", Message: "a target needs a preset; write which firmware it has: " + presetNames()}}
		}
		return nil
	}
	p, ok := presets[a.Preset]
	if !ok {
		return []Fault{{Key: "preset", Message: fmt.Sprintf("%q is no preset; there are %s", a.Preset, presetNames())}}
	}
	if a.Target == "" {
		return []Fault{{Key: "target", Message: fmt.Sprintf("the preset %s needs the device's name in its topics, such as %s", a.Preset, p.example)}}
	}
	fw, err := p.make(a)
	if err == nil {
		err = mqttbridge.CheckTopic(fw.topic)
	}
	if err != nil {
		return []Fault{{Key: "target", Message: fmt.Sprintf("%v; write it such as %s", err, p.example)}}
	}
	return fw.fill(a)
}

func presetNames() string { return strings.Join(slices.Sorted(maps.Keys(presets)), ", ") }

func (fw firmware) fill(a *Action) (faults []Fault) {
	if a.State == "" {
		a.State = fw.state
		a.StatePath = cmp.Or(a.StatePath, fw.statePath)
	}
	a.Topic = cmp.Or(a.Topic, fw.topic)
	if a.Pulse != nil {
		if w, ok := fw.word(cmp.Or(a.Pulse.Payload, "off")); ok {
			a.Pulse.Payload = w.payload
		}
	}
	if len(a.Values) > 0 {
		return fw.fillValues(a)
	}
	usual := fw.usual
	if _, ok := fw.words["on"]; ok && a.Pulse != nil {
		usual = "on" // "toggle" with a pulse would do nothing half the time
	}
	said := cmp.Or(a.Payload, usual)
	if said == "" {
		return []Fault{{Key: "payload", Message: "say what to do: one of " + fw.wordList() + ", or values"}}
	}
	w, ok := fw.word(said)
	if !ok {
		return nil // the owner's own payload; what it brings about is his to say
	}
	a.Payload = w.payload
	fw.fillAck(a, w.match, nil)
	return nil
}

func (fw firmware) fillValues(a *Action) (faults []Fault) {
	matches := make(map[string]string)
	match := noAnswer
	for _, name := range slices.Sorted(maps.Keys(a.Values)) {
		w, ok := fw.word(cmp.Or(a.Values[name], name))
		if !ok {
			if a.Values[name] == "" {
				faults = append(faults, Fault{Key: "values", Message: fmt.Sprintf("%q is no word of the preset, so write its payload; its words are %s", name, fw.wordList())})
			}
			continue
		}
		a.Values[name] = w.payload
		if w.match != noAnswer {
			matches[name], match = w.match, ""
		}
	}
	fw.fillAck(a, match, matches)
	return faults
}

func (fw firmware) fillAck(a *Action, match string, values map[string]string) {
	topic := cmp.Or(fw.ack, fw.state)
	switch {
	case match == noAnswer || topic == "":
	case a.Ack == nil:
		a.Ack = &Ack{Topic: topic, Match: match, Values: values}
	case a.Ack.Topic == "" || a.Ack.Topic == topic:
		a.Ack.Topic = topic
		if a.Ack.Match == "" && a.Ack.Values == nil {
			a.Ack.Match, a.Ack.Values = match, values
		}
	}
}

// word finds a word in any case.
func (fw firmware) word(said string) (word, bool) {
	w, ok := fw.words[strings.ToLower(said)]
	return w, ok
}

func (fw firmware) wordList() string { return strings.Join(slices.Sorted(maps.Keys(fw.words)), ", ") }

// channel cuts ":2" off a target.
func channel(target, none string) (name, ch string, err error) {
	i := strings.LastIndexByte(target, ':')
	if i < 0 {
		return target, none, nil
	}
	name, ch = target[:i], target[i+1:]
	if name == "" || ch == "" || len(ch) > 2 || len(ch) == 2 && ch[0] == '0' || strings.Trim(ch, "0123456789") != "" {
		return "", "", fmt.Errorf("%q has no number of a relay after the colon", target)
	}
	return name, ch, nil
}

// any reports a change to whatever state: what a toggle leads to is not known.
const anyMatch = ""

// tasmota: cmnd/NAME/POWER takes ON, OFF, TOGGLE and answers at
// stat/NAME/POWER; devices with several relays have POWER1, POWER2, …
func tasmota(a *Action) (firmware, error) {
	name, ch, err := channel(a.Target, "")
	return firmware{
		topic: "cmnd/" + name + "/POWER" + ch,
		state: "stat/" + name + "/POWER" + ch,
		words: map[string]word{"on": {"ON", "ON"}, "off": {"OFF", "OFF"}, "toggle": {"TOGGLE", "/^(ON|OFF)$/"}},
		usual: "toggle",
	}, err
}

// espurna: ROOT/relay/0/set takes 1, 0 and 2, and ROOT/relay/0 tells the state,
// as number or as word, as it was built.
func espurna(a *Action) (firmware, error) {
	name, ch, err := channel(a.Target, "0")
	return firmware{
		topic: name + "/relay/" + ch + "/set",
		state: name + "/relay/" + ch,
		words: map[string]word{"on": {"1", "/(?i)^(1|on|true)$/"}, "off": {"0", "/(?i)^(0|off|false)$/"}, "toggle": {"2", anyMatch}},
		usual: "toggle",
	}, err
}

// zigbee2mqtt: zigbee2mqtt/NAME/set takes {"state":"ON"}, and zigbee2mqtt/NAME
// tells it, with the name of an endpoint behind it on devices that have them.
func zigbee2mqtt(a *Action) (firmware, error) {
	name, endpoint, _ := strings.Cut(a.Target, ":")
	key := "state"
	if endpoint != "" {
		if !validName(endpoint) {
			return firmware{}, fmt.Errorf("%q is no name of an endpoint", endpoint)
		}
		key += "_" + endpoint
	}
	fw := firmware{topic: "zigbee2mqtt/" + name + "/set", state: "zigbee2mqtt/" + name, statePath: key, words: map[string]word{}, usual: "toggle"}
	for _, w := range []string{"on", "off", "open", "close", "lock", "unlock"} {
		up := strings.ToUpper(w)
		fw.words[w] = word{`{"` + key + `":"` + up + `"}`, "." + key + "=" + up}
	}
	for _, w := range []string{"toggle", "stop"} {
		fw.words[w] = word{`{"` + key + `":"` + strings.ToUpper(w) + `"}`, "." + key}
	}
	return fw, nil
}

// shelly1 is Shelly's first generation: shellies/ID/relay/0/command takes on,
// off, toggle, and shellies/ID/relay/0 tells on, off (or overpower); rollers
// take and tell open, close, stop.
func shelly1(a *Action) (firmware, error) {
	name, ch, err := channel(a.Target, "0")
	if roller, ok := strings.CutSuffix(name, "/roller"); ok {
		state := "shellies/" + roller + "/roller/" + ch
		return firmware{topic: state + "/command", state: state, words: map[string]word{
			"open": {"open", "open"}, "close": {"close", "close"}, "stop": {"stop", "stop"},
		}}, err
	}
	state := "shellies/" + strings.TrimSuffix(name, "/relay") + "/relay/" + ch
	return firmware{topic: state + "/command", state: state, usual: "toggle", words: map[string]word{
		"on": {"on", "on"}, "off": {"off", "off"}, "toggle": {"toggle", "/^(on|off)$/"},
	}}, err
}

// shelly2 is Shelly from the second generation on: RPC over MQTT at PREFIX/rpc
// ("Enable RPC over MQTT"). The device answers where src says: one topic for
// each action, below sallyport/, where nothing is ever bridged in. The state
// needs "Generic status update over MQTT".
func shelly2(a *Action) (firmware, error) {
	name, ch, err := channel(a.Target, "0")
	src := "sallyport/" + a.Name
	call := func(method, params string) word {
		return word{`{"id":1,"src":"` + src + `","method":"` + method + `","params":{"id":` + ch + params + `}}`, ".result"}
	}
	if err == nil && !validName(a.Name) {
		src, err = "", fmt.Errorf("the action needs a name")
	}
	if cover, ok := strings.CutSuffix(name, "/cover"); ok {
		return firmware{
			topic: cover + "/rpc", ack: src + "/rpc", state: cover + "/status/cover:" + ch, statePath: "state",
			words: map[string]word{"open": call("Cover.Open", ""), "close": call("Cover.Close", ""), "stop": call("Cover.Stop", "")},
		}, err
	}
	name = strings.TrimSuffix(name, "/switch")
	return firmware{
		topic: name + "/rpc", ack: src + "/rpc", state: name + "/status/switch:" + ch, statePath: "output", usual: "toggle",
		words: map[string]word{"on": call("Switch.Set", `,"on":true`), "off": call("Switch.Set", `,"on":false`), "toggle": call("Switch.Toggle", "")},
	}, err
}

// esphome: PREFIX/COMPONENT/ID/command and …/state.
func esphome(a *Action) (firmware, error) {
	parts := strings.Split(a.Target, "/")
	if len(parts) < 3 || slices.Contains(parts, "") {
		return firmware{}, fmt.Errorf("%q is not NODE/COMPONENT/ID", a.Target)
	}
	fw := firmware{topic: a.Target + "/command", state: a.Target + "/state"}
	switch component := parts[len(parts)-2]; component {
	case "switch", "fan":
		fw.usual, fw.words = "toggle", map[string]word{"on": {"ON", "ON"}, "off": {"OFF", "OFF"}, "toggle": {"TOGGLE", "/^(ON|OFF)$/"}}
	case "light": // JSON both ways
		fw.usual, fw.statePath = "toggle", "state"
		fw.words = map[string]word{"on": {`{"state":"ON"}`, ".state=ON"}, "off": {`{"state":"OFF"}`, ".state=OFF"}, "toggle": {`{"state":"TOGGLE"}`, ".state"}}
	case "cover", "valve":
		fw.words = map[string]word{"open": {"OPEN", "/^open(ing)?$/"}, "close": {"CLOSE", "/^clos(ed|ing)$/"}, "stop": {"STOP", anyMatch}}
	case "lock":
		fw.words = map[string]word{"lock": {"LOCK", "/^LOCK(ED|ING)$/"}, "unlock": {"UNLOCK", "/^UNLOCK(ED|ING)$/"}, "open": {"OPEN", "/^(OPEN(ED|ING)?|UNLOCK(ED|ING))$/"}}
	case "button":
		fw.usual, fw.state, fw.words = "press", "", map[string]word{"press": {"PRESS", noAnswer}}
	default:
		return firmware{}, fmt.Errorf("%q is no component that takes commands here (switch, light, fan, cover, valve, lock, button)", component)
	}
	return fw, nil
}

// homeAssistant reaches any entity through the automation in the package
// comment: the payload is the action ("service") of the entity's domain.
func homeAssistant(a *Action) (firmware, error) {
	domain, object, ok := strings.Cut(a.Target, ".")
	if !ok || !validName(domain) || !validName(object) {
		return firmware{}, fmt.Errorf("%q is no entity", a.Target)
	}
	fw := firmware{
		topic: "sallyport/homeassistant/" + domain + "/" + object + "/set",
		state: "homeassistant/" + domain + "/" + object + "/state",
	}
	switch domain {
	case "cover", "valve":
		fw.words = map[string]word{
			"open": {"open_" + domain, "/^open(ing)?$/"}, "close": {"close_" + domain, "/^clos(ed|ing)$/"},
			"stop": {"stop_" + domain, anyMatch}, "toggle": {"toggle", anyMatch},
		}
	case "lock":
		fw.words = map[string]word{"lock": {"lock", "/^lock(ed|ing)$/"}, "unlock": {"unlock", "/^unlock(ed|ing)$/"}, "open": {"open", "/^(open(ing)?|unlock(ed|ing))$/"}}
	case "button", "input_button": // their state is the time of the press
		fw.usual, fw.words = "press", map[string]word{"press": {"press", anyMatch}}
	case "scene", "script":
		fw.usual, fw.words = "on", map[string]word{"on": {"turn_on", anyMatch}}
	default: // switch, light, siren, fan, input_boolean, …
		fw.usual, fw.words = "toggle", map[string]word{"on": {"turn_on", "on"}, "off": {"turn_off", "off"}, "toggle": {"toggle", "/^(on|off)$/"}}
	}
	return fw, nil
}
