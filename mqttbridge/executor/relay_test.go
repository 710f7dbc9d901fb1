package executor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

func TestStreamBeginsWithTheHome(t *testing.T) {
	bubble(t, func(w *world) {
		h := w.relay.home()
		id, err := mqttbridge.KeyID(h.Key)
		if err != nil || h.ID != id || h.Name != "kitchen" || !h.Broker || len(h.Actions) != len(w.acts) {
			t.Errorf("home %+v, %v", h, err)
		}
		for i, a := range h.Actions {
			if a.Name != w.acts[i].Name || a.Label == "" || a.Life != defaultLife.Milliseconds() || a.Ack != (w.acts[i].Ack != nil) {
				t.Errorf("action %+v", a)
			}
		}
		if lamp := w.relay.action("lamp"); !slices.Equal(lamp.Values, []string{"off", "on"}) || !slices.Equal(lamp.Who, []string{"anna-*", "bob"}) {
			t.Errorf("lamp %+v", lamp)
		}

		// Chattering state topics are told once a second at most.
		w.relay.mu.Lock()
		before := len(w.relay.homes)
		w.relay.mu.Unlock()
		for i := range 5000 {
			w.broker.say("blind/state", fmt.Sprint(i), false)
			time.Sleep(time.Millisecond) // virtual
		}
		if live := w.relay.action("blind").State; live == nil || live.Value != "4999" {
			t.Errorf("live %+v", live)
		}
		w.relay.mu.Lock()
		n := len(w.relay.homes) - before
		w.relay.mu.Unlock()
		if n < 5 || n > 7 {
			t.Errorf("%d homes in six seconds", n)
		}
	})
}

// A relay that does not read loses its stream, and holds up nobody.
func TestStalledRelay(t *testing.T) {
	bubble(t, func(w *world) {
		ours, theirs := net.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- w.e.ServeRelay(context.Background(), theirs) }()
		go func() {
			for {
				if mqttbridge.WriteFrame(ours, mqttbridge.Frame{Type: mqttbridge.FrameQuery, Seq: 1, IDs: []string{mqttbridge.NewID()}}) != nil {
					return
				}
			}
		}()
		wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")
		if err := <-ended; err == nil {
			t.Error("no error")
		}
		ours.Close()

		// Nobody who has something to tell waits for it.
		var why error
		s := &stream{out: make(chan mqttbridge.Frame, 1), cancel: func(err error) { why = err }}
		for range 2 {
			s.send(mqttbridge.Frame{})
		}
		if !errors.Is(why, errBehind) {
			t.Errorf("a full queue: %v", why)
		}

		// One that reads nothing at all, not even the home.
		ours, theirs = net.Pipe()
		began := time.Now()
		if err := w.e.ServeRelay(context.Background(), theirs); err == nil {
			t.Error("no error")
		}
		if took := time.Since(began); took != writeTimeout {
			t.Errorf("gave up after %v", took)
		}
		ours.Close()
		w.published(garage, "ON")
	})
}

// While an agent moves to another session two streams are open: the outcome is
// told on both, and the relay may ask on either.
func TestMove(t *testing.T) {
	bubble(t, func(w *world) {
		env := w.envelope("bob", "blind", w.challenge("bob", "blind"))
		w.command("bob", w.sign(w.phone("bob"), env))
		synctest.Wait()
		next := w.connect()
		defer next.close()
		if got := next.query(env.ID); got.State != mqttbridge.Delivered || got.Final {
			t.Errorf("on the new stream: %+v", got)
		}
		if err := w.relay.close(); err != nil {
			t.Errorf("a stream that the relay closed ended with %v", err)
		}
		w.broker.say("blind/state", "open", false)
		if got := next.states(env.ID); got[len(got)-1] != mqttbridge.Done {
			t.Errorf("states on the new stream: %v", got)
		}
		w.relay = w.connect()
	})
}

// What is on its way when the program ends is told before the stream ends.
func TestEndTellsTheOutcome(t *testing.T) {
	bubble(t, func(w *world) {
		env := w.envelope("bob", "blind", w.challenge("bob", "blind"))
		w.command("bob", w.sign(w.phone("bob"), env))
		synctest.Wait()
		// A second relay takes its time to read.
		ours, theirs := net.Pipe()
		go w.e.ServeRelay(context.Background(), theirs)
		mqttbridge.ReadFrame(ours) // the home
		for range 10 {
			more := w.envelope("bob", "blind", w.challenge("bob", "blind"))
			w.command("bob", w.sign(w.phone("bob"), more))
			synctest.Wait()
		}
		ended := make(chan struct{})
		go func() { w.stop(); close(ended) }()
		synctest.Wait()
		told := make(map[mqttbridge.State]int)
		for {
			f, err := mqttbridge.ReadFrame(ours)
			if err != nil {
				break
			}
			if f.Status != nil {
				told[f.Status.State]++
			}
		}
		ours.Close()
		<-ended
		if told[mqttbridge.Delivered] != 10 || told[mqttbridge.Unconfirmed] != 11 {
			t.Errorf("told %v", told)
		}
		if got := w.relay.states(env.ID); !slices.Equal(got, []mqttbridge.State{mqttbridge.Delivered, mqttbridge.Unconfirmed}) {
			t.Errorf("states %v", got)
		}
		w.restart()
		wantState(t, w.relay.query(env.ID), mqttbridge.Unconfirmed, "")
	})
}

// As many ids as may be asked for at once are answered, though the queue holds
// fewer.
func TestManyQueries(t *testing.T) {
	bubble(t, func(w *world) {
		ids := make([]string, maxIDs)
		for i := range ids {
			ids[i] = mqttbridge.NewID()
		}
		seq := w.relay.send(mqttbridge.Frame{Type: mqttbridge.FrameQuery, IDs: ids})
		synctest.Wait()
		w.relay.mu.Lock()
		n := len(w.relay.replies[seq])
		w.relay.mu.Unlock()
		if n != maxIDs {
			t.Errorf("%d answers", n)
		}
		wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")
	})
}

// A flood of rubbish and of replays leaves room in the log for what a device
// really tried.
func TestFloodHidesNothing(t *testing.T) {
	bubble(t, func(w *world) {
		s, _ := once(w)
		for range 2 * budgetBurst {
			w.relay.final(w.command("bob", s))
			w.relay.final(w.command("bob", &mqttbridge.Signed{}))
		}
		before := w.e.Status().Lines
		wantState(t, w.press("bob", "gate"), mqttbridge.Refused, mqttbridge.CodePINNeeded)
		if n := w.e.Status().Lines - before; n != 1 {
			t.Errorf("%d lines about a refused press", n)
		}
	})
}

func TestBadFrames(t *testing.T) {
	bubble(t, func(w *world) {
		w.relay.send(mqttbridge.Frame{Type: "tomorrow's"})
		w.relay.send(mqttbridge.Frame{Type: mqttbridge.FrameStatus, Status: &mqttbridge.Status{ID: "x"}})
		w.relay.send(mqttbridge.Frame{Type: mqttbridge.FrameQuery, IDs: []string{"", "short", "has spaces in it ..."}})
		for _, f := range []mqttbridge.Frame{
			{Type: mqttbridge.FrameChallenge},
			{Type: mqttbridge.FrameChallenge, Device: "bob"},
			{Type: mqttbridge.FrameChallenge, Device: "bob", Action: "cellar"},
			{Type: mqttbridge.FrameChallenge, Device: "b/ob", Action: "garage"},
			{Type: mqttbridge.FrameChallenge, Device: "carl", Action: "lamp"},
			{Type: mqttbridge.FrameKey},
			{Type: mqttbridge.FrameKey, Device: "carl", Key: []byte("x")},
			{Type: mqttbridge.FrameKey, Device: "c\narl", Key: newPhone("carl").spki},
			{Type: mqttbridge.FrameCommand},
			{Type: mqttbridge.FrameCommand, Device: "bob"},
			{Type: mqttbridge.FrameCommand, Device: "bob", Command: &mqttbridge.Signed{}},
		} {
			got := w.relay.ask(f)
			if got.Status == nil || got.Status.State != mqttbridge.Refused || got.Challenge != "" || got.Trust == mqttbridge.TrustYes || got.Trust == mqttbridge.TrustPending {
				t.Errorf("%+v: %+v", f, got)
			}
			if f.Type != got.Type && f.Type != mqttbridge.FrameCommand {
				t.Errorf("%s is answered by %s", f.Type, got.Type)
			}
		}
		wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")

		for _, bytes := range []string{"\xff\xff\xff\xff", "\x00\x00\x00\x04null", "\x00\x00\x00\x02[]"} {
			r := w.connect()
			r.conn.Write([]byte(bytes))
			if err := <-r.err; err == nil {
				t.Errorf("%q: no error", bytes)
			}
			r.conn.Close()
		}
		r := w.connect()
		r.send(mqttbridge.Frame{Type: mqttbridge.FrameQuery, IDs: make([]string, maxIDs+1)})
		if err := <-r.err; err == nil {
			t.Error("very many ids were answered")
		}
		r.conn.Close()
	})
}

func TestTooManyAtOnce(t *testing.T) {
	bubble(t, func(w *world) {
		hold := make(chan struct{})
		w.broker.decide(func(string, string) error { <-hold; return nil })
		var seqs []uint64
		for i := range maxAtOnce {
			device := []string{"bob", "anna-phone"}[i%2]
			env := w.envelope(device, "garage", w.challenge(device, "garage"))
			seqs = append(seqs, w.command(device, w.sign(w.phone(device), env)))
			synctest.Wait()
		}
		wantState(t, w.press("bob", "garage"), mqttbridge.Refused, mqttbridge.CodeBusy)
		close(hold)
		for _, seq := range seqs {
			wantState(t, w.relay.final(seq), mqttbridge.Delivered, "")
		}
		w.broker.decide(nil)
		wantState(t, w.press("bob", "garage"), mqttbridge.Delivered, "")
		// Those that wait for their ack are bounded, too, by a higher number.
		w.e.mu.Lock()
		for i := range maxOpen {
			w.e.open[fmt.Sprint(i)] = &command{}
		}
		w.e.mu.Unlock()
		wantState(t, w.press("bob", "garage"), mqttbridge.Refused, mqttbridge.CodeBusy)
		w.e.mu.Lock()
		clear(w.e.open)
		w.e.mu.Unlock()
	})
}

func TestChallengesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newChallenges()
		var first string
		for i := range 3 * maxChallenges {
			v := c.issue(fmt.Sprint("device-", i/10), "garage")
			if i == 0 {
				first = v
			}
			if len(v) > 64 {
				t.Fatalf("%q is too long", v)
			}
		}
		if len(c.all) > maxChallenges {
			t.Errorf("%d challenges", len(c.all))
		}
		if a, _ := c.take(first, "device-0", "garage", time.Minute); a != foreign {
			t.Errorf("the oldest is %d", a)
		}
		time.Sleep(keepChallenge + time.Second)
		c.issue("bob", "garage")
		if len(c.all) != 1 {
			t.Errorf("%d challenges are kept for ever", len(c.all))
		}
	})
}

func TestKeysAreBounded(t *testing.T) {
	bubble(t, func(w *world) {
		offer := func(device string) mqttbridge.Trust {
			return w.relay.ask(mqttbridge.Frame{Type: mqttbridge.FrameKey, Device: device, Key: newPhone(device).spki}).Trust
		}
		for i := range maxPending + 5 {
			got := offer(fmt.Sprint("d", i/maxDevicePending))
			if want := map[bool]mqttbridge.Trust{true: mqttbridge.TrustPending, false: mqttbridge.TrustNo}[i < maxPending]; got != want {
				t.Errorf("offer %d: %s", i, got)
			}
		}
		if got := offer("d0"); got != mqttbridge.TrustNo {
			t.Errorf("a fifth key of a device: %s", got)
		}
		if n := w.e.Status(); n.Pending != maxPending || n.Trusted != 2 {
			t.Errorf("%+v", n)
		}
		if err := w.e.Untrust("d0"); err != nil { // makes room
			t.Error(err)
		}
		if got := offer("carl"); got != mqttbridge.TrustPending {
			t.Errorf("carl: %s", got)
		}
		if err := w.e.Untrust("nobody"); !errors.Is(err, errNoKey) {
			t.Errorf("nobody: %v", err)
		}
		if err := w.e.Trust("nobody", ""); err == nil {
			t.Error("nobody is trusted")
		}
		if err := w.e.Trust("carl", "x"); err == nil {
			t.Error("a key that was not offered is trusted")
		}
		time.Sleep(keepPending + time.Hour) // virtual
		if got := offer("dora"); got != mqttbridge.TrustPending {
			t.Errorf("dora: %s", got)
		}
		keys := w.e.Keys()
		if len(keys) != 3 || !keys[0].Trusted || !keys[1].Trusted || keys[2].Device != "dora" {
			t.Errorf("keys %+v", keys)
		}
		for _, k := range keys {
			words, err := mqttbridge.TrustWords(w.e.HomeKey(), k.SPKI)
			if err != nil || k.Words != words || k.Words == "" {
				t.Errorf("words %q, want %q", k.Words, words)
			}
		}
		w.press("bob", "garage")
		for _, k := range w.e.Keys() {
			if seen := !k.Seen.IsZero(); seen != (k.Device == "bob") {
				t.Errorf("%s was seen: %v", k.Device, seen)
			}
		}
	})
}

func TestStatus(t *testing.T) {
	bubble(t, func(w *world) {
		w.press("bob", "garage")
		w.press("bob", "gate")
		w.broker.say("blind/state", "shut", true)
		s := w.e.Status()
		if s.Home != w.e.id || !s.Broker || s.Streams != 1 || s.Trusted != 2 || s.Accepted != 1 || s.Refused != 1 || s.Open != 0 || len(s.Actions) != len(w.acts) {
			t.Errorf("%+v", s)
		}
		if a := s.Actions[0]; a.Topic != garage || a.LastBy != "bob" || a.LastAt.IsZero() {
			t.Errorf("%+v", a)
		}
		if a := s.Actions[1]; a.Problem == "" {
			t.Errorf("%+v", a)
		}
		if a := s.Actions[4]; a.State != "shut" {
			t.Errorf("%+v", a)
		}
	})
}
