package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/agent"
	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/mqttbridge/executor"
	"github.com/sallyport/sallyport/relay"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/registry"
)

const demoDomain = "sallyport.localhost"

// demoLife is how long a command may be on its way while the story plays: the
// least that an agent takes.
const demoLife = 2 * time.Second

func demoCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "a relay, a home and a device on this machine, to try and to look at",
		Description: "Everything listens on loopback and lives in a temporary directory that is removed at the end.\n" +
			"--once plays the whole story with real checks, a line a step, and exits 0 only if all held.",
		OnUsageError: onUsageError,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "once", Usage: "play the story and exit"},
			&cli.StringFlag{Name: "listen", Usage: "loopback `ADDRESS` of the relay; another port is taken when it is busy", Value: "127.0.0.1:8443"},
		}, logFlags()...),
		Action: func(c *cli.Context) error { return demo(c, io) },
	}
}

// demo builds the little world and either plays the story or waits.
func demo(c *cli.Context, io stdio) error {
	if err := noArgs(c); err != nil {
		return err
	}
	quiet := logSettings{Level: "error"} // the lines are what is to be seen
	logger, err := quiet.logger(c, io.err, new(slog.LevelVar))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sallyport-demo-")
	if err != nil {
		return fmt.Errorf("demo directory: %w", err)
	}
	defer os.RemoveAll(dir)
	w, err := newDemoWorld(c.Context, dir, c.String("listen"), logger)
	if err != nil {
		return err
	}
	if c.Bool("once") {
		w.life = demoLife // so that nobody waits for a late command
		return errors.Join(playStory(c.Context, io.out, w), w.close())
	}
	err = w.stay(c.Context, io.out)
	if c.Context.Err() != nil {
		err = nil // Ctrl-C is how it ends, also in the middle of its start
	}
	return errors.Join(err, w.close())
}

// demoWorld is a relay, an agent and two apps in one process. Their talk goes
// over real sockets on loopback.
type demoWorld struct {
	dir     string
	logger  *slog.Logger
	relay   *relay.Relay
	addr    string // the relay's
	admin   *admin.Client
	apps    *homeApps
	home    *homeBroker
	life    time.Duration // of a command on its way; 0: the agent's default
	udp     *firewall
	stop    context.CancelFunc
	wg      sync.WaitGroup
	failed  chan error // of relay and agent
	closing func()     // the store
}

func (w *demoWorld) relayDir() string { return filepath.Join(w.dir, "relay") }
func (w *demoWorld) agentDir() string { return filepath.Join(w.dir, "agent") }

// newDemoWorld starts the relay and the apps; the agent joins in the story.
func newDemoWorld(ctx context.Context, dir, listen string, logger *slog.Logger) (*demoWorld, error) {
	ap, err := netip.ParseAddrPort(listen)
	if err != nil || !ap.Addr().IsLoopback() {
		return nil, usageError("for example --listen 127.0.0.1:8443", "--listen: the demo listens on loopback only, not on %q", listen)
	}
	w := &demoWorld{dir: dir, logger: logger, udp: &firewall{}, failed: make(chan error, 2)}
	if w.apps, err = startHomeApps(); err != nil {
		return nil, err
	}
	if w.home, err = startHomeBroker(); err != nil {
		w.apps.close()
		return nil, err
	}
	for _, addr := range []string{listen, net.JoinHostPort(ap.Addr().String(), "0")} {
		w.relay, w.closing, err = openRelay(relay.Config{
			DataDir: w.relayDir(), Domain: demoDomain, Listen: addr, HTTP: "off",
			Software: softwareVersion(), Logger: logger.With("at", "relay"),
		})
		if err != nil {
			break
		}
		if err = w.relay.Listen(); err == nil {
			break
		}
		w.closing()
	}
	if err != nil {
		w.apps.close()
		w.home.close()
		return nil, err
	}
	w.addr = w.relay.Addr().String()
	w.admin = admin.NewClient(w.relayDir())
	ctx, w.stop = context.WithCancel(ctx)
	w.wg.Go(func() { w.ended(w.relay.Run(ctx)) })
	return w, nil
}

func (w *demoWorld) ended(err error) {
	if err != nil {
		w.failed <- err
	}
}

func (w *demoWorld) close() error {
	w.stop()
	w.wg.Wait()
	w.closing()
	w.apps.close()
	w.home.close()
	select {
	case err := <-w.failed:
		return err
	default:
		return nil
	}
}

// startAgent makes a token and runs the agent with it.
func (w *demoWorld) startAgent(ctx context.Context) error {
	t, err := w.relay.Token(ctx, registry.TokenRequest{})
	if err != nil {
		return err
	}
	m, err := demoMQTT(w.home.addr)
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Config{
		DataDir: w.agentDir(), Token: t.String(), Name: demoHomeName, Software: softwareVersion(),
		MQTT: m, Actions: []executor.Action{garageAction(w.life)},
		Logger: w.logger.With("at", "agent"), ListenPacket: w.udp.listenPacket,
	})
	if err != nil {
		return err
	}
	// The agent ends with the relay: both in close.
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := w.stop
	w.stop = func() { cancel(); stop() }
	w.wg.Go(func() { w.ended(a.Run(runCtx)) })
	return w.waitAgent(ctx, func(s control.Status) bool { return s.Link != nil })
}

// waitAgent polls the agent's socket until its status is as wanted.
func (w *demoWorld) waitAgent(ctx context.Context, good func(control.Status) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		s, err := control.NewClient(w.agentDir()).Status(ctx)
		if err == nil && good(s) {
			return nil
		}
		last = err
		if err == nil {
			last = fmt.Errorf("the agent is %s; last error: %s", s.State, firstOf(s.Error, "none"))
		}
		select {
		case err := <-w.failed:
			return err
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), last)
		}
	}
}

// expose offers both apps over the agent's socket, as `agent expose` does.
func (w *demoWorld) expose(ctx context.Context) (urls []string, err error) {
	c := control.NewClient(w.agentDir())
	for _, s := range []control.Service{
		{Name: "web", Target: "http://" + w.apps.web.Addr().String()},
		{Name: "echo", Target: "tcp://" + w.apps.echo.Addr().String()},
	} {
		e, err := c.Expose(ctx, s)
		if err != nil {
			return nil, err
		}
		if e.URL == "" {
			return nil, fmt.Errorf("the relay did not answer for %s", s.Name)
		}
		urls = append(urls, e.URL)
	}
	return urls, nil
}

// stay prints what runs where and waits for Ctrl-C.
func (w *demoWorld) stay(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := w.waitAdmin(ctx); err != nil {
		return err
	}
	if err := w.startAgent(ctx); err != nil {
		return err
	}
	if _, err := w.expose(ctx); err != nil {
		return err
	}
	if _, err := w.roots(ctx); err != nil {
		return err
	}
	link, err := w.invite(ctx, "phone", 0)
	if err != nil {
		return err
	}
	phone, err := w.enrol(ctx, link, "phone")
	if err != nil {
		return err
	}
	remote, err := w.meetHome(ctx, phone)
	if err != nil {
		return err
	}
	if _, err := w.trust(ctx, remote); err != nil {
		return err
	}
	password, err := w.addP12(ctx, "browser")
	if err != nil {
		return err
	}
	if link, err = w.invite(ctx, "my-browser", demoLinkTTL); err != nil {
		return err
	}
	proxy, err := w.namesForMQTT(ctx)
	if err != nil {
		return err
	}
	fmt.Fprint(out, w.picture(password, link, proxy))
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-w.failed:
		return err
	}
}

// demoLinkTTL is how long the printed link waits for somebody to try it.
const demoLinkTTL = 24 * time.Hour

// waitAdmin waits until the relay's socket answers.
func (w *demoWorld) waitAdmin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := w.admin.Status(ctx); err == nil {
			return nil
		}
		select {
		case err := <-w.failed:
			return err
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the relay's admin socket does not answer: %w", ctx.Err())
		}
	}
}
