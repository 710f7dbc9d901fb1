package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/protocol"
)

// maxPorts is how many public ports one agent may be granted.
const maxPorts = 64

// A PortRoute says where the visitors of a public port go.
type PortRoute struct {
	Port    uint16
	UDP     bool
	Agent   protocol.AgentID
	Name    string // the agent's
	Service string
}

// PortRoutes returns the public ports that are in use, ordered. A home that is
// offline keeps its ports.
func (r *Registry) PortRoutes() []PortRoute {
	r.mu.Lock()
	defer r.mu.Unlock()
	var routes []PortRoute
	for id, m := range r.agents {
		if m.Revoked {
			continue
		}
		for _, s := range m.services {
			if s.Port != 0 && slices.Contains(m.Ports, portName(s)) {
				routes = append(routes, PortRoute{Port: s.Port, UDP: s.Proto == protocol.ProtoUDP, Agent: id, Name: m.Name, Service: s.Name})
			}
		}
	}
	slices.SortFunc(routes, func(a, b PortRoute) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), strings.Compare(a.Service, b.Service))
	})
	return routes
}

// portName is how a grant spells a service's port.
func portName(s protocol.Service) string {
	name := strconv.Itoa(int(s.Port))
	if s.Proto == protocol.ProtoUDP {
		name += "/udp"
	}
	return name
}

// acceptPort decides whether the agent may use the port of a service.
func (r *Registry) acceptPort(a Agent, s protocol.Service, accepted []protocol.Service) error {
	port := portName(s)
	if !slices.Contains(a.Ports, port) {
		return fmt.Errorf("port %s was not granted: the relay's owner can do that with: sallyport relay grant %s --ports %s", port, a.Name, port)
	}
	for _, prev := range accepted {
		switch {
		case prev.Name == s.Name:
			return fmt.Errorf("service %q is there twice", s.Name)
		case prev.Port != 0 && portName(prev) == port:
			return fmt.Errorf("service %q already has port %s: choose another --port", prev.Name, port)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, m := range r.agents {
		if id == a.ID || m.Revoked {
			continue
		}
		for _, other := range m.services {
			if other.Port != 0 && portName(other) == port && slices.Contains(m.Ports, port) {
				return fmt.Errorf("port %s is %w: choose another, or ask the relay's owner", port, errConflict)
			}
		}
	}
	return nil
}

// grantablePorts checks ports as a person writes them and returns them sorted
// in the one spelling: "2222", "51820/udp".
func grantablePorts(list []string) ([]string, error) {
	var ports []string
	for _, p := range list {
		text, network, _ := strings.Cut(strings.TrimSpace(p), "/")
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n == 0 || network != "" && network != "tcp" && network != "udp" {
			return nil, &HintError{fmt.Sprintf("%q is not a port", p), "write 2222 or 2222/tcp, and 51820/udp for UDP"}
		}
		name := strconv.Itoa(int(n))
		if network == "udp" {
			name += "/udp"
		}
		ports = append(ports, name)
	}
	slices.Sort(ports)
	ports = slices.Compact(ports)
	if len(ports) > maxPorts {
		return nil, &HintError{fmt.Sprintf("%d ports for one agent", len(ports)), fmt.Sprintf("at most %d are possible", maxPorts)}
	}
	return ports, nil
}

// A GrantChange says what an agent may do from now on. Nil fields stay as they
// are; an empty list takes all away.
type GrantChange struct {
	Hosts   *[]string // patterns; never empty: that would be the whole domain
	Ports   *[]string
	Foreign bool // allow patterns outside the relay's domain
}

// Grant changes what an agent may claim. What it holds without a grant from
// then on ends at once. Errors: ErrNotFound, *HintError.
func (r *Registry) Grant(ctx context.Context, name string, c GrantChange) (Agent, error) {
	var hosts, ports []string
	var err error
	if c.Hosts != nil {
		if len(*c.Hosts) == 0 {
			return Agent{}, &HintError{"no host pattern is left", "name at least one; to shut the agent out: sallyport relay revoke " + name}
		}
		for _, p := range *c.Hosts {
			p, err := r.grantable(p, c.Foreign)
			if err != nil {
				return Agent{}, err
			}
			hosts = append(hosts, p)
		}
	}
	if c.Ports != nil {
		if ports, err = grantablePorts(*c.Ports); err != nil {
			return Agent{}, err
		}
	}
	if err := r.beginWrite(ctx); err != nil {
		return Agent{}, err
	}
	a, dropped, err := r.grant(ctx, name, c, hosts, ports)
	r.endWrite()
	if err != nil {
		return Agent{}, err
	}
	r.log.Info("grants changed", "agent", a.Name, "hosts", a.Hosts, "ports", a.Ports, "withdrawn", dropped)
	r.cfg.Audit("agent.granted", slog.String("agent", a.Name), slog.Any("hosts", a.Hosts), slog.Any("ports", a.Ports), slog.Any("withdrawn", dropped))
	r.cfg.Changed()
	return a, nil
}

func (r *Registry) grant(ctx context.Context, name string, c GrantChange, hosts, ports []string) (a Agent, dropped []string, err error) {
	a, ok := r.Find(name)
	switch {
	case !ok:
		return a, nil, fmt.Errorf("agent %s: %w", name, ErrNotFound)
	case a.Revoked:
		return a, nil, fmt.Errorf("agent %s: %w", name, ErrRevoked)
	}
	if c.Hosts != nil {
		a.Hosts = hosts
	}
	if c.Ports != nil {
		a.Ports = ports
	}
	if err := r.put(ctx, keyAgents+string(a.ID), a.record()); err != nil {
		return a, nil, fmt.Errorf("store the grants of %s: %w", name, err)
	}
	r.mu.Lock()
	m := r.agents[a.ID]
	m.Hosts, m.Ports = a.Hosts, a.Ports
	var kept []protocol.Service
	for _, s := range m.services {
		if r.mayKeep(a, s) {
			kept = append(kept, s)
		} else {
			dropped = append(dropped, s.Name)
		}
	}
	m.services = kept
	r.mu.Unlock()
	if len(dropped) > 0 {
		if err := r.put(ctx, keyServices+string(a.ID), kept); err != nil {
			return a, dropped, errors.Join(fmt.Errorf("store what is left of the services of %s", name), err)
		}
	}
	return a, dropped, nil
}

// mayKeep reports whether the grants still cover an accepted service. Callers
// hold r.mu.
func (r *Registry) mayKeep(a Agent, s protocol.Service) bool {
	if s.Port != 0 {
		return slices.Contains(a.Ports, portName(s))
	}
	return r.mayClaim(a, s.Host) == nil
}
