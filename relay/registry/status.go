package registry

import (
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol"
)

// AgentStatus is an agent as status shows it.
type AgentStatus struct {
	Agent
	Online   bool
	Claims   []string        // host patterns it holds
	Sessions []SessionStatus // newest first
	Streams  int             // open now, the control streams included
	Opened   uint64          // visitors' streams since the relay started
	BytesIn  uint64          // since the relay started, from the agent
	BytesOut uint64          // to the agent
	// Conflict is when two live instances were last seen to use this key;
	// zero: not lately.
	Conflict time.Time
}

// SessionStatus is one tunnel of an agent.
type SessionStatus struct {
	Transport string
	Addr      string
	Instance  string
	Since     time.Time
	RTT       time.Duration
	Streams   int
	Draining  bool // gets no new streams
}

// HostStatus is one claimed host.
type HostStatus struct {
	Host     string
	Agent    protocol.AgentID
	Name     string // the agent's
	Since    time.Time
	Online   bool               // the agent is
	Services []protocol.Service // routed there; empty when withdrawn
	URLs     []string           // of Services, in the same order
}

// Presence tells whether the agent has a live session: since when, or since
// when not. Both are zero for an unknown agent.
func (r *Registry) Presence(id protocol.AgentID) (online bool, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.agents[id]
	if m == nil {
		return false, time.Time{}
	}
	r.reap(m)
	for _, a := range m.sessions { // the oldest live one
		if !a.ended {
			return true, a.since
		}
	}
	return false, m.LastSeen
}

// Agents lists all agents by name, revoked ones included.
func (r *Registry) Agents() []AgentStatus {
	now := r.cfg.Now()
	var list []AgentStatus
	var live [][]*attached // newest first, beside list
	r.mu.Lock()
	for id, m := range r.agents {
		r.reap(m)
		st := AgentStatus{Agent: m.Agent, Opened: m.opened, BytesIn: m.endedIn, BytesOut: m.endedOut}
		if now.Sub(m.conflict) <= conflictFor {
			st.Conflict = m.conflict
		}
		for host, c := range r.claims {
			if c.Agent == id {
				st.Claims = append(st.Claims, host)
			}
		}
		for _, a := range slices.Backward(m.sessions) {
			st.Sessions = append(st.Sessions, SessionStatus{Instance: a.instance, Since: a.since, Draining: a.draining || a.leaving})
		}
		sessions := slices.Clone(m.sessions)
		slices.Reverse(sessions)
		list, live = append(list, st), append(live, sessions)
	}
	r.mu.Unlock()
	for i := range list {
		list[i].measure(live[i], now)
	}
	slices.SortFunc(list, byName)
	return list
}

// measure asks the sessions themselves, which may take locks of theirs.
func (st *AgentStatus) measure(sessions []*attached, now time.Time) {
	slices.Sort(st.Claims)
	var views []SessionStatus
	for i, a := range sessions {
		s, peer := a.s.Stats(), a.s.Peer()
		st.BytesIn += s.BytesIn
		st.BytesOut += s.BytesOut
		if !alive(a.s) {
			continue
		}
		st.Online = true
		st.LastSeen = now
		st.Streams += s.Streams
		view := st.Sessions[i]
		view.Transport, view.RTT, view.Streams = peer.Transport, s.RTT, s.Streams
		if peer.Addr != nil {
			view.Addr = peer.Addr.String()
		}
		views = append(views, view)
	}
	st.Sessions = views
}

// Hosts lists all claims by name.
func (r *Registry) Hosts() []HostStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]HostStatus, 0, len(r.claims))
	for host, c := range r.claims {
		h := HostStatus{Host: host, Agent: c.Agent, Name: r.nameOf(c.Agent), Since: c.Since}
		if m := r.agents[c.Agent]; m != nil {
			h.Online = r.online(m)
			for _, s := range m.services {
				if s.Host == host {
					h.Services = append(h.Services, s)
					h.URLs = append(h.URLs, r.url(s))
				}
			}
		}
		list = append(list, h)
	}
	slices.SortFunc(list, func(a, b HostStatus) int { return strings.Compare(a.Host, b.Host) })
	return list
}
