package mqttbridge

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"
)

// maxTTL keeps a life a Duration; MQTT's own greatest is 136 years.
const maxTTL = 200 * 365 * 24 * time.Hour

const (
	flagQoS    = 0b11
	flagRetain = 1 << 2
	flagSync   = 1 << 3
	flagDup    = 1 << 4
	flagTTL    = 1 << 5
	flagsKnown = 1<<6 - 1
)

// WriteLink writes one packet and does not flush. What the other end would not
// read is refused, wrapping ErrMalformed, before anything is written: the link
// goes on without it.
func WriteLink(w *bufio.Writer, p LinkPacket) error {
	var err error
	switch p.Kind {
	case LinkPublish:
		err = writeMessage(w, &p.Message)
	case LinkAck, LinkSynced, LinkPing, LinkPong:
		b := append(w.AvailableBuffer(), byte(1+uvarintLen(p.Seq)), byte(p.Kind))
		_, err = w.Write(binary.AppendUvarint(b, p.Seq))
	case LinkHelloKind:
		err = writeJSON(w, p.Kind, p.Hello)
	case LinkWelcomeKind:
		err = writeJSON(w, p.Kind, p.Welcome)
	default:
		err = fmt.Errorf("there is no kind %d: %w", p.Kind, ErrMalformed)
	}
	if err != nil {
		return fmt.Errorf("write link: %w", err)
	}
	return nil
}

func writeMessage(w *bufio.Writer, m *LinkMessage) error {
	if err := CheckTopic(m.Topic); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	switch {
	case len(m.Payload) > MaxPayload:
		return fmt.Errorf("a message of %d bytes; at most %d are allowed: %w", len(m.Payload), MaxPayload, ErrMalformed)
	case m.QoS > 2:
		return fmt.Errorf("a message of QoS %d: %w", m.QoS, ErrMalformed)
	case m.TTL < 0 || m.TTL > maxTTL:
		return fmt.Errorf("a message with a life of %s: %w", m.TTL, ErrMalformed)
	}
	flags, ttl := m.QoS, uint64(0)
	if m.Retain {
		flags |= flagRetain
	}
	if m.Sync {
		flags |= flagSync
	}
	if m.Dup {
		flags |= flagDup
	}
	n := 2 + uvarintLen(m.Seq) + uvarintLen(uint64(len(m.Topic))) + len(m.Topic) + len(m.Payload)
	if m.TTL > 0 {
		flags |= flagTTL
		ttl = uint64((m.TTL-1)/time.Millisecond) + 1
		n += uvarintLen(ttl)
	}
	b := binary.AppendUvarint(w.AvailableBuffer(), uint64(n))
	b = append(b, byte(LinkPublish), flags)
	b = binary.AppendUvarint(b, m.Seq)
	if m.TTL > 0 {
		b = binary.AppendUvarint(b, ttl)
	}
	b = binary.AppendUvarint(b, uint64(len(m.Topic)))
	b = append(b, m.Topic...)
	if _, err := w.Write(b); err != nil {
		return err
	}
	_, err := w.Write(m.Payload)
	return err
}

func writeJSON[T any](w *bufio.Writer, kind LinkKind, v *T) error {
	if v == nil {
		return fmt.Errorf("the packet is empty: %w", ErrMalformed)
	}
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if 1+len(body) > maxLinkHello {
		return fmt.Errorf("a packet of %d bytes; at most %d are allowed: %w", 1+len(body), maxLinkHello, ErrMalformed)
	}
	b := binary.AppendUvarint(w.AvailableBuffer(), uint64(1+len(body)))
	if _, err := w.Write(append(b, byte(kind))); err != nil {
		return err
	}
	_, err = w.Write(body)
	return err
}

func uvarintLen(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}
