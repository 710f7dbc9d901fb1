package uplink

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// dialed is the outcome of a race.
type dialed struct {
	session   tunnel.Session
	transport tunnel.Transport
	addr      netip.AddrPort
}

// race dials with all transports, each with a head start over the next, and
// with each over all addresses in the same way (RFC 8305). The first session
// wins; the others are closed. Losers end in the background, counted by wg.
func (u *Uplink) race(ctx context.Context, wg *sync.WaitGroup, transports []tunnel.Transport) (dialed, error) {
	addrs, err := u.lookup(ctx)
	if err != nil {
		return dialed{}, err
	}
	r := racer{stagger: u.cfg.Stagger, wg: wg}
	return r.first(ctx, len(transports), func(ctx context.Context, i int) (dialed, error) {
		t := transports[i]
		d, err := r.first(ctx, len(addrs), func(ctx context.Context, j int) (dialed, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			addr := netip.AddrPortFrom(addrs[j], u.cfg.Port)
			s, err := t.Dial(ctx, addr)
			if err != nil {
				return dialed{}, fmt.Errorf("%s: %w", addr, err)
			}
			return dialed{session: s, transport: t, addr: addr}, nil
		})
		if err != nil {
			return dialed{}, fmt.Errorf("%s %w", t.Name(), err)
		}
		return d, nil
	})
}

// A racer runs attempts of which the first success counts.
type racer struct {
	stagger time.Duration
	wg      *sync.WaitGroup
}

type lap struct {
	d   dialed
	err error
}

// first starts try(0), and the next one after stagger or when all that run
// have failed.
func (r racer) first(ctx context.Context, n int, try func(ctx context.Context, i int) (dialed, error)) (dialed, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	laps := make(chan lap, n) // buffered: a loser never waits for us
	started, running := 0, 0
	start := func() {
		i := started
		started, running = started+1, running+1
		r.wg.Go(func() {
			d, err := try(ctx, i)
			laps <- lap{d, err}
		})
	}
	timer := time.NewTimer(r.stagger)
	defer timer.Stop()
	start()
	var errs []error
	for {
		select {
		case l := <-laps:
			running--
			if l.err == nil {
				r.discard(laps, running)
				return l.d, nil
			}
			errs = append(errs, l.err)
			if running == 0 && started == n {
				return dialed{}, raceError(errs)
			}
			if running == 0 {
				start()
				timer.Reset(r.stagger)
			}
		case <-timer.C:
			if started < n {
				start()
				timer.Reset(r.stagger)
			}
		case <-ctx.Done():
			r.discard(laps, running)
			return dialed{}, context.Cause(ctx)
		}
	}
}

// discard closes the sessions of the attempts that still run, as they come.
func (r racer) discard(laps <-chan lap, running int) {
	r.wg.Go(func() {
		for range running {
			if l := <-laps; l.err == nil {
				l.d.session.Close(protocol.CodeOK, "another transport was faster")
			}
		}
	})
}

// raceError is one line: logs and status show it.
func raceError(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	return joined(errs)
}

type joined []error

func (j joined) Error() string {
	s := make([]string, len(j))
	for i, err := range j {
		s[i] = err.Error()
	}
	return strings.Join(s, "; ")
}

func (j joined) Unwrap() []error { return j }

// lookup returns the relay's addresses in the order in which they are tried.
// A resolver that fails does not matter while an older answer is known: the
// relay proves itself by its certificate.
func (u *Uplink) lookup(ctx context.Context) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(strings.Trim(u.cfg.Host, "[]")); err == nil {
		return []netip.Addr{ip}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := u.cfg.Resolve(ctx, u.cfg.Host)
	if err == nil && len(addrs) == 0 {
		err = errors.New("no addresses")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if err == nil {
		u.known = interleave(addrs)
	} else if len(u.known) == 0 {
		return nil, fmt.Errorf("look up %s: %w", u.cfg.Host, err)
	} else {
		u.log.Debug("the relay's name cannot be looked up, using its last addresses", "host", u.cfg.Host, "err", err)
	}
	return u.known, nil
}

// interleave alternates between IPv6 and IPv4, beginning with the family of
// the first address, as the system's resolver sorts by reachability.
func interleave(addrs []netip.Addr) []netip.Addr {
	var a, b []netip.Addr
	for _, ip := range addrs {
		ip = ip.Unmap()
		switch {
		case slices.Contains(a, ip) || slices.Contains(b, ip):
		case len(a) == 0 || a[0].Is4() == ip.Is4():
			a = append(a, ip)
		default:
			b = append(b, ip)
		}
	}
	var out []netip.Addr
	for i := range max(len(a), len(b)) {
		if i < len(a) {
			out = append(out, a[i])
		}
		if i < len(b) {
			out = append(out, b[i])
		}
	}
	return out
}
