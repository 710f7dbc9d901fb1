// Package relay is the public end of Sallyport: it meets the internet on one
// port, checks who is knocking, and carries each accepted connection through
// an agent's tunnel to a service at home.
//
//	r, err := relay.New(relay.Config{DataDir: dir, Domain: "example.org", Store: kv})
//	if err := r.Listen(); err != nil { … } // the ports are ours, nothing is served yet
//	err = r.Run(ctx)                       // until ctx ends
//
// The package joins its leaves, which do not know each other: edge (public
// sockets, hello, routing), door (TLS, client certificates, HTTP), registry
// (agents, claims, streams), devices, enroll, certs, admin. routes.go turns what
// is registered into what is routed; ownhosts.go adds the relay's own hosts;
// control.go is the relay's end of the wire.
//
// # What a stranger can tell
//
// A scanner without a host's name meets the decoy or a TLS alert. Somebody who
// knows (or guesses) a name learns from the handshake that it is served here;
// its certificate then names that host, as it must. Joining works over TCP
// only: a home whose TCP 443 is blocked cannot be helped by QUIC alone, and one
// pre-authentication path is easier to guard than two.
package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunnelquic"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/devices"
	"github.com/sallyport/sallyport/relay/ech"
	"github.com/sallyport/sallyport/relay/edge"
	"github.com/sallyport/sallyport/relay/enroll"
	"github.com/sallyport/sallyport/relay/ports"
	"github.com/sallyport/sallyport/relay/registry"
)

// A Relay is made by New, bound by Listen and run by Run, once each.
type Relay struct {
	conf    Config
	log     *slog.Logger
	now     func() time.Time
	started time.Time

	state      *state
	tunnelCert *tunnelCert
	audit      *admin.Log
	devices    *devices.Devices
	desk       *enroll.Desk
	enrolment  *enrolment
	login      *admin.Login
	bell       admin.Bell // rings when what the dashboard shows has changed
	reminder   *reminder
	clock      clockWatch
	registry   *registry.Registry
	// devicesChanged wakes those who hand out the list of devices.
	devicesChanged signal
	bridges        *bridges // MQTT and commands
	// bridgeFault is why there are none, though they are wanted.
	bridgeFault error
	ready       atomic.Bool // Listen has built the first routes
	door        *door.Door
	router      *edge.Router
	mqttRouter  *edge.Router // of the hub's own port: knows its host and nothing else
	zone        *zone        // DNS; nil: off
	ech         *ech.Keys    // nil: off
	publicPage  edge.Target  // of ECH's public name
	ports       *ports.Ports // public ports of services
	served      atomic.Pointer[served]
	sites       atomic.Pointer[names.Table[*door.Site]]
	public      *publicCerts
	decoy       atomic.Pointer[decoy]
	joinLimit   *limiter
	denials     *denials // audit lines about those who were refused

	tcp  net.Listener
	udp  net.PacketConn
	http net.Listener // nil: off
	mqtt net.Listener // the hub's own port; nil: none
	quic *tunnelquic.Listener

	loopback net.Listener // of the dashboard; nil: off

	building sync.Mutex        // one rebuild of routes at a time; guards lanes and policies
	lanes    map[laneKey]*lane // of hosts that are passed through
	policies map[string]string // host → policy

	mu       sync.Mutex               // guards the fields below
	proxies  map[proxyKey]*door.Proxy // kept over rebuilds, so that idle backend connections are
	controls map[*control]struct{}
	unsaid   map[protocol.AgentID]int // sessions that have not said hello
}

// New reads or makes what the relay keeps in its data directory. It opens no
// socket and starts nothing.
func New(conf Config) (*Relay, error) {
	if err := conf.err(); err != nil {
		return nil, err
	}
	conf.Domain, _ = names.Canonical(conf.Domain) // checked above
	r := &Relay{
		conf: conf, log: conf.logger(), now: conf.now(),
		router: edge.NewRouter(), mqttRouter: edge.NewRouter(),
		proxies: map[proxyKey]*door.Proxy{}, controls: map[*control]struct{}{}, unsaid: map[protocol.AgentID]int{},
		joinLimit: newLimiter(joinBurst, joinEvery), denials: newDenials(),
	}
	r.started, r.clock.now = r.now(), r.now
	r.login = admin.NewLogin(r.now, r.event)
	var err error
	if r.state, err = loadState(conf.DataDir, conf.certs() == CertsInternal, r.now); err != nil {
		return nil, err
	}
	r.tunnelCert = &tunnelCert{ca: r.state.agentCA, name: r.state.tunnel.ServerName, now: r.now}
	if r.audit, err = admin.OpenLog(filepath.Join(conf.DataDir, "audit.log"), r.log); err != nil {
		return nil, err
	}
	if err := r.open(); err != nil {
		return nil, errors.Join(err, r.audit.Close())
	}
	return r, nil
}

// open makes the parts that need the audit log.
func (r *Relay) open() error {
	var err error
	if r.public, err = newPublicCerts(r.conf, r.state, r.event); err != nil {
		return err
	}
	r.devices, err = devices.New(context.Background(), devices.Config{
		Store: r.conf.Store, CA: r.state.deviceCA, Domain: r.conf.Domain, Now: r.now, Logger: r.log,
		OnRevoke: r.deviceRevoked, OnChange: func() { r.devicesChanged.ring(); r.routesChanged() },
	})
	if err != nil {
		return err
	}
	if r.desk, err = r.newDesk(); err != nil {
		return err
	}
	r.door, err = door.New(door.Config{
		Lookup: r.site, ClientCAs: r.state.deviceCA.Pool(), Check: r.checkDevice, CheckToken: r.checkToken,
		Denied: r.deniedPage, Seen: r.devices.Seen, Logger: r.log, Now: r.now, Audit: r.denied,
	})
	return err
}

// Listen binds the public ports and makes everything ready to serve. Run calls
// it when the caller has not; calling it first lets the caller print addresses
// and tokens. Close releases the ports when Run is never called.
func (r *Relay) Listen() error {
	if r.tcp != nil {
		return nil
	}
	if err := r.bind(); err != nil {
		return errors.Join(err, r.Close())
	}
	var err error
	r.registry, err = registry.New(context.Background(), registry.Config{
		Store: r.conf.Store, Domain: r.conf.Domain, Port: r.conf.urlPort(r.tcp.Addr()), Replicas: r.conf.Replicas,
		Now: r.now, Logger: r.log, Audit: r.event, Changed: r.routesChanged, GoAway: r.sendGoAway,
	})
	if err != nil {
		return errors.Join(err, r.Close())
	}
	if err := r.openOwnHosts(); err != nil {
		return errors.Join(err, r.Close())
	}
	if r.bridges, r.bridgeFault = r.openBridges(); r.bridgeFault != nil {
		// Visitors must not be shut out by a damaged mailbox.
		r.log.Error("MQTT and commands do not run", "err", r.bridgeFault)
		r.event("mqtt.failed", slog.String("error", r.bridgeFault.Error()))
	}
	if err := r.openNames(); err != nil {
		return errors.Join(err, r.Close())
	}
	d, err := r.makeDecoy(r.conf.decoy())
	if err != nil {
		return errors.Join(err, r.Close())
	}
	r.decoy.Store(d)
	r.quic, err = tunnelquic.Listen(r.udp, r.quicTLS(), tunnelquic.Config{
		ResetKey: &r.state.tunnel.ResetKey, MaxAccept: int64(r.agentStreams()), Logger: r.log,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("listen on UDP: %w", err), r.Close())
	}
	if err := r.buildRoutes(); err != nil {
		return errors.Join(err, r.Close())
	}
	r.ready.Store(true)
	return nil
}

// openOwnHosts makes what stands on the relay's own hosts: their pages name
// the public port, which is known once it is bound.
func (r *Relay) openOwnHosts() error {
	var err error
	if r.enrolment, err = r.newEnrolment(); err != nil {
		return err
	}
	r.reminder = &reminder{now: r.now, page: r.ownURL(checkLabel) + "/renew", due: r.dueForRenewal}
	return nil
}

// openNames makes the DNS server with the keys for encrypted hellos, and what
// serves public ports.
func (r *Relay) openNames() error {
	// A relay that listens on one address has its other ports there, too.
	listenTCP, listenUDP := r.conf.ListenPortTCP, r.conf.ListenPortUDP
	if host, _, err := net.SplitHostPort(r.conf.listen()); err == nil && host != "" {
		at := func(port uint16) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }
		if listenTCP == nil {
			listenTCP = func(port uint16) (net.Listener, error) { return net.Listen("tcp", at(port)) }
		}
		if listenUDP == nil {
			listenUDP = func(port uint16) (net.PacketConn, error) { return net.ListenPacket("udp", at(port)) }
		}
	}
	var err error
	r.ports, err = ports.New(ports.Config{
		ListenTCP: listenTCP, ListenUDP: listenUDP,
		Open: r.registry.OpenStream, Logger: r.log, Audit: r.auditPort,
		// A home has streams for 200 of each kind by default (agent.Config.MaxStreams):
		// the oldest strangers must make room here, not there.
		Limits: ports.Limits{PerPort: 190},
	})
	if err != nil {
		return err
	}
	if r.zone, err = r.openZone(); err != nil || r.zone == nil {
		return err
	}
	if err := r.zone.bind(r.listenTCP(), r.listenUDP()); err != nil || r.conf.DNS.ECHOff {
		return err
	}
	r.ech, err = ech.NewKeys(ech.Config{
		Dir: filepath.Join(r.conf.DataDir, "ech"), PublicName: r.echName(), Now: r.now, Logger: r.log,
		Changed: func() { r.zone.server.Changed() },
	})
	if err != nil {
		return fmt.Errorf("keys for encrypted hellos: %w", err)
	}
	r.publicPage = edge.NewPublicPage(func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return r.public.GetCertificate(r.echName())
	}, r.ech.RetryKeys)
	return nil
}

// echName is the server name that networks see of visitors with encrypted
// hellos.
func (r *Relay) echName() string { return r.ownHost("www") }

func (r *Relay) listenTCP() func(addr string) (net.Listener, error) {
	if r.conf.ListenTCP != nil {
		return r.conf.ListenTCP
	}
	return func(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }
}

func (r *Relay) listenUDP() func(addr string) (net.PacketConn, error) {
	if r.conf.ListenUDP != nil {
		return r.conf.ListenUDP
	}
	return func(addr string) (net.PacketConn, error) { return net.ListenPacket("udp", addr) }
}

// bind opens the sockets. With port 0 in Listen, UDP takes the port that TCP got.
func (r *Relay) bind() error {
	listenTCP, listenUDP := r.listenTCP(), r.listenUDP()
	var err error
	if r.tcp, err = listenTCP(r.conf.listen()); err != nil {
		return bindError("TCP", r.conf.listen(), err)
	}
	addr := r.conf.listen()
	if host, _, err := net.SplitHostPort(addr); err == nil {
		if _, port, err := net.SplitHostPort(r.tcp.Addr().String()); err == nil {
			addr = net.JoinHostPort(host, port)
		}
	}
	if r.udp, err = listenUDP(addr); err != nil {
		return bindError("UDP", addr, err)
	}
	if r.conf.http() != "off" {
		if r.http, err = listenTCP(r.conf.http()); err != nil {
			return fmt.Errorf("%w\nor give --http off", bindError("TCP", r.conf.http(), err))
		}
	}
	if addr := r.conf.MQTT.Listen; addr != "" && !r.conf.MQTT.Off {
		if r.mqtt, err = listenTCP(addr); err != nil {
			return bindError("TCP", addr, err)
		}
	}
	if r.conf.AdminListen != "" {
		if r.loopback, err = admin.ListenLoopback(context.Background(), r.conf.AdminListen); err != nil {
			return err
		}
	}
	return nil
}

func bindError(proto, addr string, err error) error {
	return fmt.Errorf("listen on %s %s: %w", proto, addr, err)
}

// Close releases what Listen took. Run does so itself.
func (r *Relay) Close() error {
	var errs []error
	if r.quic != nil {
		errs = append(errs, r.quic.Close())
	}
	for _, l := range []net.Listener{r.tcp, r.http, r.mqtt, r.loopback} {
		if l != nil {
			errs = append(errs, ignoreClosed(l.Close()))
		}
	}
	if r.udp != nil {
		errs = append(errs, ignoreClosed(r.udp.Close()))
	}
	r.mu.Lock()
	for _, p := range r.proxies {
		p.Close()
	}
	clear(r.proxies)
	r.mu.Unlock()
	errs = append(errs, r.zone.close(), r.door.Close(), r.bridges.close(), r.audit.Close())
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Run serves until ctx ends or something that it cannot do without fails. It
// returns after everything that it started has ended.
func (r *Relay) Run(ctx context.Context) error {
	if err := r.Listen(); err != nil {
		return err
	}
	r.event("relay.started")
	// What runs does not end with the caller's context at once: agents are told first.
	running, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)

	var wg sync.WaitGroup
	run := func(name string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(running); err != nil && running.Err() == nil {
				stop(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	run("public port", r.serveEdge)
	run("mqtt", r.bridges.run)
	if r.mqtt != nil {
		run("mqtt port", r.serveMQTTPort)
	}
	run("tunnel over QUIC", r.serveQUIC)
	run("registry", r.registry.Run)
	run("devices", r.devices.Run)
	run("clock", r.watchClock)
	run("enrolment", r.desk.Run)
	run("dashboard", r.serveDashboard)
	run("certificates", r.public.run)
	run("public ports", r.ports.Run)
	run("dns", r.zone.run)
	if r.ech != nil {
		run("encrypted hellos", r.ech.Run)
	}
	run("admin", r.serveAdmin)
	if r.http != nil {
		run("plain HTTP", r.serveHTTP)
	}
	select {
	case <-ctx.Done():
		r.goAway()
		<-time.After(farewell)
		stop(nil)
	case <-running.Done():
	}
	wg.Wait()
	r.event("relay.stopped")
	err := r.Close()
	if cause := context.Cause(running); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// serveEdge serves the public TCP port.
func (r *Relay) serveEdge(ctx context.Context) error {
	s := &edge.Server{Router: r.router, Logger: r.log, ProxyFrom: r.conf.ProxyFrom}
	if r.ech != nil {
		s.ECH = r.ech
	}
	return s.Serve(ctx, r.tcp)
}

// serveMQTTPort serves the hub's own TCP port.
func (r *Relay) serveMQTTPort(ctx context.Context) error {
	s := &edge.Server{Router: r.mqttRouter, Logger: r.log}
	return s.Serve(ctx, r.mqtt)
}

// serveQUIC accepts agents' sessions over UDP.
func (r *Relay) serveQUIC(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		s, err := r.quic.Accept(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		wg.Go(func() { r.serveSession(ctx, s, func() {}) })
	}
}

// plainHTTP is what port 80 answers: challenges of the ACME server, the
// revocation list, and for everything else the way to HTTPS.
func (r *Relay) plainHTTP() http.Handler {
	redirect := edge.Redirect(r.conf.urlPort(r.tcp.Addr()))
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		host, err := names.CanonicalHost(req.Host)
		switch {
		case r.public.acme != nil && r.public.acme.HTTPChallenge(w, req):
		case err == nil && host == r.ownHost(enrollLabel) && req.Method == http.MethodGet && req.URL.Path == crlPath:
			r.serveCRL(w, req)
		default:
			redirect.ServeHTTP(w, req)
		}
	})
}

// serveHTTP serves plain HTTP.
func (r *Relay) serveHTTP(ctx context.Context) error {
	srv := edge.NewHTTPServer(r.plainHTTP(), r.log)
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(r.http); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Addr is the public TCP address, after Listen; UDP has the same port.
func (r *Relay) Addr() net.Addr { return r.tcp.Addr() }

// event writes one line to the audit log, which the dashboard shows.
func (r *Relay) event(name string, attrs ...slog.Attr) {
	r.audit.Event(name, attrs...)
	r.bell.Ring()
}

// deviceRevoked runs after the loss of rights is on disk: live connections go
// now. What is still allowed may come back.
func (r *Relay) deviceRevoked(id string) {
	r.devicesChanged.ring()
	n := r.door.Disconnect(id)
	d, ok := r.devices.ByID(id)
	what := "device lost rights"
	if !ok || d.Revoked {
		what = "device revoked"
	}
	if ok {
		r.bridges.deviceLost(d)
	}
	r.log.Info(what, "device", d.Name, "id", id, "connections_closed", n)
}

// sendGoAway asks an agent to leave a session; it does not block. A session
// that another process replaced and that stays silent is dead: its visitors
// must not wait until the transport notices.
func (r *Relay) sendGoAway(s tunnel.Session, m protocol.GoAway) {
	r.mu.Lock()
	var to *control
	for c := range r.controls {
		if c.session == s {
			to = c
		}
	}
	r.mu.Unlock()
	if to != nil {
		go r.partFrom(to, m)
	}
}

// partGrace is how long a replaced session has to show that it lives.
const partGrace = 2 * time.Second

func (r *Relay) partFrom(c *control, m protocol.GoAway) {
	asked := time.Now()
	if err := errors.Join(c.send(m), c.send(protocol.NewPing(0))); err != nil {
		return // the session has ended, or its next write finds out
	}
	select {
	case <-time.After(partGrace):
	case <-c.session.Done():
	}
	if c.heard.Load() < asked.UnixNano() {
		c.session.Close(protocol.CodeTimeout, "replaced, and silent since")
	}
}
