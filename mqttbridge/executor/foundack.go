package executor

import (
	"cmp"
	"regexp"
	"strings"
	"time"
)

// coverTime is how long a door or a blind may take to say that it arrived.
const coverTime = 2 * time.Minute

// reports says how a component tells that a value was reached: the key, and
// what Home Assistant takes when it is not given ("" = what switches it).
var reports = map[string]map[string][2]string{
	"switch": {"on": {"state_on", ""}, "off": {"state_off", ""}},
	"cover":  {"open": {"state_open", "open"}, "close": {"state_closed", "closed"}, "stop": {"state_stopped", "stopped"}},
	"siren":  {"on": {"state_on", ""}, "off": {"state_off", ""}},
	"lock":   {"lock": {"state_locked", "LOCKED"}, "unlock": {"state_unlocked", "UNLOCKED"}},
}

var simplePath = regexp.MustCompile(`^[A-Za-z0-9_]*$`)

// foundAck returns how the device tells that it happened, if it announces that;
// else nil: a command that ends as delivered is better than one that waits for
// what never comes.
func foundAck(component string, action Action, a announcement) *Ack {
	if action.State == "" || !simplePath.MatchString(action.StatePath) {
		return nil
	}
	ack, announced := &Ack{Topic: action.State, Values: make(map[string]string)}, false
	for value, how := range reports[component] {
		said := a.text(how[0])
		announced = announced || said != ""
		said = cmp.Or(said, how[1], action.Values[value])
		if said == "" || strings.HasPrefix(said, "/") { // it could be read as a pattern
			return nil
		}
		if action.StatePath != "" {
			said = "." + action.StatePath + "=" + said
		} else if said[0] == '.' {
			return nil
		}
		ack.Values[value] = said
	}
	if !announced {
		return nil
	}
	if component == "cover" {
		ack.Timeout = coverTime
	}
	return ack
}
