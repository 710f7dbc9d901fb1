package tunneltcp

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

const handshakeTimeout = 10 * time.Second

// A Listener accepts sessions from a net.Listener. The relay, whose port
// serves visitors too, calls Server instead.
type Listener struct {
	ln       net.Listener
	tls      *tls.Config
	cfg      Config
	log      *slog.Logger
	sessions chan tunnel.Session
	ctx      context.Context // of the handshakes; ends with Close
	cancel   context.CancelFunc
	close    sync.Once
	wg       sync.WaitGroup
}

var _ tunnel.Listener = (*Listener)(nil)

// NewListener starts to accept on l, which it closes in the end.
func NewListener(l net.Listener, tlsConf *tls.Config, cfg Config) *Listener {
	ctx, cancel := context.WithCancel(context.Background())
	ln := &Listener{
		ln: l, tls: tlsConf, cfg: cfg, log: cfg.withDefaults().Logger,
		sessions: make(chan tunnel.Session),
		ctx:      ctx, cancel: cancel,
	}
	ln.wg.Go(ln.acceptLoop)
	return ln
}

func (l *Listener) acceptLoop() {
	const minPause, maxPause = 5 * time.Millisecond, time.Second
	pause := minPause
	for {
		conn, err := l.ln.Accept()
		if err == nil {
			pause = minPause
			l.wg.Go(func() { l.serve(conn) })
			continue
		}
		if l.ctx.Err() != nil {
			return
		}
		l.log.Warn("accept failed, trying again", "err", err, "pause", pause)
		select {
		case <-time.After(pause):
			pause = min(2*pause, maxPause)
		case <-l.ctx.Done():
			return
		}
	}
}

// serve shakes hands with one peer and offers the session to Accept until it
// ends.
func (l *Listener) serve(conn net.Conn) {
	ctx, cancel := context.WithTimeout(l.ctx, handshakeTimeout)
	TuneTCP(conn)
	s, err := Server(ctx, conn, l.tls, l.cfg)
	cancel()
	if err != nil {
		l.log.Debug("handshake failed", "peer", conn.RemoteAddr(), "err", err)
		return
	}
	select {
	case l.sessions <- s:
	case <-s.Done():
	case <-l.ctx.Done():
	}
	select {
	case <-s.Done():
	case <-l.ctx.Done():
		s.Close(protocol.CodeGoingAway, "listener closed")
	}
}

// Accept implements tunnel.Listener.
func (l *Listener) Accept(ctx context.Context) (tunnel.Session, error) {
	select {
	case s := <-l.sessions:
		return s, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Addr implements tunnel.Listener.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// Close ends the listener and every session that it accepted.
func (l *Listener) Close() error {
	var err error
	l.close.Do(func() {
		l.cancel()
		err = l.ln.Close()
		l.wg.Wait()
	})
	return err
}
