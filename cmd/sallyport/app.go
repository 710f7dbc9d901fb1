package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
)

// stdio is what a command reads and writes; tests hand in their own.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// run is the whole program but for the process: it returns the exit code.
func run(ctx context.Context, args []string, io stdio) int {
	app := newApp(io)
	if words, ok := askedToComplete(args); ok {
		for _, c := range candidates(app, words) {
			fmt.Fprintln(io.out, c)
		}
		return 0
	}
	args, err := arrange(app, args)
	if err != nil {
		return printError(io.err, err)
	}
	if err = app.RunContext(ctx, args); err == nil {
		return 0
	}
	return printErrorOf(io.err, err, args)
}

// newApp is the table of commands.
func newApp(io stdio) *cli.App {
	return &cli.App{
		Name:            "sallyport",
		Usage:           "reach your home through a relay of your own: no inbound port, client certificates per device",
		Writer:          io.out,
		ErrWriter:       io.err,
		Reader:          io.in,
		HideVersion:     true,
		HideHelpCommand: true,                         // arrange knows "help"
		ExitErrHandler:  func(*cli.Context, error) {}, // run decides
		OnUsageError:    onUsageError,
		Action:          func(c *cli.Context) error { return cli.ShowAppHelp(c) },
		Commands: []*cli.Command{
			demoCommand(io),
			relayCommand(io),
			agentCommand(io),
			deviceCommand(io),
			connectCommand(io),
			commandCommand(io),
			statusCommand(io),
			doctorCommand(io),
			validateCommand(io),
			configCommand(io),
			completionCommand(io),
			manCommand(io),
			versionCommand(io),
		},
	}
}

func onUsageError(_ *cli.Context, err error, _ bool) error {
	return usageError("", "%w", err)
}

// noArgs refuses positional arguments that a command does not know.
func noArgs(c *cli.Context) error {
	if c.Args().Present() {
		return usageError("Add --help to see what it takes.", "unexpected argument %q", shown(c.Args().First()))
	}
	return nil
}

// shown is how an argument may be repeated in a message: a join token and the
// code of an enrolment link are secrets, and messages end in journals.
func shown(arg string) string {
	if strings.HasPrefix(arg, "sp1-") {
		return "sp1-…"
	}
	if link, code, ok := strings.Cut(arg, "#"); ok && code != "" {
		return link + "#…"
	}
	return arg
}

// isTerminal reports whether a stream is a terminal: secrets are printed only
// there, and only there somebody sees a prompt.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	if err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull) // a character device, too
	return err == nil && !os.SameFile(st, null)
}
