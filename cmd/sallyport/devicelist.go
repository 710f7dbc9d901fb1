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

	"github.com/sallyport/sallyport/cmd/sallyport/button"
	"github.com/sallyport/sallyport/relay/admin"
)

func deviceList(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	k := keeperOf(c)
	found, err := k.Devices(c.Context)
	if err != nil {
		return err
	}
	requests, err := k.Requests(c.Context)
	if err != nil {
		return err
	}
	links, err := k.Invites(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(io.out, struct {
			Schema   int                   `json:"schema"`
			Requests []admin.EnrolRequest  `json:"requests"`
			Invites  []admin.WaitingInvite `json:"invites"` // links that wait
			Devices  []admin.Device        `json:"devices"`
		}{admin.Schema, list(requests), list(links), list(found)})
	}
	at := k.at
	if len(found) == 0 && len(requests) == 0 && len(links) == 0 {
		fmt.Fprintf(io.out, "no devices; add one with: sallyport device add NAME%s\n", at)
		return nil
	}
	printRequests(io.out, requests, at)
	if len(requests) > 0 && len(links) > 0 {
		fmt.Fprintln(io.out)
	}
	printLinks(io.out, links, at)
	if len(requests)+len(links) > 0 && len(found) > 0 {
		fmt.Fprintln(io.out)
	}
	printDevices(io.out, found, time.Now())
	return nil
}

// printRequests shows what waits for the owner: he compares the words with
// those on the device, and knows the address and the browser.
func printRequests(out io.Writer, requests []admin.EnrolRequest, at string) {
	waiting, words := false, false
	for _, q := range requests {
		if q.State != "pending" {
			continue
		}
		waiting = true
		fmt.Fprintf(out, "WAITS  %s  %s, asks for %s", q.ID, cmp.Or(q.Name, "(no name)"), hostsText(q.Hosts))
		if q.Admin {
			fmt.Fprint(out, " and would be an administrator")
		}
		if q.ShowsWords() {
			words = true
			fmt.Fprintf(out, "\n       words: %s", q.Words)
		} else {
			fmt.Fprintf(out, "\n       key: %s\n       this device cannot show the words: approve only if you started it yourself just now", cmp.Or(q.Fingerprint(), "?"))
		}
		fmt.Fprintf(out, "\n       from %s, %s ago, by %s", cmp.Or(q.Source, "?"), ago(q.Created), cmp.Or(q.Via, "?"))
		if q.Agent != "" {
			fmt.Fprintf(out, ": %s", button.Printable(q.Agent))
		}
		fmt.Fprintln(out)
	}
	switch {
	case words:
		fmt.Fprintf(out, "       are these the words on its screen? then: sallyport device approve ID%s   otherwise: … deny ID\n", at)
	case waiting:
		fmt.Fprintf(out, "       is it yours? then: sallyport device approve ID%s   otherwise: … deny ID\n", at)
	}
}

func printDevices(out io.Writer, found []admin.Device, now time.Time) {
	if len(found) == 0 {
		return
	}
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATE\tMAY VISIT\tUNTIL\tLAST SEEN")
	for _, d := range found {
		visits := hostsText(d.Hosts)
		if d.TokenHost != "" {
			visits = d.Target + d.Path + " by " + d.TokenHost
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", d.Name, deviceState(d, now), visits, untilText(d), seenText(d))
	}
	w.Flush()
}

func untilText(d admin.Device) string {
	if end := d.Ends(); !end.IsZero() {
		return moment(end)
	}
	return "no end"
}

func seenText(d admin.Device) string {
	if d.LastSeen.IsZero() {
		return "never"
	}
	return moment(d.LastSeen)
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
	k := keeperOf(c)
	if c.NArg() != 1 {
		return usageError("`sallyport device list"+k.at+"` shows who waits.", "device approve takes one ID or NAME")
	}
	id, err := k.compared(c, io)
	if err != nil {
		return err
	}
	q, err := k.Approve(c.Context, id)
	if err != nil {
		return err
	}
	sign := "words were: " + q.Words
	if !q.ShowsWords() {
		sign = "key was: " + cmp.Or(q.Fingerprint(), "?")
	}
	fmt.Fprintf(io.out, "%s may come in (%s)\nits %s\nundo: sallyport device revoke %s%s\n",
		q.Name, hostsText(q.Hosts), sign, q.Name, k.at)
	return nil
}

func deviceDeny(c *cli.Context, io stdio) error {
	k := keeperOf(c)
	if c.NArg() != 1 {
		return usageError("`sallyport device list"+k.at+"` shows who waits.", "device deny takes one ID or NAME")
	}
	q, err := k.Deny(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	fmt.Fprintf(io.out, "%s is turned away\n", firstOf(q.Name, q.ID))
	undoAgain(io.out, "a new link", rightsOfRequest(q), q.Name, k.at)
	return nil
}

func deviceRevoke(c *cli.Context, io stdio) error {
	k, name := keeperOf(c), c.Args().First()
	if c.NArg() != 1 {
		return usageError("`sallyport device list"+k.at+"` shows the names.", "device revoke takes one NAME")
	}
	had, known := k.onTheWay(c.Context, name)
	d, err := k.RevokeDevice(c.Context, name)
	if err != nil {
		return err
	}
	done, anew, pressed := "is revoked and its connections are closed", "a new certificate", false
	switch {
	case d.ID == "": // it was on its way only
		done, anew = "does not come in: its link and its request are void", "a new link"
	case d.TokenHost != "":
		had, known, anew = rightsOf(d), true, "a new secret"
	default:
		had, known, pressed = rightsOf(d), true, !k.home // commands come through the relay
	}
	fmt.Fprintf(io.out, "%s %s\n", d.Name, done)
	if known { // of what came and went meanwhile nobody knows the rights
		undoAgain(io.out, anew, had, d.Name, k.at)
	}
	if pressed { // homes are told; a new device of this name is trusted by nobody
		fmt.Fprintf(io.out, "its key for commands, if it had one, is not trusted at home any more; there `sallyport agent trust` shows it (%s)\n", d.Name)
	}
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
	k := keeperOf(c)
	at := k.at
	until, err := readUntil(c, "to shut it out now: sallyport device revoke NAME"+at)
	if err != nil {
		return err
	}
	change, ok := changeOf(c, until)
	if !ok {
		return usageError("`sallyport device set --help` lists what can be changed.", "device set: nothing to change")
	}
	before, err := k.Devices(c.Context)
	if err != nil {
		return err
	}
	d, err := k.ChangeDevice(c.Context, c.Args().First(), change)
	if err != nil {
		return err
	}
	fmt.Fprintf(io.out, "%s may visit %s", d.Name, hostsText(rightsOf(d).hosts))
	if end := d.Ends(); !end.IsZero() {
		fmt.Fprintf(io.out, ", until %s", moment(end))
	}
	switch {
	case d.Admin:
		fmt.Fprint(io.out, ", and is an administrator")
	case change.Admin != nil:
		fmt.Fprint(io.out, ", and is no administrator")
	}
	fmt.Fprintf(io.out, "; this holds already\n")
	if change.Hosts != nil {
		k.warnHosts(c, io, *change.Hosts)
	}
	if d.Admin && change.Admin != nil && k.relay != nil {
		warnAdminHost(c, io, k.relay)
	}
	i := slices.IndexFunc(before, func(b admin.Device) bool { return b.ID == d.ID })
	if i < 0 {
		return nil
	}
	if change.Until != nil && before[i].Ends().Equal(d.Ends()) {
		fmt.Fprintf(io.out, "its end is as it was%s\n", certificateEnds(d))
	}
	if undo := undoChange(before[i], d); undo != "" {
		fmt.Fprintf(io.out, "undo: sallyport device set %s%s%s\n", d.Name, undo, at)
	} else {
		fmt.Fprintln(io.out, "nothing changed: it was so already")
	}
	return nil
}

// certificateEnds explains an end that --no-until did not move: a guest's
// certificate was made for it.
func certificateEnds(d admin.Device) string {
	if !d.Until.IsZero() || d.NotAfter.IsZero() {
		return ""
	}
	return ": its certificate ends then"
}

// warnAdminHost tells that the right that was just given opens nothing, where
// the relay serves no dashboard to devices. It never fails, as warnHosts.
func warnAdminHost(c *cli.Context, io stdio, client *admin.Client) {
	st, err1 := client.Status(c.Context)
	certs, err2 := client.Certificates(c.Context) // of the relay's own hosts, too
	serves := func(label string) bool {
		return slices.ContainsFunc(certs, func(p admin.PublicCert) bool { return p.Host == label+"."+st.Domain })
	}
	if err1 == nil && err2 == nil && serves("enroll") && !serves("admin") {
		fmt.Fprintf(io.err, "warning: there is no dashboard at admin.%s now: start the relay with --admin-host (admin_host: true)\n", st.Domain)
	}
}

func changeOf(c *cli.Context, until time.Time) (change admin.DeviceChange, some bool) {
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
		change.Until = &until
	}
	if c.Bool("admin") || c.Bool("no-admin") {
		yes := c.Bool("admin")
		change.Admin = &yes
	}
	return change, change != admin.DeviceChange{}
}

// undoChange are the flags that bring back what a change took; "" where it
// changed nothing.
func undoChange(before, now admin.Device) string {
	var b strings.Builder
	was := rightsOf(before)
	if !slices.Equal(was.hosts, rightsOf(now).hosts) {
		if len(was.hosts) == 0 {
			b.WriteString(" --all-hosts")
		} else {
			b.WriteString(" --hosts " + quoted(strings.Join(was.hosts, ",")))
		}
	}
	if !before.Until.Equal(now.Until) {
		if before.Until.IsZero() {
			b.WriteString(" --no-until")
		} else {
			b.WriteString(" --until " + untilArg(before.Until))
		}
	}
	if before.Admin != now.Admin {
		if before.Admin {
			b.WriteString(" --admin")
		} else {
			b.WriteString(" --no-admin")
		}
	}
	return b.String()
}
