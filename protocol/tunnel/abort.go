package tunnel

import (
	"net"

	"github.com/sallyport/sallyport/protocol"
)

// Abort ends a connection at once and so that the peer cannot take it for a
// clean end: a Stream is reset with code, a TCP connection sends RST and drops
// what it has not sent yet. A wrapper that has NetConn (crypto/tls does) is
// aborted below its own protocol, without close_notify, and then closed.
//
// A unix socket knows no abort: its peer reads io.EOF, and only the protocol
// inside (a Content-Length, a chunk) tells it that something is missing.
func Abort(c net.Conn, code protocol.Code) {
	switch c := c.(type) {
	case interface{ Reset(code protocol.Code) }: // a Stream
		c.Reset(code)
	case interface{ NetConn() net.Conn }:
		Abort(c.NetConn(), code)
		c.(net.Conn).Close()
	case interface{ SetLinger(sec int) error }: // *net.TCPConn
		c.SetLinger(0)
		c.(net.Conn).Close()
	default:
		c.Close()
	}
}
