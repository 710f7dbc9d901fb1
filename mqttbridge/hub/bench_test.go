package hub

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// BenchmarkToHome: devices publish at QoS 1, a home takes it from its mailbox.
// Every message is on disk (fsync) before its PUBACK.
func BenchmarkToHome(b *testing.B) {
	for _, devices := range []int{1, 50} {
		b.Run(fmt.Sprintf("devices=%d", devices), func(b *testing.B) {
			h, home := benchHub(b)
			var conns []*benchClient
			for i := range devices {
				conns = append(conns, benchDevice(b, h, fmt.Sprint("device", i)))
			}
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			b.ResetTimer()
			for _, c := range conns {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						c.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: 1, TopicName: "home/kitchen/set/x", Payload: make([]byte, 128)})
						if pk := c.read(); pk.FixedHeader.Type != packets.Puback || pk.ReasonCode != 0 {
							b.Errorf("%+v", pk)
							return
						}
					}
				})
			}
			for got := 0; got < b.N; {
				if p, err := mqttbridge.ReadLink(home.r); err != nil {
					b.Fatal(err)
				} else if p.Kind == mqttbridge.LinkPublish {
					got++
					if got%16 == 0 || got == b.N {
						home.write(mqttbridge.LinkPacket{Kind: mqttbridge.LinkAck, Seq: p.Message.Seq})
					}
				}
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}

// BenchmarkFromHome: a home publishes, one device reads with a clean session.
func BenchmarkFromHome(b *testing.B) {
	for qos := range byte(2) {
		b.Run(fmt.Sprintf("qos=%d", qos), func(b *testing.B) {
			h, home := benchHub(b)
			c := benchDevice(b, h, "device")
			c.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 1, Filters: packets.Subscriptions{filter("home/kitchen/x", qos)}})
			c.read()
			b.ResetTimer()
			go func() {
				for range linkDiscard(home) {
				}
			}()
			credits := make(chan struct{}, 256) // QoS 0 is dropped beyond some hundred
			go func() {
				for seq := uint64(1); seq <= uint64(b.N); seq++ {
					credits <- struct{}{}
					m := mqttbridge.LinkMessage{Seq: seq * uint64(qos), Topic: "x", Payload: make([]byte, 128), QoS: qos}
					mqttbridge.WriteLink(home.w, mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: m})
					if seq%32 == 0 || seq == uint64(b.N) {
						home.w.Flush()
					}
				}
			}()
			for range b.N {
				pk := c.read()
				if qos == 1 {
					c.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pk.PacketID})
				}
				<-credits
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}

func linkDiscard(home *benchAgent) func(func(int) bool) {
	return func(yield func(int) bool) {
		for {
			if _, err := mqttbridge.ReadLink(home.r); err != nil || !yield(0) {
				return
			}
		}
	}
}

type benchClient struct {
	b    *testing.B
	conn net.Conn
	r    *bufio.Reader
}

type benchAgent struct {
	r *bufio.Reader
	w *bufio.Writer
}

func (a *benchAgent) write(p mqttbridge.LinkPacket) {
	mqttbridge.WriteLink(a.w, p)
	a.w.Flush()
}

func loopback(b *testing.B) (near, far net.Conn) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		b.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { near.Close() })
	return near, far
}

func benchHub(b *testing.B) (*Hub, *benchAgent) {
	b.Helper()
	store, err := queue.Open(filepath.Join(b.TempDir(), "mqtt.db"), queue.Options{})
	if err != nil {
		b.Fatal(err)
	}
	h, err := New(Config{Queue: store, Limits: Limits{Rate: 1e9, Burst: 1e9}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.Run(ctx)
	}()
	b.Cleanup(func() {
		cancel()
		<-done
		store.Close()
	})
	near, far := loopback(b)
	go h.ServeAgent(ctx, far, Agent{ID: "id", Name: "kitchen"})
	a := &benchAgent{r: bufio.NewReader(near), w: bufio.NewWriterSize(near, 32<<10)}
	a.write(mqttbridge.LinkPacket{Kind: mqttbridge.LinkHelloKind, Hello: &mqttbridge.LinkHello{
		Version: mqttbridge.LinkVersion, Stream: "s", Out: []string{"#"}, In: []mqttbridge.LinkFilter{{Filter: "set/#", QoS: 1}},
	}})
	if p, err := mqttbridge.ReadLink(a.r); err != nil || p.Welcome == nil {
		b.Fatal(err)
	}
	return h, a
}

func benchDevice(b *testing.B, h *Hub, name string) *benchClient {
	b.Helper()
	near, far := loopback(b)
	go h.ServeConn(context.Background(), far, Identity{Name: name})
	c := &benchClient{b: b, conn: near, r: bufio.NewReader(near)}
	c.write(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 4,
		Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, Keepalive: 600, ClientIdentifier: name},
	})
	if ack := c.read(); ack.ReasonCode != 0 {
		b.Fatalf("%#x", ack.ReasonCode)
	}
	return c
}

func (c *benchClient) write(pk packets.Packet) {
	pk.ProtocolVersion = 4
	if _, err := c.conn.Write(mustEncode(pk)); err != nil {
		c.b.Error(err)
	}
}

func (c *benchClient) read() packets.Packet {
	pk, err := readPacket(c.r, 4)
	if err != nil {
		c.b.Error(err)
	}
	return pk
}
