package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// completeFlag asks for the words that may stand at the end of a command
// line. The scripts of `sallyport completion` call the program with it, so that
// they never fall behind it.
const completeFlag = "--generate-completion"

// askedToComplete returns the words to complete; the last one is being typed
// and may be empty.
func askedToComplete(args []string) (words []string, ok bool) {
	if len(args) < 2 || args[len(args)-1] != completeFlag {
		return nil, false
	}
	return args[1 : len(args)-1], true
}

// valuesOf are the fixed words that flags take.
var valuesOf = map[string][]string{
	"auth": {"require", "ask", "none"}, "tls": {"relay", "agent", "backend"}, "certs": {"acme", "files", "internal"},
	"decoy": {"off", "page"}, "log-format": {"text", "json"}, "log-level": {"debug", "info", "warn", "error"},
	"transport": {"quic", "tcp"}, "device-ca": {"home", "relay"}, "lan": {"on", "off"},
}

// candidates lists commands, flags, or the fixed words of a flag or argument.
// None means: a file or something that only the person knows.
func candidates(app *cli.App, words []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	before, typed := words[:len(words)-1], words[len(words)-1]
	at := place{path: "sallyport", commands: app.Commands}
	for len(before) > 0 && len(at.commands) > 0 {
		next := find(at.commands, before[0])
		if next == nil {
			return nil
		}
		at, before = at.below(next), before[1:]
	}
	var list []string
	switch flag := at.pending(before); {
	case flag != "":
		list = valuesOf[flag]
	case len(at.commands) > 0:
		for _, c := range at.commands {
			list = append(list, c.Name)
		}
	case strings.HasPrefix(typed, "-"):
		for _, f := range at.flags() {
			list = append(list, "--"+f.Names()[0])
		}
		list = append(list, "--help")
	case at.path == "sallyport completion":
		list = shells
	case at.path == "sallyport config schema":
		list = []string{"relay", "agent"}
	}
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return !strings.HasPrefix(s, typed) })
}

// pending is the flag whose value comes next, or "".
func (p place) pending(before []string) string {
	if len(before) == 0 {
		return ""
	}
	last := before[len(before)-1]
	name := strings.TrimLeft(last, "-")
	if f := p.flag(name); name != last && f != nil && !isBool(f) {
		return name
	}
	return ""
}
