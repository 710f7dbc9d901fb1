package configfile

import (
	"bytes"
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

//go:embed relay.schema.json
var relaySchema []byte

//go:embed agent.schema.json
var agentSchema []byte

// A Schema is a JSON Schema (draft 2020-12) of one kind of file.
type Schema struct{ text []byte }

// The two kinds of file.
var (
	RelaySchema = Schema{relaySchema}
	AgentSchema = Schema{agentSchema}
)

// JSON returns the schema's text, for editors.
func (s Schema) JSON() []byte { return bytes.Clone(s.text) }

// check notes every way in which value breaks the schema.
func (s Schema) check(f *File, value any) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(s.text))
	if err != nil {
		panic("embedded schema is not JSON: " + err.Error())
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", doc); err != nil {
		panic("embedded schema: " + err.Error())
	}
	compiled, err := c.Compile("schema.json")
	if err != nil {
		panic("embedded schema: " + err.Error())
	}
	if err, ok := compiled.Validate(value).(*jsonschema.ValidationError); ok {
		noteAll(f, compiled, err)
	}
}

// noteAll walks to the leaves: only they say what is wrong.
func noteAll(f *File, root *jsonschema.Schema, e *jsonschema.ValidationError) {
	if len(e.Causes) > 0 {
		for _, c := range e.Causes {
			noteAll(f, root, c)
		}
		return
	}
	path := yamlPath(e.InstanceLocation)
	switch k := e.ErrorKind.(type) {
	case *kind.AdditionalProperties:
		known := propertiesAt(root, e.InstanceLocation)
		for _, name := range k.Properties {
			f.Fault(path+"."+name, "unknown key %q%s", name, suggest(name, known))
		}
	case *kind.Required:
		for _, name := range k.Missing {
			f.Fault(path, "%q is missing", name)
		}
	case *kind.Enum:
		words := make([]string, 0, len(k.Want))
		for _, w := range k.Want {
			words = append(words, fmt.Sprint(w))
		}
		got := fmt.Sprint(k.Got)
		f.Fault(path, "%q is not one of %s%s", got, strings.Join(words, ", "), suggest(got, words))
	case *kind.Type:
		remedy := ""
		switch {
		case slices.Contains(k.Want, "string") && (k.Got == "number" || k.Got == "boolean"):
			remedy = ": put the value in quotes"
		case k.Got == "null" && strings.Contains(f.excerpt(f.find(path).line), "#"):
			remedy = ": # begins a comment in YAML, so nothing is left here; put the value in quotes"
		}
		f.Fault(path, "%q is a %s, but must be a %s%s", path[strings.LastIndexByte(path, '.')+1:], k.Got, strings.Join(k.Want, " or a "), remedy)
	case *kind.Pattern:
		if d := schemaAt(root, e.InstanceLocation); d != nil && d.Description != "" {
			f.Fault(path, "%q does not fit; write %s", k.Got, d.Description)
			return
		}
		f.Fault(path, "%q does not match %s", k.Got, k.Want)
	default:
		if d := schemaAt(root, e.InstanceLocation); d != nil && d.Description != "" {
			f.Fault(path, "%s; it is: %s", e.ErrorKind.LocalizedString(printer()), d.Description)
			return
		}
		f.Fault(path, "%s", e.ErrorKind.LocalizedString(printer()))
	}
}

func printer() *message.Printer { return message.NewPrinter(language.English) }

func yamlPath(loc []string) string {
	var b strings.Builder
	b.WriteString("$")
	for _, l := range loc {
		if _, err := strconv.Atoi(l); err == nil {
			b.WriteString("[" + l + "]")
		} else {
			b.WriteString("." + l)
		}
	}
	return b.String()
}

func schemaAt(s *jsonschema.Schema, loc []string) *jsonschema.Schema {
	for _, l := range loc {
		for s != nil && s.Ref != nil {
			s = s.Ref
		}
		if s == nil {
			return nil
		}
		if p, ok := s.Properties[l]; ok {
			s = p
		} else if items, ok := s.Items.(*jsonschema.Schema); ok {
			s = items
		} else {
			s = s.Items2020
		}
	}
	for s != nil && s.Ref != nil {
		s = s.Ref
	}
	return s
}

func propertiesAt(root *jsonschema.Schema, loc []string) []string {
	s := schemaAt(root, loc)
	if s == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(s.Properties))
}

// suggest returns ` - did you mean "x"?` when a known word is near enough.
func suggest(got string, known []string) string {
	best := Nearest(got, known)
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" - did you mean %q?", best)
}

// Nearest returns the known word that a person most likely meant by got, or "".
func Nearest(got string, known []string) string {
	best, dist := "", 3
	for _, k := range known {
		if k == "none" {
			continue // "auth: no" must not be talked into "open to everybody"
		}
		if d := distance(got, k); d < dist && d < len(k) {
			best, dist = k, d
		}
	}
	return best
}

// distance is the Damerau-Levenshtein distance (adjacent swaps count once).
func distance(a, b string) int {
	prev2, prev := []int{}, make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur := make([]int, len(b)+1)
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev = prev, cur
	}
	return prev[len(b)]
}
