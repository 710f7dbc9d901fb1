package bridge

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/sallyport/sallyport/mqttbridge"
)

// bytesConn is a connection that says these bytes.
type bytesConn struct {
	net.Conn
	io.Reader
	wrote bytes.Buffer
}

func (c *bytesConn) Read(p []byte) (int, error)       { return c.Reader.Read(p) }
func (c *bytesConn) Write(p []byte) (int, error)      { return c.wrote.Write(p) }
func (c *bytesConn) SetWriteDeadline(time.Time) error { return nil }
func (c *bytesConn) Close() error                     { return nil }

func guardOn(r io.Reader) *guard {
	c := &bytesConn{Reader: r}
	return newGuard(c, c)
}

func wire(p packets.ControlPacket) []byte {
	var b bytes.Buffer
	p.Write(&b)
	return b.Bytes()
}

func publishWire(topic string, payload []byte, qos byte) []byte {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload, p.Qos, p.MessageID = topic, payload, qos, 7
	return wire(p)
}

// TestGuardCuts: a payload that is too long is cut, whatever its length, and
// costs no memory; what follows is whole.
func TestGuardCuts(t *testing.T) {
	const huge = 200 << 20
	head := []byte{0x32, 0x80 | (huge & 0x7f), 0x80 | (huge >> 7 & 0x7f), 0x80 | (huge >> 14 & 0x7f), huge >> 21, 0, 1, 't', 0, 7}
	r := io.MultiReader(bytes.NewReader(head), io.LimitReader(zeros{}, huge-5), bytes.NewReader(publishWire("next", []byte("x"), 1)))
	g := guardOn(r)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	p, err := packets.ReadPacket(g)
	if err != nil {
		t.Fatal(err)
	}
	big := p.(*packets.PublishPacket)
	if big.TopicName != "t" || big.MessageID != 7 || len(big.Payload) != mqttbridge.MaxPayload+1 {
		t.Errorf("%s, id %d, %d bytes", big.TopicName, big.MessageID, len(big.Payload))
	}
	p, err = packets.ReadPacket(g)
	if err != nil {
		t.Fatal(err)
	}
	if next := p.(*packets.PublishPacket); next.TopicName != "next" || string(next.Payload) != "x" {
		t.Errorf("next: %v", next)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
		t.Errorf("took %d bytes of memory", took)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestGuardRefuses: what would make paho panic or take a refusal for a success
// ends the connection.
func TestGuardRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []byte
	}{
		{"SUBACK with codes that nobody asked for", []byte{0x90, 4, 0, 1, 0, 0}},
		{"SUBACK without codes", []byte{0x90, 2, 0, 1}},
		{"CONNACK too short", []byte{0x20, 1, 0}},
		{"PUBACK too long", []byte{0x40, 3, 0, 1, 0}},
		{"a packet of MQTT 5", []byte{0xe0, 0}},
		{"PINGREQ", []byte{0xc0, 0}},
		{"QoS 2", []byte{0x34, 7, 0, 1, 't', 0, 1, 'x', 'x'}},
		{"QoS 3", []byte{0x36, 7, 0, 1, 't', 0, 1, 'x', 'x'}},
		{"topic longer than the packet", []byte{0x30, 4, 0, 9, 't', 't'}},
		{"no room for the id", []byte{0x32, 3, 0, 1, 't'}},
		{"length without end", []byte{0x30, 0xff, 0xff, 0xff, 0xff, 1}},
		{"HTTP", []byte("HTTP/1.1 400 Bad Request\r\n")},
		{"cut off", []byte{0x30}},
	} {
		if p, err := packets.ReadPacket(guardOn(bytes.NewReader(tt.in))); err == nil {
			t.Errorf("%s: %v", tt.name, p)
		}
	}
	for _, code := range []byte{1, 5, 6, 0x84, 0x87, 255} {
		_, err := packets.ReadPacket(guardOn(bytes.NewReader([]byte{0x20, 2, 0, code})))
		if r, ok := errors.AsType[*refusal](err); !ok || r.code != code {
			t.Errorf("CONNACK %d: %v", code, err)
		}
	}
}

// TestGuardCounts: what may have been published is known for certain.
func TestGuardCounts(t *testing.T) {
	g := guardOn(bytes.NewReader(nil))
	g.Write([]byte{0xc0, 0})
	if g.begun() != 0 {
		t.Error("a ping is counted as a message")
	}
	g.Write(publishWire("t", nil, 1))
	if g.begun() != 1 {
		t.Error("a message is not counted")
	}
	g.kill()
	if _, err := g.Write(publishWire("t", nil, 1)); err == nil || g.begun() != 1 {
		t.Errorf("writes after kill: %v, %d", err, g.begun())
	}
}

// FuzzGuard: whatever a broker sends, paho's reader behind the guard neither
// panics nor gets more than it can take.
func FuzzGuard(f *testing.F) {
	ack := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
	ack.ReturnCodes = []byte{1}
	f.Add(slicesOf(wire(packets.NewControlPacket(packets.Connack)), wire(ack), publishWire("a/b", []byte("x"), 1), publishWire("c", nil, 0)))
	f.Add([]byte{0x90, 4, 0, 1, 0, 0})
	f.Add([]byte{0x32, 0xff, 0xff, 0x7f, 0, 1, 't', 0, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		g := guardOn(bytes.NewReader(data))
		for {
			p, err := packets.ReadPacket(g)
			if err != nil {
				return
			}
			switch p := p.(type) {
			case *packets.PublishPacket:
				if len(p.Payload) > mqttbridge.MaxPayload+1 || p.Qos > 1 {
					t.Fatalf("%d bytes at QoS %d", len(p.Payload), p.Qos)
				}
			case *packets.SubackPacket:
				if len(p.ReturnCodes) != 1 {
					t.Fatalf("codes: %v", p.ReturnCodes)
				}
			case *packets.ConnackPacket:
				if p.ReturnCode != 0 {
					t.Fatalf("code: %d", p.ReturnCode)
				}
			}
		}
	})
}

func slicesOf(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
