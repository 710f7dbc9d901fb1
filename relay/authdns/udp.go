package authdns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// maxAsk is more than any question has.
const maxAsk = 4096

const (
	minDelay = 5 * time.Millisecond
	maxDelay = time.Second
)

// serveUDP starts as many readers as there are processors; all of them read from
// one socket, and an answer takes no waiting, so that no queue can grow.
func (s *Server) serveUDP(ctx context.Context, conn net.PacketConn, loops *sync.WaitGroup, fail func(error)) {
	sock := socketOf(conn)
	for range runtime.GOMAXPROCS(0) {
		loops.Go(func() {
			if err := s.readUDP(ctx, sock); err != nil {
				fail(fmt.Errorf("read DNS questions on %s/udp: %w", conn.LocalAddr(), err))
			}
		})
	}
}

func (s *Server) readUDP(ctx context.Context, sock socket) error {
	buf := make([]byte, maxAsk)
	delay := time.Duration(0)
	for {
		n, from, back, err := sock.read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			delay = s.backOff(ctx, delay, "udp", err)
			continue
		}
		delay = 0
		if n == len(buf) || from.Port() == 0 {
			s.counts.malformed.Add(1)
			continue
		}
		if out := s.reply(buf[:n], from.Addr(), byUDP); out != nil {
			_ = back(out) // whoever got no answer asks again
		}
	}
}

// backOff waits after an error that may pass, longer each time.
func (s *Server) backOff(ctx context.Context, delay time.Duration, network string, err error) time.Duration {
	delay = min(max(2*delay, minDelay), maxDelay)
	s.logger.Warn("dns socket failed", "network", network, "err", err, "retry_in", delay)
	select {
	case <-time.After(delay):
	case <-ctx.Done():
	}
	return delay
}

// A socket reads a packet and knows how to send one back.
type socket interface {
	read(buf []byte) (n int, from netip.AddrPort, back func([]byte) error, err error)
}

// socketOf makes the kernel tell the address that each packet came to, so that
// the answer leaves from there: on a machine with several, askers drop answers
// from another one than they asked. A kernel that does not know this answers
// from where it likes, as does a socket that is no net.UDPConn.
func socketOf(conn net.PacketConn) socket {
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return plainSocket{conn}
	}
	err6 := ipv6.NewPacketConn(udp).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	err4 := ipv4.NewPacketConn(udp).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
	if err4 != nil && err6 != nil {
		return plainSocket{conn}
	}
	return udpSocket{udp}
}

type udpSocket struct{ conn *net.UDPConn }

func (u udpSocket) read(buf []byte) (int, netip.AddrPort, func([]byte) error, error) {
	n, session, err := dns.ReadFromSessionUDP(u.conn, buf)
	if err != nil {
		return 0, netip.AddrPort{}, nil, err
	}
	from := session.RemoteAddr().(*net.UDPAddr).AddrPort()
	return n, from, func(out []byte) error {
		_, err := dns.WriteToSessionUDP(u.conn, out, session)
		return err
	}, nil
}

type plainSocket struct{ conn net.PacketConn }

func (p plainSocket) read(buf []byte) (int, netip.AddrPort, func([]byte) error, error) {
	n, addr, err := p.conn.ReadFrom(buf)
	if err != nil {
		return 0, netip.AddrPort{}, nil, err
	}
	from, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return 0, netip.AddrPort{}, nil, fmt.Errorf("packet from %q, which is no address: %w", addr, err)
	}
	return n, from, func(out []byte) error {
		_, err := p.conn.WriteTo(out, addr)
		return err
	}, nil
}
