package registry

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/relay/store"
	"github.com/sallyport/sallyport/relay/store/memstore"
)

// id makes the n-th agent identity.
func id(n int) protocol.AgentID {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	return protocol.AgentID(strings.Repeat(letters[n%26:n%26+1], 52))
}

// trail is what an audit log would hold.
type trail struct {
	mu    sync.Mutex // guards lines
	lines []string
}

func (a *trail) event(name string, attrs ...slog.Attr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lines = append(a.lines, fmt.Sprint(name, attrs))
}

func (a *trail) count(event string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.lines {
		if strings.HasPrefix(l, event) {
			n++
		}
	}
	return n
}

// fixture is a registry with what it was given.
type fixture struct {
	*Registry
	kv      store.KV
	audit   *trail
	goaway  []protocol.GoAway
	changed int
}

func open(t *testing.T, kv store.KV, edit func(*Config)) *fixture {
	t.Helper()
	f := &fixture{kv: kv, audit: new(trail)}
	cfg := Config{
		Store: kv, Domain: "Example.org", Audit: f.audit.event,
		Changed: func() { f.changed++ },
		GoAway:  func(_ tunnel.Session, m protocol.GoAway) { f.goaway = append(f.goaway, m) },
	}
	if edit != nil {
		edit(&cfg)
	}
	r, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.Registry = r
	return f
}

func fresh(t *testing.T) *fixture {
	kv := memstore.New()
	t.Cleanup(func() { kv.Close() })
	return open(t, kv, nil)
}

// join admits agent n with the given patterns.
func (f *fixture) join(t *testing.T, n int, hosts ...string) Agent {
	t.Helper()
	secret, _, err := f.NewToken(t.Context(), TokenRequest{Hosts: hosts, Foreign: true})
	if err != nil {
		t.Fatal(err)
	}
	a, err := f.Redeem(t.Context(), secret, id(n), fmt.Sprintf("home %d", n))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A fakeSession answers every Open as serve says.
type fakeSession struct {
	peer  tunnel.Peer
	serve func(s *fakeSession, conn net.Conn)
	done  chan struct{}
	stats tunnel.Stats

	mu      sync.Mutex // guards the fields below
	err     error
	streams []*fakeStream
	opens   int
}

func newSession(n int, serve func(*fakeSession, net.Conn)) *fakeSession {
	return &fakeSession{peer: tunnel.Peer{ID: id(n), Transport: "fake"}, serve: serve, done: make(chan struct{})}
}

func (s *fakeSession) OpenStream(ctx context.Context) (tunnel.Stream, error) {
	if s.Err() != nil {
		return nil, s.Err()
	}
	near, far := net.Pipe()
	st := &fakeStream{Conn: near, far: far}
	s.mu.Lock()
	s.streams = append(s.streams, st)
	s.opens++
	s.mu.Unlock()
	go s.serve(s, far)
	return st, nil
}

func (s *fakeSession) AcceptStream(ctx context.Context) (tunnel.Stream, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (s *fakeSession) Close(code protocol.Code, reason string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = &tunnel.CloseError{Code: code, Reason: reason}
		close(s.done)
		for _, st := range s.streams {
			st.Conn.Close()
			st.far.Close()
		}
	}
	return nil
}

func (s *fakeSession) Done() <-chan struct{} { return s.done }
func (s *fakeSession) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}
func (s *fakeSession) Peer() tunnel.Peer   { return s.peer }
func (s *fakeSession) Stats() tunnel.Stats { return s.stats }

func (s *fakeSession) opened() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opens
}

func (s *fakeSession) resets() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.streams {
		st.mu.Lock()
		if st.reset {
			n++
		}
		st.mu.Unlock()
	}
	return n
}

type fakeStream struct {
	net.Conn
	far   net.Conn
	mu    sync.Mutex // guards reset
	reset bool
}

func (s *fakeStream) CloseWrite() error { return nil }
func (s *fakeStream) Reset(protocol.Code) {
	s.mu.Lock()
	s.reset = true
	s.mu.Unlock()
	s.Conn.Close()
}

// What an agent does with a stream.

func answers(s *fakeSession, c net.Conn) {
	if o, err := protocol.ReadOpen(c); err == nil {
		_ = protocol.WriteResult(c, protocol.Result{Code: protocol.CodeOK})
		_, _ = c.Write([]byte("hello from " + o.Service))
	}
}

func refuses(s *fakeSession, c net.Conn) {
	if _, err := protocol.ReadOpen(c); err == nil {
		_ = protocol.WriteResult(c, protocol.Result{Code: protocol.CodeBackendDown, Reason: "connection refused"})
	}
}

func stalls(s *fakeSession, c net.Conn) { _, _ = protocol.ReadOpen(c) }

func dies(s *fakeSession, c net.Conn) {
	_, _ = protocol.ReadOpen(c)
	s.Close(protocol.CodeInternal, "died")
}

// dead is stalls, but not even the Open is read.
func dead(*fakeSession, net.Conn) {}

// register sends a list as agent n does, on its newest session.
func (f *fixture) register(t *testing.T, n int, services []protocol.Service) []protocol.Registration {
	t.Helper()
	f.mu.Lock()
	var s tunnel.Session = newSession(n, answers)
	isNew := true
	if m := f.agents[id(n)]; m != nil && len(m.sessions) > 0 {
		s, isNew = m.sessions[len(m.sessions)-1].s, false
	}
	f.mu.Unlock()
	if isNew {
		if detach, err := f.Attach(s, "i1"); err == nil {
			defer detach()
		} // the refusal of the list is what the caller asks for
	}
	return f.Registry.Register(t.Context(), s, services)
}

func (f *fixture) attach(t *testing.T, s tunnel.Session, instance string) func() {
	t.Helper()
	detach, err := f.Attach(s, instance)
	if err != nil {
		t.Fatal(err)
	}
	return detach
}

// settle lets the grace after the start pass. Virtual time only.
func settle() { time.Sleep(time.Minute) }
