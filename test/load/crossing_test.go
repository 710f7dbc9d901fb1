//go:build linux

package load

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport/agent"
	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/bridge"
	"github.com/sallyport/sallyport/mqttbridge/executor"
)

// way says how a crossing is made: by a relay and an agent over quic or tcp, or
// by mosquitto and its bridge; and how long everything takes one way.
type way struct {
	peer string
	hold time.Duration
}

func (w way) String() string {
	if w.hold == 0 {
		return "loopback"
	}
	return fmt.Sprintf("%d ms each way", w.hold.Milliseconds())
}

// crossing joins a hub on a VPS to a broker at home. All of it stands on
// loopback; with a way that takes time, agent, bridge and devices reach the hub
// by a detour.
type crossing struct {
	way    way
	lab    *lab
	hub    string     // where devices and phones connect
	home   string     // where the home broker listens
	procs  []*process // all that a message passes
	detour *process   // nil without one
	tls    func(ctx context.Context, device string) (*tls.Config, error)

	// Of a relay and an agent only.
	relay *sallyport
	agent *control.Client

	buttons []button

	mu      sync.Mutex // guards devices
	devices map[string]*tls.Config
}

// prefix is where the hub has the home's topics.
const prefix = "home/home/"

// bridgeRules are those of both peers; their words are the same.
var bridgeRules = []string{"up/# out 1", "down/# in 1"}

// doors are how many things at home can be commanded at the same time.
const doors = 16

// householdConfig is the MQTT side of an agent of the test binary;
// householdYAML is the same in the words of its file.
func householdConfig(broker string) (*agent.MQTT, []executor.Action, error) {
	m := &agent.MQTT{Broker: bridge.Broker{URL: broker}}
	for _, line := range bridgeRules {
		rule, err := mqttbridge.ParseRule(line)
		if err != nil {
			return nil, nil, err
		}
		m.Rules = append(m.Rules, rule)
	}
	a := executor.Action{
		Name: "door", Topic: "cmnd/door", Confirm: mqttbridge.ConfirmNone, Values: map[string]string{}, State: "stat/door",
		Ack: &executor.Ack{Topic: "stat/door", Values: map[string]string{}},
	}
	for i := range doors {
		a.Values[doorName(i)], a.Ack.Values[doorName(i)] = doorName(i), doorName(i)
	}
	return m, []executor.Action{a}, nil
}

func householdYAML(broker string) []byte {
	text := fmt.Sprintf("version: 1\nmqtt:\n  broker: %s\n  topics:\n", broker)
	for _, line := range bridgeRules {
		text += "    - \"" + line + "\"\n"
	}
	values := ""
	for i := range doors {
		values += fmt.Sprintf("%[1]s: %[1]s, ", doorName(i))
	}
	return fmt.Appendf(nil, `%sactions:
  - name: door
    topic: cmnd/door
    confirm: none
    values: {%[2]s}
    ack: {topic: stat/door, values: {%[2]s}}
    state: stat/door
`, text, values)
}

func doorName(i int) string { return fmt.Sprintf("d%d", i) }

// crossing returns the one for a way, started when it is first asked for. nil:
// there is no mosquitto here.
func (l *lab) crossing(w way) (*crossing, error) {
	if x, ok := l.crossings[w]; ok {
		return x, nil
	}
	dir, err := os.MkdirTemp(l.dir, "x-")
	if err != nil {
		return nil, err
	}
	x := l.newCrossing(w)
	if w.peer == "mosquitto" {
		if mosquittoPath() == "" {
			l.crossings[w] = nil
			return nil, nil
		}
		err = x.startMosquittos(dir)
	} else {
		err = x.startHousehold(dir)
	}
	if err != nil {
		for _, p := range slices.Backward(x.procs) {
			err = fmt.Errorf("%w\n%s: %s", err, p.name, p.said())
			p.stop()
		}
		return nil, err
	}
	l.crossings[w] = x
	return x, nil
}

func (l *lab) newCrossing(w way) *crossing {
	return &crossing{way: w, lab: l, devices: make(map[string]*tls.Config)}
}

// startHousehold starts a relay, an agent, and the broker at home.
func (x *crossing) startHousehold(dir string) error {
	d, address, err := x.openDetour()
	if err != nil {
		return err
	}
	if err := x.startHub(dir, address, profiling()); err != nil {
		return err
	}
	if d != nil {
		if err := d.start(x.lab, x.relay.addr, x.way.hold); err != nil {
			return err
		}
		x.detour = d.process
	}
	broker, addr, err := x.lab.startHomeBroker(dir, "")
	if err != nil {
		return err
	}
	x.procs, x.home = append(x.procs, broker), addr
	return x.startAgent(dir)
}

// startHub starts a relay, whose hub devices reach at the address, if one is
// given.
func (x *crossing) startHub(dir, address string, fromTest bool) (err error) {
	if x.relay, err = x.lab.startRelayAt(dir, address, fromTest); err != nil {
		return err
	}
	x.procs = append(x.procs, x.relay.relay)
	x.hub = cmp.Or(address, x.relay.addr)
	x.tls = func(ctx context.Context, device string) (*tls.Config, error) {
		cert, err := x.relay.newDevice(ctx, device)
		return &tls.Config{RootCAs: x.relay.roots, Certificates: []tls.Certificate{cert}}, err
	}
	return nil
}

// openDetour returns nil and no address when the way takes no time.
func (x *crossing) openDetour() (*detour, string, error) {
	if x.way.hold == 0 {
		return nil, "", nil
	}
	d, err := openDetour()
	if err != nil {
		return nil, "", err
	}
	return d, d.addr, nil
}

// startAgent returns when the bridge is joined on both sides.
func (x *crossing) startAgent(dir string) error {
	token, err := x.relay.token(context.Background(), "*.home."+domain)
	if err != nil {
		return err
	}
	data, file, config := filepath.Join(dir, "agent"), filepath.Join(dir, "token"), filepath.Join(dir, "agent.yaml")
	broker := "tcp://" + x.home
	if err := errors.Join(os.WriteFile(file, []byte(token), 0o600), os.WriteFile(config, householdYAML(broker), 0o600)); err != nil {
		return err
	}
	var proc *process
	if profiling() {
		proc, err = x.lab.startSelf("agent", "agent", nil, dataEnv+"="+data, tokenEnv+"="+file, carrierEnv+"="+x.way.peer, brokerEnv+"="+broker)
	} else {
		proc, err = x.lab.startBinary("agent", "agent", "up", "--data", data, "--token-file", file, "--transport", x.way.peer, "--name", "home", "--config", config)
	}
	if err != nil {
		return err
	}
	x.procs = append(x.procs, proc)
	x.agent = control.NewClient(data)
	return until("the bridge is joined", func(ctx context.Context) error {
		st, err := x.agent.Status(ctx)
		if err == nil && (st.MQTT == nil || !st.MQTT.BrokerConnected || !st.MQTT.Link) {
			err = fmt.Errorf("the agent is %s: %+v; last error: %s", st.State, st.MQTT, st.Error)
		}
		return err
	})
}

// config is a device's side of TLS; the device is made when it is new.
func (x *crossing) config(ctx context.Context, device, host string) (*tls.Config, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	c := x.devices[device]
	if c == nil {
		var err error
		if c, err = x.tls(ctx, device); err != nil {
			return nil, fmt.Errorf("make device %s: %w", device, err)
		}
		x.devices[device] = c
	}
	c = c.Clone()
	c.ServerName = host + "." + domain
	return c, nil
}

// atHub connects a device to the hub, from an address of this machine or from
// any. client is "" or goes on with "-".
func (x *crossing) atHub(ctx context.Context, from, device, client string, kept bool) (*mqttClient, error) {
	ctx, cancel := context.WithTimeout(ctx, opLimit)
	defer cancel()
	conf, err := x.config(ctx, device, "mqtt")
	if err != nil {
		return nil, err
	}
	d := &tls.Dialer{Config: conf, NetDialer: new(net.Dialer)}
	if from != "" {
		d.NetDialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c, err := d.DialContext(ctx, "tcp", x.hub)
	if err != nil {
		return nil, fmt.Errorf("device %s to the hub: %w", device, err)
	}
	return mqttOver(c, device+client, kept)
}

// atHome connects a thing to the home broker.
func (x *crossing) atHome(client string, kept bool) (*mqttClient, error) {
	c, err := net.Dial("tcp", x.home)
	if err != nil {
		return nil, err
	}
	return mqttOver(c, client, kept)
}
