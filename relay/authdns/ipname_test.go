package authdns

import (
	"net/netip"
	"strings"
	"testing"
)

func TestIPName(t *testing.T) {
	for addr, label := range map[string]string{
		"1.2.3.4": "1-2-3-4", "192.168.1.7": "192-168-1-7", "0.0.0.0": "0-0-0-0", "255.255.255.255": "255-255-255-255",
		"2001:db8::1": "2001-db8--1", "fd00::": "fd00--0", "::1": "0--1", "::": "0--0", "1:2:3:4:5:6:7:8": "1-2-3-4-5-6-7-8",
		"fd12:3456:789a:bcde:f012:3456:789a:bcde": "fd12-3456-789a-bcde-f012-3456-789a-bcde", "2001:db8:0:1::2": "2001-db8-0-1--2",
	} {
		a := netip.MustParseAddr(addr)
		if got := IPName(a); got != label {
			t.Errorf("IPName(%s) = %q, want %q", addr, got, label)
		}
		if got, ok := ParseIPName(label); !ok || got != a {
			t.Errorf("ParseIPName(%q) = %s, %v", label, got, ok)
		}
	}
	for _, addr := range []netip.Addr{{}, netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("::ffff:1.2.3.4")} {
		if got := IPName(addr); got != "" {
			t.Errorf("IPName(%s) = %q", addr, got)
		}
	}
	for _, label := range []string{
		"", "-", "1-2-3", "1-2-3-4-5", "01-2-3-4", "1-2-3-004", "1-2-3-256", "-1-2-3-4", "1-2-3-4-", "+1-2-3-4", "1-2-3-4.",
		"0x1-2-3-4", "1.2.3.4", "2001:db8--1", "--1", "fd00--", "--", "0---1", "2001-DB8--1", "2001-0db8--1", "2001-db8-0-0-0-0-0-1",
		"2001-db8--0-1", "1--2--3", "0--ffff-102-304", "fe80--1%eth0", "1-2-3-4-5-6-7-8-9", "１-2-3-4",
		strings.Repeat("1-", 5000),
	} {
		if got, ok := ParseIPName(label); ok {
			t.Errorf("ParseIPName(%q) = %s", label, got)
		}
	}
}

func FuzzParseIPName(f *testing.F) {
	for _, s := range []string{"1-2-3-4", "2001-db8--1", "0--1", "fd00--0", "01-2-3-4", "0--ffff-102-304"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, label string) {
		addr, ok := ParseIPName(label)
		if !ok {
			return
		}
		if IPName(addr) != label {
			t.Fatalf("%q is %s, which is spelled %q", label, addr, IPName(addr))
		}
		if len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			t.Fatalf("%q is no DNS label", label)
		}
	})
}
