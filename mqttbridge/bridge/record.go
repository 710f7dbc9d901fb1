package bridge

import (
	"encoding/binary"
	"errors"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A message in the durable queue:
//
//	version  1 byte   1
//	flags    1 byte   bit 0 QoS 1, bit 1 retain
//	topic    uvarint, then that many bytes; at the hub, relative to home/<agent>/
//	payload  the rest
//
// It is mapped before it is stored, so that a change of rules does not send it
// somewhere else. Its age is the queue's business.
const recordVersion = 1

const (
	recordQoS1   = 1 << 0
	recordRetain = 1 << 1
)

var errRecord = errors.New("a message in the queue cannot be read")

func encodeRecord(m mqttbridge.LinkMessage) []byte {
	var flags byte
	if m.QoS > 0 {
		flags |= recordQoS1
	}
	if m.Retain {
		flags |= recordRetain
	}
	b := make([]byte, 0, 2+binary.MaxVarintLen16+len(m.Topic)+len(m.Payload))
	b = append(b, recordVersion, flags)
	b = binary.AppendUvarint(b, uint64(len(m.Topic)))
	b = append(b, m.Topic...)
	return append(b, m.Payload...)
}

// decodeRecord shares its payload with b.
func decodeRecord(b []byte) (m mqttbridge.LinkMessage, err error) {
	if len(b) < 3 || b[0] != recordVersion || b[1]&^(recordQoS1|recordRetain) != 0 {
		return m, errRecord
	}
	size, n := binary.Uvarint(b[2:])
	if n <= 0 || size > uint64(len(b)-2-n) {
		return m, errRecord
	}
	rest := b[2+n:]
	m.Topic, m.Payload = string(rest[:size]), rest[size:]
	if len(m.Payload) > mqttbridge.MaxPayload || mqttbridge.CheckTopic(m.Topic) != nil {
		return mqttbridge.LinkMessage{}, errRecord
	}
	if b[1]&recordQoS1 != 0 {
		m.QoS = 1
	}
	m.Retain = b[1]&recordRetain != 0
	return m, nil
}
