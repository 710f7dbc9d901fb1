//go:build !unix

package service

import "net"

func newPacketReader(c net.Conn) packetReader {
	return &ownBuffer{conn: c, buf: make([]byte, bigPacket)}
}
