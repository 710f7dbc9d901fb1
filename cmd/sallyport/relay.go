package main

import (
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/relay"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/registry"
)

func relayCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:         "relay",
		Usage:        "the public end: run it, admit homes",
		OnUsageError: onUsageError,
		Subcommands: []*cli.Command{
			{
				Name:  "up",
				Usage: "run the relay; the first start makes its state",
				Description: "SIGHUP reads configuration and certificates again, whole or not at all.\n" +
					"SIGTERM tells the agents to come back, then ends.",
				OnUsageError: onUsageError,
				Flags:        relayFlags(),
				Action:       func(c *cli.Context) error { return relayUp(c, io) },
			},
			{
				Name:         "token",
				Usage:        "print a join token for one more agent, alone on stdout",
				Description:  "Single use. The first agent may claim any name below the domain; later ones need --hosts.",
				OnUsageError: onUsageError,
				Flags: []cli.Flag{
					dataFlag(defaultRelayData),
					&cli.StringSliceFlag{Name: "hosts", Usage: "`PATTERN` of names the agent may claim, such as '*.alice.example.org'; repeat or separate by commas"},
					&cli.StringSliceFlag{Name: "ports", Usage: "public `PORTS` that its services may have for themselves, such as 2222 or 51820/udp; repeat or separate by commas"},
					&cli.DurationFlag{Name: "ttl", Usage: "the token is valid for `DURATION`", Value: 15 * time.Minute},
					&cli.BoolFlag{Name: "foreign", Usage: "allow patterns outside the relay's domain"},
				},
				Action: func(c *cli.Context) error { return relayToken(c, io) },
			},
			grantCommand(io),
			{
				Name:         "ca",
				Usage:        "print the root of the internal CA, PEM: what visitors must trust with --certs internal",
				OnUsageError: onUsageError,
				Flags: []cli.Flag{
					dataFlag(defaultRelayData),
					&cli.BoolFlag{Name: "device", Usage: "the CA of devices instead, with its fingerprint: to compare at a home that asks for it"},
				},
				Action: func(c *cli.Context) error { return relayCA(c, io) },
			},
			{
				Name:         "certs",
				Usage:        "how the public certificates stand, and what keeps one from coming",
				OnUsageError: onUsageError,
				Flags: []cli.Flag{
					dataFlag(defaultRelayData), jsonFlag(),
					&cli.StringFlag{Name: "retry", Usage: "ask for the certificate of `HOST` now instead of at the next turn"},
				},
				Action: func(c *cli.Context) error { return relayCerts(c, io) },
			},
			{
				Name:         "dashboard",
				Usage:        "how to open the dashboard from here or over ssh; prints a one-time link with --admin-listen",
				OnUsageError: onUsageError,
				Flags:        []cli.Flag{dataFlag(defaultRelayData)},
				Action:       func(c *cli.Context) error { return relayDashboard(c, io) },
			},
			{
				Name:         "release",
				Usage:        "free a claimed host for other agents",
				ArgsUsage:    "HOST",
				OnUsageError: onUsageError,
				Flags:        []cli.Flag{dataFlag(defaultRelayData)},
				Action:       func(c *cli.Context) error { return relayRelease(c, io) },
			},
			{
				Name:         "revoke",
				Usage:        "shut an agent out: its sessions end, its hosts are free",
				ArgsUsage:    "AGENT",
				OnUsageError: onUsageError,
				Flags:        []cli.Flag{dataFlag(defaultRelayData)},
				Action:       func(c *cli.Context) error { return relayRevoke(c, io) },
			},
		},
	}
}

func relayFlags() []cli.Flag {
	return append([]cli.Flag{
		configFlag(),
		dataFlag(defaultRelayData),
		&cli.StringFlag{Name: "domain", Usage: "homes claim their names below `DOMAIN`", EnvVars: []string{"SALLYPORT_DOMAIN"}},
		&cli.StringFlag{Name: "listen", Usage: "public `ADDRESS`, TCP and UDP", Value: ":443", EnvVars: []string{"SALLYPORT_LISTEN"}},
		&cli.StringFlag{Name: "http", Usage: "`ADDRESS` that redirects to HTTPS, or off", Value: ":80", EnvVars: []string{"SALLYPORT_HTTP"}},
		&cli.StringFlag{Name: "address", Usage: "`HOST:PORT` that agents dial; default relay.DOMAIN and the port of --listen", EnvVars: []string{"SALLYPORT_ADDRESS"}},
		&cli.IntFlag{Name: "public-port", Usage: "`PORT` in visitors' URLs, when a router maps it", DefaultText: "that of --listen", EnvVars: []string{"SALLYPORT_PUBLIC_PORT"}},
		&cli.StringFlag{Name: "certs", Usage: "`SOURCE` of public certificates: acme, files or internal", DefaultText: "acme; internal for domains that no public CA certifies", EnvVars: []string{"SALLYPORT_CERTS"}},
		&cli.StringFlag{Name: "cert", Usage: "with --certs files: certificate chain, PEM `FILE`", EnvVars: []string{"SALLYPORT_CERT"}},
		&cli.StringFlag{Name: "key", Usage: "with --certs files: its key, PEM `FILE`", EnvVars: []string{"SALLYPORT_KEY"}},
		&cli.StringFlag{Name: "acme-ca", Usage: "directory `URL` of the ACME server", DefaultText: "Let's Encrypt", EnvVars: []string{"SALLYPORT_ACME_CA"}},
		&cli.StringFlag{Name: "acme-root", Usage: "PEM `FILE` with the root of the ACME server's own certificate", DefaultText: "the system's roots", EnvVars: []string{"SALLYPORT_ACME_ROOT"}},
		&cli.StringFlag{Name: "acme-email", Usage: "mail `ADDRESS` of the ACME account", EnvVars: []string{"SALLYPORT_ACME_EMAIL"}},
		&cli.StringFlag{Name: "decoy", Usage: "`WHAT` strangers meet: off, page, or tcp://HOST:PORT", Value: relay.DecoyOff, EnvVars: []string{"SALLYPORT_DECOY"}},
		&cli.IntFlag{Name: "replicas", Usage: "`N` live instances of one agent key may share its streams", Value: 1, EnvVars: []string{"SALLYPORT_REPLICAS"}},
		&cli.BoolFlag{Name: "admin-host", Usage: "the dashboard at admin.DOMAIN too, for devices marked admin", EnvVars: []string{"SALLYPORT_ADMIN_HOST"}},
		&cli.StringFlag{Name: "admin-listen", Usage: "the dashboard on loopback `ADDRESS` too, behind one-time links of relay dashboard", EnvVars: []string{"SALLYPORT_ADMIN_LISTEN"}},
		&cli.BoolFlag{Name: "mqtt-off", Usage: "no MQTT for devices and no command page", EnvVars: []string{"SALLYPORT_MQTT_OFF"}},
		&cli.IntFlag{Name: "mqtt-commands-per-hour", Usage: "one device may send `N` commands an hour", Value: 600, EnvVars: []string{"SALLYPORT_MQTT_COMMANDS_PER_HOUR"}},
		&cli.StringFlag{Name: "mqtt-listen", Usage: "MQTT over TLS on another `ADDRESS` too, such as :8883", EnvVars: []string{"SALLYPORT_MQTT_LISTEN"}},
		&cli.StringFlag{Name: "dns", Usage: "answer the DNS of the domain at `ADDRESS`, such as :53, UDP and TCP; sallyport doctor says what to set at the registrar", EnvVars: []string{"SALLYPORT_DNS"}},
		&cli.StringSliceFlag{Name: "dns-address", Usage: "with --dns: the relay's public `ADDRESS`, repeat for more", DefaultText: "the public ones of this machine", EnvVars: []string{"SALLYPORT_DNS_ADDRESS"}},
		&cli.BoolFlag{Name: "ech-off", Usage: "with --dns: no Encrypted ClientHello", EnvVars: []string{"SALLYPORT_ECH_OFF"}},
		&cli.StringSliceFlag{Name: "proxy-from", Usage: "a load balancer in front, at `NETWORK` such as 10.0.0.0/24, begins each connection with a PROXY protocol header", EnvVars: []string{"SALLYPORT_PROXY_FROM"}},
		&cli.BoolFlag{Name: "open-enrolment", Usage: "take requests for certificates without a link; each waits for device approve", EnvVars: []string{"SALLYPORT_OPEN_ENROLMENT"}},
	}, logFlags()...)
}

// relayUp runs the relay until it is told to stop.
func relayUp(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	conf, logs, err := loadRelay(c)
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	if conf.Logger, err = logs.logger(c, io.err, level); err != nil {
		return err
	}
	collectEarly()
	r, closeStore, err := openRelay(conf)
	if err != nil {
		return err
	}
	defer closeStore()
	if err := r.Listen(); err != nil {
		return listenError(err)
	}
	conf.Logger.Info("relay listens", "addr", r.Addr().String(), "domain", conf.Domain, "version", softwareVersion())
	greetOwner(c.Context, io, r, conf.DataDir)
	status := "listens on " + r.Addr().String()
	defer reloading(c.Context, conf.Logger, status, func() error {
		next, logs, err := loadRelay(c)
		if err != nil {
			return err
		}
		if err := r.Reload(next); err != nil {
			return err
		}
		return logs.set(c, level)
	})()
	notifyReady(status)
	err = r.Run(c.Context)
	notifyStopping("the relay ends")
	return err
}

// listenError adds what to do when a port cannot be had. A port may be free
// again later; for everything else starting again would not help.
func listenError(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return failed(exitFailed, "another program holds this address: stop it, or choose another one with --listen, --http or --dns", err)
	case errors.Is(err, syscall.EACCES):
		return failed(exitFailed, "ports below 1024 want root or CAP_NET_BIND_SERVICE, which the systemd unit in deploy/ has", err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return failed(exitFailed, "this machine has no such address; :443 listens on all that it has", err)
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return err
	}
	return startError(err)
}

// greetOwner tells how to go on while no home has joined. A token is a secret:
// it goes to a terminal only (DESIGN §6.13).
func greetOwner(ctx context.Context, io stdio, r *relay.Relay, data string) {
	if r.Agents() > 0 {
		return
	}
	at := dataArg(data, defaultRelayData)
	if !isTerminal(io.out) {
		fmt.Fprintf(io.out, "no home has joined yet; for a join token run:  sallyport relay token%s\n", at)
		return
	}
	t, err := r.Token(ctx, registry.TokenRequest{})
	if err != nil {
		fmt.Fprintf(io.out, "no join token made: %v\n", err)
		return
	}
	fmt.Fprintf(io.out, "join a home with (once, within 15 minutes):\n\n  sallyport agent up %s --expose ha=127.0.0.1:8123\n\n"+
		"another token: sallyport relay token%s   (for a second home: with --hosts '*.NAME.DOMAIN')\nundo a join:   sallyport relay revoke AGENT%s\n", t, at, at)
}

// dataArg repeats --data in printed commands when it is not the default.
func dataArg(data, def string) string {
	if data == def {
		return ""
	}
	return " --data " + quoted(data)
}

// quoted makes a path safe to paste into a shell.
func quoted(path string) string {
	if strings.ContainsFunc(path, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("/._-+:@%", r)
	}) {
		return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
	}
	return path
}

func relayToken(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	if c.Duration("ttl") < time.Second {
		return usageError("write a duration such as --ttl 15m", "--ttl: %v is too short", c.Duration("ttl"))
	}
	t, err := admin.NewClient(c.String("data")).NewToken(c.Context, admin.TokenRequest{
		Hosts: c.StringSlice("hosts"), Ports: c.StringSlice("ports"), TTL: int64(c.Duration("ttl") / time.Second), Foreign: c.Bool("foreign"),
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(io.out, t.Token)
	fmt.Fprintf(io.err, "valid once, until %s; at home:  sallyport agent up TOKEN\n"+
		"undo after the join: sallyport relay revoke AGENT%s\n",
		moment(t.Expires), dataArg(c.String("data"), defaultRelayData))
	return nil
}

func relayCA(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	ca, err := admin.NewClient(c.String("data")).CA(c.Context)
	if c.Bool("device") {
		if err == nil {
			err = printDeviceCA(io, ca)
		}
		return err
	}
	var unreachable *admin.Error
	if errors.As(err, &unreachable) && unreachable.Code == admin.CodeUnreachable {
		// A public file: it can be read while the relay does not run.
		if pem, ferr := os.ReadFile(relay.PublicCAFile(c.String("data"))); ferr == nil {
			_, werr := io.out.Write(pem)
			return werr
		}
	}
	if err != nil {
		return err
	}
	if ca.Server == "" {
		return failed(exitFailed, "visitors trust whoever signed its public certificates: nothing is to be installed",
			errors.New("this relay has no internal CA"))
	}
	fmt.Fprint(io.out, ca.Server)
	return nil
}

// printDeviceCA prints the fingerprint beside the certificate: a person at home
// compares it before another CA lets devices in there.
func printDeviceCA(io stdio, ca admin.CA) error {
	block, _ := pem.Decode([]byte(ca.Device))
	if block == nil {
		return failed(exitFailed, "", errors.New("this relay has no CA of devices"))
	}
	fmt.Fprint(io.out, ca.Device)
	fmt.Fprintf(io.err, "fingerprint: %x\n", sha256.Sum256(block.Bytes))
	return nil
}

func relayRelease(c *cli.Context, io stdio) error {
	if c.NArg() != 1 {
		return usageError("`sallyport status"+dataArg(c.String("data"), defaultRelayData)+"` lists the hosts.", "relay release takes one HOST")
	}
	if err := admin.NewClient(c.String("data")).ReleaseHost(c.Context, c.Args().First()); err != nil {
		return err
	}
	fmt.Fprintf(io.out, "%s is free; the first agent that registers it next holds it\n", c.Args().First())
	return nil
}

func relayRevoke(c *cli.Context, io stdio) error {
	if c.NArg() != 1 {
		return usageError("`sallyport status"+dataArg(c.String("data"), defaultRelayData)+"` lists the agents.", "relay revoke takes one AGENT")
	}
	client := admin.NewClient(c.String("data"))
	a, err := client.RevokeAgent(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	fmt.Fprintf(io.out, "agent %s is shut out; its key never comes back. A new join needs a new token and a fresh --data at home.\n", a.Name)
	st, err := client.Status(c.Context)
	if err != nil {
		return nil // what was asked for is done; this is advice
	}
	hosts, foreign := a.Allowed, ""
	if len(hosts) == 0 { // the first home is without limits, and there is one first home only
		hosts = []string{"*." + st.Domain}
	}
	for _, h := range hosts {
		if !names.Below(h, st.Domain) {
			foreign = " --foreign"
		}
	}
	if len(a.Ports) > 0 {
		foreign = " --ports " + quoted(strings.Join(a.Ports, ",")) + foreign
	}
	fmt.Fprintf(io.out, "a token for a home in its place:\n  sallyport relay token --hosts %s%s%s\n",
		quoted(strings.Join(hosts, ",")), foreign, dataArg(c.String("data"), defaultRelayData))
	return nil
}
