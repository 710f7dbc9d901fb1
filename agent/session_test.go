package agent

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

func TestGoAwayLetsStreamsFinish(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		start(t, cfg)
		old := r.next()
		st := old.visit(t, "echo")
		protocol.WriteMessage(old.ctl, protocol.GoAway{Code: protocol.CodeGoingAway, ReconnectIn: time.Second, TryFor: time.Minute})
		r.next() // before anything happened to the old one
		exchange(t, st, "over the old session")
		time.Sleep(5 * time.Minute)
		exchange(t, st, "still")
		st.CloseWrite()
		if _, err := io.ReadAll(st); err != nil {
			t.Errorf("the stream ended with %v", err)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if old.Err() == nil {
			t.Error("the drained session is still open")
		}
	})
}

func TestSilentRelayIsReplacedInTime(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		s := r.next()
		time.Sleep(time.Hour)              // virtual: pings are at their slowest
		r.set(func() { r.freeze = s.ctl }) // pings of this session are not answered any more
		begin := time.Now()
		r.next()
		if took := time.Since(begin); took > 11*time.Second {
			t.Errorf("noticed after %v", took)
		}
		time.Sleep(time.Second) // virtual
		if s.Err() == nil {
			t.Error("the silent session was kept")
		}
		if st := a.Status(); st.State != "connected" {
			t.Errorf("state %s", st.State)
		}
	})
}

func TestPingsAreFrequentOnlyWithVisitors(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		start(t, cfg)
		s := r.next()
		count := func(d time.Duration) int {
			r.mu.Lock()
			before := r.pings
			r.mu.Unlock()
			time.Sleep(d)
			synctest.Wait()
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.pings - before
		}
		time.Sleep(10 * time.Minute)
		if n := count(time.Minute); n < 11 || n > 13 {
			t.Errorf("%d pings in an idle minute", n)
		}
		st := s.visit(t, "echo")
		if n := count(time.Minute); n < 38 || n > 42 {
			t.Errorf("%d pings in a minute with a visitor", n)
		}
		st.Reset(protocol.CodeAborted)
		if n := count(time.Minute); n < 38 || n > 42 {
			t.Errorf("%d pings in the minute after", n)
		}
		time.Sleep(10 * time.Minute)
		if n := count(time.Minute); n < 11 || n > 13 {
			t.Errorf("%d pings when idle again", n)
		}
	})
}

func TestCertificateIsRenewed(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		r.certLife = 6 * time.Hour
		a := start(t, cfg)
		s := r.next()
		first := s.Peer().Cert
		time.Sleep(3*time.Hour + 50*time.Minute)
		if r.renews != 0 {
			t.Errorf("renewed before two thirds of its life were over")
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if r.renews != 1 {
			t.Errorf("%d renewals", r.renews)
		}
		s.Close(protocol.CodeInternal, "")
		second := r.next().Peer()
		if second.ID != s.Peer().ID || !second.Cert.NotAfter.After(first.NotAfter) {
			t.Error("the next session does not use the new certificate")
		}
		a.stop()
		if id := storedIdentity(t, cfg.DataDir); !id.Cert.Equal(second.Cert) {
			t.Error("the new certificate is not on disk")
		}
	})
}

func TestStopLetsAReplyFinish(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		s := r.next()
		st := s.visit(t, "echo")
		exchange(t, st, "a")
		done := make(chan error, 1)
		go func() { done <- a.stop() }()
		for range 8 { // two seconds of a download
			time.Sleep(250 * time.Millisecond) // virtual
			exchange(t, st, "more")
		}
		st.CloseWrite()
		if _, err := io.ReadAll(st); err != nil {
			t.Errorf("the reply was cut: %v", err)
		}
		begin := time.Now()
		if err := <-done; err != nil || time.Since(begin) > time.Second {
			t.Errorf("stopped with %v after %v", err, time.Since(begin))
		}
		if m := <-s.got; m.Type() != protocol.TypeGoAway {
			t.Errorf("the relay was told %T", m)
		}
	})
}

func TestStopDoesNotWaitForAnIdleStream(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		a := start(t, cfg)
		st := r.next().visit(t, "echo")
		begin := time.Now()
		a.stop()
		if took := time.Since(begin); took > time.Second {
			t.Errorf("stopped after %v", took)
		}
		if _, err := io.ReadAll(st); err == nil {
			t.Error("an aborted stream ended cleanly")
		}
	})
}

func TestRelayThatDoesNotAnswerTheListIsLeft(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		r.mute = true
		a := start(t, cfg)
		s := r.next()
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if s.Err() == nil {
			t.Error("the session is kept")
		}
		if st := a.Status(); st.State == "connected" {
			t.Error("connected without services")
		}
	})
}

func TestUnknownMessagesAreIgnored(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		start(t, cfg)
		s := r.next()
		s.ctl.Write([]byte{0, 0, 0, 3, 200, '{', '}'})
		protocol.WriteMessage(s.ctl, protocol.NewPing(7))
		if m := <-s.got; m != (protocol.Pong{Seq: 7, Pad: protocol.NewPing(7).Pad}) {
			t.Errorf("got %+v", m)
		}
		s.ctl.Write([]byte{0, 0, 0, 2, 6, 'x'})
		<-s.Done()
		if ce := s.Err().(*tunnel.CloseError); ce.Code != protocol.CodeProtocol {
			t.Errorf("garbage ends the session with %v", ce)
		}
	})
}

// The relay's time is a floor for the next start of a board without a clock.
func TestClockIsLearned(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		cfg.Now = func() time.Time { return time.Unix(1000, 0) }
		a := start(t, cfg)
		r.next()
		a.stop()
		a = start(t, cfg)
		r.next()
		if now := a.clock.Now(); now.Before(testNow().Add(-time.Minute)) || now.After(testNow().Add(time.Minute)) {
			t.Errorf("the agent takes it for %v, it is %v", now, testNow())
		}
	})
}

func TestClockIgnoresAnImpossibleTime(t *testing.T) {
	world(t, func(t *testing.T, r *fakeRelay, cfg Config) {
		r.welcomeTime = testNow().AddDate(50, 0, 0)
		a := start(t, cfg)
		r.next()
		if now := a.clock.Now(); now.After(testNow().Add(time.Minute)) {
			t.Errorf("the agent takes it for %v", now)
		}
	})
}
