package main

import (
	"context"
	"net"
	"net/netip"
	"sync"
)

// A firewall is the demo's switch for "UDP is blocked": the agent's sockets
// drop what they send and receive while it is on.
type firewall struct {
	mu      sync.Mutex // guards blocked
	blocked bool
}

func (f *firewall) block(on bool) {
	f.mu.Lock()
	f.blocked = on
	f.mu.Unlock()
}

func (f *firewall) on() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.blocked
}

func (f *firewall) listenPacket(_ context.Context, remote netip.AddrPort) (net.PacketConn, error) {
	any := netip.IPv4Unspecified()
	if remote.Addr().Is6() {
		any = netip.IPv6Unspecified()
	}
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(any, 0)))
	if err != nil {
		return nil, err
	}
	return &walledConn{PacketConn: pc, wall: f}, nil
}

// walledConn hides the socket's message calls, so that every packet passes the wall.
type walledConn struct {
	net.PacketConn
	wall *firewall
}

// SetReadBuffer and SetWriteBuffer are for the QUIC library, which asks.
func (c *walledConn) SetReadBuffer(n int) error { return c.PacketConn.(*net.UDPConn).SetReadBuffer(n) }

func (c *walledConn) SetWriteBuffer(n int) error {
	return c.PacketConn.(*net.UDPConn).SetWriteBuffer(n)
}

func (c *walledConn) WriteTo(p []byte, to net.Addr) (int, error) {
	if c.wall.on() {
		return len(p), nil
	}
	return c.PacketConn.WriteTo(p, to)
}

func (c *walledConn) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.PacketConn.ReadFrom(p)
		if err != nil || !c.wall.on() {
			return n, from, err
		}
	}
}
