package edge

import (
	"context"
	"crypto/tls"
	"fmt"
)

// ECH opens Encrypted ClientHellos (RFC 9849, "split mode": whoever ends the
// TLS of the host inside answers what was inside). It must be safe for
// concurrent use and must not block.
type ECH interface {
	// Open opens the hello inside outer, a ClientHello with the header of its
	// message, whose canonical server name is name. Inner is a ClientHello in
	// the same form; nil, without an error, means that outer is the hello that
	// counts: name is not the public name, or what looks encrypted was not
	// encrypted for us (any more).
	//
	// again opens the hello that follows a HelloRetryRequest. Its inner one must
	// name the same server.
	//
	// An error ends the handshake with the alert that its method
	// TLSAlert() uint8 returns, otherwise with illegal_parameter.
	Open(name string, outer []byte) (inner []byte, again func(outer []byte) (inner []byte, err error), err error)
}

// WithECH says that the server behind a target confirms to visitors that it
// read the encrypted hello, as crypto/tls does by itself. Targets without it
// are never reached by an encrypted hello: their server would answer as if the
// inner hello were the outer one, and the visitor end the connection.
func WithECH(t Target) Target { return echTarget{t} }

type echTarget struct{ Target }

func (t echTarget) Kind() string       { return kindOf(t.Target) }
func (t echTarget) ForwardsACME() bool { return forwardsACME(t.Target) }
func (echTarget) ConfirmsECH() bool    { return true }

// confirmsECH asks a target whether it is one of WithECH.
func confirmsECH(t Target) bool {
	c, ok := t.(interface{ ConfirmsECH() bool })
	return ok && c.ConfirmsECH()
}

// HasECH reports whether a host may be visited by an encrypted hello: whether
// its HTTPS record may carry an ECH config.
func (r *Router) HasECH(host string) bool { return r.matchInner(Hello{ServerName: host}) != nil }

// matchInner returns the target of a hello that came encrypted, nil when
// nobody may be reached by it so.
func (r *Router) matchInner(h Hello) Target {
	s := r.now.Load()
	if s == nil {
		return nil
	}
	if t := s.find(h); t != nil && confirmsECH(t) {
		return t
	}
	return nil
}

// route chooses the target of a connection. A hello that was opened, and whose
// host may be reached so, takes the place of the one that carried it;
// everything else counts as not opened: the public name's target answers the
// outer hello and hands out the config of today.
func (s *serving) route(c *Conn) Target {
	first := c.first
	c.first = messageReader{}
	if s.ech == nil || !c.Hello.hasECH {
		return s.router.Match(c.Hello)
	}
	inner, again, err := s.ech.Open(c.Hello.ServerName, first.message())
	if err != nil {
		return refusal{alertOf(err), err}
	}
	if inner == nil {
		return s.router.Match(c.Hello)
	}
	if first.more() {
		return refusal{alertUnexpectedMessage, errTwoMessages}
	}
	hello, err := parseHello(inner[messageHeader:])
	if err != nil {
		return refusal{alertIllegalParameter, fmt.Errorf("inside the encrypted ClientHello: %w", err)}
	}
	t := s.router.matchInner(hello)
	if t == nil {
		return s.router.Match(c.Hello)
	}
	hello.ECH = true
	c.Hello = hello
	c.replay = records(0x0301, inner)
	// What came behind the hello is looked at like what is still to come.
	c.retry = &retry{again: again, name: hello.ServerName, in: messageReader{raw: first.rest()}}
	return t
}

// A refusal is the target of a hello that no client may send.
type refusal struct {
	alert uint8
	why   error
}

func (r refusal) HandleConn(_ context.Context, c *Conn) {
	c.Fail(r.why)
	refuse(c, r.alert)
}

// Kind is "refuse".
func (refusal) Kind() string { return "refuse" }

// NewPublicPage returns the target of ECH's public name: the decoy's page under
// a certificate that is valid for it. Visitors whose config is out of date are
// led here, find the current one in the handshake, and come again with it.
//
// Keys are never to open a hello here; they only say what to hand out.
func NewPublicPage(certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error), keys func() []tls.EncryptedClientHelloKey) *PublicPage {
	page := NewDecoyPage(tls.Certificate{})
	page.tls.Certificates = nil
	page.tls.GetCertificate = certificate
	page.tls.GetEncryptedClientHelloKeys = func(*tls.ClientHelloInfo) ([]tls.EncryptedClientHelloKey, error) { return keys(), nil }
	return &PublicPage{page}
}

// PublicPage serves the public name of ECH: see NewPublicPage.
type PublicPage struct{ page *DecoyPage }

// HandleConn serves the page until the visitor leaves or ctx ends.
func (p *PublicPage) HandleConn(ctx context.Context, c *Conn) { p.page.HandleConn(ctx, c) }

// Kind is "ech-public".
func (*PublicPage) Kind() string { return "ech-public" }
