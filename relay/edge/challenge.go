package edge

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"
)

// challengeTime bounds a whole challenge: two flights and a close.
const challengeTime = 10 * time.Second

// Challenge answers the challenges of RFC 8737 (ACME tls-alpn-01): a handshake
// under a certificate made for this one question, and no byte after it.
type Challenge struct {
	// Certificate returns the answer to a hello whose only protocol is
	// acme-tls/1, or an error when nobody asked for a certificate of that
	// name. It must not block.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// HandleConn shakes hands and closes. Without an answer the visitor is refused
// as Refuse does it.
func (t Challenge) HandleConn(_ context.Context, c *Conn) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(challengeTime)); err != nil {
		c.Fail(err)
		return
	}
	var denied error
	conn := tls.Server(c, &tls.Config{
		MinVersion:             tls.VersionTLS12, // RFC 8737 §4
		NextProtos:             []string{alpnACME},
		SessionTicketsDisabled: true, // nothing of this connection is worth resuming
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			var cert *tls.Certificate
			if cert, denied = t.Certificate(h); denied != nil {
				return nil, nil // crypto/tls answers unrecognized_name, and internal_error to an error
			}
			return cert, nil
		},
	})
	err := conn.Handshake()
	if denied != nil {
		err = denied
	}
	if err != nil {
		c.Fail(fmt.Errorf("ACME challenge: %w", err))
		return
	}
	_ = conn.Close()
}

// Kind is "acme".
func (Challenge) Kind() string { return "acme" }
