package relay

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltcp"
	"github.com/sallyport/sallyport/relay/registry"
	"github.com/sallyport/sallyport/relay/store/memstore"
)

// testRelay is a relay on loopback. Its admin socket is the real one.
type testRelay struct {
	*Relay
	t *testing.T
}

func startRelay(t *testing.T, change func(*Config)) *testRelay {
	t.Helper()
	kv := memstore.New()
	t.Cleanup(func() { kv.Close() })
	conf := Config{DataDir: t.TempDir(), Domain: "example.org", Store: kv, Listen: "127.0.0.1:0", HTTP: "off"}
	if change != nil {
		change(&conf)
	}
	r, err := New(conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return &testRelay{r, t}
}

// a testAgent is a key and, once joined, its certificate.
type testAgent struct {
	key  *ecdsa.PrivateKey
	cert tls.Certificate
}

func newKey(t *testing.T) *testAgent {
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return &testAgent{key: key}
}

// join runs the join exchange by hand, as the spec describes it.
func (r *testRelay) join(a *testAgent, token protocol.Token) protocol.Joined {
	r.t.Helper()
	csr, err := pki.NewCSR(a.key)
	if err != nil {
		r.t.Fatal(err)
	}
	conn, err := r.dialTunnelName(protocol.ALPNJoin, tls.Certificate{})
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close()
	if err := protocol.WriteMessage(conn, protocol.Join{Secret: token.Secret, CSR: csr, Name: "kitchen"}); err != nil {
		r.t.Fatal(err)
	}
	m, err := protocol.ReadMessage(conn)
	if err != nil {
		r.t.Fatal(err)
	}
	j := m.(protocol.Joined)
	if j.Error == "" {
		a.cert = tls.Certificate{Certificate: [][]byte{j.Cert}, PrivateKey: a.key}
	}
	return j
}

func (r *testRelay) clientTLS(alpn string, cert tls.Certificate) *tls.Config {
	conf := &tls.Config{
		RootCAs: r.state.agentCA.Pool(), ServerName: r.state.tunnel.ServerName, NextProtos: []string{alpn},
	}
	if cert.Certificate != nil {
		conf.Certificates = []tls.Certificate{cert}
	}
	return conf
}

func (r *testRelay) dialTunnelName(alpn string, cert tls.Certificate) (*tls.Conn, error) {
	return tls.Dial("tcp", r.Addr().String(), r.clientTLS(alpn, cert))
}

// connect opens an agent's session over TCP and says hello.
func (r *testRelay) connect(a *testAgent, instance string) (tunnel.Session, tunnel.Stream, error) {
	d := &tunneltcp.Dialer{TLS: r.clientTLS(protocol.ALPN, a.cert)}
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	s, err := d.Dial(ctx, addrPort(r.Addr()))
	if err != nil {
		return nil, nil, err
	}
	r.t.Cleanup(func() { s.Close(protocol.CodeOK, "") })
	st, err := s.OpenStream(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := protocol.WriteMessage(st, protocol.Hello{Versions: []int{protocol.Version}, Instance: instance}); err != nil {
		return nil, nil, err
	}
	if _, err := protocol.ReadMessage(st); err != nil {
		<-s.Done()
		return nil, nil, s.Err()
	}
	return s, st, nil
}

func (r *testRelay) joined() *testAgent {
	r.t.Helper()
	token, err := r.Token(r.t.Context(), registry.TokenRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	a := newKey(r.t)
	if j := r.join(a, token); j.Error != "" {
		r.t.Fatal(j.Error)
	}
	return a
}

func TestJoinOnceThenConnect(t *testing.T) {
	r := startRelay(t, nil)
	token, err := r.Token(t.Context(), registry.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if token.CA != r.state.agentCA.Fingerprint() || token.Relay != r.Addr().String() {
		t.Fatalf("token %+v", token)
	}
	a := newKey(t)
	if j := r.join(a, token); j.Error != "" || j.Domain != "example.org" || j.Name != "kitchen" {
		t.Fatalf("first join: %+v", j)
	}
	if j := r.join(newKey(t), token); j.Error == "" {
		t.Error("the same token admitted a second key")
	}
	if _, _, err := r.connect(a, "i1"); err != nil {
		t.Errorf("connect after join: %v", err)
	}
}

func TestWrongSecretIsRefused(t *testing.T) {
	r := startRelay(t, nil)
	if j := r.join(newKey(t), protocol.Token{Secret: "WRONGWRONGWRONGWRONGWRONGW"}); j.Error == "" || j.Cert != nil {
		t.Errorf("a made-up secret got %+v", j)
	}
}

// A certificate of the right CA is not enough: the key must have joined.
func TestUnknownAgentKeyIsRefused(t *testing.T) {
	r := startRelay(t, nil)
	a := newKey(t)
	id, err := protocol.AgentIDOfKey(a.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := r.issueAgent(a.key.Public(), id)
	if err != nil {
		t.Fatal(err)
	}
	a.cert = tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: a.key}
	if _, _, err := r.connect(a, "i1"); err == nil {
		t.Error("an agent that never joined is connected")
	}
}

func TestRevokedAgentIsCutAndStaysOut(t *testing.T) {
	r := startRelay(t, nil)
	a := r.joined()
	s, _, err := r.connect(a, "i1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.revokeAgent(t.Context(), "kitchen"); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	if ce, ok := s.Err().(*tunnel.CloseError); !ok || ce.Code != protocol.CodeRevoked {
		t.Errorf("the session ended with %v", s.Err())
	}
	if _, _, err := r.connect(a, "i1"); err == nil {
		t.Error("a revoked agent came back")
	}
}

// A device certificate, another CA's certificate, or none must not open the tunnel.
func TestTunnelWantsTheAgentCA(t *testing.T) {
	r := startRelay(t, nil)
	a := newKey(t)
	foreign, err := pki.NewAuthority("foreign", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, ca := range map[string]*pki.Authority{"device CA": r.state.deviceCA, "foreign CA": foreign} {
		cert, err := ca.Issue(a.key.Public(), pki.Grant{Profile: pki.Agent, Name: "x", NotAfter: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		a.cert = tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: a.key}
		if _, _, err := r.connect(a, "i"); err == nil {
			t.Errorf("%s: connected", name)
		}
	}
	a.cert = tls.Certificate{}
	if _, _, err := r.connect(a, "i"); err == nil {
		t.Error("no certificate: connected")
	}
}

// An expired certificate of a known key still connects, to be renewed.
func TestExpiredCertificateOfAKnownKeyRenews(t *testing.T) {
	var later atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	r := startRelay(t, func(c *Config) { c.Now = now })
	a := r.joined()
	later.Store(int64(120 * 24 * time.Hour)) // the certificate lasts 90 days
	_, ctl, err := r.connect(a, "i")
	if err != nil {
		t.Fatalf("the expired agent was turned away: %v", err)
	}
	csr, err := pki.NewCSR(a.key)
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.NewCSR(newKey(t).key)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		csr  []byte
		ok   bool
	}{{"own key", csr, true}, {"another key", other, false}, {"garbage", []byte("x"), false}} {
		if err := protocol.WriteMessage(ctl, protocol.Renew{CSR: tt.csr}); err != nil {
			t.Fatal(err)
		}
		m, err := protocol.ReadMessage(ctl)
		if err != nil {
			t.Fatal(err)
		}
		got := m.(protocol.Renewed)
		if (got.Error == "") != tt.ok {
			t.Errorf("%s: %+v", tt.name, got)
		}
		if tt.ok {
			c, err := x509.ParseCertificate(got.Cert)
			if err != nil || c.NotAfter.Sub(now()) < agentCertLife-2*time.Hour {
				t.Errorf("renewed until %v, %v", c.NotAfter, err)
			}
		}
	}
}

// DESIGN §5: the tunnel's ALPNs answer under the token's server name only, on
// TCP and UDP alike, and that name answers to nothing else.
func TestTunnelNameAndProtocolBelongTogether(t *testing.T) {
	r := startRelay(t, nil)
	a := r.joined()
	for _, tt := range []struct{ name, sni, alpn string }{
		{"tunnel under a host", "ha.example.org", protocol.ALPN},
		{"join under a host", "ha.example.org", protocol.ALPNJoin},
		{"http under the name", r.state.tunnel.ServerName, "h2"},
		{"nothing under the name", r.state.tunnel.ServerName, ""},
	} {
		conf := r.clientTLS(tt.alpn, a.cert)
		conf.ServerName, conf.InsecureSkipVerify = tt.sni, true
		if tt.alpn == "" {
			conf.NextProtos = nil
		}
		c, err := tls.Dial("tcp", r.Addr().String(), conf)
		if err == nil {
			c.Close()
			t.Errorf("%s: handshake succeeded", tt.name)
		}
	}
	for _, sni := range []string{"ha.example.org", "example.org", ""} {
		conf := r.clientTLS(protocol.ALPN, a.cert)
		conf.ServerName, conf.InsecureSkipVerify = sni, true
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		c, err := quic.DialAddr(ctx, r.Addr().String(), conf, nil)
		cancel()
		if err == nil {
			c.CloseWithError(0, "")
			t.Errorf("QUIC under %q: connected", sni)
		}
	}
}
