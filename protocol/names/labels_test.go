package names

import (
	"strings"
	"testing"
)

// The idna of today refuses these itself; those of before CVE-2026-39821 did
// not, and one of tomorrow may map what is unmapped now. The answers here are
// such libraries'.
func TestSameLabelsTrustsNoLibrary(t *testing.T) {
	for _, c := range []struct {
		before, after string
		same          bool
	}{
		{"door.test", "door.test", true},
		{"bücher.test", "xn--bcher-kva.test", true},
		{"xn--bcher-kva.test", "xn--bcher-kva.test", true},
		{"xn--door-.test", "door.test", false},
		{"xn--bcher-kva.test", "xn--bcher-kvb.test", false},
		{"door.bücher", "dоor.xn--bcher-kva", false},
		{"ｄoor.test", "door.test", false},
		{"door。bücher", "door.xn--bcher-kva", false},
		{"bücher.test", "xn--bcher-kva.test.", false},
		{"bücher.test", "xn--bcher-kva", false},
		{"bücher.test", "xn--bcher_kva.test", false},
		{"bücher.test", "xn--" + strings.Repeat("a", 60) + ".test", false},
	} {
		if why := sameLabels(strings.Split(c.before, "."), strings.Split(c.after, ".")); (why == "") != c.same {
			t.Errorf("%q converted to %q: %q, want it taken: %v", c.before, c.after, why, c.same)
		}
	}
}
