package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/admin"
)

// deviceAddToken makes a secret for what cannot hold a certificate. The secret
// is alone on stdout, or in a file: it is shown once.
func deviceAddToken(c *cli.Context, io stdio, until time.Time) error {
	hosts := c.StringSlice("hosts")
	if len(hosts) != 1 {
		return usageError("for example: sallyport device add tv --token --hosts photos", "--token wants the one host that it is for in --hosts, and got %d", len(hosts))
	}
	t, err := admin.NewClient(c.String("data")).AddTokenDevice(c.Context, admin.TokenDeviceRequest{
		Name: c.Args().First(), Host: hosts[0], Path: c.String("path"), Until: until,
	})
	if err != nil {
		return err
	}
	if out := c.String("out"); out != "" {
		if err := pki.WriteFile(out, []byte(t.Secret+"\n"), 0o600); err != nil {
			return takeBack(c, err)
		}
	} else if _, err := fmt.Fprintln(io.out, t.Secret); err != nil {
		return takeBack(c, err)
	}
	fmt.Fprint(io.err, tokenHelp(t, c.String("out")), undoDevice(c))
	return nil
}

// tokenHelp says where the secret leads and how it is used. It does not hold
// the secret: help is what gets copied into tickets and chats.
func tokenHelp(t admin.TokenDevice, file string) string {
	base := strings.TrimSuffix(t.URL, "/")
	below := strings.TrimPrefix(t.Device.Path, "/")
	var b strings.Builder
	if file != "" {
		fmt.Fprintf(&b, "the secret is in %s; it is kept nowhere else\n", file)
	} else {
		b.WriteString("the line on stdout is the secret; it is shown this once\n")
	}
	fmt.Fprintf(&b, "%s reaches %s%s at %s", t.Device.Name, t.Device.Target, t.Device.Path, t.URL)
	if end := t.Device.Ends(); !end.IsZero() {
		fmt.Fprintf(&b, " until %s", moment(end))
	}
	fmt.Fprintf(&b, "\n  with a header:  curl -H 'Authorization: Bearer SECRET' %s/%s\n", base, below)
	fmt.Fprintf(&b, "  or in the URL:  %s/SECRET/%s\n", base, below)
	return b.String()
}
