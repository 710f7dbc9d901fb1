package main

import (
	"errors"
	"fmt"
	goio "io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/cmd/sallyport/configfile"
	"github.com/sallyport/sallyport/mqttbridge"
)

// agentCommandKeys are the subcommands of `agent` about whose keys are trusted.
func agentCommandKeys(io stdio) []*cli.Command {
	return []*cli.Command{
		{
			Name:      "trust",
			Usage:     "accept a device's key for commands after comparing words; without NAME: list the keys",
			ArgsUsage: "[NAME]",
			Description: "The same words must be shown here and on the device, or where `sallyport command` was typed.\n" +
				"They cover both keys: one that somebody swapped on the way has other words.",
			OnUsageError: onUsageError,
			Flags: []cli.Flag{
				dataFlag(defaultAgentData),
				&cli.StringFlag{Name: "words", Usage: "trust the key that has these `WORDS`, without asking: those that the device shows"},
				&cli.BoolFlag{Name: "yes", Usage: "trust without comparing: whoever owns the relay may have swapped the key"},
				jsonFlag(),
			},
			Action: func(c *cli.Context) error { return agentTrust(c, io) },
		},
		{
			Name:         "untrust",
			Usage:        "its commands do not run any more",
			ArgsUsage:    "NAME",
			OnUsageError: onUsageError,
			Flags:        []cli.Flag{dataFlag(defaultAgentData)},
			Action:       func(c *cli.Context) error { return agentUntrust(c, io) },
		},
		{
			Name:      "pin",
			Usage:     "set the PIN of ACTION, or of all that have none of their own",
			ArgsUsage: "[ACTION]",
			Description: "4 to 12 digits, asked twice and never shown; or from --pin-file. Only a hash is kept, and no wrong PIN is tried\n" +
				"more than five times in a row.",
			OnUsageError: onUsageError,
			Flags: []cli.Flag{
				dataFlag(defaultAgentData),
				&cli.StringFlag{Name: "pin-file", Usage: "read the PIN from `FILE`, - is stdin"},
				&cli.BoolFlag{Name: "remove", Usage: "forget it: what asks for a PIN and has none does not run"},
			},
			Action: func(c *cli.Context) error { return agentPIN(c, io) },
		},
		confirmCommand(io),
	}
}

func agentTrust(c *cli.Context, io stdio) error {
	if c.NArg() > 1 {
		return usageError("for example: sallyport agent trust anna-phone", "agent trust takes one NAME")
	}
	if c.String("words") != "" && c.Bool("yes") {
		return usageError("", "--words and --yes exclude each other")
	}
	client, name := agentClient(c.String("data")), c.Args().First()
	keys, err := client.Keys(c.Context)
	switch {
	case err != nil:
		return err
	case c.Bool("json"):
		return printJSON(io.out, struct {
			Schema int           `json:"schema"`
			Keys   []control.Key `json:"keys"`
		}{control.Schema, list(keys)})
	case name == "":
		return listKeys(io.out, keys, dataArg(c.String("data"), defaultAgentData))
	}
	at := dataArg(c.String("data"), defaultAgentData)
	key, err := chooseKey(keys, name, c.String("words"), at)
	if err != nil {
		return err
	}
	if key.Trusted {
		if err := client.Trust(c.Context, name, key.ID); err != nil { // lifts a lock
			return err
		}
		fmt.Fprintf(io.out, "%s is trusted already, with these words: %s\nIf it was locked out for wrong PINs, it may try again now.\n", name, key.Words)
		return nil
	}
	if !key.Withdrawn.IsZero() {
		fmt.Fprintf(io.err, "the relay revoked %s %s ago: trust this key only if that device is in your hands\n", name, ago(key.Withdrawn))
	}
	switch words := c.String("words"); {
	case words != "":
	case c.Bool("yes"):
		fmt.Fprintf(io.err, "warning: not compared with what %s shows: %s\n", name, key.Words)
	case !isTerminal(io.in):
		return usageError("give the words that the device shows: --words 'WORDS'", "nobody can be asked: stdin is no terminal")
	default:
		fmt.Fprintf(io.err, "%s wants to send commands, with a key seen first %s ago.\n"+
			"On its screen, or where `sallyport command` was typed, these words must stand:\n\n%s\n\n", name, ago(key.Since), inRows(key.Words))
		if err := confirmWords(c.Context, io, "are they the same there? type yes: "); err != nil {
			return err
		}
	}
	if err := client.Trust(c.Context, name, key.ID); err != nil {
		return err
	}
	fmt.Fprintf(io.out, "%s is trusted: its commands run here, as far as the actions allow\nundo: sallyport agent untrust %s%s\n",
		name, quoted(name), at)
	return nil
}

// chooseKey finds the key that is meant: the one that is trusted, or the one
// that waits.
func chooseKey(keys []control.Key, name, words, at string) (control.Key, error) {
	mine := slices.DeleteFunc(slices.Clone(keys), func(k control.Key) bool { return k.Device != name })
	if len(mine) == 0 {
		return control.Key{}, failed(exitFailed, "open the page at home.DOMAIN on it, or run `sallyport command` there: it offers its key; `sallyport agent trust"+at+"` lists those that wait",
			fmt.Errorf("no key of %s waits here", name))
	}
	if words != "" {
		i := slices.IndexFunc(mine, func(k control.Key) bool { return sameWords(words, k.Words) })
		if i < 0 {
			return control.Key{}, failed(exitRefused, "they must be those on the device itself; if they are, somebody has swapped its key on the way: trust none of those that wait",
				fmt.Errorf("no key of %s has these words", name))
		}
		return mine[i], nil
	}
	if i := slices.IndexFunc(mine, func(k control.Key) bool { return k.Trusted }); i >= 0 {
		return mine[i], nil
	}
	// One that was revoked is not taken by mistake for one that waits.
	live := slices.DeleteFunc(slices.Clone(mine), func(k control.Key) bool { return !k.Withdrawn.IsZero() })
	if len(live) > 0 {
		mine = live
	}
	if len(mine) > 1 {
		var lines []string
		for _, k := range mine {
			lines = append(lines, "  "+k.Words+"   (since "+ago(k.Since)+")")
		}
		return control.Key{}, failed(exitFailed, "say which by what the device shows: --words 'WORDS'",
			fmt.Errorf("several keys wait as %s, only one can be its own:\n%s", name, strings.Join(lines, "\n")))
	}
	return mine[0], nil
}

func listKeys(out goio.Writer, keys []control.Key, at string) error {
	if len(keys) == 0 {
		fmt.Fprintln(out, "no device has offered a key yet: open the page at home.DOMAIN on one, or run `sallyport command` there")
		return nil
	}
	waiting := 0
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "DEVICE\tSTATE\tWORDS\tSINCE\tSEEN")
	for _, k := range keys {
		state := "trusted"
		switch {
		case k.Trusted:
		case !k.Withdrawn.IsZero():
			state = "revoked " + ago(k.Withdrawn) + " ago"
		default:
			state, waiting = "waits", waiting+1
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", k.Device, state, k.Words, ago(k.Since), ago(k.Seen))
	}
	w.Flush()
	if waiting > 0 {
		fmt.Fprintf(out, "accept one: sallyport agent trust NAME%s\n", at)
	}
	return nil
}

func agentUntrust(c *cli.Context, io stdio) error {
	at := dataArg(c.String("data"), defaultAgentData)
	if c.NArg() != 1 {
		return usageError("`sallyport agent trust"+at+"` lists the keys.", "agent untrust takes one NAME")
	}
	name := c.Args().First()
	if err := agentClient(c.String("data")).Untrust(c.Context, name); err != nil {
		return err
	}
	fmt.Fprintf(io.out, "%s is not trusted any more: its commands are refused\n"+
		"undo: it offers its key with its next command; then: sallyport agent trust %s%s\n", name, quoted(name), at)
	return nil
}

func agentPIN(c *cli.Context, io stdio) error {
	if c.NArg() > 1 {
		return usageError("for example: sallyport agent pin garage", "agent pin takes one ACTION")
	}
	if c.Bool("remove") && c.String("pin-file") != "" {
		return usageError("", "--remove and --pin-file exclude each other")
	}
	action, at := c.Args().First(), dataArg(c.String("data"), defaultAgentData)
	client, of := agentClient(c.String("data")), " "+quoted(action)
	if action == "" {
		of = ""
	}
	if c.Bool("remove") {
		if err := client.SetPIN(c.Context, action, ""); err != nil {
			return err
		}
		// What still runs after this does so by the PIN for all.
		now := "%s has no PIN now"
		if st, err := client.Status(c.Context); err == nil && slices.ContainsFunc(st.Actions, func(a control.Action) bool {
			return a.Name == action && a.Confirm == mqttbridge.ConfirmPIN && a.Problem == ""
		}) {
			now = "%s has no PIN of its own now: the one for every action without its own still applies"
		}
		fmt.Fprintf(io.out, now+"\nundo: sallyport agent pin%s%s\n", firstOf(action, "an action without its own"), of, at)
		return nil
	}
	// Asked before anybody types: is an agent there, and the action?
	st, err := client.Status(c.Context)
	if err != nil {
		return err
	}
	if err := asksForPIN(st.Actions, action); err != nil {
		return err
	}
	pin, err := readPIN(c, io, "new PIN: ")
	if err != nil {
		return err
	}
	if c.String("pin-file") == "" {
		again, err := promptHidden(c.Context, io, "once more: ")
		if err != nil {
			return err
		}
		if again != pin {
			return failed(exitFailed, "", errors.New("the two are not the same; nothing was changed"))
		}
	}
	if err := client.SetPIN(c.Context, action, pin); err != nil {
		return err
	}
	fmt.Fprintf(io.out, "the PIN of %s is set\nundo: sallyport agent pin%s --remove%s\n", firstOf(action, "every action without its own"), of, at)
	return nil
}

// asksForPIN says what is wrong with an action that is to get a PIN; "" is all
// of them.
func asksForPIN(actions []control.Action, name string) error {
	if name == "" {
		return nil
	}
	var names []string
	for _, a := range actions {
		if a.Name == name && a.Confirm != mqttbridge.ConfirmPIN {
			return failed(exitRefused, "write confirm: pin into its configuration first", fmt.Errorf("the action %q asks for no PIN", name))
		}
		if a.Name == name {
			return nil
		}
		names = append(names, a.Name)
	}
	hint := "`actions:` in the agent's configuration declares them"
	if s := configfile.Nearest(name, names); s != "" {
		hint = "Did you mean " + s + "?"
	}
	return failed(exitRefused, hint, fmt.Errorf("this home has no action %q", name))
}
