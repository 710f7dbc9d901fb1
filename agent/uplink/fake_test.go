package uplink

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// fakeNet is a relay on two transports whose faults a test sets.
type fakeNet struct {
	mu       sync.Mutex
	sessions []*fakeSession
	dials    []fakeDial
}

type fakeDial struct {
	at   time.Time
	name string
	addr netip.AddrPort
}

type fakeTransport struct {
	net  *fakeNet
	name string

	mu    sync.Mutex
	delay time.Duration // of a handshake
	err   error         // after delay
	hole  bool          // nothing ever answers
	deaf  bool          // a handshake that was called off succeeds all the same
	only  netip.Addr    // the one address that answers; zero: all
}

func (f *fakeTransport) Name() string { return f.name }

func (f *fakeTransport) set(change func(f *fakeTransport)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeTransport) Dial(ctx context.Context, addr netip.AddrPort) (tunnel.Session, error) {
	f.mu.Lock()
	delay, err, deaf, hole := f.delay, f.err, f.deaf, f.hole || f.only.IsValid() && f.only != addr.Addr()
	f.mu.Unlock()
	f.net.mu.Lock()
	f.net.dials = append(f.net.dials, fakeDial{time.Now(), f.name, addr})
	f.net.mu.Unlock()
	if hole {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if deaf {
		ctx = context.WithoutCancel(ctx)
	}
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	s := &fakeSession{name: f.name, addr: addr, done: make(chan struct{})}
	f.net.mu.Lock()
	f.net.sessions = append(f.net.sessions, s)
	f.net.mu.Unlock()
	return s, nil
}

// fakeSession can be closed and carries no streams.
type fakeSession struct {
	name string
	addr netip.AddrPort
	done chan struct{}

	mu    sync.Mutex
	err   error
	stats tunnel.Stats
}

func (s *fakeSession) OpenStream(context.Context) (tunnel.Stream, error) {
	return nil, errors.New("no streams here")
}

func (s *fakeSession) AcceptStream(context.Context) (tunnel.Stream, error) {
	return nil, errors.New("no streams here")
}

func (s *fakeSession) Close(code protocol.Code, reason string) error {
	s.end(&tunnel.CloseError{Code: code, Reason: reason})
	return nil
}

func (s *fakeSession) end(err *tunnel.CloseError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
		close(s.done)
	}
}
func (s *fakeSession) Done() <-chan struct{} { return s.done }
func (s *fakeSession) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}
func (s *fakeSession) Peer() tunnel.Peer { return tunnel.Peer{Transport: s.name} }
func (s *fakeSession) Stats() tunnel.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

func (s *fakeSession) setBlocked(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.BlockedAt = at
}

func (s *fakeSession) closed() *tunnel.CloseError {
	ce, _ := errors.AsType[*tunnel.CloseError](s.Err())
	return ce
}

// rig is an Uplink with its fakes, inside a synctest bubble.
type rig struct {
	t         *testing.T
	net       *fakeNet
	quic, tcp *fakeTransport
	cfg       Config
	up        *Uplink
	start     time.Time

	mu         sync.Mutex
	links      []*Link // in the order of begin
	served     []*fakeSession
	remembered []string
	notReady   map[string]bool // transports whose sessions connect but never get ready
	keep       bool            // a draining session keeps a stream open

	stop func() // ends Run and waits
}

func newRig(t *testing.T) *rig {
	n := &fakeNet{}
	r := &rig{
		t: t, net: n, start: time.Now(), notReady: map[string]bool{},
		quic: &fakeTransport{net: n, name: "quic", delay: 40 * time.Millisecond},
		tcp:  &fakeTransport{net: n, name: "tcp", delay: 60 * time.Millisecond},
	}
	r.cfg = Config{
		Host: "relay.test", Port: 443, Transports: []tunnel.Transport{r.quic, r.tcp},
		Resolve: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
		},
		Remember: func(name string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.remembered = append(r.remembered, name)
		},
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return r
}

func (r *rig) run() {
	up, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.up = up
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- up.Run(ctx, r.serve) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				r.t.Errorf("Run: %v", err)
			}
		})
	}
	r.t.Cleanup(func() { r.stop() })
}

func (r *rig) serve(ctx context.Context, s tunnel.Session, l *Link) error {
	r.mu.Lock()
	r.links = append(r.links, l)
	r.served = append(r.served, s.(*fakeSession))
	ready, keep := !r.notReady[l.Transport()], r.keep
	r.mu.Unlock()
	if ready {
		time.Sleep(20 * time.Millisecond) // virtual: hello and welcome
		l.Ready()
	}
	drain := l.Draining()
	if keep {
		drain = nil
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.Done():
		return s.Err()
	case <-drain:
		return nil
	}
}

// after lets virtual time pass until d after the start of the test.
func (r *rig) after(d time.Duration) {
	time.Sleep(time.Until(r.start.Add(d)))
	synctest.Wait()
}

func (r *rig) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (r *rig) want(state, transport string) {
	r.t.Helper()
	synctest.Wait()
	if s := r.up.Status(); s.State != state || s.Transport != transport {
		r.t.Fatalf("after %s: status is %s %q, want %s %q (last error %q)", time.Since(r.start), s.State, s.Transport, state, transport, s.LastError)
	}
}

// last returns the newest served session and its link.
func (r *rig) last() (*fakeSession, *Link) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.links) == 0 {
		r.t.Fatal("no session yet")
	}
	return r.served[len(r.served)-1], r.links[len(r.links)-1]
}

func (r *rig) dials(name string) []time.Duration {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	var at []time.Duration
	for _, d := range r.net.dials {
		if d.name == name {
			at = append(at, d.at.Sub(r.start))
		}
	}
	return at
}

// open returns the sessions that were not closed.
func (r *rig) open() []string {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	var names []string
	for _, s := range r.net.sessions {
		if s.Err() == nil {
			names = append(names, s.name)
		}
	}
	return names
}

func (r *rig) wantOpen(names ...string) {
	r.t.Helper()
	synctest.Wait()
	if got := r.open(); !slices.Equal(got, names) {
		r.t.Fatalf("after %s: open sessions %v, want %v", time.Since(r.start), got, names)
	}
}
