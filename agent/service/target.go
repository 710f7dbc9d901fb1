package service

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Schemes of a Target: what is spoken to it.
const (
	SchemeHTTP  = "http"
	SchemeHTTPS = "https"
	SchemeH2C   = "h2c"
	SchemeTCP   = "tcp"
	SchemeUDP   = "udp"
)

// A Target is where a service lives at home and what is spoken there.
type Target struct {
	Scheme string // one of the above
	Unix   string // path of a unix socket; empty: Host and Port
	Host   string // lower-case name, or address without brackets
	Port   uint16

	bare bool // written without a scheme
}

// String returns the target in the form that ParseTarget reads.
func (t Target) String() string {
	switch {
	case t.Unix != "" && t.Scheme == SchemeTCP:
		return "tcp+unix:" + t.Unix
	case t.Unix != "":
		return "unix:" + t.Unix
	}
	return t.Scheme + "://" + t.hostPort()
}

func (t Target) hostPort() string { return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))) }

// dialArgs returns what net.Dial takes.
func (t Target) dialArgs() (network, address string) {
	switch {
	case t.Unix != "":
		return "unix", t.Unix
	case t.Scheme == SchemeUDP:
		return "udp", t.hostPort()
	}
	return "tcp", t.hostPort()
}

// isLocal reports whether the host is for multicast DNS (RFC 6762 §3).
func (t Target) isLocal() bool { return strings.HasSuffix(t.Host, ".local") }

// ParseTarget reads a target as a person writes it; the package comment lists
// the forms. Its errors say what to write instead.
func ParseTarget(s string) (Target, error) {
	if s == "" {
		return Target{}, errors.New("target is empty: write where the service is, like 127.0.0.1:8123")
	}
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return unixTarget(SchemeHTTP, "unix:", path)
	}
	if path, ok := strings.CutPrefix(s, "tcp+unix:"); ok {
		return unixTarget(SchemeTCP, "tcp+unix:", path)
	}
	scheme, rest, written := strings.Cut(s, "://")
	if !written {
		scheme, rest = SchemeHTTP, s
	}
	scheme = strings.ToLower(scheme)
	defaultPort := ""
	switch scheme {
	case SchemeHTTP, SchemeH2C:
		defaultPort = "80"
	case SchemeHTTPS:
		defaultPort = "443"
	case SchemeTCP, SchemeUDP:
	default:
		return Target{}, fmt.Errorf("target scheme %q is not known: use http, https, h2c, tcp, udp, unix:/path or tcp+unix:/path", scheme)
	}
	// A password in a target must not reach a log: no error below this line
	// repeats what comes before an @.
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	if strings.Contains(authority, "@") {
		return Target{}, errors.New("target holds a user name or password: leave it out, visitors sign in at the service itself")
	}
	if extra := rest[len(authority):]; extra != "" && extra != "/" {
		return Target{}, fmt.Errorf("target %q has a path: a target is only where to connect, visitors ask for paths themselves; write %q (to publish the service below a path of its host, use path)",
			s, strings.TrimSuffix(s, extra))
	}
	host, port, err := splitHostPort(authority, defaultPort)
	if err != nil {
		return Target{}, fmt.Errorf("target %q: %w", s, err)
	}
	return Target{Scheme: scheme, Host: host, Port: port, bare: !written}, nil
}

func unixTarget(scheme, prefix, path string) (Target, error) {
	if rest, ok := strings.CutPrefix(path, "//"); ok && strings.HasPrefix(rest, "/") {
		path = rest // unix:///run/app.sock, as URLs have it
	}
	switch {
	case !strings.HasPrefix(path, "/"):
		return Target{}, fmt.Errorf("target %q: the socket's path must be absolute, like %s/run/app.sock", prefix+path, prefix)
	case len(path) > 107: // sun_path of unix(7), less the final zero
		return Target{}, fmt.Errorf("target %q: a unix socket's path has at most 107 bytes", prefix+path)
	case strings.ContainsRune(path, 0):
		return Target{}, fmt.Errorf("target %q: the path holds a zero byte", prefix+path)
	}
	return Target{Scheme: scheme, Unix: path}, nil
}

// splitHostPort takes host and port apart; a missing port is defaultPort, or
// an error when that is empty.
func splitHostPort(s, defaultPort string) (string, uint16, error) {
	if _, err := strconv.ParseUint(s, 10, 16); err == nil {
		return "", 0, fmt.Errorf("is a port without a host: write 127.0.0.1:%s", s)
	}
	host, port := s, defaultPort
	bare := s
	if inner, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(inner, "]") {
		bare = strings.TrimSuffix(inner, "]")
	}
	if addr, ok := parseAddr(bare); ok {
		host = addr // no port: 192.168.1.5, fd00::5, [fd00::5]
	} else if strings.Contains(s, ":") {
		var err error
		if host, port, err = net.SplitHostPort(s); err != nil {
			return "", 0, errors.New("host and port do not come apart: write host:port, or [address]:port for IPv6")
		}
	}
	if port == "" {
		return "", 0, errors.New("has no port: write host:port")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("port %q is not a number from 1 to 65535", port)
	}
	if host == "" {
		return "", 0, fmt.Errorf("has no host: write 127.0.0.1:%s", port)
	}
	if addr, ok := parseAddr(host); ok {
		return addr, uint16(n), nil
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if len(host) > 253 || strings.Trim(host, hostBytes) != "" || strings.Contains(host, "..") ||
		strings.HasPrefix(host, ".") || strings.HasSuffix(host, ".") || host == "" {
		return "", 0, fmt.Errorf("host %q is neither a name nor an address", host)
	}
	return host, uint16(n), nil
}

const hostBytes = "abcdefghijklmnopqrstuvwxyz0123456789-_."

// parseAddr normalises an IP address. netip takes any bytes for a zone; an
// interface has a plain name.
func parseAddr(s string) (string, bool) {
	addr, err := netip.ParseAddr(s)
	if err != nil || strings.Trim(strings.ToLower(addr.Zone()), hostBytes) != "" {
		return "", false
	}
	return addr.String(), true
}
