package main

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport/cmd/sallyport/button"
	"github.com/sallyport/sallyport/cmd/sallyport/configfile"
)

// Exit codes (DESIGN §8): a supervisor can tell whether trying again helps.
const (
	exitFailed      = 1
	exitUsage       = 2  // usage or configuration: do not restart
	exitUnreachable = 69 // EX_UNAVAILABLE: try again
	exitRefused     = 77 // EX_NOPERM: the other side says no
)

// A failure is an error with its exit code and what to do about it: one
// sentence, or an example to type.
type failure struct {
	code int
	err  error
	hint string
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func usageError(hint, format string, args ...any) error {
	return &failure{exitUsage, fmt.Errorf(format, args...), hint}
}

func failed(code int, hint string, err error) error { return &failure{code, err, hint} }

// printError writes what happened on one line that names the program, and
// below it, indented, the rest and what to do. It returns the exit code.
func printError(w io.Writer, err error) int { return printErrorOf(w, err, nil) }

// printErrorOf is printError for the failure of a command line: what it says
// to type next is about the same --data.
func printErrorOf(w io.Writer, err error, args []string) int {
	code, hint := classify(err)
	text := err.Error()
	if hint != "" {
		text += "\n" + sentence(hint)
	}
	text = printableLines(repeatData(text, args))
	first, rest, more := strings.Cut(strings.TrimRight(text, "\n"), "\n")
	fmt.Fprintf(w, "sallyport: %s\n", first)
	if more {
		fmt.Fprintf(w, "  %s\n", strings.ReplaceAll(rest, "\n", "\n  "))
	}
	return code
}

// printableLines keeps an error, which repeats what the other side said, from
// acting on the terminal. Ends of lines and tabs stay: many errors have some.
func printableLines(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		cells := strings.Split(line, "\t")
		for j := range cells {
			cells[j] = button.Printable(cells[j])
		}
		lines[i] = strings.Join(cells, "\t")
	}
	return strings.Join(lines, "\n")
}

// What relay and agent say to type is written without --data, which they do
// not know. The commands are those of the same machine.
var (
	ownersCommand = regexp.MustCompile(`sallyport (status|doctor|device (add|list|approve|deny|set|revoke|withdraw|clock)|relay (token|grant|ca|certs|dashboard|release|revoke))\b`)
	agentsCommand = regexp.MustCompile(`sallyport (status|doctor|agent (expose|unexpose|trust|untrust|pin|confirm-ca|found|log))\b`)
)

// repeatData puts the --data of a command line into the commands that a text
// names.
func repeatData(text string, args []string) string {
	dir := ""
	for i, arg := range args {
		name, value, joined := strings.Cut(arg, "=")
		if arg == "--" {
			break
		}
		if name != "--data" && name != "-data" {
			continue
		}
		if dir = value; !joined && i+1 < len(args) {
			dir = args[i+1]
		}
	}
	if dir == "" {
		return text
	}
	command := ownersCommand
	if args[1] == "agent" {
		command = agentsCommand
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if !strings.Contains(line, "--data") {
			lines[i] = command.ReplaceAllStringFunc(line, func(words string) string { return words + " --data " + quoted(dir) })
		}
	}
	return strings.Join(lines, "\n")
}

// sentence begins a hint with a capital letter, unless with something to type.
func sentence(hint string) string {
	if strings.HasPrefix(hint, "sallyport ") {
		return hint
	}
	r, n := utf8.DecodeRuneInString(hint)
	return string(unicode.ToUpper(r)) + hint[n:]
}

// classify finds the exit code and the hint of an error.
func classify(err error) (code int, hint string) {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code, f.hint
	}
	if _, ok := errors.AsType[*configfile.Faults](err); ok {
		return exitUsage, ""
	}
	return classifyWired(err)
}
