package real

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// mosquitto is a home broker of Debian's package.
type mosquitto struct {
	t    *testing.T
	addr string
	dir  string
	proc *process
}

// newMosquitto starts a broker that lets everybody in and remembers what its
// persistence remembers; more lines go into its configuration.
func newMosquitto(t *testing.T, lines ...string) *mosquitto {
	t.Helper()
	needTools(t, "mosquitto", "mosquitto_pub", "mosquitto_sub")
	m := &mosquitto{t: t, addr: freePort(t), dir: shortDir(t)}
	_, port, _ := net.SplitHostPort(m.addr)
	conf := append([]string{
		"listener " + port + " 127.0.0.1", "allow_anonymous true", "persistence true", "persistence_location " + m.dir + "/",
		"user root", "max_queued_messages 0", "max_inflight_messages 100",
	}, lines...)
	writeFile(t, filepath.Join(m.dir, "mosquitto.conf"), strings.Join(conf, "\n")+"\n")
	m.start()
	return m
}

func (m *mosquitto) start() {
	m.t.Helper()
	m.proc = startCmd(m.t, "mosquitto", nil, exec.Command("mosquitto", "-c", filepath.Join(m.dir, "mosquitto.conf")))
	eventually(m.t, 10*time.Second, "mosquitto answers", func() bool {
		c, err := net.Dial("tcp", m.addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func (m *mosquitto) url() string { return "tcp://" + m.addr }

// args are those of mosquitto_pub and mosquitto_sub to the home broker.
func (m *mosquitto) args(tool string, args ...string) []string {
	host, port, _ := net.SplitHostPort(m.addr)
	return append([]string{tool, "-h", host, "-p", port}, args...)
}

func (m *mosquitto) pub(topic, payload string, args ...string) {
	m.t.Helper()
	mustRun(m.t, m.args("mosquitto_pub", append([]string{"-t", topic, "-m", payload, "-q", "1"}, args...)...)...)
}

// sub prints "topic payload" lines until the test ends.
func (m *mosquitto) sub(filter string, args ...string) *process {
	m.t.Helper()
	// stdbuf: into a pipe mosquitto_sub says nothing until its buffer is full.
	p := start(m.t, "mosquitto_sub at home", append([]string{"stdbuf", "-oL"}, m.args("mosquitto_sub", append([]string{"-v", "-q", "1", "-t", filter, "-d"}, args...)...)...)...)
	p.waitFor("Subscribed", 10*time.Second)
	return p
}

// hubArgs are those of mosquitto_pub and mosquitto_sub to the relay's hub with a
// device's certificate. mosquitto takes host names as they are, so that the
// test's names are looked up in a hosts file of its own: see hostsFile.
func (w *world) hubArgs(d device, tool string, args ...string) []string {
	return append([]string{
		tool, "-h", host("mqtt"), "-p", w.port(), "--cafile", w.roots, "--cert", d.cert, "--key", d.key,
	}, args...)
}

// withHosts runs a command in a mount namespace whose /etc/hosts knows the
// relay's own hosts; needs root.
func (w *world) withHosts(args ...string) []string {
	w.t.Helper()
	needTools(w.t, "unshare")
	needRoot(w.t)
	file := w.file("hosts")
	names := []string{}
	for _, n := range []string{"mqtt", "home", "enroll", "check"} {
		names = append(names, host(n))
	}
	writeFile(w.t, file, "127.0.0.1 localhost\n127.0.0.1 "+strings.Join(names, " ")+"\n")
	return append([]string{"unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, file}, args...)
}

// mqttHome joins an agent whose configuration file has these lines after
// mqtt.broker, and waits until the relay's hub and the broker are reached.
func (w *world) mqttHome(name string, m *mosquitto, yaml string, flags ...string) {
	w.t.Helper()
	file := w.file(name + ".yaml")
	writeFile(w.t, file, "version: 1\nmqtt:\n  broker: "+m.url()+"\n"+yaml)
	w.home(name, append([]string{"--config", file}, flags...)...)
	w.awaitMQTT(name)
}

func (w *world) awaitMQTT(name string) {
	w.t.Helper()
	eventually(w.t, 30*time.Second, "MQTT of "+name+" is joined", func() bool {
		r := run(w.t, "", binary, "status", "--json", "--data", w.agentDir(name))
		var st struct {
			Agent struct {
				MQTT struct {
					Broker bool `json:"broker_connected"`
					Link   bool `json:"link"`
				} `json:"mqtt"`
			} `json:"agent"`
		}
		return json.Unmarshal([]byte(r.stdout), &st) == nil && st.Agent.MQTT.Broker && st.Agent.MQTT.Link
	})
}

// remote speaks the API of the command page with a device's certificate.
type remote struct {
	w      *world
	device device
	key    *ecdsa.PrivateKey
	client *http.Client
}

func (w *world) remote(d device) *remote {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	tr := &http.Transport{
		TLSClientConfig: w.tlsOf(&d), ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, w.listen)
		},
	}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &remote{w: w, device: d, key: key, client: &http.Client{Transport: tr, Timeout: 20 * time.Second}}
}

func (r *remote) spki() []byte {
	der, err := x509.MarshalPKIXPublicKey(&r.key.PublicKey)
	if err != nil {
		r.w.t.Fatal(err)
	}
	return der
}

// call returns an error for every answer that is neither a success nor a Status.
func (r *remote) call(method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, r.w.url("home", path), body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	err = json.Unmarshal(data, out)
	if st, ok := out.(*mqttbridge.Status); ok && err == nil && st.State != "" {
		return nil
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: status %d: %s", method, path, res.StatusCode, data)
	}
	return err
}

func (r *remote) home(name string) (mqttbridge.Home, error) {
	var answer struct {
		Homes []mqttbridge.Home `json:"homes"`
	}
	if err := r.call(http.MethodGet, "/api/homes", nil, &answer); err != nil {
		return mqttbridge.Home{}, err
	}
	for _, h := range answer.Homes {
		if h.Name == name {
			return h, nil
		}
	}
	return mqttbridge.Home{}, fmt.Errorf("no home %q for this device", name)
}

// awaitHome waits until a home takes commands.
func (r *remote) awaitHome(name string) {
	r.w.t.Helper()
	eventually(r.w.t, 60*time.Second, name+" takes commands", func() bool {
		h, err := r.home(name)
		return err == nil && h.Online && h.Broker
	})
}

// trust offers the signing key and confirms it at home, as its owner does who
// compares the words.
func (r *remote) trust(name string) {
	r.w.t.Helper()
	var answer struct {
		Trust mqttbridge.Trust `json:"trust"`
	}
	if err := r.call(http.MethodPost, "/api/keys", map[string]any{"home": name, "key": r.spki()}, &answer); err != nil {
		r.w.t.Fatal(err)
	}
	h, err := r.home(name)
	if err != nil {
		r.w.t.Fatal(err)
	}
	words, err := mqttbridge.TrustWords(h.Key, r.spki())
	if err != nil {
		r.w.t.Fatal(err)
	}
	mustRun(r.w.t, binary, "agent", "trust", "--data", r.w.agentDir(name), "--words", words, r.device.name)
}

func (r *remote) challenge(home, action string) (string, error) {
	var answer struct {
		Challenge string `json:"challenge"`
	}
	err := r.call(http.MethodPost, "/api/challenge", map[string]string{"home": home, "action": action}, &answer)
	return answer.Challenge, err
}

// sign makes a command; value and pin may be empty.
func (r *remote) sign(home mqttbridge.Home, action, value, challenge, pin string) mqttbridge.Signed {
	r.w.t.Helper()
	now := time.Now()
	e := mqttbridge.Envelope{
		Version: 1, ID: mqttbridge.NewID(), Home: home.ID, Action: action, Value: value, Device: r.device.name,
		Issued: now, NotAfter: now.Add(10 * time.Second), Challenge: challenge,
	}
	var err error
	if pin != "" {
		if e.PIN, err = mqttbridge.SealPIN(home.Key, pin, e); err != nil {
			r.w.t.Fatal(err)
		}
	}
	s, err := mqttbridge.Sign(e, r.key)
	if err != nil {
		r.w.t.Fatal(err)
	}
	return s
}

// send presses; an error means that there was no answer.
func (r *remote) send(home, action string, s mqttbridge.Signed) (st mqttbridge.Status, err error) {
	err = r.call(http.MethodPost, "/api/commands/"+action, map[string]any{"home": home, "command": s}, &st)
	return st, err
}

func (r *remote) status(id string) (st mqttbridge.Status, err error) {
	err = r.call(http.MethodGet, "/api/commands/"+id, nil, &st)
	return st, err
}

// press does all of it and waits for the end.
func (r *remote) press(home, action, pin string) mqttbridge.Status {
	r.w.t.Helper()
	h, err := r.home(home)
	if err != nil {
		r.w.t.Fatal(err)
	}
	challenge, err := r.challenge(home, action)
	if err != nil {
		r.w.t.Fatal(err)
	}
	st, err := r.send(home, action, r.sign(h, action, "", challenge, pin))
	if err != nil {
		r.w.t.Fatal(err)
	}
	return r.await(st)
}

// await waits until a command has ended.
func (r *remote) await(st mqttbridge.Status) mqttbridge.Status {
	r.w.t.Helper()
	if st.Final {
		return st
	}
	eventually(r.w.t, 3*time.Minute, "command "+st.ID+" has ended", func() bool {
		now, err := r.status(st.ID)
		if err == nil {
			st = now
		}
		return err == nil && now.Final
	})
	return st
}

// garageYAML is one action with an ack, as README shows it.
const garageYAML = `actions:
  - name: garage
    label: Garage door
    topic: cmnd/garage
    payload: open
    confirm: none
    ack: {topic: stat/garage, match: open, timeout: 5s}
    state: stat/garage
`

// garageDoor answers cmnd/garage on stat/garage, as the thing at home does.
func garageDoor(t *testing.T, m *mosquitto) {
	t.Helper()
	pub := strings.Join(m.args("mosquitto_pub", "-q", "1", "-r", "-t", "stat/garage", "-l"), " ")
	sub := strings.Join(m.args("mosquitto_sub", "-q", "1", "-t", "cmnd/garage"), " ")
	start(t, "the garage door", "sh", "-c", "stdbuf -oL "+sub+" | "+pub)
}
