package tunnelquic

import (
	"bytes"
	"testing"

	"github.com/quic-go/quic-go/quicvarint"
)

// FuzzSplitDatagram: what has a number is the number and the rest, byte for byte;
// what has none is nobody's.
func FuzzSplitDatagram(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{4})
	f.Add([]byte{0x40})
	f.Add(append(quicvarint.Append(nil, 1<<40), "payload"...))
	f.Fuzz(func(t *testing.T, in []byte) {
		lane, p, ok := splitDatagram(in)
		whole := len(in) > 0 && len(in) >= 1<<(in[0]>>6)
		if ok != whole {
			t.Fatalf("%x: %v", in, ok)
		}
		if !ok {
			return
		}
		n := 1 << (in[0] >> 6)
		number := append([]byte{in[0] & 0x3f}, in[1:n]...)
		var want uint64
		for _, b := range number {
			want = want<<8 | uint64(b)
		}
		if lane != want || !bytes.Equal(p, in[n:]) {
			t.Errorf("%x: lane %d, payload %x", in, lane, p)
		}
	})
}

func TestPeerWithoutDatagrams(t *testing.T) {
	if sent, err := (&link{}).SendDatagram(4, []byte("x")); sent || err != nil {
		t.Errorf("sent %v, %v", sent, err)
	}
}
