package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

const (
	openTimeout   = 10 * time.Second // for the relay's Open
	dialTimeout   = 10 * time.Second // for the backend: name, connection, TLS
	resultTimeout = 10 * time.Second // for the relay to take the Result
)

// ServeStream serves one stream that the relay opened, from its Open to the
// end of both directions; it owns the stream. The end of ctx aborts it. What
// the relay asks for is checked again here: it names a service, and one that
// does not stand in the table is refused.
func (t *Table) ServeStream(ctx context.Context, s tunnel.Stream) {
	start := time.Now()
	s.SetReadDeadline(start.Add(openTimeout))
	open, err := protocol.ReadOpen(s)
	if err != nil {
		code := protocol.CodeAborted
		if errors.Is(err, protocol.ErrMalformed) {
			code = protocol.CodeProtocol
		} else if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
			code = protocol.CodeTimeout
		}
		t.log.Warn("stream without a usable header", "error", err)
		s.Reset(code)
		return
	}
	log := t.log.With("service", open.Service, "client", visitor(open.Client), "sni", open.SNI)
	b, fault := t.pick(open)
	if fault != nil {
		log.Warn("stream refused", "code", fault.Code, "error", fault)
		answer(s, fault)
		return
	}
	if b.service.Port != 0 || b.service.TLS == protocol.TLSBackend {
		count := &t.conns
		switch {
		case open.Packets:
			count = &t.flows
		case b.service.Port == 0:
			count = &t.passed
		}
		defer count.Add(-1)
		if count.Add(1) > int64(t.MostUnproven) && t.MostUnproven > 0 {
			log.Debug("stream refused: too many of its kind are open", "most", t.MostUnproven)
			answer(s, refusal(protocol.CodeOverload, "too many visitors that nobody here has asked for a certificate"))
			return
		}
	}
	log = log.With("target", b.target.String())
	ctx, cancel := b.during(ctx)
	defer cancel()
	switch {
	case open.Packets:
		t.serveDatagrams(ctx, log, s, b, start)
	case b.service.TLS == protocol.TLSAgent:
		t.serveEndToEnd(ctx, log, s, open, start)
	default:
		t.serve(ctx, log, s, b, open, start)
	}
}

// pick decides whether the agent serves this stream.
func (t *Table) pick(o protocol.Open) (*backend, *DialError) {
	if o.Hop > protocol.MaxHops {
		return nil, refusal(protocol.CodeRefused, fmt.Sprintf("passed %d relays, at most %d are allowed", o.Hop+1, protocol.MaxHops+1))
	}
	b := t.current.Load().backends[o.Service]
	switch {
	case b == nil:
		return nil, refusal(protocol.CodeUnknownService, "not offered")
	case o.Packets && b.service.Proto != protocol.ProtoUDP:
		return nil, refusal(protocol.CodeRefused, "asked for datagrams of a service that has none")
	case !o.Packets && b.service.Proto == protocol.ProtoUDP:
		return nil, refusal(protocol.CodeRefused, "asked for a connection to a service that has datagrams only")
	case b.service.TLS == protocol.TLSAgent && t.EndToEnd == nil:
		return nil, refusal(protocol.CodeRefused, "nothing here ends the TLS of this service")
	}
	return b, nil
}

// during returns a context that ends with ctx or with the service. Its cause
// then says which.
func (b *backend) during(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(b.gone, func() { cancel(context.Cause(b.gone)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// serve dials the backend, answers, and joins the two.
func (t *Table) serve(ctx context.Context, log *slog.Logger, s tunnel.Stream, b *backend, open protocol.Open, start time.Time) {
	dialCtx, dialled := context.WithTimeout(ctx, dialTimeout)
	conn, err := b.dial(dialCtx, open)
	dialled()
	if err != nil {
		fault, _ := errors.AsType[*DialError](err)
		log.Warn("backend not reached", "code", fault.Code, "error", fault.Err, "fix", fault.Fix)
		answer(s, fault)
		return
	}
	if !accept(log, s) {
		tunnel.Abort(conn, protocol.CodeAborted)
		return
	}
	r := tunnel.Splice(ctx, s, conn, tunnel.SpliceOptions{})
	attrs := []any{"in", r.AtoB, "out", r.BtoA, "took", time.Since(start).Round(time.Millisecond)}
	if r.Err != nil {
		attrs = append(attrs, "code", r.Code, "error", r.Err)
	}
	log.Info("stream ended", attrs...)
}

// accept tells the relay to begin. When that fails it resets the stream.
func accept(log *slog.Logger, s tunnel.Stream) bool {
	s.SetWriteDeadline(time.Now().Add(resultTimeout))
	if err := protocol.WriteResult(s, protocol.Result{Code: protocol.CodeOK}); err != nil {
		log.Info("stream ended before its begin", "error", err)
		s.Reset(protocol.CodeAborted)
		return false
	}
	return true
}

// answer tells the relay why not, and ends the stream.
func answer(s tunnel.Stream, fault *DialError) {
	s.SetWriteDeadline(time.Now().Add(resultTimeout))
	if err := protocol.WriteResult(s, protocol.Result{Code: fault.Code, Reason: fault.Reason}); err != nil {
		s.Reset(fault.Code)
		return
	}
	s.Close()
}

// visitor names a client in the log.
func visitor(client netip.AddrPort) string {
	if !client.IsValid() {
		return "unknown"
	}
	return client.String()
}
