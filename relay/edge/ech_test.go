package edge

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// trust returns a pool with a certificate.
func trust(t testing.TB, cert tls.Certificate) *x509.CertPool {
	t.Helper()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return pool
}

// home is a server at home that knows nothing of all this, behind a stream.
func home(t testing.TB, config *tls.Config) Target {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				s := tls.Server(conn, config)
				if _, err := io.Copy(s, s); err == nil {
					s.CloseWrite()
				}
			}()
		}
	}()
	return Passthrough{Open: func(context.Context, *Conn) (tunnel.Stream, error) {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		return pipeStream{conn.(*net.TCPConn)}, nil
	}}
}

// publicPage serves the public name; the pool trusts it.
func publicPage(t testing.TB, f *frontDoor) (Target, *x509.CertPool) {
	cert := selfSigned(t, publicName)
	return NewPublicPage(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }, f.retryKeys), trust(t, cert)
}

// An encrypted hello reaches the host inside, where TLS ends by itself: at the
// relay or behind a tunnel, with and without another round.
func TestECH(t *testing.T) {
	f := newFrontDoor(t)
	cert, device := selfSigned(t, "secret.example.org"), selfSigned(t, "phone")
	for what, tt := range map[string]struct {
		server  *tls.Config
		retried bool
	}{
		"at once":     {server: &tls.Config{}},
		"after retry": {server: &tls.Config{CurvePreferences: []tls.CurveID{tls.CurveP384}}, retried: true},
		"client certificate after retry": {server: &tls.Config{
			CurvePreferences: []tls.CurveID{tls.CurveP384}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trust(t, device),
			VerifyConnection: func(s tls.ConnectionState) error {
				if len(s.PeerCertificates) != 1 || !s.ECHAccepted && s.ServerName != "secret.example.org" {
					return errors.New("not the phone")
				}
				return nil
			},
		}, retried: true},
	} {
		tt.server.Certificates = []tls.Certificate{cert}
		here := TargetFunc(func(_ context.Context, c *Conn) {
			defer c.Close()
			s := tls.Server(c, tt.server)
			io.Copy(s, s)
			s.Close()
		})
		for where, target := range map[string]Target{"relay": here, "home": home(t, tt.server)} {
			log, logger := newLog()
			addr := serve(t, &Server{ECH: f, Logger: logger, Router: routed(&Snapshot{
				Hosts: hosts(t, map[string]Target{"secret.example.org": WithECH(target)}),
			})})
			conn := tls.Client(dial(t, addr), &tls.Config{
				ServerName: "secret.example.org", RootCAs: trust(t, cert), EncryptedClientHelloConfigList: f.list(),
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &device, nil },
			})
			echoes(t, conn)
			if s := conn.ConnectionState(); !s.ECHAccepted || s.HelloRetryRequest != tt.retried {
				t.Errorf("%s, %s: accepted %v, retried %v", where, what, s.ECHAccepted, s.HelloRetryRequest)
			}
			bulk(t, conn)
			log.wait(t)
			if s := log.String(); !strings.Contains(s, "sni=secret.example.org") || !strings.Contains(s, "ech=true") || strings.Contains(s, "err=") {
				t.Errorf("%s, %s: the log says %s", where, what, s)
			}
		}
	}
}

// bulk sends a lot both ways and ends.
func bulk(t *testing.T, conn *tls.Conn) {
	t.Helper()
	sent := make([]byte, 2<<20)
	_, _ = rand.Read(sent)
	go func() {
		conn.Write(sent)
		conn.CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(sent), err)
	}
	conn.Close()
}

// Hosts whose servers cannot confirm, hosts that do not exist and everything
// that is no host count as not opened: the public name answers, and says which
// config is good. None of them sees a byte.
func TestECHRejected(t *testing.T) {
	f, old := newFrontDoor(t), newFrontDoor(t)
	page, pool := publicPage(t, f)
	never := func(name string) Target {
		return TargetFunc(func(_ context.Context, c *Conn) {
			t.Errorf("%s was reached by an encrypted hello", name)
			c.Close()
		})
	}
	addr := serve(t, &Server{ECH: f, Router: routed(&Snapshot{
		Hosts: hosts(t, map[string]Target{
			publicName: page, "backend.example.org": never("backend"), "secret.example.org": WithECH(never("a host, with an old config")),
			"mail.example.org": WithECH(never("a host without MQTT")),
		}),
		TunnelName: "tunnel.example.org", Tunnel: never("tunnel"), Join: never("join"), ACME: never("ACME"),
	})})
	for what, tt := range map[string]struct {
		name     string
		list     []byte
		alpn     []string
		stranger bool // the outer hello asks for the same protocol, which the public name does not speak
	}{
		"backend":      {"backend.example.org", f.list(), nil, false},
		"unknown host": {"nobody.example.org", f.list(), []string{"h2"}, false},
		"public name":  {publicName, f.list(), nil, false},
		"old config":   {"secret.example.org", old.list(), nil, false},
		"tunnel":       {"tunnel.example.org", f.list(), []string{protocol.ALPN}, true},
		"join":         {"tunnel.example.org", f.list(), []string{protocol.ALPNJoin}, true},
		"mqtt":         {"mail.example.org", f.list(), []string{"mqtt"}, true},
	} {
		err := tls.Client(dial(t, addr), &tls.Config{
			ServerName: tt.name, NextProtos: tt.alpn, RootCAs: pool, EncryptedClientHelloConfigList: tt.list,
		}).Handshake()
		if tt.stranger {
			if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		rejected, ok := errors.AsType[*tls.ECHRejectionError](err)
		if !ok || !slices.Equal(rejected.RetryConfigList, f.list()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Without ECH the public name is an ordinary host.
	conn := tls.Client(dial(t, addr), &tls.Config{ServerName: publicName, RootCAs: pool})
	if err := conn.Handshake(); err != nil {
		t.Error(err)
	}
	conn.Close()
}

// Elsewhere the extension means nothing (GREASE), and every byte passes.
func TestECHElsewhereIsGrease(t *testing.T) {
	f := newFrontDoor(t)
	grease := append([]byte{0, 0, 1, 0, 1, 9, 0, 32}, make([]byte, 32+2+144)...)
	grease[8+32+1] = 144
	sent := madeHello(sniExt("ha.example.org"), ext{extECH, grease})
	got := make(chan []byte, 1)
	addr := serve(t, &Server{ECH: f, Router: routed(&Snapshot{Hosts: hosts(t, map[string]Target{
		"ha.example.org": WithECH(TargetFunc(func(_ context.Context, c *Conn) {
			defer c.Close()
			b := make([]byte, len(sent))
			io.ReadFull(c, b)
			if c.Hello.ECH {
				t.Error("taken for an encrypted hello")
			}
			got <- b
		})),
	})})})
	conn := dial(t, addr)
	conn.Write(sent)
	if b := <-got; !bytes.Equal(b, sent) {
		t.Errorf("the target got %x", b)
	}
	// Nor does anything change without ECH.
	plain := serve(t, &Server{Router: routed(&Snapshot{Hosts: hosts(t, map[string]Target{"ha.example.org": tlsEcho(t, "ha.example.org")})})})
	mustEcho(t, plain, "ha.example.org")
}

type alertError struct{}

func (alertError) Error() string   { return "not like this" }
func (alertError) TLSAlert() uint8 { return 109 }

// What no client may send is answered with the alert that says so.
func TestECHIllegal(t *testing.T) {
	f := newFrontDoor(t)
	log, logger := newLog()
	addr := serve(t, &Server{ECH: f, Logger: logger, Router: NewRouter()})
	hello := madeHello(sniExt(publicName), ext{extECH, []byte{0}})
	f.err = alertError{}
	if got, err := answer(t, addr, hello); err != nil || !bytes.Equal(got, alertRecord(109)) {
		t.Errorf("got %x, %v", got, err)
	}
	f.err = errors.New("whatever")
	if got, err := answer(t, addr, hello); err != nil || !bytes.Equal(got, alertRecord(alertIllegalParameter)) {
		t.Errorf("got %x, %v", got, err)
	}
	log.wait(t)
	log.wait(t)
	if !strings.Contains(log.String(), "not like this") {
		t.Errorf("the log says %s", log)
	}
}

// A hello in many records is opened like one in a single record.
func TestECHInManyRecords(t *testing.T) {
	f := newFrontDoor(t)
	got := make(chan Hello, 1)
	addr := serve(t, &Server{ECH: f, Router: routed(&Snapshot{Hosts: hosts(t, map[string]Target{
		"secret.example.org": WithECH(TargetFunc(func(_ context.Context, c *Conn) {
			defer c.Close()
			h, _, err := readAll(c)
			if err != nil || h.ServerName != c.Hello.ServerName {
				t.Errorf("the target reads %+v, %v", h, err)
			}
			got <- c.Hello
		})),
	})})})
	hello := realHello(t, &tls.Config{ServerName: "secret.example.org", NextProtos: []string{"h2"}, EncryptedClientHelloConfigList: f.list()})
	for _, size := range []int{1, 100, 1000} {
		conn := dial(t, addr)
		conn.Write(rerecord(hello, size))
		select {
		case h := <-got:
			if !h.ECH || h.ServerName != "secret.example.org" || !slices.Equal(h.ALPN, []string{"h2"}) {
				t.Errorf("got %+v", h)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("nothing came")
		}
	}
	// Two messages in one record are nothing that a client sends.
	long := append(slices.Clone(hello[recordHeader:]), 20, 0, 0, 0)
	if b, _ := answer(t, addr, inRecords(long, maxRecord)); !bytes.Equal(b, alertRecord(alertUnexpectedMessage)) {
		t.Errorf("got %x", b)
	}
}

func TestHasECH(t *testing.T) {
	r := routed(&Snapshot{Hosts: hosts(t, map[string]Target{
		"ha.example.org": WithECH(Refuse{}), "*.example.org": Named("terminate", WithECH(Refuse{})),
		"nas.example.org": Named("pass", Passthrough{}), "tv.example.org": WithECH(Passthrough{}),
	})})
	for host, want := range map[string]bool{
		"ha.example.org": true, "cam.example.org": true, "tv.example.org": true, "nas.example.org": false, "example.org": false, "": false,
	} {
		if got := r.HasECH(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
	if NewRouter().HasECH("ha.example.org") {
		t.Error("a router without routes has a host")
	}
	if tv := WithECH(Passthrough{}); kindOf(tv) != "passthrough" || !forwardsACME(tv) || forwardsACME(WithECH(Refuse{})) {
		t.Error("the target loses what else it is")
	}
}
