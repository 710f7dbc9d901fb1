package lan

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	again         = time.Second // between two announcements; and no record is multicast more often
	maxUnicast    = 20          // answers to single askers on one link in a second
	firstDelay    = 20 * time.Millisecond
	moreDelay     = 100 * time.Millisecond // at random on top of it
	readErrDelay  = 100 * time.Millisecond
	maxMDNSPacket = 9000 // RFC 6762 §17
)

// A socket speaks multicast DNS in one address family on some links.
type socket interface {
	// read returns one packet, the index of the interface that it came in by (0:
	// not known) and its sender.
	read(buf []byte) (n, iface int, from netip.AddrPort, err error)
	// write sends to one address, or to everybody on the link.
	write(packet []byte, on *net.Interface, to netip.AddrPort) error
	// Close makes read return net.ErrClosed.
	Close() error
}

// A responder answers on all links until its context ends.
type responder struct {
	stations []*station
	sockets  []socket
}

// A station is one link with what we tell there.
type station struct {
	link link
	zone *zone

	mu      sync.Mutex           // guards what follows
	sent    map[string]time.Time // records that were multicast, by name and type
	second  time.Time            // since when unicast counts
	unicast int
}

func newStation(l link, z *zone) *station {
	return &station{link: l, zone: z, sent: map[string]time.Time{}}
}

// run answers until ctx ends. It owns the sockets.
func (r *responder) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, s := range r.sockets {
		wg.Go(func() { r.listen(ctx, s) })
	}
	r.announce(false)
	select {
	case <-time.After(again):
		r.announce(false)
		<-ctx.Done()
	case <-ctx.Done():
	}
	if context.Cause(ctx) != errChanged {
		r.announce(true)
	}
	for _, s := range r.sockets {
		s.Close()
	}
	wg.Wait()
}

// announce tells everybody. An error of one link is of no use to anybody: the
// link may just have gone.
func (r *responder) announce(farewell bool) {
	for _, st := range r.stations {
		packet, err := st.zone.all(farewell).Pack()
		if err != nil {
			continue // of names and addresses of our own making: does not happen
		}
		for _, s := range r.sockets {
			_ = s.write(packet, &st.link.iface, netip.AddrPort{})
		}
	}
}

// listen answers what one socket hears.
func (r *responder) listen(ctx context.Context, s socket) {
	buf := make([]byte, maxMDNSPacket)
	for {
		n, iface, from, err := s.read(buf)
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return
		}
		if err != nil { // such as a late "port unreachable" for an answer of ours
			pause(ctx, readErrDelay)
			continue
		}
		if st := r.station(iface, from.Addr()); st != nil {
			st.answer(ctx, s, buf[:n], from)
		}
	}
}

// station finds the link that a packet came in by. Only neighbours are answered
// (RFC 6762 §11): anybody else would use us against the address that he gives as
// his own.
func (r *responder) station(iface int, from netip.Addr) *station {
	for _, st := range r.stations {
		if (iface == 0 || iface == st.link.iface.Index) && st.neighbour(from) {
			return st
		}
	}
	return nil
}

func (st *station) neighbour(from netip.Addr) bool {
	from = from.Unmap()
	if from.Zone() != "" && from.Zone() != st.link.iface.Name {
		return false
	}
	return from.IsLinkLocalUnicast() || slices.ContainsFunc(st.link.prefixes, func(p netip.Prefix) bool {
		return p.Contains(from.WithZone(""))
	})
}

// answer answers one packet. Faulty ones are dropped: this is a network where
// everybody may shout.
func (st *station) answer(ctx context.Context, s socket, packet []byte, from netip.AddrPort) {
	resp, err := st.zone.respond(packet, from.Port())
	if err != nil || resp == nil {
		return
	}
	to := from
	if !resp.unicast {
		to = netip.AddrPort{}
	}
	if !st.may(resp, time.Now()) {
		return
	}
	if resp.shared && !resp.unicast {
		// Others have such records too, and all would speak at once.
		if !pause(ctx, firstDelay+rand.N(moreDelay)) {
			return
		}
	}
	if out, err := resp.msg.Pack(); err == nil {
		_ = s.write(out, &st.link.iface, to)
	}
}

// may takes records away that everybody has just heard, and reports whether
// something is left to be sent.
func (st *station) may(resp *response, now time.Time) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if resp.unicast {
		if now.Sub(st.second) >= time.Second {
			st.second, st.unicast = now, 0
		}
		st.unicast++
		return st.unicast <= maxUnicast
	}
	fresh := func(rr dns.RR) bool {
		last, ok := st.sent[key(rr)]
		return ok && now.Sub(last) < again
	}
	resp.msg.Answer = slices.DeleteFunc(resp.msg.Answer, fresh)
	if len(resp.msg.Answer) == 0 {
		return false
	}
	for _, rr := range resp.msg.Answer {
		st.sent[key(rr)] = now // at most as many as we have names and types
	}
	return true
}

func key(rr dns.RR) string {
	h := rr.Header()
	return h.Name + dns.TypeToString[h.Rrtype]
}

// pause waits and reports whether ctx still lasts.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
