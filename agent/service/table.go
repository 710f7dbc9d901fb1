package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A Table holds the services that the agent offers now. Its methods are safe
// for concurrent use.
type Table struct {
	// Dial reaches tcp, udp and unix addresses at home; set it before the first
	// Set. What it returns must be a tunnel.Conn, unless the network is "udp".
	// nil: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// EndToEnd takes the streams of services whose TLS ends at home
	// (protocol.TLSAgent), after the relay was told that all is well; set it before
	// the first ServeStream. The next bytes of c are the visitor's ClientHello. It
	// owns c and returns after c has ended; when ctx ends c is reset. nil: such
	// streams are refused.
	EndToEnd func(ctx context.Context, c tunnel.Conn, o protocol.Open)

	// MostUnproven bounds the streams that are open at a time of visitors whom nobody
	// has asked for anything: UDP flows and TCP connections of public ports, and
	// what is passed through to backends with TLS of their own, each. What these
	// fill must not be what all others need. Set it before the first ServeStream. 0:
	// no bound.
	MostUnproven int

	flows, conns, passed atomic.Int64

	log      *slog.Logger
	resolver Resolver

	mu      sync.Mutex               // one Set at a time; guards changed
	changed chan struct{}            // closed by the next Set that changes the offer
	current atomic.Pointer[snapshot] // read for every stream
}

// snapshot is one state of the table; it is never changed.
type snapshot struct {
	backends map[string]*backend
	services []protocol.Service // sorted by name
}

// NewTable returns an empty table. A nil logger is silent; a nil resolver is
// multicast DNS (NewMDNS).
func NewTable(logger *slog.Logger, resolver Resolver) *Table {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if resolver == nil {
		resolver = NewMDNS()
	}
	t := &Table{log: logger, resolver: resolver, changed: make(chan struct{})}
	t.current.Store(&snapshot{})
	return t
}

// Services returns the offer, sorted by name, as Register carries it.
func (t *Table) Services() []protocol.Service { return slices.Clone(t.current.Load().services) }

// Changed returns a channel that is closed when the offer changes. To miss no
// change, take the channel first and Services after that.
func (t *Table) Changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

// Set replaces the whole table, or changes nothing and returns an error that
// lists everything that is wrong. Connections of services that are no longer
// in the table are ended, and those whose visitors another door let in, as their
// TLS ended elsewhere; those of others go on, also when the target changed.
func (t *Table) Set(entries []Entry) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := &dialer{local: t.resolver, connect: t.Dial}
	if d.connect == nil {
		d.connect = new(net.Dialer).DialContext
	}
	next, err := compile(entries, d)
	if err != nil {
		return err
	}
	old := t.current.Load()
	for name, b := range next.backends {
		if was, ok := old.backends[name]; ok && was.service.TLS == b.service.TLS {
			b.gone, b.remove = was.gone, was.remove
		} else {
			b.gone, b.remove = context.WithCancelCause(context.Background())
		}
		if b.entry.InsecureSkipVerify {
			t.log.Warn("the backend's certificate is not verified", "service", name, "target", b.target.String(),
				"fix", "put the certificate into a file and name that as ca (--ca) instead of insecure_skip_verify")
		}
	}
	t.current.Store(next)
	for name, b := range old.backends {
		if now := next.backends[name]; now == nil || now.gone != b.gone {
			b.remove(&tunnel.CloseError{Code: protocol.CodeUnknownService, Reason: "the service was removed"})
		}
	}
	if !slices.Equal(old.services, next.services) {
		close(t.changed)
		t.changed = make(chan struct{})
	}
	return nil
}

// compile makes a snapshot, or says everything that is wrong.
func compile(entries []Entry, d *dialer) (*snapshot, error) {
	s := &snapshot{backends: make(map[string]*backend)}
	var errs []error
	names := make(map[string]Entry)
	places := make(map[string]Entry)
	for _, e := range entries {
		b, err := prepare(e, d)
		if err != nil {
			errs = append(errs, err)
		}
		if first, twice := names[e.Name]; twice && e.Name != "" {
			errs = append(errs, fmt.Errorf("service %q stands in the table twice: %s and %s; rename or remove one", e.Name, first.whence(), e.whence()))
			continue
		}
		names[e.Name] = e
		if err != nil {
			continue
		}
		if b.service.Host != "" {
			place := b.service.Host + b.service.Path
			if first, twice := places[place]; twice {
				errs = append(errs, fmt.Errorf("services %q and %q both want %s: give one another host or path", first.Name, e.Name, place))
			}
			places[place] = e
		}
		if b.service.Port != 0 {
			place := fmt.Sprintf("TCP port %d", b.service.Port)
			if b.service.Proto == protocol.ProtoUDP {
				place = fmt.Sprintf("UDP port %d", b.service.Port)
			}
			if first, twice := places[place]; twice {
				errs = append(errs, fmt.Errorf("services %q and %q both want %s: give one another port", first.Name, e.Name, place))
			}
			places[place] = e
		}
		s.backends[e.Name] = b
		s.services = append(s.services, b.service)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	slices.SortFunc(s.services, func(a, b protocol.Service) int { return cmp.Compare(a.Name, b.Name) })
	// One message takes the whole list to the relay. Nothing could be offered
	// if it did not fit.
	if err := protocol.WriteMessage(io.Discard, protocol.Register{Seq: math.MaxUint64, Services: s.services}); err != nil {
		return nil, fmt.Errorf("the list of %d services is too long to tell the relay: %w: remove some, or shorten hosts and paths", len(s.services), err)
	}
	return s, nil
}

// whence tells a person which of two equal names is meant.
func (e Entry) whence() string {
	if e.Origin == "" {
		return e.Target
	}
	return fmt.Sprintf("%s (%s)", e.Target, e.Origin)
}
