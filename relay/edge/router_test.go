package edge

import (
	"testing"

	"github.com/sallyport/sallyport/protocol"
)

func TestRouterMatch(t *testing.T) {
	terminate := Named("terminate", TargetFunc(nil))
	pass := Named("pass", Passthrough{})
	wild := Named("wild", TargetFunc(nil))
	hub := Named("hub", TargetFunc(nil))
	r := routed(&Snapshot{
		Hosts: hosts(t, map[string]Target{
			"ha.example.org": terminate, "nas.example.org": pass, "*.example.org": wild, "mqtt.example.org": hub,
		}),
		MQTTName:   "mqtt.example.org",
		TunnelName: "k3jq7x",
		Tunnel:     Named("tunnel", TargetFunc(nil)),
		Join:       Named("join", TargetFunc(nil)),
		ACME:       Challenge{},
		Default:    Named("stranger", Refuse{}),
	})
	tests := []struct {
		name string
		alpn []string
		want string
	}{
		{"ha.example.org", nil, "terminate"},
		{"ha.example.org", []string{"h2", "http/1.1"}, "terminate"},
		{"cam.example.org", []string{"h2"}, "wild"},
		{"a.cam.example.org", nil, "stranger"},
		{"example.org", nil, "stranger"},
		{"ha.example.com", nil, "stranger"},
		{"", nil, "stranger"},
		{"", []string{protocol.ALPN}, "stranger"},

		{"k3jq7x", []string{protocol.ALPN}, "tunnel"},
		{"k3jq7x", []string{protocol.ALPNJoin}, "join"},
		{"k3jq7x", nil, "stranger"},
		{"k3jq7x", []string{"h2"}, "stranger"},
		{"k3jq7x", []string{"acme-tls/1"}, "stranger"},
		{"k3jq7x", []string{protocol.ALPN, "h2"}, "stranger"},
		{"k3jq7x", []string{"h2", protocol.ALPN}, "stranger"},
		{"k3jq7x", []string{protocol.ALPN, protocol.ALPNJoin}, "stranger"},
		{"k3jq7x.example.org", []string{protocol.ALPN}, "stranger"},
		{"ha.example.org", []string{protocol.ALPN}, "stranger"},
		{"ha.example.org", []string{"h2", protocol.ALPN}, "stranger"},
		{"nas.example.org", []string{protocol.ALPNJoin, "h2"}, "stranger"},
		{"unknown", []string{protocol.ALPN}, "stranger"},

		{"mqtt.example.org", nil, "hub"},
		{"mqtt.example.org", []string{"mqtt"}, "hub"},
		{"mqtt.example.org", []string{"http/1.1"}, "hub"},
		{"ha.example.org", []string{"mqtt"}, "stranger"},
		{"ha.example.org", []string{"http/1.1", "mqtt"}, "stranger"},
		{"cam.example.org", []string{"mqtt"}, "stranger"},
		{"nas.example.org", []string{"mqtt"}, "pass"}, // a broker at home with TLS of its own

		{"nas.example.org", []string{"acme-tls/1"}, "pass"},
		{"ha.example.org", []string{"acme-tls/1"}, "acme"},
		{"cam.example.org", []string{"acme-tls/1"}, "acme"},
		{"ha.example.org", []string{"h2", "acme-tls/1"}, "stranger"},
		{"ha.example.org", []string{"acme-tls/1", "h2"}, "stranger"},
		{"ha.example.org", []string{"acme-tls/1", "acme-tls/1"}, "stranger"},
		{"ha.example.org", []string{"acme-tls/1", protocol.ALPN}, "stranger"},
		{"ha.example.org", []string{"ACME-TLS/1"}, "terminate"}, // a protocol that nobody speaks, as crypto/tls will say
		{"", []string{"acme-tls/1"}, "stranger"},
		{"example.org", []string{"acme-tls/1"}, "stranger"},
		{"unknown.org", []string{"acme-tls/1"}, "stranger"},
	}
	for _, tt := range tests {
		target := r.Match(Hello{ServerName: tt.name, ALPN: tt.alpn})
		if got := kindOf(target); got != tt.want {
			t.Errorf("%q %q: got %s, want %s", tt.name, tt.alpn, got, tt.want)
		}
	}
}

// Nobody answers challenges unless somebody was told to.
func TestRouterWithoutACME(t *testing.T) {
	r := routed(&Snapshot{
		Hosts:   hosts(t, map[string]Target{"ha.example.org": Named("terminate", TargetFunc(nil)), "nas.example.org": Named("pass", Passthrough{})}),
		Default: Named("stranger", Refuse{}),
	})
	for name, want := range map[string]string{"ha.example.org": "stranger", "nas.example.org": "pass"} {
		if got := kindOf(r.Match(Hello{ServerName: name, ALPN: []string{"acme-tls/1"}})); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestRouterWithoutRoutes(t *testing.T) {
	for name, r := range map[string]*Router{
		"new":            NewRouter(),
		"empty":          routed(&Snapshot{}),
		"no tunnel":      routed(&Snapshot{TunnelName: "k3jq7x"}),
		"no tunnel name": routed(&Snapshot{Tunnel: Named("tunnel", Refuse{})}),
	} {
		for _, h := range []Hello{{}, {ALPN: []string{protocol.ALPN}}, {ServerName: "k3jq7x", ALPN: []string{protocol.ALPN}}, {ServerName: "ha.example.org"}} {
			if target := r.Match(h); target != (Refuse{}) {
				t.Errorf("%s: %+v reaches %v", name, h, kindOf(target))
			}
		}
	}
}
