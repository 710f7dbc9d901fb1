package service

import (
	"errors"
	"io"
	"net"
	"sync"

	"github.com/sallyport/sallyport/protocol/tunnel/packets"
)

// A packet may have 65,507 bytes and hardly ever has more than 1,500. A flow that
// waits holds a small buffer or none: thousands of them wait.
const (
	smallPacket = 2 << 10
	bigPacket   = 64 << 10
)

var bigPackets = sync.Pool{New: func() any { return new([bigPacket]byte) }}

// readPacket reads the next packet of a flow into small, or into a big buffer
// that the caller gives back to bigPackets.
func readPacket(c *packets.Conn, small []byte) (p []byte, big *[bigPacket]byte, err error) {
	n, err := c.ReadPacket(small)
	if !errors.Is(err, io.ErrShortBuffer) {
		return small[:n], nil, err
	}
	big = bigPackets.Get().(*[bigPacket]byte)
	n, err = c.ReadPacket(big[:])
	if err != nil {
		bigPackets.Put(big)
		return nil, nil, err
	}
	return big[:n], big, nil
}

// A packetReader reads the packets of a connected UDP socket.
type packetReader interface {
	// next returns the next packet, valid until done.
	next() ([]byte, error)
	done()
}

// ownBuffer is a packetReader for any connection: it holds a big buffer while it
// waits.
type ownBuffer struct {
	conn net.Conn
	buf  []byte
}

func (r *ownBuffer) next() ([]byte, error) {
	n, err := r.conn.Read(r.buf)
	return r.buf[:n], err
}

func (r *ownBuffer) done() {}
