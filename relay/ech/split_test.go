package ech

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// certificate makes one for tests, and the pool that trusts it.
func certificate(t testing.TB, hosts ...string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: hosts, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// split is a relay reduced to its least: one visitor, one server, every plain
// handshake record opened on its way. It returns the names that were inside.
func split(t *testing.T, keys *Keys, visitor, server net.Conn) *sync.WaitGroup {
	var both sync.WaitGroup
	both.Go(func() {
		defer server.Close()
		var again func([]byte) ([]byte, error)
		for version := byte(1); ; {
			kind, body, err := readRecord(visitor)
			if err != nil {
				return
			}
			if kind == 22 {
				var inner []byte
				if again == nil {
					inner, again, err = keys.Open(public, body)
				} else {
					inner, err = again(body)
				}
				if err != nil || inner == nil {
					t.Errorf("hello of version 3.%d: %x, %v", version, inner, err)
					return
				}
				body = inner
			}
			if _, err := server.Write(record(kind, version, body)); err != nil {
				return
			}
			version = 3
		}
	})
	both.Go(func() {
		defer visitor.Close()
		_, _ = io.Copy(visitor, server)
	})
	return &both
}

// crypto/tls without any ECH key serves what the relay hands on.
func TestSplit(t *testing.T) {
	keys := newKeys(t)
	cert, roots := certificate(t, "secret.example.org")
	device, devices := certificate(t, "phone")
	tests := map[string]*struct {
		client, server tls.Config
		retried        bool
	}{
		"plain":                {},
		"h2":                   {client: tls.Config{NextProtos: []string{"h2", "http/1.1"}}, server: tls.Config{NextProtos: []string{"h2"}}},
		"HelloRetryRequest":    {server: tls.Config{CurvePreferences: []tls.CurveID{tls.CurveP384}}, retried: true},
		"without post-quantum": {client: tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}}},
		"client certificate": {
			client:  tls.Config{Certificates: []tls.Certificate{device}},
			server:  tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: devices, CurvePreferences: []tls.CurveID{tls.CurveP521}},
			retried: true,
		},
	}
	for what, tt := range tests {
		tt.client.ServerName, tt.client.RootCAs = "secret.example.org", roots
		tt.client.EncryptedClientHelloConfigList = keys.ConfigList()
		tt.server.Certificates = []tls.Certificate{cert}
		tt.client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		for _, resumed := range []bool{false, true} {
			visit(t, fmt.Sprintf("%s, resumed %v", what, resumed), keys, &tt.client, &tt.server, tt.retried, resumed)
		}
	}
}

// visit goes through split and says ping.
func visit(t *testing.T, what string, keys *Keys, config, serverConfig *tls.Config, retried, resumed bool) {
	t.Helper()
	visitor, near := net.Pipe()
	far, home := net.Pipe()
	relay := split(t, keys, near, far)
	server := tls.Server(home, serverConfig)
	go func() {
		defer server.Close()
		_, _ = io.Copy(server, server)
	}()
	client := tls.Client(visitor, config)
	_ = client.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := client.Write([]byte("ping")); err != nil {
		t.Errorf("%s: %v", what, err)
	} else if _, err := io.ReadFull(client, make([]byte, 4)); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	state := client.ConnectionState()
	if !state.ECHAccepted || state.HelloRetryRequest != retried || state.DidResume != resumed {
		t.Errorf("%s: accepted %v, retried %v, resumed %v", what, state.ECHAccepted, state.HelloRetryRequest, state.DidResume)
	}
	if len(config.Certificates) > 0 && len(server.ConnectionState().PeerCertificates) == 0 {
		t.Errorf("%s: the home saw no certificate", what)
	}
	if len(config.NextProtos) > 0 && state.NegotiatedProtocol != "h2" {
		t.Errorf("%s: protocol %q", what, state.NegotiatedProtocol)
	}
	_ = client.Close()
	relay.Wait()
}

// front is a TLS server of the public name, as the relay has it.
func front(t *testing.T, keys *Keys, config *tls.Config) error {
	t.Helper()
	cert, roots := certificate(t, public)
	visitor, near := net.Pipe()
	server := tls.Server(near, &tls.Config{Certificates: []tls.Certificate{cert}, EncryptedClientHelloKeys: keys.RetryKeys()})
	go func() {
		_ = server.Handshake()
		_, _ = io.Copy(io.Discard, server)
		_ = server.Close()
	}()
	config.RootCAs = roots
	client := tls.Client(visitor, config)
	defer client.Close()
	_ = client.SetDeadline(time.Now().Add(10 * time.Second))
	return client.Handshake()
}

// Whoever has an old config is handed the current one, which then works.
func TestRetryConfigs(t *testing.T) {
	keys, old := newKeys(t), newKeys(t)
	err := front(t, keys, &tls.Config{ServerName: "secret.example.org", EncryptedClientHelloConfigList: old.ConfigList()})
	rejected, ok := errors.AsType[*tls.ECHRejectionError](err)
	if !ok || !slices.Equal(rejected.RetryConfigList, keys.ConfigList()) {
		t.Fatalf("the client says %v, with %x", err, rejected)
	}
	msg := clientHello(t, &tls.Config{ServerName: "secret.example.org", EncryptedClientHelloConfigList: rejected.RetryConfigList})
	if inner, _, err := keys.Open(public, msg); err != nil || inner == nil {
		t.Errorf("the config that was handed out does not work: %v", err)
	}
}

// The public name's own TLS never opens a hello, not even one that is
// encrypted to the published key: the relay has decided before.
func TestRetryKeysOpenNothing(t *testing.T) {
	keys := newKeys(t)
	err := front(t, keys, &tls.Config{ServerName: "secret.example.org", EncryptedClientHelloConfigList: keys.ConfigList()})
	if rejected, ok := errors.AsType[*tls.ECHRejectionError](err); !ok || len(rejected.RetryConfigList) == 0 {
		t.Errorf("the client says %v", err)
	}
	// A visitor without ECH is served.
	if err := front(t, keys, &tls.Config{ServerName: public}); err != nil {
		t.Error(err)
	}
}
