package bridge

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// Packet types of MQTT 3.1.1 §2.2.1 that a broker may send.
const (
	packetConnack  = 2
	packetPublish  = 3
	packetPuback   = 4
	packetSuback   = 9
	packetUnsuback = 11
	packetPingresp = 13
)

// writeLimit bounds one write to the broker: one that reads nothing for so
// long is gone, and paho's writer hangs until somebody says so.
const writeLimit = 20 * time.Second

// A refusal is a CONNACK with a code that is not zero.
type refusal struct{ code byte }

func (e *refusal) Error() string {
	return fmt.Sprintf("the broker refused the connection with code %d", e.code)
}

// A guard stands between paho and the connection and keeps from paho what it
// cannot take (v1.5.1): messages of up to 256 MiB, for which it makes room
// before the first byte came; a SUBACK with more codes than were asked for,
// and a CONNACK code above 5, which it takes for a panic's and for a success's
// reason. It reads through a buffer, which paho does not.
//
// A message whose payload is too long is cut to MaxPayload+1 bytes: long
// enough to be recognised, acknowledged and counted. If it were refused here,
// the broker would send it again for ever.
type guard struct {
	net.Conn
	raw net.Conn // below TLS

	in   *bufio.Reader
	head []byte // made here, read before the rest
	pass int    // bytes of the packet that go through …
	skip int    // … and those after them that do not

	mu        sync.Mutex // guards what follows
	dead      bool
	publishes uint64 // that began to be written
}

func newGuard(c, raw net.Conn) *guard {
	return &guard{Conn: c, raw: raw, in: bufio.NewReaderSize(c, 16<<10)}
}

// Read implements net.Conn; one goroutine at a time.
func (g *guard) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		switch {
		case len(g.head) > 0:
			n := copy(p, g.head)
			g.head = g.head[n:]
			return n, nil
		case g.pass > 0:
			n, err := g.in.Read(p[:min(len(p), g.pass)])
			g.pass -= n
			return n, err
		case g.skip > 0:
			n, err := g.in.Discard(g.skip)
			g.skip -= n
			if err != nil {
				return 0, err
			}
		default:
			if err := g.next(); err != nil {
				return 0, err
			}
		}
	}
}

// next reads the beginning of a packet and decides about it.
func (g *guard) next() error {
	first, err := g.in.ReadByte()
	if err != nil {
		return err
	}
	length, err := g.length()
	if err != nil {
		return err
	}
	want := 0
	switch first >> 4 {
	case packetPublish:
		return g.publish(first, length)
	case packetConnack, packetPuback, packetUnsuback:
		want = 2
	case packetSuback:
		want = 3 // one filter is asked for at a time
	case packetPingresp:
	default:
		return fmt.Errorf("the broker sent a packet of type %d, which MQTT 3.1.1 has not for clients", first>>4)
	}
	if length != want {
		return fmt.Errorf("the broker sent a packet of type %d with %d bytes instead of %d", first>>4, length, want)
	}
	body := make([]byte, want)
	if _, err := io.ReadFull(g.in, body); err != nil {
		return err
	}
	if first>>4 == packetConnack && body[1] != 0 {
		return &refusal{body[1]}
	}
	g.head = append([]byte{first, byte(want)}, body...)
	return nil
}

// length reads the remaining length (MQTT 3.1.1 §2.2.3).
func (g *guard) length() (int, error) {
	n := 0
	for shift := 0; shift < 28; shift += 7 {
		b, err := g.in.ReadByte()
		if err != nil {
			return 0, noEOF(err)
		}
		n |= int(b&0x7f) << shift
		if b < 0x80 {
			return n, nil
		}
	}
	return 0, errors.New("the broker sent a packet with a broken length: it speaks no MQTT")
}

func (g *guard) publish(first byte, length int) error {
	qos := first >> 1 & 3
	if qos > 1 {
		return fmt.Errorf("the broker sent a message at QoS %d, which was not asked for", qos)
	}
	start, err := g.in.Peek(2)
	if err != nil {
		return noEOF(err)
	}
	header := 2 + int(binary.BigEndian.Uint16(start)) + 2*int(qos)
	if header > length {
		return errors.New("the broker sent a message whose topic is longer than the packet")
	}
	keep := min(length, header+mqttbridge.MaxPayload+1)
	g.head = binary.AppendUvarint([]byte{first}, uint64(keep))
	g.pass, g.skip = keep, length-keep
	return nil
}

// noEOF turns an end in the middle of a packet into what it is.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write implements net.Conn. paho writes a packet with one call.
func (g *guard) Write(p []byte) (int, error) {
	g.mu.Lock()
	if g.dead {
		g.mu.Unlock()
		return 0, net.ErrClosed
	}
	if len(p) > 0 && p[0]>>4 == packetPublish {
		g.publishes++
	}
	g.mu.Unlock()
	if err := g.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return 0, err
	}
	return g.Conn.Write(p)
}

// begun counts the messages of which at least one byte may have left. After
// kill it does not change any more.
func (g *guard) begun() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.publishes
}

// Close implements net.Conn: the end with manners, as far as TLS has them.
func (g *guard) Close() error {
	g.mu.Lock()
	g.dead = true
	g.mu.Unlock()
	return g.Conn.Close()
}

// kill ends the connection without waiting for anything. What lies in the send
// buffer of a stalled connection is thrown away where the system can do that:
// it must not reach the broker minutes later.
func (g *guard) kill() {
	g.mu.Lock()
	g.dead = true
	g.mu.Unlock()
	if c, ok := g.raw.(interface{ SetLinger(sec int) error }); ok {
		c.SetLinger(0) // fails when it is closed already
	}
	g.raw.Close()
}
