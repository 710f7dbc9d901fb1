package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/ports"
	"github.com/sallyport/sallyport/relay/registry"
)

// grant changes what an agent may claim, and lets it ask again for what was
// refused: it moves to a fresh session, where it registers anew.
func (r *Relay) grant(ctx context.Context, q admin.GrantRequest) (admin.Agent, error) {
	a, err := r.registry.Grant(ctx, q.Agent, registry.GrantChange{Hosts: q.Hosts, Ports: q.Ports, Foreign: q.Foreign})
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return admin.Agent{}, &admin.Error{
			Code: admin.CodeNotFound, Message: fmt.Sprintf("there is no agent %q", q.Agent), Hint: "sallyport status shows the names",
		}
	case errors.Is(err, registry.ErrRevoked):
		return admin.Agent{}, &admin.Error{Code: admin.CodeRefused, Message: fmt.Sprintf("agent %s was revoked: it joins anew with a token", q.Agent)}
	case err != nil:
		return admin.Agent{}, err
	}
	r.mu.Lock()
	var to []*control
	for c := range r.controls {
		if c.session.Peer().ID == a.ID {
			to = append(to, c)
		}
	}
	r.mu.Unlock()
	for _, c := range to {
		go func() {
			_ = c.send(protocol.GoAway{
				Code: protocol.CodeGoingAway, Reason: "the relay's owner changed what this home may claim", TryFor: time.Minute,
			})
		}()
	}
	for _, st := range r.registry.Agents() {
		if st.ID == a.ID {
			return r.agentView(st), nil
		}
	}
	return admin.Agent{ID: string(a.ID), Name: a.Name, Allowed: a.Hosts, Ports: a.Ports}, nil
}

// dnsStatus is nil without DNS.
func (r *Relay) dnsStatus() *admin.DNS {
	if r.zone == nil {
		return nil
	}
	st := r.zone.server.Status()
	d := &admin.DNS{
		Zone: st.Zone, Listen: r.zone.tcp.Addr().String(), NS: st.NS, Serial: st.Serial,
		Questions: st.UDP + st.TCP, Refused: st.Refused, Limited: st.Limited, Addresses: []string{},
	}
	for _, a := range r.publicAddrs() {
		d.Addresses = append(d.Addresses, a.String())
	}
	return d
}

// echStatus is nil without Encrypted ClientHello.
func (r *Relay) echStatus() *admin.ECH {
	if r.ech == nil {
		return nil
	}
	st := r.ech.Status()
	return &admin.ECH{PublicName: st.PublicName, Made: st.Made, Next: st.Next, Kept: st.Kept}
}

// auditPort records what became of a port, within the budget of its home.
func (r *Relay) auditPort(event string, attrs ...slog.Attr) {
	for i, a := range attrs {
		if a.Key == "agent" {
			r.registry.AuditAgent(protocol.AgentID(a.Value.String()), event, slices.Delete(slices.Clone(attrs), i, i+1)...)
			return
		}
	}
	r.event(event, attrs...)
}

func (r *Relay) portStatus() (list []admin.Port) {
	all := r.ports.Status()
	slices.SortFunc(all, func(a, b ports.Status) int { return cmp.Compare(a.Port, b.Port) })
	for _, st := range all {
		list = append(list, admin.Port{
			Port: st.Route.String(), Agent: r.agentName(st.Agent), Service: st.Service, Open: st.Open, Error: st.Error,
			Bytes: st.BytesIn + st.BytesOut, Refused: st.Refused, Dropped: st.Dropped,
		})
	}
	return list
}

// DNSAddr is where the DNS server answers, UDP and TCP; nil: it does not.
func (r *Relay) DNSAddr() net.Addr {
	if r.zone == nil {
		return nil
	}
	return r.zone.tcp.Addr()
}
