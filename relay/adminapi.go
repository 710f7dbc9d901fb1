package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/registry"
)

// api is what the owner may do on the relay's own machine.
func (r *Relay) api() admin.API {
	return admin.API{
		Status:       r.status,
		NewToken:     r.newToken,
		CA:           r.roots,
		AddDevice:    r.addDevice,
		Devices:      r.listDevices,
		RevokeDevice: r.revokeDevice,
		Agents:       r.listAgents,
		RevokeAgent:  r.revokeAgent,
		Grant:        r.grant,
		Hosts:        r.listHosts,
		ReleaseHost:  r.releaseHost,
		Reload:       r.reloadNow,

		Invite:         r.invite,
		AddTokenDevice: r.addTokenDevice,
		ChangeDevice:   r.changeDevice,
		Invites:        r.listInvites,
		WithdrawInvite: r.withdrawInvite,
		ResetClock:     r.resetClock,
		Requests:       r.listRequests,
		Approve:        r.approve,
		Deny:           r.deny,

		Certificates:     r.certificates,
		RetryCertificate: r.retryCertificate,
		Dashboard:        r.dashboardInfo,
	}
}

// serveAdmin serves the owner's socket in the data directory.
func (r *Relay) serveAdmin(ctx context.Context) error {
	s, err := admin.New(admin.Config{Dir: r.conf.DataDir, Logger: r.log, API: r.api()})
	if err != nil {
		return err
	}
	listen := s.Listen
	if r.conf.ListenAdmin != nil {
		listen = r.conf.ListenAdmin
	}
	l, err := listen()
	if err != nil {
		return err
	}
	return s.Serve(ctx, l)
}

func (r *Relay) status(ctx context.Context) (admin.Status, error) {
	st := admin.Status{
		Version: r.conf.Software, Domain: r.conf.Domain, Started: r.started,
		Listen: []string{r.tcp.Addr().String()}, Certs: r.conf.certs(), Data: r.conf.DataDir, Decoy: r.decoy.Load().choice,
		Visitors: r.door.Connections(),
	}
	if r.http != nil {
		st.HTTP = r.http.Addr().String()
	}
	now := r.now()
	for _, d := range r.devices.List() {
		if end := d.Ends(); !d.Revoked && !d.Renewed && (end.IsZero() || now.Before(end)) {
			st.Devices++
		}
	}
	st.MQTT = r.bridges.status()
	st.DNS, st.ECH, st.Ports = r.dnsStatus(), r.echStatus(), r.portStatus()
	st.Agents, _ = r.listAgents(ctx)
	st.Hosts, _ = r.listHosts(ctx)
	for _, a := range st.Agents {
		if !a.Conflict.IsZero() {
			st.Warnings = append(st.Warnings, fmt.Sprintf(
				"agent %s: two live instances use its key; if that is not meant, revoke it and join again", a.Name))
		}
	}
	for _, host := range slices.Sorted(r.terminated()) {
		if _, lack := r.public.lacks(host); lack != "" {
			st.Warnings = append(st.Warnings, lack)
		}
	}
	if r.bridgeFault != nil {
		st.Warnings = append(st.Warnings, fmt.Sprintf("MQTT and commands do not run: %v; mend it and restart the relay", r.bridgeFault))
	}
	for _, w := range []string{r.devices.ClockWarning(now), r.clock.warning()} {
		if w != "" {
			st.Warnings = append(st.Warnings, w)
		}
	}
	return st, nil
}

func (r *Relay) newToken(ctx context.Context, q admin.TokenRequest) (admin.Token, error) {
	t, err := r.Token(ctx, registry.TokenRequest{
		Hosts: q.Hosts, Ports: q.Ports, TTL: time.Duration(q.TTL) * time.Second, Foreign: q.Foreign,
	})
	if err != nil {
		return admin.Token{}, err
	}
	return admin.Token{Token: t.String(), Expires: t.Expires, Hosts: q.Hosts}, nil
}

func (r *Relay) roots(context.Context) (admin.CA, error) {
	ca := admin.CA{
		Device: string(pki.EncodeCert(r.state.deviceCA.Cert())),
		Agent:  string(pki.EncodeCert(r.state.agentCA.Cert())),
	}
	if r.state.publicCA != nil {
		ca.Server = string(pki.EncodeCert(r.state.publicCA.Cert()))
	}
	return ca, nil
}

func (r *Relay) listAgents(context.Context) ([]admin.Agent, error) {
	var list []admin.Agent
	for _, a := range r.registry.Agents() {
		list = append(list, r.agentView(a))
	}
	return list, nil
}

func (r *Relay) agentView(a registry.AgentStatus) admin.Agent {
	online, since := r.registry.Presence(a.ID)
	v := admin.Agent{
		ID: string(a.ID), Name: a.Name, Online: online, Since: since, Allowed: a.Hosts, Ports: a.Ports, Hosts: a.Claims,
		Streams: a.Streams, Opened: a.Opened, BytesIn: a.BytesIn, BytesOut: a.BytesOut,
		Joined: a.Joined, Conflict: a.Conflict, Revoked: a.Revoked, RevokedAt: a.RevokedAt,
	}
	for _, s := range a.Sessions {
		v.Sessions = append(v.Sessions, admin.Session{
			Transport: s.Transport, Addr: s.Addr, Instance: s.Instance, Since: s.Since,
			RTTMillis: float64(s.RTT.Microseconds()) / 1000, Streams: s.Streams, Draining: s.Draining,
		})
	}
	return v
}

func (r *Relay) revokeAgent(ctx context.Context, name string) (admin.Agent, error) {
	a, ok := r.registry.Find(name)
	if !ok {
		return admin.Agent{}, &admin.Error{
			Code: admin.CodeNotFound, Message: fmt.Sprintf("there is no agent %q", name), Hint: "sallyport status shows the names",
		}
	}
	if err := r.registry.Revoke(ctx, a.ID); err != nil {
		return admin.Agent{}, err
	}
	r.bridges.agentRevoked(string(a.ID))
	for _, st := range r.registry.Agents() {
		if st.ID == a.ID {
			return r.agentView(st), nil
		}
	}
	return admin.Agent{ID: string(a.ID), Name: a.Name, Revoked: true}, nil
}

func (r *Relay) listHosts(context.Context) ([]admin.Host, error) {
	var list []admin.Host
	for _, h := range r.registry.Hosts() {
		v := admin.Host{Host: h.Host, Agent: h.Name, Online: h.Online, Since: h.Since, Services: []admin.HostService{}}
		for i, s := range h.Services {
			v.Services = append(v.Services, admin.HostService{
				Name: s.Name, Path: s.Path, URL: h.URLs[i], Proto: s.Proto, Auth: s.Auth, TLS: s.TLS, Reader: admin.ReaderOf(s.TLS),
			})
		}
		list = append(list, v)
	}
	return list, nil
}

func (r *Relay) releaseHost(ctx context.Context, host string) error {
	err := r.registry.Release(ctx, host)
	if errors.Is(err, registry.ErrNotFound) {
		return &admin.Error{Code: admin.CodeNotFound, Message: fmt.Sprintf("nobody holds %q", host), Hint: "sallyport status shows the hosts"}
	}
	return err
}

func (r *Relay) reloadNow(context.Context) (admin.Reloaded, error) {
	if err := r.public.reload(); err != nil {
		return admin.Reloaded{}, &admin.Error{Code: admin.CodeRefused, Message: "nothing reloaded: " + err.Error()}
	}
	r.event("certificates.reloaded")
	return admin.Reloaded{Changed: []string{"the certificate files were read again"}}, nil
}
