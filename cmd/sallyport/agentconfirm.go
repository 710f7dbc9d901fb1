package main

import (
	"fmt"
	"regexp"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/agent/control"
)

func confirmCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:      "confirm-ca",
		Usage:     "take another device CA of the relay, after comparing its fingerprint",
		ArgsUsage: "FINGERPRINT",
		Description: "This home keeps to the CA that it met first: whoever has another one could let devices in here.\n" +
			"Confirm only what `sallyport relay ca --device` shows on the relay's machine, for a change that its owner made.\n" +
			"The fingerprint of the CA in force takes an older list of devices, as after the relay was restored from a backup.",
		OnUsageError: onUsageError,
		Flags:        []cli.Flag{dataFlag(defaultAgentData)},
		Action:       func(c *cli.Context) error { return agentConfirm(c, io) },
	}
}

func agentConfirm(c *cli.Context, io stdio) error {
	at := dataArg(c.String("data"), defaultAgentData)
	if c.NArg() != 1 {
		return usageError("`sallyport status"+at+"` shows the one that waits, if there is one", "agent confirm-ca takes one FINGERPRINT")
	}
	client := agentClient(c.String("data"))
	st, err := client.Status(c.Context)
	if err != nil {
		return err
	}
	before := listOf(st)
	if err := client.ConfirmCA(c.Context, c.Args().First()); err != nil {
		return err
	}
	if before == nil || before.Pending == "" {
		fmt.Fprintln(io.out, "nothing changed: nothing waits for it")
		return nil
	}
	if before.Pending == before.CA {
		fmt.Fprintln(io.out, "the older list of devices is in force")
		return nil
	}
	fmt.Fprintf(io.out, "the relay's new device CA is in force: its devices come in, those of the one before do not\n"+
		"undo: when the relay shows the one before again: sallyport agent confirm-ca %s%s\n", before.CA, at)
	return nil
}

// listOf is the relay's list of devices as the agent has it; nil: it has none.
func listOf(st control.Status) *control.DeviceList {
	if st.EndToEnd == nil {
		return nil
	}
	return st.EndToEnd.List
}

var hexDigits = regexp.MustCompile(`^[0-9a-f]{64}$`)

// pendingCA is what waits for a person, and the command that takes it.
func pendingCA(l *control.DeviceList, at string) string {
	if l == nil || !hexDigits.MatchString(l.Pending) { // it becomes a command to type
		return ""
	}
	command := "sallyport agent confirm-ca " + l.Pending + at
	if l.Pending == l.CA {
		return "the relay shows an older list of devices than this home had before; it is not taken.\n  " +
			"After its owner restored it from a backup: " + command
	}
	return "the relay shows another device CA; it is not taken, for whoever has it could let devices in here.\n  " +
		"If its owner made it, and `sallyport relay ca --device` there shows the same digits: " + command
}
