package mqttbridge

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxTopic is the longest topic or filter anywhere, in bytes. MQTT allows
// 65,535; nobody's are that long, and every one is kept in memory.
const MaxTopic = 1024

// MaxLevels is how many levels a topic or filter has at most. Brokers hang up on
// more (Mosquitto above 200, EMQX above 128), and a message on which the home
// broker hangs up would stop all that wait behind it.
const MaxLevels = 100

// MaxPayload is the largest payload of a message anywhere, in bytes.
const MaxPayload = 64 << 10

// CheckTopic says why nobody may publish to a topic: it has 1 to MaxTopic bytes
// of UTF-8 without control characters, it holds no wildcard, and it does not
// start with "$", which is the broker's own.
func CheckTopic(topic string) error {
	if err := checkText("topic", topic); err != nil {
		return err
	}
	if strings.ContainsAny(topic, "+#") {
		return fmt.Errorf("topic %q holds + or #, which stand for other topics in subscriptions only", topic)
	}
	if topic[0] == '$' {
		return fmt.Errorf("topic %q starts with $: these are the broker's own", topic)
	}
	return nil
}

// CheckFilter says why a text is no topic filter: 1 to MaxTopic bytes of UTF-8
// without control characters, "+" alone in its level, "#" alone in the last
// one. Filters that start with "$" are well formed; whether somebody may use
// one is the caller's to say.
func CheckFilter(filter string) error {
	if err := checkText("topic filter", filter); err != nil {
		return err
	}
	for level, rest, more := next(filter); ; level, rest, more = next(rest) {
		if len(level) > 1 && strings.ContainsAny(level, "+#") {
			return fmt.Errorf("topic filter %q: + and # stand alone between slashes, not in %q", filter, level)
		}
		if !more {
			return nil
		}
		if level == "#" {
			return fmt.Errorf("topic filter %q: # comes last", filter)
		}
	}
}

func checkText(what, s string) error {
	switch {
	case isPlain(s) && s != "" && len(s) < MaxLevels:
		return nil // nearly all
	case s == "":
		return errors.New("the " + what + " is empty")
	case len(s) > MaxTopic:
		return fmt.Errorf("the %s has %d bytes; at most %d are allowed", what, len(s), MaxTopic)
	case !utf8.ValidString(s):
		return fmt.Errorf("%s %q is not UTF-8", what, s)
	case strings.ContainsFunc(s, unicode.IsControl):
		return fmt.Errorf("%s %q holds a control character", what, s)
	case strings.ContainsFunc(s, isNonCharacter):
		return fmt.Errorf("%s %q holds a code point that is no character (MQTT 1.5.4)", what, s)
	case strings.Count(s, "/") >= MaxLevels:
		return fmt.Errorf("the %s has more than %d levels", what, MaxLevels)
	}
	return nil
}

// isNonCharacter reports whether Unicode says that a code point never is one.
// Mosquitto hangs up on them.
func isNonCharacter(r rune) bool { return r >= 0xFDD0 && r <= 0xFDEF || r&0xFFFE == 0xFFFE }

// isPlain reports whether s is printable ASCII.
func isPlain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// Match reports whether a filter matches a topic (MQTT 4.7). Wildcards do not
// match a first level that starts with "$". What is no filter or no topic
// matches nothing that a valid pair would not.
func Match(filter, topic string) bool {
	if filter == "" || topic == "" {
		return false
	}
	for first := true; ; first = false {
		f, frest, fmore := next(filter)
		t, trest, tmore := next(topic)
		switch {
		case first && (f == "+" || f == "#") && strings.HasPrefix(t, "$"):
			return false
		case f == "#" && !fmore:
			return true
		case f != "+" && f != t:
			return false
		case !fmore || !tmore:
			// "a/#" matches "a" too.
			return fmore == tmore || !tmore && frest == "#"
		}
		filter, topic = frest, trest
	}
}

// Covers reports whether outer matches every topic that inner matches. Both are
// valid filters (CheckFilter). It errs on the side of false for an inner
// "/#": that it matches no topic of one level is not counted.
func Covers(outer, inner string) bool {
	if outer == "" || inner == "" {
		return false
	}
	if inner == "#" && outer == "+/#" {
		return true // every topic has a first level
	}
	for first := true; ; first = false {
		o, orest, omore := next(outer)
		i, irest, imore := next(inner)
		switch {
		case first && (o == "+" || o == "#") && strings.HasPrefix(i, "$"):
			return false
		case o == "#":
			return true
		case i == "#" || o != "+" && o != i:
			return false
		case !omore || !imore:
			return omore == imore || !imore && orest == "#"
		}
		outer, inner = orest, irest
	}
}

// Overlap reports whether some topic matches both filters. Both are valid
// (CheckFilter). It errs on the side of true for "/#" and a filter of one level.
func Overlap(a, b string) bool {
	if a == "" || b == "" {
		return false
	}
	for first := true; ; first = false {
		x, xrest, xmore := next(a)
		y, yrest, ymore := next(b)
		wildX, wildY := x == "+" || x == "#", y == "+" || y == "#"
		switch {
		case first && (wildX && strings.HasPrefix(y, "$") || wildY && strings.HasPrefix(x, "$")):
			return false
		case x == "#" || y == "#":
			return true
		case !wildX && !wildY && x != y:
			return false
		case !xmore || !ymore:
			return xmore == ymore || !xmore && yrest == "#" || !ymore && xrest == "#"
		}
		a, b = xrest, yrest
	}
}

// next cuts the first level off a topic. An empty level is one too, so that
// more tells whether there is a rest.
func next(topic string) (level, rest string, more bool) {
	// Not strings.Cut: this is the innermost loop of every check, and levels
	// are short.
	for i := range len(topic) {
		if topic[i] == '/' {
			return topic[:i], topic[i+1:], true
		}
	}
	return topic, "", false
}
