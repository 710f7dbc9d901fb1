package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/cmd/sallyport/configfile"
)

// schemaKeys returns the keys of a JSON Schema as "services[].name".
func schemaKeys(t *testing.T, s configfile.Schema) []string {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(s.JSON(), &doc); err != nil {
		t.Fatal(err)
	}
	var keys []string
	var walk func(prefix string, node map[string]any)
	walk = func(prefix string, node map[string]any) {
		if ref, ok := node["$ref"].(string); ok {
			node = doc["$defs"].(map[string]any)[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
		}
		if items, ok := node["items"].(map[string]any); ok {
			walk(prefix+"[]", items)
		}
		props, _ := node["properties"].(map[string]any)
		for name, p := range props {
			key := strings.TrimPrefix(prefix+"."+name, ".")
			keys = append(keys, key)
			walk(key, p.(map[string]any))
		}
	}
	walk("", doc)
	slices.Sort(keys)
	return keys
}

// structKeys returns the keys that a struct decodes, in the same form.
func structKeys(typ reflect.Type) []string {
	var keys []string
	var walk func(prefix string, typ reflect.Type)
	walk = func(prefix string, typ reflect.Type) {
		if typ.Kind() == reflect.Slice {
			prefix, typ = prefix+"[]", typ.Elem()
		}
		if typ.Kind() != reflect.Struct {
			return
		}
		for f := range typ.Fields() {
			key := strings.TrimPrefix(prefix+"."+f.Tag.Get("yaml"), ".")
			keys = append(keys, key)
			walk(key, f.Type)
		}
	}
	walk("", typ)
	slices.Sort(keys)
	return keys
}

func TestSchemasAndStructsHaveTheSameKeys(t *testing.T) {
	for name, c := range map[string]struct {
		schema configfile.Schema
		file   any
	}{
		"relay": {configfile.RelaySchema, relayFile{}},
		"agent": {configfile.AgentSchema, agentFile{}},
	} {
		want, got := schemaKeys(t, c.schema), structKeys(reflect.TypeOf(c.file))
		if !slices.Equal(want, got) {
			t.Errorf("%s: the schema has\n%v\nthe struct has\n%v", name, want, got)
		}
	}
}

// What can be set in one place can be set in the other, under a name that is
// easy to guess; what cannot stands here with the reason.
func TestFilesAndFlagsHaveTheSameSettings(t *testing.T) {
	for name, c := range map[string]struct {
		schema configfile.Schema
		flags  []cli.Flag
		keys   map[string]string // key → flag, when that is not the key with hyphens; "" = none
		flag   []string          // flags without a key
	}{
		"relay": {
			configfile.RelaySchema, relayFlags(),
			map[string]string{
				"version": "", "certificates": "cert", "certificates[].cert": "cert", "certificates[].key": "key", "log": "",
				"log.format": "log-format", "log.level": "log-level",
				"acme": "", "acme.ca": "acme-ca", "acme.root": "acme-root", "acme.email": "acme-email",
				"mqtt": "", "mqtt.off": "mqtt-off", "mqtt.listen": "mqtt-listen", "mqtt.commands_per_hour": "mqtt-commands-per-hour",
				"dns": "", "dns.listen": "dns", "dns.addresses": "dns-address", "dns.ech": "ech-off",
				// A zone file is nothing for a command line either.
				"dns.ns": "", "dns.issuers": "", "dns.records": "", "dns.records[].name": "", "dns.records[].type": "",
				"dns.records[].value": "", "dns.records[].ttl": "",
				// Who may use which topic is a list of lists: nothing for a command line.
				"mqtt.allow": "", "mqtt.allow[].device": "", "mqtt.allow[].publish": "", "mqtt.allow[].subscribe": "",
			},
			[]string{"config"},
		},
		"agent": {
			configfile.AgentSchema, agentFlags(),
			map[string]string{
				"version": "", "services": "expose", "log": "", "log.format": "log-format", "log.level": "log-level",
				"mqtt": "", "mqtt.broker": "mqtt",
				"end_to_end.device_ca": "device-ca", "end_to_end.lan.listen": "lan",
			},
			[]string{"config"},
		},
	} {
		left := map[string]bool{}
		for _, f := range c.flags {
			left[f.Names()[0]] = true
		}
		have := maps.Clone(left)
		for _, key := range schemaKeys(t, c.schema) {
			switch {
			case strings.HasPrefix(key, "services[]"):
				continue // --expose takes name and target; the rest is `agent expose`'s, see below
			case key == "actions" || strings.HasPrefix(key, "actions[]"):
				continue // what may be done at home is written down, never typed in passing
			case strings.HasPrefix(key, "end_to_end") && c.keys[key] == "":
				continue // which certificates, and what the home network may: likewise
			case name == "agent" && strings.HasPrefix(key, "mqtt.") && key != "mqtt.broker":
				continue // --mqtt is for a broker without a lock; all else has its place in the file
			}
			flag, special := c.keys[key]
			if !special {
				flag = strings.ReplaceAll(key, "_", "-")
			}
			if flag != "" && !have[flag] {
				t.Errorf("%s: key %s has no flag --%s", name, key, flag)
			}
			if name == "relay" && flag != "" && !strings.Contains(key, "[]") && !strings.HasPrefix(key, "log.") && flagOf(key) != flag {
				t.Errorf("a mistake in key %s is told of flag --%s", key, flagOf(key))
			}
			delete(left, flag)
		}
		for _, flag := range c.flag {
			delete(left, flag)
		}
		for flag := range left {
			t.Errorf("%s: flag --%s has no key in the file", name, flag)
		}
	}
}

// A service can be exposed by command with all that the file can say of it.
func TestServicesAndExposeHaveTheSameSettings(t *testing.T) {
	expose := find(agentCommand(stdio{}).Subcommands, "expose")
	left := map[string]bool{}
	for _, f := range expose.Flags {
		left[f.Names()[0]] = true
	}
	delete(left, "data")
	for _, key := range schemaKeys(t, configfile.AgentSchema) {
		word, ok := strings.CutPrefix(key, "services[].")
		if !ok || word == "name" || word == "to" { // its arguments
			continue
		}
		flag := strings.ReplaceAll(word, "_", "-")
		if !left[flag] {
			t.Errorf("key %s: `agent expose` has no flag --%s", key, flag)
		}
		delete(left, flag)
	}
	for flag := range left {
		t.Errorf("`agent expose --%s`: a service in the file has no such key", flag)
	}
}

// Every flag that is not about one command only can come from the environment.
func TestSettingsOfProcessesCanComeFromTheEnvironment(t *testing.T) {
	for name, flags := range map[string][]cli.Flag{"relay": relayFlags(), "agent": agentFlags()} {
		for _, f := range flags {
			want := "SALLYPORT_" + strings.ToUpper(strings.ReplaceAll(f.Names()[0], "-", "_"))
			env := f.(interface{ GetEnvVars() []string }).GetEnvVars()
			if !slices.Equal(env, []string{want}) && f.Names()[0] != "expose" { // its targets may hold commas
				t.Errorf("%s: --%s comes from %v, want %s", name, f.Names()[0], env, want)
			}
		}
	}
}

// The cli package takes the first words in backquotes for the name of a flag's
// value: prose there makes "--approve device approve".
func TestPlaceholdersOfFlags(t *testing.T) {
	plain := regexp.MustCompile(`^[A-Z][A-Z:=]*$`)
	var walk func(path string, commands []*cli.Command)
	walk = func(path string, commands []*cli.Command) {
		for _, c := range commands {
			for _, f := range c.Flags {
				usage := f.(interface{ GetUsage() string }).GetUsage()
				_, rest, quoted := strings.Cut(usage, "`")
				word, _, _ := strings.Cut(rest, "`")
				if isBool(f) == quoted || quoted && !plain.MatchString(word) {
					t.Errorf("%s %s --%s: %s", path, c.Name, f.Names()[0], usage)
				}
			}
			walk(path+" "+c.Name, c.Subcommands)
		}
	}
	walk("sallyport", newApp(stdio{}).Commands)
}

func TestExamplesLoad(t *testing.T) {
	files, err := filepath.Glob("../../deploy/*.example.yaml")
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		var out, errs strings.Builder
		code := run(t.Context(), []string{"sallyport", "validate", f}, stdio{out: &out, err: &errs})
		kind, _, _ := strings.Cut(filepath.Base(f), ".")
		if code != 0 || !strings.HasSuffix(out.String(), "fine ("+kind+")\n") {
			t.Errorf("%s: exit code %d\n%s%s", f, code, out.String(), errs.String())
		}
	}
}

// The commands of README and the guides exist with their flags.
func TestREADMECommandsParse(t *testing.T) {
	guides, err := filepath.Glob("../../deploy/*.md")
	if err != nil || len(guides) < 3 {
		t.Fatalf("guides %v, %v", guides, err)
	}
	app, n := newApp(stdio{}), 0
	for _, file := range append(guides, "../../README.md") {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			_, cmd, ok := strings.Cut(line, "$  sallyport ")
			if !ok {
				_, cmd, ok = strings.Cut(line, "$ sallyport ")
			}
			if !ok {
				_, cmd, _ = strings.Cut(line, "`sallyport ")
				cmd, _, ok = strings.Cut(cmd, "`") // one that goes on in the next line is left out
				cmd = strings.NewReplacer("'", "", "…", "", " |", "").Replace(cmd)
			}
			if !ok || !strings.Contains(cmd, " ") {
				continue
			}
			cmd, _, _ = strings.Cut(cmd, "  ")
			if _, err := arrange(app, append([]string{"sallyport"}, strings.Fields(cmd)...)); err != nil {
				t.Errorf("%s: %s: %v", filepath.Base(file), strings.TrimSpace(line), err)
			}
			n++
		}
	}
	if n < 25 {
		t.Errorf("only %d commands found", n)
	}
}
