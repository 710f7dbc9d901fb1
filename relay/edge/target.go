package edge

import "context"

// A Target takes a connection. HandleConn owns c: it returns after the
// connection has ended, and closes it on every path. ctx ends when the server
// stops; soon after, the server aborts what is still open. A target that lets
// visitors in calls c.Settled when it has: until then the connection is a
// stranger's, and the first to go when room is needed.
type Target interface {
	HandleConn(ctx context.Context, c *Conn)
}

// A TargetFunc is a function as a Target.
type TargetFunc func(ctx context.Context, c *Conn)

// HandleConn calls f.
func (f TargetFunc) HandleConn(ctx context.Context, c *Conn) { f(ctx, c) }

// Named gives a target the kind that its connections have in the log:
// "terminate", "tunnel", "join".
func Named(kind string, t Target) Target { return named{t, kind} }

type named struct {
	Target
	kind string
}

func (n named) Kind() string       { return n.kind }
func (n named) ForwardsACME() bool { return forwardsACME(n.Target) }
func (n named) ConfirmsECH() bool  { return confirmsECH(n.Target) }

// kindOf asks a target for its kind in the log.
func kindOf(t Target) string {
	if k, ok := t.(interface{ Kind() string }); ok {
		return k.Kind()
	}
	return "other"
}

// forwardsACME asks a target whether the TLS of its host ends behind it, so
// that challenges of RFC 8737 (ALPN acme-tls/1) belong there too.
func forwardsACME(t Target) bool {
	f, ok := t.(interface{ ForwardsACME() bool })
	return ok && f.ForwardsACME()
}
