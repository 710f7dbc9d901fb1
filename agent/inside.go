package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"

	"github.com/sallyport/sallyport/agent/certs"
	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/agent/devices"
	"github.com/sallyport/sallyport/agent/lan"
	"github.com/sallyport/sallyport/agent/service"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// checkEndToEnd says what is wrong with the settings for TLS at home.
func (c *Config) checkEndToEnd() (errs []error) {
	e := c.EndToEnd
	if e == nil {
		return nil
	}
	switch e.DeviceCA {
	case "", DeviceCAHome, DeviceCARelay:
	default:
		errs = append(errs, fmt.Errorf("device_ca %q is not %s or %s", e.DeviceCA, DeviceCAHome, DeviceCARelay))
	}
	if e.DeviceCA == DeviceCAHome && e.OpenDevices == nil {
		errs = append(errs, errors.New("device_ca home: this program keeps no devices"))
	}
	if l := e.LAN; l != nil && l.Listen != "" {
		if _, _, err := net.SplitHostPort(l.Listen); err != nil {
			errs = append(errs, fmt.Errorf("lan.listen %q is not an address such as :8443", l.Listen))
		}
	}
	return errs
}

// inside is the way to the indoors, which are made when the first service needs
// them: most homes have none.
type inside struct {
	mu   sync.Mutex // guards what follows; held while the indoors are opened
	ctx  context.Context
	wg   sync.WaitGroup
	in   *indoors
	err  error // why there are none, though they are wanted
	over bool
}

// startInside lets the indoors be opened from now on; stop ends them and waits.
func (a *Agent) startInside(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // visitors finish while the session drains
	a.inside.mu.Lock()
	a.inside.ctx = ctx
	a.inside.mu.Unlock()
	a.offerMoved()
	return func() {
		a.inside.mu.Lock()
		a.inside.over = true
		in := a.inside.in
		a.inside.mu.Unlock()
		cancel()
		a.inside.wg.Wait()
		if in != nil {
			if err := in.close(); err != nil {
				a.log.Warn("closing what serves TLS at home", "err", err)
			}
		}
	}
}

// indoors opens what serves TLS at home, or returns what is open.
func (a *Agent) indoors() (*indoors, error) {
	s := &a.inside
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.in != nil:
		return s.in, nil
	case s.ctx == nil || s.over:
		return nil, errors.New("the agent has not joined a relay yet, or stops")
	}
	in, err := a.openIndoors()
	s.err = err
	if err != nil {
		a.log.Error("services with tls agent are not served", "err", err)
		return nil, err
	}
	s.in = in
	in.run(s.ctx, &s.wg)
	return in, nil
}

// opened returns the indoors if there are any.
func (s *inside) opened() *indoors {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in
}

// offerMoved builds the sites again after the offer has changed.
func (a *Agent) offerMoved() {
	if a.dir == nil || a.identity.Load() == nil {
		return // Run calls again
	}
	places, wanted := a.offer.places(a.identity.Load().Domain)
	in := a.inside.opened()
	if in == nil {
		if !wanted {
			return
		}
		var err error
		if in, err = a.indoors(); err != nil {
			return // said
		}
	}
	if err := in.rebuild(places); err != nil {
		a.log.Error("the sites of this home are not changed", "err", err)
	}
}

// serveEndToEnd takes a stream whose visitor's TLS ends here.
func (a *Agent) serveEndToEnd(ctx context.Context, c tunnel.Conn, o protocol.Open) {
	in, err := a.indoors()
	if err != nil {
		tunnel.Abort(c, protocol.CodeBackendDown)
		return
	}
	in.serve(ctx, c, o)
}

func (a *Agent) openIndoors() (*indoors, error) {
	id, conf := a.identity.Load(), a.cfg.EndToEnd
	log := a.log.With("part", "indoors")
	in := &indoors{a: a, own: string(id.ID()) + "." + id.Domain, log: log, proxies: map[proxyKey]*door.Proxy{}}
	if _, port, err := net.SplitHostPort(id.Relay); err == nil && port != "443" {
		in.port = port
	}
	in.sites.Store(&sites{table: new(names.Table[*door.Site])})
	mode := conf.Certs.Mode
	if mode == "" {
		mode = certs.ModeInternal
		if names.IsPublic(id.Domain) {
			mode = certs.ModeACME
		}
	}
	var err error
	in.certs, err = certs.New(certs.Config{
		Dir: filepath.Join(a.dir.Path(), "certs"), Mode: mode, ACME: conf.Certs.ACME, Files: conf.Certs.Files,
		Domain: id.Domain, Own: in.own, SetTXT: a.setTXT, Now: a.clock.own, Logger: log,
		Account: func(uri string, issuers []string) {
			a.zone.tell(func(n *protocol.Names) { n.Account, n.Issuers = uri, issuers })
		},
	})
	if err != nil {
		return nil, err
	}
	if err := in.openDevices(); err != nil {
		return nil, err
	}
	if l := conf.LAN; l != nil {
		in.lan, err = lan.New(lan.Config{
			Listen: l.Listen, Serve: in.ServeConn, Own: in.own, Port: colon(in.port), Announce: l.Announce, Open: l.Open,
			ListenTCP: l.ListenTCP, Addrs: l.Addrs, Logger: log,
			Ours: func(host string) bool { _, ok := in.lookup(host); return ok },
			Changed: func(addrs []netip.Addr) {
				a.zone.tell(func(n *protocol.Names) { n.LAN, n.Split = addrs, l.Split })
			},
		})
		if err != nil {
			return nil, errors.Join(err, in.close())
		}
	}
	return in, nil
}

// openDevices opens the list of those who may come in.
func (in *indoors) openDevices() error {
	a, conf := in.a, in.a.cfg.EndToEnd
	if conf.OpenDevices != nil && conf.DeviceCA != DeviceCARelay {
		var err error
		in.home, err = conf.OpenDevices(HomeDevices{
			Dir: a.dir.Path(), Own: in.own, Port: colon(in.port), Now: a.clock.own, Logger: in.log, Lost: func(id string) { in.lost(id) },
			Hosts: in.webHosts, Certificate: in.certificate, Roots: func() []*x509.Certificate {
				if root := in.certs.Root(); root != nil {
					return []*x509.Certificate{root}
				}
				return nil
			},
		})
		return err
	}
	book, err := devices.Open(devices.Config{
		Dir: a.dir.Path(), Now: a.clock.own, Logger: in.log, Lost: in.lost, NewCA: in.newCA,
	})
	if err != nil {
		return err
	}
	in.guest = book
	if ca := a.identity.Load().DeviceCA; ca != nil && book.Pool() == nil {
		return book.Pin(ca.Raw)
	}
	return nil
}

// run starts everything.
func (in *indoors) run(ctx context.Context, wg *sync.WaitGroup) {
	part := func(name string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				in.log.Error("a part of the end-to-end door has ended; restart the agent", "part", name, "err", err)
			}
		})
	}
	part("certificates", in.certs.Run)
	if in.lan != nil {
		part("lan", in.lan.Run)
	}
	if in.home != nil {
		part("devices", in.home.Run)
		wg.Go(func() { in.offerHome(ctx) })
		return
	}
	part("devices", in.followRelay)
}

// offerHome registers HASH.DOMAIN, where the enrolment pages are.
func (in *indoors) offerHome(ctx context.Context) {
	var own []service.Entry
	for _, p := range []struct{ name, host string }{
		{homeService, in.own}, {homeService + "-enroll", "enroll." + in.own}, {homeService + "-check", "check." + in.own},
	} {
		own = append(own, service.Entry{Name: p.name, Target: "http://127.0.0.1:1", Host: p.host, Auth: protocol.AuthNone, TLS: protocol.TLSAgent})
	}
	err := in.a.offer.setOwn(ctx, own)
	if err != nil && ctx.Err() == nil {
		in.log.Error("the enrolment pages are not offered", "err", err)
	}
}

// followRelay keeps the relay's list of devices up to date.
func (in *indoors) followRelay(ctx context.Context) error {
	for ctx.Err() == nil {
		c, err := in.a.dialRelay(ctx, protocol.FeatureDevices)
		if err == nil {
			err = in.guest.Serve(ctx, c)
		}
		if err != nil && ctx.Err() == nil {
			in.log.Debug("the list of devices is not followed now", "err", err)
		}
		rest(ctx)
	}
	return nil
}

// webHosts are the exact hosts of web services that are served here.
func (in *indoors) webHosts() []string { return in.sites.Load().web }

// colon is a port as it stands in URLs.
func colon(port string) string {
	if port == "" {
		return ""
	}
	return ":" + port
}

// status adds what is known of TLS at home.
func (s *inside) status(st *control.Status) {
	s.mu.Lock()
	in, err := s.in, s.err
	s.mu.Unlock()
	if err != nil {
		st.Warnings = append(st.Warnings, fmt.Sprintf("services with tls agent are not served: %v", err))
	}
	reader := "end to end"
	if in != nil && in.home == nil {
		reader = "end to end, but the relay can issue devices"
	}
	for i, svc := range st.Services {
		switch svc.TLS {
		case protocol.TLSAgent:
			st.Services[i].Reader = reader
		case protocol.TLSBackend:
			st.Services[i].Reader = "end to end"
		case protocol.TLSNone:
			st.Services[i].Reader = "relay, unless the service encrypts"
		default:
			st.Services[i].Reader = "relay"
		}
	}
	if in == nil {
		return
	}
	e := &control.EndToEnd{Own: in.own}
	if root := in.certs.Root(); root != nil {
		e.Root = string(pki.EncodeCert(root))
	}
	for _, c := range in.certs.Status() {
		e.Certificates = append(e.Certificates, control.Certificate{
			Host: c.Host, State: c.State, Issuer: c.Issuer, NotAfter: c.NotAfter, Next: c.Next, Problem: c.Problem, Fix: c.Fix,
		})
	}
	if in.lan != nil {
		e.LAN = in.lan.URLs()
		if l := in.lan.Status(); l.Problem != "" {
			st.Warnings = append(st.Warnings, "the home network is not served: "+l.Problem)
		}
	}
	if w, ok := in.home.(interface{ Warnings() []string }); ok {
		st.Warnings = append(st.Warnings, w.Warnings()...)
	}
	e.DeviceCA = DeviceCAHome
	if in.guest != nil {
		e.DeviceCA = DeviceCARelay
		b := in.guest.Status()
		e.List = &control.DeviceList{Number: b.Number, Issued: b.Issued, Devices: b.Devices, Stale: b.Stale, CA: b.CA, Problem: b.Problem}
		if b.Pending != nil {
			e.List.Pending = b.Pending.CA
		}
		if b.Problem != "" {
			st.Warnings = append(st.Warnings, "the relay's list of devices: "+strings.ReplaceAll(b.Problem, "\n", " "))
		}
		if b.Stale {
			st.Warnings = append(st.Warnings, fmt.Sprintf("the relay's list of devices is from %s: revoked devices may still come in here", b.Issued.Local().Format(dateTime)))
		}
	}
	st.EndToEnd = e
}
