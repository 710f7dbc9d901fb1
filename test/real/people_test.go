package real

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// clockApp is a home page with a live clock, and beside it what arrived.
func clockApp(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/", homeApp())
	mux.HandleFunc("GET /page", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, `<!doctype html><title>Home</title><h1>Home of %s</h1><p id="sse">-</p><p id="ws">-</p><script>
let n = 0;
new EventSource("/clock").onmessage = e => { document.getElementById("sse").textContent = "tick " + e.data; n++; window.ticks = n; };
const s = new WebSocket("wss://" + location.host + "/ws");
s.onopen = () => { window.socket = "open"; s.send("hello"); };
s.onmessage = e => { document.getElementById("ws").textContent = "echo " + e.data; };
s.onclose = () => { window.socket = "closed"; };
</script>`, r.Header.Get("Sallyport-Device"))
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.Listener.Addr().String()
}

// withP12 adds a device whose key was made on the relay and installs it.
func (w *world) withP12(b *chromium, name string, flags ...string) {
	w.t.Helper()
	p12 := w.file(name + ".p12")
	password := strings.TrimSpace(mustRun(w.t, append([]string{binary, "device", "add", name, "--data", w.relayDir(), "--p12", p12}, flags...)...))
	b.install(p12, password)
}

// TestFourPeople: who holds a certificate is at home; who holds none meets a
// refused handshake, or at an ask host a page; who is revoked loses the living
// page within a second and reads why.
func TestFourPeople(t *testing.T) {
	slow(t)
	w := newWorld(t)
	app := clockApp(t)
	w.home("first", "--expose", "ha="+app)
	w.expose("first", "album", app, "--auth", "ask")

	anna := w.newPerson("anna")
	w.withP12(anna, "anna-phone")
	anna.start()
	anna.mustOpen(w.url("ha", "/page"), "Home of anna-phone")
	anna.waitText("echo hello", 10*time.Second)
	anna.mustOpen(w.url("album", "/page"), "Home of anna-phone")
	anna.waitText("echo hello", 10*time.Second)
	anna.shots("at-home")

	stranger := w.newPerson("stranger").start()
	if text, err := stranger.open(w.url("ha", "/page")); err == nil || !strings.Contains(err.Error(), "ERR_BAD_SSL_CLIENT_AUTH_CERT") {
		t.Errorf("without a certificate, require: %q, %v", tail(text, 300), err)
	}
	text := stranger.mustOpen(w.url("album", "/page"), "certificate")
	if strings.Contains(text, "Home of") {
		t.Errorf("without a certificate, ask: the home answered: %q", text)
	}
	stranger.shots("ask-without")

	// Revoked while the page lives.
	before, err := eval[int](anna, `window.ticks || 0`)
	if err != nil || before == 0 {
		t.Fatalf("the clock does not run: %d, %v", before, err)
	}
	mustRun(t, binary, "device", "revoke", "anna-phone", "--data", w.relayDir())
	revoked := time.Now()
	if err := anna.do(10*time.Second, waitTrue(`window.socket === "closed"`)); err != nil {
		t.Fatalf("the WebSocket of a revoked device stays open: %v", err)
	}
	t.Logf("the browser saw its WebSocket end %v after the command returned", time.Since(revoked))
	if limit := time.Second; time.Since(revoked) > limit && !raceEnabled {
		t.Errorf("the WebSocket of a revoked device ended only after %v", time.Since(revoked))
	}
	// EventSource reconnects by itself: it must not come in again.
	stopped, _ := eval[int](anna, `window.ticks`)
	later, _ := eval[int](anna, `new Promise(ok => setTimeout(() => ok(window.ticks), 1500))`)
	if later > stopped+1 {
		t.Errorf("the clock runs on after the revocation: %d, then %d", stopped, later)
	}
	anna.mustOpen(w.url("album", "/page"), "removed")
	anna.shots("ask-revoked")
	if text, err := anna.open(w.url("ha", "/page")); err == nil {
		t.Errorf("a revoked device opened a require host: %q", tail(text, 300))
	}
}

// TestCoalescing: one wildcard certificate, one address, and a host without
// client certificates beside one with. Chromium sends the request for the
// second over the connection of the first; it must get 421 there, and the page
// over a connection with its certificate.
func TestCoalescing(t *testing.T) {
	slow(t)
	needTools(t, "chromium", "certutil")
	dir := shortDir(t)
	ca := newTestCA(t, dir)
	cert, key := ca.issue(t, "*."+domain)
	w := newWorld(t, "--certs", "files", "--cert", cert, "--key", key)
	w.roots = ca.file
	app := clockApp(t)
	w.home("first", "--expose", "ha="+app)
	w.expose("first", "pub", app, "--auth", "none")

	anna := w.newPerson("anna")
	w.withP12(anna, "anna-phone")
	anna.start()
	anna.mustOpen(w.url("pub", "/"), "hello from home")
	got, err := eval[string](anna, fmt.Sprintf(`fetch(%q, {mode: "no-cors", credentials: "include"}).then(r => "answered", e => String(e))`, w.url("ha", "/seen")))
	if err != nil || got != "answered" {
		t.Fatalf("a request for the other host from the open page: %q, %v", got, err)
	}
	text := anna.mustOpen(w.url("ha", "/seen"), "Client-Cert")
	if !strings.Contains(text, "anna-phone") {
		t.Errorf("the home was not told who came: %s", text)
	}

	// The same without a certificate: never the backend.
	stranger := w.newPerson("stranger").start()
	stranger.mustOpen(w.url("pub", "/"), "hello from home")
	got, err = eval[string](stranger, fmt.Sprintf(`fetch(%q, {mode: "no-cors", credentials: "include"}).then(r => "answered", e => String(e))`, w.url("ha", "/seen")))
	if err != nil || !strings.Contains(got, "TypeError") {
		t.Errorf("a stranger's request over the open connection: %q, %v", got, err)
	}
	if text, err := stranger.open(w.url("ha", "/seen")); err == nil {
		t.Errorf("a stranger opened a require host: %q", tail(text, 300))
	}
	if !strings.Contains(w.relay.out.String(), "status=421") {
		t.Error("nobody was answered 421: this Chromium does not coalesce, and the test shows nothing")
	}
}
