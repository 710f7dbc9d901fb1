// Package world is an internet in memory for tests in virtual time: relays,
// homes and phones with addresses, names, TCP and UDP between them, and
// whatever goes wrong on such a way.
//
//	world.Run(t, func(w *world.World) {
//		r := w.Relay("example.org")
//		h := r.Home("kitchen", world.Web("ha"), world.Echo("echo"))
//		p := r.Phone("anna")
//		p.Get("https://ha.example.org/")
//		h.BlockUDP(true) // a firewall drops it from now on
//		h.Freeze(true)   // nothing passes, nobody is told
//		r.Kill()         // no goodbye
//		r.Start()        // on the same state
//		w.Until(15*time.Second, "a visit succeeds", func() bool { … })
//	})
//
// Everything runs inside a synctest bubble: an hour that nobody uses costs
// nothing, and a goroutine that is left behind fails the test. The clock of
// certificates (World.Now) is the bubble's, moved into the years for which
// certificates are issued; Jump moves it on while no time passes.
//
// Only the network is simulated. Relay and agent are the real ones, with their
// real files in temporary directories; no real socket is opened.
package world

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// Latency is the time that a packet takes from one machine to another.
const Latency = 10 * time.Millisecond

// bubbleStart is what time.Now tells when a bubble begins.
var bubbleStart = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// worldStart is what World.Now tells then.
var worldStart = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

// A World is one internet. Its methods are for the test's goroutine.
type World struct {
	T   *testing.T
	log *slog.Logger
	wg  sync.WaitGroup // of everything that moves bytes

	mu        sync.Mutex // guards all below, and what machines, processes and flows say it guards
	shift     time.Duration
	changed   chan struct{} // closed and replaced when a rule of the network changes
	closed    bool
	seq       uint64 // counts sockets and flows
	machines  int
	ports     int
	names     map[string]netip.Addr // domain → address, for all names below
	listeners map[netip.AddrPort]*listener
	sockets   map[netip.AddrPort]*socket
	flows     map[*flow]struct{}
	enders    []func() // how the inhabitants end, last first
}

// Run makes a world in a bubble of its own and ends it after f.
func Run(t *testing.T, f func(w *World)) {
	t.Helper()
	tunneltest.Bubble(t, func(t *testing.T) {
		w := &World{
			T: t, changed: make(chan struct{}), names: map[string]netip.Addr{},
			log:       slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{ReplaceAttr: shortTime})),
			listeners: map[netip.AddrPort]*listener{}, sockets: map[netip.AddrPort]*socket{}, flows: map[*flow]struct{}{},
		}
		defer w.close()
		f(w)
	})
}

// shortTime shows the time since the bubble began.
func shortTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.String("t", a.Value.Time().Sub(bubbleStart).String())
	}
	return a
}

// Now is the time of certificates.
func (w *World) Now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return worldStart.Add(time.Since(bubbleStart)).Add(w.shift)
}

// Jump moves the clocks of all machines forward while nothing happens, as if
// they had all been asleep. Living through months of pings would be slow.
func (w *World) Jump(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shift += d
}

// Go runs f, which must end when the connections that it uses do.
func (w *World) Go(f func()) { w.wg.Go(f) }

// Sleep passes virtual time.
func (w *World) Sleep(d time.Duration) { time.Sleep(d) }

// Until waits until cond holds and returns how long that took. It fails the
// test after limit.
func (w *World) Until(limit time.Duration, what string, cond func() bool) time.Duration {
	w.T.Helper()
	start := time.Now()
	for {
		if cond() {
			return time.Since(start)
		}
		if time.Since(start) >= limit {
			w.T.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond) // virtual
	}
}

// Always fails the test when cond stops to hold within d.
func (w *World) Always(d time.Duration, what string, cond func() bool) {
	w.T.Helper()
	for start := time.Now(); time.Since(start) < d; time.Sleep(100 * time.Millisecond) {
		if !cond() {
			w.T.Fatalf("after %v: no longer %s", time.Since(start), what)
		}
	}
}

// resolve is everybody's DNS: a domain and all names below lead to its relay.
func (w *World) resolve(_ context.Context, host string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name := host; name != ""; {
		if a, ok := w.names[name]; ok {
			return []netip.Addr{a}, nil
		}
		_, name, _ = strings.Cut(name, ".")
	}
	return nil, fmt.Errorf("no such host: %s", host)
}

// atEnd registers how an inhabitant ends. The last that came ends first.
func (w *World) atEnd(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.enders = append(w.enders, f)
}

// close ends everything; the bubble then checks that nothing is left.
func (w *World) close() {
	w.mu.Lock()
	enders := w.enders
	w.mu.Unlock()
	for i := len(enders) - 1; i >= 0; i-- {
		enders[i]()
	}
	w.mu.Lock()
	w.closed = true
	var flows []*flow
	for f := range w.flows {
		flows = append(flows, f)
	}
	var sockets []*socket
	for _, s := range w.sockets {
		sockets = append(sockets, s)
	}
	w.bump()
	w.mu.Unlock()
	for _, f := range flows {
		f.reset()
	}
	for _, s := range sockets {
		s.Close()
	}
	w.wg.Wait()
}

// bump wakes everything that waits for the network's rules. w.mu is held.
func (w *World) bump() {
	close(w.changed)
	w.changed = make(chan struct{})
}

var errGone = errors.New("the process was killed")
