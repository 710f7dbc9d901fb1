package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

const (
	controlDeadline = 10 * time.Second // Hello, and every write
	// farewell is how long sessions stay after GoAway. Without it QUIC's
	// CONNECTION_CLOSE overtakes the message, and agents back off as if the
	// relay had vanished.
	farewell      = 100 * time.Millisecond
	agentCertLife = 90 * 24 * time.Hour
)

// A control is the relay's end of one session's control stream.
type control struct {
	session  tunnel.Session
	stream   tunnel.Stream
	heard    atomic.Int64 // when a message came last, Unix nanoseconds
	features []string     // of both
	costly   *limiter     // of messages that cost the relay a disk write
	write    sync.Mutex   // one message at a time; held across the write, never across a read
}

// Registering and renewing write to disk and rebuild routes for all homes: a
// home may do so ten times at once, then once a second.
const (
	costlyBurst = 10
	costlyEvery = time.Second
)

// pace waits until the next costly message may be served. The agent's later
// messages wait behind it.
func (c *control) pace(ctx context.Context) error {
	for !c.costly.take(time.Now()) {
		select {
		case <-time.After(costlyEvery):
		case <-c.session.Done():
			return c.session.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (c *control) send(m protocol.Message) error {
	c.write.Lock()
	defer c.write.Unlock()
	_ = c.stream.SetWriteDeadline(time.Now().Add(controlDeadline))
	return protocol.WriteMessage(c.stream, m)
}

// serveSession runs one agent session until it ends. It owns s. settled is
// called once the agent is known and attached.
func (r *Relay) serveSession(ctx context.Context, s tunnel.Session, settled func()) {
	peer := s.Peer()
	said, ok := r.admit(peer.ID)
	if !ok {
		s.Close(protocol.CodeOverload, "too many sessions without a hello")
		return
	}
	defer said()
	log := r.log.With("agent", peer.ID.Short(), "transport", peer.Transport, "remote", peer.Addr.String())
	stop := context.AfterFunc(ctx, func() { s.Close(protocol.CodeGoingAway, "the relay stops") })
	defer stop()
	c, hello, err := acceptControl(ctx, s)
	if err == nil {
		c.features = r.agreed(hello)
	}
	if err != nil {
		s.Close(protocol.CodeProtocol, "no hello")
		log.Warn("agent session without a hello", "err", err)
		return
	}
	if !slices.Contains(hello.Versions, protocol.Version) {
		s.Close(protocol.CodeVersion, fmt.Sprintf("the relay speaks version %d; upgrade the older of the two", protocol.Version))
		log.Warn("agent speaks no version of ours", "versions", hello.Versions, "software", clip(hello.Software, 64))
		return
	}
	detach, err := r.attach(c, hello)
	if err != nil {
		s.Close(codeOf(err), err.Error())
		log.Warn("agent refused", "err", err)
		return
	}
	log.Debug("agent said hello", "software", clip(hello.Software, 64))
	said()
	settled()
	var streams sync.WaitGroup
	err = r.runControl(ctx, c, &streams, log)
	detach()
	code := protocol.CodeOK
	if errors.Is(err, protocol.ErrMalformed) {
		code = protocol.CodeProtocol
	}
	s.Close(code, "the control stream ended")
	streams.Wait()
	log.Debug("control stream ended", "err", err)
}

// acceptControl waits for the agent's first stream and its Hello.
func acceptControl(ctx context.Context, s tunnel.Session) (*control, protocol.Hello, error) {
	ctx, cancel := context.WithTimeout(ctx, controlDeadline)
	defer cancel()
	stream, err := s.AcceptStream(ctx)
	if err != nil {
		return nil, protocol.Hello{}, err
	}
	_ = stream.SetReadDeadline(time.Now().Add(controlDeadline))
	m, err := protocol.ReadMessage(stream)
	if err != nil {
		return nil, protocol.Hello{}, err
	}
	hello, ok := m.(protocol.Hello)
	if !ok {
		return nil, protocol.Hello{}, fmt.Errorf("the first message has type %d, not Hello", m.Type())
	}
	return &control{session: s, stream: stream, costly: newLimiter(costlyBurst, costlyEvery)}, hello, nil
}

// runControl answers the agent until the control stream ends. What it leaves
// running in streams ends with the session.
func (r *Relay) runControl(ctx context.Context, c *control, streams *sync.WaitGroup, log *slog.Logger) error {
	name := r.agentName(c.session.Peer().ID)
	if err := c.send(protocol.Welcome{
		Version: protocol.Version, Name: name, Domain: r.conf.Domain, Time: r.now(), Software: r.conf.Software,
		Features: c.features,
	}); err != nil {
		return err
	}
	_ = c.stream.SetReadDeadline(time.Time{})
	streams.Go(func() { r.takeStreams(ctx, c.session, c.features, log) })
	for {
		m, err := protocol.ReadMessage(c.stream)
		var unknown *protocol.UnknownTypeError
		if errors.As(err, &unknown) {
			continue // a newer agent; the features decide what it may count on
		}
		if err != nil {
			return err
		}
		c.heard.Store(time.Now().UnixNano())
		reply, err := r.answer(ctx, c, m, log)
		if err != nil {
			return err
		}
		if reply != nil {
			if err := c.send(reply); err != nil {
				return err
			}
		}
	}
}

// answer handles one control message; a nil reply is none.
func (r *Relay) answer(ctx context.Context, c *control, m protocol.Message, log *slog.Logger) (protocol.Message, error) {
	id := c.session.Peer().ID
	switch m := m.(type) {
	case protocol.Ping:
		return protocol.Pong(m), nil
	case protocol.Pong:
		return nil, nil
	case protocol.Register:
		if err := c.pace(ctx); err != nil {
			return nil, err
		}
		regs := r.registry.Register(ctx, c.session, m.Services)
		r.warnUncovered(m.Services, regs)
		return protocol.Registered{Seq: m.Seq, Services: regs}, nil
	case protocol.Renew:
		if err := c.pace(ctx); err != nil {
			return nil, err
		}
		cert, err := r.renewAgent(id, m.CSR)
		if err != nil {
			log.Warn("agent certificate not renewed", "err", err)
			return protocol.Renewed{Error: err.Error()}, nil
		}
		log.Info("agent certificate renewed", "not_after", cert.NotAfter)
		return protocol.Renewed{Cert: cert.Raw}, nil
	case protocol.Names:
		if r.zone == nil {
			break
		}
		if err := c.pace(ctx); err != nil {
			return nil, err
		}
		return r.zone.take(ctx, c.session, m), nil
	case protocol.SetTXT:
		if r.zone == nil {
			break
		}
		if err := c.pace(ctx); err != nil {
			return nil, err
		}
		return r.zone.setTXT(id, m), nil
	case protocol.GoAway:
		log.Info("agent goes away", "reason", clip(m.Reason, 128))
		r.registry.Retire(c.session)
		return nil, nil
	}
	return nil, fmt.Errorf("%w: message type %d is not for the relay", protocol.ErrMalformed, m.Type())
}

// renewAgent issues a certificate for the key that the session proved to hold.
func (r *Relay) renewAgent(id protocol.AgentID, csr []byte) (*x509.Certificate, error) {
	pub, err := pki.ParseCSR(csr)
	if err != nil {
		return nil, err
	}
	got, err := protocol.AgentIDOfKey(pub)
	if err != nil {
		return nil, err
	}
	if got != id {
		return nil, errors.New("the request is for another key than this session's")
	}
	return r.issueAgent(pub, id)
}

// verifyAgent checks an agent's certificate at the handshake. A known key may
// come with an expired one, so that a Pi that was off for a year renews
// (DESIGN §5): the chain is judged at a time when the leaf was valid. Whether
// the key is known and unrevoked is the registry's word in attach: there the
// agent can still be told why.
func (r *Relay) verifyAgent(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("agent showed no certificate")
	}
	leaf, at := cs.PeerCertificates[0], r.now()
	if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	if at.Before(leaf.NotBefore) {
		at = leaf.NotBefore
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: r.state.agentCA.Pool(), CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return fmt.Errorf("agent certificate: %w", err)
	}
	return nil
}

// goAway tells every agent that the relay will be away for a moment. One that
// does not read holds nothing up.
func (r *Relay) goAway() {
	r.mu.Lock()
	controls := slices.Collect(maps.Keys(r.controls))
	r.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range controls {
		wg.Go(func() {
			_ = c.send(protocol.GoAway{
				Code: protocol.CodeGoingAway, Reason: "the relay stops",
				ReconnectIn: time.Second, TryFor: time.Minute,
			})
		})
	}
	told := make(chan struct{})
	go func() {
		wg.Wait() // each write has a deadline, and ends with its session
		close(told)
	}()
	select {
	case <-told:
	case <-time.After(time.Second):
	}
}

// clip bounds what an agent says about itself before it is logged.
func clip(s string, n int) string { return s[:min(len(s), n)] }
