package executor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxMatch = 512 // bytes of a match or path
	maxSteps = 16  // of a path
	maxLive  = 64  // bytes of a value that is shown
)

// A matcher recognises payloads.
type matcher struct {
	path  []string // into JSON; nil = the whole payload
	re    *regexp.Regexp
	text  string
	there bool // anything will do
}

func parseMatch(text string) (*matcher, error) {
	if len(text) > maxMatch {
		return nil, fmt.Errorf("a match has at most %d bytes", maxMatch)
	}
	m := &matcher{text: text, there: text == ""}
	if strings.HasPrefix(text, ".") {
		where, want, compared := strings.Cut(text[1:], "=")
		path, err := parsePath(where)
		if err != nil {
			return nil, err
		}
		if path == nil {
			return nil, fmt.Errorf("%q leads nowhere; write .state=ON, or .a.b=1 for what lies deeper", text)
		}
		m.path, m.text, m.there = path, want, !compared
	}
	if len(m.text) >= 2 && m.text[0] == '/' && m.text[len(m.text)-1] == '/' && !m.there {
		re, err := regexp.Compile(m.text[1 : len(m.text)-1])
		if err != nil {
			return nil, fmt.Errorf("%q is no regular expression: %v", m.text, err)
		}
		m.re = re
	}
	return m, nil
}

// parsePath reads "a.b.0.c". "" is no path.
func parsePath(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	path := strings.Split(text, ".")
	if len(text) > maxMatch || len(path) > maxSteps {
		return nil, fmt.Errorf("a path into JSON has at most %d bytes and %d steps", maxMatch, maxSteps)
	}
	if slices.Contains(path, "") {
		return nil, fmt.Errorf("%q is no path into JSON; write names with a dot between: state, or a.b", text)
	}
	return path, nil
}

// match reports whether a payload is the one.
func (m *matcher) match(payload []byte) bool {
	value := string(payload)
	if m.path != nil {
		var ok bool
		if value, ok = lookup(payload, m.path); !ok {
			return false
		}
	}
	switch {
	case m.there:
		return true
	case m.re != nil:
		return m.re.MatchString(value)
	}
	return value == m.text
}

// lookup returns what a path leads to: a text as it is, other things as JSON.
func lookup(payload []byte, path []string) (string, bool) {
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber() // 1 stays 1, and 1e3 what it was
	var v any
	if dec.Decode(&v) != nil {
		return "", false
	}
	if _, err := dec.Token(); err != io.EOF {
		return "", false
	}
	for _, step := range path {
		switch x := v.(type) {
		case map[string]any:
			next, ok := x[step]
			if !ok {
				return "", false
			}
			v = next
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(x) {
				return "", false
			}
			v = x[i]
		default:
			return "", false
		}
	}
	if s, ok := v.(string); ok {
		return s, true
	}
	text, err := json.Marshal(v)
	return string(text), err == nil
}

// liveValue makes a payload fit to be shown: printable, at most 64 bytes.
func liveValue(payload []byte, path []string) (string, bool) {
	value := string(payload)
	if path != nil {
		var ok bool
		if value, ok = lookup(payload, path); !ok {
			return "", false
		}
	}
	return clean(value, maxLive), true
}

// clean drops what cannot be printed and cuts s to most bytes.
func clean(s string, most int) string {
	if len(s) > 4*most { // most of what comes is short; the rest need not be looked at whole
		s = s[:4*most]
	}
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}
