//go:build linux

package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

var (
	everyPeer    = []string{"floor", "haproxy", "quic", "tcp"}
	everyService = []string{"raw", "http", "h2", "pass"}
)

// peers are running programs and the roads through them.
type peers struct {
	procs []*process
	roads []*road
}

func (p *peers) stop() {
	for _, pr := range slices.Backward(p.procs) {
		pr.stop()
	}
}

// road returns nil where a peer has no such road.
func (p *peers) road(service, peer string) *road {
	for _, r := range p.roads {
		if r.service == service && r.peer == peer {
			return r
		}
	}
	return nil
}

// eachRoad runs a sub-benchmark for every road of these services.
func eachRoad(b *testing.B, services []string, run func(*testing.B, *road)) {
	all, err := theLab.peers()
	if err != nil {
		b.Fatal(err)
	}
	for _, s := range services {
		for _, p := range everyPeer {
			if r := all.road(s, p); r != nil {
				b.Run(r.String(), func(b *testing.B) { run(b, r) })
			}
		}
	}
}

// startPeers starts the named ones; quic and tcp share a relay.
func (l *lab) startPeers(which ...string) (*peers, error) {
	h, err := l.home()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(l.dir, "peers-")
	if err != nil {
		return nil, err
	}
	p := &peers{}
	var s *sallyport
	for _, peer := range which {
		switch peer {
		case "floor":
			err = l.startFloor(p, h)
		case "haproxy":
			err = l.startHAProxy(p, h, dir)
		default:
			if s == nil {
				if s, err = l.startRelay(dir); err != nil {
					break
				}
				p.procs = append(p.procs, s.relay)
			}
			err = s.startAgent(p, h, peer)
		}
		if err != nil {
			p.stop()
			return nil, err
		}
	}
	return p, nil
}

func (l *lab) startFloor(p *peers, h *home) error {
	for service, target := range map[string]string{"raw": h.raw, "http": h.http} {
		addr, file, err := inherit()
		if err != nil {
			return err
		}
		proc, err := l.startSelf("floor", "splice", []*os.File{file}, targetEnv+"="+target)
		file.Close()
		if err != nil {
			return err
		}
		p.procs = append(p.procs, proc)
		p.roads = append(p.roads, &road{peer: "floor", service: service, addr: addr, procs: []*process{proc}})
	}
	return nil
}

// inherit makes a listener for a child.
func inherit() (addr string, file *os.File, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	defer l.Close()
	file, err = l.(*net.TCPListener).File()
	return l.Addr().String(), file, err
}

const haproxyConf = `
global
	maxconn 4000
defaults
	timeout connect 10s
	timeout client 10m
	timeout server 10m
listen raw
	mode tcp
	bind fd@3 ssl crt %[1]s/server.pem ca-file %[1]s/ca.pem verify required
	server home %[2]s
listen http
	mode http
	http-reuse always
	bind fd@4 ssl crt %[1]s/server.pem ca-file %[1]s/ca.pem verify required alpn h2,http/1.1
	server home %[3]s
`

func (l *lab) startHAProxy(p *peers, h *home, dir string) error {
	exe, err := exec.LookPath("haproxy")
	if err != nil {
		exe, err = exec.LookPath("/usr/sbin/haproxy")
	}
	switch {
	case err != nil && inCI():
		return errors.New("haproxy is not installed: apt-get install haproxy")
	case err != nil:
		fmt.Fprintln(os.Stderr, "haproxy is not installed: its rows are left out")
		return nil
	}
	if err := h.writePEM(dir); err != nil {
		return err
	}
	conf := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(conf, fmt.Appendf(nil, haproxyConf, dir, h.raw, h.http), 0o600); err != nil {
		return err
	}
	var addrs [2]string
	var files [2]*os.File
	for i := range addrs {
		if addrs[i], files[i], err = inherit(); err != nil {
			return err
		}
		defer files[i].Close()
	}
	proc, err := l.start("haproxy", files[:], nil, exe, "-q", "-db", "-f", conf)
	if err != nil {
		return err
	}
	p.procs = append(p.procs, proc)
	client := h.visitorTLS("home." + domain)
	for service, addr := range map[string]string{"raw": addrs[0], "http": addrs[1], "h2": addrs[1]} {
		r := &road{peer: "haproxy", service: service, addr: addr, tls: client, procs: []*process{proc}}
		p.roads = append(p.roads, r)
	}
	if err := until("haproxy answers", func(ctx context.Context) error {
		vs, err := p.road("raw", "haproxy").visit(ctx, 1)
		closeAll(vs)
		return err
	}); err != nil {
		return fmt.Errorf("%w\n%s", err, proc.said())
	}
	return nil
}

// visitorTLS is for roads that end in a certificate of the home's CA.
func (h *home) visitorTLS(name string) *tls.Config {
	return &tls.Config{ServerName: name, RootCAs: h.ca.Pool(), Certificates: []tls.Certificate{h.device}}
}
