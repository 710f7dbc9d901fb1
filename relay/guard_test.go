package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltcp"
	"github.com/sallyport/sallyport/relay/certs"
)

// A key that has joined is not enough either: the certificate must be the
// agent CA's, for an agent.
func TestTunnelWantsAnAgentCertificate(t *testing.T) {
	r := startRelay(t, nil)
	a := r.joined()
	good := a.cert
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	self, err := x509.CreateCertificate(nil, tmpl, tmpl, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	server, err := r.state.agentCA.Issue(a.key.Public(), pki.Grant{Profile: pki.Server, Name: "x.example.org", NotAfter: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{"self-signed": self, "server usage": server.Raw} {
		a.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key}
		if _, _, err := r.connect(a, "i"); err == nil {
			t.Errorf("%s: connected", name)
		}
	}
	a.cert = good
	if _, _, err := r.connect(a, "i"); err != nil {
		t.Errorf("the agent's own certificate: %v", err)
	}
}

// Only the relay opens data streams.
func TestAgentsStreamsAreRefused(t *testing.T) {
	r := startRelay(t, nil)
	s, _, err := r.connect(r.joined(), "i")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	st, err := s.OpenStream(ctx)
	if err != nil {
		return // refused even earlier
	}
	_ = st.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = st.Write([]byte("hello"))
	var reset *tunnel.ResetError
	if _, err := io.ReadAll(st); !errors.As(err, &reset) && s.Err() == nil {
		t.Errorf("the stream ended with %v, want a reset", err)
	}
}

// Sessions that say nothing are counted: each may hold memory.
func TestSilentSessionsOfAKeyAreCapped(t *testing.T) {
	r := startRelay(t, nil)
	a := r.joined()
	var silent []tunnel.Session
	for range maxUnsaid + 1 {
		d := &tunneltcp.Dialer{TLS: r.clientTLS(protocol.ALPN, a.cert)}
		s, err := d.Dial(t.Context(), addrPort(r.Addr()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close(protocol.CodeOK, "") })
		silent = append(silent, s)
	}
	select { // one of them is turned away; which one, the scheduler decides
	case <-silent[0].Done():
	case <-silent[1].Done():
	case <-silent[2].Done():
	case <-silent[3].Done():
	case <-silent[4].Done():
	case <-time.After(5 * time.Second):
		t.Fatalf("%d silent sessions are open", len(silent))
	}
	r.mu.Lock()
	n := r.unsaid[protocol.AgentID(silent[0].Peer().ID)]
	for _, c := range r.unsaid {
		n = max(n, c)
	}
	r.mu.Unlock()
	if n > maxUnsaid {
		t.Errorf("%d sessions without a hello are held", n)
	}
}

// doneSession is the part of a session that pace looks at.
type doneSession struct {
	tunnel.Session
	done chan struct{}
}

func (s doneSession) Done() <-chan struct{} { return s.done }
func (s doneSession) Err() error            { return io.ErrClosedPipe }

// A home that registers without end does so once a second, after a burst.
func TestCostlyMessagesArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &control{session: doneSession{done: make(chan struct{})}, costly: newLimiter(costlyBurst, costlyEvery)}
		began := time.Now()
		for range costlyBurst + 5 {
			if err := c.pace(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took < 5*costlyEvery {
			t.Errorf("%d messages passed in %v", costlyBurst+5, took)
		}
	})
}

// register offers services over an open control stream.
func register(t *testing.T, ctl tunnel.Stream, services ...protocol.Service) []protocol.Registration {
	t.Helper()
	if err := protocol.WriteMessage(ctl, protocol.Register{Seq: 1, Services: services}); err != nil {
		t.Fatal(err)
	}
	m, err := protocol.ReadMessage(ctl)
	if err != nil {
		t.Fatal(err)
	}
	return m.(protocol.Registered).Services
}

// answerHTTP is a home: each request is answered with the service's name and
// the path that arrived.
func answerHTTP(s tunnel.Session) {
	for {
		st, err := s.AcceptStream(context.Background())
		if err != nil {
			return
		}
		go func() {
			defer st.Close()
			o, err := protocol.ReadOpen(st)
			if err != nil || protocol.WriteResult(st, protocol.Result{}) != nil {
				return
			}
			req, err := http.ReadRequest(bufio.NewReader(st))
			if err != nil {
				return
			}
			body := o.Service + " " + req.URL.Path
			fmt.Fprintf(st, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}()
	}
}

func (r *testRelay) visit(host, path string) (string, error) {
	r.t.Helper()
	tr := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: r.state.publicCA.Pool()},
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, r.Addr().String())
		},
	}
	c := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	res, err := c.Get("https://" + host + path)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return string(body), err
}

// A path beside a whole host: the path goes its own way, the rest to the host.
func TestPathBesideWholeHost(t *testing.T) {
	r := startRelay(t, nil)
	s, ctl, err := r.connect(r.joined(), "i")
	if err != nil {
		t.Fatal(err)
	}
	go answerHTTP(s)
	for _, g := range register(
		t, ctl,
		protocol.Service{Name: "all", Proto: protocol.ProtoHTTP1, Host: "mix.example.org", Auth: protocol.AuthNone},
		protocol.Service{Name: "lamp", Proto: protocol.ProtoHTTP1, Host: "mix.example.org", Path: "/lamp/", Auth: protocol.AuthNone},
	) {
		if g.Error != "" {
			t.Skipf("the registry refuses this mix, so nothing is to be routed: %s", g.Error)
		}
	}
	for path, want := range map[string]string{"/x": "all /x", "/lamp/x": "lamp /x", "/": "all /"} {
		if got, err := r.visit("mix.example.org", path); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", path, got, err, want)
		}
	}
}

// What is registered is reachable when the agent hears of it, and gone when it
// is withdrawn; a change of policy ends connections that are open.
func TestRoutesFollowRegistrations(t *testing.T) {
	r := startRelay(t, nil)
	s, ctl, err := r.connect(r.joined(), "i")
	if err != nil {
		t.Fatal(err)
	}
	go answerHTTP(s)
	ha := protocol.Service{Name: "ha", Proto: protocol.ProtoHTTP1, Auth: protocol.AuthNone}
	register(t, ctl, ha)
	if got, err := r.visit("ha.example.org", "/1"); err != nil || got != "ha /1" {
		t.Fatalf("got %q, %v", got, err)
	}
	open, err := tls.Dial("tcp", r.Addr().String(), &tls.Config{RootCAs: r.state.publicCA.Pool(), ServerName: "ha.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	ha.Auth = protocol.AuthRequire
	register(t, ctl, ha)
	_ = open.SetReadDeadline(time.Now().Add(5 * time.Second))
	var timeout net.Error
	if _, err := open.Read(make([]byte, 1)); errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("a connection from before the policy change is still open")
	}
	if _, err := r.visit("ha.example.org", "/2"); err == nil {
		t.Error("a stranger came in after the host asked for certificates")
	}
	register(t, ctl)
	if _, ok := r.site("ha.example.org"); ok {
		t.Error("a withdrawn service is still routed")
	}
}

// A host that was passed through and is no more: open connections end.
func TestWithdrawnPassthroughEndsItsConnections(t *testing.T) {
	r := startRelay(t, nil)
	s, ctl, err := r.connect(r.joined(), "i")
	if err != nil {
		t.Fatal(err)
	}
	arrived := make(chan struct{})
	go func() {
		st, err := s.AcceptStream(context.Background())
		if err != nil {
			return
		}
		_, _ = protocol.ReadOpen(st)
		_ = protocol.WriteResult(st, protocol.Result{})
		close(arrived)
	}()
	register(t, ctl, protocol.Service{Name: "plex", Proto: protocol.ProtoRaw, TLS: protocol.TLSBackend})
	conn, err := net.Dial("tcp", r.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go tls.Client(conn, &tls.Config{ServerName: "plex.example.org"}).Handshake() // only its hello matters
	<-arrived
	register(t, ctl)
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("the passed-through connection outlived its route")
	}
}

// An accepted host without a certificate is told to both owners.
func TestHostWithoutCertificateIsWarnedAbout(t *testing.T) {
	ca, err := pki.NewAuthority("public", nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(key.Public(), pki.Grant{Profile: pki.Server, Name: "*.example.org", NotAfter: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pair := certs.Pair{Cert: filepath.Join(t.TempDir(), "c.pem"), Key: filepath.Join(t.TempDir(), "k.pem")}
	if err := errors.Join(pki.WriteFile(pair.Cert, pki.EncodeCert(cert), 0o644), pki.WriteFile(pair.Key, keyPEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	r := startRelay(t, func(c *Config) { c.Certs, c.CertFiles = CertsFiles, []certs.Pair{pair} })
	_, ctl, err := r.connect(r.joined(), "i")
	if err != nil {
		t.Fatal(err)
	}
	regs := register(
		t, ctl,
		protocol.Service{Name: "near", Proto: protocol.ProtoHTTP1},
		protocol.Service{Name: "deep", Proto: protocol.ProtoHTTP1, Host: "cam.bob.example.org"},
		protocol.Service{Name: "own", Proto: protocol.ProtoRaw, Host: "plex.bob.example.org", TLS: protocol.TLSBackend},
	)
	for i, want := range []bool{false, true, false} {
		if regs[i].Error != "" || (regs[i].Warning != "") != want {
			t.Errorf("%+v", regs[i])
		}
	}
	st, err := r.status(t.Context())
	if err != nil || len(st.Warnings) != 1 {
		t.Errorf("status warns of %q, %v", st.Warnings, err)
	}
}
