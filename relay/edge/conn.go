package edge

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol"
)

// A Conn is a public connection whose ClientHello was read and put back: its
// Read returns the same bytes from the start. Like any net.Conn it serves one
// reader and one writer at a time. It has all methods of a tunnel.Stream, so
// that whoever aborts it sends a reset.
type Conn struct {
	net.Conn
	Hello Hello

	remote, local net.Addr      // what a load balancer told; nil: those of Conn
	first         messageReader // until the connection is routed
	replay        []byte        // read before, not yet returned by Read; the reader's alone
	retry         *retry        // the hello was an opened one; nil otherwise
	settle        func()        // set by the server before its target sees the connection; nil without one
	in, out       atomic.Int64
	failure       atomic.Pointer[error]
}

// ReadHello reads the ClientHello of conn within timeout (of the whole hello,
// not of each read) and returns the connection with the bytes put back. After
// an error the caller closes conn: there is no going on without a hello.
func ReadHello(conn net.Conn, timeout time.Duration) (*Conn, error) {
	c := &Conn{Conn: conn}
	if err := c.meet(timeout, nil); err != nil {
		return nil, err
	}
	return c, nil
}

// meet reads the hello. What comes before it, if anything does, returns what it
// has read too much: the beginning of the hello.
func (c *Conn) meet(timeout time.Duration, before func() (tooMuch []byte, err error)) error {
	if err := c.Conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return fmt.Errorf("set hello deadline: %w", err)
	}
	if before != nil {
		var err error
		if c.first.raw, err = before(); err != nil {
			return err
		}
	}
	msg, err := c.first.next(c.Conn)
	if err == nil {
		c.Hello, err = parseHello(msg[messageHeader:])
	}
	if err != nil {
		return fmt.Errorf("read ClientHello: %w", err)
	}
	if err := c.Conn.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("clear hello deadline: %w", err)
	}
	c.replay = c.first.raw
	return nil
}

// RemoteAddr is the visitor's address, which a load balancer may have told.
func (c *Conn) RemoteAddr() net.Addr {
	if c.remote != nil {
		return c.remote
	}
	return c.Conn.RemoteAddr()
}

// LocalAddr is the address that the visitor reached.
func (c *Conn) LocalAddr() net.Addr {
	if c.local != nil {
		return c.local
	}
	return c.Conn.LocalAddr()
}

// Read returns the bytes of the hello first.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.replay) > 0 {
		n := copy(p, c.replay)
		if c.replay = c.replay[n:]; len(c.replay) == 0 {
			c.replay = nil // connections live for hours, hellos need not
		}
		c.in.Add(int64(n))
		return n, nil
	}
	if c.retry != nil && !c.retry.passed && len(p) > 0 {
		ready, err := c.retry.next(c.Conn)
		if err != nil {
			c.Fail(c.retry.failed) // the target only sees that reading failed
			return 0, err
		}
		if len(ready) > 0 {
			c.replay = ready
			return c.Read(p)
		}
	}
	n, err := c.Conn.Read(p)
	c.in.Add(int64(n))
	return n, err
}

// Write counts what it sends.
func (c *Conn) Write(p []byte) (int, error) {
	if c.retry != nil {
		c.retry.wrote(p)
	}
	n, err := c.Conn.Write(p)
	c.out.Add(int64(n))
	return n, err
}

// CloseWrite sends FIN: the visitor reads the end, reading goes on.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return fmt.Errorf("half-close of %T: %w", c.Conn, errors.ErrUnsupported)
}

// Reset aborts the connection: the visitor sees RST, never a clean end.
func (c *Conn) Reset(protocol.Code) { abort(c.Conn) }

// NetConn returns the connection below, for socket options. Whoever reads from
// it misses the hello.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Settled says that the target knows whom it talks to: from now on the
// connection is no stranger and does not make room for others. The name in a
// hello proves nothing, so a target calls it after the handshake behind the
// name succeeded. When its address has too many settled connections already,
// this one is aborted. Calling it again changes nothing.
func (c *Conn) Settled() {
	if c.settle != nil {
		c.settle()
	}
}

// Fail notes why the connection ended, for its log line. The first reason
// stays; nil is ignored.
func (c *Conn) Fail(err error) {
	if err != nil {
		c.failure.CompareAndSwap(nil, &err)
	}
}

// Bytes returns how many bytes were read from and written to the visitor.
func (c *Conn) Bytes() (in, out int64) { return c.in.Load(), c.out.Load() }

func (c *Conn) failed() error {
	if err := c.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// abort closes a connection with RST where it has one.
func abort(conn net.Conn) {
	if tcp, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
