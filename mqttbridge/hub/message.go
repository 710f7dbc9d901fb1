package hub

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A message is one publication. It is not changed after it was made: the
// sessions that wait for it share it.
type message struct {
	topic   string
	payload []byte
	qos     byte // 0 to 2, as published
	retain  bool // as published
	expires time.Time
	sender  sender
	props   *props // nil: none
}

// A sender is who published a message. All empty: the hub itself.
type sender struct {
	device string // its name
	id     string // its key's id
	client string // key of its session, for No Local
	agent  string // id of the agent whose home it came from
	// since counts revocations: what was published before the sender's own is
	// not delivered any more. A number, not a time, since clocks are set back.
	since uint64
}

// props are what MQTT 5 lets a sender say beside the payload.
type props struct {
	format        byte
	hasFormat     bool
	contentType   string
	responseTopic string
	correlation   []byte
	user          []pair
}

type pair struct{ key, value string }

// A delivery is a message on its way to one reader.
type delivery struct {
	m      *message
	qos    byte
	retain bool
	ids    []uint32 // MQTT 5 subscription identifiers

	// Not stored.
	again    bool // DUP: the client may have seen it
	retained bool // the answer to a subscription
}

func (m *message) expired(now time.Time) bool {
	return !m.expires.IsZero() && !now.Before(m.expires)
}

// The form of a delivery in a mailbox: version 1, flags, then the fields in the
// order of encode. Strings are a uvarint length and their bytes.
const (
	mailVersion = 1

	mailQoS       = 0b11
	mailRetain    = 1 << 2
	mailProps     = 1 << 3
	mailFormat    = 1 << 4
	mailFlags     = 1<<5 - 1
	maxMailFields = 1 << 16 // of lists; a packet cannot hold as many
)

var errMail = errors.New("hub: a stored message cannot be read")

func (d delivery) encode() []byte {
	m := d.m
	flags := d.qos & mailQoS
	if d.retain {
		flags |= mailRetain
	}
	if m.props != nil {
		flags |= mailProps
		if m.props.hasFormat {
			flags |= mailFormat
		}
	}
	b := make([]byte, 0, len(m.payload)+len(m.topic)+128)
	b = append(b, mailVersion, flags)
	for _, s := range [...]string{m.topic, m.sender.device, m.sender.id, m.sender.client, m.sender.agent} {
		b = appendText(b, s)
	}
	b = binary.AppendUvarint(b, m.sender.since)
	b = binary.AppendUvarint(b, uint64(len(d.ids)))
	for _, id := range d.ids {
		b = binary.AppendUvarint(b, uint64(id))
	}
	if p := m.props; p != nil {
		b = append(b, p.format)
		b = appendText(b, p.contentType)
		b = appendText(b, p.responseTopic)
		b = appendText(b, string(p.correlation))
		b = binary.AppendUvarint(b, uint64(len(p.user)))
		for _, u := range p.user {
			b = appendText(appendText(b, u.key), u.value)
		}
	}
	return append(b, m.payload...)
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decodeDelivery reads what encode wrote. The queue keeps the message's life.
func decodeDelivery(b []byte, expires time.Time) (delivery, error) {
	if len(b) < 2 || b[0] != mailVersion || b[1]&^mailFlags != 0 {
		return delivery{}, errMail
	}
	flags := b[1]
	r := mailReader{b: b[2:]}
	m := &message{qos: flags & mailQoS, retain: flags&mailRetain != 0, expires: expires}
	for _, s := range [...]*string{&m.topic, &m.sender.device, &m.sender.id, &m.sender.client, &m.sender.agent} {
		*s = r.text()
	}
	m.sender.since = r.number()
	d := delivery{m: m, qos: m.qos, retain: m.retain}
	for range r.count() {
		d.ids = append(d.ids, uint32(r.number()))
	}
	if flags&mailProps != 0 {
		p := &props{hasFormat: flags&mailFormat != 0}
		p.format = r.octet()
		p.contentType, p.responseTopic = r.text(), r.text()
		if c := r.text(); c != "" {
			p.correlation = []byte(c)
		}
		for range r.count() {
			p.user = append(p.user, pair{r.text(), r.text()})
		}
		m.props = p
	}
	if r.failed || m.qos > 2 || mqttbridge.CheckTopic(m.topic) != nil {
		return delivery{}, errMail
	}
	if len(r.b) > 0 {
		m.payload = r.b
	}
	return d, nil
}

// A mailReader takes fields off b until one does not fit.
type mailReader struct {
	b      []byte
	failed bool
}

func (r *mailReader) number() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.failed, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *mailReader) count() int {
	n := r.number()
	if n > maxMailFields || n > uint64(len(r.b)) { // each has a byte at least
		r.failed, r.b = true, nil
		return 0
	}
	return int(n)
}

func (r *mailReader) octet() byte {
	if len(r.b) == 0 {
		r.failed = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *mailReader) text() string {
	n := r.number()
	if n > uint64(len(r.b)) {
		r.failed, r.b = true, nil
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}
