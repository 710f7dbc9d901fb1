package tunneltest

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// memBuffer is how much a MemConn takes before Write blocks, like a socket.
const memBuffer = 256 << 10

var memPort atomic.Uint32

// MemConn returns both ends of a connection in memory that behaves like TCP:
// buffered, full duplex, with CloseWrite and deadlines. After SetLinger(0),
// Close is a reset, as is Abort: the peer's calls fail with ECONNRESET. It
// works in synctest bubbles, where the kernel's sockets do not.
func MemConn() (net.Conn, net.Conn) {
	n := uint16(memPort.Add(1))
	x := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1024 + int(n%60000)}
	y := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 443}
	ab, ba := newMemPipe(), newMemPipe()
	return &Conn{in: ba, out: ab, local: x, remote: y}, &Conn{in: ab, out: ba, local: y, remote: x}
}

// A Conn is one end of a MemConn.
type Conn struct {
	in, out       *memPipe
	local, remote net.Addr
	linger        atomic.Bool // SetLinger(0) was called
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.in.read(p)
	return n, c.wrap("read", err)
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.out.write(p)
	return n, c.wrap("write", err)
}

func (c *Conn) wrap(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// CloseWrite ends the write side; the peer reads io.EOF.
func (c *Conn) CloseWrite() error {
	c.out.end(io.EOF, syscall.EPIPE)
	return nil
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	if c.linger.Load() {
		c.Abort()
		return nil
	}
	c.out.end(io.EOF, net.ErrClosed)
	c.in.closeRead(syscall.EPIPE)
	return nil
}

// Abort resets the connection.
func (c *Conn) Abort() {
	c.out.drop(syscall.ECONNRESET, net.ErrClosed)
	c.in.drop(net.ErrClosed, syscall.ECONNRESET)
}

// SetLinger with 0 makes Close a reset, as on a *net.TCPConn.
func (c *Conn) SetLinger(sec int) error {
	c.linger.Store(sec == 0)
	return nil
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetAddrs replaces the addresses, for tests in which they matter.
func (c *Conn) SetAddrs(local, remote netip.AddrPort) {
	c.local, c.remote = net.TCPAddrFromAddrPort(local), net.TCPAddrFromAddrPort(remote)
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.in.reader.set(t)
	c.out.writer.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.reader.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.writer.set(t)
	return nil
}

// A memPipe is one direction.
type memPipe struct {
	mu             sync.Mutex // guards all below
	cond           *sync.Cond
	buf            []byte
	rerr           error // what the reader gets after buf
	werr           error // what the writer gets
	reader, writer memDeadline
}

// A memDeadline wakes its pipe when the time has come.
type memDeadline struct {
	pipe    *memPipe
	timer   *time.Timer
	expired bool
}

func newMemPipe() *memPipe {
	p := &memPipe{}
	p.cond = sync.NewCond(&p.mu)
	p.reader.pipe, p.writer.pipe = p, p
	return p
}

func (p *memPipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.reader.expired:
			return 0, os.ErrDeadlineExceeded
		case len(p.buf) > 0:
			n := copy(b, p.buf)
			p.buf = p.buf[n:]
			if len(p.buf) == 0 {
				p.buf = nil
			}
			p.cond.Broadcast()
			return n, nil
		case p.rerr != nil:
			return 0, p.rerr
		case len(b) == 0:
			return 0, nil
		}
		p.cond.Wait()
	}
}

func (p *memPipe) write(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.werr != nil:
			return n, p.werr
		case p.writer.expired:
			return n, os.ErrDeadlineExceeded
		case n == len(b):
			return n, nil
		case len(p.buf) < memBuffer:
			m := min(len(b)-n, memBuffer-len(p.buf))
			p.buf = append(p.buf, b[n:n+m]...)
			n += m
			p.cond.Broadcast()
			continue
		}
		p.cond.Wait()
	}
}

// end stops the writing; what is buffered stays readable.
func (p *memPipe) end(rerr, werr error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rerr == nil {
		p.rerr = rerr
	}
	if p.werr == nil || werr == net.ErrClosed {
		p.werr = werr
	}
	p.cond.Broadcast()
}

// closeRead stops the reading. Later writes fail, as after TCP's answer to
// data for a closed socket.
func (p *memPipe) closeRead(werr error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.buf, p.rerr = nil, net.ErrClosed
	if p.werr == nil {
		p.werr = werr
	}
	p.cond.Broadcast()
}

// drop aborts the direction.
func (p *memPipe) drop(rerr, werr error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.buf = nil
	if p.rerr != net.ErrClosed {
		p.rerr = rerr
	}
	if p.werr != net.ErrClosed {
		p.werr = werr
	}
	p.cond.Broadcast()
}

func (d *memDeadline) set(t time.Time) {
	d.pipe.mu.Lock()
	defer d.pipe.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.expired = !t.IsZero() && !t.After(time.Now())
	if !t.IsZero() && !d.expired {
		var timer *time.Timer
		timer = time.AfterFunc(time.Until(t), func() {
			d.pipe.mu.Lock()
			defer d.pipe.mu.Unlock()
			if d.timer == timer { // not replaced meanwhile
				d.expired = true
				d.pipe.cond.Broadcast()
			}
		})
		d.timer = timer
	}
	d.pipe.cond.Broadcast()
}
