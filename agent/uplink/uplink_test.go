package uplink

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

func bubble(t *testing.T, f func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) { f(t, newRig(t)) })
}

func TestPrefersQUICAndDoesNotDialTCP(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.run()
		r.after(time.Second)
		r.want(StateConnected, "quic")
		r.wantOpen("quic")
		if d := r.dials("tcp"); len(d) != 0 {
			t.Errorf("TCP was dialled at %v although QUIC was there in 40 ms", d)
		}
		if !slices.Equal(r.remembered, []string{"quic"}) {
			t.Errorf("remembered %v", r.remembered)
		}
	})
}

func TestFallsBackWhenQUICIsSilent(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.quic.hole = true
		r.run()
		r.after(400 * time.Millisecond)
		r.want(StateConnected, "tcp")
		if d := r.dials("tcp"); len(d) != 1 || d[0] != 250*time.Millisecond {
			t.Errorf("TCP dialled at %v, want once after 250ms", d)
		}
	})
}

func TestFallsBackAtOnceWhenQUICIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.quic.delay, r.quic.err = 0, errors.New("connection refused")
		r.run()
		r.after(100 * time.Millisecond)
		r.want(StateConnected, "tcp")
	})
}

func TestLoserOfTheRaceIsClosed(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.quic.delay, r.quic.deaf = 320*time.Millisecond, true
		r.tcp.delay = 60 * time.Millisecond // done at 310 ms, 10 ms before QUIC
		r.run()
		r.after(time.Second)
		r.want(StateConnected, "tcp")
		r.wantOpen("tcp")
	})
}

func TestRememberedTransportGoesFirst(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.cfg.Preferred = func() string { return "tcp" }
		r.run()
		r.after(200 * time.Millisecond)
		r.want(StateConnected, "tcp")
		if d := r.dials("quic"); len(d) != 0 {
			t.Errorf("QUIC dialled at %v, want later", d)
		}
		if len(r.remembered) != 0 {
			t.Errorf("stored %v although nothing changed", r.remembered)
		}
	})
}

func TestAddressesAreInterleavedAndStaggered(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		a6, b6 := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
		a4, b4 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.2")
		r.cfg.Resolve = func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{a6, b6, a4, b4, a4}, nil }
		r.cfg.Transports = []tunnel.Transport{r.tcp}
		r.tcp.only = b4.Unmap()
		r.run()
		r.after(2 * time.Second)
		r.want(StateConnected, "tcp")
		var order []netip.Addr
		for _, d := range r.net.dials {
			order = append(order, d.addr.Addr())
		}
		if want := []netip.Addr{a6, a4, b6, b4.Unmap()}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
	})
}

func TestResolverFailsButOldAddressStillServes(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		asked := 0
		r.cfg.Resolve = func(context.Context, string) ([]netip.Addr, error) {
			if asked++; asked > 1 {
				return nil, errors.New("no such host")
			}
			return []netip.Addr{netip.MustParseAddr("192.0.2.7")}, nil
		}
		r.run()
		r.after(time.Second)
		s, _ := r.last()
		s.end(&tunnel.CloseError{Code: protocol.CodeInternal, Remote: true})
		r.after(4 * time.Second)
		r.want(StateConnected, "quic")
		if asked < 2 {
			t.Error("the name was not looked up again")
		}
	})
}

func TestMovesUpToQUICWithoutDroppingTheOldSession(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.quic.hole = true
		r.keep = true // a visitor on the TCP session stays
		r.run()
		r.after(time.Second)
		old, oldLink := r.last()
		r.quic.set(func(f *fakeTransport) { f.hole = false })
		r.after(32 * time.Second)
		r.want(StateConnected, "quic")
		r.wantOpen("tcp", "quic")
		select {
		case <-oldLink.Draining():
		default:
			t.Error("the old session was not told to drain")
		}
		if oldLink.Stopping() {
			t.Error("the old session takes its drain for the agent's end")
		}
		if r.up.Status().Draining != 1 {
			t.Errorf("draining = %d", r.up.Status().Draining)
		}
		if want := []string{"tcp", "quic"}; !slices.Equal(r.remembered, want) {
			t.Errorf("remembered %v, want %v", r.remembered, want)
		}
		r.after(12 * time.Minute) // ten minutes to drain are over
		r.wantOpen("quic")
		if ce := old.closed(); ce == nil || ce.Remote {
			t.Errorf("old session ended with %v", ce)
		}
	})
}

func TestProbesLessAndLessOften(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.quic.delay, r.quic.err = 0, errors.New("connection refused")
		r.run()
		r.after(25 * time.Minute)
		r.want(StateConnected, "tcp")
		d := r.dials("quic")[1:] // without the first race
		var gaps []time.Duration
		last := 60 * time.Millisecond // TCP was ready a moment later
		for _, at := range d {
			gaps = append(gaps, (at - last).Round(time.Second))
			last = at
		}
		want := []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute, 5 * time.Minute, 5 * time.Minute, 5 * time.Minute}
		if !slices.Equal(gaps, want) {
			t.Errorf("pauses between probes %v, want %v", gaps, want)
		}
		r.wantOpen("tcp")
	})
}

func TestProbeThatConnectsButNeverWorksLeavesTCPAlone(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.quic.hole = true
		r.notReady["quic"] = true
		r.run()
		r.after(time.Second)
		r.quic.set(func(f *fakeTransport) { f.hole = false })
		r.after(3 * time.Minute)
		r.want(StateConnected, "tcp")
		r.wantOpen("tcp")
	})
}

func TestBackoffStaysInBounds(t *testing.T) {
	for _, full := range []float64{0, 0.5, 0.999} {
		bubble(t, func(t *testing.T, r *rig) {
			const handshake = 10 * time.Millisecond
			r.cfg.Rand = func() float64 { return full }
			r.cfg.Transports = []tunnel.Transport{r.tcp}
			r.tcp.delay, r.tcp.err = handshake, errors.New("network is unreachable")
			r.run()
			r.after(5 * time.Second)
			if full > 0 {
				r.after(4 * time.Minute)
			}
			r.stop()
			d := r.dials("tcp")
			for i, span := range []time.Duration{1, 2, 4, 8, 16, 30, 30, 30} {
				want := time.Duration(full*float64(span*time.Second)) + handshake
				if i+1 >= len(d) || d[i+1]-d[i] != want {
					t.Fatalf("rand %v: pause %d is not %v: %v", full, i, want, d)
				}
			}
		})
	}
}

func TestNeverEnds(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		good := r.cfg.Resolve
		var works atomic.Bool
		r.cfg.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			if works.Load() {
				return good(ctx, host)
			}
			return nil, errors.New("no such host")
		}
		r.run()
		r.after(24 * time.Hour)
		if s := r.up.Status(); s.State != StateWaiting && s.State != StateConnecting || s.LastError == "" {
			t.Errorf("status after a day without DNS: %+v", s)
		}
		works.Store(true)
		r.pass(time.Minute)
		r.want(StateConnected, "quic")
	})
}

func TestBackoffStartsAnewOnlyAfterAStableMinute(t *testing.T) {
	for _, test := range []struct {
		lives time.Duration
		want  time.Duration // the pause after the third loss
	}{{5 * time.Second, 4 * time.Second}, {61 * time.Second, time.Second}} {
		bubble(t, func(t *testing.T, r *rig) {
			r.cfg.Rand = func() float64 { return 1 }
			r.run()
			var lost time.Time
			for range 3 {
				r.pass(test.lives + 10*time.Second) // the pauses are shorter than 10 s
				r.want(StateConnected, "quic")
				s, _ := r.last()
				lost = time.Now()
				s.end(&tunnel.CloseError{Code: protocol.CodeInternal, Remote: true})
				synctest.Wait()
				if test.lives < time.Minute {
					// The next session ends before it has been stable.
					continue
				}
			}
			r.pass(30 * time.Second)
			d := r.dials("quic")
			if gap := r.start.Add(d[len(d)-1]).Sub(lost); gap != test.want {
				t.Errorf("pause %v after sessions of about %v, want %v", gap, test.lives, test.want)
			}
		})
	}
}

func TestRefusedAgentRetriesSlowly(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.notReady["quic"], r.notReady["tcp"] = true, true
		r.run()
		for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); r.pass(time.Second) {
			r.net.mu.Lock()
			sessions := slices.Clone(r.net.sessions)
			r.net.mu.Unlock()
			for _, s := range sessions {
				s.end(&tunnel.CloseError{Code: protocol.CodeRevoked, Reason: "revoked by the owner", Remote: true})
			}
		}
		n := len(r.dials("quic"))
		if n < 15 || n > 45 {
			t.Errorf("%d dials in ten minutes, want one every 15 to 30 s", n)
		}
		if got := r.up.Status().LastError; got != "session closed by the peer: revoked: revoked by the owner" {
			t.Errorf("status says %q", got)
		}
		if !r.up.Status().Revoked {
			t.Error("status does not say that it is shut out")
		}
		if len(r.dials("tcp")) != 0 || r.up.Status().Demoted != "" {
			t.Error("a refusal was taken for a fault of the transport")
		}
	})
}

func TestGoAwayOpensTheNewSessionFirst(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.cfg.Rand = func() float64 { return 0.5 }
		r.keep = true
		r.run()
		r.after(time.Second)
		_, link := r.last()
		link.GoAway(protocol.GoAway{Code: protocol.CodeGoingAway, ReconnectIn: 4 * time.Second, TryFor: time.Minute})
		r.after(2900 * time.Millisecond)
		if d := r.dials("quic"); len(d) != 1 {
			t.Fatalf("dialled at %v, before half of reconnect_in", d)
		}
		r.after(3500 * time.Millisecond)
		r.wantOpen("quic", "quic")
		select {
		case <-link.Draining():
		default:
			t.Error("the old session does not drain")
		}
		r.want(StateConnected, "quic")
	})
}

func TestGoAwayTryForKeepsTheBackoffSmall(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.cfg.Rand = func() float64 { return 1 }
		r.cfg.Transports = []tunnel.Transport{r.tcp}
		r.run()
		r.after(time.Second)
		s, link := r.last()
		r.tcp.set(func(f *fakeTransport) { f.delay, f.err = 0, errors.New("connection refused") })
		link.GoAway(protocol.GoAway{Code: protocol.CodeGoingAway, ReconnectIn: time.Second, TryFor: 20 * time.Second})
		r.pass(100 * time.Millisecond)
		s.end(&tunnel.CloseError{Code: protocol.CodeGoingAway, Remote: true})
		r.pass(20 * time.Second)
		d := r.dials("tcp")[1:]
		if len(d) < 18 {
			t.Errorf("%d attempts within try_for, want one a second: %v", len(d), d)
		}
		if d[0] != 2*time.Second {
			t.Errorf("first redial at %v, want the end of reconnect_in", d[0])
		}
		r.pass(2 * time.Minute)
		d = r.dials("tcp")
		if gap := d[len(d)-1] - d[len(d)-2]; gap < 16*time.Second {
			t.Errorf("pause %v long after try_for, want a grown one", gap)
		}
	})
}

func TestAnotherCopyTakesOver(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.run()
		r.after(time.Second)
		s, link := r.last()
		link.GoAway(protocol.GoAway{Code: protocol.CodeReplaced})
		s.end(&tunnel.CloseError{Code: protocol.CodeReplaced, Remote: true})
		r.pass(14 * time.Second)
		if d := r.dials("quic"); len(d) != 1 {
			t.Errorf("dialled at %v: two copies would throw each other out all the time", d)
		}
		r.pass(17 * time.Second)
		r.want(StateConnected, "quic")
	})
}

func TestStopLetsStreamsFinish(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.run()
		r.after(time.Second)
		s, link := r.last()
		r.stop()
		if !link.Stopping() {
			t.Error("serve cannot tell the agent's end from a drain")
		}
		if ce := s.closed(); ce == nil || ce.Code != protocol.CodeGoingAway || ce.Remote {
			t.Errorf("closed with %v, want going-away", ce)
		}
		r.want(StateStopped, "")
	})
}

func TestStopEndsStuckStreamsAfterGrace(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.keep = true
		r.run()
		r.after(time.Second)
		r.stop()
		if took := time.Since(r.start) - time.Second; took != 5*time.Second {
			t.Errorf("stopped after %v, want the grace of 5s", took)
		}
		r.wantOpen()
	})
}

func TestStopWhileDialling(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.quic.hole, r.tcp.hole = true, true
		r.run()
		r.after(time.Second)
		r.stop()
		if took := time.Since(r.start); took != time.Second {
			t.Errorf("stopped after %v", took)
		}
	})
}
