package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/agent/state"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltcp"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// testNow is the clock of both ends: the bubble's, moved into the time for
// which certificates are issued.
func testNow() time.Time { return time.Now().Add(27 * 365 * 24 * time.Hour) } // AddDate would stumble over 29 February

// fakeRelay is the relay's half of the wire on connections in memory.
type fakeRelay struct {
	t          *testing.T
	ca         *pki.Authority
	cert       tls.Certificate
	serverName string
	secret     string

	mu            sync.Mutex
	down          error // every dial fails with it
	wrongKey      bool  // certify another key than asked for
	acceptExpired bool  // agents with expired certificates come in, as at the real relay
	refuseRenewal string
	dropJoin      bool          // the next answer to Join is lost
	certLife      time.Duration // of agents
	refuse        map[string]string
	warning       string            // with every accepted service
	mute          bool              // Register is not answered
	usedBy        *x509.Certificate // who redeemed the secret
	joins         []protocol.Join   // requests
	sessions      []*relaySession   // in order
	registers     []protocol.Register
	renews        int
	pings         int
	freeze        tunnel.Stream // pings on this control stream are not answered
	welcomeTime   time.Time     // zero: the true one
	arrived       chan *relaySession
	wg            sync.WaitGroup
}

// relaySession is one session at the relay.
type relaySession struct {
	tunnel.Session
	hello protocol.Hello
	ctl   tunnel.Stream
	got   chan protocol.Message // other than Register, Ping and Renew
}

func newFakeRelay(t *testing.T) *fakeRelay {
	t.Helper()
	ca, err := pki.NewAuthority("agents", testNow)
	if err != nil {
		t.Fatal(err)
	}
	r := &fakeRelay{
		t: t, ca: ca, serverName: "k3j5.invalid", secret: "a-secret-of-26-characters!", certLife: 90 * 24 * time.Hour,
		refuse: map[string]string{}, arrived: make(chan *relaySession, 100),
	}
	r.cert = r.named(r.serverName)
	return r
}

// named returns a server certificate of the agent CA.
func (r *fakeRelay) named(name string) tls.Certificate {
	r.t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		r.t.Fatal(err)
	}
	cert, err := r.ca.Issue(key.Public(), pki.Grant{
		Profile: pki.Server, Name: name, NotBefore: testNow().Add(-time.Hour), NotAfter: testNow().AddDate(0, 3, 0),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw, r.ca.Cert().Raw}, PrivateKey: key}
}

func (r *fakeRelay) token() protocol.Token {
	return protocol.Token{
		Relay: "relay.test:443", ServerName: r.serverName, CA: r.ca.Fingerprint(), Secret: r.secret,
		Expires: testNow().Add(15 * time.Minute),
	}
}

func (r *fakeRelay) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

func (r *fakeRelay) dial(_ context.Context, _, addr string) (net.Conn, error) {
	r.mu.Lock()
	down := r.down
	r.mu.Unlock()
	if down != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: down}
	}
	near, far := tunneltest.MemConn()
	r.wg.Go(func() { r.serve(far) })
	return near, nil
}

func resolve(context.Context, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
}

// peeked is a connection whose first bytes were looked at.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.r.Read(b) }

func (r *fakeRelay) serve(conn net.Conn) {
	defer conn.Close()
	br := bufio.NewReaderSize(conn, 4096)
	head, err := br.Peek(5)
	if err != nil {
		return
	}
	hello, _ := br.Peek(5 + int(head[3])<<8 + int(head[4]))
	c := &peeked{conn, br}
	if bytes.Contains(hello, []byte(protocol.ALPNJoin)) {
		r.serveJoin(c)
		return
	}
	conf := &tls.Config{
		Certificates: []tls.Certificate{r.cert}, NextProtos: []string{protocol.ALPN}, MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: r.ca.Pool(), Time: testNow,
	}
	if r.acceptExpired {
		conf.ClientAuth = tls.RequireAnyClientCert
	}
	s, err := tunneltcp.Server(r.t.Context(), c, conf, tunneltcp.Config{})
	if err != nil {
		r.t.Logf("relay: handshake: %v", err)
		return
	}
	r.serveSession(s)
}

func (r *fakeRelay) serveJoin(conn net.Conn) {
	tc := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{r.cert}, NextProtos: []string{protocol.ALPNJoin}})
	m, err := protocol.ReadMessage(tc)
	if err != nil {
		r.t.Logf("relay: join: %v", err)
		return
	}
	j := m.(protocol.Join)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.joins = append(r.joins, j)
	answer := r.redeem(j)
	if r.dropJoin {
		r.dropJoin = false
		return
	}
	protocol.WriteMessage(tc, answer)
	tc.Close()
}

func (r *fakeRelay) redeem(j protocol.Join) protocol.Joined {
	pub, err := pki.ParseCSR(j.CSR)
	if err != nil {
		return protocol.Joined{Error: err.Error()}
	}
	if j.Secret != r.secret {
		return protocol.Joined{Error: "no such token"}
	}
	if r.usedBy != nil && !pub.(*ecdsa.PublicKey).Equal(r.usedBy.PublicKey) {
		return protocol.Joined{Error: "the token was used by another agent"}
	}
	if r.wrongKey {
		pub = r.cert.PrivateKey.(*ecdsa.PrivateKey).Public()
	}
	cert := r.issue(pub)
	r.usedBy = cert
	return protocol.Joined{Cert: cert.Raw, CA: r.ca.Cert().Raw, Name: "home", Domain: "example.org"}
}

func (r *fakeRelay) issue(pub any) *x509.Certificate {
	cert, err := r.ca.Issue(pub, pki.Grant{Profile: pki.Agent, Name: "home", NotBefore: testNow().Add(-time.Minute), NotAfter: testNow().Add(r.certLife)})
	if err != nil {
		r.t.Error(err)
	}
	return cert
}

func (r *fakeRelay) serveSession(s tunnel.Session) {
	defer s.Close(protocol.CodeOK, "")
	ctl, err := s.AcceptStream(r.t.Context())
	if err != nil {
		return
	}
	m, err := protocol.ReadMessage(ctl)
	if err != nil {
		return
	}
	rs := &relaySession{Session: s, hello: m.(protocol.Hello), ctl: ctl, got: make(chan protocol.Message, 100)}
	now := testNow()
	if !r.welcomeTime.IsZero() {
		now = r.welcomeTime
	}
	protocol.WriteMessage(ctl, protocol.Welcome{Version: 1, Name: "home", Domain: "example.org", Time: now})
	r.set(func() { r.sessions = append(r.sessions, rs) })
	r.arrived <- rs
	for {
		m, err := protocol.ReadMessage(ctl)
		if err != nil {
			return
		}
		if a := r.answer(ctl, m); a != nil {
			protocol.WriteMessage(ctl, a)
		} else if m.Type() != protocol.TypePing && m.Type() != protocol.TypeRegister {
			rs.got <- m
		}
	}
}

func (r *fakeRelay) answer(ctl tunnel.Stream, m protocol.Message) protocol.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch m := m.(type) {
	case protocol.Register:
		r.registers = append(r.registers, m)
		if r.mute {
			return nil
		}
		a := protocol.Registered{Seq: m.Seq}
		for _, s := range m.Services {
			g := protocol.Registration{Name: s.Name, Error: r.refuse[s.Name]}
			if g.Error == "" {
				g.URL, g.Warning = "https://"+s.Name+".example.org/", r.warning
			}
			a.Services = append(a.Services, g)
		}
		return a
	case protocol.Ping:
		r.pings++
		if r.freeze == ctl {
			return nil
		}
		return protocol.Pong(m)
	case protocol.Renew:
		r.renews++
		if r.refuseRenewal != "" {
			return protocol.Renewed{Error: r.refuseRenewal}
		}
		pub, err := pki.ParseCSR(m.CSR)
		if err != nil {
			return protocol.Renewed{Error: err.Error()}
		}
		return protocol.Renewed{Cert: r.issue(pub).Raw}
	}
	return nil
}

// lists returns the names of the services in the latest Register.
func (r *fakeRelay) lists() []string {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.registers) == 0 {
		return nil
	}
	var names []string
	for _, s := range r.registers[len(r.registers)-1].Services {
		names = append(names, s.Name)
	}
	return names
}

// runningAgent is an agent whose Run was started.
type runningAgent struct {
	*Agent
	stop func() error
}

func testConfig(t *testing.T, r *fakeRelay) Config {
	return Config{
		DataDir: filepath.Join(t.TempDir(), "agent"), Token: r.token().String(), Name: "pi", Now: testNow,
		DialContext: r.dial, Resolve: resolve, TransportNames: []string{"tcp"}, Software: "test",
		Logger:        slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Network:       func() string { return "" },
		ListenControl: func(string) (net.Listener, error) { return nil, nil }, // real sockets stop virtual time
	}
}

func start(t *testing.T, cfg Config) *runningAgent {
	t.Helper()
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stop := sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { stop() })
	return &runningAgent{a, stop}
}

// next waits for a session.
func (r *fakeRelay) next() *relaySession {
	r.t.Helper()
	select {
	case s := <-r.arrived:
		synctest.Wait()
		return s
	case <-time.After(time.Minute):
		r.t.Fatal("no session for a minute")
		return nil
	}
}

// visit opens a stream to a service and returns it after the agent's Result.
func (s *relaySession) visit(t *testing.T, service string) tunnel.Stream {
	t.Helper()
	st, err := s.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := protocol.WriteOpen(st, protocol.Open{Service: service}); err != nil {
		t.Fatal(err)
	}
	res, err := protocol.ReadResult(st)
	if err != nil || res.Code != protocol.CodeOK {
		t.Fatalf("visit %s: %+v, %v", service, res, err)
	}
	return st
}

// storedIdentity reads a stopped agent's directory.
func storedIdentity(t *testing.T, dir string) *state.Identity {
	t.Helper()
	d, err := state.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	id, err := d.Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

var errDown = errors.New("network is unreachable")
