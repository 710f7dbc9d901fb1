package world

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/agent"
	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/agent/service"
	"github.com/sallyport/sallyport/mqttbridge/executor"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// A Home is an agent, its machine, and the apps on its network. The apps go on
// when the agent ends.
type Home struct {
	*Machine
	Relay      *Relay
	Transports []string         // of the next Start; nil: all
	Clock      func() time.Time // of the next Start; nil: the true time
	MQTT       *agent.MQTT      // of the next Start
	Actions    []executor.Action
	EndToEnd   *agent.EndToEnd // of the next Start
	LAN        string          // address of the door on the home network, of the next Start; "" = none

	token    string
	dir      string
	services []service.Entry
	apps     map[string]*listener // by address on the home network
	run      *homeRun
}

// homeRun is one process.
type homeRun struct {
	process *process
	agent   *agent.Agent
	cancel  context.CancelFunc
	ended   chan error
	home    *Home

	mu     sync.Mutex // guards what follows
	killed bool
	local  map[*localConn]struct{} // open to apps
}

// NewHome makes a home that has a token but was never started. The first home
// of a relay may claim any name, later ones what hosts allows; without hosts
// that is all below the domain, too.
func (r *Relay) NewHome(name string, services ...Service) *Home {
	w := r.w
	w.T.Helper()
	h := &Home{
		Machine: w.machine(name), Relay: r, dir: filepath.Join(w.T.TempDir(), "agent"), apps: map[string]*listener{},
	}
	if r.homes++; r.homes == 1 {
		h.token = r.Token()
	} else {
		h.token = r.Token("*." + r.Domain)
	}
	for _, s := range services {
		h.add(s)
	}
	w.atEnd(h.Stop)
	return h
}

// Home starts a new home and waits until its services are published.
func (r *Relay) Home(name string, services ...Service) *Home {
	r.w.T.Helper()
	h := r.NewHome(name, services...)
	h.Start()
	h.AwaitOnline(time.Minute)
	return h
}

// add runs an app and lists it.
func (h *Home) add(s Service) {
	addr := h.nextAddr()
	s.entry.Target += addr
	h.services = append(h.services, s.entry)
	h.serve(addr, s)
}

// nextAddr is the next free address on the home network.
func (h *Home) nextAddr() string { return fmt.Sprintf("10.0.0.%d:80", len(h.apps)+1) }

// Offer adds services to the agent that runs.
func (h *Home) Offer(services ...Service) {
	h.w.T.Helper()
	for _, s := range services {
		h.add(s)
	}
	h.setServices()
}

// Withdraw takes a service from the agent that runs.
func (h *Home) Withdraw(name string) {
	h.w.T.Helper()
	h.services = slices.DeleteFunc(h.services, func(e service.Entry) bool { return e.Name == name })
	h.setServices()
}

func (h *Home) setServices() {
	h.w.T.Helper()
	if err := h.run.agent.SetServices(context.Background(), slices.Clone(h.services)); err != nil {
		h.w.T.Fatal(err)
	}
}

// serve runs an app.
func (h *Home) serve(addr string, s Service) {
	l := newListener(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 80})
	h.apps[addr] = l
	if s.http != nil {
		srv := &http.Server{Handler: s.http, Protocols: new(http.Protocols)}
		srv.Protocols.SetHTTP1(true)
		h.w.wg.Go(func() { srv.Serve(l) })
		h.w.atEnd(func() { srv.Close() })
		return
	}
	h.w.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			h.w.wg.Go(func() { s.raw(c) })
		}
	})
	h.w.atEnd(func() { l.Close() })
}

// dialApp is the agent's way to the apps.
func (h *Home) dialApp(_ context.Context, _, addr string) (net.Conn, error) {
	l := h.apps[addr]
	if l == nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	near, far := memConn()
	if err := l.offer(far); err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	return near, nil
}

// dialUDPApp is a socket that is connected to an app with datagrams: each gets
// its own.
func (h *Home) dialUDPApp(addr string) (net.Conn, error) {
	l := h.apps[addr]
	if l == nil {
		return nil, &net.OpError{Op: "dial", Net: "udp", Err: syscall.ECONNREFUSED}
	}
	near, far := net.Pipe() // keeps the borders of writes
	h.w.Go(func() {
		defer far.Close()
		buf := make([]byte, 1<<16)
		for {
			n, err := far.Read(buf)
			if err != nil {
				return
			}
			if _, err := far.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	return near, nil
}

// dial is the way of one process to the apps.
func (run *homeRun) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	run.mu.Lock()
	defer run.mu.Unlock()
	if run.killed {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ENETDOWN}
	}
	if network == "udp" {
		return run.home.dialUDPApp(addr)
	}
	c, err := run.home.dialApp(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	l := &localConn{Conn: c.(*tunneltest.Conn), run: run}
	run.local[l] = struct{}{}
	return l, nil
}

// kill resets what the process had open on the home network.
func (run *homeRun) kill() {
	run.mu.Lock()
	defer run.mu.Unlock()
	run.killed = true
	for c := range run.local {
		c.Abort()
	}
}

// A localConn is a connection to an app, known to its process.
type localConn struct {
	*tunneltest.Conn
	run *homeRun
}

func (c *localConn) Close() error {
	c.run.mu.Lock()
	delete(c.run.local, c)
	c.run.mu.Unlock()
	return c.Conn.Close()
}

// Start runs the agent; it joins when it has not.
func (h *Home) Start() {
	w := h.w
	w.T.Helper()
	p := h.start()
	run := &homeRun{process: p, ended: make(chan error, 1), home: h, local: map[*localConn]struct{}{}}
	now := h.Clock
	if now == nil {
		now = w.Now
	}
	inside := h.EndToEnd
	if h.LAN != "" {
		if inside == nil {
			inside = new(agent.EndToEnd)
		}
		inside.LAN = &agent.LAN{Listen: h.LAN, ListenTCP: p.listenTCP, Open: true, Addrs: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.168.1.7")} }}
	}
	a, err := agent.New(agent.Config{
		EndToEnd: inside, MQTT: h.MQTT, Actions: h.Actions,
		DataDir: h.dir, Token: h.token, Name: h.Name, Services: slices.Clone(h.services), Software: "world",
		Logger: w.log.With("at", h.Name), TransportNames: h.Transports,
		Now: now, ListenPacket: p.dialUDP, DialContext: p.dialTCP, Resolve: w.resolve, DialService: run.dial,
		Network: func() string { return "" }, ListenControl: func(string) (net.Listener, error) { return nil, nil },
	})
	if err != nil {
		w.T.Fatal(err)
	}
	run.agent = a
	var ctx context.Context
	ctx, run.cancel = context.WithCancel(context.Background())
	go func() { run.ended <- a.Run(ctx) }()
	h.run = run
}

// Stop ends the agent as a service manager does.
func (h *Home) Stop() {
	if h.run == nil {
		return
	}
	h.run.cancel()
	h.w.awaitEnd(h.Name, h.run.ended)
	h.run = nil
}

// Kill ends the agent without a goodbye.
func (h *Home) Kill() {
	run := h.run
	h.run = nil
	run.process.kill()
	run.kill()
	h.dir = snapshot(h.w.T, h.dir)
	run.cancel()
	h.w.atEnd(func() { h.w.awaitEnd(h.Name+" (killed)", run.ended) })
}

// Control is what the agent's owner may ask of it.
func (h *Home) Control() control.Agent { return h.run.agent.Control() }

// Status is the agent's picture of itself.
func (h *Home) Status() control.Status { return h.run.agent.Status() }

// Transport is what carries the primary session; "" without one.
func (h *Home) Transport() string {
	if l := h.Status().Link; l != nil {
		return l.Transport
	}
	return ""
}

// AwaitOnline waits until the relay has answered for all services, and returns
// how long that took.
func (h *Home) AwaitOnline(limit time.Duration) time.Duration {
	h.w.T.Helper()
	return h.w.Until(limit, h.Name+" is published", func() bool {
		s := h.Status()
		return s.Link != nil && !slices.ContainsFunc(s.Services, func(s control.ServiceStatus) bool { return s.URL == "" && s.Error == "" })
	})
}

// AwaitTransport waits until the primary session is of that kind, and returns
// how long that took.
func (h *Home) AwaitTransport(limit time.Duration, name string) time.Duration {
	h.w.T.Helper()
	return h.w.Until(limit, h.Name+" is connected by "+name, func() bool { return h.Transport() == name })
}

// Refusal returns what the relay said against a service; "" when nothing.
func (h *Home) Refusal(service string) string {
	for _, s := range h.Status().Services {
		if s.Name == service {
			return s.Error
		}
	}
	return ""
}

// Dir is the agent's data directory; it changes with Kill.
func (h *Home) Dir() string { return h.dir }
