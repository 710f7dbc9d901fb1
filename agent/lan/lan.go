package lan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// poll is how often addresses are looked at, and a port that could not be
// opened is tried again.
const poll = 30 * time.Second

// A LAN is the door on the home network. Its methods may be called at any time
// by anybody.
type LAN struct {
	cfg    Config
	log    *slog.Logger
	on     netip.Addr // from Listen; the zero Addr is all
	guests *guests
	module *module
	view   atomic.Pointer[view]
	heard  atomic.Bool // the responder runs
	// announce runs the multicast DNS responder for what is in view, until ctx
	// ends; tests replace it.
	announce func(ctx context.Context, v *view) error
}

// A view is where we are reached. It never changes.
type view struct {
	port    uint16 // 0: the port could not be opened
	addrs   []netip.Addr
	problem string
}

// New checks the configuration. It starts nothing.
func New(c Config) (*LAN, error) {
	c.fill()
	if err := c.check(); err != nil {
		return nil, err
	}
	on, err := listenAddr(c.Listen)
	if err != nil {
		return nil, err
	}
	l := &LAN{cfg: c, log: c.Logger, on: on, guests: newGuests(c.MaxConns), module: newModule()}
	l.announce = l.respond
	l.view.Store(&view{})
	return l, nil
}

// Run serves until ctx ends, and returns nil after everything that it started
// has ended. A port that cannot be opened is tried again: it may be another
// process's that is about to end, or the address is not there yet.
func (l *LAN) Run(ctx context.Context) error {
	if err := l.run(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func (l *LAN) run(ctx context.Context) error {
	defer l.view.Store(&view{})
	listener, err := l.listen(ctx)
	if err != nil {
		return err
	}
	port, err := portOf(listener)
	if err != nil {
		listener.Close()
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	defer listener.Close()
	wg.Go(func() { l.watch(ctx, port) })
	l.accept(ctx, listener)
	return errors.New("the door on the home network: its listener was closed")
}

// listen opens the port, or waits until it can.
func (l *LAN) listen(ctx context.Context) (net.Listener, error) {
	for {
		listener, err := l.cfg.ListenTCP(l.cfg.Listen)
		if err == nil {
			return listener, nil
		}
		if before := l.view.Load().problem; before == "" {
			l.cfg.Changed(nil)
		}
		problem := fmt.Sprintf("cannot listen on %s: %v", l.cfg.Listen, err)
		if l.view.Swap(&view{problem: problem}).problem != problem {
			l.log.Warn("the home network is not served; this is tried again", "listen", l.cfg.Listen, "err", err, "every", poll)
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func portOf(listener net.Listener) (uint16, error) {
	ap, err := netip.ParseAddrPort(listener.Addr().String())
	if err != nil || ap.Port() == 0 {
		return 0, errors.New("the door on the home network: its listener has no port")
	}
	return ap.Port(), nil
}

// watch looks at our addresses, tells of changes, and keeps the announcement.
func (l *LAN) watch(ctx context.Context, port uint16) {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	var announcer announcer
	defer announcer.stop()
	for first := true; ; first = false {
		addrs := reachable(l.cfg.Addrs(), l.on)
		if first || !slices.Equal(addrs, l.view.Load().addrs) {
			v := &view{port: port, addrs: addrs}
			l.view.Store(v)
			l.tell(v)
			if l.cfg.Announce {
				announcer.start(ctx, l, v)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (l *LAN) tell(v *view) {
	if len(v.addrs) == 0 {
		l.log.Warn("this machine has no address on a home network", "port", v.port)
	} else {
		l.log.Info("serving the home network", "urls", l.urls(v))
	}
	l.cfg.Changed(slices.Clone(v.addrs))
}

// URL is the best of URLs, "" when there is none.
func (l *LAN) URL() string {
	if urls := l.URLs(); len(urls) > 0 {
		return urls[0]
	}
	return ""
}

// URLs are the addresses of the sites on the home network. Their names need the
// relay's DNS, and a certificate for *.HASH.DOMAIN.
func (l *LAN) URLs() []string { return l.urls(l.view.Load()) }

func (l *LAN) urls(v *view) []string {
	urls := make([]string, 0, len(v.addrs))
	for _, a := range v.addrs {
		urls = append(urls, "https://"+label(a)+"."+l.cfg.Own+portSuffix(v.port))
	}
	return urls
}

// portSuffix is what follows the host in the URL and the origin of a port.
func portSuffix(port uint16) string {
	if port == 443 {
		return ""
	}
	return ":" + strconv.Itoa(int(port))
}

// Status is how the door on the home network stands.
type Status struct {
	Listen    string   `json:"listen"`
	URLs      []string `json:"urls"`                // none: see Problem, or there is no address
	Announced string   `json:"announced,omitempty"` // instance of _sallyport._tcp
	Conns     int      `json:"conns"`               // open now
	Strangers uint64   `json:"strangers,omitempty"` // turned away: not of a home network
	Problem   string   `json:"problem,omitempty"`   // why it does not serve
}

// Status tells how it stands.
func (l *LAN) Status() Status {
	v := l.view.Load()
	s := Status{Listen: l.cfg.Listen, URLs: l.urls(v), Problem: v.problem}
	s.Conns, s.Strangers = l.guests.count()
	if l.heard.Load() {
		s.Announced = l.cfg.Name
	}
	return s
}
