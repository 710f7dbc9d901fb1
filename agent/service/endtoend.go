package service

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// serveEndToEnd hands a stream to the home's own door. Nothing is dialled for
// it: the relay may say what it likes about the visitor, who has yet to prove it.
func (t *Table) serveEndToEnd(ctx context.Context, log *slog.Logger, s tunnel.Stream, open protocol.Open, start time.Time) {
	if !accept(log, s) {
		return
	}
	s.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { s.Reset(endCode(context.Cause(ctx))) })
	defer stop()
	t.EndToEnd(ctx, s, open)
	s.Close()
	log.Info("stream ended", "took", time.Since(start).Round(time.Millisecond))
}

// endCode returns the code that the end of a context travels with.
func endCode(cause error) protocol.Code {
	if e, ok := errors.AsType[*tunnel.CloseError](cause); ok && e.Code != protocol.CodeOK {
		return e.Code
	}
	return protocol.CodeAborted
}

// Entry returns the entry of a service as its owner wrote it.
func (t *Table) Entry(name string) (Entry, bool) {
	b := t.current.Load().backends[name]
	if b == nil {
		return Entry{}, false
	}
	return b.entry, true
}

// DialBackend connects to a service's backend, for the home's own door once it
// has let a visitor in: o says who that is, for the PROXY header. It takes ten
// seconds at most. The connection is aborted when the service leaves the table.
//
// Its error is always a *DialError, and not logged yet.
func (t *Table) DialBackend(ctx context.Context, service string, o protocol.Open) (tunnel.Conn, error) {
	b := t.current.Load().backends[service]
	switch {
	case b == nil:
		return nil, refusal(protocol.CodeUnknownService, "not offered")
	case b.service.Proto == protocol.ProtoUDP:
		return nil, refusal(protocol.CodeRefused, "asked for a connection to a service that has datagrams only")
	}
	during, cancel := b.during(ctx)
	defer cancel()
	dialCtx, dialled := context.WithTimeout(during, dialTimeout)
	defer dialled()
	conn, err := b.dial(dialCtx, o)
	if err != nil {
		return nil, err
	}
	c := &tied{Conn: conn}
	c.untie = context.AfterFunc(b.gone, func() { tunnel.Abort(conn, protocol.CodeUnknownService) })
	return c, nil
}

// tied is a connection that ends with its service.
type tied struct {
	tunnel.Conn
	untie func() bool
}

// Close closes the connection and forgets it.
func (c *tied) Close() error {
	c.untie()
	return c.Conn.Close()
}

// NetConn is for tunnel.Abort.
func (c *tied) NetConn() net.Conn { return c.Conn }
