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
		log.Warn("stream refused", "code", fault.code, "error", fault)
		answer(s, fault)
		return
	}
	t.serve(ctx, log.With("target", b.target.String()), s, b, open, start)
}

// pick decides whether the agent serves this stream.
func (t *Table) pick(o protocol.Open) (*backend, *dialError) {
	refuse := func(code protocol.Code, reason string) *dialError {
		return &dialError{err: errors.New(reason), code: code, reason: reason}
	}
	if o.Hop > protocol.MaxHops {
		return nil, refuse(protocol.CodeRefused, fmt.Sprintf("passed %d relays, at most %d are allowed", o.Hop+1, protocol.MaxHops+1))
	}
	b := t.current.Load().backends[o.Service]
	if b == nil {
		return nil, refuse(protocol.CodeUnknownService, "not offered")
	}
	return b, nil
}

// serve dials the backend, answers, and joins the two.
func (t *Table) serve(ctx context.Context, log *slog.Logger, s tunnel.Stream, b *backend, open protocol.Open, start time.Time) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(b.gone, func() { cancel(context.Cause(b.gone)) })
	defer stop()

	dialCtx, dialled := context.WithTimeout(ctx, dialTimeout)
	conn, err := b.dial(dialCtx, open)
	dialled()
	if err != nil {
		fault, _ := errors.AsType[*dialError](err)
		log.Warn("backend not reached", "code", fault.code, "error", fault.err, "fix", fault.fix)
		answer(s, fault)
		return
	}
	s.SetWriteDeadline(time.Now().Add(resultTimeout))
	if err := protocol.WriteResult(s, protocol.Result{Code: protocol.CodeOK}); err != nil {
		log.Info("stream ended before its begin", "error", err)
		tunnel.Abort(conn, protocol.CodeAborted)
		s.Reset(protocol.CodeAborted)
		return
	}
	r := tunnel.Splice(ctx, s, conn, tunnel.SpliceOptions{})
	attrs := []any{"in", r.AtoB, "out", r.BtoA, "took", time.Since(start).Round(time.Millisecond)}
	if r.Err != nil {
		attrs = append(attrs, "code", r.Code, "error", r.Err)
	}
	log.Info("stream ended", attrs...)
}

// answer tells the relay why not, and ends the stream.
func answer(s tunnel.Stream, fault *dialError) {
	s.SetWriteDeadline(time.Now().Add(resultTimeout))
	if err := protocol.WriteResult(s, protocol.Result{Code: fault.code, Reason: fault.reason}); err != nil {
		s.Reset(fault.code)
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
