package protocol_test

import (
	"strings"
	"testing"

	"github.com/sallyport/sallyport/protocol"
)

func TestServiceValidate(t *testing.T) {
	ok := protocol.Service{Name: "ha", Proto: protocol.ProtoHTTP1}
	for name, change := range map[string]func(*protocol.Service){
		"least":        func(*protocol.Service) {},
		"name":         func(s *protocol.Service) { s.Name = "9-to-5" },
		"longest name": func(s *protocol.Service) { s.Name = strings.Repeat("a", 63) },
		"host":         func(s *protocol.Service) { s.Host = "ha.example.org" },
		"wildcard":     func(s *protocol.Service) { s.Host = "*.ha.example.org" },
		"path":         func(s *protocol.Service) { s.Path = "/living_lamp/v1.2/~x/" },
		"raw":          func(s *protocol.Service) { s.Proto, s.Solo = protocol.ProtoRaw, true },
		"h2, ask": func(s *protocol.Service) {
			s.Proto, s.Auth, s.TLS = protocol.ProtoH2, protocol.AuthAsk, protocol.TLSRelay
		},
		"open":          func(s *protocol.Service) { s.Auth = protocol.AuthNone },
		"backend":       func(s *protocol.Service) { s.TLS = protocol.TLSBackend },
		"backend, open": func(s *protocol.Service) { s.TLS, s.Auth = protocol.TLSBackend, protocol.AuthNone },
		"remote user":   func(s *protocol.Service) { s.RemoteUser = true },
		"remote user, ask": func(s *protocol.Service) {
			s.RemoteUser, s.Auth, s.Path = true, protocol.AuthAsk, "/x/"
		},
		"tls agent":      func(s *protocol.Service) { s.TLS, s.Path = protocol.TLSAgent, "/x/" },
		"port":           func(s *protocol.Service) { s.Port, s.Proto, s.Auth = 22, protocol.ProtoRaw, protocol.AuthNone },
		"udp":            func(s *protocol.Service) { s.Port, s.Proto, s.Auth = 51820, protocol.ProtoUDP, protocol.AuthNone },
		"three dots":     func(s *protocol.Service) { s.Path = "/.../" },
		"hidden segment": func(s *protocol.Service) { s.Path = "/.well/" },
	} {
		s := ok
		change(&s)
		if err := s.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.WithDefaults().Validate(); err != nil {
			t.Errorf("%s: with defaults: %v", name, err)
		}
	}
	for name, change := range map[string]func(*protocol.Service){
		"no name":           func(s *protocol.Service) { s.Name = "" },
		"long name":         func(s *protocol.Service) { s.Name = strings.Repeat("a", 64) },
		"capital":           func(s *protocol.Service) { s.Name = "Ha" },
		"underscore":        func(s *protocol.Service) { s.Name = "h_a" },
		"dot":               func(s *protocol.Service) { s.Name = "h.a" },
		"hyphen first":      func(s *protocol.Service) { s.Name = "-a" },
		"hyphen last":       func(s *protocol.Service) { s.Name = "a-" },
		"no proto":          func(s *protocol.Service) { s.Proto = "" },
		"proto":             func(s *protocol.Service) { s.Proto = "h3" },
		"auth":              func(s *protocol.Service) { s.Auth = "None" },
		"auth token":        func(s *protocol.Service) { s.Auth = "token" }, // the relay's own
		"remote user, open": func(s *protocol.Service) { s.RemoteUser, s.Auth = true, protocol.AuthNone },
		"remote user, raw":  func(s *protocol.Service) { s.RemoteUser, s.Proto = true, protocol.ProtoRaw },
		"remote user, backend": func(s *protocol.Service) {
			s.RemoteUser, s.TLS, s.Auth = true, protocol.TLSBackend, protocol.AuthNone
		},
		"tls":               func(s *protocol.Service) { s.TLS = "off" },
		"tls none":          func(s *protocol.Service) { s.TLS = protocol.TLSNone },
		"udp without port":  func(s *protocol.Service) { s.Proto, s.Auth = protocol.ProtoUDP, protocol.AuthNone },
		"port with http":    func(s *protocol.Service) { s.Port, s.Auth = 22, protocol.AuthNone },
		"port, auth unsaid": func(s *protocol.Service) { s.Port, s.Proto = 22, protocol.ProtoRaw },
		"port, require":     func(s *protocol.Service) { s.Port, s.Proto, s.Auth = 22, protocol.ProtoRaw, protocol.AuthRequire },
		"port with tls": func(s *protocol.Service) {
			s.Port, s.Proto, s.Auth, s.TLS = 22, protocol.ProtoRaw, protocol.AuthNone, protocol.TLSRelay
		},
		"port with host": func(s *protocol.Service) {
			s.Port, s.Proto, s.Auth, s.Host = 22, protocol.ProtoRaw, protocol.AuthNone, "a.example.org"
		},
		"backend, require":  func(s *protocol.Service) { s.TLS, s.Auth = protocol.TLSBackend, protocol.AuthRequire },
		"backend, ask":      func(s *protocol.Service) { s.TLS, s.Auth = protocol.TLSBackend, protocol.AuthAsk },
		"backend with path": func(s *protocol.Service) { s.TLS, s.Path = protocol.TLSBackend, "/x/" },
		"raw, ask":          func(s *protocol.Service) { s.Proto, s.Auth = protocol.ProtoRaw, protocol.AuthAsk },
		"raw with path":     func(s *protocol.Service) { s.Proto, s.Path = protocol.ProtoRaw, "/x/" },
		"host spelling":     func(s *protocol.Service) { s.Host = "HA.example.org" },
		"host dot":          func(s *protocol.Service) { s.Host = "ha.example.org." },
		"host port":         func(s *protocol.Service) { s.Host = "ha.example.org:443" },
		"host address":      func(s *protocol.Service) { s.Host = "127.0.0.1" },
		"host star":         func(s *protocol.Service) { s.Host = "*" },
		"host inner star":   func(s *protocol.Service) { s.Host = "a.*.example.org" },
	} {
		s := ok
		change(&s)
		if s.Validate() == nil {
			t.Errorf("%s: %+v is valid", name, s)
		}
	}
	for _, path := range []string{
		"/", "//", "x/", "/x", "x", "/x//", "//x/", "/x//y/", "/../", "/./", "/x/../", "/x/./y/", "/%2e%2e/", "/x%2fy/", "/x\\/", "/x;y/", "/x?y/", "/x#/",
		"/x y/", "/x\x00/", "/x\n/", "/ü/", "/" + strings.Repeat("a", 254) + "/",
	} {
		s := ok
		s.Path = path
		if s.Validate() == nil {
			t.Errorf("path %.40q is valid", path)
		}
	}
}

func TestServiceValidateSaysAll(t *testing.T) {
	err := protocol.Service{Name: "A", Proto: "x", Auth: "y", TLS: "z", Host: "*", Path: "w"}.Validate()
	if err == nil {
		t.Fatal("nothing found")
	}
	for _, want := range []string{`name "A"`, `proto "x"`, `auth "y"`, `tls "z"`, `"*"`, `path "w"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %s:\n%v", want, err)
		}
	}
}

// What is open to everybody must have been asked for: by "none", or by handing
// the visitor's TLS to the backend.
func TestServiceDefaults(t *testing.T) {
	s := protocol.Service{Name: "ha", Proto: protocol.ProtoHTTP1, Host: "HA.Example.org."}.WithDefaults()
	want := protocol.Service{Name: "ha", Proto: protocol.ProtoHTTP1, Host: "ha.example.org", Auth: protocol.AuthRequire, TLS: protocol.TLSRelay}
	if s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
	if s := (protocol.Service{TLS: protocol.TLSBackend}).WithDefaults(); s.Auth != protocol.AuthNone {
		t.Errorf("tls backend gets auth %q, which the relay cannot keep", s.Auth)
	}
	if s := (protocol.Service{Auth: protocol.AuthAsk, Host: "*"}).WithDefaults(); s.Auth != protocol.AuthAsk || s.Host != "*" {
		t.Errorf("what was said is changed: %+v", s)
	}
}
