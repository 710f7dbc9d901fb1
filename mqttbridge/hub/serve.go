package hub

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// An Identity is who is at the other end of a connection, as its certificate
// says.
type Identity struct {
	Name   string         // of the device, not empty; client ids begin with it
	ID     string         // of the device's key
	Remote netip.AddrPort // for the log
}

// ServeConn speaks MQTT 3.1.1 or 5 with a device and returns when the
// connection has ended; it closes c. It ends it when ctx does, without
// publishing the client's last will. It may be called from New until Run has
// returned; after that it closes c at once.
func (h *Hub) ServeConn(ctx context.Context, raw net.Conn, id Identity) {
	c := newConn(h, raw, id)
	if id.Name == "" {
		raw.Close()
		return
	}
	if ok, why := h.enter(c); !ok {
		if why != "" {
			c.warnRefused("MQTT connection refused", why)
		}
		raw.Close()
		return
	}
	defer h.leave(c)
	defer context.AfterFunc(ctx, func() { c.shut(endCancelled) })()
	_ = c.SetReadDeadline(time.Now().Add(connectTimeout))
	err := h.speak(c)
	code, reason := reasonOf(err)
	c.warnConnect(code, reason)
	c.shut(ending{code: code, reason: reason})
	h.release(c)
	c.finish()
	c.logger().Debug("MQTT client gone", "reason", c.end.reason)
}

// speak runs the engine on a connection.
func (h *Hub) speak(c *conn) (err error) {
	defer func() {
		if p := recover(); p != nil {
			// The engine reads past the end of a short SUBSCRIBE of MQTT 5,
			// and who knows what else.
			c.logger().Warn("a packet could not be read", "panic", p)
			c.logger().Debug("a packet could not be read", "stack", string(debug.Stack()))
			err = packets.ErrMalformedPacket
		}
		if c.cl != nil {
			h.engine.UnsubscribeClient(c.cl)
			if c.session != nil { // otherwise the entry is not ours
				h.engine.Clients.Delete(c.key)
			}
		}
	}()
	return h.engine.EstablishConnection("hub", c)
}

// reasonOf turns the engine's error into what an MQTT 5 client is told.
func reasonOf(err error) (byte, string) {
	if code, ok := errors.AsType[packets.Code](err); ok && code.Code >= 0x80 {
		return code.Code, code.Reason
	} else if ok {
		return 0, "the client left"
	}
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return 0, "the client left"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return packets.ErrKeepAliveTimeout.Code, "the client was silent"
	}
	return 0, "the connection broke: " + err.Error()
}
