package real

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// A counter publishes numbers, each until somebody acknowledged it, and counts
// what arrives elsewhere.
type counter struct {
	name     string
	topic    string // published
	arrives  string // subscribed
	source   func() *mqtt.ClientOptions
	sink     func() *mqtt.ClientOptions
	mu       sync.Mutex // guards what follows
	sent     int        // acknowledged to the publisher
	next     int        // first number that did not arrive
	again    int        // arrivals of numbers that had arrived
	disorder []string
}

const counterWindow = 40

// publish sends 0 … n-1 in order. After each loss of the connection it goes on
// with the first number that was not acknowledged.
func (c *counter) publish(ctx context.Context, n int) {
	for first := 0; first < n && ctx.Err() == nil; {
		lost := make(chan struct{})
		var once sync.Once
		client := mqtt.NewClient(c.source().SetCleanSession(true).SetAutoReconnect(false).
			SetConnectionLostHandler(func(mqtt.Client, error) { once.Do(func() { close(lost) }) }))
		if t := client.Connect(); !t.WaitTimeout(10*time.Second) || t.Error() != nil {
			pauseFor(ctx, 200*time.Millisecond)
			continue
		}
		var window []mqtt.Token
		for next := first; (next < n || len(window) > 0) && ctx.Err() == nil; {
			if next < n && len(window) < counterWindow {
				window = append(window, client.Publish(c.topic, 1, false, strconv.Itoa(next)))
				next++
				continue
			}
			if !acknowledged(ctx, window[0], lost) {
				break
			}
			window, first = window[1:], first+1
			c.mu.Lock()
			c.sent = first
			c.mu.Unlock()
		}
		client.Disconnect(0)
	}
}

// acknowledged waits for a token whose client does not reconnect.
func acknowledged(ctx context.Context, t mqtt.Token, lost <-chan struct{}) bool {
	select {
	case <-t.Done():
		select {
		case <-lost: // whatever the token says: paho completes some at the loss
			return false
		default:
			return t.Error() == nil
		}
	case <-lost:
	case <-ctx.Done():
	case <-time.After(30 * time.Second):
	}
	return false
}

// collect reads what arrives until ctx ends, on a session that outlives its
// connections.
func (c *counter) collect(ctx context.Context) {
	for ctx.Err() == nil {
		lost := make(chan struct{})
		var once sync.Once
		o := c.sink().SetCleanSession(false).SetAutoReconnect(false).
			SetConnectionLostHandler(func(mqtt.Client, error) { once.Do(func() { close(lost) }) }).
			SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { c.arrived(string(m.Payload())) })
		client := mqtt.NewClient(o)
		ok := func(t mqtt.Token) bool { return t.WaitTimeout(10*time.Second) && t.Error() == nil }
		if ok(client.Connect()) && ok(client.Subscribe(c.arrives, 1, nil)) {
			select {
			case <-lost:
			case <-ctx.Done():
			}
		}
		client.Disconnect(0)
		pauseFor(ctx, 100*time.Millisecond)
	}
}

func (c *counter) arrived(payload string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, err := strconv.Atoi(payload)
	switch {
	case err != nil:
		c.disorder = append(c.disorder, "not a number: "+payload)
	case i < c.next:
		c.again++
	case i == c.next:
		c.next++
	default:
		c.disorder = append(c.disorder, fmt.Sprintf("%d before %d", i, c.next))
		c.next = i + 1
	}
}

func (c *counter) progress() (sent, arrived int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent, c.next
}

func pauseFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// at home: a client of the home broker.
func (m *mosquitto) client(id string) func() *mqtt.ClientOptions {
	return func() *mqtt.ClientOptions {
		return mqtt.NewClientOptions().AddBroker(m.url()).SetClientID(id).SetConnectTimeout(5 * time.Second).SetKeepAlive(10 * time.Second)
	}
}

// hubClient is a client of the relay's hub with a device's certificate.
func (w *world) hubClient(d device, id string) func() *mqtt.ClientOptions {
	conf := w.tlsOf(&d)
	conf.ServerName, conf.NextProtos = host("mqtt"), []string{"mqtt"}
	return func() *mqtt.ClientOptions {
		return mqtt.NewClientOptions().AddBroker("tls://" + host("mqtt") + ":443").SetClientID(id).SetProtocolVersion(4).
			SetConnectTimeout(5 * time.Second).SetKeepAlive(10 * time.Second).
			SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) {
				return tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", w.listen, conf)
			})
	}
}

// TestBridgeThroughCrashes: QoS 1 both ways at the same time while the relay and
// the agent are killed and the broker restarted, again and again. Everything
// that was acknowledged arrives, in order at its first arrival; what comes more
// than once is counted. (The broker at home is not killed here: what it has
// acknowledged is in its memory alone, and nobody can bring that back.)
func TestBridgeThroughCrashes(t *testing.T) {
	n, crashes := 10_000, 16
	if !everything() || raceEnabled {
		n, crashes = 1_000, 5
	}
	m := newMosquitto(t)
	w := newWorld(t)
	w.mqttHome("kitchen", m, rulesYAML)
	anna := w.device("anna")
	in := &counter{name: "in", topic: "home/kitchen/notes/n", arrives: "notes/#", source: w.hubClient(anna, "anna-pub"), sink: m.client("reader")}
	out := &counter{name: "out", topic: "sensors/n", arrives: "home/kitchen/sensors/#", source: m.client("sensor"), sink: w.hubClient(anna, "anna-sub")}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	var readers, writers sync.WaitGroup
	for _, c := range []*counter{in, out} {
		readers.Go(func() { c.collect(ctx) })
	}
	// The sessions must stand before the first number.
	eventually(t, 20*time.Second, "both readers are there", func() bool {
		r := run(t, "", m.args("mosquitto_sub", "-t", "$SYS/broker/clients/connected", "-C", "1", "-W", "5")...)
		return w.hubConnections() == 1 && strings.TrimSpace(r.stdout) != ""
	})
	pauseFor(ctx, time.Second)
	for _, c := range []*counter{in, out} {
		writers.Go(func() { c.publish(ctx, n) })
	}
	for i := range crashes {
		// Spread over the whole course, so that each finds messages on their way.
		at := (i + 1) * n / (crashes + 1)
		for ctx.Err() == nil {
			a, _ := in.progress()
			b, _ := out.progress()
			if max(a, b) >= at {
				break
			}
			pauseFor(ctx, 5*time.Millisecond)
		}
		pauseFor(ctx, time.Duration(rand.IntN(50))*time.Millisecond)
		switch i % 5 {
		case 0, 3:
			w.relay.kill()
			w.startRelay()
		case 1, 4:
			w.agents["kitchen"].kill()
			w.startAgent("kitchen", nil, "--config", w.file("kitchen.yaml"))
		case 2:
			m.proc.stop()
			m.start()
		}
	}
	writers.Wait()
	eventually(t, 2*time.Minute, "all has arrived", func() bool {
		_, a := in.progress()
		_, b := out.progress()
		return a >= n && b >= n
	})
	cancel()
	readers.Wait()
	for _, c := range []*counter{in, out} {
		sent, arrived := c.progress()
		t.Logf("%s: %d acknowledged, %d arrived, %d came again, through %d crashes", c.name, sent, arrived, c.again, crashes)
		if sent != n {
			t.Errorf("%s: only %d were acknowledged", c.name, sent)
		}
		if len(c.disorder) > 0 {
			t.Errorf("%s: lost or out of order: %v", c.name, c.disorder[:min(10, len(c.disorder))])
		}
	}
	if err := ctx.Err(); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
