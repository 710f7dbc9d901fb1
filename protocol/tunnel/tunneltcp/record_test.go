package tunneltcp

import (
	"bytes"
	"testing"
)

// Two data records become one with the bytes in order; nothing else does, and
// never beyond what a record may hold.
func TestAbsorb(t *testing.T) {
	data := func(n int, b byte) record {
		return record{buf: dataRecord(bytes.Repeat([]byte{b}, n)), slot: true}
	}
	a := data(16<<10, 'a')
	if !a.absorb(data(16<<10, 'b')) {
		t.Fatal("two halves were not merged")
	}
	want := append(bytes.Repeat([]byte{'a'}, 16<<10), bytes.Repeat([]byte{'b'}, 16<<10)...)
	if got := *a.buf; got[0] != recordData || int(got[1])<<16|int(got[2])<<8|int(got[3]) != len(want) || !bytes.Equal(got[recordHeader:], want) {
		t.Errorf("merged to a header of % x and %d bytes", got[:recordHeader], len(got)-recordHeader)
	}
	if a.absorb(data(1, 'c')) {
		t.Error("a record grew beyond its limit")
	}
	end := record{buf: newRecord(recordEnd, 0)}
	if one := data(1, 'x'); one.absorb(end) || end.absorb(one) {
		t.Error("an end was merged with data")
	}
}
