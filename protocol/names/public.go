package names

import (
	"slices"
	"strings"
)

// private are names that no public CA certifies: RFC 2606, 6761, 6762, 8375 and
// ICANN's .internal.
var private = []string{
	"localhost", "test", "example", "invalid", "local", "internal", "lan", "home.arpa", "onion",
	"example.com", "example.net", "example.org",
}

// IsPublic reports whether the public DNS could know a domain, in any spelling, so
// that an ACME server could certify its hosts.
func IsPublic(domain string) bool {
	d, err := Canonical(domain)
	if err != nil || !strings.Contains(d, ".") {
		return false
	}
	return !slices.ContainsFunc(private, func(p string) bool { return d == p || Below(d, p) })
}
