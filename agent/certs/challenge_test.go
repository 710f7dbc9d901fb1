package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

func helloOf(name string, protocols ...string) *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{ServerName: name, SupportedProtos: protocols}
}

// The answer to a CA reaches nobody else (RFC 8737 §3).
func TestChallengeIsStrict(t *testing.T) {
	c, err := New(Config{Dir: t.TempDir(), Domain: domain})
	if err != nil {
		t.Fatal(err)
	}
	s := tlsSolver{c.acme.answers}
	open := acme.Challenge{Identifier: acme.Identifier{Type: "dns", Value: "ha.relay.test"}, KeyAuthorization: "x.y"}
	if err := s.Present(t.Context(), open); err != nil {
		t.Fatal(err)
	}
	for _, hello := range []*tls.ClientHelloInfo{helloOf("ha.relay.test", ALPN), helloOf("HA.relay.test.", ALPN)} {
		if cert, ok := c.Challenge(hello); !ok || cert == nil {
			t.Errorf("no answer to %q", hello.ServerName)
		}
	}
	for _, hello := range []*tls.ClientHelloInfo{
		helloOf("ha.relay.test"), helloOf("ha.relay.test", "h2"), helloOf("ha.relay.test", ALPN, "h2"), helloOf("ha.relay.test", "h2", ALPN),
		helloOf("nas.relay.test", ALPN), helloOf("", ALPN), helloOf("*.relay.test", ALPN), helloOf("127.0.0.1", ALPN),
	} {
		if _, ok := c.Challenge(hello); ok {
			t.Errorf("an answer to %q with %q", hello.ServerName, hello.SupportedProtos)
		}
	}
	if err := s.CleanUp(t.Context(), open); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Challenge(helloOf("ha.relay.test", ALPN)); ok {
		t.Error("the challenge stays open")
	}
	internal, err := New(Config{Dir: t.TempDir(), Domain: domain, Mode: ModeInternal})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := internal.Challenge(helloOf("ha.relay.test", ALPN)); ok {
		t.Error("a challenge without ACME")
	}
}

// A name and its wildcard are two values of one record; one order's end leaves
// the other's value alone.
func TestBookHoldsSeveralValues(t *testing.T) {
	zone := newZone()
	s := dnsSolver{newBook(zone.set)}
	challenge := func(auth string) acme.Challenge {
		return acme.Challenge{Identifier: acme.Identifier{Type: "dns", Value: own}, KeyAuthorization: auth}
	}
	a, b := challenge("a"), challenge("b")
	for _, c := range []acme.Challenge{a, b} {
		if err := s.Present(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if got := zone.get("_acme-challenge." + own); !slices.Equal(got, []string{a.DNS01KeyAuthorization(), b.DNS01KeyAuthorization()}) {
		t.Errorf("values %q", got)
	}
	if err := s.publish(t.Context(), own); err != nil || len(zone.get("_acme-challenge."+own)) != 2 {
		t.Errorf("a look took values away: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel() // the attempt was broken off
	if err := s.CleanUp(ended, a); err != nil {
		t.Error(err)
	}
	if got := zone.get("_acme-challenge." + own); !slices.Equal(got, []string{b.DNS01KeyAuthorization()}) {
		t.Errorf("values %q", got)
	}
	if err := s.CleanUp(t.Context(), b); err != nil || len(zone.txt) != 0 {
		t.Errorf("left: %v, %v", zone.txt, err)
	}
}

// A relay that does not answer keeps nobody longer than txtTime, and does not
// get records of one name in the wrong order.
func TestBookWaitsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, most int
		b := newBook(func(ctx context.Context, _ string, _ []string) error {
			running++
			most = max(most, running)
			<-ctx.Done()
			running--
			return ctx.Err()
		})
		s := dnsSolver{b}
		started := time.Now()
		done := make(chan error)
		for _, auth := range []string{"a", "b", "c"} {
			go func() {
				done <- s.Present(t.Context(), acme.Challenge{Identifier: acme.Identifier{Type: "dns", Value: own}, KeyAuthorization: auth})
			}()
		}
		for range 3 {
			if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
		if most != 1 || time.Since(started) != txtTime {
			t.Errorf("%d at once, %v in all", most, time.Since(started))
		}
	})
}

// through dials a server in memory that answers with a Certs' challenges, or
// with what change makes of them (bubble).
func (h *home) through(config func() *tls.Config) func(context.Context, string, string) (net.Conn, error) {
	return func(_ context.Context, network, addr string) (net.Conn, error) {
		if network != "tcp" || !strings.HasSuffix(addr, ":443") {
			h.t.Errorf("dials %s %s", network, addr)
		}
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			_ = server.SetDeadline(time.Now().Add(time.Minute))
			_ = tls.Server(server, config()).Handshake()
			_, _ = io.Copy(io.Discard, server)
		}()
		return client, nil
	}
}

func (h *home) challenges() *tls.Config {
	return &tls.Config{NextProtos: []string{ALPN}, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if cert, ok := h.Challenge(hello); ok {
			return cert, nil
		}
		return nil, errors.New("not here")
	}}
}

// Before tls-alpn-01 the agent looks whether the host leads here, and spares
// the CA what would fail; after an hour it asks in spite of that, as the look
// may be wrong.
func TestLook(t *testing.T) {
	foreign, err := New(Config{Dir: t.TempDir(), Domain: domain})
	if err != nil {
		t.Fatal(err)
	}
	if err := (tlsSolver{foreign.acme.answers}).Present(t.Context(), acme.Challenge{Identifier: acme.Identifier{Type: "dns", Value: "ha.relay.test"}, KeyAuthorization: "other"}); err != nil {
		t.Fatal(err)
	}
	missing := &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "ha.relay.test", IsNotFound: true}}
	for name, c := range map[string]struct {
		dial  func(h *home) func(context.Context, string, string) (net.Conn, error)
		held  bool
		words string
	}{
		"here": {func(h *home) func(context.Context, string, string) (net.Conn, error) { return h.through(h.challenges) }, false, ""},
		"other home": {func(h *home) func(context.Context, string, string) (net.Conn, error) {
			return h.through(func() *tls.Config {
				return &tls.Config{NextProtos: []string{ALPN}, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
					cert, _ := foreign.Challenge(hello)
					return cert, nil
				}}
			})
		}, true, "something else"},
		"no agreement": {func(h *home) func(context.Context, string, string) (net.Conn, error) {
			return h.through(func() *tls.Config { c := h.challenges(); c.NextProtos = nil; return c })
		}, true, "something else"},
		"no address": {func(*home) func(context.Context, string, string) (net.Conn, error) {
			return func(context.Context, string, string) (net.Conn, error) { return nil, missing }
		}, true, "no address in the DNS"},
		"filtered": {func(*home) func(context.Context, string, string) (net.Conn, error) {
			return func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		}, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHome(t, func(h *home) { h.config.SetTXT = nil })
				h.acme.config.Dial = c.dial(h)
				h.SetHosts([]string{"ha.relay.test"})
				h.run()
				defer h.stop()
				pass(50 * time.Minute)
				st := h.of("ha.relay.test")
				if !c.held {
					if st.State != StateOK {
						t.Errorf("status %+v", st)
					}
					return
				}
				if len(h.ca.times()) != 0 || st.State != StateFailing || !strings.Contains(st.Problem, c.words) || st.Fix == "" {
					t.Errorf("%d orders, status %+v", len(h.ca.times()), st)
				}
				pass(20 * time.Minute)
				if n := len(h.ca.times()); n != 1 {
					t.Errorf("after more than an hour %d orders", n)
				}
			})
		})
	}
}
