package ports

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"syscall"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// bind opens the socket of a route.
func (p *Ports) bind(r Route) (binding, error) {
	if r.UDP {
		c, err := p.cfg.ListenUDP(r.Port)
		if err != nil {
			return nil, explainBind(r, err)
		}
		return newUDP(p.base(r), c), nil
	}
	l, err := p.cfg.ListenTCP(r.Port)
	if err != nil {
		return nil, explainBind(r, err)
	}
	return &tcpPort{base: p.base(r), listener: l}, nil
}

// explainBind says what a person can do about err, at home or at the relay.
func explainBind(r Route, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("port %s is in use at the relay: choose another one, or have the relay's owner stop what listens there (ss -lnp shows it): %w", r, err)
	case errors.Is(err, fs.ErrPermission) && r.Port < 1024:
		return fmt.Errorf("port %s is below 1024, and the relay may not open it: choose a higher one, or have the relay's owner give it CAP_NET_BIND_SERVICE: %w", r, err)
	}
	return fmt.Errorf("open port %s: %w", r, err)
}

// base is what both kinds of port have.
type base struct {
	cfg    *Config
	route  Route
	log    *slog.Logger
	often  *seldom // for what a flood would write too often
	crowd  *crowd
	counts counts

	// gone ends when the port is taken away: its visitors end then, too.
	gone   context.Context
	remove context.CancelCauseFunc
}

func (p *Ports) base(r Route) *base {
	log := p.log.With("port", r.String(), "service", r.Service, "agent", r.Agent.Short())
	b := &base{cfg: &p.cfg, route: r, log: log, often: &seldom{log: log, kinds: map[string]*kind{}}, crowd: newCrowd(p.cfg.Limits)}
	b.gone, b.remove = context.WithCancelCause(context.Background())
	return b
}

// during returns a context that ends with ctx or with the port. Its cause then
// says which.
func (b *base) during(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(b.gone, func() { cancel(context.Cause(b.gone)) })
	return ctx, func() {
		stop()
		cancel(context.Cause(b.gone)) // it may be sooner than AfterFunc; nil: not gone
	}
}

// openHome opens a stream for a visitor.
func (b *base) openHome(ctx context.Context, client, local netip.AddrPort) (tunnel.Stream, error) {
	return b.cfg.Open(ctx, b.route.Agent, protocol.Open{
		Service: b.route.Service, Client: client, Local: local, Packets: b.route.UDP,
	})
}

// codeOf is what the end of a context or of a stream is on the wire.
func codeOf(err error) protocol.Code {
	if e, ok := errors.AsType[*tunnel.CloseError](err); ok && e.Code != protocol.CodeOK {
		return e.Code
	}
	if errors.Is(err, errMadeRoom) {
		return protocol.CodeOverload
	}
	return protocol.CodeAborted
}
