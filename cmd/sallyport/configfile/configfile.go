// Package configfile reads Sallyport's YAML files so that a person can mend
// all mistakes in one go: every problem at once, each with file, line, column,
// the line itself and, for a mistyped word, the nearest one that exists.
//
//	f, err := configfile.Load("relay.yaml", configfile.RelaySchema, &conf)
//	f.Fault("$.domain", "is not a host name") // what only the program can judge
//	if err := f.Err(); err != nil { … }
//
// Three steps: parse (syntax, duplicate keys), check against the JSON Schema
// that editors use too, decode into the struct.
package configfile

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxSize bounds a configuration file, in bytes.
const maxSize = 1 << 20

// A Fault is one problem in a file.
type Fault struct {
	Path    string // "$.services[1].to"
	Line    int    // from 1; 0 when the whole file is meant
	Column  int    // from 1
	Message string // what is wrong and, where known, what to write instead
	Excerpt string // the source line
}

// Faults is the error that Load and File.Err return.
type Faults struct {
	File   string
	Faults []Fault
}

func (e *Faults) Error() string {
	var b strings.Builder
	for i, f := range e.Faults {
		if i > 0 {
			b.WriteString("\n")
		}
		if f.Line == 0 {
			fmt.Fprintf(&b, "%s: %s", e.File, f.Message)
			continue
		}
		fmt.Fprintf(&b, "%s:%d:%d: %s\n    %s\n    %s^", e.File, f.Line, f.Column, f.Message, f.Excerpt,
			strings.Repeat(" ", max(f.Column-1, 0)))
	}
	return b.String()
}

// A File is a parsed file that still knows where everything stood.
type File struct {
	name    string
	lines   []string
	places  map[string]place
	faults  []Fault
	decoded bool
	schema  map[string]bool // paths that the schema has judged already; nil: it found nothing
}

type place struct{ line, column int }

// Load reads name, checks it against schema (one of this package's) and fills
// out. It returns the File also when there are faults, so that the caller can
// add its own before it reports all with Err.
func Load(name string, schema Schema, out any) (*File, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	if st.Size() > maxSize {
		return nil, fmt.Errorf("read config: %s is larger than 1 MiB", name)
	}
	src, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	return Parse(name, src, schema, out)
}

// Parse is Load for bytes; name appears in messages only.
func Parse(name string, src []byte, schema Schema, out any) (*File, error) {
	f := &File{name: name, lines: strings.Split(string(src), "\n"), places: map[string]place{}}
	tree, err := parser.ParseBytes(src, 0)
	if err != nil {
		f.syntax(err)
		return f, f.Err()
	}
	value := any(map[string]any{})
	switch {
	case len(tree.Docs) > 1:
		f.Fault("$", "holds more than one YAML document; keep one")
		return f, f.Err()
	case len(tree.Docs) == 1 && tree.Docs[0].Body != nil:
		value = f.walk("$", tree.Docs[0].Body)
	}
	schema.check(f, value)
	if len(f.faults) > 0 {
		// The caller may judge the rest, if what is there makes sense at all.
		f.decoded = yaml.Unmarshal(src, out) == nil
		f.schema = map[string]bool{}
		for _, fault := range f.faults {
			f.schema[fault.Path] = true
		}
		return f, f.Err()
	}
	f.decoded = true
	if err := yaml.UnmarshalWithOptions(src, out, yaml.Strict()); err != nil {
		f.syntax(err)
	}
	return f, f.Err()
}

// Decoded reports whether Load's out holds what the file says, so that the
// caller can judge it although there are faults already.
func (f *File) Decoded() bool { return f != nil && f.decoded }

// Fault notes one more problem at a path such as "$.services[1].to". A path
// that is not in the file is placed at its nearest parent. What the schema has
// judged is not judged twice, and after it found a mistake nothing is said to be
// missing: most likely that is the same mistake.
func (f *File) Fault(path, format string, args ...any) {
	if _, there := f.places[path]; f.schema != nil && (f.schema[path] || !there) {
		return
	}
	p := f.find(path)
	f.faults = append(f.faults, Fault{
		Path: path, Line: p.line, Column: p.column, Message: fmt.Sprintf(format, args...), Excerpt: f.excerpt(p.line),
	})
}

// Has reports whether a path is in the file.
func (f *File) Has(path string) bool {
	_, ok := f.places[path]
	return ok
}

// Faulty reports whether the schema found a mistake at a path or below it.
func (f *File) Faulty(path string) bool {
	for p := range f.schema {
		if rest, ok := strings.CutPrefix(p, path); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return true
		}
	}
	return false
}

// Err returns all faults so far in order of line as a *Faults, or nil.
func (f *File) Err() error {
	if len(f.faults) == 0 {
		return nil
	}
	sorted := slices.Clone(f.faults)
	slices.SortStableFunc(sorted, func(a, b Fault) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return &Faults{File: f.name, Faults: sorted}
}

func (f *File) find(path string) place {
	for {
		if p, ok := f.places[path]; ok {
			return p
		}
		i := strings.LastIndexAny(path, ".[")
		if i <= 0 {
			return place{}
		}
		path = path[:i]
	}
}

func (f *File) excerpt(line int) string {
	if line < 1 || line > len(f.lines) {
		return ""
	}
	return strings.ReplaceAll(strings.TrimRight(f.lines[line-1], "\r"), "\t", " ")
}

// syntax notes an error of the YAML library, which knows its token.
func (f *File) syntax(err error) {
	var ye yaml.Error
	if !errors.As(err, &ye) || ye.GetToken() == nil {
		f.faults = append(f.faults, Fault{Path: "$", Message: err.Error()})
		return
	}
	pos := ye.GetToken().Position
	f.faults = append(f.faults, Fault{
		Path: "$", Line: pos.Line, Column: pos.Column, Message: ye.GetMessage(), Excerpt: f.excerpt(pos.Line),
	})
}

// walk turns a node into plain values and remembers where each stood. For a
// mapping entry the place is the key's: that is where a person looks.
func (f *File) walk(path string, n ast.Node) any {
	if t := firstToken(n); t != nil {
		if _, ok := f.places[path]; !ok {
			f.places[path] = place{t.Position.Line, t.Position.Column}
		}
	}
	switch n := n.(type) {
	case *ast.MappingNode:
		m := make(map[string]any, len(n.Values))
		for _, kv := range n.Values {
			f.entry(path, kv, m)
		}
		return m
	case *ast.MappingValueNode:
		m := map[string]any{}
		f.entry(path, n, m)
		return m
	case *ast.SequenceNode:
		s := make([]any, 0, len(n.Values))
		for i, v := range n.Values {
			s = append(s, f.walk(fmt.Sprintf("%s[%d]", path, i), v))
		}
		return s
	case *ast.StringNode:
		return n.Value
	case *ast.LiteralNode:
		return n.Value.Value
	case *ast.BoolNode:
		return n.Value
	case *ast.NullNode:
		return nil
	case *ast.IntegerNode:
		switch v := n.Value.(type) {
		case uint64:
			return float64(v)
		case int64:
			return float64(v)
		}
		return n.String()
	case *ast.FloatNode:
		return n.Value
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		f.Fault(path, "YAML anchors, aliases, tags and merges are not read here; write the value out")
		return nil
	}
	return n.String()
}

// firstToken is where a person sees a node begin: a mapping's own token is the
// colon after its first key.
func firstToken(n ast.Node) *token.Token {
	switch m := n.(type) {
	case *ast.MappingNode:
		if !m.IsFlowStyle && len(m.Values) > 0 {
			return m.Values[0].Key.GetToken()
		}
	case *ast.MappingValueNode:
		return m.Key.GetToken()
	}
	return n.GetToken()
}

func (f *File) entry(path string, kv *ast.MappingValueNode, into map[string]any) {
	key := kv.Key.GetToken().Value
	at := path + "." + key
	pos := kv.Key.GetToken().Position
	f.places[at] = place{pos.Line, pos.Column}
	into[key] = f.walk(at, kv.Value)
}

// Keys reads a file's top-level mapping without checking anything, to guess
// what kind of file it is. It reports whether that worked.
func Keys(name string, out *map[string]any) bool {
	src, err := os.ReadFile(name)
	return err == nil && len(src) <= maxSize && yaml.Unmarshal(src, out) == nil
}
