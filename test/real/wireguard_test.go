package real

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const (
	wgHome  = "10.99.0.1" // in the VPN
	wgPhone = "10.99.0.2"
	wgPort  = "51820"
)

// wgNumber numbers the interfaces of this process: their control sockets lie in
// one directory, whatever the namespace.
var wgNumber atomic.Int32

// A wireguard is one end of a VPN, run by wireguard-go in a namespace.
type wireguard struct {
	t            *testing.T
	ns, name     string
	public, file string // keys; the private one is in the file
}

// newWireguard starts wireguard-go and makes its keys.
func (s *street) newWireguard(ns, dir, addr string) *wireguard {
	s.t.Helper()
	g := &wireguard{t: s.t, ns: ns, name: fmt.Sprintf("sp%d-%d", os.Getpid(), wgNumber.Add(1))}
	key := mustRun(s.t, "wg", "genkey")
	g.file = dir + "/" + g.name + ".key"
	writeFile(s.t, g.file, key)
	g.public = strings.TrimSpace(run(s.t, key, "wg", "pubkey").stdout)
	// "env": in the foreground, and without its advice to use the kernel's.
	start(s.t, "wireguard-go "+addr, append(wrapIn(ns), "env", "LOG_LEVEL=error", "WG_PROCESS_FOREGROUND=1", "wireguard-go", g.name)...)
	eventually(s.t, 10*time.Second, "wireguard-go is there", func() bool {
		return run(s.t, "", append(wrapIn(ns), "wg", "show", g.name)...).code == 0
	})
	s.in(ns, "ip", "addr", "add", addr+"/24", "dev", g.name)
	return g
}

func (g *wireguard) set(args ...string) {
	g.t.Helper()
	mustRun(g.t, append(append(wrapIn(g.ns), "wg", "set", g.name), args...)...)
}

func (g *wireguard) up(mtu int) {
	g.t.Helper()
	mustRun(g.t, append(wrapIn(g.ns), "ip", "link", "set", g.name, "mtu", itoa(mtu), "up")...)
}

// show is a line of `wg show` about the only peer, without its key.
func (g *wireguard) show(what string) string {
	g.t.Helper()
	_, value, _ := strings.Cut(mustRun(g.t, append(wrapIn(g.ns), "wg", "show", g.name, what)...), "\t")
	return strings.TrimSpace(value)
}

var pingLoss = regexp.MustCompile(`([0-9.]+)% packet loss`)

// ping sends packets that must not be cut, as large as the VPN takes.
func (g *wireguard) ping(to string, count, mtu int) {
	g.t.Helper()
	const headers = 28 // IPv4 and ICMP
	var r result
	for range 3 { // a machine that is busy elsewhere may lose one
		r = run(g.t, "", append(wrapIn(g.ns), "ping", "-c", itoa(count), "-i", "0.05", "-W", "2", "-M", "do", "-s", itoa(mtu-headers), to)...)
		if loss := pingLoss.FindStringSubmatch(r.stdout); r.code == 0 && loss != nil && loss[1] == "0" {
			lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
			g.t.Logf("MTU %d: %s", mtu, lines[len(lines)-1])
			return
		}
	}
	g.t.Errorf("ping with MTU %d: %s", mtu, r)
}

// TestWireGuard: a phone's WireGuard reaches the one at home through a udp://
// service, over QUIC and over the fallback: handshake, ping with the largest
// packets, bulk data, and a phone that changes its address.
func TestWireGuard(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			needTools(t, "wireguard-go", "wg", "ping", "curl", "iperf3")
			s := newStreet(t)
			t.Parallel()
			if _, err := os.Stat("/dev/net/tun"); err != nil {
				lack(t, "wireguard-go needs /dev/net/tun: %v", err)
			}
			w := s.settleBy(transport, wgPort+"/udp")
			w.exposePort("vpn", "udp://127.0.0.1:"+wgPort, wgPort)
			home, phone := s.newWireguard(s.home, w.dir, wgHome), s.newWireguard(s.relay, w.dir, wgPhone)
			home.set("listen-port", wgPort, "private-key", home.file, "peer", phone.public, "allowed-ips", wgPhone+"/32")
			phone.set("private-key", phone.file, "peer", home.public, "allowed-ips", wgHome+"/32", "endpoint", relayIP+":"+wgPort)
			const usual = 1420 // WireGuard's own default
			home.up(usual)
			phone.up(usual)
			app := s.serveAt(wgHome + ":8123")

			phone.ping(wgHome, 20, usual)
			for _, g := range []*wireguard{home, phone} {
				if at := g.show("latest-handshakes"); at == "" || at == "0" {
					t.Errorf("no handshake: %q", at)
				}
			}
			if from := home.show("endpoints"); !strings.HasPrefix(from, "127.0.0.1:") {
				t.Errorf("the home sees the phone at %q, not at the agent", from)
			}
			home.ping(wgPhone, 5, usual)
			phone.bulk(app, 8<<20)

			for _, g := range []*wireguard{home, phone} {
				g.up(1340)
			}
			phone.ping(wgHome, 20, 1340)
			phone.bulk(app, 8<<20)

			load := start(t, "iperf3 at home", append(wrapIn(s.home), "iperf3", "--server", "--bind", wgHome, "--port", "5201", "--forceflush")...)
			load.waitFor("Server listening", 10*time.Second)
			s.iperf(wgHome, "10M", "1200", 5)
			s.iperf(wgHome, "10M", "1200", 5, "--reverse")

			before := home.show("endpoints")
			phone.set("listen-port", "40404") // another network, another port
			phone.ping(wgHome, 5, 1340)
			if after := home.show("endpoints"); after == before {
				t.Errorf("the phone moved, and the home still sees it at %s", after)
			}
			if got := w.agentStatus("first").transport(); got != transport {
				t.Errorf("the load moved the home to %q", got)
			}

			// The agent dies and is started again: nobody touches the VPN.
			w.agents["first"].kill()
			w.startAgent("first", wrapIn(s.home), "--transport", transport)
			took := eventually(t, 40*time.Second, "the VPN is back after the agent was", func() bool {
				return run(t, "", append(wrapIn(s.relay), "ping", "-c", "1", "-W", "1", wgHome)...).code == 0
			})
			t.Logf("back %v after the agent was killed", took)
		})
	}
}

// serveAt starts the home app on an address of the home; returns its URL.
func (s *street) serveAt(addr string) string {
	s.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	app := exec.Command("ip", "netns", "exec", s.home, exe)
	app.Env = append(os.Environ(), helperEnv+"="+addr)
	startCmd(s.t, "home app", nil, app).waitFor("home app listens", 10*time.Second)
	return "http://" + addr
}

// bulk moves so many bytes each way through the VPN.
func (g *wireguard) bulk(app string, size int) {
	g.t.Helper()
	curl := append(wrapIn(g.ns), "curl", "-sS", "--fail", "--noproxy", "*", "--max-time", "50")
	down := run(g.t, "", append(curl, "-o", os.DevNull, "-w", "%{size_download} %{speed_download}", fmt.Sprintf("%s/bytes?n=%d", app, size))...)
	var got, speed float64
	if _, err := fmt.Sscan(down.stdout, &got, &speed); err != nil || down.code != 0 || int(got) != size {
		g.t.Errorf("download of %d bytes: %v %s", size, err, down)
	}
	g.t.Logf("down %.0f Mbit/s", 8*speed/1e6)
	up := run(g.t, strings.Repeat("x", size), append(curl, "-T", "-", "-w", "%{speed_upload}", app+"/upload")...)
	if want := fmt.Sprintf("%d <nil>\n", size); up.code != 0 || !strings.HasPrefix(up.stdout, want) {
		g.t.Errorf("upload of %d bytes: %s", size, up)
	} else if _, err := fmt.Sscan(strings.TrimPrefix(up.stdout, want), &speed); err == nil {
		g.t.Logf("up %.0f Mbit/s", 8*speed/1e6)
	}
}
