package world

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"

	"github.com/quic-go/quic-go/testutils/simnet"
)

// A socket is a UDP socket.
type socket struct {
	*simnet.SimConn
	process *process
	link    *simnet.SimulatedLink
	addr    netip.AddrPort
	seq     uint64
	once    sync.Once
}

// listenUDP opens a socket; port 0 is any free one.
func (p *process) listenUDP(addr string) (net.PacketConn, error) {
	port, err := portOf(addr)
	if err != nil {
		return nil, err
	}
	w := p.m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.dead {
		return nil, errGone
	}
	if port == 0 {
		port = w.freePort()
	}
	at := netip.AddrPortFrom(p.m.Addr, port)
	if w.sockets[at] != nil {
		return nil, fmt.Errorf("listen udp %s: %w", at, syscall.EADDRINUSE)
	}
	w.seq++
	s := &socket{process: p, addr: at, seq: w.seq}
	s.link = &simnet.SimulatedLink{Latency: Latency, UploadPacket: router{w, s}}
	s.SimConn = simnet.NewBlockingSimConn(net.UDPAddrFromAddrPort(at), s.link)
	s.link.Start()
	w.sockets[at] = s
	// A socket whose process was killed is closed by nobody else.
	w.enders = append([]func(){func() { s.Close() }}, w.enders...)
	return s, nil
}

// dialUDP is agent.Config.ListenPacket.
func (p *process) dialUDP(context.Context, netip.AddrPort) (net.PacketConn, error) {
	p.m.change(func() { p.m.dials++ })
	return p.listenUDP(":0")
}

// Close implements net.PacketConn.
func (s *socket) Close() error {
	s.once.Do(func() {
		w := s.process.m.w
		w.mu.Lock()
		if w.sockets[s.addr] == s {
			delete(w.sockets, s.addr)
		}
		w.mu.Unlock()
		s.SimConn.Close()
		s.link.Close()
	})
	return nil
}

// A router carries what one socket sends. Like the kernel it tells nobody that
// a packet went nowhere.
type router struct {
	w    *World
	from *socket
}

// AddNode implements simnet.Router.
func (router) AddNode(net.Addr, simnet.PacketReceiver) {}

// SendPacket implements simnet.Router.
func (r router) SendPacket(p simnet.Packet) error {
	to, ok := p.To.(*net.UDPAddr)
	if !ok {
		return nil
	}
	ap := to.AddrPort()
	r.w.mu.Lock()
	dst := r.w.sockets[netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())]
	pass := dst != nil && r.from.passes() && dst.passes()
	r.w.mu.Unlock()
	if pass {
		dst.link.RecvPacket(p)
	}
	return nil
}

// passes reports whether packets come and go here. World.mu is held.
func (s *socket) passes() bool {
	m := s.process.m
	return !s.process.dead && !m.frozen && !m.noUDP && s.seq > m.stale
}

// freePort returns a port that nobody uses. World.mu is held.
func (w *World) freePort() uint16 {
	w.ports++
	return uint16(20000 + w.ports%40000)
}

func portOf(addr string) (uint16, error) {
	_, text, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err
}
