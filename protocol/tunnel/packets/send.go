package packets

import (
	"encoding/binary"
	"sync"
	"time"
)

// maxBatch is about how many bytes go to the stream at once: what waits anyway
// costs one record then.
const maxBatch = 16 << 10

var batches = sync.Pool{New: func() any { return new([]byte) }}

// sendLoop sends what waits, and lives while there is something.
func (c *Conn) sendLoop() {
	batch := batches.Get().(*[]byte)
	defer batches.Put(batch)
	for {
		p, ok := c.outgoing()
		if !ok {
			return
		}
		if c.datas != nil {
			sent, err := c.datas.SendDatagram(p.data)
			if sent || err != nil {
				c.handed(p, err)
				continue
			}
		}
		*batch = appendFrame((*batch)[:0], p.data)
		c.handed(p, nil)
		for len(*batch) < maxBatch {
			p, ok := c.follower()
			if !ok {
				break
			}
			*batch = appendFrame(*batch, p.data)
			c.handed(p, nil)
		}
		if _, err := c.st.Write(*batch); err != nil {
			c.endOut(err)
		}
		c.flush()
	}
}

// outgoing takes the next packet that is not too old. False: nothing waits, and
// the next WritePacket starts the loop anew.
func (c *Conn) outgoing() (packet, bool) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.out.count > 0 {
		p := c.out.pop()
		if now.Sub(p.at) <= maxAge {
			return p, true
		}
		p.free()
		c.dropped.Add(1)
	}
	c.sending = false
	return packet{}, false
}

// follower takes the next packet if it has to go over the stream as the one
// before.
func (c *Conn) follower() (packet, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.datas != nil || c.out.count == 0 {
		return packet{}, false
	}
	return c.out.pop(), true
}

// handed counts a packet that the transport has, or has refused for ever.
func (c *Conn) handed(p packet, err error) {
	p.free()
	if err != nil {
		c.dropped.Add(1)
		c.endOut(err)
		return
	}
	c.sent.Add(1)
}

func appendFrame(b, p []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
	return append(b, p...)
}
