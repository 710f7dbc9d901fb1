package service

import (
	"errors"
	"fmt"

	"github.com/sallyport/sallyport/protocol"
)

// Values of Entry.Origin.
const (
	OriginConfig  = "config"  // the configuration file
	OriginExposed = "exposed" // `sallyport agent expose`, --expose
	OriginFlag    = "flag"    // --expose in place of one in the configuration file, for one run
)

// An Entry is one service as its owner writes it. Only Name and Target are
// needed.
type Entry struct {
	Name   string // [a-z0-9-], at most 63 bytes
	Target string // see the package comment

	Host string // wanted public host, exact or "*.x"; empty: NAME.DOMAIN
	Path string // "/prefix/" publishes the service below a path; empty: the whole host
	Auth string // protocol.AuthRequire (default), AuthAsk, AuthNone
	TLS  string // protocol.TLSRelay (default), TLSAgent: it ends here at home, or TLSBackend: the target answers the visitor's TLS itself

	// Port is a public port of the relay for this service alone, TCP for a tcp
	// target and UDP for a udp one; the relay's owner must have granted it. Nobody
	// is asked for a certificate there, so Auth must say AuthNone. 0: none.
	Port uint16

	// How an https target is verified. Without any of these: by the system's
	// CAs, for the target's host name.
	ServerName         string // verify for this name instead
	CAFile             string // PEM; trust these CAs only. A certificate that stands here itself is accepted whatever its names and dates
	InsecureSkipVerify bool   // accept any certificate: whoever is on the home network can read and change everything

	ClientCert, ClientKey string // PEM files; shown to an https target that asks
	HTTP2                 bool   // speak HTTP/2 to an https target, for gRPC

	RemoteUser    bool   // ask the relay for Remote-User with the device's name; http targets with auth require or ask only
	ProxyProtocol bool   // begin every connection with a PROXY protocol v2 header; the backend must expect it
	Origin        string // where the entry comes from; for messages
}

// Service returns what the relay learns of the entry, defaults filled in. Its
// error lists everything that is wrong, apart from files, which Table.Set reads.
func (e Entry) Service() (protocol.Service, error) {
	s, _, err := e.parse()
	return s, err
}

func (e Entry) parse() (protocol.Service, Target, error) {
	var errs []error
	target, err := ParseTarget(e.Target)
	if err != nil {
		errs = append(errs, fmt.Errorf("service %q: %w", e.Name, err))
	}
	s := protocol.Service{Name: e.Name, Proto: protocol.ProtoRaw, Host: e.Host, Path: e.Path, Auth: e.Auth, TLS: e.TLS, Port: e.Port, Solo: e.ProxyProtocol, RemoteUser: e.RemoteUser}
	if err == nil {
		if target.bare && (e.TLS == protocol.TLSBackend || e.Port != 0) {
			target.Scheme = SchemeTCP
		}
		s.Proto = e.proto(target)
		for _, err := range e.conflicts(target) {
			errs = append(errs, fmt.Errorf("service %q: %w", e.Name, err))
		}
	}
	s = s.WithDefaults()
	if err := s.Validate(); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return protocol.Service{}, Target{}, errors.Join(errs...)
	}
	return s, target, nil
}

// proto returns what the relay speaks on the service's streams.
func (e Entry) proto(t Target) string {
	switch {
	case t.Scheme == SchemeUDP:
		return protocol.ProtoUDP
	case e.TLS == protocol.TLSBackend, t.Scheme == SchemeTCP:
		return protocol.ProtoRaw
	case t.Scheme == SchemeH2C, e.HTTP2:
		return protocol.ProtoH2
	}
	return protocol.ProtoHTTP1
}

// conflicts returns options that do not go with the target or each other.
func (e Entry) conflicts(t Target) (errs []error) {
	passthrough := e.TLS == protocol.TLSBackend
	for _, rule := range []struct {
		broken bool
		why    string
	}{
		{
			passthrough && (t.Scheme == SchemeHTTP || t.Scheme == SchemeH2C),
			"tls backend hands the visitor's TLS to the target, and " + t.Scheme + " targets expect none: use an https or tcp target, or tls relay",
		},
		{
			passthrough && e.verifies(),
			"tls backend hands the visitor's TLS to the target unread: server_name, ca, insecure_skip_verify, cert and http2 have no effect, leave them out",
		},
		{
			!passthrough && t.Scheme != SchemeHTTPS && e.verifies(),
			"server_name, ca, insecure_skip_verify, cert and http2 need an https target",
		},
		{
			e.InsecureSkipVerify && (e.CAFile != "" || e.ServerName != ""),
			"insecure_skip_verify accepts any certificate, so ca and server_name have no effect: keep those and drop insecure_skip_verify",
		},
		{
			(e.ClientCert == "") != (e.ClientKey == ""),
			"cert and key go together",
		},
		{
			t.Scheme == SchemeUDP && e.ProxyProtocol,
			"proxy_protocol begins a connection, and udp has none: leave it out",
		},
	} {
		if rule.broken {
			errs = append(errs, errors.New(rule.why))
		}
	}
	return errs
}

// verifies reports whether an option for https targets is set.
func (e Entry) verifies() bool {
	return e.ServerName != "" || e.CAFile != "" || e.InsecureSkipVerify || e.ClientCert != "" || e.ClientKey != "" || e.HTTP2
}
