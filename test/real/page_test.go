package real

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"software.sslmate.com/src/go-pkcs12"
)

// pageYAML is three actions, one of each way to mean it. The siren says nothing
// of confirm: to hold is what is asked for by default.
const pageYAML = `actions:
  - name: garage
    label: Garage door
    topic: cmnd/garage
    payload: open
    confirm: pin
    ack: {topic: stat/garage, match: open, timeout: 60s}
    state: stat/garage
  - name: lamp
    label: Hall lamp
    topic: cmnd/lamp
    payload: toggle
    confirm: none
  - name: siren
    label: Siren
    topic: cmnd/siren
    payload: "on"
`

const (
	pagePIN = "2468"
	// soon is for what takes a moment, on a machine that is busy elsewhere.
	soon = 30 * time.Second
)

// pageHome is a relay, a home with a broker, and anna's Chromium. The garage
// door is slow: it moves when the test says so.
type pageHome struct {
	t     *testing.T
	m     *mosquitto
	w     *world
	anna  *chromium
	phone device // the certificate that anna's Chromium holds
	seen  *process
	marks int
}

const annaPhone = "anna-phone"

func newPageHome(t *testing.T) *pageHome {
	t.Helper()
	slow(t)
	h := &pageHome{t: t, m: newMosquitto(t), w: newWorld(t)}
	h.w.mqttHome("kitchen", h.m, pageYAML)
	h.seen = h.m.sub("#")
	h.m.pub("stat/garage", "closed", "-r")
	pin := h.w.file("pin")
	writeFile(t, pin, pagePIN+"\n")
	mustRun(t, binary, "agent", "pin", "--data", h.w.agentDir("kitchen"), "--pin-file", pin, "garage")
	h.anna = h.w.newPerson("anna")
	h.phone = h.w.sharedDevice(h.anna, annaPhone)
	h.anna.start()
	return h
}

// sharedDevice is withP12 for a certificate that other programs show, too.
func (w *world) sharedDevice(b *chromium, name string) device {
	w.t.Helper()
	p12 := w.file(name + ".p12")
	password := strings.TrimSpace(mustRun(w.t, binary, "device", "add", name, "--data", w.relayDir(), "--p12", p12))
	b.install(p12, password)
	data, err := os.ReadFile(p12)
	if err != nil {
		w.t.Fatal(err)
	}
	key, cert, _, err := pkcs12.DecodeChain(data, password)
	if err != nil {
		w.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		w.t.Fatal(err)
	}
	d := device{name, w.file(name + ".crt"), w.file(name + ".key")}
	writeFile(w.t, d.cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
	writeFile(w.t, d.key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	return d
}

// ran is how often each action's payload has come to the home broker, with all
// that was published before this call.
func (h *pageHome) ran() (n struct{ garage, lamp, siren int }) {
	h.t.Helper()
	h.marks++
	mark := fmt.Sprintf("mark %d.", h.marks)
	h.m.pub("mark", mark)
	out := h.seen.waitFor("mark "+mark+"\n", soon)
	n.garage = strings.Count(out, "\ncmnd/garage open\n")
	n.lamp = strings.Count(out, "\ncmnd/lamp toggle\n")
	n.siren = strings.Count(out, "\ncmnd/siren on\n")
	if all := strings.Count(out, "\ncmnd/"); all != n.garage+n.lamp+n.siren {
		h.t.Errorf("%d messages at home, of which only %+v are what the actions say", all, n)
	}
	return n
}

// awaitRan waits until the home broker was given n payloads of an action.
func (h *pageHome) awaitRan(line string, n int) {
	h.t.Helper()
	eventually(h.t, soon, fmt.Sprintf("%q came home %d times", line, n), func() bool {
		return strings.Count(h.seen.out.String(), "\n"+line+"\n") >= n
	})
}

// says waits until something visible that fits css has some text.
func (b *chromium) says(css, want string) {
	b.t.Helper()
	b.awaitThat(fmt.Sprintf("%s says %q", css, want), fmt.Sprintf(
		`[...document.querySelectorAll(%q)].some((e) => e.checkVisibility() && e.innerText.includes(%q))`, css, want))
}

// gone waits until nothing visible fits css.
func (b *chromium) gone(css string) {
	b.t.Helper()
	b.awaitThat(css+" is gone", fmt.Sprintf(`![...document.querySelectorAll(%q)].some((e) => e.checkVisibility())`, css))
}

// awaitThat waits for the page, which may load itself again meanwhile.
func (b *chromium) awaitThat(what, expression string) {
	b.t.Helper()
	began := time.Now()
	for {
		if good, err := eval[bool](b, expression); err == nil && good {
			return
		}
		if time.Since(began) > soon {
			b.shot("unexpected", 1280, 800)
			b.t.Fatalf("%s: not within %v: %s; the page says %q", b.who, soon, what, tail(b.text(), 800))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// count is how many elements fit css, shown or not.
func (b *chromium) count(css string) int {
	b.t.Helper()
	n, err := eval[int](b, fmt.Sprintf(`document.querySelectorAll(%q).length`, css))
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

func (b *chromium) at(css string) string {
	b.t.Helper()
	text, err := eval[string](b, fmt.Sprintf(`document.querySelector(%q)?.innerText ?? ""`, css))
	if err != nil {
		b.t.Fatal(err)
	}
	return text
}

// tile is the selector of the tile with a label.
func (b *chromium) tile(label string) string {
	b.t.Helper()
	n, err := eval[int](b, fmt.Sprintf(`[...document.querySelectorAll(".tile")].findIndex((e) => e.querySelector(".label").textContent === %q)`, label))
	if err != nil || n < 0 {
		b.t.Fatalf("%s has no tile %q (%v); the page says %q", b.who, label, err, tail(b.text(), 600))
	}
	return fmt.Sprintf(".tile:nth-child(%d)", n+1)
}

func (b *chromium) press(label string) {
	b.t.Helper()
	b.click(b.tile(label) + " .face")
}

// fresh waits until a press is not taken for the second tap of the one before.
func (b *chromium) fresh() {
	b.t.Helper()
	if _, err := eval[bool](b, `new Promise((ok) => setTimeout(ok, 850, true))`); err != nil {
		b.t.Fatal(err)
	}
}

// hold keeps the button down until the page says something of the tile.
func (b *chromium) hold(label, until string) {
	b.t.Helper()
	tile := b.tile(label)
	at, err := eval[[]float64](b, fmt.Sprintf(`(() => { const r = document.querySelector(%q).getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()`, tile+" .face"))
	if err != nil {
		b.t.Fatal(err)
	}
	mouse := func(kind input.DispatchMouseEventType, buttons int64) {
		b.t.Helper()
		_, err := chromedp.Call(b.ctx, input.DispatchMouseEvent, input.DispatchMouseEventParams{
			Type: kind, X: at[0], Y: at[1], Button: "left", Buttons: buttons, ClickCount: 1,
		})
		if err != nil {
			b.t.Fatal(err)
		}
	}
	mouse(input.DispatchMouseEventTypeMousePressed, 1)
	b.says(tile+" .last", until)
	mouse(input.DispatchMouseEventTypeMouseReleased, 0)
}

// pin opens the pad and types, as a finger does. It does not wait for an answer.
func (b *chromium) pin(label, digits string) {
	b.t.Helper()
	b.press(label)
	b.says("#pad-title", "PIN for "+label)
	if n := b.count("#dots i"); n != 0 {
		b.t.Errorf("the pad opens with %d digits of somebody else", n)
	}
	b.digits(digits)
}

func (b *chromium) digits(digits string) {
	b.t.Helper()
	for _, d := range digits {
		b.click(fmt.Sprintf(".keys button:nth-child(%d)", strings.IndexRune("123456789?0", d)+1))
	}
	if n := b.count("#dots i"); n != len(digits) {
		b.t.Errorf("%d dots for %d digits", n, len(digits))
	}
	b.click(".keys [value=ok]")
}

// page is where the buttons are.
func (h *pageHome) page() string { return h.w.url("home", "/") }

// enter opens the page for the first time and has the home trust the browser,
// whose owner compares the words on both screens.
func (h *pageHome) enter() {
	h.t.Helper()
	b := h.anna
	b.mustOpen(h.page(), "kitchen")
	b.says("#words li:nth-child(12)", "")
	b.says("#trust-line", "sallyport agent trust "+annaPhone)
	b.shots("trust")
	words, err := eval[string](b, `[...document.querySelectorAll("#words li")].map((e) => e.textContent).join(" ")`)
	if err != nil {
		h.t.Fatal(err)
	}
	data := h.w.agentDir("kitchen")
	list := mustRun(h.t, binary, "agent", "trust", "--data", data)
	if len(strings.Fields(words)) != 12 || !strings.Contains(list, words) {
		h.t.Errorf("the page shows %q, the home:\n%s", words, list)
	}
	others := strings.Fields(words)
	others[0], others[11] = others[11], others[0]
	if others[0] != others[11] {
		if r := run(h.t, "", binary, "agent", "trust", "--data", data, "--words", strings.Join(others, " "), annaPhone); r.code == 0 {
			h.t.Errorf("other words are as good: %s", r)
		}
	}
	mustRun(h.t, binary, "agent", "trust", "--data", data, "--words", words, annaPhone)
	b.gone("#trust")
	b.gone(".new")
	b.says(".where", "online")
}

// TestCommandPage is the page in a real Chromium with the device's certificate:
// the words, a press with a PIN, a held button, wrong PINs, somebody without a
// certificate, and the end of the device while its page is open.
func TestCommandPage(t *testing.T) {
	h := newPageHome(t)
	w, anna := h.w, h.anna
	h.enter()
	garage, lamp := anna.tile("Garage door"), anna.tile("Hall lamp")
	anna.says(garage+" .live", "closed")
	anna.shots("idle")

	// A press with the PIN.
	began := time.Now()
	anna.pin("Garage door", pagePIN)
	h.awaitRan("cmnd/garage open", 1)
	anna.gone("#pad")
	anna.says(garage+" .last", "Delivered, waiting…")
	anna.shots("waiting")
	h.m.pub("stat/garage", "open", "-r")
	anna.says(garage+" .last", "Done")
	t.Logf("from the finger to done: %v", time.Since(began))
	anna.says(garage+" .live", "open")
	anna.shots("done")
	anna.press("Hall lamp")
	anna.says(lamp+" .last", "Delivered")

	// A finger that is too short, then one that holds.
	siren := anna.tile("Siren")
	if _, err := eval[bool](anna, fmt.Sprintf(`(() => { const f = document.querySelector(%q); const p = {bubbles: true, button: 0};
		f.dispatchEvent(new PointerEvent("pointerdown", p)); f.dispatchEvent(new PointerEvent("pointerup", p)); f.click(); return true; })()`, siren+" .face")); err != nil {
		t.Fatal(err)
	}
	anna.says(siren+" .last", "Hold for one second")
	if n := h.ran(); n.siren != 0 {
		t.Errorf("the siren went off at a touch: %+v", n)
	}
	anna.hold("Siren", "Delivered")

	// Another load of the page: the key is still there, and so is who was last.
	anna.mustOpen(h.page(), "kitchen")
	for _, label := range []string{"Garage door", "Hall lamp", "Siren"} {
		anna.says(anna.tile(label)+" .last", "by "+annaPhone)
	}
	anna.says(garage+" .live", "open")
	anna.shots("last")
	if n := h.ran(); n.garage != 1 || n.lamp != 1 || n.siren != 1 {
		t.Errorf("three presses became %+v", n)
	}

	h.lockout()
	h.stranger()

	// The end of the device, with its page open and an MQTT program connected.
	sub := start(t, "mosquitto_sub as anna", w.withHosts(append([]string{"stdbuf", "-oL"},
		w.hubArgs(h.phone, "mosquitto_sub", "-i", annaPhone+"-sub", "-q", "1", "-v", "-t", "home/kitchen/#", "-d")...)...)...)
	sub.waitFor("Subscribed", soon)
	if n := w.hubConnections(); n != 1 {
		t.Errorf("%d connections at the hub, want mosquitto_sub's", n)
	}
	anna.says(".where", "online")
	w.revoke(h.phone)
	began = time.Now()
	anna.says("#homes", "This device may not come in any more")
	took := time.Since(began)
	eventually(t, 5*time.Second, "the MQTT connection has ended", func() bool { return w.hubConnections() == 0 })
	t.Logf("the page said so %v after device revoke returned, MQTT was gone after at most %v", took, time.Since(began))
	if took > 3*time.Second {
		t.Errorf("the page said only after %v that the device is out", took)
	}
	if n := anna.count(".tile"); n != 0 || strings.Contains(anna.text(), "Garage") {
		t.Errorf("%d buttons are left: %q", n, anna.text())
	}
	anna.shots("revoked")
	anna.mustOpen(h.page(), "removed")
	anna.shots("revoked-again")
	if n := h.ran(); n.garage != 2 || n.lamp != 1 || n.siren != 1 {
		t.Errorf("in the end: %+v", n)
	}
}

// lockout tries five wrong PINs. It leaves anna unlocked, by one press more of
// the garage.
func (h *pageHome) lockout() {
	h.t.Helper()
	b, before := h.anna, h.ran()
	garage := b.tile("Garage door")
	b.pin("Garage door", "1111")
	for _, left := range []string{"4 tries left", "3 tries left", "2 tries left", "1 try left"} {
		b.says("#pad-say", left)
		if n := b.count("#dots i"); n != 0 {
			h.t.Errorf("%d digits stay on the pad after a wrong PIN", n)
		}
		if left[0] == '4' {
			b.shots("wrong")
		}
		b.digits("1111")
	}
	b.gone("#pad")
	b.says("#note", "Too many wrong PINs")
	b.says(garage+" .last", "Refused")
	b.says("section > .warn", "wrong PINs") // the alert, for all who look, without a name
	b.shots("locked")
	h.seen.waitFor("\nsallyport/alert ", soon)
	// Locked is locked, also for the right one.
	b.pin("Garage door", pagePIN)
	b.gone("#pad")
	b.says("#note", "Too many wrong PINs")
	if n := h.ran(); n != before {
		h.t.Errorf("wrong PINs opened something: %+v, then %+v", before, n)
	}
	mustRun(h.t, binary, "agent", "trust", "--data", h.w.agentDir("kitchen"), annaPhone)
	b.gone("section > .warn")
	b.pin("Garage door", pagePIN)
	h.awaitRan("cmnd/garage open", before.garage+1)
	h.m.pub("stat/garage", "open", "-r")
	b.says(garage+" .last", "Done")
}

// stranger is somebody without a certificate: she reads how to get one, and
// never a button. What phones fetch without a certificate she gets.
func (h *pageHome) stranger() {
	h.t.Helper()
	t, w := h.t, h.w
	eve := w.newPerson("eve").start()
	text := eve.mustOpen(h.page(), "certificate")
	if n := eve.count(".tile, #pad, #homes, [src*='app.js']"); n != 0 || strings.Contains(text, "Garage") || strings.Contains(text, "kitchen") {
		t.Errorf("without a certificate she sees %q", text)
	}
	if n := eve.count("a[href*='//" + host("enroll") + "']"); n == 0 {
		t.Errorf("without a certificate nothing leads her to the place of codes: %q", text)
	}
	eve.shots("no-certificate")
	eve.mustOpen(w.url("home", "/sw.js"), "The worker keeps")

	// Chromium fetches the manifest without the page's rules; so does curl.
	shell := func(path, kind string) string {
		r := w.curl(nil, "--fail", "-w", "\n%{content_type}", w.url("home", path))
		at := strings.LastIndex(r.stdout, "\n")
		if r.code != 0 || !strings.HasPrefix(r.stdout[at+1:], kind) {
			t.Errorf("%s without a certificate: want %s: %s", path, kind, r)
			return ""
		}
		return r.stdout[:at]
	}
	shell("/sw.js", "text/javascript")
	var manifest struct {
		Name     string `json:"name"`
		StartURL string `json:"start_url"`
		Icons    []struct {
			Src  string `json:"src"`
			Type string `json:"type"`
		} `json:"icons"`
	}
	if err := json.Unmarshal([]byte(shell("/manifest.webmanifest", "application/manifest+json")), &manifest); err != nil || manifest.StartURL == "" || len(manifest.Icons) < 2 {
		t.Errorf("the manifest: %v: %+v", err, manifest)
	}
	base, err := url.Parse(h.page())
	if err != nil {
		t.Fatal(err)
	}
	for _, icon := range manifest.Icons {
		at, err := base.Parse(icon.Src)
		if err != nil || at.Host != base.Host {
			t.Errorf("icon %q: %v", icon.Src, err)
			continue
		}
		shell(at.Path, icon.Type)
	}
	for _, path := range []string{"/api/homes", "/api/events"} {
		r := w.curl(nil, "-o", os.DevNull, "-w", "%{http_code}", w.url("home", path))
		if r.stdout != "401" && r.stdout != "403" {
			t.Errorf("%s without a certificate: %s", path, r)
		}
	}
	if out := eve.text(); strings.Contains(out, "Garage") {
		t.Error(out)
	}
}

// TestCommandPageInterrupted: the relay is killed between press and ack, and
// right at the press; the home goes away; nobody answers at all. The page says
// how it stands, everything ends in a final state, and nothing runs twice or
// later.
func TestCommandPageInterrupted(t *testing.T) {
	h := newPageHome(t)
	w, anna := h.w, h.anna
	h.enter()
	garage, lamp := anna.tile("Garage door"), anna.tile("Hall lamp")

	// The worker takes over, behind the client certificate.
	if got, err := eval[string](anna, `navigator.serviceWorker.ready.then((r) => r.active ? r.active.state : "none")`); err != nil || (got != "activated" && got != "activating") {
		t.Fatalf("the service worker: %q, %v", got, err)
	}
	anna.awaitThat("the worker controls the page", `!!navigator.serviceWorker.controller`)
	if found, err := chromedp.Call(anna.ctx, cdppage.GetAppManifest, cdppage.GetAppManifestParams{}); err != nil || !strings.HasSuffix(found.URL, "/manifest.webmanifest") || len(found.Errors) > 0 {
		t.Errorf("the manifest: %+v, %v", found, err)
	}
	if found, err := chromedp.Call(anna.ctx, cdppage.GetInstallabilityErrors, cdp.Empty{}); err != nil || len(found.InstallabilityErrors) > 0 {
		for _, e := range found.InstallabilityErrors {
			t.Errorf("the page cannot be installed: %s %v", e.ErrorID, e.ErrorArguments)
		}
	}

	// Between press and ack.
	anna.pin("Garage door", pagePIN)
	h.awaitRan("cmnd/garage open", 1)
	anna.says(garage+" .last", "Delivered, waiting…")
	w.relay.kill()
	h.m.pub("stat/garage", "open", "-r") // while nobody at the relay hears it
	anna.says("#banner", "No connection")
	anna.shots("relay-gone")
	// What is pressed now goes nowhere, now or later.
	anna.press("Hall lamp")
	anna.says("#note", "Nothing was sent.")
	anna.shots("relay-gone-pressed")

	w.startRelay()
	anna.gone("#banner")
	anna.says(garage+" .last", "Done")
	anna.awaitThat("the press has ended", fmt.Sprintf(`document.querySelector(%q).dataset.mood !== "busy"`, garage))
	anna.says(garage+" .live", "open")
	if n := h.ran(); n.garage != 1 || n.lamp != 0 {
		t.Errorf("after the kill: %+v", n)
	}

	// Right at the press: at once, and when the home's challenge has gone out.
	// Whether it came home is chance; what the page says of it is not.
	for i := range 2 {
		before := h.ran()
		anna.says(".where", "online")
		anna.fresh()
		anna.press("Hall lamp")
		if i > 0 {
			eventually(t, soon, "the relay has answered the challenge", func() bool { return strings.Contains(w.relay.out.String(), "path=/api/challenge") })
		}
		w.relay.kill()
		w.startRelay()
		anna.says(".where", "online")
		anna.awaitThat("the press has ended", fmt.Sprintf(`!["busy", "idle"].includes(document.querySelector(%q).dataset.mood)`, lamp))
		said, after := anna.at(lamp+" .last"), h.ran()
		ran := after.lamp - before.lamp
		t.Logf("a kill at the press: %q, and it ran %d times", said, ran)
		switch {
		case ran > 1:
			t.Errorf("one press became %d", ran)
		case strings.HasPrefix(said, "Delivered") != (ran == 1) && !strings.HasPrefix(said, "Nobody knows"):
			t.Errorf("the page says %q of what ran %d times", said, ran)
		}
	}

	// The home is away.
	before := h.ran()
	w.agents["kitchen"].stop()
	anna.says(".where", "offline since")
	anna.fresh()
	anna.press("Hall lamp")
	anna.says("#note", "Kitchen is offline")
	anna.says("#note", "Nothing was sent.")
	anna.press("Garage door")
	anna.says("#note", "Garage door: Kitchen is offline")
	if anna.count("#pad[open]") != 0 {
		t.Error("a PIN is asked for, for nothing")
	}
	anna.shots("home-away")
	// The relay says the same to a page that does not look.
	if got, err := eval[string](anna, `fetch("/api/challenge", {method: "POST", headers: {"Content-Type": "application/json"},
		body: JSON.stringify({home: "kitchen", action: "lamp"})}).then(async (r) => r.status + " " + (await r.json()).code)`); err != nil || got != "503 offline" {
		t.Errorf("a challenge of a home that is away: %q, %v", got, err)
	}
	w.startAgent("kitchen", nil, "--config", w.file("kitchen.yaml"))
	anna.says(".where", "online")
	w.awaitMQTT("kitchen")
	anna.pin("Garage door", pagePIN) // what comes after everything that was kept, if something was
	h.awaitRan("cmnd/garage open", before.garage+1)
	h.m.pub("stat/garage", "open", "-r")
	anna.says(garage+" .last", "Done")
	if n := h.ran(); n.lamp != before.lamp || n.garage != before.garage+1 {
		t.Errorf("when the home came back: %+v, then %+v", before, n)
	}

	// Nobody answers, and somebody opens the page: the worker has kept one.
	w.relay.kill()
	anna.mustOpen(h.page(), "You are offline")
	if text := anna.text(); strings.Contains(text, "Garage") || strings.Contains(text, "kitchen") {
		t.Errorf("the kept page says %q", text)
	}
	anna.shots("offline-page")
	w.startRelay()
	anna.click("#again")
	anna.says(".where", "online")
	if n := h.ran(); n.lamp != before.lamp || n.garage != before.garage+1 {
		t.Errorf("in the end: %+v, was %+v", n, before)
	}
}
