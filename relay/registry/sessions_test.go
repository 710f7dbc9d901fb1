package registry

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
)

func TestOldSessionsDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t)
		f.join(t, 1)
		old, latest := newSession(1, answers), newSession(1, answers)
		f.attach(t, old, "i1")
		f.attach(t, latest, "i1")
		for range 3 {
			mustOpen(t, f)
		}
		if old.opened() != 0 || latest.opened() != 3 {
			t.Errorf("old session got %d streams, newest %d", old.opened(), latest.opened())
		}
		if len(f.goaway) != 0 {
			t.Errorf("the same instance was asked to leave: %+v", f.goaway)
		}
		time.Sleep(drainFor - time.Second)
		if old.Err() != nil {
			t.Fatalf("the old session ended early: %v", old.Err())
		}
		time.Sleep(2 * time.Second)
		if old.Err() == nil {
			t.Error("the old session outlived its drain")
		}
		if latest.Err() != nil {
			t.Errorf("the newest session ended: %v", latest.Err())
		}
	})
}

func TestFallBackToOldSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t)
		f.join(t, 1)
		old, latest := newSession(1, answers), newSession(1, answers)
		f.attach(t, old, "i1")
		detach := f.attach(t, latest, "i1")
		latest.Close(protocol.CodeInternal, "lost")
		mustOpen(t, f) // before anybody detached it
		detach()
		detach()
		mustOpen(t, f)
		if old.opened() != 2 {
			t.Errorf("the old session got %d streams", old.opened())
		}
	})
}

// Hello.Alone: what the agent gave up ends at once, and nothing else does.
func TestEndOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t)
		f.join(t, 1)
		f.join(t, 2, "*.two.example.org")
		old, middle, latest := newSession(1, stalls), newSession(1, answers), newSession(1, answers)
		stranger := newSession(2, answers)
		f.attach(t, old, "i1")
		f.attach(t, stranger, "i1")
		f.attach(t, middle, "i1")
		f.attach(t, latest, "i1")
		f.EndOlder(middle)
		if old.Err() == nil {
			t.Error("the session that was given up is still open")
		}
		for name, s := range map[string]*fakeSession{"itself": middle, "a newer one": latest, "another agent's": stranger} {
			if s.Err() != nil {
				t.Errorf("%s was closed: %v", name, s.Err())
			}
		}
	})
}

func TestTwoInstances(t *testing.T) {
	t.Run("a restart is no alarm", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := fresh(t)
			f.join(t, 1)
			killed := newSession(1, dead)
			detach := f.attach(t, killed, "i1")
			f.attach(t, newSession(1, answers), "i2")
			if len(f.goaway) != 1 || f.goaway[0].Code != protocol.CodeReplaced || f.goaway[0].ReconnectIn < time.Minute {
				t.Errorf("go away: %+v", f.goaway)
			}
			time.Sleep(12 * time.Second) // until the idle time ends it
			killed.Close(protocol.CodeIdle, "")
			detach()
			time.Sleep(time.Hour)
			if n := f.audit.count("agent.two-instances"); n != 0 || !f.Agents()[0].Conflict.IsZero() {
				t.Errorf("%d alarms", n)
			}
		})
	})
	t.Run("the old one lives on", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := fresh(t)
			f.join(t, 1)
			f.attach(t, newSession(1, answers), "i1")
			f.attach(t, newSession(1, answers), "i2")
			time.Sleep(aliveAfter + time.Second)
			if n := f.audit.count("agent.two-instances"); n != 1 || f.Agents()[0].Conflict.IsZero() {
				t.Errorf("%d alarms", n)
			}
		})
	})
	t.Run("the old one obeys", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := fresh(t)
			f.join(t, 1)
			old, gone := newSession(1, answers), newSession(1, answers)
			f.attach(t, gone, "i0")
			f.attach(t, old, "i1")
			gone.Close(protocol.CodeOK, "") // nobody has detached it yet
			f.attach(t, newSession(1, answers), "i2")
			f.Retire(old) // it answers GoAway with GoAway and lets its streams finish
			time.Sleep(time.Hour)
			if n := f.audit.count("agent.two-instances"); n != 0 {
				t.Errorf("%d alarms", n)
			}
		})
	})
	t.Run("the old one comes back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := fresh(t)
			f.join(t, 1)
			for _, instance := range []string{"i1", "i2", "i1", "i2", "i1"} {
				s := newSession(1, answers)
				detach := f.attach(t, s, instance)
				time.AfterFunc(time.Minute+time.Second, func() { s.Close(protocol.CodeOK, ""); detach() })
				time.Sleep(time.Minute)
			}
			if n := f.audit.count("agent.two-instances"); n != 1 {
				t.Errorf("%d alarms, want one per quarter of an hour", n)
			}
		})
	})
	t.Run("the old one said goodbye", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := fresh(t)
			f.join(t, 1)
			old := newSession(1, answers)
			f.attach(t, old, "i1")
			f.Retire(old)
			mustOpen(t, f) // better than nothing
			f.attach(t, newSession(1, answers), "i2")
			mustOpen(t, f)
			time.Sleep(time.Minute)
			if n := f.audit.count("agent.two-instances"); n != 0 || len(f.goaway) != 0 || old.opened() != 1 {
				t.Errorf("%d alarms, asked to leave %d times, %d streams", n, len(f.goaway), old.opened())
			}
		})
	})
}

func TestReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t)
		f.cfg.Replicas = 2
		f.join(t, 1)
		var s [3]*fakeSession
		for i, instance := range []string{"i1", "i2", "i3"} {
			s[i] = newSession(1, answers)
			f.attach(t, s[i], instance)
			time.Sleep(time.Second)
			if i == 1 {
				for range 10 {
					mustOpen(t, f)
				}
				if s[0].opened() != 5 || s[1].opened() != 5 || len(f.goaway) != 0 {
					t.Errorf("two replicas got %d and %d streams; asked to leave: %v", s[0].opened(), s[1].opened(), f.goaway)
				}
			}
		}
		if len(f.goaway) != 1 {
			t.Errorf("the third instance of two: %+v", f.goaway)
		}
		for range 10 {
			mustOpen(t, f)
		}
		if s[0].opened() != 5 || s[1].opened() != 10 || s[2].opened() != 5 {
			t.Errorf("streams %d %d %d", s[0].opened(), s[1].opened(), s[2].opened())
		}
	})
}

func TestSessionsAreCapped(t *testing.T) {
	f := fresh(t)
	f.join(t, 1)
	var all []*fakeSession
	for range maxSessions + 3 {
		s := newSession(1, answers)
		f.attach(t, s, "i1")
		all = append(all, s)
	}
	for i, s := range all {
		if (s.Err() != nil) != (i < 3) {
			t.Errorf("session %d: %v", i, s.Err())
		}
	}
}

func TestPresence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t)
		f.join(t, 1)
		settle()
		began := time.Now()
		s := newSession(1, answers)
		s.stats.BytesIn, s.stats.BytesOut, s.stats.Streams = 100, 7, 2
		detach := f.attach(t, s, "i1")
		time.Sleep(time.Hour)
		if online, since := f.Presence(id(1)); !online || !since.Equal(began) {
			t.Errorf("online %v since %v", online, since)
		}
		st := f.Agents()[0]
		if !st.Online || st.BytesIn != 100 || st.Streams != 2 || len(st.Sessions) != 1 || st.Sessions[0].Transport != "fake" {
			t.Errorf("status %+v", st)
		}
		s.Close(protocol.CodeOK, "")
		ended := time.Now()
		if online, since := f.Presence(id(1)); online || !since.Equal(ended) {
			t.Errorf("online %v since %v", online, since)
		}
		detach()
		st = f.Agents()[0]
		if st.Online || st.BytesIn != 100 || st.BytesOut != 7 || len(st.Sessions) != 0 {
			t.Errorf("status %+v", st)
		}
		time.Sleep(time.Hour)
		// After a restart the relay still knows since when.
		if online, since := open(t, f.kv, nil).Presence(id(1)); online || ended.Sub(since).Abs() > time.Second {
			t.Errorf("after a restart: online %v since %v, want %v", online, since, ended)
		}
	})
}

func TestSeenSurvivesKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fresh(t)
		f.join(t, 1)
		f.attach(t, newSession(1, answers), "i1")
		go f.Run(t.Context())
		time.Sleep(5*time.Hour + time.Second)
		// No detach, no end of Run: the relay is killed.
		if _, since := open(t, f.kv, nil).Presence(id(1)); time.Since(since) > 2*seenEvery {
			t.Errorf("last seen %v ago", time.Since(since))
		}
	})
}

func mustOpen(t *testing.T, f *fixture) {
	t.Helper()
	st, err := f.OpenStream(t.Context(), id(1), protocol.Open{Service: "ha"})
	if err != nil {
		t.Fatal(err)
	}
	st.Close()
}
