package edge

import "io"

// A messageReader collects the first handshake message of a connection, or of
// what follows on it. After an error that passes (a deadline) next may be
// called again.
type messageReader struct {
	raw    []byte // every byte read; begins with a record
	record int    // where in raw the next record begins
	msg    []byte // the handshake message so far, without record headers
}

// next reads from r until the ClientHello is complete, over as many segments
// and records as it takes, and returns the message with its header. Memory
// grows with what arrived, never with what a length field claims.
func (m *messageReader) next(r io.Reader) ([]byte, error) {
	for {
		var err error
		if m.raw, err = fill(r, m.raw, m.record+recordHeader); err != nil {
			return nil, err
		}
		size, err := recordSize(m.raw[m.record:], m.record == 0)
		if err != nil {
			return nil, err
		}
		body := m.record + recordHeader
		if m.raw, err = fill(r, m.raw, body+size); err != nil {
			return nil, err
		}
		m.record = body + size
		m.msg = append(m.msg, m.raw[body:m.record]...)
		if len(m.msg) < messageHeader {
			continue
		}
		if m.msg[0] != typeClientHello {
			return nil, errNotHello
		}
		if m.end() > maxHello {
			return nil, errTooLong
		}
		if len(m.msg) >= m.end() {
			return m.message(), nil
		}
	}
}

// end is where the message ends, by its own header.
func (m *messageReader) end() int {
	return messageHeader + int(m.msg[1])<<16 + int(m.msg[2])<<8 + int(m.msg[3])
}

// message returns the message, once it is complete.
func (m *messageReader) message() []byte { return m.msg[:m.end():m.end()] }

// more reports whether another message began in the last record.
func (m *messageReader) more() bool { return len(m.msg) > m.end() }

// rest returns what was read after the last record.
func (m *messageReader) rest() []byte { return m.raw[m.record:] }

// fill reads until raw holds at least want bytes. A connection that ends
// before its first byte is io.EOF, later io.ErrUnexpectedEOF.
func fill(r io.Reader, raw []byte, want int) ([]byte, error) {
	if want > maxHello {
		return raw, errTooLong
	}
	for len(raw) < want {
		if len(raw) == cap(raw) {
			grown := make([]byte, len(raw), min(max(2*cap(raw), 2048), maxHello))
			copy(grown, raw)
			raw = grown
		}
		n, err := r.Read(raw[len(raw):cap(raw)])
		raw = raw[:len(raw)+n]
		if err != nil && len(raw) < want {
			if err == io.EOF && len(raw) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return raw, err
		}
	}
	return raw, nil
}

// recordSize checks a record header and returns the length of what follows.
func recordSize(header []byte, first bool) (int, error) {
	size := int(header[3])<<8 | int(header[4])
	switch {
	case header[0] == recordHandshake:
	case first && header[0] != recordAlert:
		return 0, errNotTLS
	default:
		return 0, errStray
	}
	if header[1] != 3 {
		return 0, errVersion
	}
	if size == 0 || size > maxRecord {
		return 0, errRecord
	}
	return size, nil
}

// records puts a handshake message into records (RFC 8446 §5.1): the first
// hello of a connection has the version 0x0301, what follows 0x0303.
func records(version uint16, msg []byte) []byte {
	out := make([]byte, 0, len(msg)+(len(msg)/maxRecord+1)*recordHeader)
	for len(msg) > 0 {
		n := min(len(msg), maxRecord)
		out = append(out, recordHandshake, byte(version>>8), byte(version), byte(n>>8), byte(n))
		out = append(out, msg[:n]...)
		msg = msg[n:]
	}
	return out
}
