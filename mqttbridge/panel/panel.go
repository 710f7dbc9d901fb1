// Package panel is the phone's command page: large buttons for the actions of
// every home that a device may use, with live state, as an installable page
// (PWA). It keeps no state: what it shows and sends goes through a Backend
// (dispatch at the relay). Whoever serves it has verified the client
// certificate and says whose it is:
//
//	p, err := panel.New(panel.Config{Backend: dispatcher, Device: deviceOf, Name: "Home"})
//	http.Handle("/", p)
//
// Commands are signed in the page by a key of the browser's (not extractable,
// in IndexedDB) and judged at home; PINs are sealed to the home's key. The
// panel sees neither. Whoever serves the page can use its key while it is open.
//
// # The JSON API
//
// Bodies are application/json, at most 16 KiB; bytes are base64 (standard,
// padded); times are RFC 3339. Unknown fields are ignored on both sides.
//
//	GET  /api/homes                200 {"device", "version", "homes": [mqttbridge.Home]}
//	POST /api/challenge            {"home", "action"}  200 {"challenge", "life_ms"}
//	POST /api/keys                 {"home", "key": SPKI}  200 {"trust"}
//	POST /api/commands/{action}    {"home", "command": mqttbridge.Signed}
//	  202 mqttbridge.Status, after the relay has it on disk. home is the agent's
//	      name, in the envelope its key ID. An Idempotency-Key must be the
//	      envelope's id; the same bytes again get the same command's status.
//	  A refused one is a Status too, with 400 (malformed), 403 (not allowed,
//	      PIN, hours), 404 (no such action), 409 (used before), 423 (locked),
//	      429 (too often) or 503 (the home is away).
//	GET  /api/commands/{id}        200 mqttbridge.Status, 404 when it is not the device's own
//	GET  /api/events               200 text/event-stream:
//	  event hello: as /api/homes, first; event home: mqttbridge.Home, at every
//	  change; event gone: {"home"}; event command: mqttbridge.Status of the
//	  device's own; event ping every 15 s. Ends after half an hour: whoever
//	  still watches asks again.
//
// Every other answer is {"error", "code"?}. 401, or 403 without a code: this
// device may not use the panel (any more).
package panel

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A Backend carries commands to the homes; *dispatch.Dispatcher is one. Device
// is always the verified name. Its methods may be called concurrently. Errors
// that are a *mqttbridge.Refusal are told to the visitor; all others are logged
// and told as "internal".
type Backend interface {
	// Homes returns what the device may use, homes that are away included.
	Homes(device string) []mqttbridge.Home
	// Challenge asks the home for one.
	Challenge(ctx context.Context, device, home, action string) (mqttbridge.Challenge, error)
	// OfferKey tells the home the device's signing key (SPKI) and returns what
	// the home thinks of it.
	OfferKey(ctx context.Context, device, home string, spki []byte) (mqttbridge.Trust, error)
	// Send takes a command: once it returned nil, the command ends in a final
	// state whatever happens, and after an error it never runs. The same bytes
	// again return its status.
	Send(ctx context.Context, device, home string, s mqttbridge.Signed) (mqttbridge.Status, error)
	// Command returns the status of one of the device's own commands.
	Command(device, id string) (mqttbridge.Status, bool)
	// Watch tells changes until ctx ends or the device must not watch any more,
	// then it closes the channel. Slow readers get the newest of each home.
	Watch(ctx context.Context, device string) <-chan mqttbridge.Event
}

// Config is what the panel needs. Backend and Device are required. The
// functions are called concurrently.
type Config struct {
	// Backend carries the commands.
	Backend Backend
	// Device returns the name of the device whose certificate came with a
	// request. Not ok: no certificate, or one that may not come in now.
	Device func(r *http.Request) (name string, ok bool)
	// Enroll is the URL at which a device gets a certificate, for those that
	// have none. "": the page says to ask the owner.
	Enroll string
	// Name is the title of the page and of the installed app. "": "Home".
	Name string
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
	// Logger gets what fails inside; never a body. Nil: silence.
	Logger *slog.Logger
}

// A Panel is the page with its API.
type Panel struct {
	cfg    Config
	log    *slog.Logger
	assets *assets
	shell  *http.ServeMux // what everybody may load
	api    http.Handler   // what devices may load
}

// New checks the configuration and prepares the page. It starts nothing.
func New(cfg Config) (*Panel, error) {
	if cfg.Backend == nil || cfg.Device == nil {
		return nil, errors.New("command page: Backend and Device are needed")
	}
	if cfg.Name == "" {
		cfg.Name = "Home"
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Panel{cfg: cfg, log: cfg.Logger}
	var err error
	if p.assets, err = loadAssets(cfg.Name, cfg.Enroll); err != nil {
		return nil, err
	}
	p.shell = http.NewServeMux()
	p.shell.HandleFunc("GET /app/{version}/{name}", p.assets.serveVersioned)
	for path := range p.assets.fixed {
		p.shell.HandleFunc("GET "+path, p.assets.serveFixed)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.page)
	mux.HandleFunc("GET /api/homes", p.homes)
	mux.HandleFunc("POST /api/challenge", p.challenge)
	mux.HandleFunc("POST /api/keys", p.offerKey)
	mux.HandleFunc("POST /api/commands/{action}", p.send)
	mux.HandleFunc("GET /api/commands/{id}", p.command)
	mux.HandleFunc("GET /api/events", p.events)
	mux.HandleFunc("/api/", noSuchCall)
	mux.HandleFunc("/", noSuchPage)
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		// With a code: the page must not take it for "removed".
		answer(w, http.StatusForbidden, fault{Error: "commands come from this page only, not from another site", Code: "cross-origin"})
	}))
	p.api = guard.Handler(mux)
	return p, nil
}

// ServeHTTP serves page and API to devices, and the shell to everybody.
func (p *Panel) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p.Shell(w, r) {
		return
	}
	harden(w, r)
	name, ok := p.cfg.Device(r)
	switch {
	case ok && name != "":
		p.api.ServeHTTP(w, r.WithContext(withDevice(r.Context(), name)))
	case strings.HasPrefix(r.URL.Path, "/api/"):
		answer(w, http.StatusForbidden, fault{Error: "this device may not use this page: it showed no certificate, or was removed"})
	default:
		p.stranger(w, r)
	}
}

// Shell serves what says nothing about anybody and may be loaded without a
// certificate: the manifest, icons, service worker, scripts and styles. Phones
// fetch these from places that have no certificate (Android installs pages
// through a service of its vendor). It reports whether r was for one of these;
// if not, it wrote nothing.
func (p *Panel) Shell(w http.ResponseWriter, r *http.Request) bool {
	if _, pattern := p.shell.Handler(r); pattern == "" {
		return false
	}
	harden(w, r)
	p.shell.ServeHTTP(w, r) // not that handler: only the mux fills in the path's values
	return true
}

type deviceKey struct{}

func withDevice(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, deviceKey{}, name)
}

// device is whose request it is; ServeHTTP lets nobody else get this far.
func device(r *http.Request) string {
	name, _ := r.Context().Value(deviceKey{}).(string)
	return name
}

// policy is the CSP of everything here: what is not from this host does not
// load, and no string becomes markup or script.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; manifest-src 'self'; worker-src 'self'; " +
	"form-action 'none'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types panel"

// readTimeout is for bodies, also of calls that do not read theirs: net/http
// waits for the rest before it answers.
const readTimeout = 15 * time.Second

// harden sets what every answer says. Handlers loosen what they must.
func harden(w http.ResponseWriter, r *http.Request) {
	if r.Body != nil && r.Body != http.NoBody {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readTimeout)) // not every writer has one
	}
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Robots-Tag", "noindex, nofollow")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	h.Set("Cache-Control", "no-store")
}
