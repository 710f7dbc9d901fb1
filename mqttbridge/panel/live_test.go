package panel

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/sallyport/sallyport/mqttbridge"
)

// broken are complaints of a browser whose connections end.
var broken = []string{"net::ERR_", "Failed to load resource"}

// at sets what a command of the page has come to.
func (s *site) at(id string, state mqttbridge.State, final bool) {
	s.relay.do(func() {
		st := s.relay.statuses[id]
		st.State, st.Final = state, final
		s.relay.statuses[id] = st
		s.relay.publish(st.Device, mqttbridge.Event{Status: new(st)})
	})
}

// pressed waits for the next command and returns its id.
func (s *site) pressed(t *testing.T, known ...string) (id string) {
	t.Helper()
	s.relay.until(t, "another command", func() bool {
		for is := range s.relay.statuses {
			if !slices.Contains(known, is) {
				id = is
			}
		}
		return id != ""
	})
	return id
}

// TestStates: what the page says at each step, and of live and last.
func TestStates(t *testing.T) {
	s := serve(t)
	v := s.visitor(t)
	v.enter()
	s.relay.alter("kitchen", func(h *fakeHome) {
		h.hold = true
		h.Actions = []mqttbridge.Action{
			{
				Name: "garage", Label: "Garage door", Icon: "garage", Confirm: mqttbridge.ConfirmPIN, Ack: true,
				State: &mqttbridge.Live{Value: "CLOSED", At: time.Now()}, Last: &mqttbridge.Last{By: "anna-phone", At: time.Now(), State: mqttbridge.Done},
			},
			{Name: "gate", Label: "Gate", Confirm: mqttbridge.ConfirmHold, Ack: true, Last: &mqttbridge.Last{By: "ben", At: time.Now().AddDate(0, 0, -2), State: mqttbridge.Unconfirmed}},
			{Name: "lamp", Label: "Hall light", Confirm: mqttbridge.ConfirmNone, Ack: true, State: &mqttbridge.Live{Value: "ON", At: time.Now()}},
			{Name: "blind", Label: "Blinds", Confirm: mqttbridge.ConfirmNone, Values: []string{"OPEN", "STOP", "CLOSE"}, State: &mqttbridge.Live{Value: "80 %", At: time.Now()}},
			{Name: "bell", Label: "Doorbell", Confirm: mqttbridge.ConfirmNone, Icon: "🔔", Hours: "06:00-22:00"},
			{Name: "boiler", Label: "Hot water", Confirm: mqttbridge.ConfirmPIN, Problem: "no PIN is set at home"},
		}
	})
	v.says(tile(1)+" .live", "Closed")
	v.says(tile(1)+" .last", "by anna-phone")
	v.says(tile(2)+" .last", "by ben, unconfirmed")
	v.says(tile(5)+" .last", "06:00-22:00")
	if got := eval[string](v, fmt.Sprintf(`getComputedStyle(document.querySelector(%q), '::first-letter').textTransform`, tile(6)+" .last")); got != "uppercase" {
		t.Errorf("a problem begins with a small letter: %s", got)
	}
	if got, want := eval[string](v, fmt.Sprintf(`document.querySelector(%q).textContent`, tile(1)+" .last")), time.Now().In(berlin(t)).Format("15:04"); !strings.Contains(got, want) && !strings.Contains(got, strings.TrimPrefix(time.Now().In(berlin(t)).Format("3:04"), "0")) {
		t.Errorf("%q, at %s", got, want)
	}
	v.shots("idle")

	press := func(known ...string) string {
		t.Helper()
		v.do(click(tile(3) + " .face"))
		return s.pressed(t, known...)
	}
	var ids []string
	for _, c := range []struct {
		state      mqttbridge.State
		short, why string
	}{
		{mqttbridge.Done, "Done", ""},
		{mqttbridge.Unconfirmed, "No confirmation", "nothing said that it happened"},
		{mqttbridge.Expired, "Too late, not run", "It came too late and did not run."},
		{mqttbridge.Unknown, "Nobody knows", "It may have run. Have a look before you press again."},
	} {
		id := press(ids...)
		v.says(tile(3)+" .last", "On its way…")
		s.at(id, mqttbridge.Delivered, false)
		v.says(tile(3)+" .last", "Delivered, waiting…")
		if len(ids) == 0 {
			v.shots("waiting")
		}
		s.at(id, c.state, true)
		v.says(tile(3)+" .last", c.short)
		if c.why == "" {
			v.says("#said", "Hall light: "+c.short)
		} else {
			v.says("#note", c.why)
		}
		// Old news changes nothing.
		s.at(id, mqttbridge.Sent, false)
		eval[bool](v, `new Promise((ok) => setTimeout(ok, 850, true))`)
		v.says(tile(3)+" .last", c.short)
		v.shots(string(c.state))
		ids = append(ids, id)
	}
	// A home that comes back knows what nobody knew.
	s.at(ids[3], mqttbridge.Done, true)
	v.says("#said", "Hall light: Done")

	// Stop need not wait for what open has come to.
	v.do(click(tile(4) + " .values button:nth-child(1)"))
	open := s.pressed(t, ids...)
	v.says(tile(4)+" .last", "On its way…")
	v.do(click(tile(4) + " .values button:nth-child(1)")) // that is a second tap
	v.do(click(tile(4) + " .values button:nth-child(2)"))
	stop := s.pressed(t, append(ids, open)...)
	for id, want := range map[string]string{open: `"value":"OPEN"`, stop: `"value":"STOP"`} {
		if body := look(s.relay, func() string { return string(s.relay.bodies[id]) }); !strings.Contains(body, want) {
			t.Errorf("%s is not in %s", want, body)
		}
	}
	s.at(stop, mqttbridge.Delivered, true)
	v.says(tile(4)+" .last", "Delivered")
	s.at(open, mqttbridge.Unconfirmed, true)

	// What cannot run says why, and nothing is asked for.
	n := s.requests("POST")
	v.do(click("#note button"))
	v.gone("#note")
	v.do(click(tile(6) + " .face"))
	v.says("#note", "Hot water: No PIN is set at home. Nothing was sent.")
	if now := s.requests("POST"); now != n {
		t.Errorf("%d requests", now-n)
	}

	// What the home says is said, and not twice that nothing was sent.
	s.relay.do(func() {
		s.relay.fail = refusal(mqttbridge.CodeOffline, "kitchen is not connected, so nothing was sent. Try again when it is back.")
	})
	v.expect("503")
	eval[bool](v, `new Promise((ok) => setTimeout(ok, 850, true))`)
	v.do(click(tile(3) + " .face"))
	v.says("#note", "Hall light: Kitchen is not connected, so nothing was sent. Try again when it is back.")
	s.relay.do(func() { s.relay.fail = refusal(mqttbridge.CodeBusy, "too many questions at once; wait a moment") })
	v.expect("429")
	eval[bool](v, `new Promise((ok) => setTimeout(ok, 850, true))`)
	v.do(click(tile(3) + " .face"))
	v.says("#note", "Hall light: Too many questions at once; wait a moment. Nothing was sent.")
	s.relay.do(func() { s.relay.fail = nil })
	v.do(click("#note button"))

	// Homes come and go.
	s.relay.do(func() {
		h := s.relay.add(t, "barn", mqttbridge.Action{Name: "lamp", Label: "Barn light", Confirm: mqttbridge.ConfirmNone})
		h.Online, h.Since = false, time.Now()
		s.relay.publish("", mqttbridge.Event{Home: new(h.Home)})
	})
	v.says("section:first-child", "Barn light")
	v.says("section:first-child .where", "offline since")
	v.do(click("section:first-child .face"))
	v.says("#note", "Barn light: Barn is offline since")
	v.shots("away")
	s.relay.do(func() { s.relay.publish("", mqttbridge.Event{HomeGone: "barn"}) })
	v.do(chromedp.WaitNotPresent("section:nth-child(2)"))
	s.relay.do(func() { s.relay.publish("", mqttbridge.Event{HomeGone: "kitchen"}) })
	v.says("#homes", "There is nothing to press for this device yet.")
}

func berlin(t *testing.T) *time.Location {
	t.Helper()
	l, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip(err)
	}
	return l
}

// TestOffline: a press without a connection is refused at once, and nothing
// goes out when the connection is back.
func TestOffline(t *testing.T) {
	s := serve(t)
	v := s.visitor(t)
	v.enter()
	v.expect(broken...)
	s.away(true)
	v.says("#banner", "No connection. What you press now is not sent")
	v.shots("offline")
	before := time.Now()
	v.do(click(tile(3) + " .face"))
	v.says("#note", "Hall light: No connection. Nothing was sent.")
	if took := time.Since(before); took > 2*time.Second {
		t.Errorf("the refusal took %s", took)
	}
	v.do(click(tile(1) + " .face"))
	v.says("#note", "Garage door: No connection.")
	s.away(false)
	v.gone("#banner")
	// The stream is back: whatever was going to be sent would be by now.
	s.relay.alter("kitchen", func(h *fakeHome) {
		h.Actions[2].State = &mqttbridge.Live{Value: "OFF"}
	})
	v.says(tile(3)+" .live", "Off")
	eval[bool](v, `new Promise((ok) => setTimeout(ok, 1500, true))`)
	if n, c := s.requests("POST /api/commands"), s.requests("POST /api/challenge"); n != 0 || c != 0 {
		t.Errorf("%d commands and %d challenges after the connection came back", n, c)
	}
	v.do(click(tile(3) + " .face"))
	v.says(tile(3)+" .last", "Delivered")

	// The home is away, or its broker.
	s.relay.alter("kitchen", func(h *fakeHome) { h.Broker = false })
	v.says(".where", "no MQTT broker")
	n := s.requests("POST")
	eval[bool](v, `new Promise((ok) => setTimeout(ok, 850, true))`)
	v.do(click(tile(3) + " .face"))
	v.says("#note", "Hall light: The MQTT broker at kitchen cannot be reached. Nothing was sent.")
	s.relay.alter("kitchen", func(h *fakeHome) { h.Online = false })
	v.says(".where", "offline")
	if now := s.requests("POST"); now != n {
		t.Errorf("%d requests for a home that is away", now-n)
	}
}

// TestSlow: when the challenge comes too late, the command does not go.
func TestSlow(t *testing.T) {
	s := serve(t)
	gate := make(chan struct{})
	v := s.visitor(t)
	v.enter()
	v.expect(broken...)
	s.before.Store(new(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/api/challenge" {
			select {
			case <-gate:
			case <-r.Context().Done():
			}
		}
		return false
	}))
	v.do(click(tile(3) + " .face"))
	v.says(tile(3)+" .last", "Sending…")
	v.says("#note", "Hall light: No connection. Nothing was sent.")
	close(gate)
	s.relay.alter("kitchen", func(h *fakeHome) { h.Actions[2].State = &mqttbridge.Live{Value: "OFF"} })
	v.says(tile(3)+" .live", "Off")
	if n := s.requests("POST /api/commands"); n != 0 {
		t.Errorf("%d commands", n)
	}
}

// TestLostAnswer: the connection ends between a command and its answer. The
// page asks what became of it and does not send it again.
func TestLostAnswer(t *testing.T) {
	s := serve(t)
	home := s.relay.homes["kitchen"]
	s.relay.do(func() { home.life = 3 * time.Second })
	v := s.visitor(t)
	v.enter()
	v.expect(broken...)
	v.expect("404")
	// It got there.
	s.before.Store(new(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/api/commands/lamp") {
			s.panel.ServeHTTP(&listener{header: http.Header{}}, r)
			panic(http.ErrAbortHandler)
		}
		return false
	}))
	v.do(click(tile(3) + " .face"))
	v.says(tile(3)+" .last", "Delivered")
	if n := s.requests("POST /api/commands"); n != 1 || s.relay.names() != "lamp" {
		t.Errorf("sent %d times, ran: %s", n, s.relay.names())
	}
	// It did not get there.
	s.before.Store(new(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/api/commands/lamp") {
			panic(http.ErrAbortHandler)
		}
		return false
	}))
	eval[bool](v, `new Promise((ok) => setTimeout(ok, 850, true))`)
	v.do(click(tile(3) + " .face"))
	v.says(tile(3)+" .last", "Connection lost, asking…")
	v.says("#note", "It did not reach the relay. Nothing ran.")
	if n := s.requests("POST /api/commands"); n != 2 || s.relay.names() != "lamp" {
		t.Errorf("sent %d times, ran: %s", n, s.relay.names())
	}
	// The relay takes it and forgets it: only a look helps.
	s.before.Store(nil)
	s.relay.do(func() { s.relay.swallow = true })
	eval[bool](v, `new Promise((ok) => setTimeout(ok, 850, true))`)
	v.do(click(tile(3) + " .face"))
	v.says(tile(3)+" .last", "On its way…")
	s.relay.endAll()
	v.says("#note", "It may have run. Have a look before you press again.")
}

// TestReconnect: the relay starts anew between press and ack. The page comes
// back by itself and catches up.
func TestReconnect(t *testing.T) {
	s := serve(t)
	v := s.visitor(t)
	v.enter()
	v.expect(broken...)
	s.relay.do(func() { s.relay.homes["kitchen"].hold = true })
	v.do(click(tile(3) + " .face"))
	v.says(tile(3)+" .last", "On its way…")
	id := s.pressed(t)
	s.away(true)
	v.says("#banner", "No connection.")
	s.at(id, mqttbridge.Done, true) // nobody hears it
	s.relay.alter("kitchen", func(h *fakeHome) { h.Actions[2].State = &mqttbridge.Live{Value: "ON"} })
	s.away(false)
	v.gone("#banner")
	v.says(tile(3)+" .last", "Done")
	v.says(tile(3)+" .live", "On")
	// An end of the stream alone is nothing that people need to see.
	eval[bool](v, `(new MutationObserver(() => { globalThis.seen ||= !document.querySelector('#banner').hidden; }).observe(document.querySelector('#banner'), { attributes: true, childList: true }), true)`)
	for range 3 {
		n := s.requests("GET /api/events")
		s.relay.endAll()
		s.relay.until(t, "the page is back", func() bool { return len(s.relay.watchers) == 1 && s.requests("GET /api/events") > n })
	}
	if eval[bool](v, `!!globalThis.seen`) {
		t.Error("the banner came up for an ordinary end of a stream")
	}
}

// TestRevoked: the device is removed while the page is open. Nothing that was
// shown stays, nothing more is asked for.
func TestRevoked(t *testing.T) {
	s := serve(t)
	v := s.visitor(t)
	v.enter()
	v.do(click(tile(1)+" .face"), seen("#pad"))
	v.expect("403", "401")
	s.other.Store(new(""))
	s.relay.endAll()
	v.says("#homes", "This device may not come in any more")
	v.shots("revoked")
	if text := eval[string](v, `document.body.innerText`); strings.Contains(text, "Garage") || strings.Contains(text, "kitchen") || strings.Contains(text, "anna") {
		t.Errorf("the page still says %s", text)
	}
	n := s.requests("")
	eval[bool](v, `new Promise((ok) => setTimeout(ok, 2500, true))`)
	if now := s.requests(""); now != n {
		t.Errorf("%d more requests", now-n)
	}
	v.do(click("#homes button"))
	v.says("main", "This page opens with a certificate")
	v.shots("stranger")
}

// TestRefusedKey: a home that trusts another browser of this device says so.
func TestRefusedKey(t *testing.T) {
	s := serve(t)
	s.relay.do(func() { s.relay.homes["kitchen"].trusted["other"] = []byte("other") })
	v := s.visitor(t)
	v.open()
	v.says(".new", "sallyport agent untrust anna-phone")
	v.shots("refused-key")
	v.do(click(tile(3) + " .face"))
	v.says("#note", "The home does not trust this browser yet.")
}

// TestWorker: the service worker keeps the page that says "offline" and nothing
// that has to do with anybody.
func TestWorker(t *testing.T) {
	s := serve(t)
	v := s.visitor(t)
	v.enter()
	if got := eval[string](v, `navigator.serviceWorker.ready.then((r) => r.active && 'ready')`); got != "ready" {
		t.Fatal(got)
	}
	v.open() // now by way of the worker
	v.says(".where", "online")
	if !eval[bool](v, `!!navigator.serviceWorker.controller`) {
		t.Error("the worker does not control the page")
	}
	v.do(click(tile(3) + " .face"))
	v.says(tile(3)+" .last", "Delivered")
	kept := eval[[]string](v, `(async () => {
		const out = [];
		for (const name of await caches.keys()) for (const r of await (await caches.open(name)).keys()) out.push(new URL(r.url).pathname);
		return out.sort();
	})()`)
	base := "/app/" + s.panel.assets.version + "/"
	if want := []string{base + "offline.html", base + "offline.js", base + "style.css", "/icon.svg"}; !slices.Equal(kept, want) {
		t.Errorf("kept: %v", kept)
	}

	// Nobody answers.
	v.expect(broken...)
	s.away(true)
	v.open()
	v.says("main", "You are offline")
	v.says("main", "What you pressed just before may have run; have a look.")
	v.shots("shell")
	v.do(chromedp.EmulateViewport(1280, 800))
	if x := eval[[]float64](v, `['svg', 'h2', 'p', '#again'].map((e) => document.querySelector(e).getBoundingClientRect().x)`); x[1] != x[0] || x[2] != x[0] || x[3] != x[0] {
		t.Errorf("the text is not below the header: %v", x)
	}
	v.do(chromedp.EmulateViewport(390, 844))
	if text := eval[string](v, `document.documentElement.outerHTML`); strings.Contains(text, "anna") || strings.Contains(text, "kitchen") || strings.Contains(text, "Garage") {
		t.Errorf("the kept page says %s", text)
	}
	v.renewed(func() { v.do(click("#again")) })
	v.says("main", "You are offline")
	s.away(false)
	v.do(click("#again"))
	v.says(".where", "online")

	// The certificate is gone: the worker hands on what the relay says.
	v.expect("401", "403")
	eval[bool](v, `navigator.serviceWorker.ready.then(() => true)`)
	s.other.Store(new(""))
	v.open()
	v.says("main", "This page opens with a certificate")
	// What may be loaded without one still may.
	if got := eval[int](v, `fetch('/manifest.webmanifest').then((r) => r.status)`); got != 200 {
		t.Errorf("manifest: %d", got)
	}
	s.other.Store(new("anna-phone"))
	v.open()
	v.says(".where", "online")
}

// TestNewVersion: the relay serves another page by now, and the open one loads
// itself again.
func TestNewVersion(t *testing.T) {
	s := serve(t)
	v := s.visitor(t)
	v.enter()
	eval[bool](v, `(globalThis.old = true)`)
	fresh := newWorld(t).panel
	fresh.assets.version = "0123456789abcdef"
	fresh.cfg = s.panel.cfg
	s.before.Store(new(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/api/events" && s.requests("GET / ") == 1 {
			fresh.ServeHTTP(w, r)
			return true
		}
		return false
	}))
	s.relay.endAll()
	s.relay.until(t, "the page loads itself again", func() bool { return s.requests("GET / ") == 2 && len(s.relay.watchers) > 0 })
	v.says(".where", "online")
	if eval[bool](v, `!!globalThis.old`) {
		t.Error("it is the old page")
	}
}
