package names

import "strings"

// reserved labels, directly below the relay's domain, belong to the relay:
// whoever held one could speak to visitors in its name.
var reserved = map[string]bool{
	"www": true, "enroll": true, "check": true, "admin": true, "mqtt": true, "home": true,
	"relay": true, // where agents dial: the default address in every join token
}

// IsReserved reports whether an agent may never claim a canonical name or
// pattern: the domain itself, the wildcard that covers it, and, directly below
// it, the relay's own labels (www, enroll, check, admin, mqtt, home, relay),
// "t-…", labels with the shape of an agent's identity, and "*", which would
// cover all of them.
func IsReserved(name, domain string) bool {
	if name == domain || Match(name, domain) {
		return true
	}
	label, parent, _ := strings.Cut(name, ".")
	if parent != domain {
		return false
	}
	return label == "*" || reserved[label] || strings.HasPrefix(label, "t-") || IsAgentLabel(label)
}

// AgentOf returns whose name this is: the label with the shape of an agent's
// identity directly below the domain, for HASH.DOMAIN and everything below it.
// "" for all other names. Only that agent may claim such a name, whatever it
// was granted.
func AgentOf(name, domain string) string {
	rest, ok := strings.CutSuffix(name, "."+domain)
	if !ok {
		return ""
	}
	label := rest[strings.LastIndexByte(rest, '.')+1:]
	if !IsAgentLabel(label) {
		return ""
	}
	return label
}

// Below reports whether a canonical name or pattern lies below a canonical
// domain: x.d, x.y.d and *.d lie below d; d and xd do not.
func Below(name, domain string) bool {
	rest, ok := strings.CutSuffix(name, "."+domain)
	return ok && rest != "" && domain != ""
}

// agentLabelLen is the length of a SHA-256 in base32 without padding.
const agentLabelLen = 52

// IsAgentLabel reports whether a label has the shape of a protocol.AgentID.
func IsAgentLabel(label string) bool {
	return len(label) == agentLabelLen && strings.Trim(label, "abcdefghijklmnopqrstuvwxyz234567") == ""
}
