// Package flow is the half of a tunnel session that does not depend on the
// transport: tunnel.Session and tunnel.Stream over a Link. It exists because
// neither yamux nor quic-go has the flow control that DESIGN §5 asks for: one
// has a fixed window and no budget, the other one connection window in which
// a stalled stream takes room from all.
//
// So every direction of every stream has a credit, an absolute number of
// bytes that its sender may send. It starts at 255 KiB without a message; the
// receiver raises it on the control stream as its application reads. A
// goroutine per stream moves what arrives out of the library into our buffer,
// so the libraries' own windows never fill, every unread byte is counted,
// and a peer that oversteps its credit is found out.
//
//	window   granted − consumed of one stream. Doubles up to 16 MiB while the
//	         reader takes half of it in less than two round trips.
//	growth   the sum of all that windows have above 255 KiB; at most ¾ of the
//	         budget. Streams that rest for 10 s give theirs back.
//	held     the memory of the bytes that arrived and were not read. Over the
//	         budget, the longest-stalled streams are reset with CodeOverload.
//
// Datagrams pass these accounts by: a DatagramLink carries them beside its
// lanes, whoever is given them has to take them at once, and turns keeps them from
// taking the whole path.
//
// The control stream is the first one that the dialer opens. It carries
// frames of 17 bytes, integers big endian; unknown types are ignored:
//
//	type u8 | stream u64 | value u64
//
//	0 HELLO   stream = version (1). First frame in both directions; the
//	          listener's is the proof that it accepted the dialer.
//	1 CREDIT  the receiver's new limit for what it gets on the stream
//	2 CLOSE   value = code, stream = length of the reason (≤ 255) that
//	          follows. TCP only: QUIC has CONNECTION_CLOSE.
package flow

import (
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A Link is one authenticated connection that carries Lanes.
type Link interface {
	// Open opens a lane. It blocks while the peer's limit is reached.
	Open(ctx context.Context) (Lane, error)
	// Accept returns the peer's next lane, in the order in which they were
	// opened. It fails when the link has ended.
	Accept() (Lane, error)
	// Close ends the link. QUIC tells the peer code and reason; TCP calls
	// farewell (nil: nothing to say), which writes the CLOSE frame, and waits a
	// moment for it. Every later and every blocked call on link and lanes fails.
	// A second call without farewell hangs up at once.
	Close(code protocol.Code, reason string, farewell func())
	// Cause says why the link ended by itself. Called after a call failed.
	Cause() *tunnel.CloseError
	// RTT is the smoothed round-trip time; zero when not known.
	RTT() time.Duration
}

// A DatagramLink is a Link that carries datagrams beside its lanes, which have
// numbers as in QUIC: even ones are the dialer's.
type DatagramLink interface {
	Link
	// SendDatagram sends p in one piece under the number of a lane, and keeps none
	// of it. It waits while the path takes no more. False: nothing was sent, as p
	// is too large for now or the peer takes no datagrams.
	SendDatagram(lane uint64, p []byte) (sent bool, err error)
	// ReceiveDatagram waits for the next one, which is the caller's then. It fails
	// when the link has ended. The lane may be any.
	ReceiveDatagram() (lane uint64, p []byte, err error)
	// BytesSent counts all bytes that have left, of lanes, too.
	BytesSent() uint64
}

// A Lane is one raw stream of a Link. Wait, Recv and Drain are called from
// one goroutine; Send and End from one at a time; the rest at any moment.
// Errors that the peer caused are *tunnel.ResetError.
type Lane interface {
	ID() uint64
	// Bind says what to call, once, when the peer stops reading.
	Bind(stopped func(protocol.Code))
	// Wait blocks until Recv has something. io.EOF is the clean end, and only
	// that. It holds no buffer, so that idle streams are cheap.
	Wait() error
	// Recv reads at least one byte, or returns an error as Wait does.
	Recv(p []byte) (int, error)
	// Drain is called after the receiving direction is over. It may go on to
	// look for the peer's words about the other direction.
	Drain()
	// Send takes p to send it, and blocks while the link does not take more.
	// When expired closes it returns os.ErrDeadlineExceeded and the count of
	// bytes that it has taken, which will be sent.
	Send(p []byte, expired <-chan struct{}) (int, error)
	// SetSendDeadline announces when expired will close.
	SetSendDeadline(t time.Time)
	// End ends the sending direction cleanly after what Send took. It does not
	// block.
	End()
	// CancelSend aborts the sending direction and unblocks Send; CancelRecv
	// tells the peer to stop sending. Neither blocks. Both do nothing when the
	// direction is over.
	CancelSend(code protocol.Code)
	CancelRecv(code protocol.Code)
}

// A FlushLane is a Lane whose Send only queues.
type FlushLane interface {
	Lane
	// Flush waits until what Send took has been written, or goes nowhere. It ends
	// with the link at the latest.
	Flush()
}

// Sizes of the flow control.
const (
	// InitialWindow is a little less than 256 KiB, yamux's first window, so
	// that the headers of tunneltcp's records fit into that, too.
	InitialWindow = 255 << 10
	MaxWindow     = 16 << 20
	DefaultBudget = 64 << 20

	// maxSend is the most that goes to Send at once, so that progress shows.
	maxSend = 64 << 10
)

// A Config says what New needs besides the link.
type Config struct {
	Peer       tunnel.Peer
	Local      net.Addr
	Dialer     bool         // this side opens the control stream
	Budget     int64        // bytes; 0 = DefaultBudget
	MaxStreams int          // streams that the peer may have open; one more ends the session; 0 = no limit but the link's
	Logger     *slog.Logger // nil = silent
}
