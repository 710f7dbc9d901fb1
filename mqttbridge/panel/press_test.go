package panel

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/sallyport/sallyport/mqttbridge"
)

// TestPress is the way of a new phone from the words to the open gate.
func TestPress(t *testing.T) {
	s := serve(t)
	home := s.relay.homes["kitchen"]
	v := s.visitor(t)
	v.open()
	v.do(seen("#words li:nth-child(12)"))

	// Both screens show the same words, made of both keys.
	var words string
	s.relay.until(t, "a key is offered", func() bool {
		for _, spki := range home.pending {
			words, _ = mqttbridge.TrustWords(home.Key, spki)
		}
		return words != ""
	})
	if got := eval[string](v, `[...document.querySelectorAll('#words li')].map((e) => e.textContent).join(' ')`); got != words {
		t.Errorf("the page shows %q, home %q", got, words)
	}
	v.says("#trust", "sallyport agent trust anna-phone")
	v.shots("trust")
	// Nothing runs before: a press shows the words again.
	v.do(click("#trust .plain"))
	v.gone("#trust")
	v.says(".new", "does not know this browser yet")
	v.do(click(tile(3)+" .face"), seen("#words"))
	if n := s.requests("POST /api/commands"); n != 0 {
		t.Errorf("%d commands before the home agreed", n)
	}
	s.relay.do(home.trust)
	v.gone("#trust")
	v.gone(".new")
	v.says("#said", "kitchen trusts this browser now")

	// A plain button. Its challenge is there before the finger is gone.
	v.down(tile(3) + " .face")
	s.relay.until(t, "a challenge while the finger is down", func() bool { return s.relay.challenges > 0 })
	if got := s.relay.names(); got != "" {
		t.Errorf("ran before the finger was gone: %s", got)
	}
	v.up(tile(3) + " .face")
	v.says(tile(3)+" .last", "Delivered")
	if got := s.relay.names(); got != "lamp" {
		t.Errorf("ran: %q", got)
	}

	// Two taps of one nervous finger are one press.
	v.do(chromedp.WaitVisible(chromedp.CSS(tile(3) + "[data-mood=good]")))
	eval[bool](v, `new Promise((ok) => setTimeout(ok, 900, true))`)
	eval[bool](v, fmt.Sprintf(`{ const e = document.querySelector(%q); e.click(); e.click(); true }`, tile(3)+" .face"))
	s.relay.until(t, "the second press", func() bool { return len(home.ran) == 2 })

	// Hold: too short does nothing, a second does it, without letting go.
	v.do(click(tile(2) + " .face"))
	v.says(tile(2)+" .last", "Hold for one second")
	v.down(tile(2) + " .face")
	v.do(seen(tile(2) + ".holding"))
	v.says(tile(2)+" .last", "Done")
	v.up(tile(2) + " .face")
	if got := s.relay.names(); got != "lamp lamp gate" {
		t.Errorf("ran: %q", got)
	}
	e := look(s.relay, func() mqttbridge.Envelope { return home.ran[2] })
	if e.Device != "anna-phone" || e.Home != home.ID || e.PIN != "" || e.NotAfter.Sub(e.Issued) > home.life || time.Since(e.Issued) > time.Minute {
		t.Errorf("%+v", e)
	}

	// A keyboard cannot hold: it presses twice.
	eval[bool](v, `new Promise((ok) => setTimeout(ok, 1600, true))`)
	eval[bool](v, fmt.Sprintf(`(document.querySelector(%q).focus(), true)`, tile(2)+" .face"))
	v.do(chromedp.KeyEvent("\r"))
	v.says(tile(2)+" .last", "Press again to confirm")
	v.do(chromedp.KeyEvent("\r"))
	s.relay.until(t, "the gate, by keyboard", func() bool { return len(home.ran) == 4 })

	// The key stays with the browser, which cannot be made to give it away.
	v.open()
	v.says(".where", "online")
	v.do(click(tile(3) + " .face"))
	v.says(tile(3)+" .last", "Delivered")
	if n := look(s.relay, func() int { return len(home.trusted) + len(home.pending) }); n != 1 {
		t.Errorf("%d keys after a reload", n)
	}
	out := eval[string](v, `new Promise((ok) => { indexedDB.open('sallyport').onsuccess = (e) => {
		e.target.result.transaction('keys').objectStore('keys').get('sign').onsuccess = (e) =>
			crypto.subtle.exportKey('pkcs8', e.target.result.privateKey).then(() => ok('out'), (err) => ok(err.name));
	}; })`)
	if out != "InvalidAccessError" {
		t.Errorf("the private key: %s", out)
	}
}

// digits types a PIN on the pad.
func (v *visitor) digits(pin string) {
	v.t.Helper()
	for _, d := range pin {
		v.do(click(fmt.Sprintf(".keys button:nth-child(%d)", strings.IndexRune("123456789?0", d)+1)))
	}
}

func TestPIN(t *testing.T) {
	s := serve(t)
	home := s.relay.homes["kitchen"]
	v := s.visitor(t)
	v.enter()
	v.do(click(tile(1)+" .face"), seen("#pad"))
	v.says("#pad-title", "PIN for Garage door")
	v.digits("24")
	v.do(click(`.keys [value=ok]`))
	v.says("#pad-say", "at least four digits")
	v.digits("99")
	v.do(click(`.keys [value=back]`))
	v.digits("87")
	if got := eval[string](v, `document.querySelectorAll('#dots i').length + ' ' + document.querySelector('#dots').ariaLabel`); got != "5 5 digits" {
		t.Errorf("dots: %s", got)
	}
	v.shots("pad")
	v.do(click(`.keys [value=ok]`))
	v.says("#pad-say", "Wrong PIN. 4 tries left.")
	v.shots("wrong")
	if got := look(s.relay, func() string { return strings.Join(home.pins, " ") }); got != "24987" {
		t.Errorf("home opened %q", got)
	}

	// By keyboard, right this time.
	v.do(chromedp.KeyEvent("2468\r"))
	v.gone("#pad")
	v.says(tile(1)+" .last", "Done")
	if got := s.relay.names(); got != "garage" {
		t.Errorf("ran: %q", got)
	}

	// Five wrong ones.
	v.do(click(tile(1)+" .face"), seen("#pad"))
	for _, left := range []string{"4 tries left", "3 tries left", "2 tries left", "1 try left", "No try is left"} {
		v.do(chromedp.KeyEvent("1111\r"))
		v.says("#pad-say", left)
	}
	v.says("section > .warn", "PINs are locked until 12:20")
	v.do(chromedp.KeyEvent("2468\r"))
	v.gone("#pad")
	v.says("#note", "Garage door: Too many wrong PINs. It is locked until 12:20.")
	v.says(tile(1)+" .last", "Refused")
	v.shots("locked")
	if got := s.relay.names(); got != "garage" {
		t.Errorf("ran: %q", got)
	}
	// No PIN was in any request, other than sealed.
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, line := range s.sent {
		for _, pin := range []string{"2468", "24987", "1111"} {
			if strings.HasPrefix(line, "POST") && strings.Contains(line, pin) && !strings.Contains(line, `"key":"`) {
				t.Errorf("a PIN is in %s", line)
			}
		}
	}
}

// TestPadForgets: digits do not wait for the next one who takes the phone.
func TestPadForgets(t *testing.T) {
	s := serve(t)
	home := s.relay.homes["kitchen"]
	s.relay.do(func() { home.life = 2 * time.Second })
	// Half a minute is six seconds here.
	v := s.visitor(t, `{ const real = setTimeout; window.setTimeout = (f, ms, ...rest) => real(f, ms === 30000 ? 6000 : ms, ...rest); }`)
	v.enter()
	v.do(click(tile(1)+" .face"), seen("#pad"))
	v.digits("24")
	v.says("#pad-say", "Cleared: nothing was typed for 30 seconds.")
	if n := eval[int](v, `document.querySelectorAll('#dots i').length`); n != 0 {
		t.Errorf("%d digits are left", n)
	}
	// Nobody types: no more challenges are asked for.
	n := look(s.relay, func() int { return s.relay.challenges })
	eval[bool](v, `new Promise((ok) => setTimeout(ok, 2500, true))`)
	if now := look(s.relay, func() int { return s.relay.challenges }); now != n {
		t.Errorf("%d challenges for an empty pad", now-n)
	}
	// While somebody types slowly the challenge is kept fresh.
	v.digits("2")
	s.relay.until(t, "a fresh challenge", func() bool { return s.relay.challenges >= n+1 })
	eval[bool](v, `new Promise((ok) => setTimeout(ok, 1300, true))`)
	v.digits("4")
	s.relay.until(t, "another one, before the first dies", func() bool { return s.relay.challenges >= n+2 })
	v.digits("68")
	v.do(click(`.keys [value=ok]`))
	v.says(tile(1)+" .last", "Done")

	v.do(click(tile(1)+" .face"), seen("#pad"))
	v.digits("2468")
	v.do(click(`#pad [value=cancel]`))
	v.gone("#pad")
	v.do(click(tile(1)+" .face"), seen("#pad"))
	if n := eval[int](v, `document.querySelectorAll('#dots i').length`); n != 0 || s.relay.names() != "garage" {
		t.Errorf("after Cancel %d digits are there; ran: %s", n, s.relay.names())
	}
}

// TestPadLost: no pad hides that the relay is gone, and what became of a PIN
// that was sent is told by the tile.
func TestPadLost(t *testing.T) {
	s := serve(t)
	v := s.visitor(t)
	v.enter()
	v.expect(broken...)
	s.relay.do(func() { s.relay.homes["kitchen"].hold = true })
	send := func(known ...string) string {
		t.Helper()
		v.do(click(tile(1)+" .face"), seen("#pad"))
		v.do(chromedp.KeyEvent("2468\r"))
		v.says("#pad-say", "Checking…")
		id := s.pressed(t, known...)
		v.says(tile(1)+" .last", "On its way…")
		return id
	}
	lose := func() {
		t.Helper()
		s.away(true)
		v.gone("#pad")
		v.says("#banner", "No connection.")
		v.says(tile(1)+" .last", "Connection lost, asking…")
	}
	first := send()
	lose()
	v.shots("pad-lost")
	s.at(first, mqttbridge.Done, true) // nobody hears it
	n := s.requests("GET /api/commands/" + first)
	s.away(false)
	v.says(tile(1)+" .last", "Done")
	if s.requests("GET /api/commands/"+first) == n {
		t.Error("the page did not ask")
	}

	// The PIN was wrong, and there is no pad any more to say so.
	second := send(first)
	lose()
	s.relay.do(func() {
		st := s.relay.statuses[second]
		st.State, st.Final, st.Code, st.Reason, st.AttemptsLeft = mqttbridge.Refused, true, mqttbridge.CodePINWrong, "wrong PIN; 4 more tries", 4
		s.relay.statuses[second] = st
	})
	s.away(false)
	v.says("#note", "Garage door: Wrong PIN; 4 more tries")
	v.says(tile(1)+" .last", "Refused")

	// An answer to an earlier PIN says nothing in a pad that was opened since.
	third := send(first, second)
	v.do(click(`#pad [value=cancel]`))
	v.gone("#pad")
	v.do(click(tile(1)+" .face"), seen("#pad"))
	v.digits("24")
	s.at(third, mqttbridge.Done, true)
	v.says(tile(1)+" .last", "Done")

	// Who types is not disturbed when the stream starts anew, but told when
	// nobody answers.
	n = s.requests("GET /api/events")
	s.relay.endAll()
	s.relay.until(t, "the page is back", func() bool { return len(s.relay.watchers) == 1 && s.requests("GET /api/events") > n })
	if got := eval[int](v, `document.querySelectorAll('#pad[open] #dots i').length`); got != 2 {
		t.Errorf("%d digits are left", got)
	}
	s.away(true)
	v.gone("#pad")
	v.says("#banner", "No connection.")
}
