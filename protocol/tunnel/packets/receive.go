package packets

import (
	"encoding/binary"
	"io"
	"os"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// next waits for a packet, which must fit into room bytes.
func (c *Conn) next(room int) (packet, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.expired:
			return packet{}, os.ErrDeadlineExceeded
		case c.in.count > 0:
			if len(c.in.ring[c.in.first].data) > room {
				return packet{}, io.ErrShortBuffer
			}
			return c.in.pop(), nil
		case c.err != nil:
			return packet{}, c.err
		}
		c.more.Wait()
	}
}

// SetReadDeadline ends ReadPacket with os.ErrDeadlineExceeded from t on, also one
// that waits already. The zero time: never.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed++
	if c.alarm != nil {
		c.alarm.Stop()
		c.alarm = nil
	}
	c.expired = false
	if t.IsZero() {
		return nil
	}
	wait := time.Until(t)
	if wait <= 0 {
		c.expired = true
		c.more.Broadcast()
		return nil
	}
	armed := c.armed
	c.alarm = time.AfterFunc(wait, func() { c.expire(armed) })
	return nil
}

// expire is an alarm.
func (c *Conn) expire(armed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.armed == armed {
		c.expired = true
		c.more.Broadcast()
	}
}

// arrived is told the datagrams of the stream.
func (c *Conn) arrived(p []byte) {
	if len(p) <= MaxPacket {
		c.deliver(packet{data: p})
	}
}

func (c *Conn) deliver(p packet) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		p.free()
		return
	}
	c.dropped.Add(uint64(c.in.push(p)))
	c.mu.Unlock()
	c.more.Signal()
}

// receiveLoop takes packets off the stream until that ends. It never waits for
// ReadPacket, so that a flow which nobody reads loses packets and holds no bytes
// of the session's budget.
func (c *Conn) receiveLoop() {
	for {
		p, err := readFrame(c.st)
		if err == nil {
			c.deliver(p)
			continue
		}
		if err != io.EOF && !isReset(err) {
			// Not a packet: the end came inside one, or it is too large. (An error of
			// the session makes resets, and after our own Close this does nothing.)
			c.st.Reset(protocol.CodeProtocol)
			err = &tunnel.ResetError{Code: protocol.CodeProtocol}
		}
		c.end(err)
		return
	}
}

// readFrame reads one packet; io.EOF at the clean end of the stream, and only there.
func readFrame(r io.Reader) (packet, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return packet{}, err
	}
	size := int(binary.BigEndian.Uint16(head[:]))
	if size > MaxPacket {
		return packet{}, ErrTooLarge
	}
	p := newPacket(size)
	if _, err := io.ReadFull(r, p.data); err != nil {
		p.free()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return packet{}, err
	}
	return p, nil
}
