package agent

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/agent/service"
	"github.com/sallyport/sallyport/agent/uplink"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A relay that opens streams without end gets so many sockets at home and no
// more, over all sessions.
func TestStreamsAreCapped(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		var dials atomic.Int64
		cfg.MaxStreams = 3
		cfg.DialService = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return home(ctx, network, addr)
		}
		start(t, cfg)
		old := r.next()
		first := old.visit(t, "echo")
		protocol.WriteMessage(old.ctl, protocol.GoAway{Code: protocol.CodeGoingAway, TryFor: time.Minute})
		s := r.next()
		s.visit(t, "echo")
		if st, err := s.OpenStream(t.Context()); err != nil { // silent, but it counts
			t.Fatal(err)
		} else {
			st.Write([]byte{0})
			defer st.Reset(protocol.CodeOK)
		}
		synctest.Wait()
		for range 50 {
			begin := time.Now()
			st, err := s.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			protocol.WriteOpen(st, protocol.Open{Service: "echo"})
			_, err = protocol.ReadResult(st)
			reset, ok := errors.AsType[*tunnel.ResetError](err)
			if !ok || !reset.Remote || reset.Code != protocol.CodeOverload || time.Since(begin) > 0 {
				t.Fatalf("after %v: %v, want a reset for overload at once", time.Since(begin), err)
			}
			st.Reset(protocol.CodeOK)
		}
		if n := dials.Load(); n != 2 {
			t.Errorf("%d connections to the backend, want 2", n)
		}
		first.Reset(protocol.CodeAborted)
		synctest.Wait()
		exchange(t, s.visit(t, "echo"), "there is room again")
	})
}

func TestMaxStreamsHasADefault(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		if a := start(t, cfg); a.cfg.MaxStreams != maxStreams {
			t.Errorf("%d", a.cfg.MaxStreams)
		}
		cfg.MaxStreams = -1
		if _, err := New(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("-1: %v", err)
		}
	})
}

// lamp waits until everybody is idle and returns what status says of "lamp".
func (a *runningAgent) lamp() control.ServiceStatus {
	synctest.Wait()
	for _, s := range a.Status().Services {
		if s.Name == "lamp" {
			return s
		}
	}
	return control.ServiceStatus{}
}

func says(t *testing.T, s *relaySession, seq uint64, lamp protocol.Registration) {
	t.Helper()
	lamp.Name = "lamp"
	m := protocol.Registered{Seq: seq, Services: []protocol.Registration{{Name: "echo", URL: "https://echo.example.org/"}, lamp}}
	if err := protocol.WriteMessage(s.ctl, m); err != nil {
		t.Fatal(err)
	}
}

func TestOvertakenAnswerIsIgnored(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		r.mute = true
		cfg.Services = append(cfg.Services, entry("lamp"))
		a := start(t, cfg)
		s := r.next()
		if err := a.SetServices(t.Context(), []service.Entry{entry("lamp"), entry("echo"), entry("more")}); err != nil {
			t.Fatal(err)
		}
		says(t, s, 1, protocol.Registration{Error: "of the first list"})
		if got := a.lamp(); got.Error != "" || a.Status().State == uplink.StateConnected {
			t.Errorf("the answer to an older list was taken: %+v, %s", got, a.Status().State)
		}
		says(t, s, 2, protocol.Registration{URL: "https://lamp.example.org/"})
		if got := a.lamp(); got.URL == "" || a.Status().State != uplink.StateConnected {
			t.Errorf("%+v, %s", got, a.Status().State)
		}
		says(t, s, 2, protocol.Registration{Error: "said twice"})
		if got := a.lamp(); got.Error != "" {
			t.Errorf("a second answer was taken: %+v", got)
		}
	})
}

// The relay takes lists from the newest session; what it says on an older one
// is not its word on this list.
func TestAnswerOnAnOlderSessionIsIgnored(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		old := r.next()
		old.visit(t, "echo") // keeps it
		protocol.WriteMessage(old.ctl, protocol.GoAway{Code: protocol.CodeGoingAway, TryFor: time.Minute})
		latest := r.next()
		r.set(func() { r.mute = true })
		if err := a.SetServices(t.Context(), []service.Entry{entry("echo"), entry("lamp")}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		says(t, old, 2, protocol.Registration{Error: "a newer session of this agent has taken over"})
		if got := a.lamp(); got.Error != "" {
			t.Errorf("taken from the older session: %+v", got)
		}
		says(t, latest, 2, protocol.Registration{URL: "https://lamp.example.org/"})
		if got := a.lamp(); got.URL == "" {
			t.Errorf("not taken from the newest session: %+v", got)
		}
	})
}
