package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/logging"
	"github.com/pion/mdns/v2"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// A Resolver finds the address of a device on the home network by its name,
// which ends in ".local", lower case, without a final dot. It returns when ctx
// ends at the latest. It is called concurrently.
type Resolver interface {
	LookupLocal(ctx context.Context, name string) (netip.Addr, error)
}

// forgetter is a Resolver that remembers. Forget is called when the address
// that it gave does not answer.
type forgetter interface{ Forget(name string) }

const (
	mdnsTimeout  = 3 * time.Second        // for one lookup
	mdnsRemember = 30 * time.Second       // an answer
	mdnsNegative = 3 * time.Second        // no answer: a page with fifty pictures asks once
	mdnsPause    = 500 * time.Millisecond // between questions when an answer was of no use
	mdnsPrefer4  = 250 * time.Millisecond // how long an IPv6 answer waits for an IPv4 one
)

// MDNS resolves names by multicast DNS on all interfaces. Sockets are open
// only during a lookup. Use NewMDNS.
type MDNS struct {
	// query asks one address family; tests replace it.
	query func(ctx context.Context, name string, network string) (netip.Addr, error)

	mu    sync.Mutex // guards known
	known map[string]*mdnsAnswer
}

// mdnsAnswer is a lookup, finished or not.
type mdnsAnswer struct {
	done  chan struct{} // closed when the rest is set
	addr  netip.Addr
	err   error
	until time.Time
}

// NewMDNS returns a resolver that has looked up nothing yet.
func NewMDNS() *MDNS { return &MDNS{query: queryMDNS, known: make(map[string]*mdnsAnswer)} }

// LookupLocal asks for A and AAAA records for at most 3 seconds, and prefers
// IPv4. Answers are kept for 30 seconds. Concurrent lookups of one name share
// one question.
func (m *MDNS) LookupLocal(ctx context.Context, name string) (netip.Addr, error) {
	m.mu.Lock()
	a := m.known[name]
	mine := a == nil || a.over(time.Now())
	if mine {
		a = &mdnsAnswer{done: make(chan struct{})}
		m.known[name] = a
	}
	m.mu.Unlock()
	if mine {
		go m.resolve(name, a) // ends by itself within mdnsTimeout
	}
	select {
	case <-a.done:
		return a.addr, a.err
	case <-ctx.Done():
		return netip.Addr{}, context.Cause(ctx)
	}
}

// Forget drops what is remembered of a name.
func (m *MDNS) Forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.known[name]; a != nil && a.finished() && a.err == nil {
		delete(m.known, name)
	}
}

func (a *mdnsAnswer) finished() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

func (a *mdnsAnswer) over(now time.Time) bool { return a.finished() && !now.Before(a.until) }

// resolve fills in a. It serves all who wait, so that no caller's ctx ends it.
func (m *MDNS) resolve(name string, a *mdnsAnswer) {
	ctx, cancel := context.WithTimeout(context.Background(), mdnsTimeout)
	defer cancel()
	type answer struct {
		network string
		addr    netip.Addr
		err     error
	}
	answers := make(chan answer, 2)
	var queries sync.WaitGroup
	for _, network := range []string{"udp4", "udp6"} {
		queries.Go(func() {
			addr, err := m.query(ctx, name, network)
			answers <- answer{network, addr, err}
		})
	}
	var errs []error
	var patience <-chan time.Time
collect:
	for range 2 {
		select {
		case r := <-answers:
			switch {
			case r.err != nil:
				errs = append(errs, r.err)
			case r.network == "udp4" || !a.addr.IsValid():
				a.addr = r.addr
			}
			if r.err == nil && r.network == "udp4" {
				break collect
			}
			if r.err == nil {
				patience = time.After(mdnsPrefer4)
			}
		case <-patience:
			break collect
		}
	}
	cancel()
	queries.Wait()
	a.until = time.Now().Add(mdnsRemember)
	if !a.addr.IsValid() {
		a.err = fmt.Errorf("look up %s by multicast DNS: %w", name, errors.Join(errs...))
		a.until = time.Now().Add(mdnsNegative)
	}
	close(a.done)
}

// queryMDNS asks on every interface of one family: "udp4" for an A record,
// "udp6" for an AAAA record.
func queryMDNS(ctx context.Context, name, network string) (netip.Addr, error) {
	group := mdns.DefaultAddressIPv4
	if network == "udp6" {
		group = mdns.DefaultAddressIPv6
	}
	addr, err := net.ResolveUDPAddr(network, group)
	if err != nil {
		return netip.Addr{}, err
	}
	socket, err := net.ListenUDP(network, addr) // a multicast address: shared with others that listen there
	if err != nil {
		return netip.Addr{}, err
	}
	var p4 *ipv4.PacketConn
	var p6 *ipv6.PacketConn
	if network == "udp4" {
		p4 = ipv4.NewPacketConn(socket)
	} else {
		p6 = ipv6.NewPacketConn(socket)
	}
	// The library logs to stderr by itself.
	quiet := &logging.DefaultLoggerFactory{Writer: io.Discard, DefaultLogLevel: logging.LogLevelDisabled}
	conn, err := mdns.NewServer(p4, p6, mdns.WithLoggerFactory(quiet), mdns.WithCacheRefresh(false))
	if err != nil {
		socket.Close()
		return netip.Addr{}, fmt.Errorf("%s: %w", network, err)
	}
	defer conn.Close()
	for {
		_, found, err := conn.QueryAddr(ctx, name)
		if err != nil {
			if ctx.Err() != nil {
				err = fmt.Errorf("nobody answered within %s", mdnsTimeout)
			}
			return netip.Addr{}, fmt.Errorf("%s: %w", network, err)
		}
		if !found.Is6() || !found.IsLinkLocalUnicast() || found.Zone() != "" {
			return found, nil
		}
		// A link-local address without its interface cannot be dialled: ask on.
		select {
		case <-time.After(mdnsPause):
		case <-ctx.Done():
		}
	}
}
