package lan

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// errChanged ends a responder whose successor announces the same name: it says
// no farewell.
var errChanged = errors.New("the addresses have changed")

// An announcer runs one responder after the other.
type announcer struct {
	end  context.CancelCauseFunc // nil: none runs
	done chan struct{}
}

// start replaces the responder by one for what is in v.
func (a *announcer) start(ctx context.Context, l *LAN, v *view) {
	a.replace(errChanged)
	if len(v.addrs) == 0 {
		return
	}
	ctx, a.end = context.WithCancelCause(ctx)
	a.done = make(chan struct{})
	go a.run(ctx, l, v, a.done)
}

func (a *announcer) run(ctx context.Context, l *LAN, v *view, done chan<- struct{}) {
	defer close(done)
	l.heard.Store(true)
	defer l.heard.Store(false)
	if err := l.announce(ctx, v); err != nil {
		l.log.Warn("the home network is not told of us by multicast DNS", "err", err)
	}
}

func (a *announcer) stop() { a.replace(context.Canceled) }

func (a *announcer) replace(why error) {
	if a.end != nil {
		a.end(why)
		<-a.done
		a.end = nil
	}
}

// respond announces what is in v, on every link that has one of its addresses.
func (l *LAN) respond(ctx context.Context, v *view) error {
	var stations []*station
	var ifaces []net.Interface
	for _, k := range homeLinks() {
		var addrs []netip.Addr
		for _, p := range k.prefixes {
			if a := p.Addr().Unmap().WithZone(""); slices.Contains(v.addrs, a) {
				addrs = append(addrs, a)
			}
		}
		if len(addrs) > 0 {
			stations = append(stations, newStation(k, newZone(l.cfg.Name, v.port, addrs)))
			ifaces = append(ifaces, k.iface)
		}
	}
	if len(stations) == 0 {
		return fmt.Errorf("none of %v belongs to an interface of this machine", v.addrs)
	}
	sockets, err := openSockets(ifaces, mdnsPort)
	if err != nil {
		return err
	}
	r := &responder{stations: stations, sockets: sockets}
	r.run(ctx)
	return nil
}
