package lan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

var (
	group4 = netip.MustParseAddr("224.0.0.251")
	group6 = netip.MustParseAddr("ff02::fb")
)

// mdnsHops is the hop limit of multicast DNS (RFC 6762 §11).
const mdnsHops = 255

// openSockets opens one socket for each address family that joins the group on
// at least one interface. The port is shared with other responders on this
// machine.
func openSockets(on []net.Interface, port uint16) ([]socket, error) {
	var sockets []socket
	var faults []error
	for _, open := range []func([]net.Interface, uint16) (socket, error){openSocket4, openSocket6} {
		s, err := open(on, port)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		sockets = append(sockets, s)
	}
	if len(sockets) == 0 {
		return nil, errors.Join(faults...)
	}
	return sockets, nil
}

// listenShared opens the port. For an address of a group package net opens it on
// all addresses and shares it.
func listenShared(network string, group netip.Addr, port uint16) (*net.UDPConn, error) {
	return net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(group, port)))
}

// join calls one for every interface; all of them failing is an error.
func join(on []net.Interface, one func(*net.Interface) error) error {
	var faults []error
	for i := range on {
		if err := one(&on[i]); err != nil {
			faults = append(faults, fmt.Errorf("multicast on %s: %w", on[i].Name, err))
		}
	}
	if len(faults) == len(on) {
		return errors.Join(faults...)
	}
	return nil
}

type socket4 struct {
	*net.UDPConn
	p     *ipv4.PacketConn
	group netip.AddrPort
	mu    sync.Mutex // guards the interface for multicasts
}

func openSocket4(on []net.Interface, port uint16) (socket, error) {
	c, err := listenShared("udp4", group4, port)
	if err != nil {
		return nil, err
	}
	s := &socket4{UDPConn: c, p: ipv4.NewPacketConn(c), group: netip.AddrPortFrom(group4, port)}
	err = join(on, func(i *net.Interface) error { return s.p.JoinGroup(i, &net.UDPAddr{IP: group4.AsSlice()}) })
	if err == nil {
		err = errors.Join(s.p.SetMulticastTTL(mdnsHops), s.p.SetMulticastLoopback(true))
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	_ = s.p.SetTTL(mdnsHops)
	_ = s.p.SetControlMessage(ipv4.FlagInterface, true) // where not possible, the sender tells the link
	return s, nil
}

func (s *socket4) read(buf []byte) (int, int, netip.AddrPort, error) {
	n, cm, from, err := s.p.ReadFrom(buf)
	if cm == nil {
		return n, 0, addrPortOf(from), err
	}
	return n, cm.IfIndex, addrPortOf(from), err
}

func (s *socket4) write(packet []byte, on *net.Interface, to netip.AddrPort) error {
	if to.IsValid() {
		_, err := s.WriteToUDPAddrPort(packet, to)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.p.SetMulticastInterface(on); err != nil {
		return err
	}
	_, err := s.WriteToUDPAddrPort(packet, s.group)
	return err
}

type socket6 struct {
	*net.UDPConn
	p     *ipv6.PacketConn
	group netip.AddrPort
	mu    sync.Mutex // guards the interface for multicasts
}

func openSocket6(on []net.Interface, port uint16) (socket, error) {
	c, err := listenShared("udp6", group6, port)
	if err != nil {
		return nil, err
	}
	s := &socket6{UDPConn: c, p: ipv6.NewPacketConn(c), group: netip.AddrPortFrom(group6, port)}
	err = join(on, func(i *net.Interface) error { return s.p.JoinGroup(i, &net.UDPAddr{IP: group6.AsSlice()}) })
	if err == nil {
		err = errors.Join(s.p.SetMulticastHopLimit(mdnsHops), s.p.SetMulticastLoopback(true))
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	_ = s.p.SetHopLimit(mdnsHops)
	_ = s.p.SetControlMessage(ipv6.FlagInterface, true)
	return s, nil
}

func (s *socket6) read(buf []byte) (int, int, netip.AddrPort, error) {
	n, cm, from, err := s.p.ReadFrom(buf)
	if cm == nil {
		return n, 0, addrPortOf(from), err
	}
	return n, cm.IfIndex, addrPortOf(from), err
}

func (s *socket6) write(packet []byte, on *net.Interface, to netip.AddrPort) error {
	if to.IsValid() {
		_, err := s.WriteToUDPAddrPort(packet, to)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.p.SetMulticastInterface(on); err != nil {
		return err
	}
	_, err := s.WriteToUDPAddrPort(packet, netip.AddrPortFrom(s.group.Addr().WithZone(on.Name), s.group.Port()))
	return err
}

// addrPortOf keeps the zone, which an answer to a link-local address needs.
func addrPortOf(a net.Addr) netip.AddrPort {
	if u, ok := a.(*net.UDPAddr); ok {
		return u.AddrPort()
	}
	return netip.AddrPort{}
}
