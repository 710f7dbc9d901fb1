package admin

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// DashboardConfig is what a dashboard needs.
type DashboardConfig struct {
	API API // what it shows and does; nil fields are left out of the pages
	// Audit returns the newest n lines of the audit log, newest first, as
	// Log.Last does. Nil: the log is not shown.
	Audit func(n int) ([]AuditLine, error)
	// Changes returns a channel that gets a value after something changed,
	// until ctx ends. Nil: pages refresh every 20 seconds only. See Bell.
	Changes func(ctx context.Context) <-chan struct{}
	// Record writes one line to the audit log for each command: who, what,
	// how it went. Nil: nothing is written.
	Record func(event string, attrs ...slog.Attr)
	// Remote is true at admin.DOMAIN: from there no administrator is approved
	// or changed, only shut out, and links live for a day at most.
	Remote bool
	// Actor names who sends a request, for the audit log: the device at
	// admin.DOMAIN. Nil: "dashboard". The caller has checked that it may.
	Actor func(*http.Request) string
	// Hosts are the names under which it is served, without port. A request
	// for any other is refused: a page of a stranger that made its own name
	// point here sends that name. Empty: nothing is served.
	Hosts  []string
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: discarded
}

// dashboard shows the relay to its owner as web pages. Every page works
// without scripts; a small script keeps it up to date.
type dashboard struct {
	cfg     DashboardConfig
	api     API
	now     func() time.Time
	log     *slog.Logger
	streams chan struct{} // one value per open event stream
}

// NewDashboard returns the owner's web pages. Whoever reaches the handler may
// use it: the caller guards the way to it, by a socket's mode, a Login, or a
// device certificate that is checked at every request.
//
// On no way can it mint join tokens, make keys or export them: it does not
// hold those functions of the API. Nor can it mark administrators: only the
// command line at the relay does.
func NewDashboard(cfg DashboardConfig) http.Handler {
	d := &dashboard{cfg: cfg, now: cfg.Now, log: cfg.Logger, streams: make(chan struct{}, maxStreams)}
	if d.now == nil {
		d.now = time.Now
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.api = pagesAPI(cfg.API)
	if cfg.Remote {
		d.api = remoteAPI(d.api)
	}
	mux := http.NewServeMux()
	for path, show := range map[string]http.HandlerFunc{
		"/{$}":            d.overview,
		"/devices":        d.devices,
		"/devices/{name}": d.device,
		"/invite":         d.invite,
		"/homes":          d.homes,
		"/certificates":   d.certificates,
		"/log":            d.auditLog,
		"/events":         d.events,
		assetPath:         serveAsset,
	} {
		mux.HandleFunc("GET "+path, show)
	}
	// One line per command: it runs only for a form of our own page.
	d.command(mux, "/requests/{name}/approve", "approve", "/", d.approve)
	d.command(mux, "/requests/{name}/deny", "deny", "/", d.deny)
	d.command(mux, "/devices/{name}/revoke", "revoke-device", "/devices", d.revokeDevice)
	d.command(mux, "/devices/{name}/change", "change-device", "", d.changeDevice)
	d.command(mux, "/invites/{name}/withdraw", "withdraw-invite", "/devices", d.withdrawInvite)
	d.command(mux, "/agents/{name}/revoke", "revoke-agent", "/homes", d.revokeAgent)
	d.command(mux, "/hosts/{name}/release", "release-host", "/homes", d.releaseHost)
	d.command(mux, "/certificates/{name}/retry", "retry-certificate", "/certificates", d.retryCertificate)
	mux.HandleFunc("POST /invite", d.makeInvite)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		d.fault(w, r, "/", &Error{Code: CodeNotFound, Message: "There is no such page."})
	})
	return guardPages(cfg.Hosts, mux)
}

// contentPolicy allows what the pages are made of and nothing else: no inline
// script or style, no foreign anything, no way to make markup from strings.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// guardPages puts around pages what each must obey.
func guardPages(hosts []string, next http.Handler) http.Handler {
	next = http.NewCrossOriginProtection().Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if !hostAllowed(hosts, r.Host) {
			http.Error(w, "The dashboard is not served under this name.", http.StatusMisdirectedRequest)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		next.ServeHTTP(w, r)
	})
}

// hostAllowed compares exactly, whatever the port: a forwarded one is any.
func hostAllowed(hosts []string, got string) bool {
	name, _, err := net.SplitHostPort(got)
	if err != nil {
		name = strings.TrimSuffix(strings.TrimPrefix(got, "["), "]")
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	return name != "" && slices.Contains(hosts, name)
}

// maxForm bounds a form, in bytes.
const maxForm = 16 << 10

// readForm reads the fields of a posted form into r.PostForm.
func readForm(r *http.Request) error {
	if t, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.TrimSpace(t) != "application/x-www-form-urlencoded" {
		return &Error{Code: CodeBadRequest, Message: "The form came in a shape that is not understood."}
	}
	if err := r.ParseForm(); err != nil {
		return &Error{Code: CodeBadRequest, Message: "The form could not be read."}
	}
	return nil
}

func (d *dashboard) actor(r *http.Request) string {
	if d.cfg.Actor == nil {
		return "dashboard"
	}
	return cmp.Or(d.cfg.Actor(r), "dashboard")
}

// commandEvent is what the audit log calls a button that was pressed.
const commandEvent = "dashboard.command"

// record writes what somebody asked for and how it went.
func (d *dashboard) record(r *http.Request, command, name string, err error) {
	outcome := "done"
	if err != nil {
		outcome = asError(err).Code
	}
	d.log.Info("dashboard command", "actor", d.actor(r), "command", command, "name", name, "outcome", outcome)
	if d.cfg.Record != nil {
		d.cfg.Record(commandEvent, slog.String("actor", d.actor(r)), slog.String("command", command),
			slog.String("name", name), slog.String("outcome", outcome))
	}
}

// errGone is about a request that is no longer what the page showed.
var errGone = &Error{
	Code: CodeNotFound, Message: "That request is no longer waiting.",
	Hint: "It was answered already, or it ran out. If the device still wants in, it asks again.",
}
