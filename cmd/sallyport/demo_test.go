package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// While the wall is up nothing leaves and nothing that arrives is seen.
func TestFirewall(t *testing.T) {
	far, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	var wall firewall
	at := far.LocalAddr().(*net.UDPAddr).AddrPort()
	near, err := wall.listenPacket(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	home := netip.AddrPortFrom(at.Addr(), near.LocalAddr().(*net.UDPAddr).AddrPort().Port())

	say := func(words string) {
		t.Helper()
		if _, err := near.WriteTo([]byte(words), net.UDPAddrFromAddrPort(at)); err != nil {
			t.Fatal(err)
		}
		if _, err := far.WriteToUDPAddrPort([]byte(words), home); err != nil {
			t.Fatal(err)
		}
	}
	wall.block(true)
	say("lost")
	// What arrived in the meantime is dropped by the read that finds it.
	near.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, _, err := near.ReadFrom(make([]byte, 9)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read through the wall: %v", err)
	}
	wall.block(false)
	say("seen")
	for name, read := range map[string]func([]byte) (int, net.Addr, error){"out": far.ReadFrom, "in": near.ReadFrom} {
		near.SetReadDeadline(time.Now().Add(patience))
		far.SetReadDeadline(time.Now().Add(patience))
		b := make([]byte, 9)
		if n, _, err := read(b); err != nil || string(b[:n]) != "seen" {
			t.Errorf("%s: %q, %v", name, b[:n], err)
		}
	}
}

// The branches of the picture meet, however long the port is.
func TestDemoPictureIsAligned(t *testing.T) {
	apps, err := startHomeApps()
	if err != nil {
		t.Fatal(err)
	}
	defer apps.close()
	for _, addr := range []string{"127.0.0.1:8443", "127.0.0.1:51234", "[::1]:8443"} {
		lines := strings.Split((&demoWorld{dir: "/d", addr: addr, apps: apps, home: &homeBroker{addr: "127.0.0.1:1883"}}).picture("pw", "https://x/#y", ""), "\n")
		column := func(line int, word string) int {
			before, _, ok := strings.Cut(lines[line], word)
			if !ok {
				t.Fatalf("%q has no %q", lines[line], word)
			}
			return utf8.RuneCountInString(before)
		}
		near, far := column(3, "┼"), column(3, "┬►")
		if column(4, "├►") != far || column(5, "└►") != far || column(1, "home (") != column(3, "agent") ||
			column(2, "┐") != near || column(4, "┤") != near || column(5, "┘") != near {
			t.Errorf("not aligned:\n%s", strings.Join(lines[:6], "\n"))
		}
	}
}

func TestDemoStoryTellsWhatFailed(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs strings.Builder
	if code := run(ctx, []string{"sallyport", "demo", "--once", "--listen", "127.0.0.1:0"}, stdio{out: &out, err: &errs}); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	if out.String() == "" || errs.String() == "" {
		t.Errorf("out %q, err %q", out.String(), errs.String())
	}
}
