package admin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	loginTTL    = 10 * time.Minute
	sessionTTL  = 12 * time.Hour
	maxLogins   = 8  // links that wait; the oldest goes
	maxSessions = 16 // browsers; the oldest goes
)

// A Login guards a dashboard on a loopback port, where every user of the
// machine could knock: a one-time link from the command line opens a session
// of 12 hours, held in memory only, as a cookie that scripts cannot read.
//
// Browsers send cookies of 127.0.0.1 to all its ports. So a page that another
// user of this machine serves could learn the session if the owner opens it in
// the same browser; where that matters, use the unix socket.
type Login struct {
	now  func() time.Time
	rec  func(event string, attrs ...slog.Attr)
	name string // of the cookie: two relays on one machine must not overwrite each other's

	mu       sync.Mutex // guards the fields below
	links    []secret
	sessions []*session
	fault    time.Time // of the last failure that was recorded
}

// secret is the hash of something that was shown once.
type secret struct {
	sum [sha256.Size]byte
	end time.Time
}

type session struct {
	secret
	live map[*http.Request]context.CancelFunc // under way: event streams outlive the logout otherwise
}

// cut ends the requests that are under way.
func (s *session) cut() {
	for _, cancel := range s.live {
		cancel()
	}
}

// NewLogin returns a Login that nobody has a link to. A nil now means
// time.Now. Record writes logins and failed ones to the audit log; nil: nothing
// is written.
func NewLogin(now func() time.Time, record func(event string, attrs ...slog.Attr)) *Login {
	if now == nil {
		now = time.Now
	}
	if record == nil {
		record = func(string, ...slog.Attr) {}
	}
	return &Login{now: now, rec: record, name: "sallyport-" + strings.ToLower(rand.Text()[:8])}
}

// Link returns a link that opens one session within ten minutes. Base is the
// listener's address as a browser writes it: "http://127.0.0.1:9080". The
// secret is in the fragment, so that no log and no preview sees it.
func (l *Login) Link(base string) string {
	code := rand.Text()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.links = append(l.links, secret{sum: sha256.Sum256([]byte(code)), end: l.now().Add(loginTTL)})
	if len(l.links) > maxLogins {
		l.links = l.links[1:]
	}
	return strings.TrimSuffix(base, "/") + "/login#" + code
}

// open takes a code and returns the cookie of a new session. A code works
// once. The comparison is of hashes: its time says nothing about the code.
func (l *Login) open(code string) (*http.Cookie, bool) {
	sum := sha256.Sum256([]byte(strings.ToUpper(strings.TrimSpace(code))))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget()
	at := slices.IndexFunc(l.links, func(s secret) bool { return s.sum == sum })
	if at < 0 {
		return nil, false
	}
	l.links = slices.Delete(l.links, at, at+1)
	value := rand.Text()
	l.sessions = append(l.sessions, &session{
		secret: secret{sum: sha256.Sum256([]byte(value)), end: l.now().Add(sessionTTL)},
		live:   map[*http.Request]context.CancelFunc{},
	})
	if len(l.sessions) > maxSessions {
		l.sessions[0].cut()
		l.sessions = l.sessions[1:]
	}
	return l.cookie(value, int(sessionTTL.Seconds())), true
}

// failed records a wrong code, at most one a minute: each line is synced to
// disk, and every user of the machine may knock.
func (l *Login) failed() {
	l.mu.Lock()
	now := l.now()
	due := now.Sub(l.fault) >= time.Minute
	if due {
		l.fault = now
	}
	l.mu.Unlock()
	if due {
		l.rec("dashboard.login-failed")
	}
}

// find returns the session of a request, nil without one. The caller holds the
// lock.
func (l *Login) find(r *http.Request) *session {
	c, err := r.Cookie(l.name)
	if err != nil {
		return nil
	}
	l.forget()
	sum := sha256.Sum256([]byte(c.Value))
	if at := slices.IndexFunc(l.sessions, func(s *session) bool { return s.sum == sum }); at >= 0 {
		return l.sessions[at]
	}
	return nil
}

// inside reports whether a request belongs to a session.
func (l *Login) inside(r *http.Request) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.find(r) != nil
}

// begin returns the context of a request, which ends with its session, and the
// function to call after it; nil without a session.
func (l *Login) begin(r *http.Request) (context.Context, func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.find(r)
	if s == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.end.Sub(l.now()))
	s.live[r] = cancel
	return ctx, func() {
		cancel()
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(s.live, r)
	}
}

// end closes the session of a request and what is under way in it.
func (l *Login) end(r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.find(r); s != nil {
		s.cut()
		l.sessions = slices.DeleteFunc(l.sessions, func(o *session) bool { return o == s })
	}
}

// forget drops what is over. The caller holds the lock.
func (l *Login) forget() {
	now := l.now()
	l.links = slices.DeleteFunc(l.links, func(s secret) bool { return !now.Before(s.end) })
	l.sessions = slices.DeleteFunc(l.sessions, func(s *session) bool {
		over := !now.Before(s.end)
		if over {
			s.cut()
		}
		return over
	})
}

func (l *Login) cookie(value string, age int) *http.Cookie {
	// Not Secure: loopback has no TLS, and Safari then drops such a cookie.
	return &http.Cookie{Name: l.name, Value: value, Path: "/", MaxAge: age, HttpOnly: true, SameSite: http.SameSiteStrictMode}
}

// Wrap lets only sessions through to a dashboard and serves /login and
// /logout itself.
func (l *Login) Wrap(dashboard http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) {
		showLogin(w, http.StatusOK, false)
	})
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if readForm(r) != nil {
			showLogin(w, http.StatusBadRequest, true)
			return
		}
		c, ok := l.open(r.PostForm.Get("code"))
		if !ok && l.inside(r) { // a used link, opened again in the browser that used it
			http.Redirect(w, r, "/", http.StatusSeeOther)
			return
		}
		if !ok {
			l.failed()
			showLogin(w, http.StatusForbidden, true)
			return
		}
		l.rec("dashboard.login")
		http.SetCookie(w, c)
		http.Redirect(w, r, "/", http.StatusSeeOther)
	})
	mux.HandleFunc("POST /logout", func(w http.ResponseWriter, r *http.Request) {
		l.end(r)
		http.SetCookie(w, l.cookie("", -1))
		http.Redirect(w, r, "/login", http.StatusSeeOther)
	})
	mux.Handle("GET "+assetPath, http.HandlerFunc(serveAsset))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		ctx, done := l.begin(r)
		if ctx == nil {
			if r.Method == http.MethodGet && r.URL.Path == "/" {
				http.Redirect(w, r, "/login", http.StatusSeeOther)
				return
			}
			showLogin(w, http.StatusUnauthorized, false)
			return
		}
		defer done()
		dashboard.ServeHTTP(w, r.WithContext(withLogout(ctx)))
	})
	return guardPages(LocalHosts, mux)
}

// ListenLoopback opens the port of a dashboard behind a Login. It refuses
// addresses that other machines can reach.
func ListenLoopback(ctx context.Context, addr string) (net.Listener, error) {
	fault := &Error{
		Code: CodeBadRequest, Message: "the dashboard listens on loopback only, not on " + addr,
		Hint: "say 127.0.0.1:PORT, or use --admin-host to open it for devices marked admin",
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fault
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fault
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("open the dashboard's port: %w", err)
	}
	// "localhost" is whatever the resolver says it is.
	if a, ok := l.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		l.Close()
		return nil, fault
	}
	return l, nil
}
