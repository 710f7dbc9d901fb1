package main

import (
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/agent/control"
)

// TestStatusNamesTheSideThatIsAway: what the relay's link says is not said of
// the home broker, and the other way round.
func TestStatusNamesTheSideThatIsAway(t *testing.T) {
	for _, c := range []struct {
		m    control.MQTT
		want []string
		not  []string
	}{
		{control.MQTT{BrokerConnected: true, LinkError: "E1"}, []string{"  connected  relay's hub away", "\nrelay's hub: E1\n"}, []string{"home broker: "}},
		{control.MQTT{Link: true, Error: "E2"}, []string{"  away  relay's hub connected", "\nhome broker: E2\n"}, []string{"relay's hub: "}},
		{control.MQTT{Error: "E2", LinkError: "E1"}, []string{"\nhome broker: E2\nrelay's hub: E1\n"}, nil},
		{control.MQTT{BrokerConnected: true, Link: true, QueueError: "full"}, []string{"\nqueue for the relay: full\n"}, []string{"home broker: ", "relay's hub: "}},
		{control.MQTT{BrokerConnected: true, Link: true}, nil, []string{"home broker: ", "relay's hub: ", "queue"}},
	} {
		var b strings.Builder
		printMQTT(&b, &c.m)
		for _, s := range c.want {
			if !strings.Contains(b.String(), s) {
				t.Errorf("%+v: %q is missing in %q", c.m, s, b.String())
			}
		}
		for _, s := range c.not {
			if strings.Contains(b.String(), s) {
				t.Errorf("%+v: %q is in %q", c.m, s, b.String())
			}
		}
	}
}

// TestStatusIsHarmless: the relay's words in the agent's status do not act on
// the terminal.
func TestStatusIsHarmless(t *testing.T) {
	const evil = "\x1b[2J\u202e\x07"
	var b strings.Builder
	printAgent(&b, control.Status{
		Error: evil, ErrorAt: time.Now(), Warnings: []string{evil + "\nsecond line"},
		MQTT:     &control.MQTT{Error: evil, LinkError: evil, QueueError: evil},
		Services: []control.ServiceStatus{{Name: "a", Error: evil, Reader: evil}, {Name: "b", URL: "https://" + evil, Warning: evil}},
		EndToEnd: &control.EndToEnd{
			Own: evil, LAN: []string{evil}, List: &control.DeviceList{Number: 1, Pending: evil},
			Certificates: []control.Certificate{{Host: evil, Issuer: evil, Problem: evil, Fix: evil}},
		},
	}, "")
	if strings.ContainsAny(b.String(), evil[:1]+"\u202e\x07") {
		t.Errorf("%q", b.String())
	}
	if !strings.Contains(b.String(), "\nsecond line") {
		t.Error("a warning of several lines lost them")
	}
}
