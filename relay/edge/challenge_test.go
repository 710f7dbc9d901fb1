package edge

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// challengeEdge serves ha.example.org, which is terminated here, and its
// challenges under a certificate of their own.
func challengeEdge(t *testing.T) (addr string, log *logBuffer) {
	t.Helper()
	answer := selfSigned(t, "ha.example.org")
	log, logger := newLog()
	return serve(t, &Server{Logger: logger, Router: routed(&Snapshot{
		Hosts: hosts(t, map[string]Target{"ha.example.org": tlsEcho(t, "ha.example.org"), "cam.example.org": tlsEcho(t, "cam.example.org")}),
		ACME: Challenge{Certificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if h.ServerName != "ha.example.org" {
				return nil, errors.New("no challenge is open")
			}
			return &answer, nil
		}},
	})}), log
}

func TestChallenge(t *testing.T) {
	addr, _ := challengeEdge(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		conn := tls.Client(dial(t, addr), &tls.Config{
			ServerName: "ha.example.org", NextProtos: []string{"acme-tls/1"}, InsecureSkipVerify: true, MaxVersion: version,
		})
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		if got := conn.ConnectionState().NegotiatedProtocol; got != "acme-tls/1" {
			t.Errorf("protocol %q", got)
		}
		// A challenge is a handshake and no byte more: the echo behind the same
		// name must not be reached this way.
		_, _ = conn.Write([]byte("ping"))
		if n, err := conn.Read(make([]byte, 4)); n != 0 || err == nil {
			t.Errorf("a challenge's connection answers %d bytes", n)
		}
		conn.Close()
	}
	mustEcho(t, addr, "ha.example.org") // other visitors meet the host itself
}

// Without an open challenge the answer is the one that strangers get.
func TestChallengeRefuses(t *testing.T) {
	addr, log := challengeEdge(t)
	got, err := answer(t, addr, helloFor(t, "cam.example.org", "acme-tls/1"))
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := answer(t, addr, helloFor(t, "nobody.example.org", "acme-tls/1"))
	if err != nil || len(stranger) == 0 {
		t.Fatalf("%x, %v", stranger, err)
	}
	if !bytes.Equal(got, stranger) {
		t.Errorf("a host without a challenge answers %x, an unknown one %x", got, stranger)
	}
	log.wait(t)
	log.wait(t)
	if !strings.Contains(log.String(), "no challenge is open") || !strings.Contains(log.String(), "target=acme") {
		t.Errorf("the log does not say why: %s", log)
	}
}

// A visitor that says hello and no more is sent away in the end.
func TestChallengeIsBounded(t *testing.T) {
	cert := selfSigned(t, "ha.example.org")
	hello := helloFor(t, "ha.example.org", "acme-tls/1")
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		go there.Write(hello)
		c, err := ReadHello(here, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, there)
		begin := time.Now()
		Challenge{Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }}.HandleConn(t.Context(), c)
		if took := time.Since(begin); took < time.Second || took > 2*challengeTime {
			t.Errorf("the connection ended after %v", took)
		}
		there.Close()
	})
}
