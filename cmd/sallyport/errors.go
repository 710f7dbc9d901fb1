package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

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
func printError(w io.Writer, err error) int {
	code, hint := classify(err)
	text := err.Error()
	if hint != "" {
		text += "\n" + sentence(hint)
	}
	first, rest, more := strings.Cut(strings.TrimRight(text, "\n"), "\n")
	fmt.Fprintf(w, "sallyport: %s\n", first)
	if more {
		fmt.Fprintf(w, "  %s\n", strings.ReplaceAll(rest, "\n", "\n  "))
	}
	return code
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
