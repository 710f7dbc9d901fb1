package main

import (
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/agent/control"
	"github.com/sallyport/sallyport/relay/admin"
)

// The status of a home tells whose devices come in, how old the list of them
// is, and what waits for a person, with the command.
func TestStatusOfEndToEnd(t *testing.T) {
	pinned, other := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	home := func(l *control.DeviceList) control.Status {
		st := control.Status{State: "connected", EndToEnd: &control.EndToEnd{
			Own: "hash.home.test", DeviceCA: "home", LAN: []string{"https://192-168-1-7.hash.home.test:8443"},
			Certificates: []control.Certificate{
				{Host: "ha.home.test", State: "failing", Problem: "it leads elsewhere", Fix: "set its record"},
				{Host: "*.hash.home.test", State: "off", Problem: "this relay has no DNS"},
			},
		}}
		if st.EndToEnd.List = l; l != nil {
			st.EndToEnd.DeviceCA = "relay"
		}
		return st
	}
	for what, c := range map[string]struct {
		st        control.Status
		want, not []string
	}{
		"home": {home(nil), []string{
			"end to end as hash.home.test  devices the home's own: sallyport device list --home --data a\n",
			"on the home network: https://192-168-1-7.hash.home.test:8443\n", "ha.home.test: it leads elsewhere\n  Set its record\n",
		}, []string{"list of devices", "confirm-ca", "no DNS"}},
		"relay": {home(&control.DeviceList{Number: 7, Issued: time.Now().Add(-3 * time.Hour), Devices: 4, CA: pinned}), []string{
			"devices the relay's, which can issue more\n", "list of devices 7  3h00m old  may come in 4\n",
		}, []string{"confirm-ca", "overdue"}},
		"no list": {home(&control.DeviceList{CA: pinned}), []string{"list of devices: none yet, nobody comes in\n"}, []string{"0 "}},
		"stale":   {home(&control.DeviceList{Number: 7, Issued: time.Now().Add(-200 * time.Hour), Stale: true}), []string{"8d old  overdue"}, nil},
		"other CA": {home(&control.DeviceList{Number: 7, CA: pinned, Pending: other}), []string{
			"another device CA; it is not taken", "sallyport agent confirm-ca " + other + " --data a\n", "sallyport relay ca --device",
		}, nil},
		"older list":     {home(&control.DeviceList{Number: 7, CA: pinned, Pending: pinned}), []string{"an older list of devices", "confirm-ca " + pinned + " --data a\n"}, []string{"another device CA"}},
		"no fingerprint": {home(&control.DeviceList{Number: 7, CA: pinned, Pending: "$(reboot)"}), nil, []string{"confirm-ca", "reboot"}},
	} {
		var b strings.Builder
		printAgent(&b, c.st, " --data a")
		for _, w := range c.want {
			if !strings.Contains(b.String(), w) {
				t.Errorf("%s: no %q in\n%s", what, w, b.String())
			}
		}
		for _, n := range c.not {
			if strings.Contains(b.String(), n) {
				t.Errorf("%s: %q in\n%s", what, n, b.String())
			}
		}
	}
}

// Whoever reads the status of a relay sees who can read each service.
func TestStatusOfPortsAndReaders(t *testing.T) {
	var b strings.Builder
	printRelay(&b, admin.Status{
		DNS: &admin.DNS{Zone: "home.test", Listen: ":53", NS: []string{"ns1.home.test"}, Addresses: []string{"203.0.113.7"}, Questions: 5, Refused: 2, Limited: 1},
		Ports: []admin.Port{
			{Port: "2222/tcp", Agent: "pi", Service: "git", Error: "another program has it"},
			{Port: "53/udp", Agent: "pi", Service: "dns", Open: 3, Bytes: 1500},
		},
		Hosts: []admin.Host{{Host: "x", Agent: "pi", Services: []admin.HostService{
			{Name: "a", URL: "A", Auth: "require", TLS: "relay"}, {Name: "b", URL: "B", Auth: "ask", TLS: "agent"}, {Name: "c", URL: "C", Auth: "none", TLS: "backend"},
		}}},
	})
	for _, want := range []string{
		"DNS of home.test  on :53  ns1.home.test at 203.0.113.7  serial 0  questions 5  refused 2  over the limit 1\n",
		"require   the relay\n", "ask       nobody between: end to end\n", "none      nobody between: end to end (passed through)\n",
		"2222/tcp   git       pi      closed              0", "53/udp     dns       pi      open to everybody   3     1.5 kB   the relay, unless the service encrypts\n",
		"warning: port 2222/tcp of git: another program has it\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}
