package executor

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// A naming is what an announcement says that a name can be made of.
type naming struct {
	object     string // what the device wants to be called in Home Assistant
	topic      string // its part of the discovery topic
	node       string // the part before that, often an address
	owner, own string // names of the device, and of this part of it
	component  string
}

// Words that say nothing about which thing is meant: many bridges call every
// switch "switch", and tell them apart by an address.
var (
	sayNothing = regexp.MustCompile(`^(?i:switch|light|siren|button|scene|cover|lock|state|set|config|main|relay|channel|output|endpoint|left|right|center|top|bottom|l?[0-9]+|0x[0-9a-fA-F]+|[0-9a-fA-F]{8,})$`)
	notInName  = regexp.MustCompile(`[^A-Za-z0-9_-]+`)
	inASCII    = strings.NewReplacer("ä", "ae", "ö", "oe", "ü", "ue", "ß", "ss", "é", "e", "è", "e", "ê", "e", "à", "a", "â", "a", "ç", "c", "ñ", "n", "å", "a", "ø", "o", "æ", "ae")
)

// name returns a name that an action may have and that a person recognises.
func (n naming) name() string {
	for _, object := range []string{n.object, n.topic} {
		if name := nameOf(object); telling(name) {
			return name
		}
	}
	if text := slug(n.owner + " " + n.own); text != "" {
		if !slices.Contains(strings.Split(text, "-"), n.component) {
			text = shorten(text, 63-len(n.component)) + "-" + n.component
		}
		return shorten(text, 64)
	}
	if n.node != "" {
		return cmp.Or(nameOf(n.node+"-"+n.topic), "found")
	}
	return cmp.Or(nameOf(n.topic), "found")
}

// telling reports whether some word of a name tells the thing from others.
func telling(name string) bool {
	return slices.ContainsFunc(strings.FieldsFunc(name, func(r rune) bool { return r == '-' || r == '_' }),
		func(word string) bool { return !sayNothing.MatchString(word) })
}

func nameOf(text string) string {
	return shorten(notInName.ReplaceAllString(inASCII.Replace(clean(text, 64)), "-"), 64)
}

func slug(text string) string {
	return nameOf(strings.ToLower(text))
}

func shorten(name string, most int) string {
	return strings.Trim(name[:min(len(name), max(most, 0))], "-")
}

// unique gives what has the same name as another -2, -3 and so on.
func unique(list []Suggestion) {
	taken := make(map[string]bool, len(list))
	for i := range list {
		s := &list[i]
		name := s.Name
		for n := 2; taken[name]; n++ {
			end := fmt.Sprintf("-%d", n)
			name = shorten(s.Name, 64-len(end)) + end
		}
		taken[name] = true
		if name != s.Name {
			s.Name, s.Action.Name = name, name
			s.YAML = s.yaml()
		}
	}
}

// fitting comments out what a configuration could not hold besides the rest.
func fitting(list []Suggestion) []Suggestion {
	actions := make([]Action, len(list))
	for i, s := range list {
		actions[i] = s.Action
	}
	most := len(list)
	for _, f := range Check(actions) {
		most = min(most, f.Index)
	}
	for i := range list[most:] {
		s := &list[most+i]
		s.Note = "more than a home may have besides those above"
		s.YAML = commented(s.yaml())
	}
	return list
}

func commented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("# " + strings.TrimPrefix(line, "# "))
	}
	return b.String()
}

// maxReasons bounds what somebody can make the owner read.
const maxReasons = 32

// skips says what is left out: a comment for each reason, with one example.
func skips(list []Suggestion) (comments []Suggestion) {
	example, count := make(map[string]string), make(map[string]int)
	for _, s := range list {
		count[s.skipped]++
		if first, ok := example[s.skipped]; !ok || s.Label < first {
			example[s.skipped] = s.Label
		}
	}
	reasons := slices.Sorted(maps.Keys(count))
	for _, reason := range reasons[:min(len(reasons), maxReasons)] {
		reasonText := clean(reason, maxFoundText)
		comments = append(comments, Suggestion{
			Label: example[reason], Note: reasonText,
			YAML: fmt.Sprintf("# skipped %d: %s (%s)\n", count[reason], reasonText, example[reason]),
		})
	}
	return comments
}
