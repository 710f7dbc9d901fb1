package edge

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// A retry stands between a visitor whose hello was opened (see ECH) and the
// target that got what was inside. A server may answer with a
// HelloRetryRequest; the hello that follows is encrypted as well, and only we
// can open it. Everything else passes unchanged (RFC 9849 §7.1), and after the
// hellos there is nothing left to do.
//
// The reader and the writer of the connection meet in phase alone.
type retry struct {
	phase atomic.Uint32

	server serverHello // the writer's alone

	// The reader's alone.
	again  func([]byte) ([]byte, error)
	name   string        // the server that the first hello names
	in     messageReader // raw is what was read and not passed on yet
	left   int           // bytes of the current record that are to be passed on
	passed bool          // nothing is held back any more
	failed error
}

// Phases. The writer leads from the first to the second or the third, before
// the bytes that say so go out; the reader from the second to the third.
const (
	phaseFirst = iota // the server has not answered
	phaseRetry        // it sent a HelloRetryRequest
	phaseOver         // it sent something else, or the second hello has passed
)

const (
	alertUnexpectedMessage = 10
	alertIllegalParameter  = 47
	alertTime              = time.Second
)

// next returns bytes for the target, none when the rest of the connection
// passes as it is (passed is set then).
func (r *retry) next(conn net.Conn) ([]byte, error) {
	for {
		switch {
		case r.failed != nil:
			return nil, r.failed
		case r.phase.Load() == phaseOver:
			ready := r.in.raw
			r.passed, r.in = true, messageReader{}
			return ready, nil
		case r.left > 0 && len(r.in.raw) > 0:
			n := min(r.left, len(r.in.raw))
			ready := r.in.raw[:n:n]
			r.left, r.in.raw = r.left-n, r.in.raw[n:]
			return ready, nil
		case r.left == 0 && len(r.in.raw) >= recordHeader:
			if r.in.raw[0] == recordHandshake {
				if err := r.second(conn); err != nil {
					return nil, err
				}
				continue
			}
			r.left = recordHeader + int(r.in.raw[3])<<8 + int(r.in.raw[4])
			continue
		}
		raw, err := fill(conn, r.in.raw, len(r.in.raw)+1)
		r.in.raw = raw
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				r.phase.Store(phaseOver) // ended within a record header: the target sees where
				continue
			}
			return nil, err
		}
	}
}

// second opens the second hello and puts it in the place of what came.
func (r *retry) second(conn net.Conn) error {
	switch r.phase.Load() {
	case phaseOver:
		return nil
	case phaseFirst:
		// The second hello answers a HelloRetryRequest, so that it cannot come
		// before; the target must not meet one that nobody looked into.
		return r.fail(conn, alertUnexpectedMessage, errors.New("a second hello that nobody asked for"))
	}
	msg, err := r.in.next(conn)
	switch {
	case isHelloError(err):
		return r.fail(conn, alertUnexpectedMessage, err)
	case err != nil:
		return err // after a deadline the next Read goes on
	}
	if r.in.more() {
		return r.fail(conn, alertUnexpectedMessage, errTwoMessages)
	}
	inner, err := r.again(msg)
	if err != nil {
		return r.fail(conn, alertOf(err), err)
	}
	switch h, err := parseHello(inner[messageHeader:]); {
	case err != nil:
		return r.fail(conn, alertIllegalParameter, err)
	case h.ServerName != r.name:
		return r.fail(conn, alertIllegalParameter, errors.New("the second hello names another server"))
	}
	r.in.raw = append(records(0x0303, inner), r.in.rest()...)
	r.phase.Store(phaseOver)
	return nil
}

// fail tells the visitor why and ends the connection for the target. The
// handshake is not encrypted yet: an alert of ours reads like the server's.
func (r *retry) fail(conn net.Conn, alert uint8, err error) error {
	r.failed, r.in = err, messageReader{}
	_ = conn.SetWriteDeadline(time.Now().Add(alertTime)) // the target is about to end it
	_, _ = conn.Write(alertRecord(alert))
	return err
}

var errTwoMessages = errors.New("another message follows the ClientHello in its record")

// alertOf asks an error of ECH for the alert that it means.
func alertOf(err error) uint8 {
	if e, ok := errors.AsType[interface {
		error
		TLSAlert() uint8
	}](err); ok {
		return e.TLSAlert()
	}
	return alertIllegalParameter
}

// wrote looks at what the target is about to send.
func (r *retry) wrote(p []byte) {
	if r.server.over {
		return
	}
	switch retry := r.server.feed(p); {
	case !r.server.over:
	case retry:
		r.phase.Store(phaseRetry)
	default:
		r.phase.Store(phaseOver)
	}
}

// A serverHello tells a HelloRetryRequest from everything else that a server
// may say first.
type serverHello struct {
	over   bool
	header []byte // of the current record, until complete
	left   int    // of its body
	msg    []byte // the message so far
}

const (
	typeServerHello = 2
	randomAt        = messageHeader + 2 // after legacy_version
	randomEnd       = randomAt + sha256.Size
)

// feed takes the next bytes and sets over as soon as it knows.
func (s *serverHello) feed(p []byte) (retry bool) {
	for len(p) > 0 {
		if s.left == 0 {
			n := min(recordHeader-len(s.header), len(p))
			s.header, p = append(s.header, p[:n]...), p[n:]
			if len(s.header) < recordHeader {
				return false
			}
			s.left = int(s.header[3])<<8 | int(s.header[4])
			if s.header[0] != recordHandshake || s.left == 0 {
				return s.end(false)
			}
			s.header = s.header[:0]
			continue
		}
		n := min(s.left, len(p), randomEnd-len(s.msg))
		s.msg, p, s.left = append(s.msg, p[:n]...), p[n:], s.left-n
		if s.msg[0] != typeServerHello {
			return s.end(false)
		}
		if len(s.msg) == randomEnd {
			// RFC 8446 §4.1.3
			magic := sha256.Sum256([]byte("HelloRetryRequest"))
			return s.end(bytes.Equal(s.msg[randomAt:], magic[:]))
		}
	}
	return false
}

func (s *serverHello) end(retry bool) bool {
	*s = serverHello{over: true}
	return retry
}
