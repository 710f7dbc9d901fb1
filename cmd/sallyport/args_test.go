package main

import (
	"slices"
	"strings"
	"testing"
)

// What a command says to type next is about the same directory.
func TestHintsKeepTheDirectory(t *testing.T) {
	owner := []string{"sallyport", "device", "revoke", "--data", "my dir", "--", "x"}
	home := []string{"sallyport", "agent", "expose", "--data", "a", "--", "x", "y"}
	for _, c := range []struct {
		args       []string
		text, want string
	}{
		{owner, "no\nSee: sallyport device list", "no\nSee: sallyport device list --data 'my dir'"},
		{owner, "`sallyport device add NAME`", "`sallyport device add --data 'my dir' NAME`"},
		{owner, "sallyport status shows, sallyport relay token makes", "sallyport status --data 'my dir' shows, sallyport relay token --data 'my dir' makes"},
		{[]string{"sallyport", "relay", "revoke", "--data=r", "--", "--data"}, "sallyport status", "sallyport status --data r"},
		{owner, "sallyport status --data z", "sallyport status --data z"},
		{owner, "sallyport device renew DIR, sallyport agent up TOKEN", "sallyport device renew DIR, sallyport agent up TOKEN"}, // on other machines
		{home, "sallyport status; sallyport relay token", "sallyport status --data a; sallyport relay token"},
		{[]string{"sallyport", "status"}, "sallyport status", "sallyport status"},
		{nil, "sallyport status", "sallyport status"},
	} {
		if got := repeatData(c.text, c.args); got != c.want {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
}

func TestArrange(t *testing.T) {
	for typed, want := range map[string]string{
		"":                                   "",
		"help":                               "--help",
		"-h":                                 "--help",
		"--version":                          "version",
		"version":                            "version",
		"relay":                              "relay",
		"relay up --domain d":                "relay up --domain d",
		"device add n --p12 f":               "device add --p12 f -- n",
		"device add --p12=f n":               "device add --p12=f -- n",
		"device add -p12 f n":                "device add -p12 f -- n", // one hyphen is as good as two
		"status --json --data d":             "status --json --data d",
		"agent up tok --expose a=b":          "agent up --expose a=b -- tok",
		"agent up -":                         "agent up -- -",
		"agent up - --data d":                "agent up --data d -- -",
		"agent expose a -- -b":               "agent expose -- a -b",
		"agent expose -- a --host":           "agent expose -- a --host",
		"agent expose a b --host h --http2":  "agent expose --host h --http2 -- a b",
		"device add n --until -1h --pem .":   "device add --until -1h --pem . -- n",
		"device add n --p12 -odd-name":       "device add --p12 -odd-name -- n",
		"device add n --p12=--pem":           "device add --p12=--pem -- n",
		"help relay up":                      "relay up --help",
		"relay help up":                      "relay up --help",
		"relay up --domain d --help":         "relay up --help",
		"agent up sp1-x -h":                  "agent up --help",
		"relay token --hosts a --hosts b,c ": "relay token --hosts a --hosts b,c",
	} {
		got, err := arrange(newApp(stdio{}), strings.Fields("sallyport "+typed))
		if want := strings.Fields("sallyport " + want); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %q, %v, want %q", typed, got, err, want)
		}
	}
}

func TestArrangeRefuses(t *testing.T) {
	for typed, want := range map[string]string{
		"rellay":                        "`sallyport relay`?",
		"--data d status":               "COMMAND --data",
		"relay --data=d up":             "`sallyport relay COMMAND --data`",
		"device lst":                    "`sallyport device list`?",
		"device add n --p21 f":          "--p12?",
		"device list --jsn":             "--json?",
		"device add n --p12":            "--p12 wants a value",
		"device add n --p12 -- x":       "--p12 wants a value",
		"device add n --p12 --pem .":    "--pem follows",
		"status -xyz":                   "has no flag -xyz",
		"status --secret=sp1-abcdefghi": "has no flag --secret",
		"help nothing":                  "no command",
	} {
		_, err := arrange(newApp(stdio{}), strings.Fields("sallyport "+typed))
		if err == nil {
			t.Errorf("%q is taken", typed)
			continue
		}
		var b strings.Builder
		if code := printError(&b, err); code != exitUsage || !strings.Contains(b.String(), want) {
			t.Errorf("%q: exit code %d, %s\nwant %q in it", typed, code, b.String(), want)
		}
		if strings.Contains(b.String(), "abcdefghi") {
			t.Errorf("%q: the value of an unknown flag is repeated: %s", typed, b.String())
		}
	}
}

// Whatever is typed, the program stays its own first word and nothing panics.
func FuzzArrange(f *testing.F) {
	f.Add("device add n --p12 f")
	f.Add("agent expose a -- --b")
	f.Add("help help -h relay")
	f.Fuzz(func(t *testing.T, line string) {
		args := append([]string{"sallyport"}, strings.Fields(line)...)
		got, err := arrange(newApp(stdio{}), args)
		if err == nil && (len(got) == 0 || got[0] != "sallyport") {
			t.Errorf("%q became %q", args, got)
		}
	})
}

func TestPrintError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
		code int
	}{
		{usageError("", "no"), "sallyport: no\n", 2},
		{usageError("write it so", "no"), "sallyport: no\n  Write it so\n", 2},
		{usageError("sallyport status shows it", "no"), "sallyport: no\n  sallyport status shows it\n", 2},
		{failed(77, "ask again", usageError("", "a: b\nFirst hint.")), "sallyport: a: b\n  First hint.\n  Ask again\n", 77},
	} {
		var b strings.Builder
		if code := printError(&b, c.err); code != c.code || b.String() != c.want {
			t.Errorf("got %d %q, want %d %q", code, b.String(), c.code, c.want)
		}
	}
}

func TestCandidates(t *testing.T) {
	for typed, want := range map[string]string{
		"re":                          "relay",
		"relay|":                      "up token grant ca certs dashboard release revoke",
		"status|--":                   "--data --json --help",
		"agent|expose|n|t|--auth|":    "require ask none",
		"agent|expose|n|t|--auth|r":   "require",
		"agent|up|--transport|":       "quic tcp",
		"completion|":                 "bash zsh fish powershell",
		"config|schema|a":             "agent",
		"device|add|--p12|":           "", // a file
		"nothing|":                    "",
		"relay|up|--log-format|text|": "",
	} {
		if got := candidates(newApp(stdio{}), strings.Split(typed, "|")); strings.Join(got, " ") != want {
			t.Errorf("%q: got %q, want %q", typed, got, want)
		}
	}
}
