//go:build linux

package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// A detour is an address on the way to another one: TCP and UDP come through a
// process that holds everything for a while, in both directions. What a real
// line does at its start, the first round trip of TCP, is missing.
type detour struct {
	addr    string
	tcp     *os.File
	udp     *os.File
	process *process
}

// openDetour takes a port; nothing passes before start.
func openDetour() (*detour, error) {
	addr, tcp, err := inherit()
	if err != nil {
		return nil, err
	}
	u, err := net.ListenPacket("udp", addr)
	if err != nil {
		tcp.Close()
		return nil, err
	}
	defer u.Close()
	udp, err := u.(*net.UDPConn).File()
	if err != nil {
		tcp.Close()
		return nil, err
	}
	return &detour{addr: addr, tcp: tcp, udp: udp}, nil
}

func (d *detour) start(l *lab, target string, hold time.Duration) (err error) {
	defer d.tcp.Close()
	defer d.udp.Close()
	d.process, err = l.startSelf("detour", "detour", []*os.File{d.tcp, d.udp}, targetEnv+"="+target, holdEnv+"="+hold.String())
	return err
}

// playDetour is the process: TCP on descriptor 3, UDP on 4.
func playDetour(target, hold string) error {
	d, err := time.ParseDuration(hold)
	if err != nil {
		return err
	}
	l, err := net.FileListener(os.NewFile(3, "tcp"))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	u, err := net.FilePacketConn(os.NewFile(4, "udp"))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	go detourPackets(u.(*net.UDPConn), target, d)
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go detourBytes(c.(*net.TCPConn), target, d)
	}
}

// held is what waits for its time.
type held struct {
	due  time.Time
	data []byte
}

// release passes on what comes from queue when its time has come.
func release(queue <-chan held, pass func([]byte) error) error {
	for h := range queue {
		time.Sleep(time.Until(h.due))
		if err := pass(h.data); err != nil {
			return err
		}
	}
	return nil
}

// detourPackets has a socket to the target for each visitor.
func detourPackets(u *net.UDPConn, target string, hold time.Duration) {
	_ = u.SetReadBuffer(4 << 20)
	to := make(map[netip.AddrPort]chan held)
	buf := make([]byte, 64<<10)
	for {
		n, from, err := u.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		q := to[from]
		if q == nil {
			c, err := net.Dial("udp", target)
			if err != nil {
				continue
			}
			_ = c.(*net.UDPConn).SetReadBuffer(4 << 20)
			q = make(chan held, 1<<14)
			to[from] = q
			go release(q, func(b []byte) error { _, _ = c.Write(b); return nil })
			back := make(chan held, 1<<14)
			go release(back, func(b []byte) error { _, _ = u.WriteToUDPAddrPort(b, from); return nil })
			go func() {
				buf := make([]byte, 64<<10)
				for {
					n, err := c.Read(buf)
					if errors.Is(err, net.ErrClosed) {
						return
					}
					if err == nil {
						offer(back, hold, buf[:n])
					}
				}
			}()
		}
		offer(q, hold, buf[:n])
	}
}

// offer drops what finds no room, as a line does.
func offer(q chan<- held, hold time.Duration, b []byte) {
	select {
	case q <- held{time.Now().Add(hold), append([]byte(nil), b...)}:
	default:
	}
}

func detourBytes(a *net.TCPConn, target string, hold time.Duration) {
	defer a.Close()
	c, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	b := c.(*net.TCPConn)
	defer b.Close()
	var both sync.WaitGroup
	both.Go(func() { detourOneWay(a, b, hold) })
	both.Go(func() { detourOneWay(b, a, hold) })
	both.Wait()
}

func detourOneWay(from, to *net.TCPConn, hold time.Duration) {
	q := make(chan held, 1<<12) // what a line holds; then the sender waits
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		if release(q, func(b []byte) error { _, err := to.Write(b); return err }) != nil {
			from.Close()
			return
		}
		_ = to.CloseWrite() // the other end sees it
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			select {
			case q <- held{time.Now().Add(hold), append([]byte(nil), buf[:n]...)}:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			close(q)
			<-ctx.Done()
			return
		}
	}
}
