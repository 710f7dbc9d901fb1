package e2e_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/sallyport/sallyport/test/world"
)

// A relay that was killed and started again knows its agents, claims and
// devices, and the agents are back at once, by either transport.
func TestRelayKilled(t *testing.T) {
	for _, transport := range []string{"quic", "tcp"} {
		for _, busy := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s busy %v", transport, busy), func(t *testing.T) {
				world.Run(t, func(w *world.World) {
					r := w.Relay(domain)
					h := r.NewHome("kitchen", world.Web("web"), world.Echo("echo"))
					h.Transports = []string{transport}
					h.Start()
					h.AwaitOnline(5 * time.Second)
					p := r.Phone("anna")
					before := r.Agent("kitchen")
					var open []*world.Watch
					if busy {
						open = openAll(w, p)
					} else {
						w.Sleep(15 * time.Minute) // pings are rare by then
					}
					w.Sleep(time.Minute)

					killed := time.Now()
					r.Kill()
					w.Sleep(200 * time.Millisecond)
					r.Start()
					started := time.Now()
					w.Until(10*time.Second, "a visit succeeds", func() bool { return p.Visits(homeURL + "/") })
					back := time.Since(started)
					t.Logf("a visit succeeds %v after the start", back)
					limit := 3 * time.Second
					if transport == "quic" && !busy {
						limit = 5*time.Second + 1500*time.Millisecond // until the next ping of an idle home meets a reset
					}
					if back > limit {
						t.Errorf("a visit succeeds %v after the start only", back)
					}
					allCut(t, open, killed, limit)
					after := r.Agent("kitchen")
					if after.ID != before.ID || !slices.Equal(after.Hosts, before.Hosts) {
						t.Errorf("before: %+v\nafter: %+v", before, after)
					}
				})
			})
		}
	}
}

// A long absence of the relay: the agent's attempts are spread, but it comes.
func TestRelayAwayForAnHour(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, h, p := standard(w)
		r.Kill()
		w.Sleep(time.Hour)
		dials := h.Dials()
		w.Sleep(10 * time.Minute)
		if n := h.Dials() - dials; n > 200 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		r.Start()
		back := w.Until(31*time.Second+10*time.Second, "a visit succeeds", func() bool { return p.Visits(homeURL + "/") })
		t.Logf("a visit succeeds %v after the start", back)
	})
}

// A planned restart: agents are told, visitors too, and all is back.
func TestRelayStops(t *testing.T) {
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			world.Run(t, func(w *world.World) {
				r := w.Relay(domain)
				h := r.NewHome("kitchen", world.Web("web"), world.Echo("echo"))
				h.Transports = []string{transport}
				h.Start()
				h.AwaitOnline(5 * time.Second)
				p := r.Phone("anna")
				w.Sleep(time.Hour)
				open := openAll(w, p)
				stopped := time.Now()
				r.Stop()
				t.Logf("stopped within %v", time.Since(stopped))
				allCut(t, open, stopped, 3*time.Second)
				r.Start()
				back := w.Until(5*time.Second, "a visit succeeds", func() bool { return p.Visits(homeURL + "/") })
				t.Logf("a visit succeeds %v after the start", back)
				if back > 3*time.Second {
					t.Errorf("a visit succeeds %v after the start only", back)
				}
			})
		})
	}
}

// GoAway says for how long it is worth to hurry: after a planned stop the
// attempts do not become rare within the first minute.
func TestPlannedStopIsNoReasonToBackOff(t *testing.T) {
	for transport, least := range map[string]int{
		"tcp":  40, // refused at once, and then at most a second's pause
		"quic": 9,  // five seconds without an answer, and at most a second's pause
	} {
		t.Run(transport, func(t *testing.T) {
			world.Run(t, func(w *world.World) {
				r := w.Relay(domain)
				h := r.NewHome("kitchen", world.Web("web"))
				h.Transports = []string{transport}
				h.Start()
				h.AwaitOnline(5 * time.Second)
				w.Sleep(2 * time.Minute)
				before := h.Dials()
				r.Stop()
				w.Sleep(55 * time.Second)
				n := h.Dials() - before
				t.Logf("%d attempts in 55 s", n)
				if n < least {
					t.Errorf("%d attempts in 55 s, want at least %d", n, least)
				}
				r.Start()
			})
		})
	}
}

// An agent that is killed and started again takes over its names, although the
// relay may still hold the session of the dead one.
func TestAgentKilled(t *testing.T) {
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			world.Run(t, func(w *world.World) {
				r := w.Relay(domain)
				h := r.NewHome("kitchen", world.Web("web"), world.Echo("echo"))
				h.Transports = []string{transport}
				h.Start()
				h.AwaitOnline(5 * time.Second)
				p := r.Phone("anna")
				w.Sleep(time.Hour)
				open := openAll(w, p)
				killed := time.Now()
				h.Kill()
				h.Start()
				h.AwaitOnline(time.Second)
				visit(w, p, homeURL+"/")
				took := time.Since(killed)
				t.Logf("a visit has succeeded %v after the start", took)
				if took >= time.Second {
					t.Errorf("took over after %v only", took)
				}
				allCut(t, open, killed, 15*time.Second)
				w.Sleep(time.Minute)
				a := r.Agent("kitchen")
				if !a.Conflict.IsZero() {
					t.Error("a restart counts as two live copies")
				}
				if len(a.Sessions) != 1 {
					t.Errorf("sessions: %+v", a.Sessions)
				}
			})
		})
	}
}

// An agent that is stopped lets its visitors go, and the relay knows at once.
func TestAgentStops(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, h, p := standard(w)
		w.Sleep(time.Minute)
		open := openAll(w, p)
		stopped := time.Now()
		h.Stop()
		t.Logf("stopped within %v", time.Since(stopped))
		w.Until(100*time.Millisecond, "the relay knows", func() bool { return !r.Online("kitchen") })
		allCut(t, open, stopped, 10*time.Second)
		h.Start()
		back := w.Until(5*time.Second, "a visit succeeds", func() bool { return p.Visits(homeURL + "/") })
		t.Logf("a visit succeeds %v after the start", back)
		if back >= time.Second {
			t.Errorf("a visit succeeds %v after the start only", back)
		}
	})
}

// After a restart of the relay all agents come at once.
func TestHerd(t *testing.T) {
	const n = 40
	world.Run(t, func(w *world.World) {
		r := w.Relay(domain)
		var homes []*world.Home
		for i := range n {
			h := r.NewHome(fmt.Sprintf("home-%d", i), world.Web(fmt.Sprintf("web-%d", i)))
			h.Start()
			if i == 0 {
				h.AwaitOnline(5 * time.Second) // its token is void once another one has joined
			}
			homes = append(homes, h)
		}
		for _, h := range homes {
			h.AwaitOnline(5 * time.Minute) // joins are rate-limited
		}
		w.Sleep(2 * time.Minute)
		r.Kill()
		w.Sleep(time.Second)
		r.Start()
		back := w.Until(10*time.Second, "all homes are back", func() bool {
			for _, a := range r.Status().Agents {
				if !a.Online {
					return false
				}
			}
			return true
		})
		t.Logf("%d homes are back %v after the start", n, back)
	})
}
