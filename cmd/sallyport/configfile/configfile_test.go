package configfile

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type conf struct {
	Version int    `yaml:"version"`
	Domain  string `yaml:"domain"`
	Listen  string `yaml:"listen"`
}

func TestAllFaultsAtOnceWithPlaces(t *testing.T) {
	src := `version: 1
domian: example.org
listen: 443
certs: filse
certificates:
  - cert: /a.pem
decoy: nowhere
`
	_, err := Parse("relay.yaml", []byte(src), RelaySchema, &conf{})
	var fs *Faults
	if !errors.As(err, &fs) {
		t.Fatalf("got %v, want *Faults", err)
	}
	text := err.Error()
	for _, want := range []string{
		`relay.yaml:2:1: unknown key "domian" - did you mean "domain"?`,
		`relay.yaml:3:1: "listen" is a number, but must be a string: put the value in quotes`,
		`relay.yaml:4:1: "filse" is not one of acme, files, internal - did you mean "files"?`,
		`relay.yaml:6:`,
		`"key" is missing`,
		`relay.yaml:7:1: `,
		"    domian: example.org\n    ^",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("missing %q in:\n%s", want, text)
		}
	}
	if len(fs.Faults) != 5 {
		t.Errorf("got %d faults, want 5:\n%s", len(fs.Faults), text)
	}
}

func TestSyntaxAndDuplicates(t *testing.T) {
	for name, src := range map[string]string{
		"syntax":    "domain: [a\nlisten: x\n",
		"duplicate": "domain: a\ndomain: b\n",
		"documents": "domain: a\n---\ndomain: b\n",
		"alias":     "domain: &a x\nlisten: *a\n",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse("f", []byte(src), RelaySchema, &conf{}); err == nil {
				t.Errorf("accepted %q", src)
			} else {
				t.Log(err)
			}
		})
	}
}

func TestSemanticFaultFindsItsLine(t *testing.T) {
	var c conf
	f, err := Parse("f", []byte("version: 1\ndomain: 1.2.3.4\n"), RelaySchema, &c)
	if err != nil {
		t.Fatal(err)
	}
	if c.Domain != "1.2.3.4" {
		t.Fatalf("decoded %q", c.Domain)
	}
	f.Fault("$.domain", "is an address, not a name")
	if got := f.Err().Error(); !strings.HasPrefix(got, "f:2:1: is an address") {
		t.Errorf("got %q", got)
	}
}

func TestEmptyFile(t *testing.T) {
	if _, err := Parse("f", nil, AgentSchema, &conf{}); err != nil {
		t.Errorf("an empty file is a valid one: %v", err)
	}
}

func TestLoadMissing(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none"), RelaySchema, &conf{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// Every key has a description: editors show it, and so do our messages.
func TestSchemasDescribeEveryKey(t *testing.T) {
	for _, s := range []Schema{RelaySchema, AgentSchema} {
		var doc map[string]any
		if err := json.Unmarshal(s.JSON(), &doc); err != nil {
			t.Fatal(err)
		}
		var walk func(path string, v any)
		walk = func(path string, v any) {
			m, ok := v.(map[string]any)
			if !ok {
				return
			}
			if props, ok := m["properties"].(map[string]any); ok {
				for k, p := range props {
					pm := p.(map[string]any)
					if pm["description"] == nil && pm["$ref"] == nil {
						t.Errorf("%s.%s has no description", path, k)
					}
				}
			}
			for k, c := range m {
				walk(path+"/"+k, c)
			}
		}
		walk("", doc)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("domain: a\n"))
	f.Add([]byte("a: [1, {b: c}]\n- x"))
	f.Add([]byte("? x\n: y\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		var c conf
		if file, err := Parse("f", src, RelaySchema, &c); err == nil && file == nil {
			t.Error("neither file nor error")
		}
	})
}

// A near miss of a dangerous word is not completed.
func TestNoneIsNeverSuggested(t *testing.T) {
	_, err := Parse("f", []byte("services:\n  - {name: a, to: x, auth: nono}\n"), AgentSchema, &struct{}{})
	if err == nil || strings.Contains(err.Error(), "did you mean") {
		t.Errorf("got %v", err)
	}
}
