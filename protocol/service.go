package protocol

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sallyport/sallyport/protocol/names"
)

const (
	maxServiceName = 63
	maxPath        = 255
)

// WithDefaults returns the service with its empty fields filled in and its
// Host in canonical form if it has one. Auth becomes AuthRequire, but AuthNone
// where the visitor's TLS passes the relay unread and the relay cannot ask.
func (s Service) WithDefaults() Service {
	if s.TLS == "" {
		s.TLS = TLSRelay
		if s.Port != 0 {
			s.TLS = TLSNone
		}
	}
	if s.Auth == "" {
		s.Auth = AuthRequire
		if s.TLS == TLSBackend {
			s.Auth = AuthNone
		}
	}
	if host, err := names.ValidPattern(s.Host); err == nil {
		s.Host = host
	}
	return s
}

// Validate reports everything that is wrong with a service; empty fields that
// have a default are fine. It judges form only: who may claim a host is the
// relay's registry to say.
func (s Service) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if err := checkServiceName(s.Name); err != nil {
		errs = append(errs, err)
	}
	switch s.Proto {
	case ProtoHTTP1, ProtoH2, ProtoRaw, ProtoUDP:
	default:
		fault("proto %q is not one of http1, h2, raw, udp", s.Proto)
	}
	errs = append(errs, s.checkPort()...)
	switch s.Auth {
	case "", AuthRequire, AuthAsk, AuthNone:
	default:
		fault("auth %q is not one of require, ask, none", s.Auth)
	}
	switch s.TLS {
	case "", TLSRelay, TLSAgent:
	case TLSNone:
		if s.Port == 0 {
			fault("tls none is for services on a port of their own (--port N): behind the shared port the name is in the visitor's TLS")
		}
	case TLSBackend:
		if s.Auth == AuthRequire || s.Auth == AuthAsk {
			fault("auth %s cannot work with tls backend, where the relay does not see the visitor's certificate: use tls relay, or auth none and let the service ask", s.Auth)
		}
	default:
		fault("tls %q is not one of relay, agent, backend", s.TLS)
	}
	if s.Proto == ProtoRaw && s.Auth == AuthAsk {
		fault("auth ask answers with a web page, which proto raw has no place for: use require or none")
	}
	if s.RemoteUser {
		switch {
		case s.Proto == ProtoRaw || s.TLS == TLSBackend:
			fault("remote_user needs HTTP whose TLS ends here: not proto raw, not tls backend")
		case s.Auth == AuthNone:
			fault("remote_user names the visitor's device, and auth none asks for none: use auth require or ask")
		}
	}
	if s.Host != "" {
		switch host, err := names.ValidPattern(s.Host); {
		case err != nil:
			errs = append(errs, err)
		case host != s.Host:
			fault("host name %q must be written %q", s.Host, host)
		}
	}
	if s.Path != "" {
		if err := checkPath(s.Path); err != nil {
			errs = append(errs, err)
		}
		if s.Proto == ProtoRaw || s.TLS == TLSBackend {
			fault("path %q needs HTTP whose TLS ends at the relay or the agent: not proto raw, not tls backend", s.Path)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("service %q: %w", shorten(s.Name), errors.Join(errs...))
}

// checkPort returns what does not go with a port of the service's own.
func (s Service) checkPort() (errs []error) {
	if s.Port == 0 {
		if s.Proto == ProtoUDP {
			errs = append(errs, errors.New("udp needs a public port of its own: give --port N, which the relay's owner must have granted"))
		}
		return errs
	}
	for _, rule := range []struct {
		broken bool
		why    string
	}{
		{s.Proto != ProtoRaw && s.Proto != ProtoUDP, fmt.Sprintf("port %d carries bytes as they come: use a tcp:// or udp:// target", s.Port)},
		{s.TLS != "" && s.TLS != TLSNone, fmt.Sprintf("port %d has no TLS of ours: leave tls out", s.Port)},
		{s.Auth != AuthNone, fmt.Sprintf("port %d is open to everybody on the internet, nobody is asked for a certificate: say so with auth none", s.Port)},
		{s.Host != "" || s.Path != "", fmt.Sprintf("port %d is reached under every name: leave host and path out", s.Port)},
	} {
		if rule.broken {
			errs = append(errs, errors.New(rule.why))
		}
	}
	return errs
}

// checkServiceName enforces [a-z0-9]([a-z0-9-]*[a-z0-9])?, at most 63 bytes:
// the name becomes a DNS label when the service wants no other host.
func checkServiceName(name string) error {
	switch {
	case name == "":
		return errors.New("service name is empty")
	case len(name) > maxServiceName,
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "",
		name[0] == '-', name[len(name)-1] == '-':
		return fmt.Errorf("service name %q must be lower-case letters, digits and inner hyphens, at most %d", shorten(name), maxServiceName)
	}
	return nil
}

// checkPath enforces "/a/" or "/a/b/" of RFC 3986 unreserved characters. An
// escape, a backslash or a dot segment in a prefix could only serve to make
// two parsers disagree on what is below it.
func checkPath(path string) error {
	const unreserved = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"
	inner, front := strings.CutPrefix(path, "/")
	inner, back := strings.CutSuffix(inner, "/")
	switch {
	case path == "/":
		return errors.New("path \"/\" is the whole host: leave path empty")
	case !front || !back || len(path) > maxPath:
		return fmt.Errorf("path %q must look like \"/prefix/\", at most %d bytes", shorten(path), maxPath)
	}
	for seg := range strings.SplitSeq(inner, "/") {
		if seg == "" || seg == "." || seg == ".." || strings.Trim(seg, unreserved) != "" {
			return fmt.Errorf("path %q: segment %q is not letters, digits, \"-\", \".\", \"_\" or \"~\"", path, seg)
		}
	}
	return nil
}

// shorten keeps what a peer chose fit for a log line.
func shorten(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
