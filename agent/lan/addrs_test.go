package lan

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestLeadsHome(t *testing.T) {
	const up = net.FlagUp | net.FlagBroadcast | net.FlagMulticast
	for name, want := range map[string]bool{
		"eth0": true, "enp3s0": true, "wlan0": true, "wlp2s0": true, "end0": true, "en0": true, "Ethernet": true, "Wi-Fi": true,
		"br0": true, "vmbr0": true, "bond0": true, "eth0.20": true, "br-lan": true, "bridge0": true, "vlan7": true, "usb0": true, "macvlan0": true,
		"docker0": false, "docker_gwbridge": false, "br-0123456789ab": false, "veth12ab34": false, "hassio": false, "podman0": false,
		"cni0": false, "cali123": false, "flannel.1": false, "lxcbr0": false, "lxdbr0": false, "virbr0": false, "vnet3": false,
		"vmnet8": false, "vboxnet0": false, "vEthernet (WSL)": false, "bridge100": false, "dummy0": false,
		"tun0": false, "tap0": false, "wg0": false, "tailscale0": false, "ztabc": false, "utun4": false, "awdl0": false, "llw0": false,
	} {
		if got := leadsHome(name, up); got != want {
			t.Errorf("%s leads home: %v, want %v", name, got, want)
		}
	}
	for what, flags := range map[string]net.Flags{
		"down": up &^ net.FlagUp, "loopback": up | net.FlagLoopback, "point-to-point": up | net.FlagPointToPoint,
	} {
		if leadsHome("eth0", flags) {
			t.Errorf("an interface that is %s leads home", what)
		}
	}
}

func linkWith(name string, prefixes ...string) link {
	l := link{iface: net.Interface{Name: name, Index: len(name)}}
	for _, p := range prefixes {
		l.prefixes = append(l.prefixes, netip.MustParsePrefix(p))
	}
	return l
}

func TestAddrsOf(t *testing.T) {
	for _, c := range []struct {
		what  string
		links []link
		want  []netip.Addr
	}{
		{"none", nil, nil},
		{
			"private ones only, IPv4 first",
			[]link{
				linkWith("eth0", "fe80::1/64", "fd00::7/64", "2001:db8::7/64", "192.168.1.7/24", "203.0.113.7/24"),
				linkWith("wlan0", "10.0.0.7/8", "100.64.0.7/10", "169.254.3.4/16"),
			},
			addrs("192.168.1.7", "10.0.0.7", "fd00::7"),
		},
		{"one cable", []link{linkWith("eth0", "169.254.3.4/16", "fe80::1/64")}, addrs("169.254.3.4")},
		{"a VPS", []link{linkWith("eth0", "203.0.113.7/24", "2001:db8::7/64")}, nil},
	} {
		if got := addrsOf(c.links); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

func TestReachable(t *testing.T) {
	all := addrs("192.168.1.7", "::ffff:192.168.1.7", "10.0.0.7", "fd00::7", "fe80::1%eth0")
	for _, c := range []struct {
		listen string
		want   []netip.Addr
	}{
		{":8443", addrs("192.168.1.7", "10.0.0.7", "fd00::7")},
		{"[::]:8443", addrs("192.168.1.7", "10.0.0.7", "fd00::7")},
		{"0.0.0.0:8443", addrs("192.168.1.7", "10.0.0.7")},
		{"10.0.0.7:8443", addrs("10.0.0.7")},
		{"[fd00::7]:8443", addrs("fd00::7")},
		{"127.0.0.1:8443", nil},
	} {
		on, err := listenAddr(c.listen)
		if err != nil {
			t.Fatal(err)
		}
		if got := reachable(all, on); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.listen, got, c.want)
		}
	}
	var many []netip.Addr
	for a := netip.MustParseAddr("10.0.0.1"); len(many) < 40; a = a.Next() {
		many = append(many, a)
	}
	if got := reachable(many, netip.Addr{}); len(got) != maxAddrs {
		t.Errorf("%d addresses of 40 are told, want %d", len(got), maxAddrs)
	}
}

func TestOfHome(t *testing.T) {
	for text, want := range map[string]bool{
		"192.168.1.7": true, "10.1.2.3": true, "172.31.0.1": true, "169.254.1.1": true, "127.0.0.1": true, "::1": true,
		"fd00::1": true, "fe80::1%eth0": true, "::ffff:192.168.1.7": true,
		"172.32.0.1": false, "100.64.0.1": false, "203.0.113.7": false, "2001:db8::1": false, "::ffff:203.0.113.7": false, "0.0.0.0": false,
	} {
		if got := ofHome(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s is of a home: %v, want %v", text, got, want)
		}
	}
	if ofHome(netip.Addr{}) {
		t.Error("no address is of a home")
	}
}

func TestLabel(t *testing.T) {
	for text, want := range map[string]string{
		"192.168.1.7": "192-168-1-7", "fd00::7": "fd00--7", "fd00::": "fd00--0", "::1": "0--1", "::": "0--0",
		"fd00:0:0:1::2": "fd00-0-0-1--2", "2001:db8:1:2:3:4:5:6": "2001-db8-1-2-3-4-5-6",
	} {
		if got := label(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func FuzzLabel(f *testing.F) {
	f.Add([]byte{192, 168, 1, 7})
	f.Add([]byte{0xfd, 15: 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, ok := netip.AddrFromSlice(raw)
		if !ok {
			return
		}
		a = a.Unmap()
		l := label(a)
		if l == "" || len(l) > 63 || strings.Trim(l, "0123456789abcdef-") != "" || l[0] == '-' || l[len(l)-1] == '-' {
			t.Fatalf("%s: %q is no label", a, l)
		}
		sep := ":"
		if a.Is4() {
			sep = "."
		}
		back, err := netip.ParseAddr(strings.ReplaceAll(l, "-", sep))
		if err != nil || back != a {
			t.Fatalf("%s: %q reads as %v, %v", a, l, back, err)
		}
	})
}

// What this machine has, whatever that is, can be told.
func TestHomeAddrs(t *testing.T) {
	for _, a := range homeAddrs() {
		if !ofHome(a) || a.IsLoopback() || a.Zone() != "" {
			t.Errorf("%s is told as an address of the home network", a)
		}
	}
}
