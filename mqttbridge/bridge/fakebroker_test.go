package bridge

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// A fakeBroker is a home broker over net.Pipe that misbehaves where a test
// says so. It delivers nothing by itself.
type fakeBroker struct {
	t testing.TB

	// refuse is asked at each CONNECT: a code other than 0 is sent, and 255
	// hangs up without a word.
	refuse func(p *packets.ConnectPacket) byte
	// suback is asked for the answer to a subscription; nil = granted.
	suback func(filter string) byte
	// publish is asked for each message: 'a'cknowledge, 'h'ang up, 's'ilence.
	publish func(p *packets.PublishPacket) byte
	// present is said of persistent sessions.
	present bool
	// noDial makes dialling fail.
	noDial func() error

	mu    sync.Mutex // guards what follows
	dials []time.Time
	conns []*brokerConn
	got   []string // topics of messages
}

type brokerConn struct {
	net.Conn
	id     string
	write  sync.Mutex
	mu     sync.Mutex
	subs   []string
	opened *packets.ConnectPacket
}

func (c *brokerConn) send(p packets.ControlPacket) {
	c.write.Lock()
	defer c.write.Unlock()
	p.Write(c)
}

func (c *brokerConn) filters() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.subs)
}

// dial is a Config.DialBroker.
func (f *fakeBroker) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	f.mu.Lock()
	f.dials = append(f.dials, time.Now())
	f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if f.noDial != nil {
		if err := f.noDial(); err != nil {
			return nil, err
		}
	}
	a, b := net.Pipe()
	go f.serve(&brokerConn{Conn: b})
	return a, nil
}

func (f *fakeBroker) serve(c *brokerConn) {
	defer c.Close()
	for {
		p, err := packets.ReadPacket(c)
		if err != nil {
			return
		}
		switch p := p.(type) {
		case *packets.ConnectPacket:
			c.id, c.opened = p.ClientIdentifier, p
			ack := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
			if f.refuse != nil {
				ack.ReturnCode = f.refuse(p)
			}
			ack.SessionPresent = f.present && !p.CleanSession
			if ack.ReturnCode == 255 {
				return
			}
			f.mu.Lock()
			f.conns = append(f.conns, c)
			f.mu.Unlock()
			c.send(ack)
			if ack.ReturnCode != 0 {
				return
			}
		case *packets.SubscribePacket:
			ack := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
			ack.MessageID = p.MessageID
			for i, filter := range p.Topics {
				code := p.Qoss[i]
				if f.suback != nil {
					code = f.suback(filter)
				}
				ack.ReturnCodes = append(ack.ReturnCodes, code)
				c.mu.Lock()
				c.subs = append(c.subs, filter)
				c.mu.Unlock()
			}
			c.send(ack)
		case *packets.UnsubscribePacket:
			ack := packets.NewControlPacket(packets.Unsuback).(*packets.UnsubackPacket)
			ack.MessageID = p.MessageID
			c.mu.Lock()
			c.subs = slices.DeleteFunc(c.subs, func(s string) bool { return slices.Contains(p.Topics, s) })
			c.mu.Unlock()
			c.send(ack)
		case *packets.PublishPacket:
			what := byte('a')
			if f.publish != nil {
				what = f.publish(p)
			}
			f.mu.Lock()
			f.got = append(f.got, p.TopicName)
			f.mu.Unlock()
			switch what {
			case 'h':
				return
			case 'a':
				if p.Qos > 0 {
					ack := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
					ack.MessageID = p.MessageID
					c.send(ack)
				}
			}
		case *packets.PingreqPacket:
			c.send(packets.NewControlPacket(packets.Pingresp))
		case *packets.DisconnectPacket:
			return
		}
	}
}

// deliver sends a message to a live client.
func (c *brokerConn) deliver(topic string, payload []byte, qos byte, id uint16) {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload, p.Qos, p.MessageID = topic, payload, qos, id
	c.send(p)
}

// live returns the newest connection of a client id that was let in.
func (f *fakeBroker) live(id string) *brokerConn {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range slices.Backward(f.conns) {
		if c.id == id {
			return c
		}
	}
	return nil
}

func (f *fakeBroker) topics() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.got)
}

func (f *fakeBroker) dialed() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.dials)
}
