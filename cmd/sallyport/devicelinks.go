package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/relay/admin"
)

// printLinks shows the links that nobody used yet: each may still become a
// device, and the owner may not know of all of them.
func printLinks(out io.Writer, links []admin.WaitingInvite, at string) {
	if len(links) == 0 {
		return
	}
	fmt.Fprintf(out, "links that wait, used by nobody yet; void one: sallyport device withdraw ID%s\n", at)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tFOR\tMAY VISIT\tCOMES IN\tMADE BY\tUNTIL")
	for _, l := range links {
		comes := "at once"
		if l.Approve {
			comes = "if approved"
		}
		if l.Admin {
			comes += ", as admin"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s, %s ago\t%s\n", l.ID, firstOf(l.Name, "(any name)"), hostsText(l.Hosts), comes,
			firstOf(l.By, "?"), ago(l.Created), moment(l.Expires))
	}
	w.Flush()
}

func deviceWithdraw(c *cli.Context, io stdio) error {
	k := keeperOf(c)
	if c.NArg() != 1 {
		return usageError("`sallyport device list"+k.at+"` shows the links that wait.", "device withdraw takes one ID")
	}
	id := c.Args().First()
	links, _ := k.Invites(c.Context) // for undoing only
	if err := k.WithdrawInvite(c.Context, id); err != nil {
		return err
	}
	fmt.Fprintf(io.out, "link %s opens nothing any more\n", id)
	for _, l := range links {
		if l.ID == id {
			undoAgain(io.out, "a new link", rightsOfLink(l), l.Name, k.at)
		}
	}
	return nil
}

// deviceClock lets relay or home believe this machine's clock again.
func deviceClock(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	if !c.Bool("reset") {
		return usageError("see `sallyport device clock --help` for when to use it", "device clock: nothing to do without --reset")
	}
	if err := keeperOf(c).ResetClock(c.Context); err != nil {
		return err
	}
	fmt.Fprintf(io.out, "devices are judged by this machine's clock again; it says %s\nis that wrong? set it: timedatectl set-ntp true\n",
		moment(time.Now()))
	return nil
}
