package hub

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/mochi-mqtt/server/v2/packets"
)

// webHub serves the hub's handler; the device's name is in a header, where a
// certificate would be.
func webHub(t *testing.T) (*world, string) {
	w := newWorld(t, nil)
	s := httptest.NewServer(w.hub.WebSocket(func(r *http.Request) (Identity, bool) {
		name := r.Header.Get("Device")
		return Identity{Name: name, ID: "key-" + name, Remote: netip.MustParseAddrPort(r.RemoteAddr)}, name != ""
	}))
	t.Cleanup(s.Close)
	t.Cleanup(w.stop) // before the server, which waits for its requests
	return w, strings.Replace(s.URL, "http:", "ws:", 1)
}

func (w *world) dialWeb(url, device string, protocols []string, origin string) (*websocket.Conn, *http.Response, error) {
	header := http.Header{}
	if device != "" {
		header.Set("Device", device)
	}
	if origin != "" {
		header.Set("Origin", origin)
	}
	return websocket.Dial(w.t.Context(), url, &websocket.DialOptions{Subprotocols: protocols, HTTPHeader: header})
}

func (w *world) webClient(url, device string, version byte) *client {
	w.t.Helper()
	ws, _, err := w.dialWeb(url, device, []string{"mqtt"}, "")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { ws.CloseNow() })
	c := newClient(w.t, websocket.NetConn(context.Background(), ws, websocket.MessageBinary), version)
	close(c.served) // nobody can see ServeConn return
	return c
}

func TestWebSocket(t *testing.T) {
	w, url := webHub(t)
	for _, version := range []byte{4, 5} {
		c := w.webClient(url, "anna", version)
		if ack := c.hello("anna"); ack.ReasonCode != 0 {
			t.Fatalf("CONNACK %#x", ack.ReasonCode)
		}
		c.subscribe(filter("home/a/#", 2))
		c.publish("home/a/x", "1", 2)
		c.want("home/a/x=1")
		c.publish("home/a/y", strings.Repeat("x", 60_000), 1)
		c.want("home/a/y=" + strings.Repeat("x", 60_000))
		// A packet in pieces, and two in one frame.
		ping := []byte{0xC0, 0}
		c.sendRaw(ping[:1], ping[1:])
		c.sendRaw(append(ping, ping...))
		for range 3 {
			c.await(packets.Pingresp)
		}
		if version == 5 {
			w.hub.Forget("anna")
			if code := c.ended(); code != packets.ErrAdministrativeAction.Code {
				t.Errorf("DISCONNECT %#x", code)
			}
		} else {
			c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
			c.ended()
		}
	}
}

func TestWebSocketRefusals(t *testing.T) {
	w, url := webHub(t)
	for name, tc := range map[string]struct {
		device    string
		protocols []string
		origin    string
		status    int
	}{
		"nobody":         {"", []string{"mqtt"}, "", http.StatusForbidden},
		"no subprotocol": {"anna", nil, "", http.StatusBadRequest},
		"another one":    {"anna", []string{"chat", "mqttv3.1"}, "", http.StatusBadRequest},
		"another origin": {"anna", []string{"mqtt"}, "https://evil.example", http.StatusForbidden},
	} {
		ws, resp, err := w.dialWeb(url, tc.device, tc.protocols, tc.origin)
		if err == nil {
			ws.CloseNow()
			t.Errorf("%s: let in", name)
		} else if resp == nil || resp.StatusCode != tc.status {
			t.Errorf("%s: %v", name, err)
		}
	}
	resp, err := http.Get(strings.Replace(url, "ws:", "http:", 1))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("plain GET of nobody: %s", resp.Status)
	}
	ws, _, err := w.dialWeb(url, "anna", []string{"chat", "mqtt"}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if ws.Subprotocol() != "mqtt" {
		t.Errorf("subprotocol %q", ws.Subprotocol())
	}
	// MQTT lives in binary frames only.
	if err := ws.Write(t.Context(), websocket.MessageText, []byte{0xC0, 0}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, _, err := ws.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("a text frame was taken: %v", err)
	}
}

// The server that holds the request ends it: its connection ends too.
func TestWebSocketEndsWithItsRequest(t *testing.T) {
	w := newWorld(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	handler := w.hub.WebSocket(func(*http.Request) (Identity, bool) { return Identity{Name: "anna"}, true })
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { handler.ServeHTTP(rw, r.WithContext(ctx)) }))
	t.Cleanup(s.Close)
	c := w.webClient(strings.Replace(s.URL, "http:", "ws:", 1), "anna", 5)
	if ack := c.hello("anna"); ack.ReasonCode != 0 {
		t.Fatalf("CONNACK %#x", ack.ReasonCode)
	}
	cancel()
	<-c.closed
}
