package uplink

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

func TestStallStartsAReplacementAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.run()
		r.after(time.Second)
		old, link := r.last()
		r.quic.set(func(f *fakeTransport) { f.hole = true }) // UDP is blocked from here on
		link.PingLost()
		synctest.Wait()
		r.wantOpen("quic") // it stays until the new one is up
		r.pass(400 * time.Millisecond)
		r.want(StateConnected, "tcp")
		r.wantOpen("tcp")
		if old.closed() == nil {
			t.Error("the stalled session was kept")
		}
		if r.up.Status().Demoted != "" {
			t.Error("demoted after one stall")
		}
	})
}

func TestTwoStallsInAMinuteDemote(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.run()
		r.after(time.Second)
		_, first := r.last()
		first.PingLost()
		r.pass(time.Second)
		r.want(StateConnected, "quic")
		_, second := r.last()
		if first == second {
			t.Fatal("no replacement")
		}
		r.pass(30 * time.Second)
		second.PingLost()
		r.pass(time.Second)
		r.want(StateConnected, "tcp")
		demotedAt := time.Since(r.start)
		n := len(r.dials("quic"))
		if s := r.up.Status(); s.Demoted != "quic" {
			t.Errorf("status does not tell of the demotion: %+v", s)
		}
		r.pass(9*time.Minute + 50*time.Second)
		if len(r.dials("quic")) != n {
			t.Errorf("QUIC dialled at %v, demoted at %v", r.dials("quic")[n:], demotedAt)
		}
		r.pass(15 * time.Second)
		r.want(StateConnected, "quic")
		if s := r.up.Status(); s.Demoted != "" {
			t.Errorf("status still says demoted: %+v", s)
		}
	})
}

func TestTwoStallsFarApartDoNotDemote(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.run()
		for range 4 {
			r.pass(61 * time.Second)
			_, link := r.last()
			link.PingLost()
		}
		r.pass(time.Second)
		r.want(StateConnected, "quic")
	})
}

func TestDemotedTransportHelpsWhenNothingElseWorks(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.tcp.hole = true
		r.run()
		for range 2 {
			r.pass(2 * time.Second)
			s, link := r.last()
			link.PingLost()
			synctest.Wait()
			s.end(&tunnel.CloseError{Code: protocol.CodeTimeout})
		}
		r.pass(time.Minute)
		r.want(StateConnected, "quic")
	})
}

func TestPeerComesBackBeforeTheReplacement(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.run()
		r.after(time.Second)
		s, link := r.last()
		r.quic.set(func(f *fakeTransport) { f.hole = true })
		r.tcp.set(func(f *fakeTransport) { f.hole = true })
		link.PingLost()
		r.pass(2 * time.Second)
		link.Alive()
		r.pass(time.Minute)
		r.want(StateConnected, "quic")
		r.wantOpen("quic")
		if now, _ := r.last(); now != s || s.closed() != nil {
			t.Error("a session that recovered was given up")
		}
		if n := len(r.dials("quic")); n != 2 {
			t.Errorf("%d dials, want the first and one for the replacement", n)
		}
	})
}

func TestDrainingSessionThatFallsSilentIsClosed(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.keep = true
		r.run()
		r.after(time.Second)
		_, link := r.last()
		link.GoAway(protocol.GoAway{Code: protocol.CodeGoingAway})
		r.pass(2 * time.Second)
		r.wantOpen("quic", "quic")
		link.PingLost()
		r.wantOpen("quic")
		r.want(StateConnected, "quic")
	})
}

func TestBlockedWritesStartAReplacement(t *testing.T) {
	for _, recovers := range []bool{false, true} {
		bubble(t, func(t *testing.T, r *rig) {
			r.keep = true
			r.run()
			r.after(time.Second)
			s, link := r.last()
			s.setBlocked(time.Now())
			r.pass(4 * time.Second)
			r.wantOpen("quic")
			r.quic.set(func(f *fakeTransport) { f.delay = 5 * time.Second })
			r.tcp.set(func(f *fakeTransport) { f.hole = true })
			r.pass(3 * time.Second)
			if recovers {
				s.setBlocked(time.Time{})
			}
			r.pass(5 * time.Second)
			r.want(StateConnected, "quic")
			if !recovers {
				r.wantOpen("quic")
				return
			}
			r.wantOpen("quic", "quic")
			select {
			case <-link.Draining():
			default:
				t.Error("the old session does not drain")
			}
		})
	}
}

func TestSleepWakesTheSession(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		slept := time.Duration(0)
		now := func() time.Time { return time.Now().Add(slept) }
		r.cfg.Wall = func() time.Time { r.mu.Lock(); defer r.mu.Unlock(); return now() }
		r.run()
		r.after(10 * time.Second)
		_, link := r.last()
		select {
		case <-link.Wake():
			t.Fatal("woken without a reason")
		default:
		}
		r.mu.Lock()
		slept = time.Hour // the monotonic clock stood still
		r.mu.Unlock()
		r.pass(2 * time.Second)
		select {
		case <-link.Wake():
		default:
			t.Error("not woken after sleep")
		}
	})
}

func TestNetworkChangeEndsWaiting(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		network := "none"
		r.cfg.Network = func() string { r.mu.Lock(); defer r.mu.Unlock(); return network }
		r.cfg.Rand = func() float64 { return 1 }
		r.quic.delay, r.tcp.delay = 0, 0
		r.quic.hole, r.tcp.hole = true, true
		r.run()
		r.after(time.Hour)
		r.quic.set(func(f *fakeTransport) { f.hole = false })
		r.mu.Lock()
		network = "eth0"
		r.mu.Unlock()
		r.pass(5 * time.Second)
		r.want(StateConnected, "quic")
	})
}

func TestNetworkChangeTriesToMoveUp(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.quic.hole = true
		r.run()
		r.after(20 * time.Minute) // probes are five minutes apart by now
		r.want(StateConnected, "tcp")
		r.quic.set(func(f *fakeTransport) { f.hole = false })
		r.up.Kick()
		r.pass(15 * time.Second)
		r.want(StateConnected, "quic")
	})
}
