package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/sallyport/sallyport/test/world"
)

func TestUDPBlockedFromStart(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r := w.Relay(domain)
		h := r.NewHome("kitchen", world.Web("web"))
		h.BlockUDP(true)
		h.Start()
		took := h.AwaitOnline(5 * time.Second)
		if got := h.Transport(); got != "tcp" {
			t.Fatalf("connected by %q", got)
		}
		t.Logf("joined and published over TCP after %v", took)
		visit(w, r.Phone("anna"), homeURL+"/")
	})
}

// The transport that worked last has the head start: the first dial after a
// restart does not wait for QUIC to fail again.
func TestTransportIsRemembered(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r := w.Relay(domain)
		h := r.NewHome("kitchen", world.Web("web"))
		h.BlockUDP(true)
		h.Start()
		h.AwaitOnline(5 * time.Second)
		h.Stop()
		h.Start()
		remembered := h.AwaitOnline(5 * time.Second)
		if remembered >= 250*time.Millisecond {
			t.Errorf("back after %v: QUIC had the head start", remembered)
		}
		h.Stop()

		// QUIC stays the better one, and what works again is used.
		h.BlockUDP(false)
		h.Start()
		h.AwaitOnline(5 * time.Second)
		up := h.AwaitTransport(time.Minute, "quic")
		t.Logf("back after %v; by QUIC again %v later", remembered, up)
		h.Stop()
		h.Start()
		if h.AwaitOnline(5 * time.Second); h.Transport() != "quic" {
			t.Errorf("connected by %q after QUIC worked again", h.Transport())
		}
	})
}

func TestUDPDroppedMidway(t *testing.T) {
	world.Run(t, func(w *world.World) {
		_, h, p := standard(w)
		w.Sleep(2 * time.Minute)
		open := openAll(w, p)
		w.Sleep(30 * time.Second)
		h.BlockUDP(true)
		dropped := time.Now()
		visited := w.Until(15*time.Second, "a new visit succeeds", func() bool { return p.Visits(homeURL + "/") })
		t.Logf("a visit succeeds %v after UDP was dropped", visited)
		if visited > 8*time.Second {
			t.Errorf("a visit succeeded after %v only", visited)
		}
		if got := h.Transport(); got != "tcp" {
			t.Errorf("connected by %q", got)
		}
		allCut(t, open, dropped, 15*time.Second)

		// Make before break: what was opened over TCP goes on when QUIC is back.
		open = openAll(w, p)
		w.Sleep(time.Minute)
		h.BlockUDP(false)
		back := h.AwaitTransport(11*time.Minute, "quic")
		t.Logf("by QUIC again %v after UDP passes again", back)
		w.Always(5*time.Minute, "connected by QUIC", func() bool { return h.Transport() == "quic" })
		allLive(t, open)
		visit(w, p, homeURL+"/")
	})
}

// An idle home has fewer pings to notice by.
func TestUDPDroppedWhileIdle(t *testing.T) {
	world.Run(t, func(w *world.World) {
		_, h, p := standard(w)
		w.Sleep(time.Hour)
		h.BlockUDP(true)
		visited := w.Until(15*time.Second, "a new visit succeeds", func() bool { return p.Visits(homeURL + "/") })
		t.Logf("a visit succeeds %v after UDP was dropped", visited)
		if visited > 12*time.Second {
			t.Errorf("a visit succeeded after %v only", visited)
		}
	})
}

// With visitors: both ends notice, and the visitors are told.
func TestFrozenPathWithVisitors(t *testing.T) {
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			world.Run(t, func(w *world.World) {
				r := w.Relay(domain)
				h := r.NewHome("kitchen", world.Web("web"), world.Echo("echo"))
				h.Transports = []string{transport}
				h.Start()
				h.AwaitOnline(5 * time.Second)
				p := r.Phone("anna")
				open := openAll(w, p)
				w.Sleep(5 * time.Minute)
				freeze(w, r, h)
				allCut(t, open, time.Now(), time.Second) // both have noticed: nothing is left open
				h.Freeze(false)
				t.Logf("back %v after the thaw", w.Until(35*time.Second, "a visit succeeds", func() bool { return p.Visits(homeURL + "/") }))
			})
		})
	}
}

// Without visitors there are fewer pings. The homes came one after the other,
// so that the freeze hits each at another moment of its rhythm.
func TestFrozenPathWhileIdle(t *testing.T) {
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			world.Run(t, func(w *world.World) {
				r := w.Relay(domain)
				var homes []*world.Home
				for i := range 7 {
					h := r.NewHome(fmt.Sprintf("home-%d", i), world.Web(fmt.Sprintf("web-%d", i)))
					h.Transports = []string{transport}
					h.Start()
					h.AwaitOnline(5 * time.Second)
					homes = append(homes, h)
					w.Sleep(650 * time.Millisecond)
				}
				w.Sleep(11 * time.Minute)
				freeze(w, r, homes...)
			})
		})
	}
}

// freeze freezes the way to some homes and checks that each home and the relay
// notice in time: the home tries to connect anew, the relay counts it as away.
func freeze(w *world.World, r *world.Relay, homes ...*world.Home) {
	w.T.Helper()
	const limit = 15 * time.Second
	dials := map[*world.Home]int{}
	for _, h := range homes {
		h.Freeze(true)
		dials[h] = h.Dials()
	}
	frozen := time.Now()
	var atHome, atRelay time.Duration // the slowest
	w.Until(limit, "all homes have noticed", func() bool {
		for _, h := range homes {
			if h.Dials() == dials[h] {
				return false
			}
		}
		atHome = time.Since(frozen)
		return true
	})
	w.Until(limit-atHome, "the relay has noticed", func() bool {
		for _, h := range homes {
			if r.Online(h.Name) {
				return false
			}
		}
		atRelay = time.Since(frozen)
		return true
	})
	w.T.Logf("noticed at home within %v, at the relay within %v", atHome, atRelay)
}

// A router that forgot its table: what is open hangs, new connections work.
func TestRouterForgetsOpenConnections(t *testing.T) {
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			world.Run(t, func(w *world.World) {
				r := w.Relay(domain)
				h := r.NewHome("kitchen", world.Web("web"), world.Echo("echo"))
				h.Transports = []string{transport}
				h.Start()
				h.AwaitOnline(5 * time.Second)
				p := r.Phone("anna")
				open := openAll(w, p)
				w.Sleep(5 * time.Minute)
				h.FreezeOpen()
				forgotten := time.Now()
				visited := w.Until(15*time.Second, "a new visit succeeds", func() bool { return p.Visits(homeURL + "/") })
				t.Logf("a visit succeeds after %v", visited)
				if visited > 8*time.Second {
					t.Errorf("a visit succeeded after %v only", visited)
				}
				allCut(t, open, forgotten, 20*time.Second)
			})
		})
	}
}

// Resets from the way (a middlebox, a provider's nightly disconnect).
func TestConnectionsAreCut(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r := w.Relay(domain)
		h := r.NewHome("kitchen", world.Web("web"), world.Echo("echo"))
		h.Transports = []string{"tcp"}
		h.Start()
		h.AwaitOnline(5 * time.Second)
		p := r.Phone("anna")
		open := openAll(w, p)
		w.Sleep(2 * time.Minute)
		cut := time.Now()
		h.Cut()
		t.Logf("a visit succeeds after %v", w.Until(3*time.Second, "a new visit succeeds", func() bool { return p.Visits(homeURL + "/") }))
		allCut(t, open, cut, time.Second)
	})
}
