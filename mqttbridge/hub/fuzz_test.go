package hub

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// FuzzConn sends anything to the hub, before and after CONNECT. It must end the
// connection or go on, never hang, crash or let anybody else down.
func FuzzConn(f *testing.F) {
	connect := func(version byte, opts ...connectOption) []byte {
		pk := packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: version,
			Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, Keepalive: 60, ClientIdentifier: "anna"},
		}
		for _, o := range opts {
			o(&pk)
		}
		return mustEncode(pk)
	}
	publish := func(version, qos byte) []byte {
		return mustEncode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, ProtocolVersion: version, PacketID: uint16(qos), TopicName: "home/a/x", Payload: []byte("x")})
	}
	subscribe := func(version byte) []byte {
		return mustEncode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, ProtocolVersion: version, PacketID: 1, Filters: packets.Subscriptions{filter("home/a/#", 2)}})
	}
	for _, version := range []byte{4, 5} {
		five := version == 5
		f.Add(five, true, append(subscribe(version), publish(version, 2)...))
		f.Add(five, true, append(publish(version, 1), publish(version, 0)...))
		f.Add(five, false, connect(version, persistent, lastWill("home/a/will", "", 1, true)))
		f.Add(five, true, []byte{0x82, 8, 0, 1, 0, 0, 3, 'a', '/', 'b'})
		f.Add(five, true, []byte{0x50, 2, 0, 1, 0x62, 2, 0, 1, 0x70, 2, 0, 1, 0x40, 2, 0, 1})
		f.Add(five, true, []byte{0x30, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80})
		f.Add(five, true, []byte{0xE0, 1, 4})
		f.Add(five, true, []byte{0xF0, 2, 0x18, 0})
	}
	store, err := queue.Open(filepath.Join(f.TempDir(), "mqtt.db"), queue.Options{NoSync: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { store.Close() })
	h, err := New(Config{Queue: store, Limits: Limits{Rate: 1e9, Burst: 1e9}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, five, greet bool, data []byte) {
		version := byte(4)
		if five {
			version = 5
		}
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.ServeConn(context.Background(), far, Identity{Name: "anna", ID: "key"})
		}()
		go io.Copy(io.Discard, near)
		near.SetWriteDeadline(time.Now().Add(time.Second))
		if greet {
			near.Write(connect(version))
		}
		near.Write(data)
		near.Close()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("the connection does not end")
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.live) != 0 || len(h.devices["anna"].conns) != 0 {
			t.Errorf("%d connections are left", len(h.live))
		}
	})
}
