package ports

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// A socket receives and sends for one UDP port. One goroutine reads, many write.
type socket interface {
	read(buf []byte) (n int, key flowKey, err error)
	// replyFrom returns what write needs so that answers leave from key.local.
	replyFrom(key flowKey) []byte
	write(p []byte, to netip.AddrPort, reply []byte) error
	close() error
	addr() net.Addr
}

// socketBuffer is asked for in both directions; the kernel gives what it allows.
const socketBuffer = 2 << 20

// newSocket makes the most of c. A machine with several addresses must answer
// from the one that was asked, or the visitor's NAT drops the answer; on a socket
// that is bound to all addresses the kernel chooses by route unless it is told.
func newSocket(c net.PacketConn, log *slog.Logger) socket {
	plain := &plainSocket{conn: c}
	if at := addrPort(c.LocalAddr()).Addr(); at.IsValid() && !at.IsUnspecified() {
		plain.local = at
	}
	u, ok := c.(*net.UDPConn)
	if !ok {
		return plain
	}
	_ = u.SetReadBuffer(socketBuffer)
	_ = u.SetWriteBuffer(socketBuffer)
	s := &kernelSocket{conn: u, local: plain.local}
	if s.local.IsValid() {
		return s
	}
	// A socket of both families wants both; one of IPv4 refuses the second.
	err4 := ipv4.NewPacketConn(u).SetControlMessage(ipv4.FlagDst, true)
	err6 := ipv6.NewPacketConn(u).SetControlMessage(ipv6.FlagDst, true)
	if err4 != nil && err6 != nil {
		log.Warn("this system does not tell which address a packet came to, so answers leave from the address that it chooses", "error", err4,
			"fix", "on a machine with several public addresses let the relay listen on one of them")
	}
	return s
}

// plainSocket is any net.PacketConn.
type plainSocket struct {
	conn  net.PacketConn
	local netip.Addr
}

func (s *plainSocket) read(buf []byte) (int, flowKey, error) {
	n, from, err := s.conn.ReadFrom(buf)
	if err != nil {
		return 0, flowKey{}, err
	}
	return n, flowKey{client: addrPort(from), local: s.local}, nil
}

func (s *plainSocket) replyFrom(flowKey) []byte { return nil }

func (s *plainSocket) write(p []byte, to netip.AddrPort, _ []byte) error {
	_, err := s.conn.WriteTo(p, net.UDPAddrFromAddrPort(to))
	return err
}

func (s *plainSocket) close() error   { return s.conn.Close() }
func (s *plainSocket) addr() net.Addr { return s.conn.LocalAddr() }

// kernelSocket is a socket of the kernel.
type kernelSocket struct {
	conn  *net.UDPConn
	local netip.Addr // what it is bound to; zero: all addresses
	oob   [128]byte  // the reader's
}

func (s *kernelSocket) read(buf []byte) (int, flowKey, error) {
	if s.local.IsValid() {
		n, from, err := s.conn.ReadFromUDPAddrPort(buf)
		return n, flowKey{client: unmap(from), local: s.local}, err
	}
	n, noob, _, from, err := s.conn.ReadMsgUDPAddrPort(buf, s.oob[:])
	if err != nil {
		return 0, flowKey{}, err
	}
	from = unmap(from)
	return n, flowKey{client: from, local: destination(s.oob[:noob], from.Addr())}, nil
}

// destination reads to which address a packet of from came; zero when nothing
// says so.
func destination(oob []byte, from netip.Addr) netip.Addr {
	if from.Is4() {
		var m ipv4.ControlMessage
		if m.Parse(oob) == nil {
			if a, ok := netip.AddrFromSlice(m.Dst); ok {
				return a.Unmap()
			}
		}
	}
	var m ipv6.ControlMessage
	if m.Parse(oob) == nil {
		if a, ok := netip.AddrFromSlice(m.Dst); ok && a.Unmap().Is4() == from.Is4() {
			return a.Unmap()
		}
	}
	return netip.Addr{}
}

func (s *kernelSocket) replyFrom(key flowKey) []byte {
	switch {
	case s.local.IsValid() || !key.local.IsValid():
		return nil
	case key.local.Is4():
		return (&ipv4.ControlMessage{Src: key.local.AsSlice()}).Marshal()
	}
	return (&ipv6.ControlMessage{Src: key.local.AsSlice()}).Marshal()
}

func (s *kernelSocket) write(p []byte, to netip.AddrPort, reply []byte) error {
	if len(reply) == 0 {
		_, err := s.conn.WriteToUDPAddrPort(p, to)
		return err
	}
	_, _, err := s.conn.WriteMsgUDPAddrPort(p, reply, to)
	for _, noSource := range []error{syscall.EINVAL, syscall.EADDRNOTAVAIL, syscall.ENETUNREACH} {
		if errors.Is(err, noSource) {
			// A broadcast address, or one that is gone. Better from another address
			// than not at all.
			_, err = s.conn.WriteToUDPAddrPort(p, to)
			break
		}
	}
	return err
}

func (s *kernelSocket) close() error   { return s.conn.Close() }
func (s *kernelSocket) addr() net.Addr { return s.conn.LocalAddr() }

func unmap(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
