package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"testing"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/mqttbridge"
)

// TestOtherBroker: Mochi at home, which refuses the bridge bit. Messages go
// both ways all the same, at once, and what is retained at home is retained at
// the hub.
func TestOtherBroker(t *testing.T) {
	t.Parallel()
	server := mochi.New(&mochi.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	if err := server.AddHook(new(everybody), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	dial := func(context.Context, string, string) (net.Conn, error) {
		a, c := net.Pipe()
		go server.EstablishConnection("home", c)
		return a, nil
	}
	publish := func(topic, payload string, retain bool) {
		if err := server.Publish(topic, []byte(payload), retain, 1); err != nil {
			t.Error(err)
		}
	}
	publish("s/before", "1", true)
	h := newHub(t)
	b := start(t, Config{Broker: Broker{URL: "tcp://home"}, Rules: rules(t, "s/#", "set/# in"), DialRelay: h.dial, DialBroker: dial})
	b.up(t)
	if e := b.Status().Broker.LastError; e != "" {
		t.Errorf("it did not come in at once: %s", e)
	}
	b.syncDone(t)
	const n = 300
	for i := range n {
		publish("s/x", fmt.Sprintf("m%d", i), false)
		h.give(mqttbridge.LinkMessage{Topic: "set/x", Payload: numbered("m", i), QoS: 1})
	}
	publish("s/before", "2", true)
	eventually(t, "out", func() bool { return len(h.on("s/x")) == n && slices.Contains(h.on("s/before"), "2") })
	expectSeries(t, "out", h.on("s/x"), "m", n)
	if got := h.kept()["s/before"]; got != "2" {
		t.Errorf("retained at the hub: %q", got)
	}
	eventually(t, "in", func() bool { return h.left() == 0 })
	c, _ := runClient(t, ClientConfig{Broker: Broker{URL: "tcp://home"}, DialBroker: dial})
	eventually(t, "commands", c.Connected)
	if err := c.Publish(t.Context(), "set/x", []byte("on"), 1, false); err != nil {
		t.Error(err)
	}
}

// everybody may do everything.
type everybody struct{ mochi.HookBase }

func (everybody) ID() string { return "everybody" }
func (everybody) Provides(b byte) bool {
	return b == mochi.OnConnectAuthenticate || b == mochi.OnACLCheck
}
func (everybody) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }
func (everybody) OnACLCheck(*mochi.Client, string, bool) bool              { return true }
