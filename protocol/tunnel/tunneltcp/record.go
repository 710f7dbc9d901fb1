package tunneltcp

import (
	"encoding/binary"
	"sync"

	"github.com/sallyport/sallyport/protocol"
)

const (
	recordData  = 0
	recordEnd   = 1
	recordReset = 2
	recordStop  = 3

	recordHeader = 4
	maxData      = 32 << 10 // what a copy loop has in its hands
)

var records = sync.Pool{New: func() any { return new([]byte) }}

// A record waits to be written.
type record struct {
	buf     *[]byte
	slot    bool         // it holds one of link.slots
	written chan<- error // if somebody waits
}

func newRecord(typ byte, size int) *[]byte {
	buf := records.Get().(*[]byte)
	*buf = append((*buf)[:0], typ, byte(size>>16), byte(size>>8), byte(size))
	return buf
}

func dataRecord(p []byte) *[]byte {
	buf := newRecord(recordData, len(p))
	*buf = append(*buf, p...)
	return buf
}

func codeRecord(typ byte, code protocol.Code) *[]byte {
	buf := newRecord(typ, 4)
	*buf = binary.BigEndian.AppendUint32(*buf, uint32(code))
	return buf
}

// absorb makes one data record of two that wait behind each other. Readers
// hand over what they have, often the 16 KiB of a TLS record: merged, two of
// them cost one frame and one write. It reports whether b is part of r now;
// b's buffer is gone then, and its slot is free.
func (r record) absorb(b record) bool {
	size := len(*r.buf) - recordHeader + len(*b.buf) - recordHeader
	if !r.slot || !b.slot || size > maxData {
		return false
	}
	*r.buf = append(*r.buf, (*b.buf)[recordHeader:]...)
	(*r.buf)[1], (*r.buf)[2], (*r.buf)[3] = byte(size>>16), byte(size>>8), byte(size)
	records.Put(b.buf)
	return true
}
