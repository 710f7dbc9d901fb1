package dispatch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// The home goes after a command was sent: it is asked when it is back, and
// nothing is sent again.
func TestAskedAfterReconnect(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		ag.leave()
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		time.Sleep(20 * time.Second) // virtual
		ag = w.agent(kitchen, aHome(), nil)
		asked := ag.got(mqttbridge.FrameQuery)
		if len(asked) != 1 || len(asked[0].IDs) != 1 || asked[0].IDs[0] != s.ID {
			t.Fatalf("the home was asked %+v", asked)
		}
		ag.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Done, At: s.Created.Add(time.Second)})
		s = w.is("anna-phone", s.ID, mqttbridge.Done)
		if s.At.Sub(s.Created) != time.Second {
			t.Errorf("done at %v; it was the home's word that counts", s.At)
		}
		time.Sleep(time.Minute) // virtual
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 0 {
			t.Errorf("sent again %d times", len(got))
		}
	})
}

// A home that is asked twice for the same stream's sake is asked too often.
func TestAskedOnceAStream(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		ag.leave()
		ag = w.agent(kitchen, aHome(), nil)
		ag.offer(aHome(mqttbridge.Action{Name: "lamp", Confirm: mqttbridge.ConfirmNone}))
		time.Sleep(time.Hour) // virtual
		if got := ag.got(mqttbridge.FrameQuery); len(got) != 1 {
			t.Errorf("asked %d times", len(got))
		}
	})
}

func TestSilenceEndsAsUnknownAndIsCorrected(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		ag.leave()
		time.Sleep(10*time.Second + time.Minute - 2*time.Second) // virtual
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		time.Sleep(4 * time.Second) // virtual
		if s = w.is("anna-phone", s.ID, mqttbridge.Unknown); !s.Final || s.Reason == "" {
			t.Errorf("given up as %+v", s)
		}
		if got := w.ledger.state(t, s.ID); got != mqttbridge.Unknown {
			t.Errorf("the ledger says %q", got)
		}
		time.Sleep(time.Hour) // virtual
		ag = w.agent(kitchen, aHome(), nil)
		if got := ag.got(mqttbridge.FrameQuery); len(got) != 1 {
			t.Fatalf("asked %d times", len(got))
		}
		// A page that shows an end is not sent back to waiting.
		ag.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Delivered})
		w.is("anna-phone", s.ID, mqttbridge.Unknown)
		ag.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Done})
		w.is("anna-phone", s.ID, mqttbridge.Done)
		if got := w.ledger.state(t, s.ID); got != mqttbridge.Done {
			t.Errorf("the ledger says %q", got)
		}
		for _, late := range []mqttbridge.State{mqttbridge.Unknown, mqttbridge.Refused, mqttbridge.Expired, mqttbridge.Unconfirmed, mqttbridge.Delivered} {
			ag.status(mqttbridge.Status{ID: s.ID, State: late, Final: true})
			w.is("anna-phone", s.ID, mqttbridge.Done)
		}
	})
}

// Only unknown is corrected: every other end stands.
func TestEndsStand(t *testing.T) {
	for _, end := range []mqttbridge.State{mqttbridge.Delivered, mqttbridge.Done, mqttbridge.Unconfirmed, mqttbridge.Refused, mqttbridge.Expired} {
		inWorld(t, Limits{}, func(t *testing.T, w *world) {
			ag := w.agent(kitchen, aHome(), nil)
			s := w.send("anna-phone", press("anna-phone", "door"))
			w.is("anna-phone", s.ID, mqttbridge.Sent)
			ag.status(mqttbridge.Status{ID: s.ID, State: end, Final: true, Code: mqttbridge.CodeHours})
			for _, late := range []mqttbridge.State{mqttbridge.Unknown, mqttbridge.Refused, mqttbridge.Done, mqttbridge.Expired} {
				ag.status(mqttbridge.Status{ID: s.ID, State: late, Final: true})
			}
			if s := w.is("anna-phone", s.ID, end); !s.Final {
				t.Errorf("%+v is no end", s)
			}
			time.Sleep(time.Hour) // virtual
			w.is("anna-phone", s.ID, end)
		})
	}
}

// What the home itself calls unknown is an end that it is not asked for again.
func TestUnknownByTheHome(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		ag.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Unknown, Reason: "the agent was restarted"})
		if s := w.is("anna-phone", s.ID, mqttbridge.Unknown); s.Reason != "the agent was restarted" {
			t.Errorf("%+v", s)
		}
		ag.leave()
		ag = w.agent(kitchen, aHome(), nil)
		if got := ag.got(mqttbridge.FrameQuery); len(got) != 0 {
			t.Errorf("asked again: %+v", got)
		}
		// The same when the relay had given it up before.
		s = w.send("anna-phone", press("anna-phone", "door"))
		time.Sleep(2 * time.Minute) // virtual
		w.is("anna-phone", s.ID, mqttbridge.Unknown)
		ag.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Unknown})
		ag.leave()
		ag = w.agent(kitchen, aHome(), nil)
		if got := ag.got(mqttbridge.FrameQuery); len(got) != 0 {
			t.Errorf("asked again: %+v", got)
		}
	})
}

// A delivered command waits for its ack longer than for a first word.
func TestAckMayTakeLonger(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		ag.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Delivered})
		time.Sleep(5*time.Minute + 58*time.Second) // virtual
		w.is("anna-phone", s.ID, mqttbridge.Delivered)
		time.Sleep(4 * time.Second) // virtual
		w.is("anna-phone", s.ID, mqttbridge.Unknown)
		// It was delivered: that it did not run cannot be true.
		ag.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Expired})
		w.is("anna-phone", s.ID, mqttbridge.Unknown)
		ag.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Unconfirmed})
		w.is("anna-phone", s.ID, mqttbridge.Unconfirmed)
	})
}

func TestRelayRestart(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		signed := press("anna-phone", "door")
		s := w.send("anna-phone", signed)
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		ended := w.send("anna-phone", press("anna-phone", "door"))
		ag.got("")
		ag.status(mqttbridge.Status{ID: ended.ID, State: mqttbridge.Done})
		w.restart(Limits{})

		homes := w.d.Homes("anna-phone")
		if len(homes) != 1 || homes[0].Online || homes[0].Broker || homes[0].Name != "kitchen" || len(homes[0].Actions) != 1 || homes[0].ID != homeKey1().id {
			t.Fatalf("after a restart the page shows %+v", homes)
		}
		w.is("anna-phone", ended.ID, mqttbridge.Done)
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		if again := w.send("anna-phone", signed); again.State != mqttbridge.Sent {
			t.Errorf("the same again: %+v", again)
		}
		ag = w.agent(kitchen, aHome(), nil)
		time.Sleep(2 * time.Second) // virtual
		var asked int
		for {
			select {
			case f := <-ag.frames:
				switch {
				case f.Type == mqttbridge.FrameCommand:
					t.Error("a command was sent again after a restart")
				case f.Type == mqttbridge.FrameQuery && len(f.IDs) == 1 && f.IDs[0] == s.ID:
					asked++
				}
				continue
			default:
			}
			break
		}
		if asked != 1 {
			t.Errorf("asked %d times", asked)
		}
		ag.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Unconfirmed})
		w.is("anna-phone", s.ID, mqttbridge.Unconfirmed)
	})
}

// A relay that is killed before it wrote down how a command ended asks for it.
func TestRelayKilled(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), obedient)
		time.Sleep(time.Second) // virtual: the home is on disk
		w.ledger.fail(func(op, _ string) error {
			if op == "put" {
				return errFull // from here on nothing reaches the disk but new commands
			}
			return nil
		})
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Done)
		w.stop()
		w.ledger.fail(nil)
		time.Sleep(time.Hour) // virtual
		started := time.Now()
		w.start(Limits{})
		if h := w.d.Homes("anna-phone")[0]; h.Online || !h.Since.Equal(started) {
			t.Errorf("after a kill the home is shown as %+v", h)
		}
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		ag := w.agent(kitchen, aHome(), nil)
		if got := ag.got(mqttbridge.FrameQuery); len(got) != 1 || got[0].IDs[0] != s.ID {
			t.Errorf("asked %+v", got)
		}
		ag.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Done})
		w.is("anna-phone", s.ID, mqttbridge.Done)
	})
}

// A relay that starts on records of long ago gives the home time to come.
func TestRestartIsPatient(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), nil)
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		w.stop()
		time.Sleep(time.Hour) // virtual
		w.start(Limits{})
		time.Sleep(time.Minute) // virtual
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		time.Sleep(20 * time.Second) // virtual
		w.is("anna-phone", s.ID, mqttbridge.Unknown)
	})
}

// A relay that is restarted twice asks for what it gave up, too.
func TestUnknownIsAskedAfterRestart(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), nil)
		s := w.send("anna-phone", press("anna-phone", "door"))
		time.Sleep(2 * time.Minute) // virtual
		w.is("anna-phone", s.ID, mqttbridge.Unknown)
		w.restart(Limits{})
		ag := w.agent(kitchen, aHome(), nil)
		if got := ag.got(mqttbridge.FrameQuery); len(got) != 1 {
			t.Fatalf("asked %d times", len(got))
		}
		ag.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Done})
		w.is("anna-phone", s.ID, mqttbridge.Done)
	})
}

// While an agent moves, two streams are open: the newer one gets the commands,
// the older one may still say how its own ended.
func TestMove(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		older := w.agent(kitchen, aHome(), nil)
		first := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", first.ID, mqttbridge.Sent)
		eyes := w.look("anna-phone")
		eyes.seen()

		newer := w.dial(kitchen, nil)
		second := w.send("anna-phone", press("anna-phone", "door"))
		if got := older.got(mqttbridge.FrameCommand); len(got) != 2 {
			t.Fatalf("a stream that said nothing took over: the older one got %d commands", len(got))
		}
		newer.offer(aHome())
		if got := newer.got(mqttbridge.FrameQuery); len(got) != 0 {
			t.Errorf("asked for commands that another stream is at work on: %+v", got)
		}
		third := w.send("anna-phone", press("anna-phone", "door"))
		if got := newer.got(mqttbridge.FrameCommand); len(got) != 1 || idOf(*got[0].Command) != third.ID {
			t.Fatalf("the newer stream got %+v", got)
		}
		older.status(mqttbridge.Status{ID: first.ID, State: mqttbridge.Done})
		w.is("anna-phone", first.ID, mqttbridge.Done)
		newer.status(mqttbridge.Status{ID: third.ID, State: mqttbridge.Done})
		w.is("anna-phone", third.ID, mqttbridge.Done)

		// The older one's idea of the home does not count any more.
		older.offer(mqttbridge.Home{ID: homeKey1().id, Key: homeKey1().spki})
		for _, ev := range eyes.seen() {
			if ev.HomeGone != "" || ev.Home != nil && (!ev.Home.Online || len(ev.Home.Actions) == 0) {
				t.Errorf("the move was seen as %+v", ev)
			}
		}
		older.leave()
		if got := newer.got(mqttbridge.FrameQuery); len(got) != 1 || len(got[0].IDs) != 1 || got[0].IDs[0] != second.ID {
			t.Errorf("when the older stream ended, the newer was asked %+v", got)
		}
		newer.status(mqttbridge.Status{ID: second.ID, State: mqttbridge.Done})
		w.is("anna-phone", second.ID, mqttbridge.Done)
	})
}

// A stream that ends does not make the relay ask again what it asked already.
func TestMoveAsksOnce(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		oldest := w.agent(kitchen, aHome(), nil)
		middle := w.agent(kitchen, aHome(), nil)
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		newest := w.agent(kitchen, aHome(), nil)
		middle.leave()
		if got := newest.got(mqttbridge.FrameQuery); len(got) != 1 {
			t.Errorf("asked %d times", len(got))
		}
		another := w.agent(kitchen, aHome(), nil) // newest of all, to be asked too
		if got := another.got(mqttbridge.FrameQuery); len(got) != 1 {
			t.Errorf("asked %d times", len(got))
		}
		oldest.leave()
		time.Sleep(2 * time.Minute) // virtual
		w.is("anna-phone", s.ID, mqttbridge.Unknown)
		newest.leave()
		if got := another.got(mqttbridge.FrameQuery); len(got) != 0 {
			t.Errorf("asked again %d times", len(got))
		}
	})
}

// A command that is being recorded is nothing to ask for: the home would bar it
// and then refuse it.
func TestNotAskedWhileRecording(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), nil)
		var newer *fakeAgent
		w.ledger.fail(func(op, _ string) error {
			if op == "create" {
				newer = w.agent(kitchen, aHome(), nil)
			}
			return nil
		})
		w.send("anna-phone", press("anna-phone", "door"))
		synctest.Wait()
		for range len(newer.frames) {
			if f := <-newer.frames; f.Type != mqttbridge.FrameCommand {
				t.Errorf("the home got %+v", f)
			}
		}
	})
}

// The newest stream is the one that was opened last, whichever speaks first.
func TestMoveOutOfOrder(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		older := w.dial(kitchen, nil)
		synctest.Wait()
		newer := w.agent(kitchen, aHome(), nil)
		older.offer(aHome())
		w.send("anna-phone", press("anna-phone", "door"))
		if got := newer.got(mqttbridge.FrameCommand); len(got) != 1 {
			t.Errorf("the newer stream got %d commands", len(got))
		}
	})
}

// The newer session may fail while the older one still works.
func TestMoveBack(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		older := w.agent(kitchen, aHome(), obedient)
		newer := w.agent(kitchen, aHome(), nil)
		eyes := w.look("anna-phone")
		eyes.seen()
		newer.leave()
		for _, ev := range eyes.seen() {
			t.Errorf("the move back was seen as %+v", ev)
		}
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Done)
		older.leave()
		w.sendRefused("anna-phone", "kitchen", press("anna-phone", "door"), mqttbridge.CodeOffline)
	})
}

// After a long outage the home is asked in portions, the newest first.
func TestManyUnknown(t *testing.T) {
	inWorld(t, Limits{Burst: 10_000, Open: 10_000, PerHour: 10_000}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		const n = queryMax + 100
		var last string
		for range n {
			time.Sleep(time.Millisecond) // virtual
			last = w.send("anna-phone", press("anna-phone", "door")).ID
			synctest.Wait()
		}
		ag.leave()
		ag = w.agent(kitchen, aHome(), nil)
		ids := map[string]bool{}
		for _, f := range ag.got(mqttbridge.FrameQuery) {
			if len(f.IDs) > queryIDs {
				t.Errorf("%d ids in one frame", len(f.IDs))
			}
			for _, id := range f.IDs {
				ids[id] = true
			}
		}
		if len(ids) != queryMax || !ids[last] {
			t.Errorf("asked for %d of %d; the newest among them: %v", len(ids), n, ids[last])
		}
		time.Sleep(2 * time.Minute) // virtual
		if open := w.d.Status().Open; open != 0 {
			t.Errorf("%d commands have no end", open)
		}
	})
}
