package dispatch

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// forAnna is an action that only some devices may use.
func forAnna(name string) mqttbridge.Action {
	return mqttbridge.Action{Name: name, Label: name, Confirm: mqttbridge.ConfirmPIN, Who: []string{"anna-*", "[broken"}}
}

func TestWho(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(forAnna("safe")), obedient)
		hidden := aHome()
		hidden.Actions = []mqttbridge.Action{forAnna("safe")}
		w.agent(Agent{ID: "key-of-attic", Name: "attic"}, hidden, obedient)
		empty := aHome()
		empty.Actions = nil
		w.agent(Agent{ID: "key-of-shed", Name: "shed"}, empty, obedient)

		names := func(device string) (list []string) {
			for _, h := range w.d.Homes(device) {
				for _, a := range h.Actions {
					list = append(list, h.Name+"/"+a.Name)
					if a.Who != nil {
						t.Errorf("%s is told who else may use %s", device, a.Name)
					}
				}
			}
			return list
		}
		if got, want := fmt.Sprint(names("anna-phone")), "[attic/safe kitchen/door kitchen/safe]"; got != want {
			t.Errorf("anna sees %v, want %v", got, want)
		}
		if got, want := fmt.Sprint(names("ben-phone")), "[kitchen/door]"; got != want {
			t.Errorf("ben sees %v, want %v", got, want)
		}
		for _, ev := range w.look("ben-phone").seen() {
			if ev.Home == nil || ev.Home.Name != "kitchen" || len(ev.Home.Actions) != 1 {
				t.Errorf("ben is told of %+v", ev)
			}
		}
		w.sendRefused("ben-phone", "kitchen", press("ben-phone", "safe"), mqttbridge.CodeNoAction)
		w.sendRefused("ben-phone", "attic", press("ben-phone", "safe"), mqttbridge.CodeNoAction)
		_, err := w.d.Challenge(t.Context(), "ben-phone", "kitchen", "safe")
		w.isRefusal(err, mqttbridge.CodeNoAction)
		_, err = w.d.Challenge(t.Context(), "anna-phone", "kitchen", "")
		w.isRefusal(err, mqttbridge.CodeNoAction)
		_, err = w.d.OfferKey(t.Context(), "ben-phone", "attic", deviceKey().spki)
		w.isRefusal(err, mqttbridge.CodeNoAction)
		s := w.send("anna-phone", press("anna-phone", "safe"))
		w.is("anna-phone", s.ID, mqttbridge.Done)
	})
}

// Rights that change are seen at once, and a home that offers nothing any more
// goes.
func TestWhoChanges(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		ben := w.look("ben-phone")
		ben.seen()
		limited := aHome()
		limited.Actions[0].Who = []string{"anna-phone"}
		ag.offer(limited)
		if evs := ben.seen(); len(evs) != 1 || evs[0].HomeGone != "kitchen" {
			t.Errorf("ben saw %+v", evs)
		}
		// What happens at an action that he may not use is none of his business.
		limited.Actions = append(limited.Actions, forAnna("safe"))
		ag.offer(limited)
		if evs := ben.seen(); len(evs) != 0 {
			t.Errorf("ben saw %+v", evs)
		}
		ag.offer(aHome(forAnna("safe")))
		if evs := ben.seen(); len(evs) != 1 || evs[0].Home == nil || len(evs[0].Home.Actions) != 1 {
			t.Errorf("ben saw %+v", evs)
		}
		changed := aHome(forAnna("safe"))
		changed.Actions[1].State = &mqttbridge.Live{Value: "open", At: time.Now()}
		ag.offer(changed)
		if evs := ben.seen(); len(evs) != 0 {
			t.Errorf("ben saw that something changed behind his back: %+v", evs)
		}
	})
}

func TestHostileDevice(t *testing.T) {
	inWorld(t, Limits{Burst: 1000}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		good := press("anna-phone", "door")
		for _, home := range []string{"", "Kitchen", "kitchen/", "../kitchen", "kitchen\x00", "\xff", strings.Repeat("k", 1<<20), "commands/", "homes/kitchen"} {
			w.sendRefused("anna-phone", home, press("anna-phone", "door"), mqttbridge.CodeNoAction)
			_, err := w.d.Challenge(t.Context(), "anna-phone", home, "door")
			w.isRefusal(err, mqttbridge.CodeNoAction)
		}
		w.d.mu.Lock()
		for _, m := range w.d.guests["anna-phone"].memos {
			if len(m.status.Home) > maxName {
				t.Errorf("%d bytes of a device are kept as a home's name", len(m.status.Home))
			}
		}
		w.d.mu.Unlock()
		for _, action := range []string{"Door", "../door", "door\x00", strings.Repeat("d", 1<<20)} {
			_, err := w.d.Challenge(t.Context(), "anna-phone", "kitchen", action)
			w.isRefusal(err, mqttbridge.CodeNoAction)
		}
		w.sendRefused("anna-phone", "kitchen", press("anna-phone", "window"), mqttbridge.CodeNoAction)
		// Another's name in the envelope.
		w.sendRefused("ben-phone", "kitchen", good, mqttbridge.CodeMalformed)
		for name, s := range map[string]mqttbridge.Signed{
			"nothing":   {},
			"no JSON":   {Body: []byte("door"), Key: good.Key, Signature: good.Signature},
			"huge":      {Body: append(make([]byte, 1<<20), good.Body...), Key: good.Key, Signature: good.Signature},
			"signature": {Body: good.Body, Key: good.Key, Signature: make([]byte, 1<<16)},
			"key":       {Body: good.Body, Key: strings.Repeat("k", 1<<16), Signature: good.Signature},
			"fields":    {Body: []byte(strings.Replace(string(good.Body), `{`, `{"admin":true,`, 1)), Key: good.Key, Signature: good.Signature},
		} {
			t.Log(name)
			w.sendRefused("anna-phone", "kitchen", s, mqttbridge.CodeMalformed)
		}
		wrongCurve, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		spki, err := x509.MarshalPKIXPublicKey(&wrongCurve.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range [][]byte{nil, []byte("key"), make([]byte, 1<<20), spki} {
			_, err := w.d.OfferKey(t.Context(), "anna-phone", "kitchen", key)
			w.isRefusal(err, mqttbridge.CodeMalformed)
		}
		if got := ag.got(""); len(ag.frames) != 0 || len(got) != 0 {
			t.Errorf("the home was bothered")
		}
		if n := w.ledger.counted("create"); n != 0 {
			t.Errorf("%d records", n)
		}
		// Ids that are another's, or none.
		s := w.send("anna-phone", good)
		for _, id := range []string{s.ID, "", "../" + s.ID, commandPrefix + s.ID} {
			if got, ok := w.d.Command("ben-phone", id); ok {
				t.Errorf("ben reads %+v", got)
			}
		}
		for _, ev := range w.look("ben-phone").seen() {
			if ev.Status != nil {
				t.Errorf("ben is told of %+v", ev.Status)
			}
		}
	})
}

func TestRateOfOneDevice(t *testing.T) {
	inWorld(t, Limits{Open: 1000}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), obedient)
		for range 20 {
			w.send("anna-phone", press("anna-phone", "door"))
		}
		for range 100 {
			w.sendRefused("anna-phone", "kitchen", press("anna-phone", "door"), mqttbridge.CodeBusy)
		}
		ben := w.send("ben-phone", press("ben-phone", "door"))
		w.is("ben-phone", ben.ID, mqttbridge.Done)
		time.Sleep(time.Second) // virtual
		for range 10 {
			w.send("anna-phone", press("anna-phone", "door"))
		}
		w.sendRefused("anna-phone", "kitchen", press("anna-phone", "door"), mqttbridge.CodeBusy)
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 31 {
			t.Errorf("the home got %d commands", len(got))
		}
		if n := strings.Count(w.audits.String(), "command.refused"); n > saidBurst+1 {
			t.Errorf("%d lines about refusals", n)
		}
		// Questions are counted apart.
		for range 20 {
			if _, err := w.d.Challenge(t.Context(), "anna-phone", "kitchen", "door"); err != nil {
				t.Fatal(err)
			}
		}
		_, err := w.d.Challenge(t.Context(), "anna-phone", "kitchen", "door")
		w.isRefusal(err, mqttbridge.CodeBusy)
		_, err = w.d.OfferKey(t.Context(), "anna-phone", "kitchen", deviceKey().spki)
		w.isRefusal(err, mqttbridge.CodeBusy)
		// The same again is no new command.
		signed := press("ben-phone", "door")
		for range 100 {
			w.send("ben-phone", signed)
		}
	})
}

func TestOpenCommandsAreLimited(t *testing.T) {
	inWorld(t, Limits{Burst: 1000}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), nil)
		var first string
		for range 32 {
			s := w.send("anna-phone", press("anna-phone", "door"))
			synctest.Wait()
			if first == "" {
				first = s.ID
			}
		}
		w.sendRefused("anna-phone", "kitchen", press("anna-phone", "door"), mqttbridge.CodeBusy)
		w.send("ben-phone", press("ben-phone", "door"))
		ag.status(mqttbridge.Status{ID: first, State: mqttbridge.Done})
		w.send("anna-phone", press("anna-phone", "door"))
	})
}

// Questions that a home does not answer are limited too.
func TestOpenQuestionsAreLimited(t *testing.T) {
	inWorld(t, Limits{Burst: 1000}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), nil)
		var wg sync.WaitGroup
		for range askingMax {
			wg.Go(func() { w.d.Challenge(t.Context(), "anna-phone", "kitchen", "door") })
		}
		synctest.Wait()
		began := time.Now()
		_, err := w.d.Challenge(t.Context(), "anna-phone", "kitchen", "door")
		w.isRefusal(err, mqttbridge.CodeBusy)
		if time.Since(began) != 0 {
			t.Error("not at once")
		}
		wg.Wait()
	})
}

// Revoking ends everything of a device within the moment, and of no other.
func TestEndDevice(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		// The home takes the first command and reads no more.
		theirs, ours := net.Pipe()
		w.wg.Go(func() { w.d.ServeAgent(w.ctx, ours, kitchen) })
		h := aHome()
		if err := mqttbridge.WriteFrame(theirs, mqttbridge.Frame{Type: mqttbridge.FrameHome, Home: &h}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		anna, ben := w.look("anna-phone"), w.look("ben-phone")
		sent := w.send("anna-phone", press("anna-phone", "door"))
		w.is("anna-phone", sent.ID, mqttbridge.Sent)
		waiting := w.send("anna-phone", press("anna-phone", "door"))
		bens := w.send("ben-phone", press("ben-phone", "door"))
		asked := make(chan error, 1)
		w.wg.Go(func() {
			_, err := w.d.Challenge(w.ctx, "anna-phone", "kitchen", "door")
			asked <- err
		})
		synctest.Wait()
		began := time.Now()
		w.revoked.Store("anna-phone", true)
		w.d.EndDevice("anna-phone")
		if !anna.ended() || ben.ended() {
			t.Errorf("anna's watch ended: %v, ben's: %v", anna.ended(), ben.ended())
		}
		w.isRefusal(<-asked, mqttbridge.CodeRevoked)
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %v", took)
		}
		if s := w.is("anna-phone", waiting.ID, mqttbridge.Refused); s.Code != mqttbridge.CodeRevoked {
			t.Errorf("%+v", s)
		}
		w.is("anna-phone", sent.ID, mqttbridge.Sent)

		w.sendRefused("anna-phone", "kitchen", press("anna-phone", "door"), mqttbridge.CodeRevoked)
		_, err := w.d.Challenge(t.Context(), "anna-phone", "kitchen", "door")
		w.isRefusal(err, mqttbridge.CodeRevoked)
		_, err = w.d.OfferKey(t.Context(), "anna-phone", "kitchen", deviceKey().spki)
		w.isRefusal(err, mqttbridge.CodeRevoked)
		if homes := w.d.Homes("anna-phone"); len(homes) != 0 {
			t.Errorf("anna still sees %+v", homes)
		}
		late := w.look("anna-phone")
		if !late.ended() || len(late.seen()) != 0 {
			t.Error("a revoked device can watch")
		}
		// What the home reads now: the first command, and ben's.
		var got []string
		for len(got) < 2 {
			f, err := mqttbridge.ReadFrame(theirs)
			if err != nil {
				t.Fatal(err)
			}
			if f.Type == mqttbridge.FrameCommand {
				got = append(got, idOf(*f.Command))
			}
		}
		if got[0] != sent.ID || got[1] != bens.ID {
			t.Errorf("the home got %v", got)
		}
		w.is("anna-phone", waiting.ID, mqttbridge.Refused)
		theirs.Close()
	})
}

// A device that was revoked and is back under its old name a moment later: what
// was refused stays so, though it still waits in the home's queue.
func TestBackAfterRevoking(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		theirs, ours := net.Pipe()
		w.wg.Go(func() { w.d.ServeAgent(w.ctx, ours, kitchen) })
		h := aHome()
		if err := mqttbridge.WriteFrame(theirs, mqttbridge.Frame{Type: mqttbridge.FrameHome, Home: &h}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		sent := w.send("anna-phone", press("anna-phone", "door"))
		synctest.Wait()
		waiting := w.send("anna-phone", press("anna-phone", "door"))
		w.d.EndDevice("anna-phone")
		w.wg.Go(func() {
			for {
				f, err := mqttbridge.ReadFrame(theirs)
				if err != nil {
					return
				}
				if f.Type == mqttbridge.FrameCommand && idOf(*f.Command) != sent.ID {
					t.Errorf("the home got %+v", f)
				}
			}
		})
		w.is("anna-phone", waiting.ID, mqttbridge.Refused)
		w.is("anna-phone", sent.ID, mqttbridge.Sent)
		theirs.Close()
	})
}

// A device that is revoked while its command is being recorded, or waits in
// the queue, even if nobody calls EndDevice.
func TestRevokedBeforeSending(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		ag := w.agent(kitchen, aHome(), obedient)
		w.ledger.fail(func(op, _ string) error {
			if op == "create" {
				w.revoked.Store("anna-phone", true)
				w.d.EndDevice("anna-phone")
			}
			return nil
		})
		if s := w.send("anna-phone", press("anna-phone", "door")); s.State != mqttbridge.Refused || s.Code != mqttbridge.CodeRevoked {
			t.Errorf("%+v", s)
		}
		w.ledger.fail(func(op, _ string) error {
			if op == "create" {
				w.revoked.Store("ben-phone", true)
			}
			return nil
		})
		s := w.send("ben-phone", press("ben-phone", "door"))
		if s := w.is("ben-phone", s.ID, mqttbridge.Refused); s.Code != mqttbridge.CodeRevoked {
			t.Errorf("%+v", s)
		}
		if got := ag.got(mqttbridge.FrameCommand); len(got) != 0 {
			t.Errorf("the home got %d commands of revoked devices", len(got))
		}
	})
}

// The caller may go; what was pressed goes on.
func TestCallerGoes(t *testing.T) {
	inWorld(t, Limits{}, func(t *testing.T, w *world) {
		w.agent(kitchen, aHome(), obedient)
		ctx, cancel := contextWithCancel(w)
		w.ledger.fail(func(op, _ string) error {
			if op == "create" {
				cancel()
			}
			return nil
		})
		s, err := w.d.Send(ctx, "anna-phone", "kitchen", press("anna-phone", "door"))
		if err != nil {
			t.Fatal(err)
		}
		w.is("anna-phone", s.ID, mqttbridge.Done)
	})
}
