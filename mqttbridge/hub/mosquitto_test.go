package hub

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mqttclient "github.com/eclipse/paho.mqtt.golang"
)

// program returns the path of a program of Mosquitto's. Without it the test is
// skipped, and fails in CI.
func program(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed (apt install mosquitto mosquitto-clients)", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// A tlsHub is a hub behind TLS 1.3 with client certificates on loopback.
type tlsHub struct {
	*world
	dir  string
	port string
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTLSHub(t *testing.T) *tlsHub {
	h := &tlsHub{world: newWorld(t, func(c *Config) { c.Limits.Rate, c.Limits.Burst = 1e6, 1e6 }), dir: t.TempDir()}
	h.authority()
	l, err := tls.Listen("tcp", "127.0.0.1:0", h.serverTLS())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	_, h.port, _ = net.SplitHostPort(l.Addr().String())
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				tc := conn.(*tls.Conn)
				tc.SetDeadline(time.Now().Add(10 * time.Second))
				if tc.Handshake() != nil {
					tc.Close()
					return
				}
				tc.SetDeadline(time.Time{})
				name := tc.ConnectionState().PeerCertificates[0].Subject.CommonName
				h.hub.ServeConn(context.Background(), tc, Identity{Name: name, ID: "key-" + name, Remote: netip.MustParseAddrPort(tc.RemoteAddr().String())})
			}()
		}
	}()
	return h
}

// authority makes the CA of all certificates.
func (h *tlsHub) authority() {
	h.tb.Helper()
	var err error
	if h.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		h.tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, h.key.Public(), h.key)
	if err != nil {
		h.tb.Fatal(err)
	}
	if h.ca, err = x509.ParseCertificate(der); err != nil {
		h.tb.Fatal(err)
	}
	h.file("ca.pem", "CERTIFICATE", der)
}

func (h *tlsHub) serverTLS() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(h.ca)
	return &tls.Config{
		Certificates: []tls.Certificate{h.certificate("localhost")}, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	}
}

func (h *tlsHub) file(name, kind string, der []byte) {
	h.tb.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		h.tb.Fatal(err)
	}
}

// certificate makes NAME.pem and NAME.key.
func (h *tlsHub) certificate(name string) tls.Certificate {
	h.tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.tb.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, h.ca, key.Public(), h.key)
	if err != nil {
		h.tb.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		h.tb.Fatal(err)
	}
	h.file(name+".pem", "CERTIFICATE", der)
	h.file(name+".key", "PRIVATE KEY", raw)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// run starts a Mosquitto client as a device.
func (h *tlsHub) run(device, prog string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	h.t.Helper()
	args = append([]string{
		"-h", "localhost", "-p", h.port, "--cafile", filepath.Join(h.dir, "ca.pem"),
		"--cert", filepath.Join(h.dir, device+".pem"), "--key", filepath.Join(h.dir, device+".key"), "-i", device + "-" + prog[len(prog)-3:],
	}, args...)
	cmd := exec.CommandContext(h.t.Context(), prog, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	return cmd, &out
}

// subscribed waits until exactly so many subscriptions stand.
func (h *tlsHub) subscribed(n int) {
	h.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); h.hub.index.count() != n; {
		if time.Now().After(deadline) {
			h.t.Fatalf("%d subscriptions, want %d", h.hub.index.count(), n)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// Mosquitto's clients with a device's certificate, in both versions.
func TestMosquittoClients(t *testing.T) {
	pub, sub := program(t, "mosquitto_pub"), program(t, "mosquitto_sub")
	h := newTLSHub(t)
	h.certificate("anna")
	h.certificate("bob")
	for _, version := range []string{"mqttv311", "mqttv5"} {
		for _, qos := range []string{"0", "1", "2"} {
			h.subscribed(0) // the reader before is gone
			reader, got := h.run("anna", sub, "-V", version, "-q", qos, "-t", "home/kitchen/#", "-C", "2", "-W", "20", "-v", "-R")
			h.subscribed(1)
			for _, args := range [][]string{{"-t", "home/kitchen/lamp", "-m", "on"}, {"-t", "home/kitchen/door", "-m", "open", "-r"}} {
				sender, said := h.run("bob", pub, append(args, "-V", version, "-q", qos)...)
				if err := sender.Wait(); err != nil {
					t.Errorf("%s, QoS %s: %v: %s", version, qos, err, said)
				}
			}
			if err := reader.Wait(); err != nil || got.String() != "home/kitchen/lamp on\nhome/kitchen/door open\n" {
				t.Errorf("%s, QoS %s: %v, got %q", version, qos, err, got)
			}
		}
		reader, got := h.run("anna", sub, "-V", version, "-t", "home/kitchen/door", "-C", "1", "-W", "20", "-F", "%r %p")
		if err := reader.Wait(); err != nil || got.String() != "1 open\n" {
			t.Errorf("%s: retained: %v, %q", version, err, got)
		}
		refused, said := h.run("anna", sub, "-V", version, "-t", "$SYS/#", "-t", "#", "-W", "20")
		if refused.Wait(); !strings.Contains(said.String(), "denied") {
			t.Errorf("%s: $SYS was granted: %s", version, said)
		}
	}
	denied, said := h.run("bob", pub, "-V", "mqttv5", "-q", "1", "-t", "elsewhere", "-m", "x")
	denied.Wait()
	if !strings.Contains(strings.ToLower(said.String()), "not authorized") {
		t.Errorf("mosquitto_pub was not told: %q", said)
	}
}

// Mosquitto itself joins the hub with a certificate and its own bridge: both
// directions, no echo, retained state.
func TestMosquittoBridge(t *testing.T) {
	broker, pub, sub := program(t, "mosquitto"), program(t, "mosquitto_pub"), program(t, "mosquitto_sub")
	h := newTLSHub(t)
	h.certificate("house")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	conf := filepath.Join(h.dir, "mosquitto.conf")
	text := fmt.Sprintf(`listener %s 127.0.0.1
allow_anonymous true
user root
persistence false
connection house
address localhost:%s
topic set/# in 1 "" home/house/
topic state/# out 1 "" home/house/
remote_clientid house-bridge
cleansession false
notifications false
restart_timeout 1
bridge_cafile %s/ca.pem
bridge_certfile %s/house.pem
bridge_keyfile %s/house.key
`, port, h.port, h.dir, h.dir, h.dir)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), broker, "-c", conf)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("mosquitto: %s", &log)
		}
	})
	h.subscribed(1)
	anna := h.connect("anna", 5)
	anna.subscribe(filter("home/house/state/#", 1))

	reader := exec.CommandContext(t.Context(), sub, "-h", "127.0.0.1", "-p", port, "-q", "1", "-t", "set/#", "-C", "1", "-W", "20", "-v")
	out, err := reader.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1)
	go func() {
		var b bytes.Buffer
		b.ReadFrom(out)
		lines <- b.String()
	}()
	state := exec.CommandContext(t.Context(), pub, "-h", "127.0.0.1", "-p", port, "-q", "1", "-r", "-t", "state/lamp", "-m", "on")
	if b, err := state.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	anna.want("home/house/state/lamp=on")
	for got := ""; got == ""; {
		anna.publish("home/house/set/lamp", "off", 1)
		select {
		case got = <-lines:
			if got != "set/lamp off\n" {
				t.Fatalf("the home broker's reader got %q", got)
			}
		case <-time.After(500 * time.Millisecond): // it came before mosquitto_sub was there
		}
	}
	reader.Wait()
	late := h.connect("late", 4)
	late.subscribe(filter("home/house/state/lamp", 1))
	if got := late.want("home/house/state/lamp=on"); !got[0].FixedHeader.Retain {
		t.Error("the state is not retained at the hub")
	}
}

// The Go client of Eclipse Paho, over a connection of our own making.
func TestPaho(t *testing.T) {
	w := newWorld(t, nil)
	home := w.agent("kitchen", inFilter("set/#", 1))
	connect := func(id string, clean bool) (mqttclient.Client, chan string) {
		got := make(chan string, 100)
		o := mqttclient.NewClientOptions().AddBroker("tcp://hub").SetClientID(id).SetCleanSession(clean).SetAutoReconnect(false)
		o.SetCustomOpenConnectionFn(openPipe(w, "anna"))
		o.SetDefaultPublishHandler(func(_ mqttclient.Client, m mqttclient.Message) { got <- m.Topic() + "=" + string(m.Payload()) })
		c := mqttclient.NewClient(o)
		if token := c.Connect(); !token.WaitTimeout(20*time.Second) || token.Error() != nil {
			t.Fatal(token.Error())
		}
		return c, got
	}
	c, got := connect("anna-paho", false)
	token := c.SubscribeMultiple(map[string]byte{"home/kitchen/set/#": 1, "home/kitchen/state/+": 2, "elsewhere": 1}, nil)
	if !token.WaitTimeout(20*time.Second) || token.Error() == nil && token.(*mqttclient.SubscribeToken).Result()["elsewhere"] != 0x80 {
		t.Errorf("the refused filter: %v %v", token.Error(), token.(*mqttclient.SubscribeToken).Result())
	}
	if token := c.Publish("home/kitchen/set/lamp", 1, false, "on"); !token.WaitTimeout(20*time.Second) || token.Error() != nil {
		t.Fatal(token.Error())
	}
	home.want("set/lamp=on")
	if m := <-got; m != "home/kitchen/set/lamp=on" {
		t.Errorf("got %s", m)
	}
	c.Disconnect(100)
	for i := range 20 {
		home.publish("state/x", fmt.Sprint(i), false)
	}
	c, got = connect("anna-paho", false)
	for i := range 20 {
		if m := <-got; m != fmt.Sprintf("home/kitchen/state/x=%d", i) {
			t.Fatalf("message %d is %s", i, m)
		}
	}
	c.Disconnect(100)
	// Without automatic reconnection and without a session the token tells the
	// truth.
	c, _ = connect("anna-clean", true)
	if token := c.Publish("elsewhere", 1, false, "x"); !token.WaitTimeout(20*time.Second) || token.Error() == nil {
		t.Error("a refused publication counts as delivered")
	}
	c.Disconnect(100)
}

func openPipe(w *world, device string) mqttclient.OpenConnectionFunc {
	return func(*url.URL, mqttclient.ClientOptions) (net.Conn, error) {
		near, far := net.Pipe()
		go w.hub.ServeConn(context.Background(), far, Identity{Name: device, ID: "key-" + device})
		return near, nil
	}
}
