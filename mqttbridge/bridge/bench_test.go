package bridge

import (
	"testing"

	"github.com/sallyport/sallyport/mqttbridge"
)

// BenchmarkOut: QoS 1 messages of 128 bytes from a device through Mosquitto,
// the bridge and its queue on disk to the hub, until the last one is there.
func BenchmarkOut(b *testing.B) {
	m, h := startMosquitto(b, "allow", "max_queued_messages 0", "max_inflight_messages 200"), newHub(b)
	r := start(b, Config{Broker: Broker{URL: m.url()}, Rules: rules(b, "t/#"), DialRelay: h.dial})
	r.up(b)
	d := m.join("sensor")
	payload := make([]byte, 128)
	sent := 0
	for b.Loop() {
		for range 1000 {
			d.c.Publish("t/x", 1, false, payload)
		}
		sent += 1000
		eventually(b, "all came", func() bool { return h.count() == sent })
	}
	b.ReportMetric(float64(sent)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkIn: QoS 1 messages of 128 bytes from the hub's mailbox through the
// bridge to Mosquitto, until the last one is acknowledged.
func BenchmarkIn(b *testing.B) {
	m, h := startMosquitto(b, "allow"), newHub(b)
	start(b, Config{Broker: Broker{URL: m.url()}, Rules: rules(b, "t/# in"), DialRelay: h.dial}).up(b)
	payload := make([]byte, 128)
	sent := 0
	for b.Loop() {
		for range 1000 {
			h.give(mqttbridge.LinkMessage{Topic: "t/x", Payload: payload, QoS: 1})
		}
		sent += 1000
		eventually(b, "all acknowledged", func() bool { return h.left() == 0 })
	}
	b.ReportMetric(float64(sent)/b.Elapsed().Seconds(), "msg/s")
}
