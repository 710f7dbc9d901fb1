package registry

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

const (
	drainFor      = 10 * time.Minute // how long a replaced session may finish its streams
	maxSessions   = 8                // of one agent, draining ones included
	maxReplaced   = 16               // instances remembered per agent
	replacedRetry = time.Minute      // earliest redial of a replaced instance
	// aliveAfter is how long a replaced instance must stay before it counts as
	// a second live copy: a killed process is noticed sooner.
	aliveAfter = 20 * time.Second
	// conflictFor is how long status shows two live instances.
	conflictFor = 15 * time.Minute
)

// attached is one session of a member. Its fields are guarded by Registry.mu;
// seq, s, instance and since never change.
type attached struct {
	seq      uint64
	s        tunnel.Session
	instance string
	since    time.Time
	leaving  bool // the agent said GoAway
	draining bool // a newer session takes the new streams
	ended    bool // seen dead
	timers   []*time.Timer
}

// Attach makes a session available to OpenStream; instance is what the
// agent's Hello said. The newest session of a key takes all new streams;
// older ones finish theirs, at most ten minutes. A session of another
// instance is asked to leave (Config.GoAway) unless Config.Replicas allows
// it. Attach refuses keys that never joined (ErrUnknownAgent) or were revoked
// (ErrRevoked); the caller then closes the session.
//
// The caller calls detach once the session is of no more use, at the latest
// when it is done. A second call does nothing.
func (r *Registry) Attach(s tunnel.Session, instance string) (detach func(), err error) {
	id := s.Peer().ID
	instance = instance[:min(len(instance), 64)]
	now := r.cfg.Now()
	r.mu.Lock()
	m := r.agents[id]
	if m == nil || m.Revoked {
		r.mu.Unlock()
		if m == nil {
			return nil, ErrUnknownAgent
		}
		return nil, ErrRevoked
	}
	r.reap(m)
	r.seq++
	a := &attached{seq: r.seq, s: s, instance: instance, since: now}
	m.sessions = append(m.sessions, a)
	asked, cut := r.retire(m, a)
	again := m.replaced[instance]
	m.LastSeen = now
	m.wake()
	name := m.Name
	r.mu.Unlock()

	r.log.Info("agent connected", "agent", name, "transport", s.Peer().Transport, "addr", s.Peer().Addr, "instance", instance)
	if again {
		// Only a process that is alive can come back after it was replaced.
		r.twoInstances(m, instance)
	}
	for _, old := range asked {
		r.log.Info("agent replaced by another instance", "agent", name, "old", old.instance, "new", instance)
		r.auditAgent(m, "agent.replaced", slog.String("old", old.instance), slog.String("new", instance))
		r.cfg.GoAway(old.s, protocol.GoAway{
			Code:        protocol.CodeReplaced,
			Reason:      "another instance of this agent has connected",
			ReconnectIn: replacedRetry,
		})
	}
	for _, old := range cut {
		old.s.Close(protocol.CodeReplaced, "too many sessions of this agent")
	}
	r.touch(id, now)
	return sync.OnceFunc(func() { r.detach(id, m, a) }), nil
}

// retire decides which sessions still get new streams after a joined: one per
// instance, of the newest Replicas instances. It returns those whose instance
// lost its place now, and those beyond the cap. Callers hold r.mu.
func (r *Registry) retire(m *member, a *attached) (asked, cut []*attached) {
	keep := map[string]bool{a.instance: true}
	for _, old := range slices.Backward(m.sessions) {
		if old == a || old.draining || old.ended {
			continue
		}
		if old.instance != a.instance && (keep[old.instance] || len(keep) < r.cfg.Replicas) {
			keep[old.instance] = true
			continue
		}
		old.draining = true
		old.timers = append(old.timers, time.AfterFunc(drainFor, func() {
			old.s.Close(protocol.CodeReplaced, "a newer session took over ten minutes ago")
		}))
		if old.instance == a.instance || old.leaving {
			continue
		}
		asked = append(asked, old)
		if len(m.replaced) >= maxReplaced {
			clear(m.replaced)
		}
		m.replaced[old.instance] = true
		old.timers = append(old.timers, time.AfterFunc(aliveAfter, func() {
			if alive(old.s) && !r.isLeaving(old) {
				r.twoInstances(m, old.instance)
			}
		}))
	}
	if over := len(m.sessions) - maxSessions; over > 0 {
		cut = slices.Clone(m.sessions[:over])
	}
	return asked, cut
}

// twoInstances records that two processes use one agent key at the same time:
// a copied state directory, or a stolen key.
func (r *Registry) twoInstances(m *member, instance string) {
	now := r.cfg.Now()
	r.mu.Lock()
	fresh := now.Sub(m.conflict) > conflictFor
	m.conflict = now
	name := m.Name
	r.mu.Unlock()
	if !fresh {
		return
	}
	r.log.Warn("two live instances use the key of one agent: a copied state directory? Stop one, or revoke the agent and join again", "agent", name, "instance", instance)
	r.auditAgent(m, "agent.two-instances", slog.String("instance", instance))
}

// Retire marks a session whose agent said GoAway: it gets new streams only
// while there is no other.
func (r *Registry) Retire(s tunnel.Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.agents[s.Peer().ID]; m != nil {
		for _, a := range m.sessions {
			if a.s == s {
				a.leaving = true
			}
		}
	}
}

// EndOlder closes the sessions of the same agent and instance that are older
// than s, which is attached: the agent has said that they do not work any more
// (Hello.Alone). Streams that wait on them fail at once instead of when the
// transport notices.
func (r *Registry) EndOlder(s tunnel.Session) {
	r.mu.Lock()
	m := r.agents[s.Peer().ID]
	var dead []*attached
	if m != nil {
		instance := ""
		for _, a := range slices.Backward(m.sessions) { // newest first
			switch {
			case a.s == s:
				instance = a.instance
			case instance != "" && a.instance == instance && !a.ended:
				dead = append(dead, a)
			}
		}
	}
	r.mu.Unlock()
	for _, a := range dead {
		a.s.Close(protocol.CodeTimeout, "the agent gave this session up")
	}
}

func (r *Registry) isLeaving(a *attached) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return a.leaving
}

func (r *Registry) detach(id protocol.AgentID, m *member, a *attached) {
	now, st := r.cfg.Now(), a.s.Stats()
	r.mu.Lock()
	for _, t := range a.timers {
		t.Stop()
	}
	m.endedIn += st.BytesIn
	m.endedOut += st.BytesOut
	m.sessions = slices.DeleteFunc(m.sessions, func(x *attached) bool { return x == a })
	m.LastSeen = now
	m.wake()
	name := m.Name
	r.mu.Unlock()
	r.log.Info("agent session ended", "agent", name, "transport", a.s.Peer().Transport, "instance", a.instance, "err", a.s.Err())
	r.touch(id, now)
}

// touch stores the time of last sight outside any caller's context: sessions
// come and go also while the relay stops.
func (r *Registry) touch(id protocol.AgentID, at time.Time) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r.saveSeen(ctx, id, at)
}

// reap marks what died without detach having been called yet. Callers hold r.mu.
func (r *Registry) reap(m *member) {
	for _, a := range m.sessions {
		if !alive(a.s) && !a.ended {
			a.ended = true
			m.LastSeen = r.cfg.Now()
		}
	}
}

// online reports whether a session can take a stream. Callers hold r.mu.
func (r *Registry) online(m *member) bool {
	r.reap(m)
	return slices.ContainsFunc(m.sessions, func(a *attached) bool { return !a.ended })
}

// wake tells waiting visitors that sessions came or went. Callers hold r.mu.
func (m *member) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func alive(s tunnel.Session) bool {
	select {
	case <-s.Done():
		return false
	default:
		return true
	}
}

// Lookup returns what is known of a key, revoked or not.
func (r *Registry) Lookup(id protocol.AgentID) (Agent, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.agents[id]
	if m == nil {
		return Agent{}, false
	}
	return m.Agent, true
}

// Find returns the agent of a name or of an ID. Names stay taken after a
// revocation, so that at most one matches.
func (r *Registry) Find(name string) (Agent, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, m := range r.agents {
		if m.Name == name || string(id) == name {
			return m.Agent, true
		}
	}
	return Agent{}, false
}

// Revoke shuts an agent out for good: its key is refused from now on, its
// sessions end with CodeRevoked, and its claims are free. Revoking twice is
// fine.
func (r *Registry) Revoke(ctx context.Context, id protocol.AgentID) error {
	if err := r.beginWrite(ctx); err != nil {
		return err
	}
	open, err := r.revoke(ctx, id)
	r.endWrite()
	for _, s := range open {
		s.Close(protocol.CodeRevoked, "this agent was revoked")
	}
	if err == nil {
		r.cfg.Changed()
	}
	return err
}

func (r *Registry) revoke(ctx context.Context, id protocol.AgentID) (open []tunnel.Session, err error) {
	a, ok := r.Lookup(id)
	if !ok {
		return nil, fmt.Errorf("agent %s: %w", id.Short(), ErrNotFound)
	}
	if !a.Revoked {
		a.Revoked, a.RevokedAt = true, r.cfg.Now().UTC()
		if err := r.put(ctx, keyAgents+string(id), a.record()); err != nil {
			return nil, fmt.Errorf("store the revocation of %s: %w", a.Name, err)
		}
	}
	r.mu.Lock()
	m := r.agents[id]
	m.Revoked, m.RevokedAt = true, a.RevokedAt
	for _, at := range m.sessions {
		open = append(open, at.s)
	}
	var hosts []string
	for host, c := range r.claims {
		if c.Agent == id {
			hosts = append(hosts, host)
			delete(r.claims, host)
		}
	}
	m.services = nil
	m.wake()
	r.mu.Unlock()
	slices.Sort(hosts)
	r.log.Warn("agent revoked", "agent", a.Name, "id", id.Short(), "hosts", hosts)
	r.cfg.Audit("agent.revoked", slog.String("agent", a.Name), slog.String("id", string(id)), slog.Any("hosts", hosts))
	// What fails here is harmless: load skips claims of revoked agents, and
	// the next claimant overwrites them.
	for _, host := range hosts {
		if err := r.cfg.Store.Delete(ctx, keyHosts+host, 0); err != nil {
			r.log.Warn("cannot delete a revoked agent's claim", "host", host, "err", err)
		}
	}
	return open, nil
}

// byName orders agents for people.
func byName(a, b AgentStatus) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
}
