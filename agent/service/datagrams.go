package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/packets"
)

// flowIdle ends a flow that the relay forgot: it has shorter limits of its own.
const flowIdle = 15 * time.Minute

// fewPackets is how many packets from the visitor make a flow worth a line in
// the log: every question to a DNS server is a flow.
const fewPackets = 3

// serveDatagrams joins a stream of datagrams with a socket of its own at home.
func (t *Table) serveDatagrams(ctx context.Context, log *slog.Logger, s tunnel.Stream, b *backend, start time.Time) {
	dialCtx, dialled := context.WithTimeout(ctx, dialTimeout)
	home, err := b.dialer.open(dialCtx, b.target)
	dialled()
	if err != nil {
		fault := b.explain(ctx, err)
		log.Warn("backend not reached", "code", fault.Code, "error", fault.Err, "fix", fault.Fix)
		answer(s, fault)
		return
	}
	if !accept(log, s) {
		home.Close()
		return
	}
	f := &flow{relay: packets.New(s), home: home, start: start}
	err = f.run(ctx)
	attrs := []any{
		"packets_in", f.in.Load(), "packets_out", f.out.Load(),
		"in", f.bytesIn.Load(), "out", f.bytesOut.Load(),
		"refused", f.refused.Load(), "dropped", f.lost.Load() + f.relay.Stats().Dropped,
		"took", time.Since(start).Round(time.Millisecond),
	}
	level := slog.LevelInfo
	switch {
	case err != nil:
		attrs = append(attrs, "error", err)
	case f.in.Load() < fewPackets:
		level = slog.LevelDebug
	}
	log.Log(ctx, level, "datagrams ended", attrs...)
}

// A flow is the datagrams of one visitor's address.
type flow struct {
	relay *packets.Conn
	home  net.Conn // connected: packets of others do not arrive here
	start time.Time

	in, out           atomic.Uint64 // packets, to and from home
	bytesIn, bytesOut atomic.Uint64
	refused           atomic.Uint64 // ICMP said that nobody is there; the backend may come back
	lost              atomic.Uint64 // what a socket did not take or the wire does not carry
	moved             atomic.Int64  // when a packet last came, as time since start

	ending sync.Once
	err    error // why it ended; nil: the relay closed it, or nothing moved. Set once
}

// run returns when both directions have ended.
func (f *flow) run(ctx context.Context) error {
	f.touch()
	stop := context.AfterFunc(ctx, func() { f.end(context.Cause(ctx)) })
	var back sync.WaitGroup
	back.Go(func() { f.end(f.toRelay()) })
	f.end(f.toHome())
	back.Wait()
	stop()
	return f.err
}

// end closes both sides; the first reason counts.
func (f *flow) end(err error) {
	f.ending.Do(func() {
		f.err = err
		if err == nil {
			f.relay.Close()
		} else {
			f.relay.Reset(endCode(err))
		}
		f.home.Close()
	})
}

func (f *flow) touch() { f.moved.Store(int64(time.Since(f.start))) }

// left is how long nothing may move any more.
func (f *flow) left() time.Duration {
	return flowIdle - (time.Since(f.start) - time.Duration(f.moved.Load()))
}

// toHome carries the visitor's packets; nil when the relay closed the flow or
// nothing moved.
func (f *flow) toHome() error {
	small := make([]byte, smallPacket)
	f.relay.SetReadDeadline(time.Now().Add(flowIdle))
	for {
		p, big, err := readPacket(f.relay, small)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			left := f.left()
			if left <= 0 {
				return nil
			}
			f.relay.SetReadDeadline(time.Now().Add(left))
			continue
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read from the relay: %w", err)
		}
		f.touch()
		f.in.Add(1)
		f.bytesIn.Add(uint64(len(p)))
		_, err = f.home.Write(p)
		if f.wasRefused(err) {
			_, err = f.home.Write(p) // the kernel told of an earlier packet, and did not send this one
		}
		if big != nil {
			bigPackets.Put(big)
		}
		switch {
		case err == nil || f.wasRefused(err):
		case errors.Is(err, net.ErrClosed):
			return err
		default: // too large for the path, no route now: UDP loses such packets
			f.lost.Add(1)
		}
	}
}

// toRelay carries the backend's packets.
func (f *flow) toRelay() error {
	r := newPacketReader(f.home)
	for {
		p, err := r.next()
		if f.wasRefused(err) {
			continue // told once for each packet that was sent, so this does not spin
		}
		if err != nil {
			return fmt.Errorf("read from the backend: %w", err)
		}
		f.touch()
		f.out.Add(1)
		f.bytesOut.Add(uint64(len(p)))
		err = f.relay.WritePacket(p)
		r.done()
		if errors.Is(err, packets.ErrTooLarge) {
			f.lost.Add(1)
			continue
		}
		if err != nil {
			return fmt.Errorf("write to the relay: %w", err)
		}
	}
}

// wasRefused counts what ICMP says of earlier packets. It ends nothing: the
// backend may be restarting, and whoever speaks UDP tries again.
func (f *flow) wasRefused(err error) bool {
	if err == nil {
		return false
	}
	for _, icmp := range []error{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(err, icmp) {
			f.refused.Add(1)
			return true
		}
	}
	return false
}
