package tunnelquic

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/quic-go/quic-go"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/flow"
)

// backlog is how many sessions may wait for Accept. quic-go refuses when 32
// do, and after a restart of the relay all agents come at once.
const backlog = 1024

// A Listener accepts sessions on one UDP socket.
type Listener struct {
	tr       *quic.Transport
	ln       *quic.Listener
	cfg      Config
	log      *slog.Logger
	sessions chan *flow.Session
	done     chan struct{}
	close    sync.Once
	wg       sync.WaitGroup

	mu   sync.Mutex // guards live
	live map[*flow.Session]struct{}
}

var _ tunnel.Listener = (*Listener)(nil)

// Listen starts to accept on pc, which stays the caller's. tlsConf may use
// GetConfigForClient. Close must be called.
func Listen(pc net.PacketConn, tlsConf *tls.Config, cfg Config) (*Listener, error) {
	log := cfg.logger()
	raiseBuffers(pc, log)
	tr := &quic.Transport{Conn: pc, DisableVersionNegotiationPackets: true}
	if cfg.ResetKey != nil {
		tr.StatelessResetKey = (*quic.StatelessResetKey)(cfg.ResetKey)
	}
	ln, err := tr.Listen(tlsConfig(tlsConf), cfg.quic())
	if err != nil {
		tr.Close()
		return nil, fmt.Errorf("listen for quic on %s: %w", pc.LocalAddr(), err)
	}
	l := &Listener{
		tr: tr, ln: ln, cfg: cfg, log: log,
		sessions: make(chan *flow.Session, backlog),
		done:     make(chan struct{}),
		live:     map[*flow.Session]struct{}{},
	}
	l.wg.Go(l.acceptLoop)
	return l, nil
}

// acceptLoop moves finished handshakes on, so that quic-go's short queue
// never fills. It waits for no peer.
func (l *Listener) acceptLoop() {
	for {
		conn, err := l.ln.Accept(context.Background())
		if err != nil {
			return
		}
		s, err := newSession(context.Background(), conn, l.cfg, false, func() {})
		if err != nil {
			continue
		}
		l.track(s)
		select {
		case l.sessions <- s:
		default:
			l.log.Warn("too many sessions wait to be accepted", "peer", conn.RemoteAddr())
			go s.Close(protocol.CodeOverload, "too many sessions at once")
		}
	}
}

func (l *Listener) track(s *flow.Session) {
	l.mu.Lock()
	l.live[s] = struct{}{}
	l.mu.Unlock()
	l.wg.Go(func() {
		<-s.Done()
		l.mu.Lock()
		delete(l.live, s)
		l.mu.Unlock()
	})
}

// Accept implements tunnel.Listener.
func (l *Listener) Accept(ctx context.Context) (tunnel.Session, error) {
	select {
	case s := <-l.sessions:
		return s, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Addr implements tunnel.Listener.
func (l *Listener) Addr() net.Addr { return l.tr.Conn.LocalAddr() }

// Close ends the listener and every session that it accepted. The socket
// stays open.
func (l *Listener) Close() error {
	l.close.Do(func() {
		close(l.done)
		l.ln.Close()
		l.mu.Lock()
		all := make([]*flow.Session, 0, len(l.live))
		for s := range l.live {
			all = append(all, s)
		}
		l.mu.Unlock()
		var closing sync.WaitGroup
		for _, s := range all {
			closing.Go(func() { s.Close(protocol.CodeGoingAway, "listener closed") })
		}
		closing.Wait()
		l.tr.Close()
		l.wg.Wait()
	})
	return nil
}
