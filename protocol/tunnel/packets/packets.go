// Package packets carries datagrams on a tunnel stream, for services that speak
// UDP: one stream is one flow, between one visitor's address and the home.
//
// Both ends make a Conn of the stream once Open and Result are through (Open.Packets
// says so), and own the Conn from then on:
//
//	flow := packets.New(stream)
//	defer flow.Close()
//	n, err := flow.ReadPacket(buf) // io.EOF: the other end has closed the flow
//	err = flow.WritePacket(p)      // nil does not mean that it will arrive
//
// As in UDP, packets may be lost and overtake each other; none is ever cut,
// merged or doubled. WritePacket does not wait for the path: what the
// path does not take within half a second is dropped, the oldest first, and
// counted. Late packets are worth less than lost ones, as whoever speaks UDP
// repeats what matters.
//
// Over QUIC a packet is a DATAGRAM frame where the stream offers that and the
// packet fits into one; all others go over the stream itself:
//
//	2  length n, 0..65507
//	n  the packet
package packets

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// MaxPacket is the size of the largest packet: what UDP over IPv4 can carry.
const MaxPacket = 65507

// ErrTooLarge is what WritePacket returns for more than MaxPacket bytes. The
// flow goes on.
var ErrTooLarge = fmt.Errorf("packet larger than %d bytes", MaxPacket)

// Stats count the packets of one flow.
type Stats struct {
	Sent     uint64 // handed to the transport; the path may still have lost them
	Received uint64 // returned by ReadPacket
	Dropped  uint64 // here, in either direction: too many, or too late
}

// datagrams is what a stream has beside tunnel.Stream when its transport has
// datagrams: those of package flow over QUIC.
type datagrams interface {
	// SendDatagram sends p and keeps none of it. It may wait for the path. False:
	// nothing was sent, as p is too large for now or the peer takes none.
	SendDatagram(p []byte) (sent bool, err error)
	// OnDatagram says whom to give the datagrams of the stream, also those that
	// came before. f must not block, and may keep p. nil: nobody any more.
	OnDatagram(f func(p []byte))
}

// flusher is what a stream has whose Write only queues: the longest queue shall be
// the Conn's own, as that one drops what is late.
type flusher interface {
	// Flush waits until what Write took has been written.
	Flush()
}

// A Conn is one end of a flow. Its methods are safe for concurrent use.
type Conn struct {
	st    tunnel.Stream
	datas datagrams // nil: none
	flush func()    // after a Write

	sent, received, dropped atomic.Uint64

	mu      sync.Mutex // guards the fields below; never held while the stream is called
	in, out queue
	err     error // why the flow is over
	outErr  error // why nothing can be sent, when that was known first
	sending bool  // sendLoop runs
	more    sync.Cond
	alarm   *time.Timer // of the read deadline
	expired bool        // the read deadline has passed
	armed   int         // which deadline is in force: older alarms do nothing
}

// New starts a flow on a stream and takes the stream over. Deadlines set before
// are cleared.
func New(st tunnel.Stream) *Conn {
	c := &Conn{st: st, flush: func() {}}
	c.more.L = &c.mu
	st.SetDeadline(time.Time{})
	if d, ok := st.(datagrams); ok {
		c.datas = d
		d.OnDatagram(c.arrived)
	}
	if f, ok := st.(flusher); ok {
		c.flush = f.Flush
	}
	go c.receiveLoop()
	return c
}

// ReadPacket puts the next packet into buf and returns its size. A packet that
// is larger than buf stays, and the error is io.ErrShortBuffer: read again with
// more room, MaxPacket is always enough. io.EOF: the other end has closed the flow. Any other error but
// os.ErrDeadlineExceeded ends the flow, too.
func (c *Conn) ReadPacket(buf []byte) (int, error) {
	p, err := c.next(len(buf))
	if err != nil {
		return 0, err
	}
	defer p.free()
	c.received.Add(1)
	return copy(buf, p.data), nil
}

// WritePacket sends p, of which nothing is kept. It does not wait. An error other
// than ErrTooLarge means that the flow is over.
func (c *Conn) WritePacket(p []byte) error {
	if len(p) > MaxPacket {
		return ErrTooLarge
	}
	kept := newPacket(len(p))
	copy(kept.data, p)
	kept.at = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err == io.EOF:
		kept.free()
		return io.ErrClosedPipe
	case c.err != nil || c.outErr != nil:
		kept.free()
		return cmp.Or(c.err, c.outErr)
	}
	c.dropped.Add(uint64(c.out.push(kept)))
	if !c.sending {
		c.sending = true
		go c.sendLoop()
	}
	return nil
}

// Close ends the flow; the other end reads io.EOF. Packets that wait are dropped.
func (c *Conn) Close() error {
	c.end(net.ErrClosed)
	return c.st.Close()
}

// Reset aborts the flow with a code for the other end.
func (c *Conn) Reset(code protocol.Code) {
	c.end(&tunnel.ResetError{Code: code})
	c.st.Reset(code)
}

// Stats returns the counters so far.
func (c *Conn) Stats() Stats {
	return Stats{Sent: c.sent.Load(), Received: c.received.Load(), Dropped: c.dropped.Load()}
}

// end says why the flow is over: the first reason counts, but our own end comes
// after the other end's. What has arrived stays readable after a clean end.
func (c *Conn) end(err error) {
	c.mu.Lock()
	if c.err == nil || c.err == io.EOF {
		c.err = err
	}
	c.dropped.Add(uint64(c.out.clear()))
	if err != io.EOF {
		c.in.clear() // not dropped: the owner did not want them
		if c.alarm != nil {
			c.alarm.Stop()
		}
	}
	c.mu.Unlock()
	c.more.Broadcast()
	if c.datas != nil {
		c.datas.OnDatagram(nil)
	}
}

// endOut says why nothing can be sent any more. The flow may have ended cleanly
// even so: then receiveLoop is about to see it.
func (c *Conn) endOut(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outErr = cmp.Or(c.outErr, err)
	c.dropped.Add(uint64(c.out.clear()))
}

// isReset tells a reset from other errors of a stream.
func isReset(err error) bool {
	_, ok := errors.AsType[*tunnel.ResetError](err)
	return ok
}
