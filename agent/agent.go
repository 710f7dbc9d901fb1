package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/agent/service"
	"github.com/sallyport/sallyport/agent/state"
	"github.com/sallyport/sallyport/agent/uplink"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunnelquic"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltcp"
)

// sessionBudget bounds the unread bytes of one session (DESIGN §5).
const sessionBudget = 16 << 20

// An Agent is one agent. Make it with New, then Run it once.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	token    *protocol.Token // nil: none given
	clock    *clock
	table    *service.Table
	offer    *offer
	instance string // random per process: tells a restart from a second copy

	dir        *state.Dir // set by Run
	identity   atomic.Pointer[state.Identity]
	identityMu sync.Mutex // orders changes of identity and their writes
	cert       atomic.Pointer[tls.Certificate]
	uplink     atomic.Pointer[uplink.Uplink]
	latest     atomic.Pointer[session] // that the relay welcomed; nil: it ended
	streams    atomic.Int64            // data streams open now, of all sessions
	warnings   warnings
	roads      roads  // to the relay's own services
	zone       zone   // what the relay's DNS knows of us
	inside     inside // what serves TLS at home, once it is needed
	household  atomic.Pointer[household]
	// householdFault is why there is none, though it is wanted.
	householdFault atomic.Pointer[string]
}

// New checks the configuration. It starts nothing and writes nothing.
func New(cfg Config) (*Agent, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg.fill()
	a := &Agent{
		cfg: cfg, log: cfg.Logger, clock: newClock(cfg.Now), instance: rand.Text(),
		table: service.NewTable(cfg.Logger, cfg.LocalNames),
	}
	a.table.Dial = cfg.DialService
	a.offer = newOffer(a.table, a.log)
	a.offer.tell = cfg.OnRegistered
	a.offer.moved = a.offerMoved
	a.table.EndToEnd = a.serveEndToEnd
	a.table.MostUnproven = max(1, cfg.MaxStreams/unprovenShare)
	a.roads.init()
	a.zone.init(a.log)
	if cfg.Token != "" {
		t, err := protocol.ParseToken(cfg.Token)
		if err != nil {
			return nil, class(ErrConfig, err)
		}
		a.token = &t
	}
	if err := tryEntries(cfg.offered()); err != nil {
		return nil, class(ErrConfig, err)
	}
	return a, nil
}

// Run joins when that was not done before, and serves until ctx ends. Then it
// lets open streams finish for a few seconds and returns nil after everything
// ended. Other errors are ErrConfig, ErrRefused, or, while joining,
// ErrUnreachable.
func (a *Agent) Run(ctx context.Context) error {
	dir, err := state.Open(a.cfg.DataDir, a.log)
	if err != nil {
		return class(ErrConfig, err)
	}
	defer dir.Close()
	a.dir = dir
	if err := a.offer.open(dir, a.cfg.Services, a.cfg.Expose); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	local, stopLocal := context.WithCancel(context.WithoutCancel(ctx)) // answers until the last stream ended
	defer stopLocal()
	if l, err := a.cfg.ListenControl(dir.Path()); err != nil {
		a.log.Warn("`sallyport agent expose` and `sallyport status` will not work", "err", err)
	} else if l != nil {
		wg.Go(func() { a.serveControl(local, l) })
	}
	if err := a.enter(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	up, err := a.newUplink()
	if err != nil {
		return class(ErrConfig, err)
	}
	a.uplink.Store(up)
	defer a.startInside(ctx)()
	if a.cfg.MQTT != nil {
		if h, err := a.openHousehold(); err != nil {
			// The tunnel must not end with a damaged file of commands; these and
			// MQTT stay shut.
			a.log.Error("MQTT and commands do not run", "err", err)
			text := fmt.Sprintf("MQTT and commands do not run: %v; mend it and restart the agent", err)
			a.householdFault.Store(&text)
		} else {
			a.warnSideDoors()
			defer a.runHousehold(ctx, h)()
		}
	}
	return up.Run(ctx, a.serve)
}

func (a *Agent) serveControl(ctx context.Context, l net.Listener) {
	if err := control.Serve(ctx, l, controlled{a}, a.log); err != nil {
		a.log.Warn("the control socket failed", "err", err)
	}
}

// SetServices replaces the configured services, all or nothing. The session
// stays; connections of services that remain go on.
func (a *Agent) SetServices(ctx context.Context, entries []service.Entry) error {
	return a.offer.setConfig(ctx, entries)
}

// enter finds the agent's identity, or joins.
func (a *Agent) enter(ctx context.Context) error {
	id, err := a.dir.Identity()
	switch {
	case err == nil:
		if id, err = a.compare(id); err != nil {
			return err
		}
	case !errors.Is(err, state.ErrNotJoined):
		return class(ErrConfig, err)
	case a.token == nil:
		return classf(ErrConfig, "%w\nGet a token with `"+newToken+"` on the relay (a second home: with --hosts '*.NAME.DOMAIN'), then: sallyport agent up TOKEN", err)
	default:
		a.log.Info("joining", "relay", a.token.Relay)
		id, err = Join(ctx, a.dir, *a.token, JoinOptions{
			Name: a.cfg.Name, Logger: a.log, Now: a.cfg.Now, DialContext: a.cfg.DialContext, Resolve: a.cfg.Resolve,
		})
		if err != nil {
			return err
		}
		a.log.Info("joined", "relay", id.Relay, "name", id.Name, "agent", id.ID().Short(), "domain", id.Domain)
	}
	a.become(id)
	a.clock.tell(a.dir.LastSeen())
	a.clock.tell(id.Cert.NotBefore) // should the directory's memory be lost: it was later than that already
	return nil
}

// compare judges a token that is given to an agent that has joined.
func (a *Agent) compare(id *state.Identity) (*state.Identity, error) {
	t := a.token
	switch {
	case t == nil:
		return id, nil
	case t.CA != fingerprint(id.CA):
		return nil, classf(ErrConfig, "this agent belongs to the relay at %s, the token is for another one at %s\n"+
			"Use another directory with --data, or remove %s to leave the old relay.", id.Relay, t.Relay, a.dir.Path())
	case t.Relay == id.Relay && t.ServerName == id.ServerName, !t.Expires.IsZero() && a.cfg.Now().After(t.Expires):
		a.log.Info("this agent has joined already, the token is not used", "relay", id.Relay)
		return id, nil
	}
	moved := *id
	moved.Relay, moved.ServerName = t.Relay, t.ServerName
	if err := a.dir.SaveIdentity(&moved); err != nil {
		return nil, class(ErrConfig, err)
	}
	a.log.Info("this agent has joined already; the relay's address is taken from the token", "relay", t.Relay, "before", id.Relay)
	return &moved, nil
}

// become puts an identity into use, for the next dial at the latest.
func (a *Agent) become(id *state.Identity) {
	a.identity.Store(id)
	a.cert.Store(&tls.Certificate{Certificate: [][]byte{id.Cert.Raw}, PrivateKey: id.Key, Leaf: id.Cert})
}

func (a *Agent) newUplink() (*uplink.Uplink, error) {
	id := a.identity.Load()
	host, portText, err := net.SplitHostPort(id.Relay)
	if err != nil {
		return nil, fmt.Errorf("the relay's address: %w", err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("the relay's port: %w", err)
	}
	return uplink.New(uplink.Config{
		Host: host, Port: uint16(port), Transports: a.transports(), Resolve: a.cfg.Resolve, Network: a.cfg.Network, Wall: a.cfg.Now,
		Preferred: a.dir.Transport,
		Remember: func(name string) {
			if err := a.dir.SetTransport(name); err != nil {
				a.log.Warn("cannot remember the transport", "err", err)
			}
		},
		OnStable: func(time.Time) { a.saveClock() },
		Logger:   a.log,
	})
}

func (a *Agent) transports() []tunnel.Transport {
	if a.cfg.Transports != nil {
		return a.cfg.Transports()
	}
	conf := a.tlsConfig()
	var ts []tunnel.Transport
	for _, name := range a.cfg.TransportNames {
		switch name {
		case "quic":
			ts = append(ts, &tunnelquic.Dialer{
				TLS: conf, ListenPacket: a.cfg.ListenPacket,
				Config: tunnelquic.Config{Budget: sessionBudget, Logger: a.log},
			})
		case "tcp":
			ts = append(ts, &tunneltcp.Dialer{
				TLS: conf, DialContext: a.cfg.DialContext,
				Config: tunneltcp.Config{Budget: sessionBudget, Logger: a.log},
			})
		}
	}
	return ts
}

// tlsConfig trusts the agent CA of our relay and nothing else. There is no
// session cache: every dial is a full handshake with the certificate of now.
func (a *Agent) tlsConfig() *tls.Config {
	id := a.identity.Load()
	roots := x509.NewCertPool()
	roots.AddCert(id.CA)
	return &tls.Config{
		RootCAs: roots, ServerName: id.ServerName, MinVersion: tls.VersionTLS13,
		NextProtos: []string{protocol.ALPN}, Time: a.clock.Now,
		// verifyRelay does the whole check: a clock that was set forward under a
		// running agent must not lock it out.
		InsecureSkipVerify:   true,
		VerifyConnection:     func(cs tls.ConnectionState) error { return a.verifyRelay(cs, roots, id.ServerName) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return a.cert.Load(), nil },
	}
}

// saveClock stores the relay's time for the next start.
func (a *Agent) saveClock() {
	if t := a.clock.told(); !t.IsZero() {
		if err := a.dir.SetLastSeen(t); err != nil {
			a.log.Warn("cannot store the time", "err", err)
		}
	}
}

// Status returns the agent's state, as the control socket tells it.
func (a *Agent) Status() control.Status {
	s := control.Status{Schema: control.Schema, Software: a.cfg.Software, State: "joining", Services: a.offer.status()}
	if id := a.identity.Load(); id != nil {
		s.ID, s.Name, s.Relay, s.Domain, s.CertEnds = string(id.ID()), id.Name, id.Relay, id.Domain, id.Cert.NotAfter
	} else if a.token != nil {
		s.Relay = a.token.Relay
	}
	s.Warnings = a.Warnings()
	a.household.Load().status(&s)
	a.inside.status(&s)
	if fault := a.householdFault.Load(); fault != nil {
		s.Warnings = append(s.Warnings, *fault)
	}
	up := a.uplink.Load()
	if up == nil {
		return s
	}
	u := up.Status()
	if u.Revoked {
		s.Warnings = append(s.Warnings, "the relay has shut this home out (revoked), and its key never comes in again. To join anew, get a token there: "+
			newToken+" --hosts '*."+s.Domain+"'; then start here with a fresh directory: sallyport agent up TOKEN --data NEWDIR")
	}
	s.State, s.Since, s.NextTry, s.Demoted, s.Until, s.Error, s.ErrorAt = u.State, u.Since, u.NextTry, u.Demoted, u.Until, u.LastError, u.ErrorAt
	if u.Transport != "" {
		s.Link = &control.Link{
			Transport: u.Transport, Addr: u.Addr, RTT: float64(u.RTT.Microseconds()) / 1000,
			Streams: u.Streams, Draining: u.Draining, BytesIn: u.BytesIn, BytesOut: u.BytesOut,
		}
	}
	return s
}

// Control is what the owner may ask of a running agent: what the control socket
// serves.
func (a *Agent) Control() control.Agent { return controlled{a} }

// controlled is the agent as the control socket sees it.
type controlled struct{ a *Agent }

func (c controlled) Expose(ctx context.Context, s control.Service) (control.Exposed, error) {
	return c.a.offer.expose(ctx, s)
}

func (c controlled) Unexpose(ctx context.Context, name string) error {
	return c.a.offer.unexpose(ctx, name)
}
func (c controlled) Status() control.Status { return c.a.Status() }
