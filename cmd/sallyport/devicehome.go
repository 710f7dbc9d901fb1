package main

import (
	"context"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sallyport/sallyport/agent"
	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/cmd/sallyport/homeca"
	"github.com/sallyport/sallyport/protocol/localsock"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/relay/admin"
)

// openHomeDevices opens the devices of a home's own CA, for
// agent.EndToEnd.OpenDevices.
func openHomeDevices(d agent.HomeDevices) (agent.Devices, error) {
	h, err := homeca.Open(homeca.Config{
		Dir: d.Dir, Own: d.Own, Port: d.Port, Now: d.Now, Logger: d.Logger, Lost: d.Lost,
		Hosts: d.Hosts, Roots: d.Roots, Certificate: d.Certificate,
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

func homeFlag() cli.Flag {
	return &cli.BoolFlag{Name: "home", Usage: "devices of the home's own CA, kept by the agent on this machine (--data is its own, default " + defaultAgentData + ")"}
}

// aboutHome is said where devices are added.
const aboutHome = "With --home, on the agent's machine, it becomes a device of the home itself, for services with --tls agent: the relay can make\n" +
	"none, and has none of these. The link only opens the queue there: the device waits until you have compared the words of its\n" +
	"key (`device approve --home`), so that a link in wrong hands lets nobody in; --no-approve does without. What words on a page\n" +
	"cannot show is a false page: a relay that turned hostile controls the name, could get a certificate for it, and would show\n" +
	"the words of a key of its own. Safe from that too: `sallyport device enroll` on the device, which makes the words itself, or\n" +
	"--p12 and --csr, carried by hand."

// A deviceBook is what commands about devices speak to: *admin.Client, or with
// --home *homeca.Client.
type deviceBook interface {
	AddDevice(ctx context.Context, q admin.DeviceRequest) (admin.IssuedDevice, error)
	Devices(ctx context.Context) ([]admin.Device, error)
	RevokeDevice(ctx context.Context, name string) (admin.Device, error)
	ChangeDevice(ctx context.Context, name string, d admin.DeviceChange) (admin.Device, error)
	Invite(ctx context.Context, q admin.InviteRequest) (admin.Invite, error)
	Invites(ctx context.Context) ([]admin.WaitingInvite, error)
	WithdrawInvite(ctx context.Context, id string) error
	Requests(ctx context.Context) ([]admin.EnrolRequest, error)
	Approve(ctx context.Context, idOrName string) (admin.EnrolRequest, error)
	Deny(ctx context.Context, idOrName string) (admin.EnrolRequest, error)
	ResetClock(ctx context.Context) error
}

// A keeper is who keeps the devices that a command is about.
type keeper struct {
	deviceBook
	home  bool
	relay *admin.Client // nil: the home keeps them
	dir   string        // the data directory
	at    string        // what other commands about the same end with
}

func keeperOf(c *cli.Context) keeper {
	dir := c.String("data")
	if !c.Bool("home") {
		client := admin.NewClient(dir)
		return keeper{deviceBook: client, relay: client, dir: dir, at: dataArg(dir, defaultRelayData)}
	}
	if !c.IsSet("data") { // the flag's default is the relay's
		dir = defaultAgentData
	}
	client := homeca.NewClient(filepath.Join(dir, control.SocketName), func(ctx context.Context) (net.Conn, error) {
		return localsock.Dial(ctx, dir, control.SocketName)
	})
	return keeper{deviceBook: client, home: true, dir: dir, at: " --home" + dataArg(dir, defaultAgentData)}
}

// approves reports whether the owner looks at who comes with a link.
func (k keeper) approves(c *cli.Context) bool {
	return c.Bool("approve") || k.home && !c.Bool("no-approve")
}

// fitsHome refuses flags of `device add` that do not go with --home, or only
// with it.
func fitsHome(c *cli.Context, way string) error {
	switch home := c.Bool("home"); {
	case !home && c.Bool("no-approve"):
		return usageError("the relay's links need no approval but with --approve", "--no-approve goes with --home only")
	case !home:
		return nil
	case way == "token":
		return usageError("the hosts of tokens are the relay's: without --home, on the relay's machine", "--token does not go with --home")
	case c.Bool("admin"):
		return usageError("the dashboard is the relay's: without --home, on the relay's machine", "--admin does not go with --home")
	case c.Bool("approve") && c.Bool("no-approve"):
		return usageError("", "--approve and --no-approve exclude each other")
	case c.Bool("no-approve") && c.Args().First() == "":
		return usageError("name the device", "--no-approve: whoever names himself is always looked at")
	}
	return nil
}

// onTheWay are the rights of a link or request of a name that is no device yet.
func (k keeper) onTheWay(ctx context.Context, name string) (rights, bool) {
	if k.relay != nil {
		return onTheWay(ctx, k.relay, name)
	}
	requests, _ := k.Requests(ctx) // without them the caller knows less, and says so
	if i := slices.IndexFunc(requests, func(q admin.EnrolRequest) bool { return q.Name == name && q.State == "pending" }); i >= 0 {
		return rightsOfRequest(requests[i]), true
	}
	links, _ := k.Invites(ctx)
	if i := slices.IndexFunc(links, func(l admin.WaitingInvite) bool { return l.Name == name }); i >= 0 {
		return rightsOfLink(links[i]), true
	}
	return rights{}, false
}

// warnHosts tells of hosts that nobody offers now. It never fails.
func (k keeper) warnHosts(c *cli.Context, io stdio, hosts []string) {
	if k.relay != nil {
		warnHosts(c, io, k.relay, hosts)
		return
	}
	if len(hosts) == 0 {
		return
	}
	if st, err := agentClient(k.dir).Status(c.Context); err == nil {
		warnHomeHosts(io, st, hosts, dataArg(k.dir, defaultAgentData))
	}
}

// enrolsAtHome reports whether a URL of an enrolment or self-test host is of a
// home: HASH.DOMAIN is between.
func enrolsAtHome(base string) bool {
	u, err := url.Parse(base)
	if err != nil {
		return false
	}
	labels := strings.SplitN(u.Hostname(), ".", 3)
	return len(labels) == 3 && names.IsAgentLabel(labels[1])
}
