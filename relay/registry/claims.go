package registry

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/names"
)

// A claim says whose a host pattern is.
type claim struct {
	Agent protocol.AgentID
	Since time.Time
}

// claimRecord is a claim at rest.
type claimRecord struct {
	Agent protocol.AgentID `json:"agent"`
	Since time.Time        `json:"since"`
}

// errConflict marks refusals that somebody else's claim caused: they are
// worth a look by the owner.
var errConflict = errors.New("claimed by another agent")

// mayClaim decides whether a may hold the canonical pattern host. It does not
// name the other owner: what one home is called is not another's business.
// Callers hold r.mu.
func (r *Registry) mayClaim(a Agent, host string) error {
	domain := r.cfg.Domain
	if owner := names.AgentOf(host, domain); owner != "" {
		// An agent's own name, and what lies below it, need no grant and are
		// nobody else's.
		if owner != string(a.ID) {
			return fmt.Errorf("%s is an agent's own name, %w from the first: choose another name below %s", host, errConflict, domain)
		}
	} else if names.IsReserved(host, domain) {
		return fmt.Errorf("%s is reserved for the relay: choose another name below %s", host, domain)
	} else if err := granted(a.Hosts, host, domain); err != nil {
		return err
	}
	if c, ok := r.claims[host]; ok {
		if c.Agent == a.ID {
			return nil
		}
		return fmt.Errorf("%s is %w: choose another name, or ask the relay's owner to release it", host, errConflict)
	}
	held := 0
	base, wild := strings.CutPrefix(host, "*.")
	for pattern, c := range r.claims {
		switch {
		case c.Agent == a.ID:
			held++
		case wild && names.Match(host, pattern):
			return fmt.Errorf("%s would cover a name below %s that is %w: claim single names instead", host, base, errConflict)
		case !wild && names.Match(pattern, host):
			return fmt.Errorf("%s lies under a wildcard that is %w: choose another name", host, errConflict)
		}
	}
	if held >= MaxHosts {
		return fmt.Errorf("this agent already holds %d names, the most that are allowed: share a host by path, or ask the relay's owner to release old ones", MaxHosts)
	}
	return nil
}

// granted checks host against the patterns of the agent's token. A wildcard
// needs to be granted as such.
func granted(patterns []string, host, domain string) error {
	if len(patterns) == 0 {
		if names.Below(host, domain) {
			return nil
		}
		return fmt.Errorf("%s is not below %s: foreign domains need the relay owner's grant", host, domain)
	}
	for _, p := range patterns {
		if p == host || names.Match(p, host) {
			return nil
		}
	}
	const listed = 3
	more := ""
	if n := len(patterns) - listed; n > 0 {
		patterns, more = patterns[:listed], fmt.Sprintf(" and %d more", n)
	}
	return fmt.Errorf("%s is not among the names that this agent may claim: %s%s", host, strings.Join(patterns, ", "), more)
}

// sharable decides whether next may live on a host together with prev, which
// the same agent offers there. The door judges a visitor once per host, before
// it has seen a path.
func sharable(prev, next protocol.Service) error {
	switch {
	case prev.Path == next.Path && next.Path == "":
		return fmt.Errorf("service %q already has the whole host %s: give one of them a --path", prev.Name, next.Host)
	case prev.Path == next.Path:
		return fmt.Errorf("service %q already has %s%s: choose another --path", prev.Name, next.Host, next.Path)
	case prev.Auth != next.Auth:
		return fmt.Errorf("auth is per host: service %q on %s has auth %s, this one %s: make them equal or choose another host", prev.Name, next.Host, prev.Auth, next.Auth)
	case prev.TLS != next.TLS:
		return fmt.Errorf("tls is per host: service %q on %s has tls %s, this one %s: make them equal or choose another host", prev.Name, next.Host, prev.TLS, next.TLS)
	case prev.Proto == protocol.ProtoRaw || next.Proto == protocol.ProtoRaw || next.TLS == protocol.TLSBackend:
		return fmt.Errorf("only HTTP services whose TLS ends at the relay or the agent can share the host %s (with %q): choose another host", next.Host, prev.Name)
	}
	return nil
}
