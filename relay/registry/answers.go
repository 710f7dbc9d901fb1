package registry

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

const (
	maxName   = 64  // a service's name is at most 63 bytes; of others this much is repeated
	maxReason = 400 // one refusal
	// maxAnswers bounds all answers as they are encoded: a Registered that does
	// not fit into one message would end the session, and after the redial the
	// next one. The rest is for what is around them.
	maxAnswers = protocol.MaxMessage - 128
)

// reasonSteps is how long the refusals of one list may be, tried in turn until
// the answers fit.
var reasonSteps = []int{maxReason, 120, 60, 30}

// fit makes the answers to one Register fit into a control message.
func fit(answers []protocol.Registration) []protocol.Registration {
	fitting := 0
	for _, limit := range reasonSteps {
		for i := range answers {
			answers[i].Error = elide(answers[i].Error, limit)
		}
		if fitting = countFitting(answers); fitting == len(answers) {
			break
		}
	}
	return answers[:fitting]
}

// countFitting returns how many answers, from the first one on, fit.
func countFitting(answers []protocol.Registration) int {
	room := maxAnswers
	for i, a := range answers {
		b, err := json.Marshal(a)
		if room -= len(b) + 1; err != nil || room < 0 {
			return i
		}
	}
	return len(answers)
}

// elide shortens s to limit bytes by its middle: a refusal begins with what it
// is about and ends with what to do.
func elide(s string, limit int) string {
	const dots = "…"
	if len(s) <= limit {
		return s
	}
	head := (limit - len(dots)) * 2 / 5
	tail := len(s) - (limit - len(dots) - head)
	return strings.ToValidUTF8(s[:head]+dots+s[tail:], "")
}

func refuseAll(services []protocol.Service, why string) []protocol.Registration {
	answers := make([]protocol.Registration, len(services))
	for i, s := range services {
		answers[i] = protocol.Registration{Name: elide(s.Name, maxName), Error: why}
	}
	return answers
}

// speaks reports whether a list that came on s is the agent's newest word:
// whether s is attached and alive, and no younger live session pushed it out.
// Callers hold Registry.mu.
func (m *member) speaks(s tunnel.Session) bool {
	var own *attached
	for _, a := range m.sessions { // oldest first
		switch {
		case a.s == s:
			own = a
		case own != nil && !a.ended && (own.draining || a.instance == own.instance):
			return false
		}
	}
	return own != nil && !own.ended
}

// answerStored answers a list that comes too late with what was decided on the
// one that counts.
func (r *Registry) answerStored(services, accepted []protocol.Service, refused map[string]string) []protocol.Registration {
	answers := refuseAll(services, "a newer session of this agent has taken over, and its list counts: try again")
	for i, s := range services {
		if k := slices.IndexFunc(accepted, func(a protocol.Service) bool { return a.Name == s.Name }); k >= 0 {
			answers[i] = protocol.Registration{Name: s.Name, URL: r.url(accepted[k])}
		} else if why := refused[answers[i].Name]; why != "" {
			answers[i].Error = why
		}
	}
	return answers
}
