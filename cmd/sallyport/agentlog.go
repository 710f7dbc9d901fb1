package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	goio "io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/mqttbridge/executor"
)

// agentLookers are the subcommands of `agent` that only look.
func agentLookers(io stdio) []*cli.Command {
	return []*cli.Command{
		{
			Name:  "found",
			Usage: "actions that devices announce at the home broker, to paste into the configuration",
			Description: "Read from Home Assistant's discovery topics. Nothing of it is offered to anybody\n" +
				"before it stands under actions: in the agent's configuration file.",
			OnUsageError: onUsageError,
			Flags:        []cli.Flag{dataFlag(defaultAgentData), jsonFlag()},
			Action:       func(c *cli.Context) error { return agentFound(c, io) },
		},
		{
			Name:  "log",
			Usage: "who sent which command and what came of it; checks that nothing was changed or cut out",
			Description: "Each line holds a hash of the one before. Exit code 1 when the chain is broken.\n" +
				"Who keeps the last hash elsewhere can tell a log that was cut at its end or written anew.",
			OnUsageError: onUsageError,
			Flags: []cli.Flag{
				dataFlag(defaultAgentData),
				&cli.IntFlag{Name: "last", Usage: "print the last `N` lines only; all are checked"},
				&cli.BoolFlag{Name: "json", Usage: "print the lines as they are"},
			},
			Action: func(c *cli.Context) error { return agentLog(c, io) },
		},
	}
}

func agentFound(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	client := agentClient(c.String("data"))
	found, err := client.Found(c.Context)
	if err != nil {
		return err
	}
	st, err := client.Status(c.Context)
	if err != nil {
		return err
	}
	if m := st.MQTT; m != nil && !m.BrokerConnected {
		why := ""
		if m.Error != "" {
			why = ": " + m.Error
		}
		return failed(exitFailed, "what devices announce is heard from it alone; see: sallyport status"+dataArg(c.String("data"), defaultAgentData),
			fmt.Errorf("the home broker %s is not connected%s", m.Broker, why))
	}
	// What has no name is a comment about what was left out.
	var skipped []control.Suggestion
	found = slices.DeleteFunc(found, func(s control.Suggestion) bool {
		if s.Name == "" {
			skipped = append(skipped, s)
		}
		return s.Name == ""
	})
	if c.Bool("json") {
		printSuggestions(io.err, skipped, "")
		return printJSON(io.out, struct {
			Schema int                  `json:"schema"`
			Found  []control.Suggestion `json:"found"`
		}{control.Schema, list(found)})
	}
	if len(found) == 0 {
		fmt.Fprintln(io.out, "# nothing that can be an action was announced at the home broker below homeassistant/")
	} else {
		fmt.Fprint(io.out, "# announced at the home broker; none of it is offered before it stands in the agent's configuration\nactions:\n")
	}
	printSuggestions(io.out, found, "  ")
	printSuggestions(io.out, skipped, "")
	return nil
}

func printSuggestions(out goio.Writer, list []control.Suggestion, indent string) {
	for _, s := range list {
		for line := range strings.Lines(strings.TrimRight(s.YAML, "\n") + "\n") {
			fmt.Fprint(out, indent+line)
		}
	}
}

// agentLog prints the command log of a data directory, whether an agent runs
// there or not.
func agentLog(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	file := filepath.Join(c.String("data"), "commands", "commands.log")
	raw, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		fmt.Fprintf(io.out, "no command came yet (there is no %s)\n", file)
		return nil
	case errors.Is(err, fs.ErrPermission):
		return failed(exitFailed, "run this as the user of the agent, for example with sudo", err)
	case err != nil:
		return err
	}
	// Checked as a whole first: a line may be added meanwhile, but none changes.
	n, head, broken := executor.VerifyLog(file)
	lines := bytes.SplitAfter(raw, []byte("\n"))
	if len(lines) > 0 && len(lines[len(lines)-1]) == 0 {
		lines = lines[:len(lines)-1]
	}
	if last := c.Int("last"); last > 0 && last < len(lines) {
		lines = lines[len(lines)-last:]
	}
	w := bufio.NewWriter(io.out)
	for _, line := range lines {
		if c.Bool("json") {
			w.Write(line)
		} else {
			printLogLine(w, line)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if broken != nil {
		return failed(exitFailed, "lines after the break prove nothing; compare with a copy of this file", fmt.Errorf("the chain of %s is broken after %d good lines: %w", file, n, broken))
	}
	fmt.Fprintf(io.err, "%d lines, unbroken; the last hash is %s\n", n, head)
	return nil
}

// printLogLine writes one line for people: when, what, and the rest by name.
func printLogLine(w goio.Writer, line []byte) {
	var entry struct {
		Time  time.Time      `json:"time"`
		Event string         `json:"event"`
		Attrs map[string]any `json:"attrs"`
	}
	if json.Unmarshal(line, &entry) != nil {
		fmt.Fprintf(w, "%q\n", bytes.TrimSpace(line))
		return
	}
	fmt.Fprintf(w, "%s  %-18s", entry.Time.Local().Format(time.DateTime), quotedLog(entry.Event))
	keys := slices.Sorted(maps.Keys(entry.Attrs))
	slices.SortStableFunc(keys, func(a, b string) int { return logRank(a) - logRank(b) })
	for _, key := range keys {
		v := fmt.Sprint(entry.Attrs[key])
		if len(v) > 12 && (key == "id" || key == "key") { // enough to tell them apart; --json has all of it
			v = v[:8] + "…"
		}
		if v != "" && !logHidden[key+"="+v] && !logHidden[key] {
			fmt.Fprintf(w, "  %s=%s", quotedLog(key), quotedLog(v))
		}
	}
	fmt.Fprintln(w)
}

// logOrder are the words that people look for first; what logHidden names is in
// --json only: the sender's clock proves nothing, and the event says the state.
var (
	logOrder  = []string{"device", "action", "value", "code", "reason"}
	logHidden = map[string]bool{"issued": true, "state": true, "signed=true": true}
)

func logRank(key string) int {
	if i := slices.Index(logOrder, key); i >= 0 {
		return i
	}
	return len(logOrder)
}

// quotedLog keeps what came from outside from acting on a terminal.
func quotedLog(v string) string {
	if strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r == '"' || r > '~' && r != '…' }) {
		return fmt.Sprintf("%q", v)
	}
	return v
}
