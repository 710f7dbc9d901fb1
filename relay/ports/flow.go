package ports

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/packets"
)

const (
	// strangerIdle is how long a visitor is remembered who has not sent again
	// after an answer. Linux has 30 s for such in its connection tracking, too.
	strangerIdle = 30 * time.Second
	// holdOff is how long packets of a visitor are dropped whom home refused.
	// Whatever speaks UDP asks again every few seconds, and each question would
	// cost the home a stream.
	holdOff = 5 * time.Second
	// proofDelay is how long after the first answer a packet of the visitor counts
	// as sent because of it. Sooner ones were under way already; of a neighbour's,
	// the next one counts.
	proofDelay = time.Millisecond
	// What a stranger is sent in all, as in QUIC (RFC 9000, section 8.1): three times
	// what came from it, or the first of these if that is more: answers of DNS do not
	// get larger. An empty packet is not free, it has headers.
	strangerBytes  = 4 << 10
	strangerFactor = 3
	headerBytes    = 28
	// What is kept of a visitor while its stream opens: the first packets, as they
	// begin a handshake.
	maxHeld      = 8
	maxHeldBytes = 16 << 10
)

var errIdle = errors.New("the visitor is silent")

// A flow is the packets of one visitor's address.
type flow struct {
	port   *udpPort
	key    flowKey
	member *member
	reply  []byte // control message that makes answers leave from key.local; nil: none
	start  time.Time

	heard    atomic.Int64 // when the visitor last sent, as time since port.start
	answered atomic.Int64 // when something was first sent to the visitor, likewise; -1: never
	settled  atomic.Bool  // and the visitor sent again

	received atomic.Uint64 // bytes from the visitor, wherever they went
	in, out  atomic.Uint64 // packets

	mu        sync.Mutex    // guards what follows
	conn      *packets.Conn // nil: not open yet, or no more
	deaf      bool          // home is not there: packets are dropped
	held      [][]byte      // until conn is set
	heldBytes int
}

func newFlow(u *udpPort, key flowKey) *flow {
	f := &flow{port: u, key: key, reply: u.sock.replyFrom(key), start: time.Now()}
	f.heard.Store(int64(time.Since(u.start)))
	f.answered.Store(-1)
	return f
}

// fromVisitor takes a packet of the visitor; false: it goes nowhere. It keeps
// nothing of p and does not wait.
func (f *flow) fromVisitor(p []byte) bool {
	now := time.Since(f.port.start)
	f.heard.Store(int64(now))
	f.received.Add(uint64(len(p)))
	answered := time.Duration(f.answered.Load())
	if answered >= 0 && now-answered >= proofDelay && f.settled.CompareAndSwap(false, true) {
		f.port.crowd.settle(f.member)
	}
	f.mu.Lock()
	conn := f.conn
	if conn == nil {
		defer f.mu.Unlock()
		return f.hold(p)
	}
	f.mu.Unlock()
	return f.send(conn, p)
}

// hold keeps a packet until the stream is open; mu is held.
func (f *flow) hold(p []byte) bool {
	if f.deaf || len(f.held) >= maxHeld || f.heldBytes+len(p) > maxHeldBytes {
		return false
	}
	f.held = append(f.held, append([]byte(nil), p...))
	f.heldBytes += len(p)
	return true
}

func (f *flow) send(conn *packets.Conn, p []byte) bool {
	if conn.WritePacket(p) != nil {
		return false
	}
	f.in.Add(1)
	f.port.counts.in.Add(uint64(len(p)))
	return true
}

// run is the flow from its stream to its log line.
func (f *flow) run(ctx context.Context) {
	defer f.port.forget(f)
	stream, err := f.open(ctx)
	refused := err != nil
	if err != nil {
		f.port.often.warn("no stream for a visitor", "client", f.key.client, "error", err)
	} else {
		refused, err = f.carry(ctx, packets.New(stream))
		f.log(ctx, err)
	}
	f.mu.Lock()
	f.conn, f.held, f.deaf = nil, nil, true
	f.mu.Unlock()
	if !refused || ctx.Err() != nil {
		return
	}
	wait := time.NewTimer(holdOff)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
}

func (f *flow) open(ctx context.Context) (tunnel.Stream, error) {
	local := netip.AddrPort{}
	if f.key.local.IsValid() {
		local = netip.AddrPortFrom(f.key.local, f.port.route.Port)
	}
	return f.port.openHome(ctx, f.key.client, local)
}

// carry carries packets until the end. Refused: home ended the flow as soon as it
// had begun, and would again.
func (f *flow) carry(ctx context.Context, conn *packets.Conn) (refused bool, err error) {
	began := time.Now()
	stop := context.AfterFunc(ctx, func() { conn.Reset(codeOf(context.Cause(ctx))) })
	defer stop()
	f.sendHeld(conn)
	err = f.toVisitor(conn)
	refused = time.Since(began) < holdOff
	switch {
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case errors.Is(err, errIdle):
		conn.Close()
		return false, nil
	case errors.Is(err, io.EOF):
		conn.Close()
		return refused, nil
	}
	conn.Reset(codeOf(err))
	return refused, err
}

// sendHeld sends what waited for the stream, in order, and lets fromVisitor send
// by itself from then on.
func (f *flow) sendHeld(conn *packets.Conn) {
	for {
		f.mu.Lock()
		held := f.held
		f.held, f.heldBytes = nil, 0
		if len(held) == 0 {
			f.conn = conn
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
		for _, p := range held {
			f.send(conn, p)
		}
	}
}

// toVisitor carries packets of the home until the flow ends.
func (f *flow) toVisitor(conn *packets.Conn) error {
	small := make([]byte, smallPacket)
	sent := uint64(0)
	conn.SetReadDeadline(time.Now().Add(f.left()))
	for {
		p, big, err := readPacket(conn, small)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			left := f.left()
			if left <= 0 {
				return errIdle
			}
			conn.SetReadDeadline(time.Now().Add(left))
			continue
		case err != nil:
			return err
		}
		size := len(p)
		cost := uint64(max(size, headerBytes))
		allowed := f.allows(sent + cost)
		if allowed {
			err = f.port.sock.write(p, f.key.client, f.reply)
		}
		if big != nil {
			bigPackets.Put(big)
		}
		switch {
		case !allowed:
			f.port.counts.dropped.Add(1)
			f.port.often.warn("answer dropped, too much for a visitor who may be forged", "client", f.key.client, "bytes", size)
		case err == nil:
			sent += cost
			f.answered.CompareAndSwap(-1, int64(time.Since(f.port.start)))
			f.out.Add(1)
			f.port.counts.out.Add(uint64(size))
		case errors.Is(err, net.ErrClosed):
			return err
		default: // too large for the path, no route, a firewall: UDP loses such packets
			f.port.counts.dropped.Add(1)
		}
	}
}

// allows reports whether the visitor may have been sent so many bytes in all.
func (f *flow) allows(bytes uint64) bool {
	return f.settled.Load() || bytes <= max(strangerBytes, strangerFactor*f.received.Load())
}

// left is how long the visitor may be silent any more.
func (f *flow) left() time.Duration {
	limit := f.port.cfg.Limits.UDPIdle
	if !f.settled.Load() {
		limit = min(limit, strangerIdle)
	}
	return limit - (time.Since(f.port.start) - time.Duration(f.heard.Load()))
}

// log writes the flow's line. Strangers get theirs only on request: every question
// to a DNS server is one. Nor has a flood a line for each flow that it pushes out.
func (f *flow) log(ctx context.Context, err error) {
	attrs := []any{
		"client", f.key.client, "packets_in", f.in.Load(), "packets_out", f.out.Load(),
		"took", time.Since(f.start).Round(time.Millisecond),
	}
	level := slog.LevelInfo
	if !f.settled.Load() {
		level = slog.LevelDebug
	} else if errors.Is(err, errMadeRoom) {
		level = slog.LevelDebug
		f.port.often.warn("flow ended to make room for a newcomer, it was silent longest", "client", f.key.client)
	}
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	f.port.log.Log(ctx, level, "flow ended", attrs...)
}
