package executor

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// Limits of actions. Those of texts are the relay's too, which cuts what is
// longer.
const (
	maxActions = 64
	maxLabel   = 80  // bytes
	maxIcon    = 32  // bytes
	maxHours   = 64  // bytes
	maxWho     = 32  // patterns
	maxPattern = 128 // bytes of one
	maxValues  = 64
	maxValue   = 64      // bytes of the name of one
	maxPayload = 4 << 10 // bytes

	defaultLife = 10 * time.Second
	minLife     = 2 * time.Second
	maxLife     = time.Minute

	defaultAck = 10 * time.Second
	minAck     = 100 * time.Millisecond
	maxAck     = 5 * time.Minute // the relay gives up a minute later

	minPulse = 50 * time.Millisecond
	maxPulse = 10 * time.Minute
)

// An Action is one button, as the owner configures it.
type Action struct {
	Name  string // 1 to 64 letters, digits, "-" and "_"
	Label string // what the button says, at most 80 bytes; "" = Name
	Icon  string // an emoji or a word that the page knows, at most 32 bytes

	// Topic and Payload are what is published at the home broker, never
	// retained. Payload has at most 4 KiB.
	Topic, Payload string
	// Empty says that Payload is "" on purpose: the device wants a message
	// without one. Else an action needs a Payload, Values or a Preset.
	Empty bool
	// QoS is 1, also when 0 is written: with MQTT's 0 nobody would ever know whether
	// the broker took it.
	QoS byte

	// Preset fills Topic, Payload, Ack and State for a firmware from Target, the
	// device's name in its topics; what is written beside it wins, and a Payload
	// that is a word of the preset ("on", "toggle", "open") is put as the
	// firmware wants it. See the presets in preset.go.
	Preset, Target string

	// Confirm is one of mqttbridge.ConfirmHold (also for ""), ConfirmNone and
	// ConfirmPIN.
	Confirm string

	// Ack says how the home tells that it happened. Nil: a command ends as
	// delivered.
	Ack *Ack

	// State is the topic whose newest value the button shows; StatePath is where
	// in its JSON the value is, such as "state" or "a.b". "" = the whole
	// payload.
	State, StatePath string

	// Values are what one may choose from: name → payload. With values there is
	// no Payload. With a preset the payload of a value whose name is one of its
	// words may be "".
	Values map[string]string

	Who   []string // patterns of device names (path.Match, such as "anna-*"); none = every trusted device
	Hours string   // "06:00-22:00" or "22:00-06:00,12:00-14:00" in the home's time; "" = always
	Rate  string   // at most so often, by all devices together: "6/m", "20/h", "2/30s"; "" = as often as you like

	// Pulse is a second message a moment later.
	Pulse *Pulse

	// Life is how old a challenge may be when the command is published: 2 s to
	// 60 s, 0 = 10 s.
	Life time.Duration
}

// An Ack is the message that proves that an action happened. Only what comes
// after the command was published counts, never a retained message.
type Ack struct {
	Topic string // one topic, without wildcards
	// Match is the payload: exactly this text, "/regexp/" (anywhere in it, RE2),
	// ".json.path=value", ".json.path=/regexp/", or ".json.path" (it is there).
	// "" = any message.
	Match string
	// Values holds another Match for some of Action.Values, by name.
	Values  map[string]string
	Timeout time.Duration // 100 ms to 5 min, 0 = 10 s; after it the command ends as unconfirmed
}

// A Pulse is the second half of a press, such as the "off" after "on". It is
// sent once more when nobody knows whether the broker took it, so Payload must
// be harmless when it comes twice ("off", not "toggle").
type Pulse struct {
	After   time.Duration // 50 ms to 10 min
	Payload string        // published at the action's topic
}

// A Fault is something wrong with one action of a list.
type Fault struct {
	Index   int    // in the list
	Key     string // as in the configuration: "topic", "ack.match", "pulse.after"
	Message string // to people: what is wrong and what to write
}

// Resolved returns the action with its preset and all defaults filled in, or
// says what is wrong with it.
func (a Action) Resolved() (Action, error) {
	r, faults := a.resolve()
	var errs []error
	for _, f := range faults {
		errs = append(errs, fmt.Errorf("action %q, %s: %s", a.Name, f.Key, f.Message))
	}
	return r, errors.Join(errs...)
}

func (a Action) resolve() (Action, []Fault) {
	// Nothing of the caller's is changed.
	a.Values = maps.Clone(a.Values)
	a.Who = slices.Clone(a.Who)
	if a.Ack != nil {
		ack := *a.Ack
		ack.Values = maps.Clone(ack.Values)
		a.Ack = &ack
	}
	if a.Pulse != nil {
		pulse := *a.Pulse
		a.Pulse = &pulse
	}
	faults := a.applyPreset()
	a.Label = cmp.Or(a.Label, a.Name)
	a.Confirm = cmp.Or(a.Confirm, mqttbridge.ConfirmHold)
	a.QoS = max(a.QoS, 1)
	a.Life = cmp.Or(a.Life, defaultLife)
	if a.Ack != nil {
		a.Ack.Timeout = cmp.Or(a.Ack.Timeout, defaultAck)
	}
	return a, append(faults, a.check()...)
}

// Check says what is wrong with a list of actions, all of it at once.
func Check(actions []Action) []Fault {
	_, faults := compileAll(actions)
	return faults
}

// Topics returns the topics at the home broker that no topic rule may let
// anything in to, as filters, sorted: those that the actions publish to, where it
// would be a command without a judge; and those of their acks and states, where
// it would say "done" of what was not. Of devices that take commands on sibling
// topics as well (Tasmota's Backlog, Zigbee2MQTT's set/state) all of them. Actions
// with faults count as far as they can be read.
func Topics(actions []Action) []string {
	var topics []string
	for _, a := range actions {
		r, _ := a.resolve()
		topics = append(topics, r.Topic, r.State)
		if r.Ack != nil {
			topics = append(topics, r.Ack.Topic)
		}
		switch dir := path.Dir(r.Topic); {
		case r.Preset == "tasmota":
			topics = append(topics, dir+"/#")
		case r.Preset == "zigbee2mqtt":
			topics = append(topics, r.Topic+"/#")
		}
	}
	topics = slices.DeleteFunc(topics, func(t string) bool { return mqttbridge.CheckFilter(t) != nil })
	slices.Sort(topics)
	return slices.Compact(topics)
}
