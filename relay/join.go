package relay

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/edge"
	"github.com/sallyport/sallyport/relay/registry"
)

// Joining is rate-limited for the whole relay: secrets have 130 bits, so the
// limit protects the CPU, not the secret.
const (
	joinBurst = 50
	joinEvery = 200 * time.Millisecond
)

// joinTarget answers ALPNJoin: one CSR exchange, then close.
func (r *Relay) joinTarget(ctx context.Context, c *edge.Conn) {
	defer c.Close()
	log := r.log.With("remote", c.RemoteAddr().String())
	if !r.joinLimit.take(r.now()) {
		log.Warn("join refused: too many at once")
		return
	}
	_ = c.SetDeadline(time.Now().Add(controlDeadline))
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	tc := tls.Server(c, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocol.ALPNJoin},
		GetCertificate: r.tunnelCert.get, SessionTicketsDisabled: true,
	})
	if err := tc.HandshakeContext(ctx); err != nil {
		log.Info("join handshake failed", "err", err)
		return
	}
	m, err := protocol.ReadMessage(tc)
	if err != nil {
		log.Info("join request unreadable", "err", err)
		return
	}
	req, ok := m.(protocol.Join)
	if !ok {
		log.Info("join connection sent another message", "type", m.Type())
		return
	}
	reply := r.join(ctx, req, log)
	if err := protocol.WriteMessage(tc, reply); err != nil {
		log.Warn("join answer not delivered", "err", err)
		return
	}
	_ = tc.CloseWrite()
}

// join redeems the secret for the key of the CSR and issues its certificate.
func (r *Relay) join(ctx context.Context, req protocol.Join, log *slog.Logger) protocol.Joined {
	pub, err := pki.ParseCSR(req.CSR)
	if err != nil {
		return protocol.Joined{Error: "the certificate request is not usable: " + err.Error()}
	}
	id, err := protocol.AgentIDOfKey(pub)
	if err != nil {
		return protocol.Joined{Error: "the key is of a kind that cannot be named"}
	}
	agent, err := r.registry.Redeem(ctx, req.Secret, id, req.Name)
	if err != nil {
		log.Warn("join refused", "agent", id.Short(), "err", err)
		return protocol.Joined{Error: err.Error()}
	}
	cert, err := r.issueAgent(pub, id)
	if err != nil {
		log.Error("join: no certificate issued", "agent", id.Short(), "err", err)
		return protocol.Joined{Error: "the relay could not issue a certificate; its log says why"}
	}
	return protocol.Joined{
		Cert: cert.Raw, CA: r.state.agentCA.Cert().Raw, Name: agent.Name, Domain: r.conf.Domain,
		DeviceCA: r.state.deviceCA.Cert().Raw,
	}
}

func (r *Relay) issueAgent(pub crypto.PublicKey, id protocol.AgentID) (*x509.Certificate, error) {
	now := r.now()
	return r.state.agentCA.Issue(pub, pki.Grant{
		// The name is the key's hash: nothing in the certificate tells whose it is.
		Profile: pki.Agent, Name: string(id), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(agentCertLife),
	})
}

// Token mints a join token, good for one agent.
func (r *Relay) Token(ctx context.Context, q registry.TokenRequest) (protocol.Token, error) {
	if r.registry == nil {
		return protocol.Token{}, errors.New("the relay is not listening yet")
	}
	secret, expires, err := r.registry.NewToken(ctx, q)
	if err != nil {
		return protocol.Token{}, fmt.Errorf("join token: %w", err)
	}
	return protocol.Token{
		Relay: r.conf.agentAddress(r.tcp.Addr()), ServerName: r.state.tunnel.ServerName,
		CA: r.state.agentCA.Fingerprint(), Secret: secret, Expires: expires,
	}, nil
}

// Agents returns how many agents have joined and were not revoked.
func (r *Relay) Agents() int {
	n := 0
	for _, a := range r.registry.Agents() {
		if !a.Revoked {
			n++
		}
	}
	return n
}
