//go:build linux

package load

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Packets of MQTT 3.1.1 that the load needs, the kind in the upper half.
const (
	mqttConnect   = 0x10
	mqttConnack   = 0x20
	mqttPublish   = 0x30
	mqttPuback    = 0x40
	mqttSubscribe = 0x82
	mqttSuback    = 0x90

	maxMQTTPacket = 256 << 10
)

// mqttClient is a device. It has no goroutine of its own: an idle one costs the
// load a connection and little else. One goroutine reads; any may write.
type mqttClient struct {
	c  net.Conn
	r  *bufio.Reader
	mu sync.Mutex // guards what follows, and writing
	id uint16     // of the last packet
	w  []byte
}

// mqttOver says CONNECT over a connection, which it owns from now on. kept asks
// for a session that outlives the connection.
func mqttOver(c net.Conn, clientID string, kept bool) (*mqttClient, error) {
	m := &mqttClient{c: c, r: bufio.NewReaderSize(c, 512)}
	flags := byte(2)
	if kept {
		flags = 0
	}
	body := append(mqttText(nil, "MQTT"), 4, flags, 0, 0) // no keep-alive
	c.SetDeadline(time.Now().Add(opLimit))
	err := m.write(mqttConnect, mqttText(body, clientID))
	if err == nil {
		err = m.expect(mqttConnack, func(b []byte) bool { return len(b) == 2 && b[1] == 0 })
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("MQTT client %s: %w", clientID, err)
	}
	c.SetDeadline(time.Time{})
	return m, nil
}

func (m *mqttClient) close() { m.c.Close() }

// subscribe is called before receive.
func (m *mqttClient) subscribe(filter string, qos byte) error {
	m.c.SetDeadline(time.Now().Add(opLimit))
	defer m.c.SetDeadline(time.Time{})
	if err := m.write(mqttSubscribe, append(mqttText([]byte{0, 1}, filter), qos)); err != nil {
		return err
	}
	if err := m.expect(mqttSuback, func(b []byte) bool { return len(b) == 3 && b[2] == qos }); err != nil {
		return fmt.Errorf("subscribe to %s: %w", filter, err)
	}
	return nil
}

// publish does not wait for PUBACK, which receive takes.
func (m *mqttClient) publish(topic string, payload []byte, qos byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.id = max(1, m.id+1)
	m.w = mqttHead(m.w[:0], mqttPublish|qos<<1, 2+len(topic)+int(qos)*2+len(payload))
	m.w = mqttText(m.w, topic)
	if qos > 0 {
		m.w = binary.BigEndian.AppendUint16(m.w, m.id)
	}
	m.w = append(m.w, payload...)
	_, err := m.c.Write(m.w)
	return err
}

// receive calls f with every message until the connection ends, and
// acknowledges those of QoS 1. What f gets is good until it returns.
func (m *mqttClient) receive(f func(topic string, payload []byte)) error {
	var buf, acks []byte
	for {
		if len(acks) > 0 && m.r.Buffered() == 0 { // acknowledged in one go, as they came
			m.mu.Lock()
			_, err := m.c.Write(acks)
			m.mu.Unlock()
			if err != nil {
				return err
			}
			acks = acks[:0]
		}
		head, body, err := m.read(buf)
		if err != nil {
			return err
		}
		buf = body[:0]
		if head&0xF0 != mqttPublish {
			continue
		}
		n := 2 + int(binary.BigEndian.Uint16(body))
		topic, rest := string(body[2:n]), body[n:]
		if head&6 != 0 {
			acks = append(acks, mqttPuback, 2, rest[0], rest[1])
			rest = rest[2:]
		}
		f(topic, rest)
	}
}

// expect reads one packet and wants it so.
func (m *mqttClient) expect(kind byte, good func([]byte) bool) error {
	for {
		head, body, err := m.read(nil)
		switch {
		case err != nil:
			return err
		case head&0xF0 == mqttPublish: // of a session, or retained
			continue
		case head != kind || !good(body):
			return fmt.Errorf("the broker answered %#x %x", head, body)
		}
		return nil
	}
}

func (m *mqttClient) write(head byte, body []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err := m.c.Write(append(mqttHead(nil, head, len(body)), body...))
	return err
}

// read uses buf when it is large enough.
func (m *mqttClient) read(buf []byte) (head byte, body []byte, err error) {
	if head, err = m.r.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(m.r) // MQTT's lengths are written like these
	if err != nil {
		return 0, nil, err
	}
	if n > maxMQTTPacket {
		return 0, nil, errors.New("the packet is too large")
	}
	if uint64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	body = buf[:n]
	_, err = io.ReadFull(m.r, body)
	return head, body, err
}

func mqttHead(b []byte, head byte, n int) []byte {
	return binary.AppendUvarint(append(b, head), uint64(n))
}

func mqttText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}
