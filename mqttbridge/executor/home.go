package executor

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// AlertTopic is where alerts are published at the home broker, not retained, as
// JSON: {"at", "device", "action", "text"}.
const AlertTopic = "sallyport/alert"

const (
	keepAlert = 24 * time.Hour
	maxAlert  = 300 // bytes of all that are shown
)

// An alert is something that the owner must see.
type alert struct {
	text  string // to the owner at home
	shown string // to every page: no names of devices
	at    time.Time
}

func lockAlert(device string) string { return "lock/" + device }
func pulseAlert(topic string) string { return "pulse/" + topic }

// raise shows an alert to every page and publishes it at home.
func (e *Executor) raise(key, action, device, text string) {
	e.raiseNamed(key, action, device, text, text)
}

// raiseNamed shows pages less than what is told at home: whoever may open the
// gate need not learn what devices the others have.
func (e *Executor) raiseNamed(key, action, device, text, shown string) {
	e.mu.Lock()
	e.alerts[key] = alert{text, shown, time.Now()}
	e.changedLocked()
	e.mu.Unlock()
	payload, err := json.Marshal(map[string]any{"at": e.now().UTC().Format(time.RFC3339), "device": device, "action": action, "text": text})
	if err != nil {
		return
	}
	e.begin(func() {
		ctx, cancel := context.WithTimeout(e.life, publishTimeout)
		defer cancel()
		if err := e.broker.Publish(ctx, AlertTopic, payload, 1, false); err != nil {
			e.log.Warn("cannot publish an alert at home", "topic", AlertTopic, "err", err)
		}
	})
}

func (e *Executor) clearAlert(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.alerts[key]; ok {
		delete(e.alerts, key)
		e.changedLocked()
	}
}

// lockedOut tells that a device tried too many PINs.
func (e *Executor) lockedOut(device, label string, lock time.Duration) {
	e.note("device.locked", map[string]any{"device": device, "action": label, "for": lock.String()})
	e.log.Warn("a device is locked after wrong PINs", "device", device, "action", label, "for", lock)
	what := fmt.Sprintf("tried %d wrong PINs at %s and is locked for %s", maxWrong, label, duration(lock))
	e.raiseNamed(lockAlert(device), label, device, device+" "+what, "a device "+what)
}

// Home returns what the relay is told: the actions as they stand now.
func (e *Executor) Home() mqttbridge.Home {
	set := e.set.Load()
	home := mqttbridge.Home{
		Name: e.agent, ID: e.id, Key: e.HomeKey(), Online: true, Broker: e.broker.Connected(),
		Actions: make([]mqttbridge.Action, 0, len(set.list)),
	}
	problems := e.problems(set)
	e.mu.Lock()
	defer e.mu.Unlock()
	home.Alert = e.alertText(func(a alert) string { return a.shown })
	for _, a := range set.list {
		shown := a.shown()
		shown.Problem = problems[a.Name]
		if live, ok := e.live[a.Name]; ok && a.State != "" {
			shown.State = &live
		}
		if last, ok := e.last[a.Name]; ok {
			shown.Last = &last
		}
		home.Actions = append(home.Actions, shown)
	}
	return home
}

// shown is what a page needs to know of an action.
func (a *action) shown() mqttbridge.Action {
	return mqttbridge.Action{
		Name: a.Name, Label: a.Label, Icon: a.Icon, Confirm: a.Confirm, Values: slices.Sorted(maps.Keys(a.Values)),
		Ack: a.Ack != nil, Life: a.Life.Milliseconds(), Hours: a.Hours, Who: slices.Clone(a.Who),
	}
}

// problems says which actions cannot run at all.
func (e *Executor) problems(set *actionSet) map[string]string {
	m := make(map[string]string)
	for _, a := range set.list {
		if a.Confirm != mqttbridge.ConfirmPIN {
			continue
		}
		if _, ok := e.pins.slot(a.Name); !ok {
			m[a.Name] = "no PIN is set at home; set one there with: sallyport agent pin " + a.Name
		}
	}
	return m
}

// alertText is all alerts, the newest first. The caller holds e.mu.
func (e *Executor) alertText(text func(alert) string) string {
	list := slices.SortedFunc(maps.Values(e.alerts), func(a, b alert) int { return b.at.Compare(a.at) })
	texts := make([]string, 0, len(list))
	for _, a := range list {
		texts = append(texts, text(a))
	}
	return clean(strings.Join(texts, "; "), maxAlert)
}

// Status is how the executor stands, for the owner.
type Status struct {
	Home     string         // id of the home
	Broker   bool           // the home broker is connected
	Streams  int            // to relays
	Actions  []ActionStatus // in the order of the configuration
	Trusted  int            // keys of devices
	Pending  int            // keys that wait to be trusted
	Revoked  int            // keys that lost their trust, because the relay revoked the device
	Open     int            // commands without a final state
	Accepted uint64         // commands that were published, since the start
	Refused  uint64         // that were not
	Alert    string         // what the owner must see; "" = nothing
	Lines    uint64         // of the log
	Head     string         // hash of its last line; kept elsewhere it proves later that nothing was cut away
}

// ActionStatus is one action as it stands.
type ActionStatus struct {
	Name, Label, Topic, Confirm string
	Problem                     string // why it cannot run now
	State                       string // newest value of its state topic
	LastBy                      string // device
	LastAt                      time.Time
}

// Status returns how the executor stands.
func (e *Executor) Status() Status {
	home, log := e.Home(), e.audit.state()
	s := Status{Home: e.id, Broker: home.Broker, Lines: log.lines, Head: log.head}
	for _, k := range e.Keys() {
		switch {
		case k.Trusted:
			s.Trusted++
		case !k.Withdrawn.IsZero():
			s.Revoked++
		default:
			s.Pending++
		}
	}
	set := e.set.Load()
	for _, a := range home.Actions {
		one := ActionStatus{Name: a.Name, Label: a.Label, Confirm: a.Confirm, Problem: a.Problem}
		if conf := set.byName[a.Name]; conf != nil {
			one.Topic = conf.Topic
		}
		if a.State != nil {
			one.State = a.State.Value
		}
		if a.Last != nil {
			one.LastBy, one.LastAt = a.Last.By, a.Last.At
		}
		s.Actions = append(s.Actions, one)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s.Alert = e.alertText(func(a alert) string { return a.text })
	s.Streams, s.Open, s.Accepted, s.Refused = len(e.streams), len(e.open), e.accepted, e.refused
	return s
}
