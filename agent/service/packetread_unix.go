//go:build unix

package service

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// newPacketReader reads sockets of the kernel without a buffer of their own.
func newPacketReader(c net.Conn) packetReader {
	if s, ok := c.(*net.UDPConn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			r := &pooledBuffer{raw: raw}
			r.try = r.read
			return r
		}
	}
	return &ownBuffer{conn: c, buf: make([]byte, bigPacket)}
}

// pooledBuffer takes a buffer only when there is a packet to put into it.
type pooledBuffer struct {
	raw syscall.RawConn
	try func(fd uintptr) bool // read, made once
	buf *[bigPacket]byte
	n   int
	err error
}

func (r *pooledBuffer) next() ([]byte, error) {
	if err := r.raw.Read(r.try); err != nil {
		return nil, err
	}
	if r.err != nil {
		return nil, r.err
	}
	return r.buf[:r.n], nil
}

// read is called when something may be there; false waits for the next time.
func (r *pooledBuffer) read(fd uintptr) bool {
	r.buf = bigPackets.Get().(*[bigPacket]byte)
	for {
		r.n, r.err = unix.Read(int(fd), r.buf[:])
		if r.err != unix.EINTR {
			break
		}
	}
	if r.err == nil {
		return true
	}
	r.done()
	return r.err != unix.EAGAIN
}

func (r *pooledBuffer) done() {
	if r.buf != nil {
		bigPackets.Put(r.buf)
		r.buf = nil
	}
}
