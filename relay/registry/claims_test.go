package registry

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/protocol"
)

func service(name, host string) protocol.Service {
	return protocol.Service{Name: name, Proto: protocol.ProtoHTTP1, Host: host}
}

// one registers a single service and returns its answer.
func (f *fixture) one(t *testing.T, n int, s protocol.Service) protocol.Registration {
	t.Helper()
	l := f.register(t, n, []protocol.Service{s})
	if len(l) != 1 || l[0].Name != s.Name || (l[0].URL == "") == (l[0].Error == "") {
		t.Fatalf("answer %+v", l)
	}
	return l[0]
}

func TestClaims(t *testing.T) {
	for _, c := range []struct {
		what   string
		grants []string // of agent 2
		held   string   // by agent 1; space separated
		ask    protocol.Service
		url    string
		err    string // part of the refusal
	}{
		{what: "name of its own", grants: nil, ask: service("ha", ""), url: "https://ha.example.org/"},
		{what: "wanted host", ask: service("ha", "x.y.example.org"), url: "https://x.y.example.org/"},
		{what: "path", ask: protocol.Service{Name: "a", Proto: "http1", Host: "g.example.org", Path: "/lamp/"}, url: "https://g.example.org/lamp/"},
		{what: "raw", ask: protocol.Service{Name: "echo", Proto: "raw"}, url: "tls://echo.example.org:443"},
		{what: "passed through", ask: protocol.Service{Name: "echo", Proto: "raw", TLS: "backend"}, url: "https://echo.example.org/"},
		{what: "wildcard", ask: service("ha", "*.x.example.org"), url: "https://*.x.example.org/"},
		{what: "taken", held: "ha.example.org", ask: service("ha", ""), err: "claimed by another agent"},
		{what: "under a wildcard", held: "*.x.example.org", ask: service("ha", "a.x.example.org"), err: "claimed by another agent"},
		{what: "beside a wildcard", held: "*.x.example.org", ask: service("ha", "a.b.x.example.org"), url: "https://a.b.x.example.org/"},
		{what: "wildcard over a name", held: "a.x.example.org", ask: service("ha", "*.x.example.org"), err: "claimed by another agent"},
		{what: "wildcard beside a name", held: "a.b.x.example.org", ask: service("ha", "*.x.example.org"), url: "https://*.x.example.org/"},
		{what: "wildcard taken", held: "*.x.example.org", ask: service("ha", "*.x.example.org"), err: "claimed by another agent"},
		{what: "apex", ask: service("ha", "example.org"), err: "reserved"},
		{what: "www", ask: service("www", ""), err: "reserved"},
		{what: "admin", ask: service("ha", "admin.example.org"), err: "reserved"},
		{what: "t-", ask: service("t-x", ""), err: "reserved"},
		{what: "agent hash", ask: service("ha", string(id(3))+".example.org"), err: "another agent from the first"},
		{what: "below another's hash", grants: []string{"*." + string(id(3)) + ".example.org"}, ask: service("ha", "ha."+string(id(3))+".example.org"), err: "another agent from the first"},
		{what: "all below another's hash", ask: service("ha", "*."+string(id(3))+".example.org"), err: "another agent from the first"},
		{what: "own hash", grants: []string{"x.example.org"}, ask: service("ha", string(id(2))+".example.org"), url: "https://" + string(id(2)) + ".example.org/"},
		{what: "all below own hash", grants: []string{"x.example.org"}, ask: service("ha", "*."+string(id(2))+".example.org"), url: "https://*." + string(id(2)) + ".example.org/"},
		{what: "all names", ask: service("ha", "*.example.org"), err: "reserved"},
		{what: "reserved despite grant", grants: []string{"www.example.org"}, ask: service("www", ""), err: "reserved"},
		{what: "relay", ask: service("relay", ""), err: "reserved"},
		{what: "apex by a wildcard", grants: []string{"*.org"}, ask: service("ha", "*.org"), err: "reserved"},
		{what: "foreign", ask: service("ha", "ha.other.net"), err: "foreign domains need the relay owner's grant"},
		{what: "look-alike", ask: service("ha", "ha.notexample.org"), err: "foreign domains"},
		{what: "foreign by grant", grants: []string{"ha.other.net"}, ask: service("ha", "ha.other.net"), url: "https://ha.other.net/"},
		{what: "granted", grants: []string{"*.alice.example.org"}, ask: service("ha", "ha.alice.example.org"), url: "https://ha.alice.example.org/"},
		{what: "granted by default", grants: []string{"*.alice.example.org"}, ask: service("ha", ""), url: "https://ha.alice.example.org/"},
		{what: "not granted", grants: []string{"*.alice.example.org"}, ask: service("ha", "ha.bob.example.org"), err: "not among the names"},
		{what: "deeper than granted", grants: []string{"*.alice.example.org"}, ask: service("ha", "a.b.alice.example.org"), err: "not among the names"},
		{what: "not among many", grants: []string{"a.test", "b.test", "c.test", "d.test", "e.test"}, ask: service("ha", "ha.bob.example.org"), err: "a.test, b.test, c.test and 2 more"},
		{what: "wildcard as granted", grants: []string{"*.alice.example.org"}, ask: service("ha", "*.alice.example.org"), url: "https://*.alice.example.org/"},
		{what: "wildcard not granted", grants: []string{"x.alice.example.org"}, ask: service("ha", "*.alice.example.org"), err: "not among the names"},
		{what: "agent tls", ask: protocol.Service{Name: "ha", Proto: "http1", TLS: "agent"}, url: "https://ha.example.org/"},
		{what: "port not granted", ask: protocol.Service{Name: "wg", Proto: "udp", Port: 51820, Auth: "none"}, err: "was not granted"},
		{what: "bad proto", ask: protocol.Service{Name: "ha", Proto: "gopher"}, err: "proto"},
		{what: "bad name", ask: service("Ha_", ""), err: "name"},
		{what: "odd spelling", ask: service("ha", "HA.example.org"), err: "host name"},
		{what: "bad path", ask: protocol.Service{Name: "a", Proto: "http1", Host: "g.example.org", Path: "/../"}, err: "path"},
	} {
		t.Run(c.what, func(t *testing.T) {
			f := fresh(t)
			f.join(t, 1)
			var held []protocol.Service
			for i, h := range strings.Fields(c.held) {
				held = append(held, service(fmt.Sprint("s", i), h))
			}
			for _, a := range f.register(t, 1, held) {
				if a.Error != "" {
					t.Fatal(a.Error)
				}
			}
			if c.grants == nil { // any name below the domain
				f.join(t, 2, "*.example.org")
				f.agents[id(2)].Hosts = nil
			} else {
				f.join(t, 2, c.grants...)
			}
			before := len(f.Routes())
			got := f.one(t, 2, c.ask)
			if got.URL != c.url || !strings.Contains(got.Error, c.err) {
				t.Errorf("got %+v, want URL %q, error …%s…", got, c.url, c.err)
			}
			if want := before + btoi(c.err == ""); len(f.Routes()) != want {
				t.Errorf("%d routes, want %d", len(f.Routes()), want)
			}
			if strings.Contains(got.Error, "home-1") {
				t.Errorf("the refusal names the other agent: %s", got.Error)
			}
			if c.err != "" {
				if n := f.audit.count("claim.refused") + f.audit.count("service.refused"); n != 1 {
					t.Errorf("%d refusals in the audit log", n)
				}
				if n := f.audit.count("claim.refused"); n != btoi(strings.Contains(c.err, "another")) {
					t.Errorf("%d refused claims in the audit log", n)
				}
			}
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestSharedHost(t *testing.T) {
	at := func(name, path string, edit func(*protocol.Service)) protocol.Service {
		s := protocol.Service{Name: name, Proto: "http1", Host: "geek.example.org", Path: path}
		if edit != nil {
			edit(&s)
		}
		return s
	}
	f := fresh(t)
	f.join(t, 1)
	got := f.register(t, 1, []protocol.Service{
		at("lamp", "/lamp/", nil),
		at("root", "", nil),
		at("h2", "/h2/", func(s *protocol.Service) { s.Proto = "h2" }),
		at("explicit", "/explicit/", func(s *protocol.Service) { s.Auth = "require" }),
		at("dup", "/lamp/", nil),
		at("whole", "", nil),
		at("open", "/open/", func(s *protocol.Service) { s.Auth = "none" }),
		at("through", "", func(s *protocol.Service) { s.TLS = "backend" }),
		at("raw", "", func(s *protocol.Service) { s.Proto = "raw" }),
		at("lamp", "/other/", nil),
	})
	want := []string{"", "", "", "", "already has geek.example.org/lamp/", "already has the whole host", "auth is per host", "per host", "only HTTP", "there twice"}
	for i, g := range got {
		if !strings.Contains(g.Error, want[i]) || (g.Error == "") != (want[i] == "") {
			t.Errorf("%d %s: %q, want …%s…", i, g.Name, g.Error, want[i])
		}
	}
	var paths []string
	for _, r := range f.Routes() {
		paths = append(paths, r.Path)
	}
	if s := strings.Join(paths, " "); s != " /explicit/ /h2/ /lamp/" {
		t.Errorf("paths %q", s)
	}
	if !strings.Contains(f.one(t, 1, at("raw", "", func(s *protocol.Service) { s.Proto = "raw" })).URL, "tls://") {
		t.Error("a lone raw service was refused")
	}
	got = f.register(t, 1, []protocol.Service{at("lamp", "/lamp/", nil), at("raw", "", func(s *protocol.Service) { s.Proto = "raw" })})
	if !strings.Contains(got[1].Error, "only HTTP") {
		t.Errorf("raw beside a path: %+v", got[1])
	}
	f.join(t, 2, "*.example.org")
	if a := f.one(t, 2, at("mine", "/mine/", nil)); !strings.Contains(a.Error, "another agent") {
		t.Errorf("another agent took a path on the host: %+v", a)
	}
}

func TestClaimsStay(t *testing.T) {
	f := fresh(t)
	f.join(t, 1)
	f.join(t, 2, "*.example.org")
	if a := f.one(t, 1, service("ha", "")); a.Error != "" {
		t.Fatal(a.Error)
	}
	f.register(t, 1, nil) // withdrawn
	if n := len(f.Routes()); n != 0 {
		t.Errorf("%d routes after the service was withdrawn", n)
	}
	if a := f.one(t, 2, service("ha", "")); a.Error == "" {
		t.Error("a withdrawn name was taken over")
	}
	for range 5 {
		f.one(t, 2, service("ha", ""))
	}
	if n := f.audit.count("claim.refused"); n != 1 {
		t.Errorf("%d refusals in the audit log for one insisting agent", n)
	}
	if h := f.Hosts(); len(h) != 1 || h[0].Name != "home-1" || h[0].Services != nil {
		t.Errorf("hosts %+v", h)
	}

	// Across a restart of the relay.
	g := open(t, f.kv, nil)
	if a := g.one(t, 2, service("ha", "")); a.Error == "" {
		t.Error("the claim did not survive a restart")
	}
	changed := g.changed
	if err := g.Release(t.Context(), "HA.example.org"); err != nil {
		t.Fatal(err)
	}
	if g.changed == changed {
		t.Error("a release did not report the change")
	}
	if err := g.Release(t.Context(), "ha.example.org"); err == nil {
		t.Error("released twice")
	}
	if a := g.one(t, 2, service("ha", "")); a.Error != "" {
		t.Errorf("after the release: %s", a.Error)
	}
	if a := g.one(t, 1, service("ha", "")); a.Error == "" {
		t.Error("the old owner took the name back")
	}
	if n := g.audit.count("claim.released"); n != 1 {
		t.Errorf("%d releases in the audit log", n)
	}
}

func TestReleaseEndsRoutesForGood(t *testing.T) {
	f := fresh(t)
	f.join(t, 1)
	f.register(t, 1, []protocol.Service{service("a", ""), service("b", "")})
	if err := f.Release(t.Context(), "a.example.org"); err != nil {
		t.Fatal(err)
	}
	for _, reg := range []*fixture{f, open(t, f.kv, nil)} {
		if r := reg.Routes(); len(r) != 1 || r[0].Host != "b.example.org" {
			t.Errorf("routes %+v", r)
		}
	}
}

func TestRoutesSurviveRestart(t *testing.T) {
	f := fresh(t)
	f.join(t, 1)
	f.register(t, 1, []protocol.Service{service("ha", ""), {Name: "cam", Proto: "raw", Auth: "none", Solo: true, Host: "*.cam.example.org"}})
	g := open(t, f.kv, nil)
	want, got := fmt.Sprint(f.Routes()), fmt.Sprint(g.Routes())
	if got != want || len(g.Routes()) != 2 {
		t.Errorf("after the restart %s, before %s", got, want)
	}
	if online, since := g.Presence(id(1)); online || since.IsZero() {
		t.Errorf("presence %v, %v", online, since)
	}
	// The same list again is no change: nothing to rebuild.
	g.register(t, 1, []protocol.Service{service("ha", ""), {Name: "cam", Proto: "raw", Auth: "none", Solo: true, Host: "*.cam.example.org"}})
	if g.changed != 0 {
		t.Errorf("%d changes reported for an equal list", g.changed)
	}
}

func TestCaps(t *testing.T) {
	f := fresh(t)
	f.join(t, 1)
	var list []protocol.Service
	for i := range MaxHosts + 5 {
		list = append(list, service(fmt.Sprint("s", i), ""))
	}
	refused := 0
	for _, a := range f.register(t, 1, list) {
		if a.Error != "" {
			refused++
		}
	}
	if refused != 5 || len(f.Routes()) != MaxHosts {
		t.Errorf("%d refused, %d routes", refused, len(f.Routes()))
	}
	// Withdrawing does not make room: else an agent could hoard names.
	if a := f.one(t, 1, service("one-more", "")); !strings.Contains(a.Error, "50 names") {
		t.Errorf("%+v", a)
	}
	if a := f.one(t, 1, service("s7", "")); a.Error != "" {
		t.Errorf("its own old name: %+v", a)
	}
	if err := f.Release(t.Context(), "s1.example.org"); err != nil {
		t.Fatal(err)
	}
	if a := f.one(t, 1, service("one-more", "")); a.Error != "" {
		t.Errorf("after a release: %+v", a)
	}
}

func TestAuditIsBounded(t *testing.T) {
	f := fresh(t)
	f.join(t, 1)
	for i := range 5 {
		var list []protocol.Service
		for j := range 100 {
			list = append(list, service(fmt.Sprintf("s%d-%d", i, j), "x.other.net"))
		}
		f.register(t, 1, list)
	}
	if n := f.audit.count("service.refused"); n != auditBudget {
		t.Errorf("%d refusals in the audit log, want %d", n, auditBudget)
	}
	if n := f.audit.count("audit.muted"); n != 1 {
		t.Errorf("%d notes that more happened", n)
	}
}

func TestRevoke(t *testing.T) {
	f := fresh(t)
	f.join(t, 1)
	f.join(t, 2, "*.example.org")
	f.one(t, 1, service("ha", ""))
	s := newSession(1, answers)
	f.attach(t, s, "i1")
	if err := f.Revoke(t.Context(), id(1)); err != nil {
		t.Fatal(err)
	}
	if s.Err() == nil || !strings.Contains(s.Err().Error(), "revoked") {
		t.Errorf("the session ended with %v", s.Err())
	}
	for what, reg := range map[string]*fixture{"at once": f, "after a restart": open(t, f.kv, nil)} {
		if _, err := reg.Attach(newSession(1, answers), "i2"); err != ErrRevoked {
			t.Errorf("%s: attach: %v", what, err)
		}
		if _, err := reg.OpenStream(t.Context(), id(1), protocol.Open{Service: "ha"}); err != ErrRevoked {
			t.Errorf("%s: open: %v", what, err)
		}
		if a := reg.one(t, 1, service("x", "")); a.Error == "" {
			t.Errorf("%s: a revoked agent registered a service", what)
		}
		if n := len(reg.Routes()); n != 0 {
			t.Errorf("%s: %d routes", what, n)
		}
	}
	// The relay died before it deleted the claim from the store.
	if err := f.put(t.Context(), keyHosts+"ha.example.org", claimRecord{Agent: id(1)}); err != nil {
		t.Fatal(err)
	}
	for what, reg := range map[string]*fixture{"at once": f, "after a restart": open(t, f.kv, nil)} {
		if a := reg.one(t, 2, service("ha", "")); a.Error != "" {
			t.Errorf("%s: the name is not free: %s", what, a.Error)
		}
	}
	if err := f.Revoke(t.Context(), id(9)); err == nil {
		t.Error("revoked an agent that never was")
	}
	if _, err := f.Attach(newSession(9, answers), ""); err != ErrUnknownAgent {
		t.Errorf("attach of an unknown key: %v", err)
	}
}
