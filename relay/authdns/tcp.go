package authdns

import (
	"container/list"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// acceptTCP hands every connection to a goroutine of its own.
func (s *Server) acceptTCP(ctx context.Context, l net.Listener, loops *sync.WaitGroup, fail func(error)) {
	delay := time.Duration(0)
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return
		case errors.Is(err, net.ErrClosed):
			fail(fmt.Errorf("accept DNS connections on %s/tcp: %w", l.Addr(), err))
			return
		case err != nil:
			delay = s.backOff(ctx, delay, "tcp", err)
			continue
		}
		delay = 0
		from, err := netip.ParseAddrPort(conn.RemoteAddr().String())
		if err != nil {
			_ = conn.Close()
			continue
		}
		m := s.conns.admit(conn, networkOf(from.Addr()))
		if m == nil {
			_ = conn.Close()
			continue
		}
		loops.Go(func() {
			defer s.conns.leave(m)
			s.serveConn(conn, from.Addr(), m)
		})
	}
}

// serveConn answers the questions of one connection in turn (RFC 7766). Each has
// to arrive whole within the idle limit.
func (s *Server) serveConn(conn net.Conn, from netip.Addr, m *member) {
	defer conn.Close()
	idle := s.config.Limits.Idle
	buf := make([]byte, 2, 514)
	for {
		if err := conn.SetDeadline(time.Now().Add(idle)); err != nil {
			return
		}
		if _, err := io.ReadFull(conn, buf[:2]); err != nil {
			return
		}
		size := int(binary.BigEndian.Uint16(buf[:2]))
		if size < headerSize || size > maxAsk {
			s.counts.malformed.Add(1)
			return
		}
		if cap(buf) < size {
			buf = make([]byte, size)
		}
		if _, err := io.ReadFull(conn, buf[:size]); err != nil {
			return
		}
		out := s.reply(buf[:size], from, byTCP)
		if out == nil {
			return // no question, or too many: a resolver would wait for nothing
		}
		s.conns.touch(m)
		// One write: two would be two packets, and with a delay between.
		framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(out)), uint16(len(out)))
		if _, err := conn.Write(append(framed, out...)); err != nil {
			return
		}
	}
}

// A crowd is the TCP connections. When there are too many, the one that has asked
// nothing for the longest time makes room: silent connections keep nobody out.
type crowd struct {
	limits Limits

	mu    sync.Mutex // guards all below
	order list.List  // of *member, the one that asked last behind
	per   map[netip.Prefix]int
	ended bool
}

type member struct {
	conn    net.Conn
	network netip.Prefix
	at      *list.Element // nil: out of the crowd
}

func newCrowd(limits Limits) *crowd { return &crowd{limits: limits, per: map[netip.Prefix]int{}} }

// admit takes a connection in. nil: it is to be closed.
func (c *crowd) admit(conn net.Conn, network netip.Prefix) *member {
	c.mu.Lock()
	if c.ended || c.per[network] >= c.limits.TCPPerSource {
		c.mu.Unlock()
		return nil
	}
	var out net.Conn
	if c.order.Len() >= c.limits.TCPConns {
		oldest := c.order.Front().Value.(*member)
		c.remove(oldest)
		out = oldest.conn
	}
	m := &member{conn: conn, network: network}
	m.at = c.order.PushBack(m)
	c.per[network]++
	c.mu.Unlock()
	if out != nil {
		_ = out.Close()
	}
	return m
}

// touch says that m has asked something.
func (c *crowd) touch(m *member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.at != nil {
		c.order.MoveToBack(m.at)
	}
}

func (c *crowd) leave(m *member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(m)
}

// remove takes m out, if it is in; mu is held.
func (c *crowd) remove(m *member) {
	if m.at == nil {
		return
	}
	c.order.Remove(m.at)
	m.at = nil
	if c.per[m.network]--; c.per[m.network] == 0 {
		delete(c.per, m.network)
	}
}

func (c *crowd) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.order.Len()
}

// end closes all connections and takes no more.
func (c *crowd) end() {
	c.mu.Lock()
	c.ended = true
	var out []net.Conn
	for e := c.order.Front(); e != nil; e = e.Next() {
		out = append(out, e.Value.(*member).conn)
	}
	c.mu.Unlock()
	for _, conn := range out {
		_ = conn.Close()
	}
}
