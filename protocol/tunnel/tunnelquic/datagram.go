package tunnelquic

import (
	"context"
	"errors"
	"sync"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"

	"github.com/sallyport/sallyport/protocol/tunnel/flow"
)

var _ flow.DatagramLink = (*link)(nil)

// scratch holds datagrams while quic-go copies them.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

func (l *link) SendDatagram(lane uint64, p []byte) (bool, error) {
	if !l.datagrams {
		return false, nil
	}
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	*buf = append(quicvarint.Append((*buf)[:0], lane), p...)
	err := l.conn.SendDatagram(*buf)
	if _, ok := errors.AsType[*quic.DatagramTooLargeError](err); ok {
		return false, nil
	}
	return err == nil, err
}

func (l *link) ReceiveDatagram() (uint64, []byte, error) {
	for {
		b, err := l.conn.ReceiveDatagram(context.Background())
		if err != nil {
			return 0, nil, err
		}
		if lane, p, ok := splitDatagram(b); ok {
			return lane, p, nil
		}
	}
}

// splitDatagram takes the number of the lane off. What has none is nobody's.
func splitDatagram(b []byte) (lane uint64, p []byte, ok bool) {
	lane, n, err := quicvarint.Parse(b)
	if err != nil {
		return 0, nil, false
	}
	return lane, b[n:], true
}

func (l *link) BytesSent() uint64 { return l.conn.ConnectionStats().BytesSent }
