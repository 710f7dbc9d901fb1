//go:build linux

package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/relay/admin"
)

// forwardRole is the floor of UDP: see playForward.
const forwardRole = "forward"

// The role is played before TestMain looks at those that it knows.
func init() {
	if os.Getenv(roleEnv) != forwardRole {
		return
	}
	fmt.Fprintln(os.Stderr, playForward(os.Getenv(targetEnv)))
	os.Exit(1)
}

// udpRoads are the ways of packets to a home: a forwarder that does nothing else
// (one hop), and a relay and an agent over either transport (two hops).
type udpRoads struct {
	roads []*road
	homes map[*road]*net.UDPConn // where its packets arrive
}

// startUDP starts them all.
var startUDP = sync.OnceValues(func() (*udpRoads, error) {
	l := theLab
	dir, err := os.MkdirTemp(l.dir, "udp-")
	if err != nil {
		return nil, err
	}
	u := &udpRoads{homes: map[*road]*net.UDPConn{}}
	if err := u.startFloor(l); err != nil {
		return nil, err
	}
	s, err := l.startRelay(dir)
	if err != nil {
		return nil, err
	}
	for _, carrier := range []string{"quic", "tcp"} {
		if err := u.startAgent(s, carrier); err != nil {
			return nil, err
		}
	}
	return u, nil
})

func (u *udpRoads) add(r *road) (home string, err error) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return "", err
	}
	_ = c.SetReadBuffer(4 << 20) // the load itself shall lose nothing
	u.roads, u.homes[r] = append(u.roads, r), c
	return c.LocalAddr().String(), nil
}

func (u *udpRoads) startFloor(l *lab) error {
	r := &road{peer: "floor", service: "udp"}
	home, err := u.add(r)
	if err != nil {
		return err
	}
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	defer front.Close()
	_ = front.SetReadBuffer(2 << 20) // as the relay's
	file, err := front.File()
	if err != nil {
		return err
	}
	defer file.Close()
	r.addr = front.LocalAddr().String()
	proc, err := l.startSelf("forward", forwardRole, []*os.File{file}, targetEnv+"="+home)
	r.procs = []*process{proc}
	return err
}

// startAgent starts an agent over one transport with a udp:// service.
func (u *udpRoads) startAgent(s *sallyport, carrier string) error {
	ctx := context.Background()
	port, err := freeUDPPort()
	if err != nil {
		return err
	}
	t, err := s.admin.NewToken(ctx, admin.TokenRequest{Hosts: []string{"*.udp-" + carrier + "." + domain}, Ports: []string{fmt.Sprintf("%d/udp", port)}})
	if err != nil {
		return err
	}
	data := filepath.Join(s.dir, "agent-"+carrier)
	file := data + ".token"
	if err := os.WriteFile(file, []byte(t.Token), 0o600); err != nil {
		return err
	}
	var proc *process
	if profiling() {
		proc, err = s.lab.startSelf("agent", "agent", nil, dataEnv+"="+data, tokenEnv+"="+file, carrierEnv+"="+carrier)
	} else {
		proc, err = s.lab.startBinary("agent", "agent", "up", "--data", data, "--token-file", file, "--transport", carrier)
	}
	if err != nil {
		return err
	}
	r := &road{peer: carrier, service: "udp", addr: fmt.Sprintf("127.0.0.1:%d", port), procs: []*process{s.relay, proc}}
	home, err := u.add(r)
	if err != nil {
		return err
	}
	agent := control.NewClient(data)
	err = until("the agent connects", func(ctx context.Context) error {
		st, err := agent.Status(ctx)
		if err == nil && (st.Link == nil || st.Link.Transport != carrier) {
			err = fmt.Errorf("the agent is %s; last error: %s", st.State, st.Error)
		}
		return err
	})
	if err == nil {
		_, err = agent.Expose(ctx, control.Service{Name: "load", Target: "udp://" + home, Port: port, Auth: protocol.AuthNone})
	}
	if err != nil {
		return fmt.Errorf("agent over %s: %w\n%s", carrier, err, proc.said())
	}
	return nil
}

// freeUDPPort was free a moment ago.
func freeUDPPort() (uint16, error) {
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
}

// playForward takes packets on descriptor 3 and sends each on, with a socket for
// each visitor, as any NAT or port forwarder in user space does.
func playForward(target string) error {
	pc, err := net.FilePacketConn(os.NewFile(3, "socket"))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	front := pc.(*net.UDPConn)
	home, err := net.ResolveUDPAddr("udp4", target)
	if err != nil {
		return err
	}
	visitors := map[string]*net.UDPConn{}
	buf := make([]byte, 1<<16)
	for {
		n, from, err := front.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		back := visitors[from.String()]
		if back == nil {
			if back, err = net.DialUDP("udp4", nil, home); err != nil {
				return err
			}
			_ = back.SetReadBuffer(2 << 20)
			visitors[from.String()] = back
			go func() {
				buf := make([]byte, 1<<16)
				for {
					n, err := back.Read(buf)
					if err != nil {
						return
					}
					_, _ = front.WriteToUDPAddrPort(buf[:n], from)
				}
			}()
		}
		if _, err := back.Write(buf[:n]); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "refused") {
			return err
		}
	}
}
