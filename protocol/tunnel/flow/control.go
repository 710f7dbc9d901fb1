package flow

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

const (
	frameHello  = 0
	frameCredit = 1
	frameClose  = 2

	frameSize = 17
	version   = 1
)

// A control is the sending half of the control stream. Credits are collected
// and written in one go, by a goroutine that lives while there are any, so
// that Read never waits for the network.
type control struct {
	writing gate // one group of frames at a time

	mu       sync.Mutex // guards the fields below
	lane     Lane       // nil until the control stream is there
	credits  map[uint64]int64
	flushing bool
}

func appendFrame(b []byte, typ byte, stream, value uint64) []byte {
	b = append(b, typ)
	b = binary.BigEndian.AppendUint64(b, stream)
	return binary.BigEndian.AppendUint64(b, value)
}

// hello opens the control stream at the dialer and waits for the answer.
func (s *Session) hello(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		s.fail(&tunnel.CloseError{Code: protocol.CodeTimeout, Err: context.Cause(ctx)}, false)
	})
	err := func() error {
		lane, err := s.link.Open(ctx)
		if err != nil {
			return err
		}
		s.setControl(lane)
		if err := s.sendHello(lane); err != nil {
			return err
		}
		return s.readHello(lane)
	}()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		return nil
	}
	s.failLink(err)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return s.Err()
}

// runListener waits for the control stream, then does what the dialer does.
func (s *Session) runListener() {
	late := time.AfterFunc(helloTimeout, func() {
		s.fail(&tunnel.CloseError{Code: protocol.CodeTimeout, Reason: "no hello"}, true)
	})
	lane, err := s.link.Accept()
	if err == nil {
		if err = s.readHello(lane); err == nil {
			err = s.sendHello(lane)
		}
	}
	if late.Stop(); err != nil {
		s.failLink(err)
		return
	}
	s.setControl(lane)
	s.receiveDatagrams()
	go s.acceptLoop()
	s.controlLoop()
}

func (s *Session) setControl(lane Lane) {
	lane.Bind(func(protocol.Code) {})
	s.ctl.mu.Lock()
	s.ctl.lane = lane
	s.ctl.mu.Unlock()
	s.sendCredits()
}

func (s *Session) sendHello(lane Lane) error {
	_, err := lane.Send(appendFrame(nil, frameHello, version, 0), nil)
	return err
}

func (s *Session) readHello(lane Lane) error {
	var f [frameSize]byte
	if err := recvFull(lane, f[:]); err != nil {
		return err
	}
	if f[0] != frameHello {
		return &tunnel.CloseError{Code: protocol.CodeProtocol, Reason: "no hello"}
	}
	if v := binary.BigEndian.Uint64(f[1:]); v != version {
		return &tunnel.CloseError{Code: protocol.CodeVersion, Reason: fmt.Sprintf("stream protocol %d, we speak %d", v, version)}
	}
	return nil
}

// controlLoop reads control frames until the link ends. It is the one place
// that notices.
func (s *Session) controlLoop() {
	lane := s.ctl.lane
	var f [frameSize]byte
	for {
		if err := recvFull(lane, f[:]); err != nil {
			s.failLink(err)
			return
		}
		stream, value := binary.BigEndian.Uint64(f[1:]), binary.BigEndian.Uint64(f[9:])
		switch f[0] {
		case frameCredit:
			if st := s.stream(stream); st != nil {
				st.credit(int64(min(value, 1<<62)))
			}
		case frameClose:
			reason := make([]byte, min(stream, maxReason))
			if err := recvFull(lane, reason); err != nil {
				s.failLink(err)
				return
			}
			s.fail(&tunnel.CloseError{Code: protocol.Code(value), Reason: string(reason), Remote: true}, false)
			return
		}
	}
}

// failLink ends the session because the link or the control stream did.
func (s *Session) failLink(err error) {
	if e, ok := err.(*tunnel.CloseError); ok {
		s.fail(e, true) // from readHello
		return
	}
	if cause := s.link.Cause(); cause != nil {
		s.fail(cause, false)
		return
	}
	s.fail(&tunnel.CloseError{Code: protocol.CodeProtocol, Reason: "control stream ended", Err: err}, true)
}

// sendCredit raises the peer's limit, soon.
func (s *Session) sendCredit(id uint64, limit int64) {
	s.mu.Lock()
	if s.streams[id] != nil { // remove comes after, or has been
		s.ctl.mu.Lock()
		if s.ctl.credits == nil {
			s.ctl.credits = map[uint64]int64{}
		}
		s.ctl.credits[id] = limit
		s.ctl.mu.Unlock()
	}
	s.mu.Unlock()
	s.sendCredits()
}

// forget drops the credit of a stream that is over: while the peer does not
// read the control stream, they would pile up.
func (c *control) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.credits, id)
}

func (s *Session) sendCredits() {
	s.ctl.mu.Lock()
	defer s.ctl.mu.Unlock()
	if s.ctl.lane != nil && !s.ctl.flushing && len(s.ctl.credits) > 0 {
		s.ctl.flushing = true
		go s.flushCredits(s.ctl.lane)
	}
}

func (s *Session) flushCredits(lane Lane) {
	var buf []byte
	for {
		s.ctl.mu.Lock()
		if len(s.ctl.credits) == 0 {
			s.ctl.flushing = false
			s.ctl.mu.Unlock()
			return
		}
		buf = buf[:0]
		for id, limit := range s.ctl.credits {
			buf = appendFrame(buf, frameCredit, id, uint64(limit))
		}
		clear(s.ctl.credits)
		s.ctl.mu.Unlock()
		if s.ctl.send(lane, buf) != nil {
			return // the link is at its end; controlLoop says why
		}
	}
}

func (s *Session) sendClose(code protocol.Code, reason string) {
	s.ctl.mu.Lock()
	lane := s.ctl.lane
	s.ctl.mu.Unlock()
	if lane != nil {
		s.ctl.send(lane, append(appendFrame(nil, frameClose, uint64(len(reason)), uint64(code)), reason...))
	}
}

func (c *control) send(lane Lane, b []byte) error {
	c.writing.lock()
	defer c.writing.unlock()
	for len(b) > 0 {
		n, err := lane.Send(b[:min(len(b), maxSend)], nil)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func recvFull(lane Lane, p []byte) error {
	for len(p) > 0 {
		if err := lane.Wait(); err != nil {
			return err
		}
		n, err := lane.Recv(p)
		p = p[n:]
		if err != nil && len(p) > 0 {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}
