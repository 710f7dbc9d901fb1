package ports

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A Route says to which service of which agent a public port leads.
type Route struct {
	Agent   protocol.AgentID
	Service string
	Port    uint16
	UDP     bool // false: TCP
}

// String is the port as an operator writes it: "51820/udp".
func (r Route) String() string { return fmt.Sprintf("%d/%s", r.Port, r.network()) }

func (r Route) network() string {
	if r.UDP {
		return "udp"
	}
	return "tcp"
}

// Limits bound what visitors of one port can take. Zero values mean the defaults.
type Limits struct {
	// PerSource is how many flows or connections one IPv4 address or IPv6 /64 has
	// at a time. One more, and its oldest stranger goes; where strangers are few, the
	// UDP flow that has been silent longest; a TCP connection is refused. Default 64.
	PerSource int
	// PerPort is how many there are in all, likewise. Default 4096.
	PerPort int
	// NewPerSource is how many UDP flows one source may begin a second; it may save
	// up four seconds of it. Default 20.
	NewPerSource int
	// NewPerPort is the same for all sources together. Default 250.
	NewPerPort int
	// UDPIdle ends a flow whose visitor has sent nothing for so long. Default 3
	// minutes; strangers have 30 seconds at most.
	UDPIdle time.Duration
	// TCPIdle ends a connection on which nothing moved for so long. 0: never.
	TCPIdle time.Duration
}

func (l Limits) withDefaults() Limits {
	l.PerSource = cmp.Or(l.PerSource, 64)
	l.PerPort = cmp.Or(l.PerPort, 4096)
	l.NewPerSource = cmp.Or(l.NewPerSource, 20)
	l.NewPerPort = cmp.Or(l.NewPerPort, 250)
	l.UDPIdle = cmp.Or(l.UDPIdle, 3*time.Minute)
	return l
}

// Config is what Ports needs. Open is required.
type Config struct {
	// ListenTCP and ListenUDP open the public sockets. nil: on all addresses of the
	// machine, IPv6 and IPv4.
	ListenTCP func(port uint16) (net.Listener, error)
	ListenUDP func(port uint16) (net.PacketConn, error)
	// Open opens a stream to a service of an agent, its Result already read. It
	// bounds its own time. It is called concurrently.
	Open   func(ctx context.Context, agent protocol.AgentID, o protocol.Open) (tunnel.Stream, error)
	Limits Limits
	Logger *slog.Logger // nil: silent
	// Audit is told of ports that open and close. nil: nobody.
	Audit func(event string, attrs ...slog.Attr)
}

// retryBind is how often a port is tried again that could not be had.
const retryBind = 30 * time.Second

var errStopped = errors.New("the relay is stopping")

// Ports serves the public ports. Its methods are safe for concurrent use.
type Ports struct {
	cfg Config
	log *slog.Logger

	setting sync.Mutex // one change of the bindings at a time; held while sockets are opened and closed

	mu     sync.Mutex        // guards the fields below
	wanted []Route           // of the last Set
	bound  map[Route]binding // what has its socket
	failed map[Route]error   // what has not, and why
	fresh  []binding         // bound, and for Run to serve
	over   bool              // Run has ended

	news chan struct{} // has an element when fresh is not empty
}

// A binding is a public socket that leads to one route. serve returns after all
// its visitors are gone; it ends with ctx, or at once after unbind, which frees
// the port before it returns.
type binding interface {
	serve(ctx context.Context)
	unbind(why *tunnel.CloseError)
	status() Status
}

// New checks the configuration. It opens nothing.
func New(cfg Config) (*Ports, error) {
	if cfg.Open == nil {
		return nil, errors.New("ports: Config.Open is missing")
	}
	if cfg.ListenTCP == nil {
		cfg.ListenTCP = listenTCP
	}
	if cfg.ListenUDP == nil {
		cfg.ListenUDP = listenUDP
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Audit == nil {
		cfg.Audit = func(string, ...slog.Attr) {}
	}
	cfg.Limits = cfg.Limits.withDefaults()
	return &Ports{cfg: cfg, log: cfg.Logger, bound: map[Route]binding{}, news: make(chan struct{}, 1)}, nil
}

func listenTCP(port uint16) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(int(port))))
}

func listenUDP(port uint16) (net.PacketConn, error) {
	return net.ListenPacket("udp", net.JoinHostPort("", strconv.Itoa(int(port))))
}

// Set makes routes the ports that are served: it opens what is new, closes what
// is gone together with its connections, and leaves the rest alone. A port that
// goes to another agent or service is closed and opened. Sockets are open when it
// returns; visitors are served once Run runs.
//
// It returns what could not be had, worded for people; such ports are tried
// again every 30 seconds, and by the next Set. Of two routes that want the same
// port, the one that has it already stays, otherwise the first.
func (p *Ports) Set(routes []Route) map[Route]error {
	p.setting.Lock()
	defer p.setting.Unlock()
	p.mu.Lock()
	p.wanted = slices.Clone(routes)
	p.mu.Unlock()
	return p.apply()
}

// apply does what Set says with the routes that are wanted; setting is held.
func (p *Ports) apply() map[Route]error {
	p.mu.Lock()
	over := p.over
	take, failed := p.choose()
	gone := map[Route]binding{}
	for r, b := range p.bound {
		if !take[r] {
			gone[r] = b
			delete(p.bound, r)
		}
	}
	var missing []Route
	for r := range take {
		if p.bound[r] == nil {
			missing = append(missing, r)
		}
	}
	known := p.failed
	p.mu.Unlock()

	for r, b := range gone {
		b.unbind(&tunnel.CloseError{Code: protocol.CodeUnknownService, Reason: "the port was closed"})
		p.audit("port.closed", r)
	}
	slices.SortFunc(missing, compareRoutes)
	made := map[Route]binding{}
	for _, r := range missing {
		if over {
			failed[r] = errStopped
			continue
		}
		b, err := p.bind(r)
		if err != nil {
			failed[r] = err
			if known[r] == nil {
				p.log.Warn("port not opened", "port", r.String(), "service", r.Service, "agent", r.Agent.Short(), "error", err, "retry_in", retryBind)
			}
			continue
		}
		made[r] = b
		p.audit("port.opened", r)
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	for r, b := range made {
		p.bound[r] = b
		p.fresh = append(p.fresh, b)
	}
	p.failed = failed
	p.ring()
	return failed
}

// choose settles who has which port; mu is held.
func (p *Ports) choose() (take map[Route]bool, failed map[Route]error) {
	type place struct {
		port uint16
		udp  bool
	}
	owner := map[place]Route{}
	for _, r := range p.wanted {
		at := place{r.Port, r.UDP}
		if first, taken := owner[at]; !taken || p.bound[first] == nil && p.bound[r] != nil {
			owner[at] = r
		}
	}
	take, failed = map[Route]bool{}, map[Route]error{}
	for _, r := range p.wanted {
		switch first := owner[place{r.Port, r.UDP}]; {
		case r.Port == 0:
			failed[r] = errors.New("port 0 is no port: choose one from 1 to 65535")
		case first != r:
			failed[r] = fmt.Errorf("port %s is taken by another service: choose another one", r)
		default:
			take[r] = true
		}
	}
	return take, failed
}

func compareRoutes(a, b Route) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.network(), b.network()))
}

func (p *Ports) audit(event string, r Route) {
	p.cfg.Audit(event, slog.String("port", r.String()), slog.String("service", r.Service), slog.String("agent", string(r.Agent)))
}

// ring tells Run that there is something to serve.
func (p *Ports) ring() {
	select {
	case p.news <- struct{}{}:
	default:
	}
}
