package main

import (
	"time"

	"github.com/urfave/cli/v2"
)

// deviceCommand is everything about devices. add to clock speak to the relay
// on this machine, or with --home to the agent; enroll and renew are for a
// machine that is a device itself.
func deviceCommand(io stdio) *cli.Command {
	ofOwner := []cli.Flag{dataFlag(defaultRelayData), homeFlag()}
	return &cli.Command{
		Name:         "device",
		Usage:        "who may come in: add, list, approve, set, withdraw, revoke (on the relay's machine, with --home on the agent's); enroll and renew (on a device)",
		OnUsageError: onUsageError,
		Subcommands: []*cli.Command{
			{
				Name:      "add",
				Usage:     "let a phone, tablet, laptop, machine or webhook in",
				ArgsUsage: "NAME",
				Description: "Prints a one-time link and its QR code: whoever opens it first makes the key on his own device and becomes NAME.\n" +
					"Instead of the link: --csr signs a request made elsewhere; --pem and --p12 make the key here; --token makes a secret\n" +
					"for a visitor that cannot hold a certificate. With '' as NAME whoever opens the link names the device; that always waits\n" +
					"for `device approve`.\n" + aboutHome,
				OnUsageError: onUsageError,
				Flags:        deviceAddFlags(),
				Action:       func(c *cli.Context) error { return deviceAdd(c, io) },
			},
			{
				Name:         "list",
				Usage:        "list requests that wait for approval, links that nobody used yet, devices and tokens",
				OnUsageError: onUsageError,
				Flags:        append(ofOwner, jsonFlag()),
				Action:       func(c *cli.Context) error { return deviceList(c, io) },
			},
			{
				Name:      "approve",
				Usage:     "let a waiting device in, after comparing the words on both screens",
				ArgsUsage: "ID|NAME",
				Description: "With --home it shows the words and asks. A page that a hostile relay made up can show any words: only\n" +
					"`sallyport device enroll` makes them itself, from the key that it has.",
				OnUsageError: onUsageError,
				Flags: append(ofOwner,
					&cli.StringFlag{Name: "words", Usage: "with --home: let in who has these `WORDS`, without asking: those that the device shows"},
					&cli.BoolFlag{Name: "yes", Usage: "with --home: do not compare"},
				),
				Action: func(c *cli.Context) error { return deviceApprove(c, io) },
			},
			{
				Name:         "deny",
				Usage:        "turn a waiting device away",
				ArgsUsage:    "ID|NAME",
				OnUsageError: onUsageError,
				Flags:        ofOwner,
				Action:       func(c *cli.Context) error { return deviceDeny(c, io) },
			},
			{
				Name:         "set",
				Usage:        "change what a device may do; holds at once, also for its live connections",
				ArgsUsage:    "NAME",
				OnUsageError: onUsageError,
				Flags: append(ofOwner,
					&cli.StringSliceFlag{Name: "hosts", Usage: "`HOST`, label or pattern it may visit from now on; repeat or separate by commas"},
					&cli.BoolFlag{Name: "all-hosts", Usage: "it may visit all hosts"},
					untilFlagOf(untilUsage, ""),
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
				Flags:        ofOwner,
				Action:       func(c *cli.Context) error { return deviceRevoke(c, io) },
			},
			{
				Name:         "withdraw",
				Usage:        "make a link that nobody used yet open nothing; `device list` shows their IDs",
				ArgsUsage:    "ID",
				OnUsageError: onUsageError,
				Flags:        ofOwner,
				Action:       func(c *cli.Context) error { return deviceWithdraw(c, io) },
			},
			{
				Name:  "clock",
				Usage: "with --reset: forget a wrong moment, after this machine's clock was far ahead",
				Description: "For the relay no time that has been comes again, so that what ended stays shut out. If this machine's clock was years ahead once,\n" +
					"the relay holds on to that moment, and shuts devices out before their end; `sallyport status` warns of it. Put the clock right\n" +
					"first, then run this. Not when the clock fell back: then the relay is right, and the clock is to be set.",
				OnUsageError: onUsageError,
				Flags:        append(ofOwner, &cli.BoolFlag{Name: "reset", Usage: "believe this machine's clock again"}),
				Action:       func(c *cli.Context) error { return deviceClock(c, io) },
			},
			{
				Name:  "enroll",
				Usage: "make this machine a device: key made here, certificate from the relay or the home",
				Description: "The code is what `device add NAME` printed on the relay's machine or at home, alone or as the whole link. It is read from a file or\n" +
					"stdin, so that no other user of this machine sees it: sallyport device enroll --code-file - --out ~/sallyport\n" +
					"On a terminal it asks for it, and takes one line.",
				OnUsageError: onUsageError,
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "relay", Usage: "domain or `URL` of the relay, without a code; not needed with a whole link"},
					&cli.StringFlag{Name: "code-file", Usage: "read the one-time code, or the link, from `FILE`, or from stdin with -"},
					&cli.StringFlag{Name: "name", Usage: "wish to be called `NAME`; default what the code says, or this machine's name"},
					&cli.StringFlag{Name: "out", Usage: "write NAME.key, NAME.crt, ca.crt and device.json to `DIR`"},
					&cli.StringFlag{Name: "ca", Usage: "trust only the roots in this PEM `FILE` (relay with --certs internal: sallyport relay ca)"},
					&cli.StringFlag{Name: "address", Usage: "dial `HOST:PORT` instead of looking the relay up, also to renew"},
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
					&cli.StringFlag{Name: "address", Usage: "dial `HOST:PORT` instead of looking the relay up, from now on"},
				},
				Action: func(c *cli.Context) error { return deviceRenew(c, io) },
			},
		},
	}
}

func deviceAddFlags() []cli.Flag {
	return []cli.Flag{
		dataFlag(defaultRelayData),
		homeFlag(),
		&cli.StringSliceFlag{Name: "hosts", Usage: "`HOST`, label or pattern it may visit; repeat or separate by commas; default all"},
		untilFlagOf("for a guest: "+untilUsage, "with its certificate, after a year"),
		&cli.BoolFlag{Name: "admin", Usage: "it may open the dashboard at admin.DOMAIN (relay up --admin-host)"},
		&cli.BoolFlag{Name: "approve", Usage: "with the link: it waits until you approve it (device approve); always so without a name, and with --home unless --no-approve"},
		&cli.BoolFlag{Name: "no-approve", Usage: "with the link and --home: whoever opens it first comes in"},
		&cli.DurationFlag{Name: "ttl", Usage: "the link is valid for `DURATION`, at most 168h", Value: 15 * time.Minute},
		&cli.StringFlag{Name: "csr", Usage: "sign the request in PEM `FILE`; only its key is used"},
		&cli.StringFlag{Name: "pem", Usage: "make the key here; write NAME.crt and NAME.key to `DIR`"},
		&cli.StringFlag{Name: "p12", Usage: "make the key here; write it to PKCS#12 `FILE`, its password to stdout"},
		&cli.BoolFlag{Name: "modern", Usage: "with --p12: AES instead of 3DES; recent systems read it, phones of a few years ago do not"},
		&cli.StringFlag{Name: "password-file", Usage: "with --p12: write the password to `FILE` (mode 0600) instead"},
		&cli.BoolFlag{Name: "token", Usage: "make a secret instead of a certificate, for one of --hosts, on a host of its own"},
		&cli.StringFlag{Name: "path", Usage: "with --token: only what is below `PREFIX`, such as /api/"},
		&cli.StringFlag{Name: "out", Usage: "with --csr, --token: write the certificate or secret to `FILE` instead of stdout"},
	}
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: `print JSON with "schema":1`}
}
