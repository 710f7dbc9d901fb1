package main

import (
	"fmt"
	goio "io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/relay/admin"
)

// ways are how a device can be added; without any of them by a link.
var ways = []string{"csr", "pem", "p12", "token"}

// goesWith names the flags of `device add` that only some ways know; "link"
// is the way without a flag.
var goesWith = map[string][]string{
	"password-file": {"p12"}, "modern": {"p12"}, "path": {"token"}, "out": {"csr", "token"}, "approve": {"link"}, "no-approve": {"link"}, "ttl": {"link"},
	"admin": {"link", "csr", "pem", "p12"},
}

func deviceAdd(c *cli.Context, io stdio) error {
	if c.NArg() != 1 {
		return usageError("for example: sallyport device add anna-phone", "device add takes one NAME")
	}
	way, err := wayOf(c)
	if err != nil {
		return err
	}
	until, err := readUntil(c, "write how long from now, such as --until 48h, or a day to come")
	if err != nil {
		return err
	}
	if c.Duration("ttl") < time.Second {
		return usageError("write a duration such as --ttl 15m", "--ttl: %v is too short", c.Duration("ttl"))
	}
	if err := writable(c); err != nil {
		return err
	}
	switch way {
	case "csr":
		return deviceAddCSR(c, io, until)
	case "pem", "p12":
		return deviceAddHere(c, io, until)
	case "token":
		return deviceAddToken(c, io, until)
	}
	return deviceInvite(c, io, until)
}

// wayOf finds the way, and refuses flags that would do nothing on it.
func wayOf(c *cli.Context) (string, error) {
	way := "link"
	for _, f := range ways {
		if !c.IsSet(f) {
			continue
		}
		if way != "link" {
			return "", usageError("without any of them it prints a link", "device add takes one of --csr, --pem, --p12 and --token, not --%s and --%s", way, f)
		}
		way = f
	}
	for _, f := range []string{"password-file", "modern", "path", "out", "approve", "no-approve", "ttl", "admin"} {
		fits := goesWith[f]
		if !c.IsSet(f) || slices.Contains(fits, way) {
			continue
		}
		switch {
		case fits[0] == "link" && len(fits) == 1:
			return "", usageError("", "--%s goes with a link only, not with --%s", f, way)
		case f == "admin":
			return "", usageError("the dashboard wants a certificate", "--admin does not go with --token")
		}
		return "", usageError("", "--%s goes with --%s only", f, strings.Join(fits, " and --"))
	}
	return way, fitsHome(c, way)
}

// deviceInvite prints the link alone on stdout, so that it can be sent on; what
// a person needs beside it goes to stderr.
func deviceInvite(c *cli.Context, io stdio, until time.Time) error {
	name := c.Args().First()
	k := keeperOf(c)
	earlier := name != "" && linkWaits(c, k, name)
	inv, err := k.Invite(c.Context, admin.InviteRequest{
		Name: name, Hosts: c.StringSlice("hosts"), Until: until, TTL: int64(c.Duration("ttl") / time.Second),
		Admin: c.Bool("admin"), Approve: k.approves(c) || name == "",
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(io.err, "open this on %s, once, until %s; the key is made there:\n", firstOf(name, "the device"), moment(inv.Expires))
	fmt.Fprintln(io.out, inv.Link)
	if isTerminal(io.err) {
		if err := showQR(io.err, inv.Link); err != nil {
			return err
		}
	}
	if earlier {
		fmt.Fprintf(io.err, "the earlier link for %s is void\n", name)
	}
	if !until.IsZero() {
		fmt.Fprintf(io.err, "the device is shut out on %s\n", moment(until))
	}
	k.warnHosts(c, io, c.StringSlice("hosts"))
	at := k.at
	if name == "" {
		fmt.Fprintf(io.err, "whoever opens it first names the device, so that it always waits for you; who waits: sallyport device list%s\n"+
			"undo: sallyport device withdraw ID%s   (device list shows the ID, too)\n", at, at)
		return nil
	}
	if inv.Approve {
		fmt.Fprintf(io.err, "then compare the words on its screen and let it in: sallyport device approve %s%s\n", name, at)
	}
	if k.home && !inv.Approve {
		fmt.Fprint(io.err, "warning: it opens the home by itself, also to a relay that shows a false page\n")
	}
	fmt.Fprintf(io.err, "whoever opens it first becomes %s: send it to nobody else\n%s", name, undoDevice(c))
	return nil
}

// linkWaits reports whether nobody used the last link for a name yet: a new
// one voids it. Where that is not told, nothing is said of it.
func linkWaits(c *cli.Context, k keeper, name string) bool {
	links, _ := k.Invites(c.Context)
	return slices.ContainsFunc(links, func(l admin.WaitingInvite) bool { return l.Name == name })
}

// showQR draws a QR code that a phone can read from a terminal, dark or light.
func showQR(w goio.Writer, text string) error {
	fmt.Fprintln(w)
	if err := admin.QRTerminal(w, text); err != nil {
		return fmt.Errorf("QR code: %w", err)
	}
	fmt.Fprintln(w)
	return nil
}

// writable finds out before anything is issued whether the result can be
// written.
func writable(c *cli.Context) error {
	if dir := c.String("pem"); dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return usageError("give a directory that you may write to", "--pem: %w", err)
		}
		return nil
	}
	for _, flag := range []string{"p12", "password-file", "out"} {
		file := c.String(flag)
		if file == "" {
			continue
		}
		dir := filepath.Dir(file)
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return usageError("name a file in a directory that exists", "--%s: there is no directory %s", flag, dir)
		}
	}
	return nil
}

func undoDevice(c *cli.Context) string {
	return fmt.Sprintf("undo: sallyport device revoke %s%s\n", c.Args().First(), keeperOf(c).at)
}
