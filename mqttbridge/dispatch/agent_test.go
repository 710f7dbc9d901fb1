package dispatch

import (
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A home speaks about commands that were sent to it, and about no others.
func TestHomesDoNotSpeakForOthers(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), nil)
		liar := w.agent(Agent{ID: "key-of-attic", Name: "attic"}, aHome(), nil)
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		liar.status(mqttbridge.Status{ID: s.ID, Home: "kitchen", Device: "anna-phone", State: mqttbridge.Done})
		liar.status(mqttbridge.Status{ID: mqttbridge.NewID(), Home: "attic", Device: "anna-phone", State: mqttbridge.Done})
		liar.status(mqttbridge.Status{ID: "../homes/kitchen", State: mqttbridge.Done})
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		// Another agent under the same name is another home.
		same := w.agent(Agent{ID: "key-of-attic", Name: "kitchen"}, aHome(), nil)
		same.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Done})
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		if got := same.got(mqttbridge.FrameQuery); len(got) != 0 {
			t.Errorf("another agent was told ids: %+v", got)
		}
		time.Sleep(2 * time.Minute) // virtual
		w.is("anna-phone", s.ID, mqttbridge.Unknown)
		same.leave()
		same = w.agent(Agent{ID: "key-of-attic", Name: "kitchen"}, aHome(), nil)
		if got := same.got(mqttbridge.FrameQuery); len(got) != 0 {
			t.Errorf("another agent was told ids: %+v", got)
		}
		same.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Done})
		w.is("anna-phone", s.ID, mqttbridge.Unknown)
		if n := strings.Count(w.log.String(), "ignoring an agent's word"); n != 3 {
			t.Errorf("said %d times, want once a stream:\n%s", n, w.log.String())
		}
	})
}

// Before it is sent there is nothing to say about a command.
func TestNoWordBeforeSent(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		older := w.agent(kitchen, aHome(), nil)
		w.agent(kitchen, aHome(), nil)
		signed := press("anna-phone", "door")
		w.ledger.fail(func(op, _ string) error {
			if op == "create" { // the command is known, and on no stream
				older.status(mqttbridge.Status{ID: idOf(signed), State: mqttbridge.Done})
			}
			return nil
		})
		w.send("anna-phone", signed)
		w.is("anna-phone", idOf(signed), mqttbridge.Sent)
	})
}

func TestContradictions(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		for _, state := range []mqttbridge.State{mqttbridge.Accepted, mqttbridge.Sent, "", "open", "DONE"} {
			ag.status(mqttbridge.Status{ID: s.ID, State: state, Final: true})
			w.is("anna-phone", s.ID, mqttbridge.Sent)
		}
		// The answer to another command frame is not this one's.
		ag.say(mqttbridge.Frame{Type: mqttbridge.FrameStatus, Seq: 4711, Status: &mqttbridge.Status{ID: s.ID, State: mqttbridge.Refused}})
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		ag.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Delivered})
		for _, state := range []mqttbridge.State{mqttbridge.Refused, mqttbridge.Expired} {
			ag.status(mqttbridge.Status{ID: s.ID, State: state})
			w.is("anna-phone", s.ID, mqttbridge.Delivered)
		}
	})
}

// What a home says of a command is the state and why; the rest is the relay's.
func TestStatusIsCleaned(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		ag.status(mqttbridge.Status{
			ID: s.ID, Home: "bank", Action: "vault", Device: "ben-phone", State: mqttbridge.Refused, Code: "root", Created: time.Now().Add(-time.Hour),
			Reason: "no\x1b[31m \u202eevil " + strings.Repeat("ä", 1000), AttemptsLeft: 7, Until: time.Now().Add(time.Hour), At: time.Now().Add(time.Hour),
		})
		got := w.is("anna-phone", s.ID, mqttbridge.Refused)
		if got.Home != "kitchen" || got.Action != "door" || got.Device != "anna-phone" || !got.Created.Equal(s.Created) || got.At.After(time.Now()) || !got.Final {
			t.Errorf("the home changed what is not its own: %+v", got)
		}
		if got.Code != mqttbridge.CodeInternal || got.AttemptsLeft != 0 || !got.Until.IsZero() || len(got.Reason) > maxReason || strings.ContainsAny(got.Reason, "\x1b\u202e") {
			t.Errorf("not cleaned: %+v", got)
		}
		s = w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		until := time.Now().Add(15 * time.Minute)
		ag.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Refused, Code: mqttbridge.CodeLocked, Until: until})
		if got := w.is("anna-phone", s.ID, mqttbridge.Refused); !got.Until.Equal(until) || got.Code != mqttbridge.CodeLocked {
			t.Errorf("locked: %+v", got)
		}
		s = w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		ag.status(mqttbridge.Status{ID: s.ID, State: mqttbridge.Refused, Code: mqttbridge.CodePINWrong, AttemptsLeft: 3})
		if got := w.is("anna-phone", s.ID, mqttbridge.Refused); got.AttemptsLeft != 3 {
			t.Errorf("wrong PIN: %+v", got)
		}
	})
}

// What is not in order ends the stream with the reason, and shows nothing.
func TestBadOffers(t *testing.T) {
	door := aHome().Actions[0]
	change := func(f func(a *mqttbridge.Action)) mqttbridge.Home {
		a := door
		f(&a)
		return mqttbridge.Home{ID: homeKey1().id, Key: homeKey1().spki, Actions: []mqttbridge.Action{a}}
	}
	many := make([]mqttbridge.Action, maxActions+1)
	for i := range many {
		many[i] = door
		many[i].Name = fmt.Sprint("door-", i)
	}
	patterns := make([]string, maxPatterns+1)
	for i := range patterns {
		patterns[i] = "anna-*"
	}
	for name, h := range map[string]mqttbridge.Home{
		"no key":        {ID: homeKey1().id},
		"broken key":    {ID: homeKey1().id, Key: []byte("key")},
		"another's ID":  {ID: strings.Repeat("a", 52), Key: homeKey1().spki},
		"many actions":  {ID: homeKey1().id, Key: homeKey1().spki, Actions: many},
		"two of a name": aHome(door),
		"no name":       change(func(a *mqttbridge.Action) { a.Name = "" }),
		"odd name":      change(func(a *mqttbridge.Action) { a.Name = "../door" }),
		"long name":     change(func(a *mqttbridge.Action) { a.Name = strings.Repeat("a", 65) }),
		"confirm":       change(func(a *mqttbridge.Action) { a.Confirm = "maybe" }),
		"many values":   change(func(a *mqttbridge.Action) { a.Values = make([]string, 65) }),
		"empty value":   change(func(a *mqttbridge.Action) { a.Values = []string{""} }),
		"long value":    change(func(a *mqttbridge.Action) { a.Values = []string{strings.Repeat("a", 257)} }),
		"odd value":     change(func(a *mqttbridge.Action) { a.Values = []string{"a\nb"} }),
		"odd pattern":   change(func(a *mqttbridge.Action) { a.Who = []string{"a\x00"} }),
		"empty pattern": change(func(a *mqttbridge.Action) { a.Who = []string{""} }),
		"many patterns": change(func(a *mqttbridge.Action) { a.Who = patterns }),
	} {
		inWorld(t, Limits{}, func(t *testing.T, w *world) {
			ag := w.dial(kitchen, nil)
			ag.say(mqttbridge.Frame{Type: mqttbridge.FrameHome, Home: &h})
			if err := <-ag.served; err == nil || !strings.Contains(err.Error(), `"kitchen"`) {
				t.Errorf("%s: ServeAgent = %v", name, err)
			}
			if got := w.d.Homes("anna-phone"); len(got) != 0 {
				t.Errorf("%s: shown as %+v", name, got)
			}
		})
	}
}

// Texts are for people: clipped and cleaned, never a reason to refuse a home.
func TestOfferIsCleaned(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.dial(Agent{ID: "x", Name: "Mom's küche 🏠/../%2e"}, nil)
		h := aHome(mqttbridge.Action{
			Name: "lamp", Label: "La\x00mp\u202e " + strings.Repeat("😀", 100), Icon: strings.Repeat("x", 100), Confirm: mqttbridge.ConfirmNone, Life: 1 << 60,
			Hours: "06:00\n22:00", Problem: "\x00\x01", State: &mqttbridge.Live{Value: "on\r\n" + strings.Repeat("n", 100)},
			Last: &mqttbridge.Last{By: strings.Repeat("b", 100), State: "stolen"},
		})
		h.Name, h.Online, h.Since, h.Alert = "bank", false, time.Now().Add(time.Hour), strings.Repeat("!", 1000)
		ag.offer(h)
		homes := w.d.Homes("anna-phone")
		if len(homes) != 1 {
			t.Fatalf("homes: %+v", homes)
		}
		got := homes[0]
		if got.Name != "Mom's küche 🏠/../%2e" || !got.Online || got.Since.After(time.Now()) || len(got.Alert) != maxProblem {
			t.Errorf("the home decided what is the relay's: %+v", got)
		}
		a := got.Actions[1]
		if len(a.Label) > maxLabel || strings.ContainsAny(a.Label, "\x00\u202e") || !strings.HasSuffix(a.Label, "😀") || len(a.Icon) > maxIcon ||
			a.Life != 60_000 || strings.Contains(a.Hours, "\n") || a.Problem != "" || len(a.State.Value) > maxLive || a.Last != nil {
			t.Errorf("not cleaned: %+v", a)
		}
		// Odd names make keys that a ledger takes, and come back.
		w.restart(Limits{})
		if homes := w.d.Homes("anna-phone"); len(homes) != 1 || homes[0].Name != got.Name {
			t.Errorf("after a restart: %+v", homes)
		}
	})
}

func TestBadNames(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		for _, a := range []Agent{{}, {ID: "x"}, {Name: "x"}, {ID: "x", Name: "a\nb"}, {ID: "x", Name: "\xff"}, {ID: "x", Name: strings.Repeat("x", 65)}} {
			began := time.Now()
			if err := <-w.dial(a, nil).served; err == nil || time.Since(began) != 0 {
				t.Errorf("%+v is served, for %v", a, time.Since(began))
			}
		}
	})
}

// Streams that do not speak as they should are closed, each in its time.
func TestBadStreams(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		silent := w.dial(kitchen, nil)
		began := time.Now()
		if err := <-silent.served; err == nil || time.Since(began) != firstFrame {
			t.Errorf("a silent stream ended after %v with %v", time.Since(began), err)
		}
		early := w.dial(kitchen, nil)
		early.say(mqttbridge.Frame{Type: mqttbridge.FrameStatus, Status: &mqttbridge.Status{ID: mqttbridge.NewID(), State: mqttbridge.Done}})
		if err := <-early.served; err == nil {
			t.Error("a status as first frame is taken")
		}
		for name, f := range map[string]mqttbridge.Frame{"home": {Type: mqttbridge.FrameHome}, "status": {Type: mqttbridge.FrameStatus}} {
			ag := w.agent(kitchen, aHome(), nil)
			ag.say(f)
			if err := <-ag.served; err == nil {
				t.Errorf("an empty %s frame is taken", name)
			}
		}
		huge := w.agent(kitchen, aHome(), nil)
		huge.conn.Write(binary.BigEndian.AppendUint32(nil, 1<<30))
		if err := <-huge.served; err == nil {
			t.Error("a frame of 1 GiB is waited for")
		}
		slow := w.agent(kitchen, aHome(), nil)
		slow.conn.Write([]byte{0})
		began = time.Now()
		if err := <-slow.served; err == nil || time.Since(began) != frameTime {
			t.Errorf("half a frame was waited for %v, then %v", time.Since(began), err)
		}
		if homes := w.d.Homes("anna-phone"); homes[0].Online {
			t.Error("the home is shown as here")
		}
		patient := w.agent(kitchen, aHome(), obedient)
		time.Sleep(3 * time.Hour) // virtual: between frames a home may be silent
		patient.say(mqttbridge.Frame{Type: "weather", Device: "newer than this relay"})
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Done)
	})
}

// A home that does not read gets nothing more after ten seconds; what did not
// leave for it is refused, what may have left ends as unknown.
func TestHomeThatDoesNotRead(t *testing.T) {
	inWorld(t, Limits{Burst: 1000, Open: 1000}, func(t *testing.T, w *world) {
		theirs, ours := net.Pipe()
		served := make(chan error, 1)
		w.wg.Go(func() { served <- w.d.ServeAgent(w.ctx, ours, kitchen) })
		h := aHome()
		h.Actions[0].Life = 60_000 // longer than a write may take
		if err := mqttbridge.WriteFrame(theirs, mqttbridge.Frame{Type: mqttbridge.FrameHome, Home: &h}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		first := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", first.ID, mqttbridge.Sent)
		var waiting []mqttbridge.Status
		for range queueLength {
			waiting = append(waiting, w.send("anna-phone", press("anna-phone", "door")))
		}
		// Another stream of the same home says that one ran which still waits.
		older := w.dial(kitchen, nil)
		w.d.mu.Lock()
		for st := range w.d.live {
			st.number = 1000 - st.number // so that the mute one stays the newest
		}
		w.d.mu.Unlock()
		older.offer(h)
		older.status(mqttbridge.Status{ID: waiting[0].ID, State: mqttbridge.Done})
		w.is("anna-phone", waiting[0].ID, mqttbridge.Accepted)
		older.leave()
		full := w.send("anna-phone", press("anna-phone", "door"))
		if full.State != mqttbridge.Refused || full.Code != mqttbridge.CodeBusy {
			t.Errorf("with a full queue: %+v", full)
		}
		began := time.Now()
		if err := <-served; err == nil || time.Since(began) != writeTime {
			t.Errorf("ServeAgent returned after %v with %v", time.Since(began), err)
		}
		for _, s := range waiting {
			if s := w.is("anna-phone", s.ID, mqttbridge.Refused); s.Code != mqttbridge.CodeOffline {
				t.Fatalf("%+v", s)
			}
		}
		w.is("anna-phone", first.ID, mqttbridge.Sent)
		time.Sleep(3 * time.Minute) // virtual
		w.is("anna-phone", first.ID, mqttbridge.Unknown)
	})
}

// A home that reads slowly gets no command that can only be too late.
func TestHomeThatReadsSlowly(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		theirs, ours := net.Pipe()
		w.wg.Go(func() { w.d.ServeAgent(w.ctx, ours, kitchen) })
		h := aHome()
		if err := mqttbridge.WriteFrame(theirs, mqttbridge.Frame{Type: mqttbridge.FrameHome, Home: &h}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		var list []mqttbridge.Status
		for range 3 {
			list = append(list, w.send("anna-phone", press("anna-phone", "door")))
			synctest.Wait()
		}
		read := func(want string) {
			if f, err := mqttbridge.ReadFrame(theirs); err != nil || idOf(*f.Command) != want {
				t.Errorf("the home got %+v, %v", f, err)
			}
		}
		time.Sleep(9 * time.Second) // virtual
		read(list[0].ID)
		time.Sleep(3 * time.Second) // virtual
		if s := w.is("anna-phone", list[2].ID, mqttbridge.Expired); !s.Final || s.Reason == "" {
			t.Errorf("%+v", s)
		}
		read(list[1].ID)
		synctest.Wait()
		w.is("anna-phone", list[1].ID, mqttbridge.Sent)
		next := w.send("anna-phone", press("anna-phone", "door"))
		read(next.ID)
		theirs.Close()
	})
}

// The same when nobody sweeps.
func TestLateIsNotHandedOver(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		created := time.Now()
		time.Sleep(10 * time.Second) // virtual
		c := &command{
			status: mqttbridge.Status{ID: mqttbridge.NewID(), Home: "kitchen", State: mqttbridge.Accepted, Created: created},
			signed: &mqttbridge.Signed{}, life: 10 * time.Second,
		}
		if w.d.handOver(c, 1) != nil || c.status.State != mqttbridge.Expired {
			t.Errorf("handed over as %q", c.status.State)
		}
	})
}

// A stream that was ended while its agent spoke brings no home back.
func TestEndedStreamOffersNothing(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		theirs, ours := net.Pipe()
		defer theirs.Close()
		st := newStream(ours, kitchen)
		w.d.join(st)
		st.end(errRemoved)
		offer, err := cleanHome(aHome())
		if err != nil {
			t.Fatal(err)
		}
		w.d.offer(st, offer)
		if homes := w.d.Homes("anna-phone"); len(homes) != 0 {
			t.Errorf("homes: %+v", homes)
		}
		w.d.leave(st)
	})
}

// A flood from one home is read slowly and delays no other.
func TestFloodingHome(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), obedient)
		flood := w.agent(Agent{ID: "x", Name: "attic"}, aHome(), nil)
		began := time.Now()
		w.wg.Go(func() {
			for range 12_000 {
				if mqttbridge.WriteFrame(flood.conn, mqttbridge.Frame{Type: mqttbridge.FrameStatus, Status: &mqttbridge.Status{ID: mqttbridge.NewID(), State: mqttbridge.Done}}) != nil {
					return
				}
			}
			if took := time.Since(began); took < 3900*time.Millisecond {
				t.Errorf("12000 frames were read in %v", took)
			}
		})
		time.Sleep(time.Second) // virtual
		pressed := time.Now()
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Done)
		if took := time.Since(pressed); took != 0 {
			t.Errorf("another home took %v", took)
		}
		time.Sleep(time.Minute) // virtual
	})
}

// Changes of a home cost the relay more than words about commands: each is told
// to every page.
func TestRestlessHome(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		began := time.Now()
		for i := range 200 {
			h := aHome()
			h.Broker = i%2 == 0
			ag.offer(h)
		}
		if took := time.Since(began); took < 7*time.Second {
			t.Errorf("200 changes were read in %v", took)
		}
	})
}

// One agent does not hold any number of streams; the oldest ends.
func TestTooManyStreams(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		first := w.agent(kitchen, aHome(), nil)
		for range streamsMax {
			w.dial(kitchen, nil)
			synctest.Wait()
		}
		select {
		case err := <-first.served:
			if err == nil {
				t.Error("ended without a reason")
			}
		default:
			t.Error("one agent holds more streams than allowed")
		}
	})
}

// Answers that nobody asked for, of the wrong kind, twice, or broken.
func TestAnswers(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		var reply func(f mqttbridge.Frame) []mqttbridge.Frame
		ag := w.agent(kitchen, aHome(), func(f mqttbridge.Frame) []mqttbridge.Frame { return reply(f) })
		good := func(f mqttbridge.Frame) mqttbridge.Frame { return obedient(f)[0] }
		ag.say(mqttbridge.Frame{Type: mqttbridge.FrameChallenge, Seq: 99, Challenge: "x", LifeMS: 1000})
		reply = func(f mqttbridge.Frame) []mqttbridge.Frame {
			wrong := good(f)
			wrong.Type = mqttbridge.FrameKey
			other := good(f)
			other.Seq += 1000
			other.Challenge = "another"
			return []mqttbridge.Frame{wrong, other, good(f), good(f)}
		}
		if ch, err := w.d.Challenge(t.Context(), "anna-phone", "kitchen", "door"); err != nil || ch.Value != "challenge-1" {
			t.Errorf("Challenge = %+v, %v", ch, err)
		}
		for _, broken := range []mqttbridge.Frame{
			{LifeMS: 1000},
			{Challenge: "x"},
			{Challenge: "x", LifeMS: -1},
			{Challenge: "x", LifeMS: 1 << 62},
			{Challenge: "x y", LifeMS: 1000},
			{Challenge: strings.Repeat("x", 65), LifeMS: 1000},
		} {
			reply = func(f mqttbridge.Frame) []mqttbridge.Frame {
				broken.Type, broken.Seq = f.Type, f.Seq
				return []mqttbridge.Frame{broken}
			}
			_, err := w.d.Challenge(t.Context(), "anna-phone", "kitchen", "door")
			w.isRefusal(err, mqttbridge.CodeInternal)
		}
		_, err := w.d.OfferKey(t.Context(), "anna-phone", "kitchen", deviceKey().spki)
		w.isRefusal(err, mqttbridge.CodeInternal)
		reply = func(f mqttbridge.Frame) []mqttbridge.Frame {
			return []mqttbridge.Frame{{Type: f.Type, Seq: f.Seq, Status: &mqttbridge.Status{State: mqttbridge.Refused, Code: mqttbridge.CodeBusy, Reason: "too many\x00"}}}
		}
		_, err = w.d.Challenge(t.Context(), "anna-phone", "kitchen", "door")
		w.isRefusal(err, mqttbridge.CodeBusy)
		if strings.Contains(err.Error(), "\x00") {
			t.Errorf("not cleaned: %q", err)
		}
		reply = func(f mqttbridge.Frame) []mqttbridge.Frame {
			return []mqttbridge.Frame{{Type: f.Type, Seq: f.Seq, Status: &mqttbridge.Status{State: mqttbridge.Refused, Code: "root", Reason: "no"}}}
		}
		_, err = w.d.Challenge(t.Context(), "anna-phone", "kitchen", "door")
		w.isRefusal(err, mqttbridge.CodeInternal)
		reply = func(mqttbridge.Frame) []mqttbridge.Frame { return nil }
		began := time.Now()
		_, err = w.d.Challenge(t.Context(), "anna-phone", "kitchen", "door")
		w.isRefusal(err, mqttbridge.CodeOffline)
		if took := time.Since(began); took != answerTime {
			t.Errorf("an answer was waited for %v", took)
		}
		w.wg.Go(func() {
			time.Sleep(time.Second) // virtual
			ag.leave()
		})
		began = time.Now()
		_, err = w.d.Challenge(t.Context(), "anna-phone", "kitchen", "door")
		w.isRefusal(err, mqttbridge.CodeOffline)
		if took := time.Since(began); took != time.Second {
			t.Errorf("a home that went was waited for %v", took)
		}
	})
}

func TestForgetAgent(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		mute := w.dial(kitchen, nil)
		eyes := w.look("anna-phone")
		s := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", s.ID, mqttbridge.Sent)
		eyes.seen()
		time.Sleep(homeEvery + time.Second) // virtual
		w.d.ForgetAgent(kitchen.ID)
		for _, stream := range []*fakeAgent{ag, mute} {
			if err := <-stream.served; err == nil {
				t.Error("the stream ended without a reason")
			}
		}
		evs := eyes.seen()
		gone := false
		for _, ev := range evs {
			gone = gone || ev.HomeGone == "kitchen"
		}
		if !gone || len(w.d.Homes("anna-phone")) != 0 {
			t.Errorf("the home is still shown: %+v", evs)
		}
		w.is("anna-phone", s.ID, mqttbridge.Unknown)
		w.sendRefused("anna-phone", "kitchen", press("anna-phone", "door"), mqttbridge.CodeNoAction)
		time.Sleep(time.Minute) // virtual
		w.restart(Limits{})
		if homes := w.d.Homes("anna-phone"); len(homes) != 0 {
			t.Errorf("after a restart the home is back: %+v", homes)
		}
	})
}

// A home that is removed while a command for it is being recorded.
func TestForgottenWhileRecording(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), obedient)
		w.ledger.fail(func(op, _ string) error {
			if op == "create" {
				w.d.ForgetAgent(kitchen.ID)
			}
			return nil
		})
		s := w.send("anna-phone", press("anna-phone", "door"))
		if s.State != mqttbridge.Refused || s.Code != mqttbridge.CodeOffline {
			t.Errorf("%+v", s)
		}
		if n := strings.Count(w.audits.String(), "command.finished"); n != 1 {
			t.Errorf("it ended %d times", n)
		}
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 0 {
			t.Errorf("the removed home got %+v", got)
		}
	})
}

// What waits when a stream ends is not marked as sent.
func TestEndedStreamSendsNothing(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		for range 50 { // a select between two that are ready takes either
			theirs, ours := net.Pipe()
			defer theirs.Close()
			st := newStream(ours, kitchen)
			c := &command{status: mqttbridge.Status{ID: mqttbridge.NewID(), Home: "kitchen", Device: "anna-phone", State: mqttbridge.Accepted}, signed: &mqttbridge.Signed{}}
			st.queue(outgoing{command: c})
			st.end(nil)
			w.d.writeAll(st)
			if c.status.State != mqttbridge.Accepted {
				t.Fatalf("it is %q", c.status.State)
			}
		}
	})
}

// A home that comes with another key was set up anew, or is an impostor: the
// owner finds it in the audit log.
func TestKeyChangeIsAudited(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), nil).leave()
		other := newKey()
		h := aHome()
		h.ID, h.Key = other.id, other.spki
		w.agent(kitchen, h, nil)
		if !strings.Contains(w.audits.String(), "home.key-changed") {
			t.Errorf("the audit log says only:\n%s", w.audits.String())
		}
		// What was signed for the old one does not go to the new one.
		w.sendRefused("anna-phone", "kitchen", press("anna-phone", "door"), mqttbridge.CodeMalformed)
	})
}
