package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/relay/certs"
	"github.com/sallyport/sallyport/relay/edge"
	"github.com/sallyport/sallyport/relay/ports"
	"github.com/sallyport/sallyport/relay/registry"
)

// routesChanged builds the routes again before it returns: what an agent is
// told to be registered is reachable.
func (r *Relay) routesChanged() {
	if !r.ready.Load() {
		return // Listen builds the first routes
	}
	if err := r.buildRoutes(); err != nil {
		r.log.Error("routes not changed", "err", err)
	}
	r.bell.Ring()
}

// buildRoutes turns what is registered into what is routed and swaps it whole:
// first the sites, then the router, so that no connection is routed to a site
// that is not there yet.
func (r *Relay) buildRoutes() error {
	r.building.Lock()
	defer r.building.Unlock()
	byHost := map[string][]registry.Route{}
	routes := r.registry.Routes()
	for _, rt := range routes {
		byHost[rt.Host] = append(byHost[rt.Host], rt)
	}
	sites, targets := r.ownSites(), map[string]edge.Target{}
	vouched, policies := map[string]struct{}{}, map[string]string{}
	used, lanes := map[proxyKey]bool{}, map[laneKey]*lane{}
	terminate := edge.WithECH(edge.Named("terminate", edge.TargetFunc(func(ctx context.Context, c *edge.Conn) { r.door.ServeConn(ctx, c) })))
	web := map[string]struct{}{} // may have an HTTPS record
	for host, routes := range byHost {
		if names.IsReserved(host, r.conf.Domain) && names.AgentOf(host, r.conf.Domain) != string(routes[0].Agent) {
			continue // the registry refuses such claims; no record in the store overrules our own hosts
		}
		switch l := routes[0].Service; l.TLS {
		case protocol.TLSRelay:
		case protocol.TLSAgent:
			// The agent ends TLS as the relay does: it confirms encrypted hellos.
			targets[host] = edge.WithECH(r.lane(host, routes[0], lanes))
			if l.Proto != protocol.ProtoRaw {
				web[host] = struct{}{}
			}
			continue
		default:
			targets[host] = r.lane(host, routes[0], lanes)
			continue
		}
		sites[host] = r.makeSite(host, routes, used)
	}
	homes, err := names.NewTable(sites)
	if err != nil {
		return fmt.Errorf("build routes: %w", err)
	}
	r.tokenSites(sites, homes.Lookup)
	for host, s := range sites {
		targets[host] = terminate
		vouched[host], policies[host] = struct{}{}, s.Policy
		if s.Handler != nil && s.RawALPN == "" {
			web[host] = struct{}{}
		}
	}
	if r.ech != nil {
		targets[r.echName()], vouched[r.echName()] = r.publicPage, struct{}{}
	}
	siteTable, err1 := names.NewTable(sites)
	targetTable, err2 := names.NewTable(targets)
	webTable, err3 := names.NewTable(web)
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("build routes: %w", err)
	}
	if err := r.public.serve(vouched); err != nil {
		return fmt.Errorf("build routes: %w", err)
	}
	r.sites.Store(siteTable)
	r.router.Swap(&edge.Snapshot{
		Hosts:      targetTable,
		TunnelName: r.state.tunnel.ServerName,
		Tunnel:     edge.Named("tunnel", edge.TargetFunc(r.tunnelTarget)),
		Join:       edge.Named("join", edge.TargetFunc(r.joinTarget)),
		ACME:       r.challengeTarget(),
		MQTTName:   r.ownHost(mqttLabel),
		Default:    r.decoy.Load().target,
	})
	if t, ok := targets[r.ownHost(mqttLabel)]; ok {
		hub, err := names.NewTable(map[string]edge.Target{r.ownHost(mqttLabel): t})
		if err != nil {
			return fmt.Errorf("build routes: %w", err)
		}
		r.mqttRouter.Swap(&edge.Snapshot{Hosts: hub, MQTTName: r.ownHost(mqttLabel), Default: r.decoy.Load().target})
	}
	if !maps.Equal(policies, r.policies) {
		r.policies = policies
		r.door.Recheck() // it looks at every connection and rotates ticket keys
	}
	for key, l := range r.lanes {
		if lanes[key] != l {
			close(l.gone)
		}
	}
	r.lanes = lanes
	r.dropProxies(used)
	r.served.Store(&served{all: targetTable, web: webTable, list: slices.Collect(maps.Keys(targets))})
	r.devicesChanged.ring() // a home has other hosts now: other devices may come to it
	r.zone.rebuilt(routes)
	r.openPorts()
	return nil
}

// served is what the DNS may tell of.
type served struct {
	all  *names.Table[edge.Target]
	web  *names.Table[struct{}]
	list []string
}

// openPorts opens and closes the public ports of services.
func (r *Relay) openPorts() {
	var list []ports.Route
	for _, p := range r.registry.PortRoutes() {
		list = append(list, ports.Route{Agent: p.Agent, Service: p.Service, Port: p.Port, UDP: p.UDP})
	}
	for route, err := range r.ports.Set(list) {
		r.log.Error("a public port is not served", "port", route.String(), "service", route.Service, "err", err)
	}
}

// makeSite makes the site of one host; several routes are paths under it.
func (r *Relay) makeSite(host string, routes []registry.Route, used map[proxyKey]bool) *door.Site {
	first := routes[0]
	s := &door.Site{
		Host: host, Mode: door.Mode(first.Service.Auth), Certificate: r.public.GetCertificate,
		Policy: strings.Join([]string{host, first.Service.Auth, string(first.Agent)}, " "),
	}
	if first.Service.Proto == protocol.ProtoRaw {
		s.Policy += " raw " + first.Service.Name
		s.Raw = r.rawHandler(first)
		return s
	}
	if first.Path == "" && len(routes) == 1 {
		s.Handler = r.proxy(first, used)
	} else {
		paths := map[string]http.Handler{}
		for _, rt := range routes {
			paths[cmp.Or(rt.Path, "/")] = r.proxy(rt, used) // "/": the rest of the host
		}
		s.Handler = door.NewPaths(paths)
	}
	if s.Mode != door.None {
		s.Handler = r.reminder.wrap(s.Handler)
	}
	return s
}

// A proxyKey tells whether a reverse proxy, with its pool of idle connections
// to the backend, can serve on after a rebuild.
type proxyKey struct {
	agent         protocol.AgentID
	service, path string
	proto         string
	solo, user    bool
}

func (r *Relay) proxy(rt registry.Route, used map[proxyKey]bool) *door.Proxy {
	key := proxyKey{rt.Agent, rt.Service.Name, rt.Path, rt.Service.Proto, rt.Service.Solo, rt.Service.RemoteUser}
	used[key] = true
	r.mu.Lock()
	defer r.mu.Unlock()
	if p, ok := r.proxies[key]; ok {
		return p
	}
	p := door.NewProxy(door.Backend{
		Dial: func(ctx context.Context, v door.Visitor) (net.Conn, error) {
			return r.registry.OpenStream(ctx, rt.Agent, openFor(rt.Service.Name, v))
		},
		Proto: rt.Service.Proto, Solo: rt.Service.Solo, Prefix: rt.Path, Errors: describe,
		RemoteUser:   rt.Service.RemoteUser,
		ExternalPort: r.conf.urlPort(r.tcp.Addr()),
	}, r.log.With("service", rt.Service.Name, "agent", rt.Agent.Short()))
	r.proxies[key] = p
	return p
}

func (r *Relay) dropProxies(used map[proxyKey]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, p := range r.proxies {
		if !used[key] {
			p.Close()
			delete(r.proxies, key)
		}
	}
}

func openFor(service string, v door.Visitor) protocol.Open {
	return protocol.Open{Service: service, Client: v.Remote, Local: v.Local, SNI: v.Host}
}

// rawHandler carries a terminated TCP connection home.
func (r *Relay) rawHandler(rt registry.Route) func(context.Context, tunnel.Conn, door.Visitor) {
	return func(ctx context.Context, c tunnel.Conn, v door.Visitor) {
		st, err := r.registry.OpenStream(ctx, rt.Agent, openFor(rt.Service.Name, v))
		if err != nil {
			r.log.Warn("no stream for a visitor", "service", rt.Service.Name, "agent", rt.Agent.Short(), "err", err)
			tunnel.Abort(c, protocol.CodeBackendDown)
			return
		}
		tunnel.Splice(ctx, c, st, tunnel.SpliceOptions{})
	}
}

// A lane carries TLS of one host home unread. Its connections end when the
// host is released, goes to another agent or service, or is terminated from
// now on: a rebuild closes gone.
type lane struct {
	edge.Passthrough
	gone chan struct{}
}

// provenBytes is more than a handshake that ends with a refusal takes, either way.
const provenBytes = 12 << 10

// maxHelloBytes is the most that a visitor may send as one ClientHello.
const maxHelloBytes = 64 << 10

type laneKey struct {
	host    string
	agent   protocol.AgentID
	service string
	tls     string
}

func (r *Relay) lane(host string, rt registry.Route, lanes map[laneKey]*lane) *lane {
	key := laneKey{host, rt.Agent, rt.Service.Name, rt.Service.TLS}
	l, ok := r.lanes[key]
	if !ok {
		l = &lane{gone: make(chan struct{})}
		// Strangers get as far as the home's certificate. What the visitor sends
		// proves nothing until it is more than any hello may be.
		l.Proven = func(in, out int64) bool { return out > provenBytes || in > 3*maxHelloBytes }
		l.Open = func(ctx context.Context, c *edge.Conn) (tunnel.Stream, error) {
			return r.registry.OpenStream(ctx, rt.Agent, openFor(rt.Service.Name, door.Visitor{
				Remote: addrPort(c.RemoteAddr()), Local: addrPort(c.LocalAddr()), Host: c.Hello.ServerName,
			}))
		}
	}
	lanes[key] = l
	return l
}

// HandleConn ends early when the lane does.
func (l *lane) HandleConn(ctx context.Context, c *edge.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-l.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	l.Passthrough.HandleConn(ctx, c)
	cancel()
	<-ended
}

// describe words a failed exchange for a device: what happened, nothing of the
// inside. The log has the rest; strangers get a page that is always the same.
func describe(err error) (status int, title, text string) {
	const gateway = http.StatusBadGateway
	var off *registry.OfflineError
	var res *registry.ResultError
	switch {
	case errors.As(err, &off) && off.Since.IsZero():
		return gateway, "Home is offline", "The home behind this address has not connected yet."
	case errors.As(err, &off):
		return gateway, "Home is offline", "Home offline since " + off.Since.UTC().Format("2006-01-02 15:04 MST") + ". It comes back by itself once its line does."
	case errors.As(err, &res) && res.Code == protocol.CodeUnknownService:
		return gateway, "Not offered", "The home is connected, but does not offer this service any more."
	case errors.As(err, &res) && res.Code == protocol.CodeBackendTLS:
		return gateway, "The service at home is not trusted",
			"The home is connected, but the certificate of the service behind it does not verify. The agent's log says why."
	case errors.As(err, &res):
		return gateway, "The service at home does not answer",
			"The home is connected, but the service behind this address is down. The agent's log says why."
	}
	return gateway, "The service at home does not answer",
		"The connection to the service at home was lost. Try again in a moment."
}

// site is the door's lookup: the same table that routes connections.
func (r *Relay) site(name string) (*door.Site, bool) {
	t := r.sites.Load()
	if t == nil {
		return nil, false
	}
	return t.Lookup(name)
}

// terminated lists the host patterns whose TLS ends here.
func (r *Relay) terminated() iter.Seq[string] {
	return func(yield func(string) bool) {
		r.building.Lock()
		hosts := slices.Collect(maps.Keys(r.policies))
		r.building.Unlock()
		for _, h := range hosts {
			if !yield(h) {
				return
			}
		}
	}
}

// challengeTarget answers acme-tls/1 for hosts whose TLS ends here; nil when no
// certificates are had by ACME.
func (r *Relay) challengeTarget() edge.Target {
	if r.public.acme == nil {
		return nil
	}
	return edge.Challenge{Certificate: r.public.acme.ChallengeCert}
}

// A decoy is what strangers meet, and how the owner wrote it.
type decoy struct {
	choice string
	target edge.Target
}

func (r *Relay) makeDecoy(choice string) (*decoy, error) {
	switch choice {
	case DecoyOff:
		return &decoy{choice, edge.Refuse{}}, nil
	case DecoyPage:
		cert, err := certs.RandomCert(r.conf.DataDir)
		if err != nil {
			return nil, fmt.Errorf("decoy page: %w", err)
		}
		return &decoy{choice, edge.NewDecoyPage(cert)}, nil
	}
	addr := strings.TrimPrefix(choice, "tcp://")
	own := []net.Addr{r.tcp.Addr()}
	if r.http != nil {
		own = append(own, r.http.Addr())
	}
	if err := edge.CheckDecoy(addr, own); err != nil {
		return nil, fmt.Errorf("decoy: %w", err)
	}
	return &decoy{choice, edge.DecoyTCP{Addr: addr}}, nil
}

func addrPort(a net.Addr) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(a.String()) // not an IP address: unknown
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
