package tunnelquic_test

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunnelquic"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

const latency = 5 * time.Millisecond // one way

var (
	homeAddr  = netip.MustParseAddrPort("192.0.2.1:4433")
	relayAddr = netip.MustParseAddrPort("192.0.2.2:443")
)

// A road is a simulated network between two hosts; dead drops everything.
type road struct {
	simnet.PerfectRouter
	dead        atomic.Bool
	home, relay *simnet.SimConn
}

func (r *road) SendPacket(p simnet.Packet) error {
	if r.dead.Load() {
		return nil
	}
	return r.PerfectRouter.SendPacket(p)
}

func newRoad(t *testing.T) *road {
	t.Helper()
	r := &road{}
	n := &simnet.Simnet{Router: r}
	settings := simnet.NodeBiDiLinkSettings{Latency: latency}
	r.home = n.NewEndpoint(net.UDPAddrFromAddrPort(homeAddr), settings)
	r.relay = n.NewEndpoint(net.UDPAddrFromAddrPort(relayAddr), settings)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.home.Close()
		r.relay.Close()
		n.Close()
	})
	return r
}

// listen starts a listener at the relay's end. It is closed before the road.
func (r *road) listen(t *testing.T, ends *ends) *tunnelquic.Listener {
	t.Helper()
	l, err := tunnelquic.Listen(r.relay, ends.server, ends.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dial makes a session from the home's end.
func (r *road) dial(ctx context.Context, ends *ends) (tunnel.Session, error) {
	d := &tunnelquic.Dialer{
		TLS: ends.client, Config: ends.cfg,
		ListenPacket: func(context.Context, netip.AddrPort) (net.PacketConn, error) { return r.home, nil },
	}
	return d.Dial(ctx, relayAddr)
}

func (r *road) pair(t *testing.T, ends *ends) (dialer, listener tunnel.Session) {
	t.Helper()
	l := r.listen(t, ends)
	dialer, err := r.dial(t.Context(), ends)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialer.Close(protocol.CodeOK, "") })
	listener, err = l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return dialer, listener
}

func simPair(t *testing.T, cfg tunnelquic.Config) (a, b tunnel.Session) {
	t.Helper()
	ends := newEnds(t)
	ends.cfg = cfg
	return newRoad(t).pair(t, ends)
}

func TestSession(t *testing.T) {
	tunneltest.TestSession(t, func(t *testing.T) (a, b tunnel.Session) {
		return simPair(t, tunnelquic.Config{})
	})
}

func TestSessionReversed(t *testing.T) {
	tunneltest.TestSession(t, func(t *testing.T) (a, b tunnel.Session) {
		b, a = simPair(t, tunnelquic.Config{})
		return a, b
	})
}

func TestBudget(t *testing.T) {
	const budget = 4 << 20
	tunneltest.TestBudget(t, budget, func(t *testing.T) (a, b tunnel.Session) {
		return simPair(t, tunnelquic.Config{Budget: budget})
	})
}
