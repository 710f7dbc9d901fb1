package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/relay/authdns"
	"github.com/sallyport/sallyport/relay/registry"
)

// keyZone is where the store has what homes told our DNS: "zone/AGENT" →
// protocol.Names.
const keyZone = "zone/"

const (
	challengeLabel = "_acme-challenge."
	maxLANAddrs    = 16
	maxIssuers     = 4
	maxAccount     = 300 // bytes of an ACME account URI
)

// A zone is the relay's part as the authoritative DNS server of its domain.
type zone struct {
	r      *Relay
	server *authdns.Server
	homes  *authdns.Homes
	txt    *authdns.TXT
	udp    net.PacketConn
	tcp    net.Listener

	mu    sync.Mutex // guards told and from
	told  map[protocol.AgentID]protocol.Names
	from  map[protocol.AgentID]netip.Addr // where the newest session comes from
	hosts map[protocol.AgentID][]string   // whose TLS ends at home
	owner map[string]protocol.AgentID     // of every claimed host
	proof map[string]protocol.AgentID     // who has set which challenge
}

// openZone makes the DNS server; nil when the owner wants none.
func (r *Relay) openZone() (*zone, error) {
	if r.conf.DNS.Listen == "" {
		return nil, nil
	}
	if len(r.publicAddrs()) == 0 {
		return nil, errors.New("DNS: this machine has no public address of its own, so the zone would be empty: " +
			"name the relay's addresses with dns.addresses (--dns-address 203.0.113.7)")
	}
	z := &zone{
		r: r, homes: authdns.NewHomes(r.conf.Domain), txt: authdns.NewTXT(r.now),
		told: map[protocol.AgentID]protocol.Names{}, from: map[protocol.AgentID]netip.Addr{}, hosts: map[protocol.AgentID][]string{},
	}
	if err := z.load(context.Background()); err != nil {
		return nil, err
	}
	var err error
	z.server, err = authdns.New(authdns.Config{
		Domain: r.conf.Domain, NS: r.conf.DNS.NS, Addrs: r.publicAddrs, Sources: []authdns.Source{z.txt, z.homes},
		Static: r.conf.DNS.Records, Hosts: r.servesName, Below: r.servesBelow, HTTPS: r.httpsRecord, CAA: r.caaRecords,
		Now: r.now, Logger: r.log,
	})
	if err != nil {
		return nil, err
	}
	return z, nil
}

// publicAddrs are the relay's addresses as visitors reach it.
func (r *Relay) publicAddrs() []netip.Addr {
	if len(r.conf.DNS.Addresses) > 0 {
		return r.conf.DNS.Addresses
	}
	if ap, err := netip.ParseAddrPort(r.tcp.Addr().String()); err == nil && !ap.Addr().IsUnspecified() && !ap.Addr().IsLoopback() {
		return []netip.Addr{ap.Addr().Unmap()}
	}
	list := r.conf.LocalAddrs
	if list == nil {
		list = localAddrs
	}
	return slices.DeleteFunc(list(), func(a netip.Addr) bool { return !a.IsGlobalUnicast() || a.IsPrivate() })
}

func localAddrs() (list []netip.Addr) {
	addrs, _ := net.InterfaceAddrs() // none: the caller says what to do
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				list = append(list, ip.Unmap())
			}
		}
	}
	return list
}

// bind opens the sockets. With port 0, UDP takes the port that TCP got.
func (z *zone) bind(listenTCP func(string) (net.Listener, error), listenUDP func(string) (net.PacketConn, error)) error {
	addr := z.r.conf.DNS.Listen
	var err error
	if z.tcp, err = listenTCP(addr); err != nil {
		return fmt.Errorf("%w\nDNS needs this port for itself: stop the resolver that has it, or name one address, such as 203.0.113.7:53", bindError("TCP", addr, err))
	}
	if host, _, err := net.SplitHostPort(addr); err == nil {
		if _, port, err := net.SplitHostPort(z.tcp.Addr().String()); err == nil {
			addr = net.JoinHostPort(host, port)
		}
	}
	if z.udp, err = listenUDP(addr); err != nil {
		return fmt.Errorf("%w\nDNS needs this port for itself: stop the resolver that has it, or name one address, such as 203.0.113.7:53", bindError("UDP", addr, err))
	}
	return nil
}

func (z *zone) run(ctx context.Context) error {
	if z == nil {
		<-ctx.Done()
		return nil
	}
	return z.server.Serve(ctx, z.udp, z.tcp)
}

func (z *zone) close() error {
	if z == nil {
		return nil
	}
	var errs []error
	if z.tcp != nil {
		errs = append(errs, ignoreClosed(z.tcp.Close()))
	}
	if z.udp != nil {
		errs = append(errs, ignoreClosed(z.udp.Close()))
	}
	return errors.Join(errs...)
}

// load reads what homes told before the relay was started.
func (z *zone) load(ctx context.Context) error {
	entries, err := z.r.conf.Store.List(ctx, keyZone)
	if err != nil {
		return fmt.Errorf("read what homes told the DNS: %w", err)
	}
	for _, e := range entries {
		id := protocol.AgentID(strings.TrimPrefix(e.Key, keyZone))
		var n protocol.Names
		if err := json.Unmarshal(e.Value, &n); err != nil {
			z.r.log.Warn("a home's names in the store are damaged and left out", "agent", id.Short(), "err", err)
			continue
		}
		z.told[id] = n
	}
	return nil
}

// rebuilt takes the hosts whose TLS ends at home from new routes.
func (z *zone) rebuilt(routes []registry.Route) {
	if z == nil {
		return
	}
	hosts := map[protocol.AgentID][]string{}
	for _, rt := range routes {
		if rt.Service.TLS == protocol.TLSAgent && names.Below(rt.Host, z.r.conf.Domain) && !slices.Contains(hosts[rt.Agent], rt.Host) {
			hosts[rt.Agent] = append(hosts[rt.Agent], rt.Host)
		}
	}
	owner := map[string]protocol.AgentID{}
	for _, h := range z.r.registry.Hosts() {
		owner[h.Host] = h.Agent
	}
	known := map[protocol.AgentID]bool{}
	for _, a := range z.r.registry.Agents() {
		known[a.ID] = !a.Revoked
	}
	z.mu.Lock()
	z.hosts, z.owner = hosts, owner
	var gone []protocol.AgentID
	for id := range z.told {
		if !known[id] {
			gone = append(gone, id)
			delete(z.told, id)
		}
	}
	z.mu.Unlock()
	// Who lost a host must not go on proving that it has it.
	z.mu.Lock()
	proofs := maps.Clone(z.proof)
	z.mu.Unlock()
	for host, id := range proofs {
		if known[id] && z.mayProve(id, host) {
			continue
		}
		_ = z.txt.SetTXT(challengeLabel+host, nil, 0) // taking away cannot fail
		z.mu.Lock()
		delete(z.proof, host)
		z.mu.Unlock()
	}
	for id, live := range known {
		if live {
			_ = z.publish(id) // what the home told was judged when it did
		} else {
			z.homes.Remove(string(id))
		}
	}
	for _, id := range gone {
		z.homes.Remove(string(id))
		if err := z.r.conf.Store.Delete(context.Background(), keyZone+string(id), 0); err != nil {
			z.r.log.Warn("cannot forget a home's names", "agent", id.Short(), "err", err)
		}
	}
	z.server.Changed()
}

// publish puts what is known of a home into the zone.
func (z *zone) publish(id protocol.AgentID) error {
	z.mu.Lock()
	n := z.told[id]
	h := authdns.Home{
		LAN: n.LAN, Split: n.Split, Account: n.Account, Issuers: n.Issuers, Public: z.from[id], Hosts: z.hosts[id],
	}
	z.mu.Unlock()
	return z.homes.Set(string(id), h)
}

// came notes where an agent's newest session comes from.
func (z *zone) came(s tunnel.Session) {
	if z == nil || s.Peer().Addr == nil {
		return
	}
	id, addr := s.Peer().ID, addrPort(s.Peer().Addr).Addr()
	z.mu.Lock()
	z.from[id] = addr
	z.mu.Unlock()
	_ = z.publish(id) // what the home told was judged when it did
}

// take takes what a home tells, and answers.
func (z *zone) take(ctx context.Context, s tunnel.Session, m protocol.Names) protocol.Named {
	id := s.Peer().ID
	answer := protocol.Named{Seq: m.Seq, Host: string(id) + "." + z.r.conf.Domain}
	if a := addrPort(s.Peer().Addr).Addr(); a.IsValid() {
		answer.Public = a.String()
	}
	fault := func(err error) protocol.Named { answer.Error = clip(err.Error(), 500); return answer }
	if len(m.LAN) > maxLANAddrs || len(m.Issuers) > maxIssuers || len(m.Account) > maxAccount {
		return fault(fmt.Errorf("too much: at most %d addresses, %d issuers, %d bytes of account", maxLANAddrs, maxIssuers, maxAccount))
	}
	data, err := json.Marshal(m)
	if err != nil {
		return fault(err)
	}
	z.mu.Lock()
	old, had := z.told[id]
	z.mu.Unlock()
	old.Seq = m.Seq
	if before, _ := json.Marshal(old); !had || string(before) != string(data) {
		if err := z.r.put(ctx, keyZone+string(id), data); err != nil {
			z.r.log.Error("cannot store a home's names", "agent", id.Short(), "err", err)
			return fault(errors.New("the relay could not store it; its log says why"))
		}
	}
	z.mu.Lock()
	z.told[id] = m
	z.mu.Unlock()
	if err := z.publish(id); err != nil {
		return fault(err)
	}
	return answer
}

// put writes a value, whatever was there before.
func (r *Relay) put(ctx context.Context, key string, value []byte) error {
	return putKey(ctx, r.conf.Store, key, value)
}

// setTXT sets a record for a challenge of the home's CA, below a name whose TLS
// ends there and nowhere else.
func (z *zone) setTXT(id protocol.AgentID, m protocol.SetTXT) protocol.TXTSet {
	answer := protocol.TXTSet{Seq: m.Seq}
	host, ok := strings.CutPrefix(m.Name, challengeLabel)
	if name, err := names.Canonical(host); !ok || err != nil || name != host {
		answer.Error = fmt.Sprintf("%q is not %s before a host name", clip(m.Name, 100), challengeLabel)
		return answer
	}
	if !z.mayProve(id, host) {
		answer.Error = fmt.Sprintf("%s is not a host of this agent whose TLS ends at home", host)
		return answer
	}
	z.mu.Lock()
	if z.proof == nil {
		z.proof = map[string]protocol.AgentID{}
	}
	z.proof[host] = id
	z.mu.Unlock()
	if err := z.txt.SetTXT(m.Name, m.Values, 0); err != nil {
		answer.Error = err.Error()
		return answer
	}
	if len(m.Values) > 0 {
		z.r.registry.AuditAgent(id, "dns.challenge", slog.String("name", m.Name))
	}
	return answer
}

// mayProve reports whether a home may have certificates for a host: its own name,
// or one whose visitors it terminates. "*.x" is proved at x, and so would x be:
// there nobody else may have x.
func (z *zone) mayProve(id protocol.AgentID, host string) bool {
	if host == string(id)+"."+z.r.conf.Domain {
		return true
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if slices.Contains(z.hosts[id], host) {
		// The same record proves "*.host": not while somebody else has names there.
		for name, owner := range z.owner {
			if owner != id && (name == "*."+host || names.Match("*."+host, name)) {
				return false
			}
		}
		return true
	}
	owner, claimed := z.owner[host]
	return slices.Contains(z.hosts[id], "*."+host) && (!claimed || owner == id) && !names.IsReserved(host, z.r.conf.Domain)
}

// servesName reports whether a name leads to this relay.
func (r *Relay) servesName(name string) bool {
	s := r.served.Load()
	if name == r.conf.Domain || name == r.ownHost("relay") || s == nil {
		return s != nil
	}
	_, ok := s.all.Lookup(name)
	return ok || r.guessable(name)
}

// guessable reports whether a name is one that a scanner would try: directly
// below the domain. All of them have addresses, as with a wildcard in any other
// zone, so that guessing costs a handshake. Hosts whose TLS ends at home can be
// told by their CAA records, those of --tls backend by having no HTTPS record.
func (r *Relay) guessable(name string) bool {
	label, parent, _ := strings.Cut(name, ".")
	return parent == r.conf.Domain && !names.IsAgentLabel(label) && !strings.HasPrefix(label, "_")
}

// servesBelow reports whether a host lies below a name.
func (r *Relay) servesBelow(name string) bool {
	s := r.served.Load()
	return s != nil && slices.ContainsFunc(s.list, func(h string) bool { return names.Below(h, name) })
}

// httpsRecord is what browsers may know before they connect. Hosts that answer
// with another server's TLS have none: what they speak is not ours to say, and
// they could not confirm an encrypted hello.
func (r *Relay) httpsRecord(name string) (authdns.SVCB, bool) {
	s := r.served.Load()
	if s == nil {
		return authdns.SVCB{}, false
	}
	_, known := s.all.Lookup(name)
	_, web := s.web.Lookup(name)
	if known != web || !known && !r.guessable(name) {
		return authdns.SVCB{}, false
	}
	rec := authdns.SVCB{ALPN: []string{"h2", "http/1.1"}, Port: r.visitorPort()}
	if r.ech != nil && (!known || r.router.HasECH(name)) {
		rec.ECH = r.ech.ConfigList()
	}
	return rec, true
}

// visitorPort is the port of public URLs.
func (r *Relay) visitorPort() uint16 {
	n, err := strconv.ParseUint(r.conf.urlPort(r.tcp.Addr()), 10, 16)
	if err != nil {
		return 443
	}
	return uint16(n)
}

// caaRecords lets only the relay's own account have certificates for what the
// relay serves. Homes that hold their keys have records of their own.
func (r *Relay) caaRecords(name string) []authdns.CAA {
	issuers, account := r.conf.DNS.Issuers, ""
	if r.public.acme != nil && len(issuers) == 0 {
		issuers, account = r.public.acme.CAA()
	}
	if slices.Equal(issuers, []string{"-"}) {
		return nil
	}
	var list []authdns.CAA
	for _, issuer := range issuers {
		if account != "" {
			issuer += "; accounturi=" + account
		}
		list = append(list, authdns.CAA{Tag: "issue", Value: issuer}, authdns.CAA{Tag: "issuewild", Value: issuer})
	}
	if s := r.served.Load(); len(list) == 0 && s != nil && name != r.conf.Domain && slices.Contains(s.list, "*."+name) {
		if _, ok := s.all.Lookup(name); !ok {
			// A name that only looks served is nobody's: whoever has "*.name" must not
			// get a certificate for it.
			return []authdns.CAA{{Tag: "issue", Value: ";"}}
		}
	}
	return list
}
