package edge

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// CheckDecoy refuses a decoy address that is one of our own listeners, by
// whatever name: every stranger would be handed to ourselves as a new
// stranger, without end. It looks the host up; own are the addresses of the
// public listeners.
func CheckDecoy(addr string, own []net.Addr) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("decoy %q: want host:port: %w", addr, err)
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil || port == 0 {
		return fmt.Errorf("decoy %q: %q is not a port", addr, service)
	}
	// An empty host dials this machine, as 0.0.0.0 and [::] do.
	targets := []netip.Addr{netip.IPv4Unspecified()}
	if host != "" {
		if targets, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
			return fmt.Errorf("decoy %q: look up the host: %w", addr, err)
		}
	}
	local, err := localAddrs()
	if err != nil {
		return fmt.Errorf("decoy %q: list this machine's addresses: %w", addr, err)
	}
	for _, o := range own {
		listener, err := netip.ParseAddrPort(o.String())
		if err != nil || int(listener.Port()) != port {
			continue
		}
		for _, target := range targets {
			if reaches(target, listener.Addr(), local) {
				return fmt.Errorf("decoy %q is our own listener %s: visitors would go round in circles; name another server", addr, o)
			}
		}
	}
	return nil
}

// reaches says whether a dial to target arrives at a listener bound to bound.
func reaches(target, bound netip.Addr, local []netip.Addr) bool {
	target, bound = target.Unmap().WithZone(""), bound.Unmap().WithZone("")
	switch {
	case target.IsUnspecified(): // the kernel dials the loopback address
		return bound.IsUnspecified() || bound.IsLoopback()
	case bound.IsUnspecified(): // either family: Go listens on both
		return target.IsLoopback() || slices.Contains(local, target)
	}
	return target == bound
}

// localAddrs lists the addresses of this machine's interfaces.
func localAddrs() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var ips []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			ips = append(ips, p.Addr().Unmap().WithZone(""))
		}
	}
	return ips, nil
}
