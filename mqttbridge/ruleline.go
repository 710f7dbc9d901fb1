package mqttbridge

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ParseRule reads a line of Mosquitto's configuration:
//
//	[topic] PATTERN [out|in|both [QOS [LOCAL-PREFIX [REMOTE-PREFIX]]]]
//
// The direction is out and the QoS 1 when they are left out (Mosquitto's is 0).
// A pair of quotation marks holds a text with spaces, or none: "".
// DropOldest and MaxAge have no place in the line. The rule is Checked.
func ParseRule(line string) (Rule, error) {
	words, err := splitLine(line)
	if err != nil {
		return Rule{}, fmt.Errorf("rule %q: %w", line, err)
	}
	if len(words) > 0 && words[0] == (word{text: "topic"}) {
		words = words[1:]
	}
	const form = "write: PATTERN [out|in|both [QOS [LOCAL-PREFIX [REMOTE-PREFIX]]]]"
	if len(words) == 0 || len(words) > 5 {
		return Rule{}, fmt.Errorf("rule %q has %d words after \"topic\"; %s", line, len(words), form)
	}
	r := Rule{Pattern: words[0].text, Direction: Out, QoS: 1}
	for i, w := range words[1:] {
		switch i {
		case 0:
			r.Direction = Direction(w.text)
		case 1:
			n, err := strconv.ParseUint(w.text, 10, 8)
			if err != nil {
				return Rule{}, fmt.Errorf("rule %q: the QoS is 0 or 1, not %q; %s", line, w.text, form)
			}
			r.QoS = byte(n)
		case 2:
			r.Local = w.text
		case 3:
			r.Remote = w.text
		}
	}
	if err := r.Check(); err != nil {
		return Rule{}, fmt.Errorf("rule %q: %w", line, err)
	}
	return r, nil
}

// A word is one of a line; quoted ones are never keywords.
type word struct {
	text   string
	quoted bool
}

func splitLine(line string) ([]word, error) {
	var words []word
	for rest := line; ; {
		rest = strings.TrimLeft(rest, " \t")
		if rest == "" {
			return words, nil
		}
		if len(words) > 6 {
			return nil, errors.New("too many words")
		}
		if quoted, ok := strings.CutPrefix(rest, `"`); ok {
			text, after, ok := strings.Cut(quoted, `"`)
			if !ok {
				return nil, errors.New("a quotation mark is not closed")
			}
			if after != "" && after[0] != ' ' && after[0] != '\t' {
				return nil, errors.New("a space is missing after a quotation mark")
			}
			words, rest = append(words, word{text, true}), after
			continue
		}
		end := strings.IndexAny(rest, " \t")
		if end < 0 {
			end = len(rest)
		}
		if strings.Contains(rest[:end], `"`) {
			return nil, errors.New("quotation marks stand around a whole word")
		}
		words, rest = append(words, word{text: rest[:end]}), rest[end:]
	}
}

// String returns the line that ParseRule reads, without the QoS and prefixes
// that it takes of itself. DropOldest and MaxAge do not show.
func (r Rule) String() string {
	line := quote(r.Pattern)
	if r.Pattern == "topic" {
		line = `"topic"`
	}
	line += " " + string(r.Direction)
	if r.QoS != 1 || r.Local != "" || r.Remote != "" {
		line += " " + strconv.Itoa(int(r.QoS))
	}
	if r.Local != "" || r.Remote != "" {
		line += " " + quote(r.Local)
	}
	if r.Remote != "" {
		line += " " + quote(r.Remote)
	}
	return line
}

func quote(s string) string {
	if s == "" || strings.ContainsAny(s, " \t") {
		return `"` + s + `"`
	}
	return s
}
