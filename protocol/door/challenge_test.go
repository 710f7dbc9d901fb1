package door

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"testing"
)

// An ACME server's question gets the certificate made for it, though the site
// asks for client certificates, and not one byte after the handshake.
func TestChallenge(t *testing.T) {
	answer := newAuthority(t, "challenge").server("ha.example.org")
	asked := ""
	w := newWorld(t, func(c *Config) {
		c.Challenge = func(h *tls.ClientHelloInfo) (*tls.Certificate, bool) {
			asked = h.ServerName
			return answer, h.ServerName == "ha.example.org"
		}
	})
	w.site("ha.example.org", Require, http.NotFoundHandler())
	w.site("nas.example.org", Require, http.NotFoundHandler())
	conf := func(host string, protos ...string) *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, ServerName: host, NextProtos: protos}
	}
	c, err := w.dial(conf("ha.example.org", "acme-tls/1"))
	if err != nil {
		t.Fatal(err)
	}
	cs := c.ConnectionState()
	if asked != "ha.example.org" || cs.NegotiatedProtocol != "acme-tls/1" || !cs.PeerCertificates[0].Equal(answer.Leaf) {
		t.Errorf("asked %q, agreed on %q", asked, cs.NegotiatedProtocol)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("after the handshake: %d, %v", n, err)
	}
	for what, conf := range map[string]*tls.Config{
		"beside http":  conf("ha.example.org", "acme-tls/1", "h2"),
		"other site":   conf("nas.example.org", "acme-tls/1"),
		"unknown name": conf("x.example.org", "acme-tls/1"),
	} {
		if _, err := w.dial(conf); err == nil {
			t.Errorf("%s: answered", what)
		}
	}
}

// Without a Challenge nobody who asks for acme-tls/1 is served, not even at an
// open site.
func TestNoChallenge(t *testing.T) {
	w := newWorld(t, nil)
	w.site("open.example.org", None, http.NotFoundHandler())
	if _, err := w.dial(&tls.Config{InsecureSkipVerify: true, ServerName: "open.example.org", NextProtos: []string{"acme-tls/1"}}); err == nil {
		t.Error("answered")
	}
}
