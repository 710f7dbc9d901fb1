package real

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// rulesYAML lets notes in and sensors out.
const rulesYAML = "  topics:\n    - notes/# in\n    - sensors/# out\n"

// hubConnections is how many MQTT connections the relay has.
func (w *world) hubConnections() int {
	w.t.Helper()
	r := run(w.t, "", binary, "status", "--json", "--data", w.relayDir())
	var st struct {
		Relay struct {
			MQTT struct {
				Connections int `json:"connections"`
			} `json:"mqtt"`
		} `json:"relay"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil {
		w.t.Fatalf("status: %v\n%s", err, r)
	}
	return st.Relay.MQTT.Connections
}

// TestMosquittoClients: Mosquitto's own tools as devices, with the device
// certificate and nothing else. What they publish reaches home and back; foreign
// client ids and topics do not; a revoked device is off within a second, and what
// it may not do otherwise stays undone.
func TestMosquittoClients(t *testing.T) {
	m := newMosquitto(t)
	w := newWorld(t)
	w.mqttHome("kitchen", m, rulesYAML)
	anna, ben := w.device("anna"), w.device("ben")

	home := m.sub("notes/#")
	sub := start(t, "mosquitto_sub as anna", w.withHosts(append([]string{"stdbuf", "-oL"},
		w.hubArgs(anna, "mosquitto_sub", "-i", "anna-sub", "-V", "5", "-q", "1", "-v", "-t", "home/kitchen/#", "-d")...)...)...)
	sub.waitFor("Subscribed", 10*time.Second)
	sub.waitFor(`home/kitchen/bridge/state {"online":true`, 10*time.Second)

	mustRun(t, w.withHosts(w.hubArgs(ben, "mosquitto_pub", "-i", "ben", "-V", "311", "-q", "1", "-t", "home/kitchen/notes/door", "-m", "hello from ben")...)...)
	home.waitFor("notes/door hello from ben", 10*time.Second)
	sub.waitFor("home/kitchen/notes/door hello from ben", 10*time.Second)
	m.pub("sensors/attic", "21.5")
	sub.waitFor("home/kitchen/sensors/attic 21.5", 10*time.Second)

	for what, args := range map[string][]string{
		"a foreign client id":    {"mosquitto_pub", "-i", "anna", "-q", "1", "-t", "home/kitchen/notes/x", "-m", "x"},
		"a topic outside home/":  {"mosquitto_pub", "-i", "ben", "-V", "5", "-q", "1", "-t", "other/x", "-m", "x"},
		"a will outside home/":   {"mosquitto_pub", "-i", "ben", "-V", "5", "-q", "1", "-t", "home/kitchen/notes/x", "-m", "x", "--will-topic", "other/x", "--will-payload", "x"},
		"the bridge's own topic": {"mosquitto_pub", "-i", "ben", "-V", "5", "-q", "1", "-r", "-t", "home/kitchen/bridge/state", "-m", "x"},
	} {
		if r := run(t, "", w.withHosts(w.hubArgs(ben, args[0], args[1:]...)...)...); r.code == 0 && !strings.Contains(r.stderr, "Not authorized") {
			t.Errorf("%s was taken: %s", what, r)
		}
	}
	for _, filter := range []string{"#", "$SYS/#", "+/kitchen/#"} {
		r := runFor(t, 20*time.Second, "", w.withHosts(w.hubArgs(ben, "mosquitto_sub", "-i", "ben", "-V", "5", "-q", "1", "-W", "3", "-t", filter)...)...)
		if !strings.Contains(r.stderr+r.stdout, "denied") && !strings.Contains(r.stderr+r.stdout, "authorized") && r.code == 0 {
			t.Errorf("a subscription to %s was granted: %s", filter, r)
		}
	}
	if n := w.hubConnections(); n != 1 {
		t.Errorf("%d connections at the hub, want anna's", n)
	}
	began := time.Now()
	w.revoke(anna)
	eventually(t, 5*time.Second, "anna's connection is gone", func() bool { return w.hubConnections() == 0 })
	if took := time.Since(began); took > 3*time.Second { // the status command takes its time, too
		t.Errorf("that took %v", took)
	}
	if r := run(t, "", w.withHosts(w.hubArgs(anna, "mosquitto_pub", "-i", "anna", "-q", "1", "-t", "home/kitchen/notes/x", "-m", "revoked")...)...); r.code == 0 {
		t.Errorf("a revoked device published: %s", r)
	}

	// The protocol belongs to one host, and the host to those with a certificate.
	for _, c := range []struct {
		host, alpn string
		d          *device
	}{{"enroll", "mqtt", nil}, {"home", "mqtt", &ben}, {"mqtt", "mqtt", nil}, {"mqtt", "h2", &ben}} {
		args := []string{"openssl", "s_client", "-connect", w.listen, "-servername", host(c.host), "-alpn", c.alpn, "-CAfile", w.roots, "-ign_eof"}
		if c.d != nil {
			args = append(args, "-cert", c.d.cert, "-key", c.d.key)
		}
		if r := runFor(t, 15*time.Second, "", args...); r.code == 0 {
			t.Errorf("ALPN %s at %s was served: %s", c.alpn, c.host, r)
		}
	}
	if out := home.out.String(); strings.Contains(out, "revoked") || strings.Contains(out, "notes/x") {
		t.Errorf("something came home that should not have: %s", out)
	}
}

// TestAcknowledgedSurvivesKill: what the hub has acknowledged towards a home
// that is away arrives there after a kill of the relay, all of it, in order.
func TestAcknowledgedSurvivesKill(t *testing.T) {
	m := newMosquitto(t)
	w := newWorld(t)
	w.mqttHome("kitchen", m, rulesYAML)
	anna := w.device("anna")
	home := m.sub("notes/#")
	w.agents["kitchen"].stop()
	const n = 300
	var lines strings.Builder
	for i := range n {
		fmt.Fprintf(&lines, "note %d.\n", i)
	}
	r := runFor(t, 60*time.Second, lines.String(), w.withHosts(w.hubArgs(anna, "mosquitto_pub", "-i", "anna", "-q", "1", "-t", "home/kitchen/notes/list", "-l")...)...)
	if r.code != 0 {
		t.Fatal(r)
	}
	w.relay.kill()
	w.startRelay()
	w.startAgent("kitchen", nil, "--config", w.file("kitchen.yaml"))
	home.waitFor(fmt.Sprintf("note %d.", n-1), 60*time.Second)
	next := 0
	for line := range strings.Lines(home.out.String()) {
		var i int
		if k := strings.Index(line, "notes/list note "); k < 0 {
			continue
		} else if _, err := fmt.Sscanf(line[k:], "notes/list note %d.", &i); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		switch {
		case i == next:
			next++
		case i > next:
			t.Fatalf("note %d came before %d", i, next)
		}
	}
	if next != n {
		t.Errorf("%d of %d came", next, n)
	}
}

// mqttJS connects in both versions and both ways and tells what it saw.
const mqttJS = `
const mqtt = require('mqtt'), fs = require('fs')
const [, , port, ca, cert, key] = process.argv
const tls = { ca: fs.readFileSync(ca), cert: fs.readFileSync(cert), key: fs.readFileSync(key), rejectUnauthorized: true }
const session = (name, url, options) => new Promise((done, fail) => {
  const c = mqtt.connect(url, { ...tls, clientId: 'laptop-' + name, reconnectPeriod: 0, connectTimeout: 10000, ...options })
  c.on('error', fail)
  c.on('close', () => fail(new Error(name + ': closed')))
  c.on('connect', () => c.subscribe('home/kitchen/notes/js-' + name, { qos: 1 }, (err, granted) => {
    if (err) return fail(err)
    c.publish('home/kitchen/notes/js-' + name, 'hello from ' + name, { qos: 1 }, err => err && fail(err))
  }))
  c.on('message', (topic, payload) => { console.log(name, topic, payload.toString()); c.removeAllListeners('close'); c.end(false, {}, done) })
})
const host = 'mqtt.sally.test:' + port
const all = async () => {
  await session('v4', 'mqtts://' + host, { protocolVersion: 4 })
  await session('v5', 'mqtts://' + host, { protocolVersion: 5 })
  await session('alpn', 'mqtts://' + host, { protocolVersion: 5, ALPNProtocols: ['mqtt'] })
  // Browsers offer http/1.1 by themselves; without it the hub expects MQTT.
  await session('wss', 'wss://' + host + '/mqtt', { protocolVersion: 5, wsOptions: { ...tls, ALPNProtocols: ['http/1.1'] } })
}
all().then(() => console.log('all held'), e => { console.error(e); process.exit(1) })
`

// TestMQTTjs: another implementation, over TLS and over WebSockets.
func TestMQTTjs(t *testing.T) {
	needTools(t, "node")
	if out, err := exec.Command("node", "-e", "require('mqtt')").CombinedOutput(); err != nil {
		lack(t, "MQTT.js (npm install mqtt, NODE_PATH): %s", tail(string(out), 200))
	}
	m := newMosquitto(t)
	w := newWorld(t)
	w.mqttHome("kitchen", m, rulesYAML)
	laptop := w.device("laptop")
	home := m.sub("notes/#")
	script := filepath.Join(w.dir, "client.js")
	if err := os.WriteFile(script, []byte(mqttJS), 0o600); err != nil {
		t.Fatal(err)
	}
	r := runFor(t, 60*time.Second, "", w.withHosts("node", script, w.port(), w.roots, laptop.cert, laptop.key)...)
	if r.code != 0 || !strings.Contains(r.stdout, "all held") {
		t.Fatalf("MQTT.js: %s", r)
	}
	for _, name := range []string{"v4", "v5", "alpn", "wss"} {
		home.waitFor("notes/js-"+name+" hello from "+name, 10*time.Second)
	}
}

// TestMosquittoBridge: a broker joins the hub by its own bridge, with a device
// certificate and without an agent.
func TestMosquittoBridge(t *testing.T) {
	w := newWorld(t)
	annex, anna := w.device("annex"), w.device("anna")
	m := newMosquitto(t)
	m.proc.stop()
	conf, err := os.ReadFile(filepath.Join(m.dir, "mosquitto.conf"))
	if err != nil {
		t.Fatal(err)
	}
	bridge := strings.Join([]string{
		"connection hub", "address " + host("mqtt") + ":" + w.port(), "remote_clientid annex", "bridge_protocol_version mqttv311",
		"bridge_cafile " + w.roots, "bridge_certfile " + annex.cert, "bridge_keyfile " + annex.key, "cleansession false",
		"notifications false", "restart_timeout 1", "topic # both 1 \"\" home/annex/",
	}, "\n")
	writeFile(t, filepath.Join(m.dir, "mosquitto.conf"), string(conf)+bridge+"\n")
	m.proc = start(t, "mosquitto with a bridge", w.withHosts("mosquitto", "-c", filepath.Join(m.dir, "mosquitto.conf"))...)
	eventually(t, 20*time.Second, "the bridge is at the hub", func() bool { return w.hubConnections() == 1 })
	local := m.sub("#")
	listen := func() *process {
		p := start(t, "mosquitto_sub as anna", w.withHosts(append([]string{"stdbuf", "-oL"},
			w.hubArgs(anna, "mosquitto_sub", "-c", "-i", "anna-sub", "-q", "1", "-v", "-t", "home/annex/#", "-d")...)...)...)
		p.waitFor("Subscribed", 10*time.Second)
		return p
	}
	sub := listen()
	m.pub("lamp/state", "on")
	sub.waitFor("home/annex/lamp/state on", 10*time.Second)
	mustRun(t, w.withHosts(w.hubArgs(anna, "mosquitto_pub", "-i", "anna", "-q", "1", "-t", "home/annex/lamp/set", "-m", "off")...)...)
	local.waitFor("lamp/set off", 10*time.Second)

	// While the hub is away nothing is lost that goes up. mosquitto_sub ends when
	// its TLS does; its session is still there when it comes back.
	w.relay.kill()
	for i := range 20 {
		m.pub("count", fmt.Sprint("n", i, "."))
	}
	w.startRelay()
	eventually(t, 30*time.Second, "the bridge is back", func() bool { return w.hubConnections() == 1 })
	m.pub("count", "last.")
	sub = listen()
	sub.waitFor("home/annex/count last.", 20*time.Second)
	at := 0
	for i := range 20 {
		k := strings.Index(sub.out.String()[at:], fmt.Sprint("home/annex/count n", i, "."))
		if k < 0 {
			t.Fatalf("n%d is missing, or late: %s", i, tail(sub.out.String(), 2000))
		}
		at += k
	}
}
