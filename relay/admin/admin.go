// Package admin is the relay's door for its owner: HTTP and JSON over a unix
// socket in the data directory that only the relay's user can open, a typed
// Client for the command line, and the audit log.
//
//	srv, err := admin.New(admin.Config{Dir: data, API: admin.API{Status: status, …}})
//	go srv.Run(ctx)
//
//	c := admin.NewClient(data)
//	st, err := c.Status(ctx)
//
// Every answer is one JSON object with "schema":1; every error is an Error.
//
// The dashboard shows the same as web pages, through up to three doors: a unix
// socket beside the other for ssh -L, a loopback port behind a one-time login
// link, and admin.DOMAIN for devices that are marked as administrators:
//
//	l, err := admin.ListenDashboard(data)
//	go admin.ServeDashboard(ctx, l, admin.NewDashboard(admin.DashboardConfig{
//		API: api, Audit: log.Last, Record: log.Event, Changes: bell.Listen, Hosts: admin.LocalHosts,
//	}), logger)
//
// Its pages are HTML with plain forms; a script of a few lines renews them
// when an event stream says so. Forms of other sites, other names for the same
// address, and whatever is not written in the policy are refused.
package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"time"
)

const (
	// Schema is the version of the JSON that this package speaks.
	Schema = 1
	// SocketName is the socket's name inside the data directory.
	SocketName = "relay.sock"
	// host is the only Host that is answered: a web page that was tricked into
	// reaching the socket through some forwarder sends another.
	host = "sallyport"

	maxBody   = 128 << 10
	maxAnswer = 16 << 20
)

// API is what the relay lets its owner do. A nil field is answered with
// CodeUnavailable. Functions return *Error where the owner can do something
// about it; an error with a method Hint() string becomes one with its hint.
type API struct {
	Status       func(ctx context.Context) (Status, error)
	NewToken     func(ctx context.Context, q TokenRequest) (Token, error)
	CA           func(ctx context.Context) (CA, error)
	AddDevice    func(ctx context.Context, q DeviceRequest) (IssuedDevice, error)
	Devices      func(ctx context.Context) ([]Device, error)
	RevokeDevice func(ctx context.Context, name string) (Device, error)
	Agents       func(ctx context.Context) ([]Agent, error)
	RevokeAgent  func(ctx context.Context, name string) (Agent, error)
	Grant        func(ctx context.Context, q GrantRequest) (Agent, error)
	Hosts        func(ctx context.Context) ([]Host, error)
	ReleaseHost  func(ctx context.Context, host string) error
	Reload       func(ctx context.Context) (Reloaded, error)

	// Enrolment and rights.
	Invite         func(ctx context.Context, q InviteRequest) (Invite, error)
	AddTokenDevice func(ctx context.Context, q TokenDeviceRequest) (TokenDevice, error)
	ChangeDevice   func(ctx context.Context, name string, c DeviceChange) (Device, error)
	Requests       func(ctx context.Context) ([]EnrolRequest, error) // that wait for the owner
	Approve        func(ctx context.Context, idOrName string) (EnrolRequest, error)
	Deny           func(ctx context.Context, idOrName string) (EnrolRequest, error)
	Invites        func(ctx context.Context) ([]WaitingInvite, error) // links that nobody used yet
	WithdrawInvite func(ctx context.Context, id string) error
	ResetClock     func(ctx context.Context) error // forget a moment that a wrong clock made up

	// Public certificates, and the dashboard's doors.
	Certificates     func(ctx context.Context) ([]PublicCert, error)
	RetryCertificate func(ctx context.Context, host string) error
	Dashboard        func(ctx context.Context) (DashboardInfo, error)
}

// Config is what a Server needs.
type Config struct {
	Dir    string // the data directory; the socket is Dir/relay.sock
	API    API
	Logger *slog.Logger // nil: discarded
}

// A Server answers the owner's commands.
type Server struct {
	cfg Config
	log *slog.Logger
}

// New returns a Server. It starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Dir == "" {
		return nil, errors.New("admin: no data directory")
	}
	s := &Server{cfg: cfg, log: cfg.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s, nil
}

// Run listens on the socket and serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	l, err := s.Listen()
	if err != nil {
		return err
	}
	return s.Serve(ctx, l)
}

// Listen opens the socket, mode 0600. A socket that a dead relay left is
// replaced; one that answers is an error.
func (s *Server) Listen() (net.Listener, error) { return listen(s.cfg.Dir) }

// Serve answers on l until ctx ends and closes it. Answers under way get
// three seconds.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      2 * time.Minute,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	if err := serveUntil(ctx, srv, l); err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	return nil
}

// Handler is the API without the socket.
func (s *Server) Handler() http.Handler {
	a, mux := s.cfg.API, http.NewServeMux()
	// One line per command.
	get(mux, "/v1/status", a.Status)
	get(mux, "/v1/ca", a.CA)
	get(mux, "/v1/devices", list(a.Devices, func(l []Device) any { return deviceList{l} }))
	get(mux, "/v1/agents", list(a.Agents, func(l []Agent) any { return agentList{l} }))
	get(mux, "/v1/hosts", list(a.Hosts, func(l []Host) any { return hostList{l} }))
	post(mux, "/v1/tokens", a.NewToken)
	post(mux, "/v1/devices", a.AddDevice)
	post(mux, "/v1/reload", noInput(a.Reload))
	post(mux, "/v1/grants", a.Grant)
	onName(mux, "/v1/devices/{name}/revoke", a.RevokeDevice)
	onName(mux, "/v1/agents/{name}/revoke", a.RevokeAgent)
	onName(mux, "/v1/hosts/{name}/release", noOutput(a.ReleaseHost))
	post(mux, "/v1/invites", a.Invite)
	post(mux, "/v1/token-devices", a.AddTokenDevice)
	onNameWith(mux, "/v1/devices/{name}/change", a.ChangeDevice)
	get(mux, "/v1/requests", list(a.Requests, func(l []EnrolRequest) any { return requestList{l} }))
	onName(mux, "/v1/requests/{name}/approve", a.Approve)
	onName(mux, "/v1/requests/{name}/deny", a.Deny)
	get(mux, "/v1/invites", list(a.Invites, func(l []WaitingInvite) any { return inviteList{l} }))
	onName(mux, "/v1/invites/{name}/withdraw", noOutput(a.WithdrawInvite))
	post(mux, "/v1/clock/reset", noInput(nothing(a.ResetClock)))
	get(mux, "/v1/certificates", list(a.Certificates, func(l []PublicCert) any { return certList{l} }))
	onName(mux, "/v1/certificates/{name}/retry", noOutput(a.RetryCertificate))
	post(mux, "/v1/dashboard", noInput(a.Dashboard))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, &Error{Code: CodeNotFound, Message: "no such command: " + r.Method + " " + r.URL.Path, Hint: "relay and command line may be of different versions: run both from the same binary"})
	})
	return s.guard(mux)
}

// guard bounds and checks what every request must obey.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Host != host:
			fail(w, &Error{Code: CodeRefused, Message: "wrong Host", Hint: "use http://" + host + "/…"})
			return
		case r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "":
			fail(w, &Error{Code: CodeRefused, Message: "browsers are not served here"})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if r.Method != http.MethodGet {
			s.log.Info("admin command", "method", r.Method, "path", r.URL.Path)
		}
		next.ServeHTTP(w, r)
	})
}

func get[Out any](mux *http.ServeMux, path string, do func(context.Context) (Out, error)) {
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		if do == nil {
			fail(w, errUnavailable)
			return
		}
		out, err := do(r.Context())
		answer(w, out, err)
	})
}

func post[In, Out any](mux *http.ServeMux, path string, do func(context.Context, In) (Out, error)) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var in In
		if do == nil {
			fail(w, errUnavailable)
			return
		}
		if err := readJSON(r, &in); err != nil {
			fail(w, err)
			return
		}
		out, err := do(r.Context(), in)
		answer(w, out, err)
	})
}

func onName[Out any](mux *http.ServeMux, path string, do func(context.Context, string) (Out, error)) {
	if do == nil {
		onNameWith[struct{}, Out](mux, path, nil)
		return
	}
	onNameWith(mux, path, func(ctx context.Context, name string, _ struct{}) (Out, error) { return do(ctx, name) })
}

func onNameWith[In, Out any](mux *http.ServeMux, path string, do func(context.Context, string, In) (Out, error)) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var in In
		if do == nil {
			fail(w, errUnavailable)
			return
		}
		if err := readJSON(r, &in); err != nil {
			fail(w, err)
			return
		}
		out, err := do(r.Context(), r.PathValue("name"), in)
		answer(w, out, err)
	})
}

func list[T any](do func(context.Context) ([]T, error), wrap func([]T) any) func(context.Context) (any, error) {
	if do == nil {
		return nil
	}
	return func(ctx context.Context) (any, error) {
		l, err := do(ctx)
		if l == nil {
			l = []T{} // [] and not null
		}
		return wrap(l), err
	}
}

func noInput[Out any](do func(context.Context) (Out, error)) func(context.Context, struct{}) (Out, error) {
	if do == nil {
		return nil
	}
	return func(ctx context.Context, _ struct{}) (Out, error) { return do(ctx) }
}

func nothing(do func(context.Context) error) func(context.Context) (struct{}, error) {
	if do == nil {
		return nil
	}
	return func(ctx context.Context) (struct{}, error) { return struct{}{}, do(ctx) }
}

func noOutput(do func(context.Context, string) error) func(context.Context, string) (struct{}, error) {
	if do == nil {
		return nil
	}
	return func(ctx context.Context, name string) (struct{}, error) { return struct{}{}, do(ctx, name) }
}

// readJSON is strict: a misspelt field would silently mean its default.
func readJSON(r *http.Request, v any) error {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return &Error{Code: CodeBadRequest, Message: "the body must be application/json"}
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("more than one JSON value")
		}
	}
	if err != nil {
		return &Error{Code: CodeBadRequest, Message: "the body is not the JSON that is expected: " + err.Error()}
	}
	return nil
}

// answer writes out as one object that begins with the schema.
func answer(w http.ResponseWriter, out any, err error) {
	if err != nil {
		fail(w, err)
		return
	}
	body, err := json.Marshal(out)
	if err != nil || len(body) < 2 || body[0] != '{' {
		fail(w, fmt.Errorf("encode the answer: %w", cmp.Or(err, errors.New("not an object"))))
		return
	}
	head := fmt.Sprintf(`{"schema":%d`, Schema)
	if len(body) > 2 {
		head += ","
	}
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, head+string(body[1:])+"\n")
}

func fail(w http.ResponseWriter, err error) {
	e := asError(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.status())
	json.NewEncoder(w).Encode(e) // a client that went away needs no answer
}
