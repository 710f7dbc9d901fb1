package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/devices"
)

func deviceCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:         "device",
		Usage:        "client certificates: add, list, revoke (on the relay's machine)",
		OnUsageError: onUsageError,
		Subcommands: []*cli.Command{
			{
				Name:         "add",
				Usage:        "issue a certificate for a phone, tablet or laptop",
				ArgsUsage:    "NAME",
				Description:  "Exactly one of --p12, --pem and --csr. With --csr the key never leaves the device; with the others it is made here.",
				OnUsageError: onUsageError,
				Flags: []cli.Flag{
					dataFlag(defaultRelayData),
					&cli.StringFlag{Name: "p12", Usage: "write key and certificate to PKCS#12 `FILE`; its password goes to stdout"},
					&cli.StringFlag{Name: "password-file", Usage: "with --p12: write the password to `FILE` (mode 0600) instead"},
					&cli.StringFlag{Name: "pem", Usage: "write NAME.crt and NAME.key to `DIR`"},
					&cli.StringFlag{Name: "csr", Usage: "sign the request in PEM `FILE`; only its key is used"},
					&cli.StringFlag{Name: "out", Usage: "with --csr: write the certificate to `FILE`; default stdout"},
					&cli.StringSliceFlag{Name: "hosts", Usage: "`HOST` or pattern it may visit; default all"},
					&cli.DurationFlag{Name: "until", Usage: "the certificate ends after `DURATION`, such as 48h", DefaultText: "one year"},
				},
				Action: func(c *cli.Context) error { return deviceAdd(c, io) },
			},
			{
				Name:         "list",
				Usage:        "list devices",
				OnUsageError: onUsageError,
				Flags:        []cli.Flag{dataFlag(defaultRelayData), jsonFlag()},
				Action:       func(c *cli.Context) error { return deviceList(c, io) },
			},
			{
				Name:         "revoke",
				Usage:        "shut a device out; its live connections end within a second",
				ArgsUsage:    "NAME",
				OnUsageError: onUsageError,
				Flags:        []cli.Flag{dataFlag(defaultRelayData)},
				Action:       func(c *cli.Context) error { return deviceRevoke(c, io) },
			},
		},
	}
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: `print JSON with "schema":1`}
}

func deviceAdd(c *cli.Context, io stdio) error {
	if c.NArg() != 1 {
		return usageError("for example: sallyport device add anna-phone --p12 anna.p12", "device add takes one NAME")
	}
	ways := 0
	for _, f := range []string{"p12", "pem", "csr"} {
		if c.String(f) != "" {
			ways++
		}
	}
	if ways != 1 {
		return usageError("for example: sallyport device add NAME --p12 FILE | --pem DIR | --csr FILE",
			"device add wants exactly one of --p12, --pem and --csr")
	}
	if c.IsSet("until") && c.Duration("until") <= 0 {
		return usageError("write how long from now, such as --until 48h", "--until: %v is in the past", c.Duration("until"))
	}
	for _, f := range [][2]string{{"out", "csr"}, {"password-file", "p12"}} {
		if c.String(f[0]) != "" && c.String(f[1]) == "" {
			return usageError("", "--%s goes with --%s only", f[0], f[1])
		}
	}
	if err := writable(c); err != nil {
		return err
	}
	if c.String("csr") != "" {
		return deviceAddCSR(c, io)
	}
	return deviceAddHere(c, io)
}

// request asks the relay for a certificate.
func request(c *cli.Context, csr []byte) (admin.IssuedDevice, *x509.Certificate, *x509.Certificate, error) {
	q := admin.DeviceRequest{Name: c.Args().First(), CSR: csr, Hosts: c.StringSlice("hosts")}
	if d := c.Duration("until"); d > 0 {
		q.Until = time.Now().Add(d)
	}
	issued, err := admin.NewClient(c.String("data")).AddDevice(c.Context, q)
	if err != nil {
		return issued, nil, nil, err
	}
	cert, err1 := x509.ParseCertificate(issued.Cert)
	ca, err2 := x509.ParseCertificate(issued.CA)
	return issued, cert, ca, errors.Join(err1, err2)
}

func deviceAddCSR(c *cli.Context, io stdio) error {
	raw, err := os.ReadFile(c.String("csr"))
	if err != nil {
		return usageError("", "--csr: %w", err)
	}
	der, err := pki.DecodeCSR(raw)
	if err != nil {
		return usageError("for example: openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout my.key -subj /CN=me -out my.csr", "--csr %s: %w", c.String("csr"), err)
	}
	_, cert, _, err := request(c, der)
	if err != nil {
		return err
	}
	if out := c.String("out"); out != "" {
		if err := pki.WriteFile(out, pki.EncodeCert(cert), 0o644); err != nil {
			return takeBack(c, err)
		}
		fmt.Fprintf(io.out, "wrote %s\n%s", out, undoDevice(c))
		return nil
	}
	if _, err = io.out.Write(pki.EncodeCert(cert)); err != nil {
		return takeBack(c, err)
	}
	fmt.Fprint(io.err, undoDevice(c))
	return nil
}

func deviceAddHere(c *cli.Context, io stdio) error {
	name := c.Args().First()
	key, err := pki.NewKey()
	if err != nil {
		return err
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		return err
	}
	issued, cert, ca, err := request(c, csr)
	if err != nil {
		return err
	}
	if dir := c.String("pem"); dir != "" {
		keyPEM, err := pki.EncodeKey(key)
		if err != nil {
			return takeBack(c, err)
		}
		base := filepath.Join(dir, issued.Device.Name)
		if err := errors.Join(pki.WriteFile(base+".key", keyPEM, 0o600), pki.WriteFile(base+".crt", pki.EncodeCert(cert), 0o644)); err != nil {
			return takeBack(c, err)
		}
		fmt.Fprintf(io.out, "wrote %s.crt and %s.key\n%s", base, base, undoDevice(c))
		return nil
	}
	password := devices.GeneratePassword()
	p12, err := devices.PKCS12(key, cert, ca, password)
	if err != nil {
		return takeBack(c, err)
	}
	if err := pki.WriteFile(c.String("p12"), p12, 0o600); err != nil {
		return takeBack(c, err)
	}
	if f := c.String("password-file"); f != "" {
		if err := pki.WriteFile(f, []byte(password+"\n"), 0o600); err != nil {
			return takeBack(c, err)
		}
	} else {
		fmt.Fprintln(io.out, password)
	}
	fmt.Fprintf(io.err, "wrote %s; install it on %s, type the password there, then delete the file\n%s",
		c.String("p12"), name, undoDevice(c))
	return nil
}

// writable finds out before a certificate is issued whether the result can be
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

// takeBack revokes a certificate whose key could not be kept.
func takeBack(c *cli.Context, cause error) error {
	_, err := admin.NewClient(c.String("data")).RevokeDevice(c.Context, c.Args().First())
	return errors.Join(fmt.Errorf("the certificate was issued but could not be kept, so it is revoked again: %w", cause), err)
}

func undoDevice(c *cli.Context) string {
	return fmt.Sprintf("undo: sallyport device revoke %s%s\n", c.Args().First(), dataArg(c.String("data"), defaultRelayData))
}

func deviceList(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	found, err := admin.NewClient(c.String("data")).Devices(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(io.out, struct {
			Schema  int            `json:"schema"`
			Devices []admin.Device `json:"devices"`
		}{admin.Schema, list(found)})
	}
	if len(found) == 0 {
		fmt.Fprintf(io.out, "no devices; add one with: sallyport device add NAME --p12 FILE%s\n", dataArg(c.String("data"), defaultRelayData))
		return nil
	}
	printDevices(io.out, found, time.Now())
	return nil
}

func printDevices(out io.Writer, found []admin.Device, now time.Time) {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATE\tHOSTS\tVALID UNTIL\tLAST SEEN")
	for _, d := range found {
		state := "ok"
		switch {
		case d.Revoked:
			state = "revoked"
		case now.After(d.NotAfter):
			state = "expired"
		}
		seen := "never"
		if !d.LastSeen.IsZero() {
			seen = d.LastSeen.Local().Format(time.DateTime)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", d.Name, state, firstOf(strings.Join(d.Hosts, ","), "all"),
			d.NotAfter.Local().Format(time.DateTime), seen)
	}
	w.Flush()
}

func deviceRevoke(c *cli.Context, io stdio) error {
	if c.NArg() != 1 {
		return usageError("`sallyport device list` shows the names.", "device revoke takes one NAME")
	}
	d, err := admin.NewClient(c.String("data")).RevokeDevice(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	fmt.Fprintf(io.out, "%s is revoked and its connections are closed\n"+
		"undo: a new certificate, sallyport device add %s --p12 FILE%s\n", d.Name, d.Name, dataArg(c.String("data"), defaultRelayData))
	return nil
}
