package tunneltcp

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/flow"
)

// idleTime is how long a lane is quiet before it gives up yamux's buffer for
// what it receives. yamux keeps that at the size of the largest burst.
const idleTime = time.Second

// A yamuxStream is what a lane needs of a *yamux.Stream.
type yamuxStream interface {
	io.ReadWriteCloser
	StreamID() uint32
	Shrink()
	SetReadDeadline(t time.Time) error
}

var _ flow.FlushLane = (*lane)(nil)

// A lane is a flow.Lane over a yamux stream.
type lane struct {
	link    *link
	y       yamuxStream
	idle    *time.Timer // shrinks y; nil until the first byte
	control bool        // does not queue with the data
	ours    bool        // holds a place in link.opens
	left    int         // of the DATA record being received
	head    [recordHeader]byte

	cancelled chan struct{} // closed when what Send queues goes nowhere

	mu       sync.Mutex // guards the fields below
	stopped  func(protocol.Code)
	sendOver bool // END or RESET is queued or sent
	recvOver bool // END or RESET has come
	stopSent bool
	queue    []record
	flushing bool
	flushed  chan struct{} // if somebody waits: closed when nothing is queued any more
	finished bool
}

func newLane(l *link, y yamuxStream, control, ours bool) *lane {
	l.readers.add(y)
	return &lane{link: l, y: y, control: control, ours: ours, cancelled: make(chan struct{})}
}

// refuse ends a lane that nobody will use, and reads it to its end.
func (l *lane) refuse() {
	l.CancelSend(protocol.CodeAborted)
	var buf [512]byte
	for l.Wait() == nil {
		if _, err := l.Recv(buf[:]); err != nil {
			break
		}
	}
	l.Drain()
}

func (l *lane) ID() uint64 { return uint64(l.y.StreamID()) }

func (l *lane) Bind(stopped func(protocol.Code)) {
	l.mu.Lock()
	l.stopped = stopped
	l.mu.Unlock()
}

func (l *lane) Wait() error {
	for l.left == 0 {
		if _, err := io.ReadFull(l.y, l.head[:]); err != nil {
			return l.readError()
		}
		size := int(l.head[1])<<16 | int(l.head[2])<<8 | int(l.head[3])
		switch typ := l.head[0]; {
		case typ == recordData:
			l.left = size
		case typ == recordEnd && size == 0:
			l.over()
			return io.EOF
		case (typ == recordReset || typ == recordStop) && size == 4:
			code, err := l.readCode()
			if err != nil {
				return err
			}
			if typ == recordReset {
				l.over()
				return &tunnel.ResetError{Code: code, Remote: true}
			}
			l.stop(code)
		default:
			l.over()
			l.CancelSend(protocol.CodeProtocol)
			return &tunnel.ResetError{Code: protocol.CodeProtocol}
		}
	}
	return nil
}

func (l *lane) readCode() (protocol.Code, error) {
	var b [4]byte
	if _, err := io.ReadFull(l.y, b[:]); err != nil {
		return 0, l.readError()
	}
	return protocol.Code(binary.BigEndian.Uint32(b[:])), nil
}

func (l *lane) Recv(p []byte) (int, error) {
	n, err := l.y.Read(p[:min(len(p), l.left)])
	l.left -= n
	if l.idle == nil {
		l.idle = time.AfterFunc(idleTime, l.y.Shrink)
	} else {
		l.idle.Reset(idleTime)
	}
	if err != nil {
		return n, l.readError()
	}
	return n, nil
}

// readError tells an abort of the stream from the end of the link.
func (l *lane) readError() error {
	if l.link.session.IsClosed() {
		return net.ErrClosed
	}
	l.over()
	return &tunnel.ResetError{Code: protocol.CodeAborted, Remote: true}
}

// Drain waits for STOP and for the peer's FIN.
func (l *lane) Drain() {
	code := protocol.CodeAborted
	for {
		if _, err := io.ReadFull(l.y, l.head[:]); err != nil {
			break
		}
		if l.head != [recordHeader]byte{recordStop, 0, 0, 4} {
			code = protocol.CodeProtocol
			break
		}
		stopped, err := l.readCode()
		if err != nil {
			break
		}
		l.stop(stopped)
	}
	l.link.readers.remove(l.y)
	if l.idle != nil {
		l.idle.Stop()
	}
	if l.link.session.IsClosed() {
		return // the session's end says why
	}
	// The peer is done with the stream. Normally so are we.
	l.stop(code)
	l.CancelSend(code)
}

// stop tells package flow that the peer does not read on.
func (l *lane) stop(code protocol.Code) {
	l.mu.Lock()
	stopped := l.stopped
	if l.sendOver {
		stopped = nil
	}
	l.mu.Unlock()
	if stopped != nil {
		stopped(code)
	}
}

// Send queues records. The slots bound how much waits to be written, so it
// blocks when TCP does, and a deadline never tears a record.
func (l *lane) Send(p []byte, expired <-chan struct{}) (n int, err error) {
	if l.control {
		return len(p), l.sendNow(p)
	}
	for n < len(p) {
		select {
		case l.link.slots <- struct{}{}:
		case <-expired:
			return n, os.ErrDeadlineExceeded
		case <-l.cancelled:
			return n, l.sendError()
		case <-l.link.done:
			return n, net.ErrClosed
		}
		part := p[n:min(len(p), n+maxData)]
		if err := l.enqueue(record{buf: dataRecord(part), slot: true}); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// sendError tells the end of the stream from the end of the link.
func (l *lane) sendError() error {
	if l.link.session.IsClosed() {
		return net.ErrClosed
	}
	return &tunnel.ResetError{Code: protocol.CodeAborted}
}

// sendNow is Send for the control stream: it does not queue with the data,
// and waits until yamux has written.
func (l *lane) sendNow(p []byte) error {
	written := make(chan error, 1)
	if err := l.enqueue(record{buf: dataRecord(p), written: written}); err != nil {
		return err
	}
	select {
	case err := <-written:
		return err
	case <-l.link.session.CloseChan():
		return net.ErrClosed
	}
}

func (l *lane) SetSendDeadline(time.Time) {} // expired is enough

// End queues the record that ends the sending direction.
func (l *lane) End() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.sendOver {
		l.sendOver = true
		l.push(record{buf: newRecord(recordEnd, 0)})
	}
}

// CancelSend overtakes the data that still waits.
func (l *lane) CancelSend(code protocol.Code) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sendOver {
		return
	}
	l.sendOver = true
	close(l.cancelled)
	l.dropQueue()
	l.push(record{buf: codeRecord(recordReset, code)})
}

// CancelRecv asks the peer to stop.
func (l *lane) CancelRecv(code protocol.Code) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.recvOver && !l.stopSent {
		l.stopSent = true
		l.push(record{buf: codeRecord(recordStop, code)})
	}
}

// enqueue queues a DATA record, unless the direction is over.
func (l *lane) enqueue(r record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sendOver {
		l.discard(r)
		return l.sendError()
	}
	l.push(r)
	return nil
}

// push has a record written soon, in order. The caller holds mu.
func (l *lane) push(r record) {
	if l.finished {
		l.discard(r)
		return
	}
	if n := len(l.queue); n > 0 && l.queue[n-1].absorb(r) {
		<-l.link.slots // the two take one place
		return
	}
	l.queue = append(l.queue, r)
	if !l.flushing {
		l.flushing = true
		go l.flush()
	}
}

func (l *lane) discard(r record) {
	records.Put(r.buf)
	if r.slot {
		<-l.link.slots
	}
	if r.written != nil {
		r.written <- net.ErrClosed
	}
}

// dropQueue discards what waits, except STOP. The caller holds mu.
func (l *lane) dropQueue() {
	kept := l.queue[:0]
	for _, r := range l.queue {
		if (*r.buf)[0] == recordStop {
			kept = append(kept, r)
		} else {
			l.discard(r)
		}
	}
	clear(l.queue[len(kept):])
	l.queue = kept
}

// flush writes the queued records, and ends the yamux stream when both
// directions are over. It lives while there are any.
func (l *lane) flush() {
	for {
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.flushing = false
			l.queue = nil
			if l.flushed != nil {
				close(l.flushed)
				l.flushed = nil
			}
			l.finishYamux()
			l.mu.Unlock()
			return
		}
		r := l.queue[0]
		l.queue = l.queue[1:]
		l.mu.Unlock()
		_, err := l.y.Write(*r.buf)
		records.Put(r.buf)
		if r.slot {
			<-l.link.slots
		}
		if r.written != nil {
			r.written <- err
		}
		if err != nil {
			l.broken()
		}
	}
}

// Flush implements flow.FlushLane. yamux writes a record before it takes the next.
func (l *lane) Flush() {
	l.mu.Lock()
	if !l.flushing {
		l.mu.Unlock()
		return
	}
	if l.flushed == nil {
		l.flushed = make(chan struct{})
	}
	flushed := l.flushed
	l.mu.Unlock()
	<-flushed
}

// broken gives up on the stream: yamux failed to write, so that a part of a
// record may be on its way. The peer sees a FIN without an end.
func (l *lane) broken() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !isClosed(l.cancelled) {
		close(l.cancelled)
	}
	l.sendOver, l.recvOver = true, true
	l.dropQueue()
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// over marks the peer's direction as ended.
func (l *lane) over() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recvOver = true
	l.finishYamux()
}

// finishYamux closes the yamux stream once nothing is left to say or to hear.
// The caller holds mu.
func (l *lane) finishYamux() {
	if l.finished || !l.sendOver || !l.recvOver || l.flushing {
		return
	}
	l.finished = true
	go l.y.Close() // it waits while TCP does
	if l.ours {
		<-l.link.opens
	}
}
