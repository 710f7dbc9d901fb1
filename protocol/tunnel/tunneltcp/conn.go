package tunneltcp

import (
	"crypto/tls"
	"net"
	"sync"
)

const (
	yamuxHeader = 12
	smallBody   = 2 << 10
)

// A conn is what yamux reads and writes. It remembers the first error, which
// yamux keeps to itself, and sends a frame's header and body, which yamux
// writes one after the other, with one system call.
type conn struct {
	*tls.Conn
	cork    *cork  // below the TLS
	closing func() // called first when yamux closes
	held    []byte // a header that waits for its body; only yamux's send loop writes

	mu  sync.Mutex // guards err
	err error
}

// Write implements net.Conn for yamux.
func (c *conn) Write(p []byte) (int, error) {
	if len(c.held) == 0 {
		if len(p) == yamuxHeader && p[1] == 0 && p[8]|p[9]|p[10]|p[11] != 0 { // DATA of some length
			c.held = append(c.held, p...)
			return len(p), nil
		}
		return c.write(p)
	}
	held := c.held
	c.held = held[:0]
	if len(p) <= smallBody {
		if _, err := c.write(append(held, p...)); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	c.cork.put()
	_, err := c.write(held)
	if err == nil {
		_, err = c.write(p)
	}
	if e := c.cork.pull(); err == nil && e != nil {
		c.fail(e)
		err = e
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *conn) write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		c.fail(err)
	}
	return n, err
}

// Read implements net.Conn for yamux.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.fail(err)
	}
	return n, err
}

// Close does not wait for a stuck peer: closing TLS politely would.
func (c *conn) Close() error {
	c.closing()
	c.fail(net.ErrClosed)
	return c.NetConn().Close()
}

func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

func (c *conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// A cork collects the TLS records of one yamux frame: crypto/tls makes a
// system call for every 16 KiB.
type cork struct {
	net.Conn

	mu  sync.Mutex // guards buf, and the order of writes; TLS answers key updates from its Read
	buf *[]byte    // nil: not corked
}

var corks = sync.Pool{New: func() any { return new([]byte) }}

func (c *cork) put() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = corks.Get().(*[]byte)
}

func (c *cork) pull() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.Conn.Write(*c.buf)
	*c.buf = (*c.buf)[:0]
	corks.Put(c.buf)
	c.buf = nil
	return err
}

// Write implements net.Conn for crypto/tls.
func (c *cork) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.buf != nil {
		*c.buf = append(*c.buf, p...)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// NetConn returns the connection below.
func (c *cork) NetConn() net.Conn { return c.Conn }
