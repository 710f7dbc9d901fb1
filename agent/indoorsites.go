package agent

import (
	"cmp"
	"context"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A place is where a service with TLS "agent" is published.
type place struct {
	host, path string
	service    protocol.Service
}

// A proxyKey tells whether a reverse proxy can serve on after a rebuild.
type proxyKey struct {
	service, path, proto string
	solo, user           bool
}

// rebuild makes the sites of what is offered now.
func (in *indoors) rebuild(places []place) error {
	byHost := map[string][]place{}
	for _, p := range places {
		byHost[p.host] = append(byHost[p.host], p)
	}
	for host := range byHost {
		byHost[host] = in.fitting(host, byHost[host])
	}
	used := map[proxyKey]bool{}
	list, alias := map[string]*door.Site{}, map[string]string{}
	for host, ps := range byHost {
		list[host] = in.makeSite(host, ps, used)
	}
	if host := in.lanHost(byHost); host != "" {
		pattern := "*." + in.own
		list[pattern] = in.makeSite(pattern, byHost[host], used)
		alias[pattern] = host
	}
	if in.home != nil {
		for host, s := range map[string]*door.Site{
			in.own:             {Mode: door.None, Handler: in.home.Site()},
			"enroll." + in.own: {Mode: door.None, Handler: in.home.Site()},
			"check." + in.own:  {Mode: door.Ask, Handler: in.home.SelfTest()},
		} {
			s.Host, s.Policy, s.Certificate = host, host+" of the home", in.certificate
			list[host] = s
		}
	}
	var web []string
	for host, ps := range byHost {
		if !strings.HasPrefix(host, "*.") && ps[0].service.Proto != protocol.ProtoRaw {
			web = append(web, host)
		}
	}
	slices.Sort(web)
	table, err := names.NewTable(list)
	if err != nil {
		return err
	}
	in.sites.Store(&sites{table, alias, web})
	in.certs.SetHosts(slices.DeleteFunc(slices.Sorted(maps.Keys(byHost)), in.isOwnName))
	in.mu.Lock()
	for key, p := range in.proxies {
		if !used[key] {
			p.Close()
			delete(in.proxies, key)
		}
	}
	policies := map[string]string{}
	for host, s := range list {
		policies[host] = s.Policy
	}
	changed := !maps.Equal(policies, in.policies)
	in.policies = policies
	d := in.door
	in.mu.Unlock()
	if d != nil && changed {
		d.Recheck() // it looks at every connection and rotates ticket keys
	}
	return nil
}

// fitting leaves out what cannot share a host: the door judges a visitor once per
// host. The relay refuses such services, but it may be away, or lie.
func (in *indoors) fitting(host string, ps []place) []place {
	first, kept := ps[0], ps[:1:1]
	for _, p := range ps[1:] {
		if p.service.Auth != first.service.Auth || p.service.Proto == protocol.ProtoRaw || first.service.Proto == protocol.ProtoRaw ||
			slices.ContainsFunc(kept, func(k place) bool { return k.path == p.path }) {
			in.log.Error("a service is not served: it cannot share its host with another", "service", p.service.Name, "host", host, "with", first.service.Name)
			continue
		}
		kept = append(kept, p)
	}
	return kept
}

// lanHost is the host that the names of the home network stand for.
func (in *indoors) lanHost(byHost map[string][]place) string {
	l := in.a.cfg.EndToEnd.LAN
	if l == nil {
		return "" // there is no way to these names
	}
	for _, host := range slices.Sorted(maps.Keys(byHost)) {
		if strings.HasPrefix(host, "*.") {
			continue
		}
		for _, p := range byHost[host] {
			if l.Service == p.service.Name || l.Service == "" && p.service.Proto != protocol.ProtoRaw && p.service.Auth == protocol.AuthRequire {
				return host
			}
		}
	}
	return ""
}

// makeSite makes the site of one host; several places are paths under it.
func (in *indoors) makeSite(host string, ps []place, used map[proxyKey]bool) *door.Site {
	first := ps[0].service
	s := &door.Site{
		Host: host, Mode: door.Mode(first.Auth), Certificate: in.certificate,
		Policy: strings.Join([]string{host, first.Auth, ps[0].host}, " "),
	}
	if first.Proto == protocol.ProtoRaw {
		s.Policy += " raw " + first.Name
		s.Raw = in.rawHandler(first.Name)
		return s
	}
	if ps[0].path == "" && len(ps) == 1 {
		s.Handler = in.proxy(ps[0], used)
	} else {
		paths := map[string]http.Handler{}
		for _, p := range ps {
			paths[cmp.Or(p.path, "/")] = in.proxy(p, used)
		}
		s.Handler = door.NewPaths(paths)
	}
	if in.lan != nil {
		s.Handler = beside(in.lan.Helper(), s.Handler)
	}
	return s
}

// beside serves what every site tells of the home network, and next for the rest.
func beside(helper, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, wellKnown) {
			helper.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (in *indoors) proxy(p place, used map[proxyKey]bool) *door.Proxy {
	s := p.service
	key := proxyKey{s.Name, p.path, s.Proto, s.Solo, s.RemoteUser}
	used[key] = true
	in.mu.Lock()
	defer in.mu.Unlock()
	if old, ok := in.proxies[key]; ok {
		return old
	}
	made := door.NewProxy(door.Backend{
		Dial: func(ctx context.Context, v door.Visitor) (net.Conn, error) {
			return in.a.table.DialBackend(ctx, s.Name, openFor(s.Name, v))
		},
		Proto: s.Proto, Solo: s.Solo, Prefix: p.path, Errors: describe, RemoteUser: s.RemoteUser, ExternalPort: in.port,
	}, in.log.With("service", s.Name))
	in.proxies[key] = made
	return made
}

func openFor(service string, v door.Visitor) protocol.Open {
	return protocol.Open{Service: service, Client: v.Remote, Local: v.Local, SNI: v.Host}
}

// rawHandler joins a TCP service with a visitor whose TLS has ended here.
func (in *indoors) rawHandler(service string) func(context.Context, tunnel.Conn, door.Visitor) {
	return func(ctx context.Context, c tunnel.Conn, v door.Visitor) {
		backend, err := in.a.table.DialBackend(ctx, service, openFor(service, v))
		if err != nil {
			in.log.Warn("backend not reached", "service", service, "err", err)
			tunnel.Abort(c, protocol.CodeBackendDown)
			return
		}
		tunnel.Splice(ctx, c, backend, tunnel.SpliceOptions{})
	}
}

// describe words a failed exchange for a device. The log has the rest.
func describe(error) (status int, title, text string) {
	return http.StatusBadGateway, "The service at home does not answer",
		"The home is reached, but the service behind this address is down or not trusted. The agent's log says why."
}
