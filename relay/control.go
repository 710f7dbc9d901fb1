package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
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
	session tunnel.Session
	stream  tunnel.Stream
	write   sync.Mutex // one message at a time; held across the write, never across a read
}

func (c *control) send(m protocol.Message) error {
	c.write.Lock()
	defer c.write.Unlock()
	_ = c.stream.SetWriteDeadline(time.Now().Add(controlDeadline))
	return protocol.WriteMessage(c.stream, m)
}

// serveSession runs one agent session until it ends. It owns s.
func (r *Relay) serveSession(ctx context.Context, s tunnel.Session) {
	peer := s.Peer()
	log := r.log.With("agent", peer.ID.Short(), "transport", peer.Transport, "remote", peer.Addr.String())
	stop := context.AfterFunc(ctx, func() { s.Close(protocol.CodeGoingAway, "the relay stops") })
	defer stop()
	c, hello, err := acceptControl(ctx, s)
	if err != nil {
		s.Close(protocol.CodeProtocol, "no hello")
		log.Warn("agent session without a hello", "err", err)
		return
	}
	if !slices.Contains(hello.Versions, protocol.Version) {
		s.Close(protocol.CodeVersion, fmt.Sprintf("the relay speaks version %d; upgrade the older of the two", protocol.Version))
		log.Warn("agent speaks no version of ours", "versions", hello.Versions, "software", hello.Software)
		return
	}
	detach, err := r.attach(c, hello)
	if err != nil {
		s.Close(codeOf(err), err.Error())
		log.Warn("agent refused", "err", err)
		return
	}
	log.Info("agent connected", "instance", hello.Instance, "software", hello.Software)
	err = r.runControl(ctx, c, hello, log)
	detach()
	code := protocol.CodeOK
	if errors.Is(err, protocol.ErrMalformed) {
		code = protocol.CodeProtocol
	}
	s.Close(code, "the control stream ended")
	if cause := s.Err(); cause != nil {
		err = cause
	}
	st := s.Stats()
	log.Info("agent disconnected", "reason", err, "bytes_in", st.BytesIn, "bytes_out", st.BytesOut)
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
	return &control{session: s, stream: stream}, hello, nil
}

// runControl answers the agent until the control stream ends.
func (r *Relay) runControl(ctx context.Context, c *control, hello protocol.Hello, log *slog.Logger) error {
	name := r.agentName(c.session.Peer().ID)
	if err := c.send(protocol.Welcome{
		Version: protocol.Version, Name: name, Domain: r.conf.Domain, Time: r.now(), Software: r.conf.Software,
	}); err != nil {
		return err
	}
	_ = c.stream.SetReadDeadline(time.Time{})
	go refuseStreams(ctx, c.session)
	for {
		m, err := protocol.ReadMessage(c.stream)
		var unknown *protocol.UnknownTypeError
		if errors.As(err, &unknown) {
			continue // a newer agent; the features decide what it may count on
		}
		if err != nil {
			return err
		}
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
		return protocol.Pong{Seq: m.Seq, Pad: m.Pad}, nil
	case protocol.Pong:
		return nil, nil
	case protocol.Register:
		regs := r.registry.Register(ctx, id, m.Services)
		for _, g := range regs {
			if g.Error != "" {
				log.Warn("service refused", "service", g.Name, "reason", g.Error)
			} else {
				log.Info("service offered", "service", g.Name, "url", g.URL)
			}
		}
		return protocol.Registered{Seq: m.Seq, Services: regs}, nil
	case protocol.Renew:
		cert, err := r.renewAgent(id, m.CSR)
		if err != nil {
			log.Warn("agent certificate not renewed", "err", err)
			return protocol.Renewed{Error: err.Error()}, nil
		}
		log.Info("agent certificate renewed", "not_after", cert.NotAfter)
		return protocol.Renewed{Cert: cert.Raw}, nil
	case protocol.GoAway:
		log.Info("agent goes away", "reason", m.Reason)
		r.registry.Retire(c.session)
		return nil, nil
	}
	return nil, fmt.Errorf("message type %d is not for the relay", m.Type())
}

// refuseStreams resets data streams that an agent opens: in this version only
// the relay opens them.
func refuseStreams(ctx context.Context, s tunnel.Session) {
	for {
		st, err := s.AcceptStream(ctx)
		if err != nil {
			return
		}
		st.Reset(protocol.CodeProtocol)
	}
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
// (DESIGN §5): the chain is judged at a time when the leaf was valid, and
// whether the key is known and unrevoked is the registry's word.
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
	return r.knownAgent(protocol.AgentIDOf(leaf))
}

// goAway tells every agent that the relay will be away for a moment.
func (r *Relay) goAway() {
	r.mu.Lock()
	controls := slices.Collect(keys(r.controls))
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
	wg.Wait()
}

func keys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
