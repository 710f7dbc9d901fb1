package flow

import (
	"errors"
	"io"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// pump moves what arrives into the stream's buffer until the peer's direction
// is over. It never waits for the reader: the credit bounds what can come.
func (st *Stream) pump() {
	for {
		err := st.lane.Wait()
		if err == nil {
			var n int
			n, err = st.lane.Recv(st.space())
			st.arrived(n)
		}
		if err != nil {
			st.over(err)
			break
		}
	}
	st.lane.Drain()
}

// space returns room for Recv. Here, and only here, memory is taken.
func (st *Stream) space() []byte {
	st.mu.Lock()
	p := st.in.buf.space()
	st.charge()
	st.mu.Unlock()
	if st.s.ledger.held.Load() > st.s.ledger.budget {
		st.s.shed()
	}
	return p
}

// charge tells the ledger what the buffer holds. The caller holds mu.
func (st *Stream) charge() {
	if held := st.in.buf.held; held != st.in.charged {
		st.s.ledger.held.Add(int64(held - st.in.charged))
		st.in.charged = held
	}
}

// arrived counts n bytes that Recv put into space.
func (st *Stream) arrived(n int) {
	st.mu.Lock()
	in := &st.in
	if in.window.received == 0 {
		in.window.at = time.Now()
	}
	if in.buf.len == 0 {
		in.stalled = time.Now()
	}
	in.buf.filled(n)
	in.window.received += int64(n)
	cheat := in.window.received > in.window.granted
	if st.closed {
		in.buf.drop()
		n = 0
	}
	st.s.ledger.unread.Add(int64(n))
	st.charge()
	st.mu.Unlock()
	st.s.bytesIn.Add(uint64(n))
	wake(in.wake)
	if cheat {
		st.s.fail(&tunnel.CloseError{Code: protocol.CodeProtocol, Reason: "flow credit exceeded"}, true)
	}
}

// over marks the end of the peer's direction. An error that is neither the
// clean end nor a reset is the link's end, and the session's end will say it.
func (st *Stream) over(err error) {
	reset, isReset := errors.AsType[*tunnel.ResetError](err)
	if err != io.EOF && !isReset {
		return
	}
	st.mu.Lock()
	st.in.ended = true
	if err == io.EOF && st.in.err == nil {
		st.in.err = io.EOF
	}
	st.settle()
	st.mu.Unlock()
	if isReset {
		st.reset(reset.Code, true)
		return
	}
	wake(st.in.wake)
}
