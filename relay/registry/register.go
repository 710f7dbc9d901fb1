package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/relay/store"
)

// maxServices bounds one Register; 50 hosts with a few paths each fit.
const maxServices = 512

// auditBudget is how many events an agent may cause in the audit log per hour.
const auditBudget = 100

// A Route says where the visitors of a host, or of a path on it, go.
type Route struct {
	Host    string // canonical name or "*.x"
	Path    string // "/prefix/"; empty: the whole host
	Agent   protocol.AgentID
	Name    string           // the agent's
	Service protocol.Service // defaults filled
}

// Register takes the agent's whole list of services, decides which of them
// are accepted, and answers in the same order. What is accepted is stored:
// after a restart of the relay it is routed as before, also while the agent
// is still away. A service that is not in the list any more loses its route;
// its claim stays.
//
// s is the attached session that the list came on. Only the newest one of an
// agent's process speaks for it: a list that was on its way on an older one
// changes nothing, and the answer says how things stand.
//
// The answers fit into one protocol.Registered: reasons are shortened when
// they are many, and of more answers than that the last ones are left out.
func (r *Registry) Register(ctx context.Context, s tunnel.Session, services []protocol.Service) []protocol.Registration {
	if err := r.beginWrite(ctx); err != nil {
		return fit(refuseAll(services, err.Error()))
	}
	answers, changed := r.register(ctx, s, services)
	r.endWrite()
	if changed {
		r.cfg.Changed()
	}
	return fit(answers)
}

func (r *Registry) register(ctx context.Context, from tunnel.Session, services []protocol.Service) (answers []protocol.Registration, changed bool) {
	id := from.Peer().ID
	r.mu.Lock()
	m := r.agents[id]
	if m == nil || m.Revoked {
		r.mu.Unlock()
		return refuseAll(services, "this agent is not known here or was revoked: join again with a new token"), false
	}
	a, before, known := m.Agent, m.services, m.refused
	r.reap(m)
	speaks := m.speaks(from)
	r.mu.Unlock()
	if !speaks {
		return r.answerStored(services, before, known), false
	}

	claimed := false
	accepted := make([]protocol.Service, 0, len(services))
	refused := make(map[string]string)
	conflicts := make(map[string]bool)
	for i, s := range services {
		ok, isNew, err := r.accept(ctx, a, s, accepted, i)
		answer := protocol.Registration{Name: elide(s.Name, maxName)}
		if err != nil {
			answer.Error = elide(err.Error(), maxReason)
			refused[answer.Name] = answer.Error
			conflicts[answer.Name] = errors.Is(err, errConflict)
		} else {
			answer.URL = r.url(ok)
			accepted = append(accepted, ok)
			claimed = claimed || isNew
		}
		answers = append(answers, answer)
	}
	changed = claimed || !slices.Equal(before, accepted)
	if changed {
		if err := r.put(ctx, keyServices+string(id), accepted); err != nil {
			r.log.Warn("cannot store the services: after a restart of the relay they return with the agent only", "agent", a.Name, "err", err)
		}
	}
	r.mu.Lock()
	m.services = accepted
	m.refused = refused
	r.mu.Unlock()

	for _, name := range slices.Sorted(maps.Keys(refused)) {
		if known[name] == refused[name] {
			continue // an agent that asks again and again fills no log
		}
		event := "service.refused"
		if conflicts[name] {
			event = "claim.refused"
		}
		r.log.Warn("service refused", "agent", a.Name, "service", name, "reason", refused[name])
		r.auditAgent(m, event, slog.String("service", name), slog.String("reason", refused[name]))
	}
	return answers, changed
}

// accept decides on service number i of a list, stores the claim if it is a
// new one, and returns the service as it is routed.
func (r *Registry) accept(ctx context.Context, a Agent, s protocol.Service, accepted []protocol.Service, i int) (_ protocol.Service, isNew bool, err error) {
	none := protocol.Service{}
	if err := s.Validate(); err != nil {
		return none, false, err
	}
	if i >= maxServices {
		return none, false, fmt.Errorf("an agent may offer at most %d services", maxServices)
	}
	s = s.WithDefaults()
	if s.Port != 0 {
		return s, false, r.acceptPort(a, s, accepted)
	}
	if s.Host == "" {
		host, err := names.Canonical(s.Name + "." + r.parent(a, s.Name))
		if err != nil {
			return none, false, fmt.Errorf("the name makes no host: %w; say which with --host", err)
		}
		s.Host = host
	}
	for _, prev := range accepted {
		if prev.Name == s.Name {
			return none, false, fmt.Errorf("service %q is there twice", s.Name)
		}
		if prev.Host != s.Host {
			continue
		}
		if err := sharable(prev, s); err != nil {
			return none, false, err
		}
	}
	r.mu.Lock()
	err = r.mayClaim(a, s.Host)
	_, mine := r.claims[s.Host]
	r.mu.Unlock()
	if err != nil || mine {
		return s, false, err
	}
	return s, true, r.saveClaim(ctx, a, s.Host)
}

// parent is the name below which a service without a host of its own lives:
// the relay's domain, or, for an agent that may not claim there, what its
// first wildcard covers.
func (r *Registry) parent(a Agent, service string) string {
	if granted(a.Hosts, service+"."+r.cfg.Domain, r.cfg.Domain) == nil {
		return r.cfg.Domain
	}
	for _, p := range a.Hosts {
		if base, wild := strings.CutPrefix(p, "*."); wild {
			return base
		}
	}
	return r.cfg.Domain
}

// saveClaim writes a new claim to disk, then to memory. The writer's turn is
// held, so that nobody else decides in between.
func (r *Registry) saveClaim(ctx context.Context, a Agent, host string) error {
	rec := claimRecord{Agent: a.ID, Since: r.cfg.Now().UTC()}
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode claim: %w", err)
	}
	_, err = r.cfg.Store.Create(ctx, keyHosts+host, data)
	if errors.Is(err, store.ErrExists) {
		return r.adoptClaim(ctx, a, host)
	}
	if err != nil {
		r.log.Error("cannot store a claim", "agent", a.Name, "host", host, "err", err)
		return fmt.Errorf("the relay could not store the claim of %s: try again, and see the relay's log", host)
	}
	r.mu.Lock()
	r.claims[host] = claim(rec)
	r.mu.Unlock()
	r.log.Info("host claimed", "agent", a.Name, "host", host)
	r.cfg.Audit("claim.made", slog.String("agent", a.Name), slog.String("host", host))
	return nil
}

// adoptClaim handles a claim that is in the store but not in memory: left of
// a revoked agent by a crash, ours from a write whose answer was lost, or
// another relay's.
func (r *Registry) adoptClaim(ctx context.Context, a Agent, host string) error {
	e, err := r.cfg.Store.Get(ctx, keyHosts+host)
	var rec claimRecord
	if err == nil {
		err = json.Unmarshal(e.Value, &rec)
	}
	if err != nil {
		r.log.Error("cannot read a claim", "host", host, "err", err)
		return fmt.Errorf("the relay could not read the claim of %s: try again, and see the relay's log", host)
	}
	owner, known := r.Lookup(rec.Agent)
	if rec.Agent != a.ID && known && !owner.Revoked {
		return fmt.Errorf("%s is %w: choose another name", host, errConflict)
	}
	rec = claimRecord{Agent: a.ID, Since: r.cfg.Now().UTC()}
	if err := r.put(ctx, keyHosts+host, rec); err != nil {
		r.log.Error("cannot store a claim", "agent", a.Name, "host", host, "err", err)
		return fmt.Errorf("the relay could not store the claim of %s: try again, and see the relay's log", host)
	}
	r.mu.Lock()
	r.claims[host] = claim(rec)
	r.mu.Unlock()
	r.cfg.Audit("claim.made", slog.String("agent", a.Name), slog.String("host", host))
	return nil
}

// url is where visitors of a service go. Raw bytes have no web address; tls:
// says what to speak.
func (r *Registry) url(s protocol.Service) string {
	if s.Port != 0 {
		network := "tcp://"
		if s.Proto == protocol.ProtoUDP {
			network = "udp://"
		}
		return network + net.JoinHostPort(r.cfg.Domain, strconv.Itoa(int(s.Port)))
	}
	host := s.Host
	if r.cfg.Port != "" && r.cfg.Port != "443" {
		host += ":" + r.cfg.Port
	}
	if s.Proto == protocol.ProtoRaw && s.TLS != protocol.TLSBackend {
		if host == s.Host {
			host += ":443"
		}
		return "tls://" + host
	}
	return "https://" + host + cmp.Or(s.Path, "/")
}

// Release frees a host that some agent claimed, by the owner's command. Its
// routes end at once. The first agent that registers it from now on gets it,
// and that may be the same one if it still offers a service there.
func (r *Registry) Release(ctx context.Context, host string) error {
	pattern, err := names.ValidPattern(host)
	if err != nil {
		return err
	}
	if err := r.beginWrite(ctx); err != nil {
		return err
	}
	err = r.release(ctx, pattern)
	r.endWrite()
	if err == nil {
		r.cfg.Changed()
	}
	return err
}

func (r *Registry) release(ctx context.Context, pattern string) error {
	r.mu.Lock()
	c, ok := r.claims[pattern]
	name := r.nameOf(c.Agent)
	r.mu.Unlock()
	if !ok {
		return fmt.Errorf("host %s is claimed by no agent: %w", pattern, ErrNotFound)
	}
	if err := r.cfg.Store.Delete(ctx, keyHosts+pattern, 0); err != nil {
		return fmt.Errorf("release %s: %w", pattern, err)
	}
	r.mu.Lock()
	delete(r.claims, pattern)
	// Without this the old service would come back to life, unasked, when the
	// agent claims the host again.
	var left []protocol.Service
	if m := r.agents[c.Agent]; m != nil {
		left = slices.DeleteFunc(slices.Clone(m.services), func(s protocol.Service) bool { return s.Host == pattern })
		m.services = left
	}
	r.mu.Unlock()
	if err := r.put(ctx, keyServices+string(c.Agent), left); err != nil {
		r.log.Warn("cannot store the services that are left after a release", "agent", name, "err", err)
	}
	r.log.Info("host released", "agent", name, "host", pattern)
	r.cfg.Audit("claim.released", slog.String("agent", name), slog.String("host", pattern))
	return nil
}

// AuditAgent records what an agent caused, within its budget; nothing for an
// unknown one.
func (r *Registry) AuditAgent(id protocol.AgentID, event string, attrs ...slog.Attr) {
	r.mu.Lock()
	m := r.agents[id]
	r.mu.Unlock()
	if m != nil {
		r.auditAgent(m, event, attrs...)
	}
}

// auditAgent records what an agent caused, within its budget: no agent can
// fill the relay's disk.
func (r *Registry) auditAgent(m *member, event string, attrs ...slog.Attr) {
	now := r.cfg.Now()
	r.mu.Lock()
	if now.Sub(m.auditSince) > time.Hour {
		m.auditSince, m.audited = now, 0
	}
	m.audited++
	over := m.audited - auditBudget
	name := m.Name
	r.mu.Unlock()
	switch {
	case over <= 0:
		r.cfg.Audit(event, append([]slog.Attr{slog.String("agent", name)}, attrs...)...)
	case over == 1:
		r.cfg.Audit("audit.muted", slog.String("agent", name), slog.String("reason", "too many events of this agent within an hour; see the log"))
	}
}

func (r *Registry) nameOf(id protocol.AgentID) string {
	if m := r.agents[id]; m != nil {
		return m.Name
	}
	return id.Short()
}

// Routes returns what is routed now, ordered by host and path. A home that is
// offline is routed like one that is online.
func (r *Registry) Routes() []Route {
	r.mu.Lock()
	defer r.mu.Unlock()
	var routes []Route
	for id, m := range r.agents {
		if m.Revoked {
			continue
		}
		for _, s := range m.services {
			if s.Port != 0 {
				continue // see PortRoutes
			}
			if c, ok := r.claims[s.Host]; ok && c.Agent == id {
				routes = append(routes, Route{Host: s.Host, Path: s.Path, Agent: id, Name: m.Name, Service: s})
			}
		}
	}
	slices.SortFunc(routes, func(a, b Route) int {
		return cmp.Or(strings.Compare(a.Host, b.Host), strings.Compare(a.Path, b.Path))
	})
	return routes
}
