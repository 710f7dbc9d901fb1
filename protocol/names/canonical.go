package names

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

const (
	maxName  = 253 // bytes of a name without its trailing dot (RFC 1035 §2.3.4)
	maxLabel = 63
	maxInput = 1024 // looked at at all: names come from visitors whom nobody has authenticated
)

// Canonical returns the one form of a host name that Sallyport compares:
// lower case, A-labels (x/net/idna, Lookup profile), without the trailing dot.
//
// It refuses whatever another parser might read differently: the empty name,
// ports, IP literals in any spelling (127.0.0.1, 127.1, 0x7f000001, [::1]),
// characters other than letters, digits and hyphens, empty and overlong
// labels, Unicode letters and dots that map to plain ASCII (fullwidth "ａ",
// the Kelvin sign, "。"), and A-labels that IDNA does not produce, among them
// "xn--" labels that decode to ASCII (CVE-2026-39821).
//
// Canonical of its own result is that result.
func Canonical(host string) (string, error) {
	switch {
	case host == "":
		return "", bad(host, "is empty")
	case len(host) > maxInput:
		return "", bad(host, "is longer than 253 bytes")
	case !utf8.ValidString(host):
		return "", bad(host, "is not valid UTF-8")
	}
	name := strings.TrimSuffix(lowerASCII(host), ".")
	labels := strings.Split(name, ".")
	convert := false
	for _, l := range labels {
		international, why := checkLabel(l)
		if why != "" {
			return "", bad(host, why)
		}
		convert = convert || international
	}
	if convert {
		var why string
		if name, why = toASCII(name, labels); why != "" {
			return "", bad(host, why)
		}
		labels = strings.Split(name, ".")
	}
	if len(name) > maxName {
		return "", bad(host, "is longer than 253 bytes")
	}
	if isNumber(labels[len(labels)-1]) {
		return "", bad(host, "is an IP address or ends in a number")
	}
	return name, nil
}

// CanonicalHost is Canonical for the Host and :authority of a request, which
// may carry a port. An empty or impossible port is refused.
func CanonicalHost(hostport string) (string, error) {
	host, port, found := strings.Cut(hostport, ":")
	if found {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || len(port) > 5 {
			return "", bad(hostport, "has no valid port after the colon, or is an IPv6 address")
		}
	}
	return Canonical(host)
}

// checkLabel checks one lower-cased label of a name. international says that
// IDNA has to look at it; why is empty when the label is fine so far.
func checkLabel(l string) (international bool, why string) {
	if l == "" {
		return false, "has an empty label (two dots, or a dot in front)"
	}
	for i := range len(l) {
		switch c := l[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-':
		case c >= utf8.RuneSelf:
			international = true
		default:
			return false, fmt.Sprintf("holds %q; only letters, digits, hyphens and dots are allowed", c)
		}
	}
	switch {
	case l[0] == '-' || l[len(l)-1] == '-':
		return false, "has a label that starts or ends with a hyphen"
	case strings.HasPrefix(l, "xn--"):
		return true, ""
	case len(l) >= 4 && l[2:4] == "--":
		return false, "has hyphens in places 3 and 4 of a label, which are reserved (RFC 5891)"
	case !international && len(l) > maxLabel:
		return false, "has a label longer than 63 bytes"
	}
	return international, ""
}

const notInternational = "is not a valid international name"

// toASCII converts a name with international labels.
func toASCII(name string, labels []string) (ascii, why string) {
	ascii, err := idna.Lookup.ToASCII(name)
	if err != nil {
		return "", notInternational
	}
	if why := sameLabels(labels, strings.Split(ascii, ".")); why != "" {
		return "", why
	}
	return ascii, ""
}

// sameLabels refuses a conversion that does not say the same, label by label:
// plain ones unchanged, A-labels unchanged, U-labels turned into A-labels.
// Whatever a library or its tables may do, nothing maps onto other ASCII.
func sameLabels(before, after []string) (why string) {
	if len(after) != len(before) {
		return notInternational
	}
	for i, l := range before {
		switch {
		case isASCII(l) && after[i] != l:
			return "has an \"xn--\" label that is not the encoding of an international name"
		case !isASCII(l) && !strings.HasPrefix(after[i], "xn--"):
			return "has Unicode characters that only imitate ASCII ones"
		case len(after[i]) > maxLabel:
			return "has a label longer than 63 bytes"
		}
		if _, why := checkLabel(after[i]); why != "" {
			return notInternational
		}
	}
	return ""
}

// isNumber reports whether a last label makes the whole name an IPv4 address
// in the eyes of browsers and libc: digits only, or hexadecimal after 0x.
func isNumber(label string) bool {
	if strings.Trim(label, "0123456789") == "" {
		return true
	}
	hex, ok := strings.CutPrefix(label, "0x")
	return ok && strings.Trim(hex, "0123456789abcdef") == ""
}

// lowerASCII lowers A to Z and nothing else: strings.ToLower would turn the
// Kelvin sign into "k" before anybody has judged it.
func lowerASCII(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return 'A' <= r && r <= 'Z' }) {
		return s
	}
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + ('a' - 'A')
		}
	}
	return string(b)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// bad is the error for a name that a stranger may have chosen: quoted, and
// short enough for a log line.
func bad(name, why string) error {
	if len(name) > 80 {
		name = name[:80] + "…"
	}
	return fmt.Errorf("host name %q %s", name, why)
}
