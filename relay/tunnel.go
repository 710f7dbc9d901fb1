package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltcp"
	"github.com/sallyport/sallyport/relay/edge"
	"github.com/sallyport/sallyport/relay/registry"
)

// agentStreams is how many streams an agent may open: all others are the
// relay's. What an agent does not need it cannot fill with bytes.
func (r *Relay) agentStreams() int {
	if len(r.features()) == 0 {
		return 1 // the control stream
	}
	return protocol.MaxAgentStreams
}

// tunnelTLS is the TLS side of both transports: mutual, 1.3, nothing resumed.
func (r *Relay) tunnelTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocol.ALPN},
		GetCertificate: r.tunnelCert.get,
		// Any, not Verify: an agent may come with an expired certificate; the
		// chain is verified in verifyAgent.
		ClientAuth:             tls.RequireAnyClientCert,
		VerifyConnection:       r.verifyAgent,
		SessionTicketsDisabled: true,
	}
}

// quicTLS answers under the tunnel's name only. Over TCP the edge has routed
// by name already; over UDP this is the place. A configuration without a
// certificate makes crypto/tls answer unrecognized_name, as the edge does.
func (r *Relay) quicTLS() *tls.Config {
	inner := r.tunnelTLS()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: inner.NextProtos,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			if name, err := names.Canonical(h.ServerName); err != nil || name != r.state.tunnel.ServerName {
				// It takes any protocol, so that all strangers get the same alert: one
				// that only ours gets would tell scanners what stands here.
				return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: h.SupportedProtos}, nil
			}
			return inner, nil
		},
	}
}

// tunnelTarget takes an agent's TCP connection.
func (r *Relay) tunnelTarget(ctx context.Context, c *edge.Conn) {
	tunneltcp.TuneTCP(c.NetConn())
	hctx, cancel := context.WithTimeout(ctx, controlDeadline)
	defer cancel()
	lasting := &lastingConn{Conn: c, closed: make(chan struct{})}
	s, err := tunneltcp.Server(hctx, lasting, r.tunnelTLS(), tunneltcp.Config{MaxAccept: r.agentStreams(), Logger: r.log})
	if err != nil {
		c.Fail(fmt.Errorf("agent handshake: %w", err))
		return
	}
	r.serveSession(ctx, s, c.Settled)
	select {
	case <-lasting.closed:
	case <-time.After(lastWords):
	}
}

// lastWords is how long the reason of a session's end may take to the agent.
const lastWords = 3 * time.Second

// A lastingConn tells when it is closed: the transport does so only after the
// reason of the end has been read, and the edge cuts what its target returns.
type lastingConn struct {
	*edge.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *lastingConn) Close() error {
	defer c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// maxUnsaid is how many sessions of one key may be without a hello: a home
// needs one at a time, and each may hold memory.
const maxUnsaid = 4

// admit counts a session until its hello has come.
func (r *Relay) admit(id protocol.AgentID) (said func(), ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unsaid[id] >= maxUnsaid {
		return nil, false
	}
	r.unsaid[id]++
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.unsaid[id]--; r.unsaid[id] == 0 {
			delete(r.unsaid, id)
		}
	}), true
}

// attach registers the session and its control stream; detach undoes both.
func (r *Relay) attach(c *control, hello protocol.Hello) (detach func(), err error) {
	// Known to sendGoAway first: attaching may push an older session out.
	r.mu.Lock()
	r.controls[c] = struct{}{}
	r.mu.Unlock()
	forget := func() {
		r.mu.Lock()
		delete(r.controls, c)
		r.mu.Unlock()
	}
	undo, err := r.registry.Attach(c.session, hello.Instance)
	if err != nil {
		forget()
		return nil, err
	}
	r.zone.came(c.session)
	if hello.Alone {
		r.registry.EndOlder(c.session)
	}
	return func() { undo(); forget() }, nil
}

// codeOf is how an error of the registry travels.
func codeOf(err error) protocol.Code {
	switch {
	case errors.Is(err, registry.ErrRevoked):
		return protocol.CodeRevoked
	case errors.Is(err, registry.ErrUnknownAgent):
		return protocol.CodeRefused
	}
	return protocol.CodeInternal
}

func (r *Relay) agentName(id protocol.AgentID) string {
	a, _ := r.registry.Lookup(id)
	return a.Name
}
