package dispatch

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport/mqttbridge"
)

// What an agent may say. Names and keys that are not in order end its stream;
// texts, which only people read, are clipped and cleaned.
const (
	maxActions  = 64 // a bit each in snapshot.mask
	maxValues   = 64
	maxPatterns = 512 // in all: they are tried for every device

	maxName    = 64
	maxLabel   = 80
	maxIcon    = 32
	maxValue   = 256
	maxLive    = 64
	maxHours   = 64
	maxPattern = 64
	maxProblem = 300
	maxReason  = 500

	shortLife = 2 * time.Second
	usualLife = 10 * time.Second
)

// cleanHome checks what a home says of itself and returns what may be shown.
func cleanHome(h mqttbridge.Home) (mqttbridge.Home, error) {
	id, err := mqttbridge.KeyID(h.Key)
	if err != nil {
		return mqttbridge.Home{}, fmt.Errorf("its key: %w", err)
	}
	if h.ID != id {
		return mqttbridge.Home{}, fmt.Errorf("its ID %q is not that of its key", clip(h.ID, maxName))
	}
	if len(h.Actions) > maxActions {
		return mqttbridge.Home{}, fmt.Errorf("%d actions; at most %d are allowed", len(h.Actions), maxActions)
	}
	clean := mqttbridge.Home{
		ID: id, Key: h.Key, Broker: h.Broker, Alert: clip(cleanText(h.Alert), maxProblem),
		Actions: make([]mqttbridge.Action, 0, len(h.Actions)),
	}
	seen, patterns := map[string]bool{}, 0
	for _, a := range h.Actions {
		if patterns += len(a.Who); patterns > maxPatterns {
			return mqttbridge.Home{}, fmt.Errorf("more than %d patterns of devices", maxPatterns)
		}
		if seen[a.Name] {
			return mqttbridge.Home{}, fmt.Errorf("two actions %q", clip(a.Name, maxName))
		}
		seen[a.Name] = true
		a, err := cleanAction(a)
		if err != nil {
			return mqttbridge.Home{}, fmt.Errorf("action %q: %w", clip(a.Name, maxName), err)
		}
		clean.Actions = append(clean.Actions, a)
	}
	return clean, nil
}

func cleanAction(a mqttbridge.Action) (mqttbridge.Action, error) {
	switch {
	case !isToken(a.Name, maxName):
		return a, fmt.Errorf("a name has 1 to %d letters, digits, \"-\" and \"_\"", maxName)
	case a.Confirm != mqttbridge.ConfirmNone && a.Confirm != mqttbridge.ConfirmHold && a.Confirm != mqttbridge.ConfirmPIN:
		return a, fmt.Errorf("confirm %q is not known here", clip(a.Confirm, maxName))
	case len(a.Values) > maxValues:
		return a, fmt.Errorf("%d values; at most %d are allowed", len(a.Values), maxValues)
	case slices.ContainsFunc(a.Values, func(v string) bool { return v == "" || !printable(v, maxValue) }):
		return a, fmt.Errorf("a value has 1 to %d printable bytes", maxValue)
	case slices.ContainsFunc(a.Who, func(p string) bool { return p == "" || !printable(p, maxPattern) }):
		return a, fmt.Errorf("a pattern of devices has 1 to %d printable bytes", maxPattern)
	}
	a.Label, a.Icon = clip(cleanText(a.Label), maxLabel), clip(cleanText(a.Icon), maxIcon)
	a.Hours, a.Problem = clip(cleanText(a.Hours), maxHours), clip(cleanText(a.Problem), maxProblem)
	if a.Life <= 0 {
		a.Life = usualLife.Milliseconds()
	}
	a.Life = min(max(a.Life, shortLife.Milliseconds()), maxLife.Milliseconds())
	if a.State != nil {
		a.State = &mqttbridge.Live{Value: clip(cleanText(a.State.Value), maxLive), At: cleanTime(a.State.At)}
	}
	if a.Last != nil {
		a.Last = &mqttbridge.Last{By: clip(cleanText(a.Last.By), maxName), At: cleanTime(a.Last.At), State: a.Last.State}
		if !knownState(a.Last.State) {
			a.Last = nil
		}
	}
	return a, nil
}

// cleanStatus returns what an agent says about a command, without what it must
// not decide. The time is its own if that can be. False: it says nothing that
// an agent may say.
func cleanStatus(s mqttbridge.Status, created, now time.Time) (mqttbridge.Status, bool) {
	clean := mqttbridge.Status{State: s.State, At: s.At.UTC()}
	if clean.At.After(now) || s.At.IsZero() {
		clean.At = now
	}
	if clean.At.Before(created) {
		clean.At = created
	}
	switch s.State {
	case mqttbridge.Delivered:
		clean.Final = s.Final
	case mqttbridge.Done, mqttbridge.Unconfirmed, mqttbridge.Expired, mqttbridge.Unknown:
		clean.Final = true
	case mqttbridge.Refused:
		clean.Final, clean.Code = true, cleanCode(s.Code)
		if clean.Code == mqttbridge.CodePINWrong {
			clean.AttemptsLeft = min(max(s.AttemptsLeft, 0), 100)
		}
		if until := s.Until.UTC(); (clean.Code == mqttbridge.CodeLocked || clean.Code == mqttbridge.CodeRate) && until.After(now) {
			clean.Until = minTime(until, now.Add(7*24*time.Hour))
		}
	default: // accepted and sent are the relay's own to say
		return mqttbridge.Status{}, false
	}
	clean.Reason = clip(cleanText(s.Reason), maxReason)
	return clean, true
}

func cleanCode(c mqttbridge.Code) mqttbridge.Code {
	switch c {
	case mqttbridge.CodeOffline, mqttbridge.CodeBroker, mqttbridge.CodeNoAction, mqttbridge.CodeUntrusted, mqttbridge.CodeSignature,
		mqttbridge.CodeChallenge, mqttbridge.CodeDuplicate, mqttbridge.CodePINNeeded, mqttbridge.CodePINWrong, mqttbridge.CodeLocked,
		mqttbridge.CodeHours, mqttbridge.CodeRate, mqttbridge.CodeMalformed, mqttbridge.CodeDisk, mqttbridge.CodeBusy, mqttbridge.CodeRevoked:
		return c
	}
	return mqttbridge.CodeInternal
}

func knownState(s mqttbridge.State) bool {
	switch s {
	case mqttbridge.Accepted, mqttbridge.Sent, mqttbridge.Delivered, mqttbridge.Done,
		mqttbridge.Unconfirmed, mqttbridge.Refused, mqttbridge.Expired, mqttbridge.Unknown:
		return true
	}
	return false
}

// cleanTime drops what JSON cannot say again.
func cleanTime(t time.Time) time.Time {
	if t = t.UTC(); t.Year() < 1970 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// cleanText makes a text harmless to show: what does not print, and what turns
// the direction of writing so that it reads as something else, becomes a space.
func cleanText(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !shows(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, " ")))
}

// shows also takes the joiner and the variation selectors, which emoji are
// made with.
func shows(r rune) bool { return unicode.IsPrint(r) || r == '\u200d' }

// clip cuts a text to n bytes between two characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// printable reports whether s has at most n bytes and nothing that does not
// show.
func printable(s string, n int) bool {
	return len(s) <= n && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !shows(r) })
}

// isToken reports whether s has 1 to n letters, digits, "-" and "_".
func isToken(s string, n int) bool {
	return s != "" && len(s) <= n && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}
