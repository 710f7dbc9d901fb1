// Package uplink keeps an agent connected: it races transports, remembers what
// worked, falls back, moves up again, backs off, and obeys GoAway. It knows
// nothing of what runs on a session; that is the serve function's business.
//
//	up, err := uplink.New(uplink.Config{Host: "relay.example.org", Port: 443,
//		Transports: []tunnel.Transport{quic, tcp}})
//	err = up.Run(ctx, func(ctx context.Context, s tunnel.Session, l *uplink.Link) error {
//		… speak on s, call l.Ready(), return when the session is over …
//	})
//
// There is one primary session. Whatever the reason for a new one (a better
// transport, a GoAway, a stall), it is opened and made ready first; only then
// the old one drains. Run never ends because network, DNS or relay is absent.
package uplink

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel"
)

// Config is what an Uplink needs. Host and Transports are required.
type Config struct {
	Host string // name or address of the relay; looked up at every dial
	Port uint16 // 0 = 443
	// Transports in order of preference. A session on any but the first is
	// given up for a better one as soon as that works.
	Transports []tunnel.Transport
	// Resolve looks Host up; nil asks the system's resolver. Not called when
	// Host is an address.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Stagger is the head start of each transport over the next, and of each
	// address over the next; 0 = 250 ms.
	Stagger time.Duration
	// Preferred returns the name of the transport that worked last, "" when
	// not known; Remember stores it. Both may be nil.
	Preferred func() string
	Remember  func(name string)
	// OnStable is called when a session has been ready for 60 s; nil = not.
	OnStable func(at time.Time)
	// Grace is how long Run lets open streams finish after ctx ended; 0 = 5 s.
	Grace time.Duration
	// Network returns a fingerprint of the machine's network (its addresses).
	// When it changes, waiting ends at once. nil = not watched.
	Network func() string
	// Wall is the wall clock. It is compared with the monotonic one to notice
	// that the machine slept. nil = time.Now.
	Wall func() time.Time
	// Rand returns a number in [0,1); nil = math/rand/v2.
	Rand   func() float64
	Logger *slog.Logger // nil = discard
}

// Fixed times, each with its reason.
const (
	dialTimeout   = 10 * time.Second // one handshake with one address
	lookupTimeout = 5 * time.Second
	readyTimeout  = 20 * time.Second // handshake done → Link.Ready; serve has shorter limits of its own
	stableAfter   = 60 * time.Second // then the back-off starts from the beginning
	drainTime     = 10 * time.Minute // an old session may finish its streams
	backoffFirst  = time.Second
	backoffCap    = 30 * time.Second
	strikeWindow  = time.Minute      // two stalls of one transport within it …
	demotionTime  = 10 * time.Minute // … and it is not used for this long
	stallTime     = 5 * time.Second  // a blocked write without progress
	watchInterval = time.Second
	sleepGap      = 5 * time.Second // wall clock ahead of the monotonic one: the machine slept
)

// probeWaits are the pauses between attempts to move up to a better transport.
// The last one repeats.
var probeWaits = [...]time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute}

// A ServeFunc speaks on one session and returns when it is over. It calls
// l.Ready when the session may take over, and reports stalls to l. When
// l.Draining is closed it lets its streams finish and returns. When ctx ends it
// returns at once. The session is closed after it returned.
type ServeFunc func(ctx context.Context, s tunnel.Session, l *Link) error

// States of a Status.
const (
	StateStopped    = "stopped"
	StateConnecting = "connecting" // dialling, or a session is being made ready
	StateWaiting    = "waiting"    // until NextTry
	StateConnected  = "connected"
)

// A Status is a moment's picture for people.
type Status struct {
	State     string
	Transport string    // of the primary session
	Addr      string    // of the relay
	Since     time.Time // of State
	RTT       time.Duration
	Streams   int
	BytesIn   uint64
	BytesOut  uint64
	Draining  int // older sessions that finish their streams
	LastError string
	ErrorAt   time.Time
	Revoked   bool      // the relay said so last: this agent never comes in again
	NextTry   time.Time // in StateWaiting
	Demoted   string    // a transport that stalled and is not used …
	Until     time.Time // … until then
}

// An Uplink keeps sessions to one relay. Make it with New.
type Uplink struct {
	cfg Config
	log *slog.Logger

	kick chan struct{} // the network changed: stop waiting

	mu      sync.Mutex // guards what follows
	status  Status
	primary *Link
	known   []netip.Addr // the last answer of the resolver
}

// New checks the configuration. It starts nothing.
func New(cfg Config) (*Uplink, error) {
	if cfg.Host == "" {
		return nil, errors.New("uplink: no relay host")
	}
	if len(cfg.Transports) == 0 {
		return nil, errors.New("uplink: no transports")
	}
	cfg.Port = cmp.Or(cfg.Port, 443)
	cfg.Stagger = cmp.Or(cfg.Stagger, 250*time.Millisecond)
	cfg.Grace = cmp.Or(cfg.Grace, 5*time.Second)
	if cfg.Resolve == nil {
		cfg.Resolve = systemResolve
	}
	if cfg.Preferred == nil {
		cfg.Preferred = func() string { return "" }
	}
	if cfg.Remember == nil {
		cfg.Remember = func(string) {}
	}
	if cfg.OnStable == nil {
		cfg.OnStable = func(time.Time) {}
	}
	if cfg.Wall == nil {
		cfg.Wall = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Float64
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Uplink{
		cfg: cfg, log: cfg.Logger, kick: make(chan struct{}, 1),
		status: Status{State: StateStopped},
	}, nil
}

func systemResolve(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// Run keeps the sessions until ctx ends. Then it drains them for at most
// Grace, closes them, and returns nil after everything that it started ended.
// It is called once.
func (u *Uplink) Run(ctx context.Context, serve ServeFunc) error {
	m := newManager(ctx, u, serve)
	return m.run(ctx)
}

// Kick says that the network changed: waiting ends now, the primary session
// is checked, and a better transport is tried soon.
func (u *Uplink) Kick() {
	select {
	case u.kick <- struct{}{}:
	default:
	}
}

// Status returns the current picture.
func (u *Uplink) Status() Status {
	u.mu.Lock()
	s, p := u.status, u.primary
	u.mu.Unlock()
	if u.cfg.Wall().After(s.Until) {
		s.Demoted, s.Until = "", time.Time{}
	}
	if p != nil {
		st := p.session.Stats()
		s.Streams, s.BytesIn, s.BytesOut = st.Streams, st.BytesIn, st.BytesOut
		s.RTT = cmp.Or(time.Duration(p.rtt.Load()), st.RTT)
	}
	return s
}

func (u *Uplink) setStatus(change func(s *Status)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change(&u.status)
}
