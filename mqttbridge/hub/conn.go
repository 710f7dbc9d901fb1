package hub

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

const (
	connectTimeout = 10 * time.Second       // accepted → the whole CONNECT
	lingerTime     = 300 * time.Millisecond // for the last packets, and for the client to read them
	lingerBytes    = 256 << 10              // of what the client still sends meanwhile

	writeChunk = 16 << 10 // one write with one deadline
	// The pump waits while this much is unwritten; what is not waited for
	// (acks and pings that a client provokes and does not read) ends the
	// connection at maxUnwritten.
	highWater    = 64 << 10
	maxUnwritten = 1 << 20
)

// An ending is why a connection ends. The first one counts.
type ending struct {
	code   byte   // MQTT 5 reason; 0: nothing is said
	reason string // for the log
	noWill bool   // the last will is not published
}

// Endings that have more than one place.
var (
	endTakenOver = ending{code: 0x8E, reason: "the client connected again"}
	endRevoked   = ending{code: 0x98, reason: "the device was revoked", noWill: true}
	endRights    = ending{code: 0x87, reason: "a subscription is not allowed any more"}
	endStopping  = ending{code: 0x8B, reason: "the relay stops", noWill: true}
	endCancelled = ending{code: 0x98, reason: "the relay ended the connection", noWill: true}
	endOverflow  = ending{code: 0x97, reason: "too many messages wait for the client"}
)

// A conn is one client's connection. The engine reads from it and writes to it
// as to a net.Conn, but its writes never block: the engine writes with a lock
// held that every publisher needs, so that one reader that stopped would stop
// them all. What is written goes out on a goroutine that lives while there is
// something to write.
type conn struct {
	raw net.Conn
	hub *Hub
	id  Identity
	era uint64 // when it came

	client, why string // as CONNECT has it; why that was refused

	cl *mqtt.Client // set by the first packet; the engine's goroutine sets it before anybody else knows the conn

	// Set while the client connects, before anything is delivered to it.
	key      string // of its session
	version  byte   // 3, 4, 5
	bridge   bool   // it set the bit of Mosquitto's bridge: no echo, retain as published
	window   int    // of unacknowledged deliveries
	session  *session
	present  bool
	will     *will
	admitted bool // counted among the device's connections; Hub.mu guards it

	// The pump's own.
	aliases    map[string]uint16 // topic aliases that the client was told
	maxAliases int

	// The engine's goroutine's own.
	farewell bool   // a DISCONNECT that takes the will along
	subCodes []byte // of the SUBSCRIBE or UNSUBSCRIBE that is being answered

	mu          sync.Mutex // guards everything below to the empty line
	out, spare  []byte     // not written yet; the last buffer, for the next time
	flushing    bool
	established bool // CONNACK was written
	closing     bool // nothing is taken any more, neither in nor out
	failed      bool // writing is no use
	end         ending

	gone     chan struct{} // closed with closing
	drained  chan struct{} // closed when closing and everything is written, or cannot be
	room     chan struct{} // one token: less than highWater is unwritten
	released chan struct{} // closed when the session is free for the next connection

	publishing sync.Mutex     // held while a publication is carried out; Forget waits for it
	pumps      sync.WaitGroup // of session pumps on this connection
	unwritten  atomic.Int64   // len(out)
}

func newConn(h *Hub, raw net.Conn, id Identity) *conn {
	return &conn{
		raw: raw, hub: h, id: id, era: h.era.Load(),
		gone:     make(chan struct{}),
		drained:  make(chan struct{}),
		room:     make(chan struct{}, 1),
		released: make(chan struct{}),
	}
}

// logger is made when there is something to say: thousands of connections have
// nothing to say for hours.
func (c *conn) logger() *slog.Logger {
	l := c.hub.log.With("device", c.id.Name, "remote", c.id.Remote.String())
	if c.session != nil {
		l = l.With("client", c.session.client)
	}
	return l
}

// Read is the engine's.
func (c *conn) Read(p []byte) (int, error) {
	if c.ending() {
		return 0, io.EOF
	}
	n, err := c.raw.Read(p)
	if c.ending() {
		return 0, io.EOF
	}
	return n, err
}

// Write takes one whole packet.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return 0, net.ErrClosed
	}
	if len(p) > 0 && p[0]>>4 == 14 { // DISCONNECT: the engine's last word
		if c.version < 5 {
			p = nil // 3.1.1 knows it in the other direction only
		}
		c.close(ending{reason: "protocol error"}, p)
		return len(p), nil
	}
	if len(p) > 3 && p[0]>>4 == 2 && p[3] == 0 { // CONNACK, success
		c.established = true
	}
	if len(c.out)+len(p) > maxUnwritten {
		c.failed = true
		c.close(ending{reason: "the client does not read"}, nil)
		return 0, net.ErrClosed
	}
	c.append(p)
	return len(p), nil
}

// append puts a packet behind the others and sees that it goes out; the lock is
// held.
func (c *conn) append(p []byte) {
	if c.out == nil {
		c.out, c.spare = c.spare, nil
	}
	c.out = append(c.out, p...)
	c.unwritten.Store(int64(len(c.out)))
	if !c.flushing {
		c.flushing = true
		go c.flush()
	}
}

// flush writes until nothing is left. Only one runs at a time.
func (c *conn) flush() {
	for {
		c.mu.Lock()
		b := c.out
		if len(b) == 0 || c.failed {
			c.out, c.flushing = nil, false
			c.unwritten.Store(0)
			if c.closing {
				c.interrupt()
				close(c.drained)
			}
			c.mu.Unlock()
			signal(c.room)
			return
		}
		c.out = nil
		c.mu.Unlock()
		if err := c.push(b); err != nil {
			reason := "the connection broke"
			if errors.Is(err, os.ErrDeadlineExceeded) {
				reason = "the client does not read"
				c.hub.stats.stalled.Add(1)
			}
			c.mu.Lock()
			c.failed = true
			c.close(ending{reason: reason}, nil)
			c.mu.Unlock()
			continue
		}
		c.mu.Lock()
		if cap(b) <= 4<<10 { // a larger one would stay with a connection that idles
			c.spare = b[:0]
		}
		left := len(c.out)
		c.unwritten.Store(int64(left))
		c.mu.Unlock()
		if left < highWater {
			signal(c.room)
		}
	}
}

// push writes b in pieces: the deadline is for progress, not for the whole.
func (c *conn) push(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), writeChunk)
		c.mu.Lock()
		limit := c.hub.cfg.Limits.WriteTimeout
		if c.closing {
			limit = lingerTime
		}
		err := c.raw.SetWriteDeadline(time.Now().Add(limit))
		c.mu.Unlock()
		if err != nil {
			return err
		}
		if _, err := c.raw.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// shut ends the connection, telling an MQTT 5 client why.
func (c *conn) shut(e ending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var last []byte
	if c.established && c.version == 5 && e.code != 0 {
		last = []byte{0xE0, 2, e.code, 0}
	}
	c.close(e, last)
}

// close is shut with the lock held; last is written behind everything else.
func (c *conn) close(e ending, last []byte) {
	if c.closing {
		return
	}
	if len(last) > 0 && !c.failed {
		c.append(last)
	}
	c.closing, c.end = true, e
	close(c.gone)
	_ = c.raw.SetWriteDeadline(time.Now().Add(lingerTime))
	if !c.flushing {
		c.interrupt()
		close(c.drained)
	}
}

// interrupt wakes whoever reads; the lock is held. It comes after everything
// is written, since on a WebSocket it breaks both directions.
func (c *conn) interrupt() { _ = c.raw.SetReadDeadline(time.Unix(1, 0)) }

func (c *conn) ending() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// waitRoom returns when the next delivery may be written; false: the connection
// ends.
func (c *conn) waitRoom() bool {
	for c.unwritten.Load() >= highWater {
		select {
		case <-c.room:
		case <-c.gone:
			return false
		}
	}
	return !c.ending()
}

// Close is the engine's and does nothing: it is about to return, with the reason
// that the client is to be told. Finish closes the connection below.
func (c *conn) Close() error { return nil }

// finish comes after shut. It writes what is left, lets the client read it, and closes. It takes at
// most three times lingerTime.
func (c *conn) finish() {
	cut := time.AfterFunc(3*lingerTime, func() { tunnel.Abort(c.raw, protocol.CodeAborted) })
	defer cut.Stop()
	<-c.drained
	c.mu.Lock()
	failed := c.failed
	c.mu.Unlock()
	if failed {
		tunnel.Abort(c.raw, protocol.CodeAborted)
		return
	}
	// TCP drops what the client has not read yet when something of the
	// client's is unread at the close.
	if half, ok := c.raw.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_ = c.raw.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.CopyN(io.Discard, c.raw, lingerBytes)
	}
	_ = c.raw.Close()
}

// SetDeadline is the engine's: the time until the next packet. Writes have a
// deadline of their own.
func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline does nothing once the connection ends.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return nil
	}
	return c.raw.SetReadDeadline(t)
}

// SetWriteDeadline does nothing.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// LocalAddr is of the connection below.
func (c *conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr is never nil: the engine prints it.
func (c *conn) RemoteAddr() net.Addr {
	if a := c.raw.RemoteAddr(); a != nil {
		return a
	}
	return &net.TCPAddr{}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
