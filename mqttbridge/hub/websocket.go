package hub

import (
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/coder/websocket"
)

// subprotocol is what MQTT calls itself in a WebSocket (MQTT 5, 6.0).
const subprotocol = "mqtt"

// WebSocket speaks MQTT over WebSockets. identify says who asks; false: nobody
// who may. A request that is no WebSocket, does not offer the subprotocol
// "mqtt", or comes from a page of another origin is refused: a browser would
// add the device's certificate for any page. The connection ends with the
// request's context, so the server must not bound the whole request in time.
func (h *Hub) WebSocket(identify func(*http.Request) (Identity, bool)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, ok := identify(r)
		if !ok {
			http.Error(w, "this needs a device's certificate", http.StatusForbidden)
			return
		}
		if !offers(r.Header, subprotocol) {
			http.Error(w, `this is MQTT over WebSocket; the client has to offer the subprotocol "mqtt"`, http.StatusBadRequest)
			return
		}
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
			Subprotocols:    []string{subprotocol},
			CompressionMode: websocket.CompressionDisabled, // buffers for each connection, and secrets beside foreign bytes
		})
		if err != nil {
			return // it has answered
		}
		// Packets may be split over frames and frames hold several packets, so
		// that the limit of a packet is the engine's to keep.
		h.ServeConn(r.Context(), webConn{websocket.NetConn(r.Context(), ws, websocket.MessageBinary), ws}, id)
	})
}

func offers(header http.Header, want string) bool {
	for _, line := range header.Values("Sec-WebSocket-Protocol") {
		if slices.ContainsFunc(strings.Split(line, ","), func(p string) bool { return strings.TrimSpace(p) == want }) {
			return true
		}
	}
	return false
}

// A webConn closes without waiting for the client's word: MQTT has had its own.
type webConn struct {
	net.Conn
	ws *websocket.Conn
}

func (c webConn) Close() error { return c.ws.CloseNow() }
