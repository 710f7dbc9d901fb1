package ports

import (
	"bytes"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// A machine with several addresses answers from the one that was asked. The
// socket listens on all addresses, so it lives in a network of its own.
func TestSocketOfManyAddresses(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and its network
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("this test needs a network namespace: %v", err)
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"addr", "add", "2001:db8::1/128", "dev", "lo", "nodad"},
		{"addr", "add", "2001:db8::2/128", "dev", "lo", "nodad"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("ip %v: %v %s", args, err, out)
		}
	}
	// The kernel makes an address known to itself a little later; a socket that is
	// connected before that stays deaf.
	known := false
	for range 200 {
		routes, _ := exec.Command("ip", "-6", "route", "show", "table", "local").Output()
		if known = bytes.Contains(routes, []byte("2001:db8::1 ")) && bytes.Contains(routes, []byte("2001:db8::2 ")); known {
			break
		}
	}
	if !known {
		t.Skip("the addresses of this test do not come up")
	}
	for _, network := range []string{"udp", "udp4", "udp6"} {
		c, err := net.ListenPacket(network, ":5000")
		if err != nil {
			t.Fatal(err)
		}
		s := newSocket(c, silentLog)
		for _, addr := range []string{"127.0.0.1", "127.0.0.2", "2001:db8::1", "2001:db8::2"} {
			at := netip.MustParseAddr(addr)
			if network == "udp4" && at.Is6() || network == "udp6" && at.Is4() {
				continue
			}
			client := "127.0.0.9:0"
			if at.Is6() {
				client = "[2001:db8::1]:0"
			}
			key := roundTrip(t, s, "udp", client, netip.AddrPortFrom(at, 5000).String())
			if key.local != at {
				t.Errorf("%s: reached %v, want %v", network, key.local, at)
			}
		}
		s.close()
	}
}
