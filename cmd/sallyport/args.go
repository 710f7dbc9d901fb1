package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/cmd/sallyport/configfile"
)

// arrange reads the command line the way people write it and hands the cli
// package what it understands: flags in front of arguments, as that package
// stops looking for flags at the first argument. Words that do not exist are
// refused here, with the nearest one that does:
//
//	device add NAME --p12 FILE  →  device add --p12 FILE -- NAME
//	help relay up               →  relay up --help
//
// Everything after "--" is an argument, also what begins with a hyphen.
func arrange(app *cli.App, args []string) ([]string, error) {
	if len(args) < 2 {
		return args, nil
	}
	head, rest, help := []string{args[0]}, args[1:], false
	at := place{path: "sallyport", commands: app.Commands}
	for len(rest) > 0 && len(at.commands) > 0 {
		word := rest[0]
		switch {
		case isHelp(word) || word == "help" || word == "h":
			help, rest = true, rest[1:]
			continue
		case at.command == nil && (word == "--version" || word == "-v"):
			return []string{args[0], "version"}, nil
		case strings.HasPrefix(word, "-"):
			return nil, at.misplaced(word)
		}
		next := find(at.commands, word)
		if next == nil {
			return nil, at.unknownCommand(word)
		}
		at, head, rest = at.below(next), append(head, next.Name), rest[1:]
	}
	if help {
		return append(head, "--help"), nil
	}
	flags, words, err := at.sort(rest)
	if err != nil {
		return nil, err
	}
	head = append(head, flags...)
	if len(words) > 0 {
		head = append(append(head, "--"), words...)
	}
	return head, nil
}

// A place is how far the words of a command line have led.
type place struct {
	path     string       // "sallyport relay"
	command  *cli.Command // nil: none yet
	commands []*cli.Command
}

func (p place) below(c *cli.Command) place {
	return place{path: p.path + " " + c.Name, command: c, commands: c.Subcommands}
}

func (p place) flags() []cli.Flag {
	if p.command == nil {
		return nil
	}
	return p.command.Flags
}

// sort parts flags with their values from arguments.
func (p place) sort(rest []string) (flags, words []string, err error) {
	for len(rest) > 0 {
		word := rest[0]
		rest = rest[1:]
		switch {
		case word == "--":
			return flags, append(words, rest...), nil
		case len(word) < 2 || word[0] != '-':
			words = append(words, word)
			continue
		case isHelp(word):
			return []string{"--help"}, nil, nil
		}
		name, _, joined := strings.Cut(strings.TrimLeft(word, "-"), "=")
		flag := p.flag(name)
		if flag == nil {
			return nil, nil, p.unknownFlag(word)
		}
		flags = append(flags, word)
		if joined || isBool(flag) {
			continue
		}
		if len(rest) == 0 || rest[0] == "--" {
			return nil, nil, usageError("", "--%s wants a value", name)
		}
		// A value may begin with a hyphen, but a flag in its place is a slip.
		if other := strings.TrimLeft(rest[0], "-"); rest[0] != other && p.flag(other) != nil {
			return nil, nil, usageError("write --"+name+"="+rest[0]+" if that is its value",
				"--%s wants a value, but %s follows", name, rest[0])
		}
		flags, rest = append(flags, rest[0]), rest[1:]
	}
	return flags, words, nil
}

func (p place) flag(name string) cli.Flag {
	for _, f := range p.flags() {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func isBool(f cli.Flag) bool {
	_, ok := f.(*cli.BoolFlag)
	return ok
}

func isHelp(word string) bool { return word == "--help" || word == "-h" || word == "-help" }

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

func (p place) unknownCommand(word string) error {
	var known []string
	for _, c := range p.commands {
		known = append(known, c.Name)
	}
	hint := "`" + p.path + " --help` lists the commands."
	if s := configfile.Nearest(word, known); s != "" {
		hint = "Did you mean `" + p.path + " " + s + "`?"
	}
	return usageError(hint, "there is no command `%s %s`", p.path, shown(word))
}

func (p place) unknownFlag(word string) error {
	name, _, _ := strings.Cut(word, "=")
	var known []string
	for _, f := range p.flags() {
		known = append(known, f.Names()...)
	}
	hint := "`" + p.path + " --help` lists its flags."
	if s := configfile.Nearest(strings.TrimLeft(name, "-"), known); s != "" {
		hint = "Did you mean --" + s + "?"
	}
	return usageError(hint, "`%s` has no flag %s", p.path, name)
}

// misplaced explains a flag in front of the command that it belongs to.
func (p place) misplaced(word string) error {
	name, _, _ := strings.Cut(word, "=")
	return usageError("`"+p.path+" --help` lists the commands.", "the command comes first, then its flags: `%s COMMAND %s`", p.path, name)
}
