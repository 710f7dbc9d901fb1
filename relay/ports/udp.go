package ports

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel"
)

// udpPort sorts the packets of one socket into flows.
type udpPort struct {
	*base
	sock  socket
	start time.Time

	mu      sync.Mutex // guards flows
	flows   map[flowKey]*flow
	running sync.WaitGroup // flows
}

// flowKey is what tells flows apart.
type flowKey struct {
	client netip.AddrPort
	local  netip.Addr // ours that the visitor reached; zero when not known
}

func newUDP(b *base, c net.PacketConn) *udpPort {
	return &udpPort{base: b, sock: newSocket(c, b.log), start: time.Now(), flows: map[flowKey]*flow{}}
}

func (u *udpPort) unbind(why *tunnel.CloseError) {
	u.remove(why)
	_ = u.sock.close()
}

func (u *udpPort) status() Status { return u.base.status(u.sock.addr()) }

func (u *udpPort) serve(ctx context.Context) {
	ctx, cancel := u.during(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = u.sock.close() })
	defer stop()
	u.receive(ctx)
	cancel()
	u.running.Wait()
}

// receive goes on until the socket is closed. No other error ends it.
func (u *udpPort) receive(ctx context.Context) {
	buf := make([]byte, bigPacket)
	delay := time.Duration(0)
	for {
		n, key, err := u.sock.read(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return
			}
			delay = min(max(2*delay, minDelay), maxDelay)
			u.often.warn("receive failed", "error", err, "retry_in", delay)
			select {
			case <-time.After(delay):
			case <-ctx.Done():
			}
			continue
		}
		delay = 0
		if f := u.flow(ctx, key); f == nil || !f.fromVisitor(buf[:n]) {
			u.counts.dropped.Add(1)
		}
	}
}

// flow returns the flow of a packet, a new one if need be; nil when it gets none.
// Only receive calls it.
func (u *udpPort) flow(ctx context.Context, key flowKey) *flow {
	u.mu.Lock()
	f := u.flows[key]
	u.mu.Unlock()
	if f != nil || !canAnswer(key) {
		return f
	}
	ctx, cancel := context.WithCancelCause(ctx)
	f = newFlow(u, key)
	var err error
	if f.member, err = u.crowd.admit(key.client.Addr(), cancel, &f.heard); err != nil {
		cancel(nil)
		u.counts.refused.Add(1)
		u.often.warn("packet dropped, it would begin a flow", "client", key.client, "error", err)
		return nil
	}
	u.counts.total.Add(1)
	u.mu.Lock()
	u.flows[key] = f
	u.mu.Unlock()
	u.running.Go(func() {
		defer cancel(nil)
		f.run(ctx)
	})
	return f
}

// forget is called by a flow at its end.
func (u *udpPort) forget(f *flow) {
	u.mu.Lock()
	if u.flows[f.key] == f {
		delete(u.flows, f.key)
	}
	u.mu.Unlock()
	u.crowd.leave(f.member)
}

// canAnswer tells sources that are a single host from those that nobody can be:
// an answer to them would go to many, or nowhere.
func canAnswer(key flowKey) bool {
	from := key.client.Addr()
	switch {
	case !from.IsValid(), key.client.Port() == 0,
		from.IsUnspecified(), from.IsMulticast(), from == netip.AddrFrom4([4]byte{255, 255, 255, 255}),
		key.local.IsMulticast():
		return false
	}
	return true
}
