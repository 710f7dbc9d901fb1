package bridge

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// A mosquitto is a real broker on a loopback port, with persistence.
type mosquitto struct {
	t    testing.TB
	dir  string
	addr string
	cmd  *exec.Cmd

	exited <-chan struct{} // closed when cmd ended
}

// startMosquitto runs one with these further lines of configuration; "allow"
// among them lets everybody in. PORT in a line is the port.
func startMosquitto(t testing.TB, lines ...string) *mosquitto {
	t.Helper()
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto"
		if _, err := os.Stat(path); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal("mosquitto is not installed")
			}
			t.Skip("mosquitto is not installed")
		}
	}
	m := &mosquitto{t: t, dir: t.TempDir()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.addr = l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(m.addr)
	conf := "user root\npersistence true\npersistence_location " + m.dir + "/\n" +
		"listener " + port + " 127.0.0.1\n"
	for _, line := range lines {
		if line == "allow" {
			line = "allow_anonymous true"
		}
		conf += strings.ReplaceAll(line, "PORT", port) + "\n"
	}
	if err := os.WriteFile(filepath.Join(m.dir, "mosquitto.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	m.cmd = exec.Command(path, "-c", filepath.Join(m.dir, "mosquitto.conf"))
	m.start()
	t.Cleanup(func() {
		if m.cmd != nil {
			m.kill()
		}
	})
	return m
}

func (m *mosquitto) url() string { return "tcp://" + m.addr }

// start runs the broker. It tries again when it ends at once: another process
// may have its port for a moment, as that of a connection of its own.
func (m *mosquitto) start() {
	m.t.Helper()
	var exited chan struct{}
	eventually(m.t, "mosquitto listens", func() bool {
		select {
		case <-exited:
			exited = nil
		default:
		}
		if exited == nil {
			exited = m.launch()
		}
		c, err := net.Dial("tcp", m.addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// launch starts the process; the channel is closed when it ended.
func (m *mosquitto) launch() chan struct{} {
	m.t.Helper()
	m.cmd = exec.Command(m.cmd.Path, m.cmd.Args[1:]...)
	log, err := os.OpenFile(filepath.Join(m.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	m.cmd.Stdout, m.cmd.Stderr = log, log
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	exited, cmd := make(chan struct{}), m.cmd
	m.exited = exited
	go func() {
		defer close(exited)
		cmd.Wait()
	}()
	return exited
}

// kill is kill -9.
func (m *mosquitto) kill() { m.end(syscall.SIGKILL) }

// stop lets it save its state.
func (m *mosquitto) stop() { m.end(syscall.SIGTERM) }

func (m *mosquitto) end(sig os.Signal) {
	m.cmd.Process.Signal(sig)
	<-m.exited
}

// A device is a client of the home broker, as a light or a sensor is.
type device struct {
	t testing.TB
	c mqtt.Client

	mu    sync.Mutex // guards what follows
	got   []heard
	again int // that the broker sent to us again
}

type heard struct {
	topic, payload string
	retained       bool
}

// join connects a device; it comes back by itself when the broker restarts.
func (m *mosquitto) join(id string, filters ...string) *device {
	m.t.Helper()
	d := &device{t: m.t}
	opts := mqtt.NewClientOptions().AddBroker(m.url()).SetClientID(id).SetCleanSession(false).SetOrderMatters(true).
		SetMaxReconnectInterval(50 * time.Millisecond).SetConnectRetry(true).SetConnectRetryInterval(20 * time.Millisecond)
	opts.SetDefaultPublishHandler(func(_ mqtt.Client, msg mqtt.Message) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if msg.Duplicate() {
			d.again++
		}
		d.got = append(d.got, heard{msg.Topic(), string(msg.Payload()), msg.Retained()})
	})
	ready := make(chan struct{}, 100)
	opts.SetOnConnectHandler(func(c mqtt.Client) {
		for _, f := range filters {
			c.Subscribe(f, 1, nil).Wait()
		}
		ready <- struct{}{}
	})
	d.c = mqtt.NewClient(opts)
	m.t.Cleanup(func() { d.c.Disconnect(100) })
	if token := d.c.Connect(); !token.WaitTimeout(10*time.Second) || token.Error() != nil {
		m.t.Fatalf("device %s: %v", id, token.Error())
	}
	<-ready
	return d
}

// publish tries until the broker has it. Its own client's word is not worth
// much around a reconnect, so that a message may be published twice.
func (d *device) publish(topic string, qos byte, retain bool, payload []byte) {
	d.t.Helper()
	for range 100 {
		token := d.c.Publish(topic, qos, retain, payload)
		if !token.WaitTimeout(20 * time.Second) {
			d.t.Errorf("publish on %s: no answer", topic)
			return
		}
		if token.Error() == nil {
			return
		}
	}
	d.t.Errorf("publish on %s: not connected", topic)
}

func (d *device) heard() []heard {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]heard(nil), d.got...)
}

// on returns the payloads on a topic.
func (d *device) on(topic string) (list []string) {
	for _, h := range d.heard() {
		if h.topic == topic {
			list = append(list, h.payload)
		}
	}
	return list
}

// firsts leaves out what came before.
func firsts(list []string) (out []string) {
	seen := map[string]bool{}
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

// expectSeries checks that list holds prefix0, prefix1 … prefix(n-1), in order,
// where repetitions do not count.
func expectSeries(t *testing.T, what string, list []string, prefix string, n int) {
	t.Helper()
	got := firsts(list)
	for i := range n {
		want := fmt.Sprintf("%s%d", prefix, i)
		if i >= len(got) || got[i] != want {
			at := "nothing"
			if i < len(got) {
				at = got[i]
			}
			t.Fatalf("%s: message %d is %s, not %s (%d of %d came)", what, i, at, want, len(got), n)
		}
	}
	if len(got) > n {
		t.Fatalf("%s: %d messages came, not %d: %v", what, len(got), n, got[n:min(n+3, len(got))])
	}
}
