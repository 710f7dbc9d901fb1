package authdns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

// A Config says what the zone holds and whom it is told. Domain and Addrs are
// needed; funcs are called for each question, from many goroutines, and must not
// wait for anything.
type Config struct {
	// Domain is the zone, canonical (names.Canonical).
	Domain string
	// NS are the names of this server as they are set at the registrar. Those
	// inside the zone get the relay's addresses. None: ns1.DOMAIN.
	NS []string
	// Addrs returns the relay's public addresses.
	Addrs func() []netip.Addr
	// Sources are asked in order; the first that knows a name answers for all
	// types of it.
	Sources []Source
	// Static are records of the configuration.
	Static []Record
	// Hosts says whether the relay serves a canonical name, exactly or by a
	// wildcard. nil: none.
	Hosts func(name string) bool
	// Below says whether the relay serves a name below a canonical name that it
	// does not serve itself: "b.example.org" with the host a.b.example.org. Such a
	// name exists, empty (RFC 8020): resolvers that were told otherwise would not
	// ask for what is below it. nil: none.
	Below func(name string) bool
	// HTTPS returns the HTTPS record of a name that has the relay's addresses, and
	// false for those that must not have one. nil: none.
	HTTPS func(name string) (SVCB, bool)
	// CAA returns the CAA records of a name that no Source knows: the zone's own,
	// which hold for all below it that has none, and those of the relay's hosts.
	// nil: none.
	CAA func(name string) []CAA
	// Mailbox is the address in the SOA record. Empty: hostmaster@DOMAIN.
	Mailbox string
	// Limits bound what askers may use up.
	Limits Limits
	// Now is the clock. nil: time.Now.
	Now func() time.Time
	// Logger is told of trouble, never of single questions. nil: silence.
	Logger *slog.Logger
}

// A Source knows names of the zone. Its Lookup is called for each question, from
// many goroutines, and must not wait for anything.
//
// A Source whose names come and go also has Version() uint64, which rises with
// every change, so that the zone's serial does; and Below(name string) bool,
// which says whether it knows a name below this one.
type Source interface {
	// Lookup returns what there is at a canonical name, asked for by from. False:
	// the Source does not know the name. True with an empty Answer: the name
	// exists and has nothing.
	Lookup(name string, from netip.Addr) (Answer, bool)
}

// An Answer is what a Source knows of a name.
type Answer struct {
	Relay bool         // the name has the relay's addresses, and its HTTPS record if it may have one
	Addrs []netip.Addr // addresses of its own
	TXT   []string     // one record each
	CAA   []CAA
	TTL   time.Duration // 0: 5 min
}

// Limits bound what askers may use up. A network is an IPv4 /24 or an IPv6 /56.
type Limits struct {
	Rate         int           // questions a second of a network, UDP and TCP each; 0: 50
	Burst        int           // this many more at once; 0: 200
	TCPConns     int           // TCP connections; the one idle longest makes room; 0: 200
	TCPPerSource int           // TCP connections of one network; 0: 20
	Idle         time.Duration // a TCP connection without a whole question for so long ends; 0: 10 s
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Rate: cmp.Or(l.Rate, 50), Burst: cmp.Or(l.Burst, 200), TCPConns: cmp.Or(l.TCPConns, 200),
		TCPPerSource: cmp.Or(l.TCPPerSource, 20), Idle: cmp.Or(l.Idle, 10*time.Second),
	}
}

// A Server answers for one zone.
type Server struct {
	config Config
	static *static
	udp    *limiter
	tcp    *limiter
	conns  *crowd
	serial serial
	counts counts
	logger *slog.Logger
}

// New checks the configuration; all that is wrong with the static records is in
// the error, a line each.
func New(config Config) (*Server, error) {
	if d, err := names.Canonical(config.Domain); err != nil || d != config.Domain {
		return nil, fmt.Errorf("the DNS server's zone %q is not a canonical host name", config.Domain)
	}
	if config.Addrs == nil {
		return nil, errors.New("the DNS server has no Addrs: it would not know the relay's addresses")
	}
	if len(config.NS) == 0 {
		config.NS = []string{"ns1." + config.Domain}
	}
	config.NS = slices.Clone(config.NS)
	for i, ns := range config.NS {
		name, err := names.Canonical(ns)
		if err != nil {
			return nil, fmt.Errorf("name of the DNS server: %w", err)
		}
		if name == config.Domain || slices.Contains(config.NS[:i], name) {
			return nil, fmt.Errorf("%s cannot be a name of the DNS server twice, nor the zone itself: take ns1.%s", name, config.Domain)
		}
		config.NS[i] = name
	}
	if config.Mailbox == "" {
		config.Mailbox = "hostmaster@" + config.Domain
	}
	if _, err := mailboxName(config.Mailbox); err != nil {
		return nil, err
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	config.Limits = config.Limits.withDefaults()
	records, err := newStatic(config.Domain, config.NS, config.Static)
	if err != nil {
		return nil, err
	}
	start := config.Now()
	return &Server{
		config: config, static: records, logger: config.Logger,
		udp:    newLimiter(config.Limits, start, 1<<16),
		tcp:    newLimiter(config.Limits, start, 1<<12),
		conns:  newCrowd(config.Limits),
		serial: serial{number: uint32(start.Unix())},
	}, nil
}

// Serve answers on both sockets until ctx ends, then closes them and everything
// that it has started. One of them may be nil, for tests: resolvers and CAs need
// both. It is called once.
func (s *Server) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	if udp == nil && tcp == nil {
		return errors.New("the DNS server was given no socket")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		once  sync.Once
		cause error
		loops sync.WaitGroup
	)
	fail := func(err error) {
		once.Do(func() { cause = err })
		cancel()
	}
	s.logger.Info("dns serves", "zone", s.config.Domain, "ns", strings.Join(s.config.NS, " "))
	if udp != nil {
		s.serveUDP(ctx, udp, &loops, fail)
	}
	if tcp != nil {
		loops.Go(func() { s.acceptTCP(ctx, tcp, &loops, fail) })
	}
	<-ctx.Done()
	if udp != nil {
		_ = udp.Close()
	}
	if tcp != nil {
		_ = tcp.Close()
	}
	s.conns.end()
	loops.Wait()
	return cause
}

// Changed tells that something else than a Source has changed what the zone
// says: hosts, addresses. The serial rises.
func (s *Server) Changed() { s.serial.bump(s.config.Now()) }

// networkOf is what counts as one asker: whoever has an address has its
// neighbours, or can write them on his packets.
func networkOf(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 24
	if addr.Is6() {
		bits = 56
	}
	network, _ := addr.Prefix(bits)
	return network
}
