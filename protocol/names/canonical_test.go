package names_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/protocol/names"
	"golang.org/x/net/idna"
)

func TestCanonical(t *testing.T) {
	longest := strings.Repeat("a.", 126) + "a" // 253 bytes
	for in, want := range map[string]string{
		"door.test":               "door.test",
		"DOOR.Test":               "door.test",
		"door.test.":              "door.test",
		"DOOR.TEST.":              "door.test",
		"localhost":               "localhost",
		"a":                       "a",
		"9to5.example.org":        "9to5.example.org",
		"1.2.3.example":           "1.2.3.example",
		"bücher.example":          "xn--bcher-kva.example",
		"BÜCHER.example.":         "xn--bcher-kva.example",
		"bu\u0308cher.example":    "xn--bcher-kva.example", // decomposed
		"XN--BCHER-KVA.example":   "xn--bcher-kva.example",
		"faß.example":             "xn--fa-hia.example", // not "fass"
		"0x.example":              "0x.example",
		"0xg":                     "0xg",
		longest:                   longest,
		longest + ".":             longest,
		strings.Repeat("a", 63):   strings.Repeat("a", 63),
		"a-b--c.example":          "a-b--c.example",
		"xn--bcher-kva.a.example": "xn--bcher-kva.a.example",
	} {
		got, err := names.Canonical(in)
		if err != nil || got != want {
			t.Errorf("Canonical(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

// Each of these once was, in some proxy, a way to reach the wrong policy.
var refused = map[string][]string{
	"empty":        {"", ".", "..", " "},
	"empty label":  {".door.test", "door..test", "door.test.."},
	"port":         {"door.test:443", "door.test:"},
	"IPv4":         {"127.0.0.1", "127.0.0.1.", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "0X7F.0.0.0X1", "0x", "a.0x", "a.b.12"},
	"IPv6":         {"::1", "[::1]", "fe80::1%eth0", "::ffff:127.0.0.1"},
	"control":      {"door.test\x00", "\x00", "door\x00.test", "door.test\n", "door.test\r\nX: y", "door .test", "door\t.test", " door.test", "door.test\x7f"},
	"characters":   {"door_1.test", "*.door.test", "*", "door.test/", "user@door.test", "door.test?x", "door.test#x", "door%2etest", "do,or.test", "d\\oor.test", "d\"oor.test", "(door).test"},
	"hyphens":      {"-door.test", "door-.test", "-", "do--or.test", "door.-.test"},
	"long":         {strings.Repeat("a", 64) + ".test", strings.Repeat("a.", 127) + "a", strings.Repeat("a", 1<<16), "xn--" + strings.Repeat("a", 60), strings.Repeat("ü", 63)},
	"A-label":      {"xn--", "xn--.test", "xn--door-.test", "xn--a", "xn--door.xn--test-", "XN--DOOR-.test", "xn--bcher-KVA0.test", "xn--xn--bcher-kva-.test", "xn--0.test", "xn--ü.test"},
	"imitation":    {"ｄoor.test", "door。test", "door．test", "door｡test", "\u212aelvin.test", "do\u00ador.test", "do\u200bor.test", "door\ufeff.test", "ſallyport.test", "①.test", "１２７.0.0.1", "door.test。", "door.\u00ad", "℡.test"},
	"not a letter": {"\u0300a.test", "a\u202eb.test", "\u200d.test", "a\u200cb.test", "\ufffd.test"},
	"UTF-8":        {"\xff.test", "door\xc3.test", "\xed\xa0\x80.test"},
}

func TestCanonicalRefuses(t *testing.T) {
	for why, list := range refused {
		for _, in := range list {
			if got, err := names.Canonical(in); err == nil {
				t.Errorf("%s: Canonical(%.80q) = %q, want an error", why, in, got)
			} else if msg := err.Error(); len(msg) > 600 || strings.ContainsAny(msg, "\x00\r\n") {
				t.Errorf("%s: the error for %.20q is not fit for a log line: %.80q", why, in, msg)
			}
		}
	}
}

// A label that decodes to ASCII must not be another spelling of that label,
// whatever the library does with it (CVE-2026-39821).
func TestCanonicalRefusesEncodedASCII(t *testing.T) {
	for _, l := range []string{"door", "a", "www", "admin", "x-1"} {
		for _, in := range []string{"xn--" + l + "-.test", "xn--" + l + "-", "XN--" + strings.ToUpper(l) + "-.test"} {
			if got, err := names.Canonical(in); err == nil {
				t.Errorf("Canonical(%q) = %q, want an error", in, got)
			}
		}
	}
}

func TestCanonicalHost(t *testing.T) {
	for in, want := range map[string]string{
		"door.test":           "door.test",
		"DOOR.test.:443":      "door.test",
		"door.test:1":         "door.test",
		"door.test:65535":     "door.test",
		"bücher.example:8443": "xn--bcher-kva.example",
	} {
		if got, err := names.CanonicalHost(in); err != nil || got != want {
			t.Errorf("CanonicalHost(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", ":", ":443", "door.test:", "door.test:0", "door.test:65536", "door.test:+1", "door.test:-1", "door.test:44 3",
		"door.test:443:443", "door.test:000443", "door.test:https", "[::1]:443", "[::1]", "::1", "127.0.0.1:443", "user@door.test:443",
		"door.test:4\x00", "door.test:١", "door.test:4_3", "door.test：443",
	} {
		if got, err := names.CanonicalHost(in); err == nil {
			t.Errorf("CanonicalHost(%q) = %q, want an error", in, got)
		}
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"door.test", "DOOR.test.", "bücher.example", "xn--bcher-kva.example", "faß.de", "a.b.c.d"} {
		f.Add(s)
	}
	for _, list := range refused {
		for _, s := range list {
			if len(s) < 300 {
				f.Add(s)
			}
		}
	}
	f.Fuzz(func(t *testing.T, in string) {
		name, err := names.Canonical(in)
		if err != nil {
			if name != "" {
				t.Errorf("%q: an error and the name %q", in, name)
			}
			return
		}
		if again, err := names.Canonical(name); err != nil || again != name {
			t.Errorf("%q: not idempotent: %q, then %q, %v", in, name, again, err)
		}
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || len(name) > 253 {
			t.Errorf("%q: %q is not a host name", in, name)
		}
		if ref, err := idna.Lookup.ToASCII(strings.TrimSuffix(in, ".")); err != nil || ref != name {
			t.Errorf("%q: %q, but idna says %q, %v", in, name, ref, err)
		}
		for l := range strings.SplitSeq(name, ".") {
			u, err := idna.ToUnicode(l)
			if strings.HasPrefix(l, "xn--") && (err != nil || strings.Trim(u, asciiChars) == "") {
				t.Errorf("%q: label %q decodes to %q, %v", in, l, u, err)
			}
		}
		for _, spelling := range []string{strings.ToUpper(name), name + ".", "*." + name} {
			p, err := names.ValidPattern(spelling)
			if err != nil && len(name) <= 251 || err == nil && strings.TrimPrefix(p, "*.") != name {
				t.Errorf("%q: pattern %q gives %q, %v", in, spelling, p, err)
			}
		}
		if h, err := names.CanonicalHost(name + ":443"); err != nil || h != name {
			t.Errorf("%q: with a port %q, %v", in, h, err)
		}
	})
}

var asciiChars = func() string {
	var b strings.Builder
	for c := range 128 {
		b.WriteByte(byte(c))
	}
	return b.String()
}()

func BenchmarkCanonical(b *testing.B) {
	for _, in := range []string{"ha.example.org", "HA.Example.org.", "bücher.example.org"} {
		b.Run(in, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = names.Canonical(in)
			}
		})
	}
}

func ExampleCanonical() {
	fmt.Println(names.Canonical("DOOR.Example.org."))
	fmt.Println(names.Canonical("bücher.example"))
	fmt.Println(names.Canonical("127.1"))
	// Output:
	// door.example.org <nil>
	// xn--bcher-kva.example <nil>
	//  host name "127.1" is an IP address or ends in a number
}
