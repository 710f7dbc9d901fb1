package mqttbridge

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// ReadLink reads one packet. It returns io.EOF when r ends between two packets
// and wraps io.ErrUnexpectedEOF when it ends inside one. After an error that
// wraps ErrMalformed the link must end. Payload and Topic are the caller's to
// keep.
func ReadLink(r *bufio.Reader) (LinkPacket, error) {
	p, err := readLink(r)
	if err != nil && err != io.EOF {
		return LinkPacket{}, fmt.Errorf("read link: %w", err)
	}
	return p, err
}

func readLink(r *bufio.Reader) (p LinkPacket, err error) {
	if _, err := r.Peek(1); err != nil {
		return p, err // io.EOF here is a clean end
	}
	n64, err := readUvarint(r)
	if err != nil {
		return p, err
	}
	if n64 < 2 || n64 > maxLinkHello {
		return p, fmt.Errorf("a packet of %d bytes: %w", n64, ErrMalformed)
	}
	kind, err := r.ReadByte()
	if err != nil {
		return p, unexpected(err)
	}
	p.Kind = LinkKind(kind)
	n := int(n64) - 1 // bytes that are left of this packet
	switch p.Kind {
	case LinkPublish:
		err = readMessage(r, n, &p.Message)
	case LinkAck, LinkSynced, LinkPing, LinkPong:
		if n > binary.MaxVarintLen64 {
			return p, fmt.Errorf("a number of %d bytes: %w", n, ErrMalformed)
		}
		if p.Seq, err = readUvarint(r); err == nil && uvarintLen(p.Seq) != n {
			err = fmt.Errorf("a number is not %d bytes long: %w", n, ErrMalformed)
		}
	case LinkHelloKind:
		p.Hello, err = readJSON[LinkHello](r, n)
	case LinkWelcomeKind:
		p.Welcome, err = readJSON[LinkWelcome](r, n)
	default:
		err = fmt.Errorf("there is no kind %d: %w", kind, ErrMalformed)
	}
	return p, err
}

var errMessageEnds = fmt.Errorf("a message ends before its fields do: %w", ErrMalformed)

// readMessage reads the n bytes of a message. What is left of them bounds each
// field before memory is taken for it.
func readMessage(r *bufio.Reader, n int, m *LinkMessage) error {
	if n > maxLinkPublish-1 {
		return fmt.Errorf("a message of %d bytes: %w", n, ErrMalformed)
	}
	flags, err := r.ReadByte()
	if err != nil {
		return unexpected(err)
	}
	n--
	m.QoS = flags & flagQoS
	if m.QoS > 2 || flags&^flagsKnown != 0 {
		return fmt.Errorf("a message with flags %#02x: %w", flags, ErrMalformed)
	}
	m.Retain, m.Sync, m.Dup = flags&flagRetain != 0, flags&flagSync != 0, flags&flagDup != 0
	field := func() (v uint64, err error) {
		if v, err = readUvarint(r); err == nil {
			n -= uvarintLen(v)
		}
		return v, err
	}
	if m.Seq, err = field(); err != nil {
		return err
	}
	if flags&flagTTL != 0 {
		ms, err := field()
		if err != nil {
			return err
		}
		if ms == 0 || ms > uint64(maxTTL/time.Millisecond) {
			return fmt.Errorf("a message with a life of %d ms: %w", ms, ErrMalformed)
		}
		m.TTL = time.Duration(ms) * time.Millisecond
	}
	size, err := field()
	if err != nil {
		return err
	}
	if n < 0 || size > uint64(n) {
		return errMessageEnds
	}
	if m.Topic, err = readTopic(r, int(size)); err != nil {
		return err
	}
	n -= int(size)
	if n > MaxPayload {
		return fmt.Errorf("a payload of %d bytes: %w", n, ErrMalformed)
	}
	if n > 0 {
		m.Payload = make([]byte, n)
		if _, err := io.ReadFull(r, m.Payload); err != nil {
			return unexpected(err)
		}
	}
	return nil
}

// readTopic takes no memory but the text when the reader has it all.
func readTopic(r *bufio.Reader, n int) (string, error) {
	b, err := r.Peek(n)
	var topic string
	if err == nil {
		topic = string(b)
		r.Discard(n) // it is there
	} else {
		b = make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return "", unexpected(err)
		}
		topic = string(b)
	}
	if err := CheckTopic(topic); err != nil {
		return "", fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return topic, nil
}

func readJSON[T any](r io.Reader, n int) (*T, error) {
	body, err := readBody(r, n)
	if err != nil {
		return nil, err
	}
	if len(body) == 0 || body[0] != '{' { // encoding/json takes null for any struct
		return nil, fmt.Errorf("no JSON object: %w", ErrMalformed)
	}
	v := new(T)
	if err := json.Unmarshal(body, v); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return v, nil
}

// readUvarint takes the shortest form only: its length is then known from its
// value.
func readUvarint(r *bufio.Reader) (v uint64, err error) {
	for shift := 0; shift < 64; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, unexpected(err)
		}
		if shift == 63 && b > 1 || shift > 0 && b == 0 {
			break
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, nil
		}
	}
	return 0, fmt.Errorf("a number that is too large or not in its shortest form: %w", ErrMalformed)
}

// unexpected is for ends inside a packet.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
