package registry

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/protocol"
)

func portService(name string, port uint16, proto string) protocol.Service {
	return protocol.Service{Name: name, Proto: proto, Port: port, Auth: protocol.AuthNone}
}

func TestPorts(t *testing.T) {
	f := fresh(t)
	f.join(t, 1)
	f.join(t, 2, "*.two.example.org")
	if _, err := f.Grant(t.Context(), "home-1", GrantChange{Ports: &[]string{"2222/tcp", "51820/udp"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Grant(t.Context(), "home-2", GrantChange{Ports: &[]string{"51820/udp", "2223"}}); err != nil {
		t.Fatal(err)
	}
	answers := f.register(t, 1, []protocol.Service{
		portService("ssh", 2222, "raw"), portService("wg", 51820, "udp"), portService("dns", 2222, "udp"), portService("ssh2", 2222, "raw"),
	})
	for i, want := range []string{"", "", "was not granted", "already has port"} {
		if got := answers[i].Error; (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", answers[i].Name, got, want)
		}
	}
	if answers[0].URL != "tcp://example.org:2222" || answers[1].URL != "udp://example.org:51820" {
		t.Errorf("URLs %q and %q", answers[0].URL, answers[1].URL)
	}
	if got := f.one(t, 2, portService("wg", 51820, "udp")); !strings.Contains(got.Error, "another agent") || strings.Contains(got.Error, "home-1") {
		t.Errorf("the second agent got %+v", got)
	}
	routes := f.PortRoutes()
	if len(routes) != 2 || routes[0].Port != 2222 || routes[0].UDP || routes[1].Service != "wg" || !routes[1].UDP || routes[1].Agent != id(1) {
		t.Errorf("routes %+v", routes)
	}
	if len(f.Routes()) != 0 {
		t.Errorf("ports are routed as hosts: %+v", f.Routes())
	}

	// What is stored comes back, grants included.
	again := open(t, f.kv, nil)
	if got := again.PortRoutes(); !slices.Equal(got, routes) {
		t.Errorf("after a restart: %+v", got)
	}

	// A grant that is taken back ends the route at once, and for good.
	changed := f.changed
	if _, err := f.Grant(t.Context(), "home-1", GrantChange{Ports: &[]string{"51820/udp"}}); err != nil {
		t.Fatal(err)
	}
	if got := f.PortRoutes(); len(got) != 1 || got[0].Port != 51820 || f.changed == changed {
		t.Errorf("after the grant was taken back: %+v", got)
	}
	if got := open(t, f.kv, nil).PortRoutes(); len(got) != 1 {
		t.Errorf("and after a restart: %+v", got)
	}
}

func TestGrant(t *testing.T) {
	f := fresh(t)
	f.join(t, 1)
	f.join(t, 2, "*.two.example.org")
	if got := f.one(t, 2, service("plex", "*.0123.plex.direct")); !strings.Contains(got.Error, "not among") {
		t.Fatalf("%+v", got)
	}
	var hint *HintError
	for name, c := range map[string]GrantChange{
		"foreign": {Hosts: &[]string{"*.0123.plex.direct"}},
		"nothing": {Hosts: &[]string{}},
		"no port": {Ports: &[]string{"ssh"}},
		"zero":    {Ports: &[]string{"0"}},
		"sctp":    {Ports: &[]string{"5/sctp"}},
	} {
		if _, err := f.Grant(t.Context(), "home-2", c); !errors.As(err, &hint) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := f.Grant(t.Context(), "nobody", GrantChange{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown agent: %v", err)
	}
	if _, err := f.Grant(t.Context(), "home-2", GrantChange{Hosts: &[]string{"*.0123.plex.direct", "*.two.example.org"}, Foreign: true}); err != nil {
		t.Fatal(err)
	}
	if got := f.one(t, 2, service("plex", "*.0123.plex.direct")); got.Error != "" {
		t.Fatalf("after the grant: %+v", got)
	}
	if a, err := f.Grant(t.Context(), "home-2", GrantChange{Hosts: &[]string{"*.two.example.org"}}); err != nil || len(a.Hosts) != 1 {
		t.Fatal(a, err)
	}
	if got := f.Routes(); len(got) != 0 {
		t.Errorf("a host that is no longer granted is routed: %+v", got)
	}
	if f.audit.count("agent.granted") != 2 {
		t.Error("grants are missing in the audit log")
	}
}

func TestTokenWithPorts(t *testing.T) {
	f := fresh(t)
	secret, _, err := f.NewToken(t.Context(), TokenRequest{Hosts: []string{"*.a.example.org"}, Ports: []string{"2222", "2222/tcp"}})
	if err != nil {
		t.Fatal(err)
	}
	a, err := f.Redeem(t.Context(), secret, id(1), "a")
	if err != nil || !slices.Equal(a.Ports, []string{"2222"}) {
		t.Fatal(a, err)
	}
	if _, _, err := f.NewToken(t.Context(), TokenRequest{Hosts: []string{"*.a.example.org"}, Ports: []string{"70000"}}); err == nil {
		t.Error("port 70000 was granted")
	}
}
