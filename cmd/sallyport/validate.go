package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/cmd/sallyport/configfile"
)

func validateCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:         "validate",
		Usage:        "check a configuration file; lists every mistake with its place, exit code 2",
		ArgsUsage:    "FILE",
		Description:  "Whether FILE is a relay's or an agent's is told by its keys; --relay and --agent decide when that is not clear.",
		OnUsageError: onUsageError,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "relay", Usage: "FILE is a relay's"},
			&cli.BoolFlag{Name: "agent", Usage: "FILE is an agent's"},
		},
		Action: func(c *cli.Context) error { return validateFile(c, io) },
	}
}

func validateFile(c *cli.Context, io stdio) error {
	if c.NArg() != 1 {
		return usageError("for example: sallyport validate /etc/sallyport/relay.yaml", "validate takes one FILE")
	}
	if c.Bool("relay") && c.Bool("agent") {
		return usageError("", "--relay and --agent exclude each other")
	}
	name := c.Args().First()
	kind := "relay"
	if c.Bool("agent") || !c.Bool("relay") && looksLikeAgent(name) {
		kind = "agent"
	}
	// The same loading as `up`, with its defaults and without its flags.
	flags := relayFlags()
	load := func(c *cli.Context) error { _, _, err := loadRelay(c); return err }
	if kind == "agent" {
		flags = agentFlags()
		load = func(c *cli.Context) error { _, _, err := loadAgent(c); return err }
	}
	app := &cli.App{
		Name: "validate", Flags: flags, HideHelp: true, Writer: io.out, ErrWriter: io.err,
		ExitErrHandler: func(*cli.Context, error) {}, Action: load,
	}
	if err := app.RunContext(c.Context, []string{"validate", "--config", name}); err != nil {
		return err
	}
	fmt.Fprintf(io.out, "%s: fine (%s)\n", name, kind)
	return nil
}

// looksLikeAgent decides by the keys that only one of the two has.
func looksLikeAgent(name string) bool {
	var keys map[string]any
	if !configfile.Keys(name, &keys) {
		return strings.Contains(name, "agent")
	}
	_, services := keys["services"]
	_, token := keys["token_file"]
	_, actions := keys["actions"]
	_, home := keys["end_to_end"]
	mqtt, _ := keys["mqtt"].(map[string]any)
	_, broker := mqtt["broker"]
	_, topics := mqtt["topics"]
	_, domain := keys["domain"]
	return (services || token || actions || home || broker || topics) && !domain
}

func configCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:         "config",
		Usage:        "about configuration files",
		OnUsageError: onUsageError,
		Subcommands: []*cli.Command{{
			Name:         "schema",
			Usage:        "print the JSON Schema of a configuration file, for editors",
			ArgsUsage:    "relay|agent",
			Description:  "In the file's first line:  # yaml-language-server: $schema=relay.schema.json",
			OnUsageError: onUsageError,
			Action: func(c *cli.Context) error {
				switch c.Args().First() {
				case "relay":
					_, err := io.out.Write(configfile.RelaySchema.JSON())
					return err
				case "agent":
					_, err := io.out.Write(configfile.AgentSchema.JSON())
					return err
				}
				return usageError("for example: sallyport config schema relay", "config schema takes relay or agent")
			},
		}},
	}
}
