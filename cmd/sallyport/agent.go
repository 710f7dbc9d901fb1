package main

import (
	"context"
	"errors"
	"fmt"
	goio "io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/agent"
	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/agent/service"
	"github.com/sallyport/sallyport/protocol"
)

func agentCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:         "agent",
		Usage:        "the end at home: run it, offer services, say who may press buttons",
		OnUsageError: onUsageError,
		Subcommands: slices.Concat([]*cli.Command{
			{
				Name:      "up",
				Usage:     "join once with TOKEN, then run",
				ArgsUsage: "[TOKEN]",
				Description: "The token is needed until the first join succeeded; it may also come from --token-file or, as -, from stdin.\n" +
					"SIGHUP reads the configuration again, whole or not at all, without dropping the tunnel.",
				OnUsageError: onUsageError,
				Flags:        agentFlags(),
				Action:       func(c *cli.Context) error { return agentUp(c, io) },
			},
			{
				Name:      "expose",
				Usage:     "offer one more service, now and after restarts",
				ArgsUsage: "NAME TARGET",
				Description: "TARGET: http://, https://, h2c://, tcp://HOST:PORT, unix:/path, HOST:PORT for http, or udp://HOST:PORT with --port.\n" +
					"The agent must be running; the tunnel stays up.\n" +
					"With --tls relay the relay can read what visitors say; with agent and backend it cannot.",
				OnUsageError: onUsageError,
				Flags: []cli.Flag{
					dataFlag(defaultAgentData),
					&cli.StringFlag{Name: "host", Usage: "public `NAME`, exact or *.x; default NAME.DOMAIN"},
					&cli.StringFlag{Name: "path", Usage: "publish below `PREFIX`, such as /photos/, when several services share a host"},
					&cli.StringFlag{Name: "auth", Usage: "`MODE`: require a device certificate, ask for one, or none", Value: protocol.AuthRequire},
					&cli.StringFlag{Name: "tls", Usage: "`WHO` ends the visitor's TLS: relay; agent (here, with a key that stays at home); or backend (passed through unread)", Value: protocol.TLSRelay},
					&cli.IntFlag{Name: "port", Usage: "the relay's public port `N` for this service alone, TCP or, for udp://, UDP: open to everybody, so --auth none must say so; the relay's owner grants it"},
					&cli.BoolFlag{Name: "insecure-skip-verify", Usage: "https: accept any certificate of the target"},
					&cli.StringFlag{Name: "server-name", Usage: "https: verify for `NAME` instead of the target's host"},
					&cli.StringFlag{Name: "ca", Usage: "https: trust only the CAs in PEM `FILE`"},
					&cli.StringFlag{Name: "cert", Usage: "https: client certificate for the target, PEM `FILE`"},
					&cli.StringFlag{Name: "key", Usage: "https: its key, PEM `FILE`"},
					&cli.BoolFlag{Name: "http2", Usage: "https: speak HTTP/2 to the target (gRPC)"},
					&cli.BoolFlag{Name: "proxy-protocol", Usage: "begin each connection with a PROXY protocol v2 header"},
					&cli.BoolFlag{Name: "remote-user", Usage: "http: tell the target the device's name as Remote-User, for targets that log users in by it"},
				},
				Action: func(c *cli.Context) error { return agentExpose(c, io) },
			},
			{
				Name:         "unexpose",
				Usage:        "withdraw a service that was exposed",
				ArgsUsage:    "NAME",
				OnUsageError: onUsageError,
				Flags:        []cli.Flag{dataFlag(defaultAgentData)},
				Action:       func(c *cli.Context) error { return agentUnexpose(c, io) },
			},
		}, agentCommandKeys(io), agentLookers(io)),
	}
}

func agentFlags() []cli.Flag {
	return append([]cli.Flag{
		configFlag(),
		dataFlag(defaultAgentData),
		&cli.StringFlag{Name: "token-file", Usage: "read the join token from `FILE`", EnvVars: []string{"SALLYPORT_TOKEN_FILE"}},
		&cli.StringSliceFlag{Name: "expose", Usage: "offer `NAME=TARGET`, such as ha=127.0.0.1:8123, from now on, as agent expose does (undo: agent unexpose NAME); a NAME of the file is replaced for this run only; repeat for more"},
		&cli.StringFlag{Name: "lan", Usage: "serve what has --tls agent on the home network too, at `ADDRESS` such as :8443, or on for that one; off: not", EnvVars: []string{"SALLYPORT_LAN"}},
		&cli.StringFlag{Name: "device-ca", Usage: "`WHERE` devices for --tls agent come from: home, where the relay can make none, or relay", DefaultText: "home", EnvVars: []string{"SALLYPORT_DEVICE_CA"}},
		&cli.StringFlag{Name: "mqtt", Usage: "the home broker is at `URL`, such as tcp://127.0.0.1:1883; wins over mqtt.broker of the file", EnvVars: []string{"SALLYPORT_MQTT"}},
		&cli.StringSliceFlag{Name: "transport", Usage: "only `TRANSPORT`, quic or tcp, repeat for an order; default both, raced", EnvVars: []string{"SALLYPORT_TRANSPORT"}},
		&cli.StringFlag{Name: "name", Usage: "the relay may call this home `NAME`; default the host's name", EnvVars: []string{"SALLYPORT_NAME"}},
	}, logFlags()...)
}

// agentUp runs the agent until it is told to stop.
func agentUp(c *cli.Context, io stdio) error {
	if c.NArg() > 1 {
		return usageError("for example: sallyport agent up TOKEN --expose ha=127.0.0.1:8123", "unexpected argument %q", shown(c.Args().Get(1)))
	}
	conf, logs, err := loadAgent(c)
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	if conf.Logger, err = logs.logger(c, io.err, level); err != nil {
		return err
	}
	if conf.Token, err = readToken(c, io, conf.tokenFile); err != nil {
		return err
	}
	if conf.Token == "" && conf.tokenFile != "" {
		conf.Logger.Info("no token file, which is fine once this home has joined", "file", conf.tokenFile)
	}
	var a *agent.Agent
	offered := &offerPrinter{out: io.out, data: dataArg(conf.DataDir, defaultAgentData)}
	conf.OnRegistered = func([]protocol.Registration) { offered.print(a.Status()) }
	collectEarly()
	if a, err = agent.New(conf.Config); err != nil {
		return err
	}
	const status = "dials out to the relay"
	services := conf.Services
	defer reloading(c.Context, conf.Logger, status, func() error {
		next, logs, err := loadAgent(c)
		if err != nil {
			return err
		}
		if err := sameRun(conf, next); err != nil {
			return err
		}
		next.keepFlags(conf)
		if err := takeConfig(c.Context, a, next, services); err != nil {
			return err
		}
		services = next.Services
		return logs.set(c, level)
	})()
	notifyReady(status)
	err = a.Run(c.Context)
	notifyStopping("the agent ends")
	return err
}

// takeConfig lets the running agent do what a new configuration says, whole or
// not at all; services are those that hold until then.
func takeConfig(ctx context.Context, a *agent.Agent, next agentConfig, services []service.Entry) error {
	if err := a.SetServices(ctx, next.Services); err != nil {
		return err
	}
	if next.MQTT == nil {
		return nil
	}
	if err := a.SetMQTT(next.MQTT.Rules, next.Actions); err != nil {
		return errors.Join(err, a.SetServices(ctx, services))
	}
	return nil
}

// An offerPrinter prints where each service is reached, or why not, once until
// that changes.
type offerPrinter struct {
	out  goio.Writer
	data string          // " --data DIR" for a command to type, or ""
	mu   sync.Mutex      // guards said and orders the lines
	said map[string]bool // lines that hold now
}

func (p *offerPrinter) print(st control.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	said := map[string]bool{}
	tell := func(line string) {
		if said[line] = true; !p.said[line] {
			fmt.Fprintln(p.out, line)
		}
	}
	switch n := len(st.Actions); {
	case len(st.Services) > 0:
	case n > 0 && st.Domain != "":
		what := "actions"
		if n == 1 {
			what = "action"
		}
		tell(fmt.Sprintf("offers %d %s: https://home.%s/", n, what, st.Domain))
	case n == 0:
		tell("offers nothing yet: sallyport agent expose NAME TARGET" + p.data)
	}
	for _, s := range st.Services {
		line := fmt.Sprintf("%s   %s   →  %s", s.URL, s.Auth, s.Target)
		switch {
		case s.Error != "":
			line = fmt.Sprintf("%s is refused: %s", s.Name, s.Error)
		case s.URL == "":
			continue
		}
		if s.Warning != "" {
			line += "\n  warning: " + s.Warning
		}
		tell(line)
	}
	p.said = said
}

// readToken takes the token from the argument, stdin or a file. A token file
// that is gone is fine: the agent has joined long ago and says so otherwise.
func readToken(c *cli.Context, io stdio, file string) (string, error) {
	arg := c.Args().First()
	if arg != "" && arg != "-" {
		return arg, nil
	}
	if arg == "-" {
		raw, err := goio.ReadAll(goio.LimitReader(io.in, 4096))
		if err != nil {
			return "", failed(exitFailed, "", fmt.Errorf("read the token from stdin: %w", err))
		}
		return strings.TrimSpace(string(raw)), nil
	}
	if file == "" {
		return "", nil
	}
	raw, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", usageError("", "--token-file: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

func agentExpose(c *cli.Context, io stdio) error {
	if c.NArg() != 2 {
		return usageError("for example: sallyport agent expose ha 127.0.0.1:8123", "agent expose takes NAME and TARGET")
	}
	port, err := portArg(c)
	if err != nil {
		return err
	}
	s := control.Service{
		Name: c.Args().Get(0), Target: c.Args().Get(1), Host: c.String("host"), Path: c.String("path"), Port: port,
		InsecureSkipVerify: c.Bool("insecure-skip-verify"),
		ServerName:         c.String("server-name"), HTTP2: c.Bool("http2"), ProxyProtocol: c.Bool("proxy-protocol"),
		RemoteUser: c.Bool("remote-user"),
	}
	if port == 0 || c.IsSet("tls") { // a port of its own has no TLS of ours
		s.TLS = c.String("tls")
	}
	if c.IsSet("auth") { // what is passed through unread has none of its own
		s.Auth = c.String("auth")
	}
	for _, f := range []struct {
		flag string
		to   *string
	}{{"ca", &s.CAFile}, {"cert", &s.ClientCert}, {"key", &s.ClientKey}} {
		if v := c.String(f.flag); v != "" {
			abs, err := filepath.Abs(v) // the agent has another working directory
			if err != nil {
				return usageError("", "--%s: %w", f.flag, err)
			}
			*f.to = abs
		}
	}
	e, err := agentClient(c.String("data")).Expose(c.Context, s)
	if err != nil {
		return err
	}
	if e.URL == "" {
		fmt.Fprintf(io.out, "%s is kept; the relay cannot be reached now and learns of it with the next connection\n", e.Name)
	} else {
		fmt.Fprintf(io.out, "%s   %s\n", e.URL, whoMayCome(s))
	}
	if e.Warning != "" {
		fmt.Fprintf(io.out, "  warning: %s\n", e.Warning)
	}
	at := dataArg(c.String("data"), defaultAgentData)
	switch {
	case e.Before != nil && *e.Before == s:
		fmt.Fprintf(io.out, "nothing changed: %s was exposed so already; to withdraw it: sallyport agent unexpose %s%s\n", e.Name, e.Name, at)
		return nil
	case e.Before != nil:
		fmt.Fprintf(io.out, "replaced: %s was %s until now\nundo: %s%s\n", e.Name, e.Replaced, exposeLine(*e.Before), at)
		return nil
	}
	fmt.Fprintf(io.out, "undo: sallyport agent unexpose %s%s\n", e.Name, at)
	return nil
}

// exposeLine is the command that exposes a service as it is.
func exposeLine(s control.Service) string {
	var b strings.Builder
	b.WriteString("sallyport agent expose " + quoted(s.Name) + " " + quoted(s.Target))
	for _, f := range []struct{ flag, value, unset string }{
		{"host", s.Host, ""},
		{"path", s.Path, ""},
		{"auth", s.Auth, ""},
		{"tls", s.TLS, protocol.TLSRelay},
		{"port", portText(s.Port), ""},
		{"server-name", s.ServerName, ""},
		{"ca", s.CAFile, ""},
		{"cert", s.ClientCert, ""},
		{"key", s.ClientKey, ""},
	} {
		if f.value != "" && f.value != f.unset {
			b.WriteString(" --" + f.flag + " " + quoted(f.value))
		}
	}
	for _, f := range []struct {
		flag string
		on   bool
	}{{"insecure-skip-verify", s.InsecureSkipVerify}, {"http2", s.HTTP2}, {"proxy-protocol", s.ProxyProtocol}, {"remote-user", s.RemoteUser}} {
		if f.on {
			b.WriteString(" --" + f.flag)
		}
	}
	return b.String()
}

func portText(port uint16) string {
	if port == 0 {
		return ""
	}
	return strconv.Itoa(int(port))
}

// whoMayCome says in words what auth and tls of a service mean.
func whoMayCome(s control.Service) string {
	unread := ""
	if s.TLS == protocol.TLSAgent {
		unread = "; end to end: the relay cannot read it"
	}
	switch {
	case s.Port != 0:
		return "open to everybody; the service itself decides who may come in"
	case s.TLS == protocol.TLSBackend:
		return "passed through unread; the service itself decides who may come in"
	case s.Auth == protocol.AuthNone:
		return "open to everybody" + unread
	case s.Auth == protocol.AuthAsk:
		return "for devices with a certificate; others see a page that says so" + unread
	}
	return "for devices with a certificate only" + unread
}

func agentUnexpose(c *cli.Context, io stdio) error {
	if c.NArg() != 1 {
		return usageError("`sallyport status"+dataArg(c.String("data"), defaultAgentData)+"` shows the services.", "agent unexpose takes one NAME")
	}
	name := c.Args().First()
	if err := agentClient(c.String("data")).Unexpose(c.Context, name); err != nil {
		return err
	}
	fmt.Fprintf(io.out, "%s is withdrawn. Its host stays this home's until the relay's owner releases it.\n", name)
	return nil
}
