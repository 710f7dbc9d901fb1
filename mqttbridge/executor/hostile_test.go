package executor

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// once presses the garage honestly and returns what was sent, and how it ended.
func once(w *world) (*mqttbridge.Signed, mqttbridge.Status) {
	w.t.Helper()
	env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
	s := w.sign(w.phone("bob"), env)
	status := w.relay.final(w.command("bob", s))
	wantState(w.t, status, mqttbridge.Delivered, "")
	return s, status
}

// The very same bytes again are told what became of them, and run once.
func TestReplaySameBytes(t *testing.T) {
	bubble(t, func(w *world) {
		s, first := once(w)
		check := func(when string) {
			t.Helper()
			for range 3 {
				again := w.relay.final(w.command("bob", s))
				if again.State != first.State || again.ID != first.ID || !again.At.Equal(first.At) {
					t.Errorf("%s: %+v, want %+v", when, again, first)
				}
			}
			w.published(garage, "ON")
		}
		check("at once")
		time.Sleep(time.Hour) // virtual
		check("later")
		w.restart()
		check("after a restart")
	})
}

// A refused command is told the same again, too, and never gets a second try.
func TestReplayRefused(t *testing.T) {
	bubble(t, func(w *world) {
		w.broker.setAway(true)
		env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
		s := w.sign(w.phone("bob"), env)
		wantState(t, w.relay.final(w.command("bob", s)), mqttbridge.Refused, mqttbridge.CodeBroker)
		w.broker.setAway(false)
		wantState(t, w.relay.final(w.command("bob", s)), mqttbridge.Refused, mqttbridge.CodeBroker)
		w.e.mu.Lock()
		clear(w.e.recent) // as if thousands had been refused since
		w.e.mu.Unlock()
		wantState(t, w.relay.final(w.command("bob", s)), mqttbridge.Refused, mqttbridge.CodeChallenge)
		w.published(garage)
	})
}

func TestReplayAcrossStreamsAtOnce(t *testing.T) {
	bubble(t, func(w *world) {
		other := w.connect()
		defer other.close()
		hold := make(chan struct{})
		w.broker.decide(func(string, string) error { <-hold; return nil })
		env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
		s := w.sign(w.phone("bob"), env)
		var wg sync.WaitGroup
		for i := range 12 { // fewer than are handled at once
			r := []*relay{w.relay, other}[i%2]
			wg.Go(func() { r.send(mqttbridge.Frame{Type: mqttbridge.FrameCommand, Device: "bob", Command: s}) })
		}
		synctest.Wait()
		wg.Wait()
		close(hold)
		w.published(garage, "ON")
		for _, r := range []*relay{w.relay, other} {
			if got := r.states(env.ID); !slices.Contains(got, mqttbridge.Delivered) || slices.Contains(got, mqttbridge.Refused) {
				t.Errorf("states %v", got)
			}
		}
	})
}

// The id counts, whatever else is new.
func TestSameIDOtherBytes(t *testing.T) {
	bubble(t, func(w *world) {
		_, first := once(w)
		tryAgain := func() {
			t.Helper()
			env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
			env.ID = first.ID
			wantState(t, w.relay.final(w.command("bob", w.sign(w.phone("bob"), env))), mqttbridge.Refused, mqttbridge.CodeDuplicate)
			env = w.envelope("anna-phone", "garage", w.challenge("anna-phone", "garage"))
			env.ID = first.ID
			wantState(t, w.relay.final(w.command("anna-phone", w.sign(w.phone("anna-phone"), env))), mqttbridge.Refused, mqttbridge.CodeDuplicate)
		}
		tryAgain()
		w.restart()
		tryAgain()
		w.published(garage, "ON")
		if got := w.relay.query(first.ID); got.State != mqttbridge.Delivered {
			t.Errorf("the first one is now %+v", got)
		}
	})
}

// The seen-set alone refuses, too, were everything before it broken.
func TestSeenSetIsTheLastWall(t *testing.T) {
	bubble(t, func(w *world) {
		_, first := once(w)
		if err := w.e.seen.begin(first.ID, record{}, "", nil); err != errSeen {
			t.Errorf("begin of a known id: %v", err)
		}
	})
}

func TestChallenges(t *testing.T) {
	const life = defaultLife
	for _, test := range []struct {
		name  string
		make  func(w *world) string // the challenge
		state mqttbridge.State
		code  mqttbridge.Code
	}{
		{"used, new id", func(w *world) string {
			s, _ := once(w)
			env, _ := s.Envelope()
			return env.Challenge
		}, mqttbridge.Refused, mqttbridge.CodeChallenge},
		{"of another device", func(w *world) string { return w.challenge("anna-phone", "garage") }, mqttbridge.Refused, mqttbridge.CodeChallenge},
		{"of another action", func(w *world) string { return w.challenge("bob", "blind") }, mqttbridge.Refused, mqttbridge.CodeChallenge},
		{"made up", func(w *world) string { return strings.Repeat("A", 32) }, mqttbridge.Refused, mqttbridge.CodeChallenge},
		{"from before a restart", func(w *world) string {
			c := w.challenge("bob", "garage")
			w.restart()
			return c
		}, mqttbridge.Refused, mqttbridge.CodeChallenge},
		{"as old as it may be", func(w *world) string {
			c := w.challenge("bob", "garage")
			time.Sleep(life - minPublish) // virtual
			return c
		}, mqttbridge.Delivered, ""},
		{"too old to be published in time", func(w *world) string {
			c := w.challenge("bob", "garage")
			time.Sleep(life - minPublish + 1) // virtual
			return c
		}, mqttbridge.Expired, ""},
		{"older", func(w *world) string {
			c := w.challenge("bob", "garage")
			time.Sleep(life + 1) // virtual
			return c
		}, mqttbridge.Expired, ""},
		{"much older", func(w *world) string {
			c := w.challenge("bob", "garage")
			time.Sleep(time.Hour) // virtual
			return c
		}, mqttbridge.Expired, ""},
		{"the machine slept in between", func(w *world) string {
			c := w.challenge("bob", "garage")
			w.e.challenges.asleep = func() time.Duration { return asleep() + time.Hour }
			return c
		}, mqttbridge.Expired, ""},
		{"pushed out by sixteen newer ones", func(w *world) string {
			c := w.challenge("bob", "garage")
			for range maxDeviceChallenges {
				w.challenge("bob", "garage")
			}
			return c
		}, mqttbridge.Refused, mqttbridge.CodeChallenge},
		{"the oldest of sixteen", func(w *world) string {
			c := w.challenge("bob", "garage")
			for range maxDeviceChallenges - 1 {
				w.challenge("bob", "garage")
			}
			for range 100 {
				w.challenge("anna-phone", "garage")
			}
			return c
		}, mqttbridge.Delivered, ""},
		{"of a device that was untrusted and trusted again", func(w *world) string {
			c := w.challenge("bob", "garage")
			if err := w.e.Untrust("bob"); err != nil {
				w.t.Error(err)
			}
			w.trust("bob")
			return c
		}, mqttbridge.Refused, mqttbridge.CodeChallenge},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				env := w.envelope("bob", "garage", test.make(w))
				before := len(w.broker.at(garage))
				s := w.relay.final(w.command("bob", w.sign(w.phone("bob"), env)))
				wantState(t, s, test.state, test.code)
				ran := len(w.broker.at(garage)) - before
				if want := map[bool]int{true: 1}[test.state == mqttbridge.Delivered]; ran != want {
					t.Errorf("published %d times, want %d", ran, want)
				}
			})
		})
	}
}

// The wall clock jumps as it likes, and the relay re-dates: only the monotonic
// clock counts.
func TestDelayWhileTheWallClockJumps(t *testing.T) {
	jumps := []time.Duration{0, -100 * 365 * 24 * time.Hour, -time.Hour, -11 * time.Second, 11 * time.Second, time.Hour, 50 * 365 * 24 * time.Hour}
	for _, before := range jumps {
		for _, after := range jumps {
			t.Run(fmt.Sprint(before, " ", after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					jump := before
					w.wall = func() time.Time { return time.Now().Add(jump) }
					w.start()
					defer func() { w.end() }()
					w.trust("bob")
					for _, age := range []time.Duration{0, 9 * time.Second, defaultLife + time.Millisecond} {
						jump = before
						env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
						env.Issued, env.NotAfter = w.wall(), w.wall().Add(time.Second)
						jump = after
						time.Sleep(age) // virtual
						s := w.relay.final(w.command("bob", w.sign(w.phone("bob"), env)))
						want := mqttbridge.Delivered
						if age > defaultLife {
							want = mqttbridge.Expired
						}
						wantState(t, s, want, "")
					}
					w.published(garage, "ON", "ON")
				})
			})
		}
	}
}

// Every single byte of body, signature and key name.
func TestFlips(t *testing.T) {
	bubble(t, func(w *world) {
		env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
		honest := w.sign(w.phone("bob"), env)
		var last uint64
		flip := func(what string, text []byte, set func(s *mqttbridge.Signed, b []byte)) {
			for i := range text {
				for _, mask := range []byte{0x01, 0x20, 0x80} {
					b := slices.Clone(text)
					b[i] ^= mask
					s := *honest
					set(&s, b)
					last = w.command("bob", &s)
					got := w.relay.final(last)
					if got.State != mqttbridge.Refused || got.Code != mqttbridge.CodeSignature && got.Code != mqttbridge.CodeMalformed && got.Code != mqttbridge.CodeUntrusted {
						t.Fatalf("%s, byte %d ^ %#x: %+v", what, i, mask, got)
					}
				}
			}
		}
		flip("body", honest.Body, func(s *mqttbridge.Signed, b []byte) { s.Body = b })
		flip("signature", honest.Signature, func(s *mqttbridge.Signed, b []byte) { s.Signature = b })
		flip("key", []byte(honest.Key), func(s *mqttbridge.Signed, b []byte) { s.Key = string(b) })
		for _, n := range []int{0, 63, 65, 128} {
			s := *honest
			s.Signature = make([]byte, n)
			wantState(t, w.relay.final(w.command("bob", &s)), mqttbridge.Refused, mqttbridge.CodeMalformed)
		}
		w.published(garage)
		if lines := w.e.Status().Lines; lines > budgetBurst+10 {
			t.Errorf("%d lines in the log: a relay can fill the disk", lines)
		}
		// None of that spoiled the honest one.
		wantState(t, w.relay.final(w.command("bob", honest)), mqttbridge.Delivered, "")
		w.published(garage, "ON")
	})
}

// Whole fields exchanged, by whoever can sign: a key that is trusted for one
// device, a key that is not, none.
func TestSwaps(t *testing.T) {
	for _, test := range []struct {
		name   string
		signer string // whose key
		asks   string // the device, in the relay's words
		edit   func(w *world, env *mqttbridge.Envelope)
		tamper func(w *world, s *mqttbridge.Signed)
		code   mqttbridge.Code
	}{
		{name: "another device in the relay's words", signer: "bob", asks: "anna-phone", code: mqttbridge.CodeUntrusted},
		{name: "another device in the envelope", signer: "bob", asks: "bob", edit: func(w *world, env *mqttbridge.Envelope) {
			env.Device, env.Challenge = "anna-phone", w.challenge("anna-phone", "garage")
		}, code: mqttbridge.CodeUntrusted},
		{name: "another device in both", signer: "bob", asks: "anna-phone", edit: func(w *world, env *mqttbridge.Envelope) {
			env.Device, env.Challenge = "anna-phone", w.challenge("anna-phone", "garage")
		}, code: mqttbridge.CodeUntrusted},
		{name: "no device in the relay's words", signer: "bob", asks: "", code: mqttbridge.CodeMalformed},
		{name: "another home", signer: "bob", asks: "bob", edit: func(_ *world, env *mqttbridge.Envelope) {
			env.Home, _ = mqttbridge.KeyID(newPhone("x").spki)
		}, code: mqttbridge.CodeMalformed},
		{name: "another action under the same signature", signer: "bob", asks: "bob", tamper: func(_ *world, s *mqttbridge.Signed) {
			s.Body = []byte(strings.Replace(string(s.Body), `"garage"`, `"buzzer"`, 1))
		}, code: mqttbridge.CodeSignature},
		{name: "an action that is not there", signer: "bob", asks: "bob", edit: func(_ *world, env *mqttbridge.Envelope) { env.Action = "cellar" }, code: mqttbridge.CodeNoAction},
		{name: "a key that nobody trusts", signer: "eve", asks: "eve", edit: func(w *world, env *mqttbridge.Envelope) {
			env.Device, env.Challenge = "eve", w.challenge("eve", "garage")
		}, code: mqttbridge.CodeUntrusted},
		{name: "a key that nobody trusts, for a trusted device", signer: "eve", asks: "bob", code: mqttbridge.CodeUntrusted},
		{name: "the name of a trusted key on another's signature", signer: "eve", asks: "bob", tamper: func(w *world, s *mqttbridge.Signed) {
			s.Key, _ = mqttbridge.KeyID(w.phone("bob").spki)
		}, code: mqttbridge.CodeSignature},
		{name: "no command", signer: "bob", asks: "bob", tamper: func(_ *world, s *mqttbridge.Signed) { *s = mqttbridge.Signed{} }, code: mqttbridge.CodeMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
				if test.edit != nil {
					test.edit(w, &env)
				}
				s := w.sign(w.phone(test.signer), env)
				if test.tamper != nil {
					test.tamper(w, s)
				}
				wantState(t, w.relay.final(w.command(test.asks, s)), mqttbridge.Refused, test.code)
				w.published(garage)
				w.published("buzzer/set")
			})
		})
	}
}

func TestKeySubstitution(t *testing.T) {
	bubble(t, func(w *world) {
		eve := newPhone("bob") // the relay's own key under bob's name
		offer := func(device string, spki []byte) mqttbridge.Trust {
			return w.relay.ask(mqttbridge.Frame{Type: mqttbridge.FrameKey, Device: device, Key: spki}).Trust
		}
		if got := offer("bob", eve.spki); got != mqttbridge.TrustNo {
			t.Errorf("another key for a trusted device: %s", got)
		}
		if got := offer("bob", w.phone("bob").spki); got != mqttbridge.TrustYes {
			t.Errorf("bob's own key: %s", got)
		}
		if got := offer("mallory", w.phone("bob").spki); got != mqttbridge.TrustNo {
			t.Errorf("bob's key under another name: %s", got)
		}
		env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
		wantState(t, w.relay.final(w.command("bob", w.sign(eve, env))), mqttbridge.Refused, mqttbridge.CodeUntrusted)
		w.published(garage)

		// Before trust: both keys wait, and the owner has to say which.
		carl := w.phone("carl")
		if offer("carl", eve.spki) != mqttbridge.TrustPending || offer("carl", carl.spki) != mqttbridge.TrustPending {
			t.Error("keys do not wait")
		}
		if err := w.e.Trust("carl", ""); err == nil || !strings.Contains(err.Error(), "2 keys wait") {
			t.Errorf("trust without a word which: %v", err)
		}
		id, _ := mqttbridge.KeyID(carl.spki)
		if err := w.e.Trust("carl", id); err != nil {
			t.Fatal(err)
		}
		wantState(t, w.press("carl", "garage"), mqttbridge.Delivered, "")
		env = w.envelope("carl", "garage", w.challenge("carl", "garage"))
		wantState(t, w.relay.final(w.command("carl", w.sign(eve, env))), mqttbridge.Refused, mqttbridge.CodeUntrusted)

		// Untrusted at home: from now on nothing runs.
		if err := w.e.Untrust("carl"); err != nil {
			t.Fatal(err)
		}
		env = w.envelope("carl", "garage", w.challenge("carl", "garage"))
		wantState(t, w.relay.final(w.command("carl", w.sign(carl, env))), mqttbridge.Refused, mqttbridge.CodeUntrusted)
		w.restart()
		env = w.envelope("carl", "garage", w.challenge("carl", "garage"))
		wantState(t, w.relay.final(w.command("carl", w.sign(carl, env))), mqttbridge.Refused, mqttbridge.CodeUntrusted)
		w.published(garage, "ON")
	})
}

// What was true when the command came may be no longer when the disk is ready.
func TestLastLook(t *testing.T) {
	for _, test := range []struct {
		name  string
		then  func(w *world) // while the disk takes its time
		state mqttbridge.State
		code  mqttbridge.Code
	}{
		{"nothing happens", func(*world) {}, mqttbridge.Delivered, ""},
		{"a disk that takes too long", func(*world) { time.Sleep(11 * time.Second) /* virtual */ }, mqttbridge.Expired, ""},
		{"the machine sleeps", func(w *world) { w.e.challenges.asleep = func() time.Duration { return asleep() + time.Minute } }, mqttbridge.Expired, ""},
		{"the key is removed", func(w *world) {
			if err := w.e.Untrust("bob"); err != nil {
				w.t.Error(err)
			}
		}, mqttbridge.Refused, mqttbridge.CodeRevoked},
		{"the relay revokes the device", func(w *world) {
			w.relay.send(mqttbridge.Frame{Type: mqttbridge.FrameRevoked, Device: "bob", IDs: []string{mqttbridge.NewID()}})
			time.Sleep(time.Millisecond) // virtual
		}, mqttbridge.Refused, mqttbridge.CodeRevoked},
		{"the action is changed", func(w *world) {
			acts := slices.Clone(w.acts)
			acts[0].Payload = "OFF"
			if err := w.e.SetActions(acts); err != nil {
				w.t.Error(err)
			}
		}, mqttbridge.Refused, mqttbridge.CodeNoAction},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				real := w.e.seen.update
				happened := false
				w.e.seen.update = func(f func(tx) error) error {
					if !happened {
						happened = true
						test.then(w)
					}
					return real(f)
				}
				s := w.press("bob", "garage")
				wantState(t, s, test.state, test.code)
				if test.state == mqttbridge.Delivered {
					w.published(garage, "ON")
				} else {
					w.published(garage)
				}
				w.restart()
				if got := w.relay.query(s.ID); got.State != s.State || got.Code != s.Code {
					t.Errorf("after a restart %+v, before %+v", got, s)
				}
			})
		})
	}
}

// A query bars an id that is not here yet.
func TestQueryBars(t *testing.T) {
	bubble(t, func(w *world) {
		env := w.envelope("bob", "garage", w.challenge("bob", "garage"))
		wantState(t, w.relay.query(env.ID), mqttbridge.Expired, "")
		wantState(t, w.relay.final(w.command("bob", w.sign(w.phone("bob"), env))), mqttbridge.Expired, "")
		w.published(garage)
		time.Sleep(keepBarred + 2*time.Second) // virtual
		w.e.mu.Lock()
		n := len(w.e.barred)
		w.e.mu.Unlock()
		if n != 0 {
			t.Errorf("%d ids stay barred", n)
		}
		wantState(t, w.relay.final(w.command("bob", w.sign(w.phone("bob"), env))), mqttbridge.Expired, "")

		// Very many questions: memory is bounded, and nothing barred runs.
		env = w.envelope("bob", "garage", w.challenge("bob", "garage"))
		wantState(t, w.relay.query(env.ID), mqttbridge.Expired, "")
		for range maxBarred/500 + 1 {
			var ids []string
			for range 501 {
				ids = append(ids, mqttbridge.NewID())
			}
			w.relay.send(mqttbridge.Frame{Type: mqttbridge.FrameQuery, IDs: ids})
			synctest.Wait()
		}
		w.e.mu.Lock()
		n = len(w.e.barred)
		w.e.mu.Unlock()
		if n > maxBarred {
			t.Errorf("%d ids are barred", n)
		}
		wantState(t, w.relay.final(w.command("bob", w.sign(w.phone("bob"), env))), mqttbridge.Refused, mqttbridge.CodeChallenge)
		w.published(garage)
	})
}
