// Package registry knows the relay's agents: who may join (tokens), who is
// connected (sessions), who owns which public name (claims), and how to reach
// a service at home (OpenStream). It sees tunnels only through
// tunnel.Session, and stores what must survive a restart in a store.KV.
//
//	reg, err := registry.New(ctx, registry.Config{Store: kv, Domain: "example.org"})
//	detach, err := reg.Attach(session, hello.Instance) // for every tunnel that an agent opened
//	defer detach()
//	answers := reg.Register(ctx, session, register.Services)
//	stream, err := reg.OpenStream(ctx, route.Agent, protocol.Open{Service: "ha"})
//
// # Claims
//
// A public name belongs to the first agent that registers a service under it
// and stays its own until the relay's owner releases it or revokes the agent.
// A service that the agent withdraws loses its route at once (visitors meet
// an unknown host) but keeps its claim, so that a home that renames or
// restarts never loses a name to somebody else.
//
// A name must lie below the relay's domain, must match one of the patterns
// that the agent's token granted (none: any name below the domain), and must
// not be reserved. A name outside the domain needs a pattern that the owner
// granted with TokenRequest.Foreign. "*.x.DOMAIN" claims every name one label
// below x; "*.DOMAIN" itself is refused because it would cover reserved names.
// Names of different agents never overlap: an exact name under another agent's
// wildcard is refused, and so is a wildcard over another agent's exact name.
// Within one agent the exact name beats the wildcard. An agent holds at most
// MaxHosts names, withdrawn ones included.
//
// HASH.DOMAIN, where HASH is an agent's ID, and all below it are that agent's
// own, whatever it was granted. A public port of the relay needs a grant by
// number (Grant, TokenRequest.Ports), and belongs to the agent whose service
// took it first, for as long as it offers that.
package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/relay/store"
)

// MaxHosts is how many names one agent may hold (DESIGN §6.16).
const MaxHosts = 50

// Keys in the store. Every value is one JSON document.
const (
	keyTokens   = "registry/tokens/"   // SHA-256 of the secret, hex → tokenRecord
	keyAgents   = "registry/agents/"   // AgentID → agentRecord
	keyNames    = "registry/names/"    // agent name → AgentID; keeps names unique
	keyHosts    = "registry/hosts/"    // host pattern → claimRecord
	keyServices = "registry/services/" // AgentID → the accepted services of its last Register
	keySeen     = "registry/seen/"     // AgentID → time; apart, because it is written often
	keyFirst    = "registry/first"     // firstRecord: who may still join without restriction
)

// seenEvery is how coarse the stored time of last sight is.
const seenEvery = time.Minute

// Errors that callers decide by.
var (
	ErrUnknownAgent = errors.New("this agent never joined here")
	ErrRevoked      = errors.New("this agent was revoked")
	ErrNotFound     = errors.New("not found")
	ErrOffline      = errors.New("the agent is offline") // matches every *OfflineError
)

// Config is what a Registry needs. Store and Domain are required.
type Config struct {
	Store  store.KV
	Domain string // names are claimed below it; canonicalised by New
	Port   string // of public URLs; empty or "443" leaves it out
	// Replicas is how many live instances (processes) of one agent key share
	// its new streams. 0 or 1: only the newest one gets them.
	Replicas int
	Now      func() time.Time // nil: time.Now
	Logger   *slog.Logger     // nil: discarded
	// Audit records what an owner wants to be able to look up later. Nil: nothing.
	Audit func(event string, attrs ...slog.Attr)
	// Changed is called after the routes changed, without locks held. It may
	// call Routes. Nil: nothing.
	Changed func()
	// GoAway asks the agent at the other end of a session to leave it. It must
	// not block. Nil: nobody is asked, old sessions just drain.
	GoAway func(s tunnel.Session, m protocol.GoAway)
}

// A Registry is safe for concurrent use.
type Registry struct {
	cfg     Config
	log     *slog.Logger
	started time.Time

	// writing holds one token: it serialises changes of claims and agents
	// across their store writes. Readers never wait for it.
	writing chan struct{}

	mu     sync.Mutex // guards the fields below and every member; never held across I/O or callbacks
	agents map[protocol.AgentID]*member
	claims map[string]claim // by host pattern
	seq    uint64           // counts attached sessions: the higher, the newer
}

// An Agent is what is known of one home.
type Agent struct {
	ID        protocol.AgentID
	Name      string   // unique at this relay
	Hosts     []string // patterns it may claim; nil: any name below the domain
	Ports     []string // public ports it may use: "2222", "51820/udp"; nil: none
	Joined    time.Time
	LastSeen  time.Time // exact while the relay runs, to the minute after a crash
	Revoked   bool
	RevokedAt time.Time
}

// agentRecord is an Agent at rest.
type agentRecord struct {
	Name      string    `json:"name"`
	Hosts     []string  `json:"hosts,omitempty"`
	Ports     []string  `json:"ports,omitempty"`
	Joined    time.Time `json:"joined"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
}

// member is an agent in memory.
type member struct {
	Agent
	services []protocol.Service // accepted, defaults filled, hosts canonical
	refused  map[string]string  // service → reason: what the audit log already has
	sessions []*attached        // oldest first
	changed  chan struct{}      // closed and replaced when sessions come or go
	replaced map[string]bool    // instances that a newer one pushed out
	conflict time.Time          // when two live instances were last seen
	// audited counts events of this agent since auditSince.
	audited    int
	auditSince time.Time
	endedIn    uint64 // bytes of sessions that were detached
	endedOut   uint64
	opened     uint64 // streams opened since the relay started
}

// New loads what the store knows. It starts nothing; see Run.
func New(ctx context.Context, cfg Config) (*Registry, error) {
	domain, err := names.Canonical(cfg.Domain)
	if err != nil {
		return nil, fmt.Errorf("relay domain %q: %w", cfg.Domain, err)
	}
	cfg.Domain = domain
	if cfg.Store == nil {
		return nil, errors.New("registry: no store")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Audit == nil {
		cfg.Audit = func(string, ...slog.Attr) {}
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.GoAway == nil {
		cfg.GoAway = func(tunnel.Session, protocol.GoAway) {}
	}
	r := &Registry{
		cfg:     cfg,
		log:     cfg.Logger,
		started: cfg.Now(),
		writing: make(chan struct{}, 1),
		agents:  make(map[protocol.AgentID]*member),
		claims:  make(map[string]claim),
	}
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Registry) load(ctx context.Context) error {
	err := each(ctx, r.cfg.Store, keyAgents, func(key string, rec agentRecord) {
		id := protocol.AgentID(key)
		r.agents[id] = newMember(id, rec)
	})
	if err != nil {
		return err
	}
	err = each(ctx, r.cfg.Store, keySeen, func(key string, at time.Time) {
		if m := r.agents[protocol.AgentID(key)]; m != nil {
			m.LastSeen = at
		}
	})
	if err != nil {
		return err
	}
	err = each(ctx, r.cfg.Store, keyServices, func(key string, list []protocol.Service) {
		if m := r.agents[protocol.AgentID(key)]; m != nil {
			m.services = list
		}
	})
	if err != nil {
		return err
	}
	return each(ctx, r.cfg.Store, keyHosts, func(key string, rec claimRecord) {
		// A crash in the middle of Revoke may leave claims of a revoked agent.
		if m := r.agents[rec.Agent]; m != nil && !m.Revoked {
			r.claims[key] = claim(rec)
		}
	})
}

// each decodes every document under prefix; key comes without the prefix.
func each[T any](ctx context.Context, kv store.KV, prefix string, do func(key string, v T)) error {
	entries, err := kv.List(ctx, prefix)
	if err != nil {
		return fmt.Errorf("load %s: %w", prefix, err)
	}
	for _, e := range entries {
		var v T
		if err := json.Unmarshal(e.Value, &v); err != nil {
			return fmt.Errorf("load %s: %w", e.Key, err)
		}
		do(strings.TrimPrefix(e.Key, prefix), v)
	}
	return nil
}

func newMember(id protocol.AgentID, rec agentRecord) *member {
	return &member{
		Agent: Agent{
			ID: id, Name: rec.Name, Hosts: rec.Hosts, Ports: rec.Ports, Joined: rec.Joined, LastSeen: rec.Joined,
			Revoked: !rec.RevokedAt.IsZero(), RevokedAt: rec.RevokedAt,
		},
		changed:  make(chan struct{}),
		replaced: make(map[string]bool),
	}
}

func (a Agent) record() agentRecord {
	return agentRecord{Name: a.Name, Hosts: a.Hosts, Ports: a.Ports, Joined: a.Joined, RevokedAt: a.RevokedAt}
}

// Run keeps the stored times of last sight fresh until ctx ends, and stores
// them once more before it returns.
func (r *Registry) Run(ctx context.Context) error {
	tick := time.NewTicker(seenEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.saveOnline(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			r.saveOnline(last)
			return nil
		}
	}
}

func (r *Registry) saveOnline(ctx context.Context) {
	now := r.cfg.Now()
	r.mu.Lock()
	var online []protocol.AgentID
	for id, m := range r.agents {
		if r.online(m) {
			m.LastSeen = now
			online = append(online, id)
		}
	}
	r.mu.Unlock()
	for _, id := range online {
		r.saveSeen(ctx, id, now)
	}
}

// saveSeen only logs a failure: the time is a convenience.
func (r *Registry) saveSeen(ctx context.Context, id protocol.AgentID, at time.Time) {
	if err := r.put(ctx, keySeen+string(id), at.UTC().Truncate(time.Second)); err != nil {
		r.log.Warn("cannot store when the agent was last seen", "agent", id.Short(), "err", err)
	}
}

// put writes a document whatever was there.
func (r *Registry) put(ctx context.Context, key string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", key, err)
	}
	for range 5 {
		old, err := r.cfg.Store.Get(ctx, key)
		switch {
		case errors.Is(err, store.ErrNotFound):
			_, err = r.cfg.Store.Create(ctx, key, data)
		case err == nil:
			_, err = r.cfg.Store.Update(ctx, key, data, old.Revision)
		}
		if !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("write %s: %w", key, store.ErrConflict)
}

// beginWrite waits for its turn to change claims or agents.
func (r *Registry) beginWrite(ctx context.Context) error {
	select {
	case r.writing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *Registry) endWrite() { <-r.writing }

// A HintError is an error for a person: what happened, and what to do.
type HintError struct{ What, Todo string }

func (e *HintError) Error() string { return e.What }

// Hint says what to do.
func (e *HintError) Hint() string { return e.Todo }
