//go:build linux

package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/protocol/pki"
)

// mosquittoPath is "" where it is not installed.
var mosquittoPath = sync.OnceValue(func() string {
	for _, name := range []string{"mosquitto", "/usr/sbin/mosquitto"} {
		if exe, err := exec.LookPath(name); err == nil {
			return exe
		}
	}
	if !inCI() {
		fmt.Fprintln(os.Stderr, "mosquitto is not installed: its rows are left out, and another broker stands at home")
	}
	return ""
})

// brokerConf is of all brokers here. Without tcp_nodelay mosquitto waits for
// acknowledgements of TCP before it sends the next small packet.
const brokerConf = `
persistence true
persistence_location %[1]s/
user root
set_tcp_nodelay true
max_queued_messages 0
max_inflight_messages 64
allow_anonymous true
`

// bridgeConf joins a home broker to the one on the VPS. Its certificate is
// verified, its name is not: bridges are told an address here.
const bridgeConf = `
connection vps
address %[2]s
cleansession false
bridge_cafile %[1]s/ca.pem
bridge_certfile %[1]s/device.pem
bridge_keyfile %[1]s/device.pem
bridge_insecure true
`

const vpsConf = `
cafile %[1]s/ca.pem
certfile %[1]s/server.pem
keyfile %[1]s/server.pem
require_certificate true
`

// startMosquitto runs a broker with more lines in its configuration.
func (l *lab) startMosquitto(dir, name, lines string) (*process, string, error) {
	addr, err := freePort()
	if err != nil {
		return nil, "", err
	}
	_, port, _ := net.SplitHostPort(addr)
	home := filepath.Join(dir, name)
	conf := fmt.Sprintf(brokerConf, home) + "listener " + port + " 127.0.0.1\n" + lines
	file := home + ".conf"
	if err := errors.Join(os.Mkdir(home, 0o700), os.WriteFile(file, []byte(conf), 0o600)); err != nil {
		return nil, "", err
	}
	p, err := l.start(name, nil, nil, mosquittoPath(), "-c", file)
	if err != nil {
		return nil, "", err
	}
	err = until("mosquitto answers", func(ctx context.Context) error {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			c.Close()
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, p.said())
		p.stop()
	}
	return p, addr, err
}

// freePort is for programs that open their port themselves.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// startHomeBroker runs mosquitto, or what stands in for it.
func (l *lab) startHomeBroker(dir, lines string) (*process, string, error) {
	switch {
	case mosquittoPath() != "":
		return l.startMosquitto(dir, "home", lines)
	case inCI():
		return nil, "", errors.New("mosquitto is not installed: apt-get install mosquitto")
	}
	addr, file, err := inherit()
	if err != nil {
		return nil, "", err
	}
	defer file.Close()
	p, err := l.startSelf("home", "broker", []*os.File{file})
	return p, addr, err
}

// letIn lets everybody do everything.
type letIn struct{ mqtt.HookBase }

func (letIn) ID() string { return "let-in" }

func (letIn) Provides(b byte) bool { return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck }

func (letIn) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

func (letIn) OnACLCheck(*mqtt.Client, string, bool) bool { return true }

// playBroker is the process that stands in for mosquitto, on descriptor 3. It
// runs until it is killed.
func playBroker() error {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s := mqtt.New(&mqtt.Options{Logger: slog.New(slog.DiscardHandler)})
	if err := errors.Join(s.AddHook(new(letIn), nil), s.AddListener(listeners.NewNet("home", l)), s.Serve()); err != nil {
		return err
	}
	select {}
}

// startMosquittos starts the peer: a mosquitto on the VPS that takes devices
// with certificates, and one at home with its own bridge.
func (x *crossing) startMosquittos(dir string) error {
	h, err := x.lab.home()
	if err != nil {
		return err
	}
	key, err := pki.EncodeKey(h.device.PrivateKey)
	if err != nil {
		return err
	}
	err = errors.Join(h.writePEM(dir), os.WriteFile(filepath.Join(dir, "device.pem"), append(pki.EncodeCert(h.device.Leaf), key...), 0o600))
	if err != nil {
		return err
	}
	d, address, err := x.openDetour()
	if err != nil {
		return err
	}
	vps, addr, err := x.lab.startMosquitto(dir, "vps", fmt.Sprintf(vpsConf, dir))
	if err != nil {
		return err
	}
	x.procs, x.hub = append(x.procs, vps), addr
	if d != nil {
		if err := d.start(x.lab, addr, x.way.hold); err != nil {
			return err
		}
		x.detour, x.hub = d.process, address
	}
	// What actions and their states are for an agent are topics for a bridge.
	var rules strings.Builder
	for _, line := range append([]string{"cmnd/# in 1", "stat/# out 1"}, bridgeRules...) {
		fmt.Fprintf(&rules, "topic %s \"\" %s\n", line, prefix)
	}
	home, addr, err := x.lab.startHomeBroker(dir, fmt.Sprintf(bridgeConf, dir, x.hub)+rules.String())
	if err != nil {
		return err
	}
	x.procs, x.home = append(x.procs, home), addr
	x.tls = func(_ context.Context, device string) (*tls.Config, error) {
		cert, err := h.issue(pki.Grant{Profile: pki.Device, Name: device})
		return &tls.Config{RootCAs: h.ca.Pool(), Certificates: []tls.Certificate{cert}}, err
	}
	return x.awaitBridge()
}

// awaitBridge returns when something came across from home.
func (x *crossing) awaitBridge() error {
	up, err := x.atHome("probe", false)
	if err != nil {
		return err
	}
	defer up.close()
	far, err := x.atHub(context.Background(), "", "probe", "", false)
	if err != nil {
		return err
	}
	defer far.close()
	if err := far.subscribe(prefix+"up/probe", 0); err != nil {
		return err
	}
	came := make(chan struct{}, 1)
	go far.receive(func(string, []byte) {
		select {
		case came <- struct{}{}:
		default:
		}
	})
	return until("mosquitto's bridge is joined", func(ctx context.Context) error {
		if err := up.publish("up/probe", nil, 0); err != nil {
			return err
		}
		select {
		case <-came:
			return nil
		default:
			return errors.New("nothing came across yet")
		}
	})
}
