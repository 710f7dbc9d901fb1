// Package agent is the process at home: it joins a relay once, keeps a tunnel
// to it, and answers the streams that come through with the services it
// offers.
//
//	a, err := agent.New(agent.Config{
//		DataDir:  "/var/lib/sallyport/agent",
//		Token:    token, // needed until the first join succeeded
//		Services: []service.Entry{{Name: "ha", Target: "http://127.0.0.1:8123"}},
//		Logger:   logger,
//	})
//	if err != nil { … }
//	err = a.Run(ctx) // until ctx ends; errors.Is(err, agent.ErrRefused), …
//
// Run does not end because the network, DNS or the relay is absent. Its leaves:
// uplink keeps the sessions, service answers the streams, state is the data
// directory, control the local socket for `expose` and `status`.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/agent/service"
	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/bridge"
	"github.com/sallyport/sallyport/mqttbridge/executor"
	"github.com/sallyport/sallyport/mqttbridge/queue"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// Errors of New, Join and Run by what the caller should do (DESIGN §8).
var (
	// ErrConfig: something here must be corrected; exit code 2.
	ErrConfig = errors.New("wrong configuration")
	// ErrUnreachable: try again later; exit code 69.
	ErrUnreachable = errors.New("relay unreachable")
	// ErrRefused: the relay says no, or is not the one that it should be; exit
	// code 77.
	ErrRefused = errors.New("refused")
)

// classed gives an error a class without changing its text.
type classed struct {
	error
	class error
}

func (e *classed) Unwrap() []error { return []error{e.error, e.class} }

func class(c error, err error) error { return &classed{err, c} }

func classf(c error, format string, args ...any) error { return class(c, fmt.Errorf(format, args...)) }

// Config is what an Agent needs. Only DataDir is required, and Token until the
// agent has joined.
type Config struct {
	DataDir string // made with mode 0700
	// Token joins the agent. When it has joined the same relay already, the
	// token is ignored, or, when it names a new address, that is taken over.
	Token string
	Name  string // how the relay may call this agent; "" = the host's name
	// Services come from the configuration file, and from flags that replace
	// one of its. They hold for this run and win over exposed ones of the same
	// name; a duplicate among them is refused.
	Services []service.Entry
	// Expose holds services to expose as `agent expose` does: Run stores them,
	// so that later runs offer them without being told. They replace stored
	// ones of the same name; none may have the name of one of Services.
	Expose []service.Entry
	// MQTT joins the home's broker to the relay. nil = there is none, and then
	// there are no Actions either.
	MQTT *MQTT
	// EndToEnd says how services with TLS "agent" are served. nil = with the
	// defaults.
	EndToEnd *EndToEnd
	// Actions are what devices may ask this home to do.
	Actions  []executor.Action
	Logger   *slog.Logger // nil = discard
	Software string       // "sallyport 1.2.3": told to the relay, for people
	// OnRegistered is called with the relay's first answer, also to an empty
	// offer, and whenever it changed. It must not block. nil = not.
	OnRegistered func([]protocol.Registration)
	// TransportNames restricts and orders the transports: "quic", "tcp";
	// empty = both, in this order.
	TransportNames []string
	// MaxStreams is how many visitors' streams may be open at once, over all
	// sessions; more are reset with CodeOverload. 0 = 1,000.
	MaxStreams int

	// The rest are seams for tests and unusual networks; nil = the real thing.

	Now          func() time.Time
	ListenPacket func(ctx context.Context, remote netip.AddrPort) (net.PacketConn, error)
	DialContext  func(ctx context.Context, network, addr string) (net.Conn, error)
	Resolve      func(ctx context.Context, host string) ([]netip.Addr, error)
	LocalNames   service.Resolver // names that end in .local
	// DialService reaches services at home; what it returns must be a
	// tunnel.Conn.
	DialService func(ctx context.Context, network, addr string) (net.Conn, error)
	Network     func() string // fingerprint of the machine's network, see uplink.Config
	// ListenControl makes the control socket in the data directory; nil =
	// control.Listen. A nil listener without error = no control socket.
	ListenControl func(dir string) (net.Listener, error)
	// Transports replaces quic and tcp. What it returns is dialled with the
	// agent's identity by whatever means the test likes.
	Transports func() []tunnel.Transport
}

// MQTT says how the home's broker is reached and what of it crosses.
type MQTT struct {
	Broker bridge.Broker
	Rules  []mqttbridge.Rule
	Limits queue.Limits // of what waits here for the relay
}

// maxStreams is the default of Config.MaxStreams: far more than a home's
// visitors need, and less than the open files that most systems allow.
const maxStreams = 1000

func (c *Config) validate() error {
	var errs []error
	if c.DataDir == "" {
		errs = append(errs, errors.New("no data directory is named (--data)"))
	}
	if dup := duplicates(c.offered()); len(dup) > 0 {
		errs = append(errs, fmt.Errorf("services are given twice: %s\nGive each a name of its own.", strings.Join(dup, ", ")))
	}
	errs = append(errs, c.checkMQTT()...)
	errs = append(errs, c.checkEndToEnd()...)
	if c.MaxStreams < 0 {
		errs = append(errs, fmt.Errorf("at most %d streams: give a positive number, or 0 for %d", c.MaxStreams, maxStreams))
	}
	for _, n := range c.TransportNames {
		if n != "quic" && n != "tcp" {
			errs = append(errs, fmt.Errorf("transport %q is not known: use quic or tcp", n))
		}
	}
	if len(errs) > 0 {
		return class(ErrConfig, errors.Join(errs...))
	}
	return nil
}

// offered is what a first run offers.
func (c *Config) offered() []service.Entry { return slices.Concat(c.Services, c.Expose) }

func (c *Config) fill() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Name == "" {
		c.Name, _ = os.Hostname() // only a wish: none is fine
	}
	if c.DialContext == nil {
		c.DialContext = (&net.Dialer{}).DialContext
	}
	if c.Resolve == nil {
		c.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if c.ListenControl == nil {
		c.ListenControl = control.Listen
	}
	if c.Network == nil {
		c.Network = localAddresses
	}
	if c.EndToEnd == nil {
		c.EndToEnd = new(EndToEnd)
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = maxStreams
	}
	if len(c.TransportNames) == 0 {
		c.TransportNames = []string{"quic", "tcp"}
	}
}

// localAddresses changes when a cable, a Wi-Fi or a VPN comes or goes.
func localAddresses() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	var words []string
	for _, a := range addrs {
		// Link-local ones come and go with every container.
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			words = append(words, a.String())
		}
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}
