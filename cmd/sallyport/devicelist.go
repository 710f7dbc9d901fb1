package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/relay/admin"
)

func deviceList(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	client := admin.NewClient(c.String("data"))
	found, err := client.Devices(c.Context)
	if err != nil {
		return err
	}
	requests, err := client.Requests(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(io.out, struct {
			Schema   int                  `json:"schema"`
			Requests []admin.EnrolRequest `json:"requests"`
			Devices  []admin.Device       `json:"devices"`
		}{admin.Schema, list(requests), list(found)})
	}
	at := dataArg(c.String("data"), defaultRelayData)
	if len(found) == 0 && len(requests) == 0 {
		fmt.Fprintf(io.out, "no devices; add one with: sallyport device add NAME%s\n", at)
		return nil
	}
	printRequests(io.out, requests, at)
	if len(requests) > 0 && len(found) > 0 {
		fmt.Fprintln(io.out)
	}
	printDevices(io.out, found, time.Now())
	return nil
}

// printRequests shows what waits for the owner: he compares the words with
// those on the device, and knows the address and the browser.
func printRequests(out io.Writer, requests []admin.EnrolRequest, at string) {
	waiting := false
	for _, q := range requests {
		if q.State != "pending" {
			continue
		}
		waiting = true
		fmt.Fprintf(out, "WAITS  %s  %s, asks for %s", q.ID, cmp.Or(q.Name, "(no name)"), hostsText(q.Hosts))
		if q.Admin {
			fmt.Fprint(out, " and would be an administrator")
		}
		fmt.Fprintf(out, "\n       words: %s\n       from %s, %s ago, by %s", q.Words, cmp.Or(q.Source, "?"), ago(q.Created), cmp.Or(q.Via, "?"))
		if q.Agent != "" {
			fmt.Fprintf(out, ": %s", printable(q.Agent))
		}
		fmt.Fprintln(out)
	}
	if waiting {
		fmt.Fprintf(out, "       are these the words on its screen? then: sallyport device approve ID%s   otherwise: … deny ID\n", at)
	}
}

// printable keeps what a visitor says about himself from moving the cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func printDevices(out io.Writer, found []admin.Device, now time.Time) {
	if len(found) == 0 {
		return
	}
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATE\tMAY VISIT\tUNTIL\tLAST SEEN")
	for _, d := range found {
		seen := "never"
		if !d.LastSeen.IsZero() {
			seen = d.LastSeen.Local().Format(time.DateTime)
		}
		until := "no end"
		if end := d.Ends(); !end.IsZero() {
			until = end.Local().Format(time.DateTime)
		}
		visits := hostsText(d.Hosts)
		if d.TokenHost != "" {
			visits = d.Target + d.Path + " by " + d.TokenHost
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", d.Name, deviceState(d, now), visits, until, seen)
	}
	w.Flush()
}

// deviceState is one word, and what the owner should know beside it.
func deviceState(d admin.Device, now time.Time) string {
	end := d.Ends()
	switch {
	case d.Revoked:
		return "revoked"
	case !end.IsZero() && now.After(end):
		return "expired"
	}
	words := []string{"ok"}
	if d.TokenHost != "" {
		words[0] = "token"
	}
	if d.Admin {
		words = append(words, "admin")
	}
	switch {
	case d.Renewed:
		words = append(words, "renewed")
	case d.DueForRenewal:
		words = append(words, "renewal due")
	}
	return strings.Join(words, ", ")
}

func hostsText(hosts []string) string { return firstOf(strings.Join(hosts, ","), "all") }

func deviceApprove(c *cli.Context, io stdio) error {
	if c.NArg() != 1 {
		return usageError("`sallyport device list` shows who waits.", "device approve takes one ID or NAME")
	}
	q, err := admin.NewClient(c.String("data")).Approve(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	fmt.Fprintf(io.out, "%s may come in (%s)\nits words were: %s\nundo: sallyport device revoke %s%s\n",
		q.Name, hostsText(q.Hosts), q.Words, q.Name, dataArg(c.String("data"), defaultRelayData))
	return nil
}

func deviceDeny(c *cli.Context, io stdio) error {
	if c.NArg() != 1 {
		return usageError("`sallyport device list` shows who waits.", "device deny takes one ID or NAME")
	}
	q, err := admin.NewClient(c.String("data")).Deny(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	fmt.Fprintf(io.out, "%s is turned away\nundo: a new link, sallyport device add %s%s\n",
		firstOf(q.Name, q.ID), firstOf(q.Name, "NAME"), dataArg(c.String("data"), defaultRelayData))
	return nil
}

func deviceRevoke(c *cli.Context, io stdio) error {
	if c.NArg() != 1 {
		return usageError("`sallyport device list` shows the names.", "device revoke takes one NAME")
	}
	d, err := admin.NewClient(c.String("data")).RevokeDevice(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	done, anew := "is revoked and its connections are closed", "a new certificate"
	switch {
	case d.ID == "": // it was on its way only
		done, anew = "does not come in: its link and its request are void", "a new link"
	case d.TokenHost != "":
		anew = "a new secret"
	}
	fmt.Fprintf(io.out, "%s %s\nundo: %s, sallyport device add %s%s\n", d.Name, done, anew, d.Name, dataArg(c.String("data"), defaultRelayData))
	return nil
}

// deviceSet changes rights. Its undo line restores what was before.
func deviceSet(c *cli.Context, io stdio) error {
	if c.NArg() != 1 {
		return usageError("for example: sallyport device set anna-phone --hosts ha,photos", "device set takes one NAME")
	}
	for _, pair := range [][2]string{{"hosts", "all-hosts"}, {"until", "no-until"}, {"admin", "no-admin"}} {
		if c.IsSet(pair[0]) && c.IsSet(pair[1]) {
			return usageError("", "--%s and --%s exclude each other", pair[0], pair[1])
		}
	}
	if c.IsSet("until") && c.Duration("until") <= 0 {
		return usageError("to shut it out now: sallyport device revoke NAME", "--until: %v is in the past", c.Duration("until"))
	}
	change, ok := changeOf(c)
	if !ok {
		return usageError("`sallyport device set --help` lists what can be changed.", "device set: nothing to change")
	}
	client := admin.NewClient(c.String("data"))
	before, err := client.Devices(c.Context)
	if err != nil {
		return err
	}
	d, err := client.ChangeDevice(c.Context, c.Args().First(), change)
	if err != nil {
		return err
	}
	fmt.Fprintf(io.out, "%s may visit %s", d.Name, hostsText(d.Hosts))
	if end := d.Ends(); !end.IsZero() {
		fmt.Fprintf(io.out, ", until %s", end.Local().Format(time.DateTime))
	}
	if d.Admin {
		fmt.Fprint(io.out, ", and is an administrator")
	}
	fmt.Fprintf(io.out, "; this holds already\n")
	i := slices.IndexFunc(before, func(b admin.Device) bool { return b.ID == d.ID })
	if i >= 0 {
		fmt.Fprintf(io.out, "undo: sallyport device set %s%s%s\n", d.Name, undoChange(before[i], change, time.Now()), dataArg(c.String("data"), defaultRelayData))
	}
	return nil
}

func changeOf(c *cli.Context) (change admin.DeviceChange, some bool) {
	switch {
	case c.Bool("all-hosts"):
		change.Hosts = &[]string{}
	case c.IsSet("hosts"):
		hosts := c.StringSlice("hosts")
		change.Hosts = &hosts
	}
	switch {
	case c.Bool("no-until"):
		change.Until = &time.Time{}
	case c.IsSet("until"):
		end := untilFlag(c)
		change.Until = &end
	}
	if c.Bool("admin") || c.Bool("no-admin") {
		yes := c.Bool("admin")
		change.Admin = &yes
	}
	return change, change != admin.DeviceChange{}
}

// undoChange are the flags that bring back what a change took.
func undoChange(before admin.Device, change admin.DeviceChange, now time.Time) string {
	var b strings.Builder
	if change.Hosts != nil {
		if len(before.Hosts) == 0 {
			b.WriteString(" --all-hosts")
		} else {
			b.WriteString(" --hosts " + quoted(strings.Join(before.Hosts, ",")))
		}
	}
	if change.Until != nil {
		if left := before.Until.Sub(now).Round(time.Second); before.Until.IsZero() || left <= 0 {
			b.WriteString(" --no-until")
		} else {
			b.WriteString(" --until " + left.String())
		}
	}
	if change.Admin != nil {
		if before.Admin {
			b.WriteString(" --admin")
		} else {
			b.WriteString(" --no-admin")
		}
	}
	return b.String()
}
