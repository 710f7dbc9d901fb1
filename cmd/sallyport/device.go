package main

import (
	"time"

	"github.com/urfave/cli/v2"
)

// deviceCommand is everything about devices. add to revoke speak to the relay
// on this machine; enroll and renew are for a machine that is a device itself.
func deviceCommand(io stdio) *cli.Command {
	onRelay := []cli.Flag{dataFlag(defaultRelayData)}
	return &cli.Command{
		Name:         "device",
		Usage:        "who may come in: add, list, approve, set, revoke (on the relay's machine); enroll and renew (on a device)",
		OnUsageError: onUsageError,
		Subcommands: []*cli.Command{
			{
				Name:      "add",
				Usage:     "let a phone, tablet, laptop, machine or webhook in",
				ArgsUsage: "NAME",
				Description: "Prints a one-time link and its QR code: whoever opens it first makes the key on his own device and becomes NAME.\n" +
					"Instead of the link: --csr signs a request made elsewhere; --pem and --p12 make the key here; --token makes a secret\n" +
					"for a visitor that cannot hold a certificate.",
				OnUsageError: onUsageError,
				Flags:        deviceAddFlags(),
				Action:       func(c *cli.Context) error { return deviceAdd(c, io) },
			},
			{
				Name:         "list",
				Usage:        "list requests that wait for approval, devices and tokens",
				OnUsageError: onUsageError,
				Flags:        append(onRelay, jsonFlag()),
				Action:       func(c *cli.Context) error { return deviceList(c, io) },
			},
			{
				Name:         "approve",
				Usage:        "let a waiting device in, after comparing the words on both screens",
				ArgsUsage:    "ID|NAME",
				OnUsageError: onUsageError,
				Flags:        onRelay,
				Action:       func(c *cli.Context) error { return deviceApprove(c, io) },
			},
			{
				Name:         "deny",
				Usage:        "turn a waiting device away",
				ArgsUsage:    "ID|NAME",
				OnUsageError: onUsageError,
				Flags:        onRelay,
				Action:       func(c *cli.Context) error { return deviceDeny(c, io) },
			},
			{
				Name:         "set",
				Usage:        "change what a device may do; holds at once, also for its live connections",
				ArgsUsage:    "NAME",
				OnUsageError: onUsageError,
				Flags: append(onRelay,
					&cli.StringSliceFlag{Name: "hosts", Usage: "`HOST`, label or pattern it may visit from now on; repeat or separate by commas"},
					&cli.BoolFlag{Name: "all-hosts", Usage: "it may visit all hosts"},
					&cli.DurationFlag{Name: "until", Usage: "it is shut out after `DURATION`, such as 2h"},
					&cli.BoolFlag{Name: "no-until", Usage: "it may come in as long as its certificate is valid"},
					&cli.BoolFlag{Name: "admin", Usage: "it may open the dashboard at admin.DOMAIN (relay up --admin-host)"},
					&cli.BoolFlag{Name: "no-admin", Usage: "it may not"},
				),
				Action: func(c *cli.Context) error { return deviceSet(c, io) },
			},
			{
				Name:         "revoke",
				Usage:        "shut a device out; its live connections end within a second",
				ArgsUsage:    "NAME",
				OnUsageError: onUsageError,
				Flags:        onRelay,
				Action:       func(c *cli.Context) error { return deviceRevoke(c, io) },
			},
			{
				Name:  "enroll",
				Usage: "make this machine a device: key made here, certificate from the relay",
				Description: "The code is what `device add NAME` printed on the relay's machine, alone or as the whole link. It is read from a file or\n" +
					"stdin, so that no other user of this machine sees it: sallyport device enroll --code-file - --out ~/sallyport",
				OnUsageError: onUsageError,
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "relay", Usage: "domain or `URL` of the relay; not needed with a whole link"},
					&cli.StringFlag{Name: "code-file", Usage: "read the one-time code, or the link, from `FILE`, or from stdin with -"},
					&cli.StringFlag{Name: "name", Usage: "wish to be called `NAME`; default what the code says, or this machine's name"},
					&cli.StringFlag{Name: "out", Usage: "write NAME.key, NAME.crt, ca.crt and device.json to `DIR`"},
					&cli.StringFlag{Name: "ca", Usage: "trust only the roots in this PEM `FILE` (relay with --certs internal: sallyport relay ca)"},
					&cli.StringFlag{Name: "address", Usage: "dial `HOST:PORT` instead of looking the relay up"},
					&cli.BoolFlag{Name: "rsa", Usage: "make RSA-2048 keys instead of P-256, for old software"},
				},
				Action: func(c *cli.Context) error { return deviceEnroll(c, io) },
			},
			{
				Name:      "renew",
				Usage:     "renew this machine's certificate when two thirds of its life are over",
				ArgsUsage: "DIR",
				Description: "DIR is what `device enroll --out DIR` wrote. Run it daily (deploy/systemd has a timer), or let it stay with --every.\n" +
					"Programs that read the files must read them again; the old certificate works until its own end.",
				OnUsageError: onUsageError,
				Flags: []cli.Flag{
					&cli.DurationFlag{Name: "every", Usage: "stay, and look again every `DURATION`, such as 12h"},
					&cli.BoolFlag{Name: "force", Usage: "renew now, due or not"},
				},
				Action: func(c *cli.Context) error { return deviceRenew(c, io) },
			},
		},
	}
}

func deviceAddFlags() []cli.Flag {
	return []cli.Flag{
		dataFlag(defaultRelayData),
		&cli.StringSliceFlag{Name: "hosts", Usage: "`HOST`, label or pattern it may visit; repeat or separate by commas; default all"},
		&cli.DurationFlag{Name: "until", Usage: "for a guest: it is shut out after `DURATION`, such as 2h", DefaultText: "with its certificate, after a year"},
		&cli.BoolFlag{Name: "admin", Usage: "it may open the dashboard at admin.DOMAIN (relay up --admin-host)"},
		&cli.BoolFlag{Name: "approve", Usage: "with the link: it waits until `device approve`"},
		&cli.DurationFlag{Name: "ttl", Usage: "the link is valid for `DURATION`, at most 168h", Value: 15 * time.Minute},
		&cli.StringFlag{Name: "csr", Usage: "sign the request in PEM `FILE`; only its key is used"},
		&cli.StringFlag{Name: "pem", Usage: "make the key here; write NAME.crt and NAME.key to `DIR`"},
		&cli.StringFlag{Name: "p12", Usage: "make the key here; write it to PKCS#12 `FILE`, its password to stdout"},
		&cli.StringFlag{Name: "password-file", Usage: "with --p12: write the password to `FILE` (mode 0600) instead"},
		&cli.BoolFlag{Name: "token", Usage: "make a secret instead of a certificate, for one of --hosts, on a host of its own"},
		&cli.StringFlag{Name: "path", Usage: "with --token: only what is below `/prefix/`"},
		&cli.StringFlag{Name: "out", Usage: "with --csr, --token: write the certificate or secret to `FILE` instead of stdout"},
	}
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: `print JSON with "schema":1`}
}
